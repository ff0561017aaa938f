//! What sockets see of each other through each of the networks, compared with what two sockets of the host see.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::{Child, Command, Stdio};

use crate::programs::is_missing;
use crate::support::http::primary_address;
use crate::support::{Home, LIMIT, Need, eventually, finish, free_port, skip};

const SCRIPT: &str = include_str!("oracle.py");

/// What is known to be another thing by somebody else's program: its network, the side that calls, and the behaviours. Those are
/// slirp4netns 1.2.0 with libslirp 4.7.0, and pasta of March 2023; a newer one may do better.
const DIFFERENCES: &[(&str, &str, &[&str])] = &[
    // It ends a connection that was reset as if it had been closed, and does not tell of a reset that comes after the end.
    ("slirp4netns", "out", &["reset by the calling side", "write to a closed one"]),
    ("slirp4netns", "in", &["reset by the other side", "closed with unread data", "write to a closed one"]),
    // What is refused it does not tell, nor a reset. After the container's end it sends what comes back twice. A keepalive probe is
    // taken for data.
    (
        "pasta",
        "out",
        &[
            "connection refused",
            "reset by the calling side",
            "half close, calling side first",
            "keepalive",
            "datagram to nobody",
        ],
    ),
    // The same from the other side, a reset not always; and it loses urgent bytes.
    (
        "pasta",
        "in",
        &["reset by the other side", "closed with unread data", "half close, other side first", "urgent data in line"],
    ),
];

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports for streams and datagrams, and one that nobody has.
fn ports() -> [String; 3] {
    [free_port(), free_port(), free_port()].map(|port| port.to_string())
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).args(arguments);
    command
}

fn serve(address: &str, tcp: &str, udp: &str) -> Server {
    let mut server = python(&["serve", address, tcp, udp]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Server(server)
}

/// What a caller on the host sees, but for these behaviours.
fn talk(address: &str, [tcp, udp, closed]: &[String; 3], but: &[&str]) -> String {
    finish(&mut python(&[&["talk", address, tcp, udp, closed], but].concat()), b"", LIMIT).stdout
}

/// What is known of a network.
fn known(network: &str, side: &str) -> &'static [&'static str] {
    let known = DIFFERENCES.iter().find(|(of, at, _)| (*of, *at) == (network, side));
    known.map_or(&[], |(.., behaviours)| behaviours)
}

/// Holds what was seen against the oracle, but for what is known of this network.
fn compare(network: &str, side: &str, seen: &str, oracle: &str) {
    let is_known = |line: &str| known(network, side).contains(&line.split(": ").next().unwrap_or_default());
    let seen: Vec<&str> = seen.lines().collect();
    let expected: Vec<&str> = oracle.lines().filter(|line| !is_known(line)).collect();
    let differ: Vec<_> = expected.iter().zip(&seen).filter(|(expected, seen)| expected != seen).collect();
    assert!(differ.is_empty(), "{network}, {side}:\n{differ:#?}");
    assert_eq!(expected.len(), seen.len(), "{network}, {side}");
}

fn primary_v6() -> Option<Ipv6Addr> {
    let socket = UdpSocket::bind("[::]:0").ok()?;
    socket.connect("[2001:db8::1]:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// A server of the host, called by the host and from a container.
fn outward(network: &str, address: &str) {
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    let ports = ports();
    let [tcp, udp, closed] = &ports;
    let _server = serve(address, tcp, udp);
    let oracle = talk(address, &ports, &[]);
    let run =
        ["run", "--rm", "--network", network, "host:", "python3", "-c", SCRIPT, "talk", address, tcp, udp, closed];
    let seen = home.ok(&[&run[..], known(network, "out")].concat());
    compare(network, "out", &seen, &oracle);
}

/// A published server of a container, called by the host. Nobody listens at what is refused.
fn inward(network: &str) {
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let address = address.to_string();
    let ports = ports();
    let [tcp, udp, _] = &ports;
    let oracle = {
        let _server = serve(&address, tcp, udp);
        talk(&address, &ports, &[])
    };
    let publish = [format!("{address}:{tcp}:1000"), format!("{address}:{udp}:1000/udp")];
    let mut run = vec!["run", "-d", "--name", "server", "--network", network];
    run.extend(publish.iter().flat_map(|publish| ["-p", publish]));
    run.extend(["host:", "python3", "-c", SCRIPT, "serve", "0.0.0.0", "1000", "1000"]);
    home.ok(&run);
    eventually("the server listens", || home.ok(&["logs", "server"]) == "ready\n");
    compare(network, "in", &talk(&address, &ports, known(network, "in")), &oracle);
    home.ok(&["rm", "-f", "server"]);
}

fn v4() -> Option<Ipv4Addr> {
    let address = primary_address();
    if address.is_none() {
        skip("this machine has no route out");
    }
    address
}

#[test]
fn sockets_see_the_same_through_the_builtin_network() {
    let Some(address) = v4() else { return };
    outward("builtin", &address.to_string());
}

#[test]
fn sockets_see_the_same_through_the_builtin_network_by_ipv6() {
    let Some(address) = primary_v6() else { return skip("this machine has no route out by IPv6") };
    outward("builtin", &address.to_string());
}

#[test]
fn sockets_see_the_same_at_ports_published_by_the_builtin_network() {
    inward("builtin");
}

#[test]
fn sockets_see_the_same_through_slirp4netns() {
    if is_missing("slirp4netns") {
        return;
    }
    let Some(address) = v4() else { return };
    outward("slirp4netns", &address.to_string());
    inward("slirp4netns");
}

#[test]
fn sockets_see_the_same_through_pasta() {
    if is_missing("pasta") {
        return;
    }
    let Some(address) = v4() else { return };
    outward("pasta", &address.to_string());
    inward("pasta");
}
