//! Networks by installed programs, slirp4netns and pasta.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::page;
use crate::support::http::{Server, get, primary_address};
use crate::support::{Home, LIMIT, Need, busybox, eventually, finish, free_port, parent_of, processes, skip};

/// A page at a port for streams, and an echo at one for datagrams.
const SERVER: &str = r#"
import http.server, socket, socketserver, threading

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"it works\n")

def echo():
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", 53))
    while True:
        datagrams.sendto(*datagrams.recvfrom(1 << 16))

threading.Thread(target=echo, daemon=True).start()
socketserver.TCPServer(("", 80), Page).serve_forever()
"#;

/// Notes a skip where the program is not installed.
pub fn is_missing(program: &str) -> bool {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        skip(&format!("{program} is not installed"));
    }
    !is_there
}

/// A server outside by its address and by the host's name, a published port for streams and one for datagrams, and the files
/// that say what the container has.
fn works(network: &str, addresses: [&str; 2]) {
    let Some(home) = Home::with_busybox(&[Need::Tun, Need::Fuse]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let [container, dns] = addresses;
    let server = Server::start_on(address, page(b"from outside\n"));
    let port = server.address.port();
    let script = format!(
        "timeout 10 wget -q -O - http://{address}:{port}/; timeout 10 wget -q -O - http://host.docker.internal:{port}/; \
         grep ^nameserver /etc/resolv.conf; awk '/itself$/ {{print $1; exit}}' /etc/hosts; \
         ip -4 addr show eth0 | awk '$1 == \"inet\" {{print $2}}'; cat /sys/class/net/eth0/mtu"
    );
    let seen = home.sh(&["--network", network, "--name", "itself"], &script);
    let expected = format!("from outside\nfrom outside\nnameserver {dns}\n{container}\n{container}/24\n65520\n");
    assert_eq!(seen, expected);
    let given = home.sh(&["--network", network, "--dns", "192.0.2.53"], "grep ^nameserver /etc/resolv.conf");
    assert_eq!(given, "nameserver 192.0.2.53\n");

    publishes(&home, network, container, address);
}

/// Published ports, and what becomes of the program when it, or what has started it, is killed.
fn publishes(home: &Home, network: &str, container: &str, address: Ipv4Addr) {
    let (stream, datagram) = (free_port(), free_port());
    // From the loopback neither answers a datagram: slirp4netns without allow_host_loopback, nor pasta (of March 2023) where the
    // numbers of the two ports differ.
    let [publish, publish_udp] = [format!("127.0.0.1:{stream}:80"), format!("{address}:{datagram}:53/udp")];
    let run = ["run", "-d", "--network", network, "--name", "web", "-p", &publish, "-p", &publish_udp];
    home.ok(&[&run[..], &["host:", "python3", "-c", SERVER]].concat());
    let at = format!("127.0.0.1:{stream}");
    let answers = || get(&at, "/").is_ok_and(|body| body == "it works\n");
    eventually("the server answers", answers);
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    eventually("a datagram comes back", || {
        socket.send_to(b"ping", (address, datagram)).unwrap();
        socket.recv(&mut [0; 16]).is_ok_and(|length| length == 4)
    });
    assert_eq!(home.ok(&["port", "web", "80"]), format!("{at}\n"));
    let name = network.split(':').next().unwrap();
    let format =
        format!("{{{{.HostConfig.NetworkMode}}}} {{{{(index .NetworkSettings.Networks \"{name}\").IPAddress}}}}");
    assert_eq!(home.inspect("web", &format).trim(), format!("{network} {container}"));

    // Killed, it is started again, with its ports.
    let id = home.inspect("web", "{{.Id}}");
    let id = &id[..12];
    let before = programs(name, id);
    assert_eq!(before.len(), 1, "{before:?}");
    end(before[0], Signal::SIGKILL);
    eventually("another one runs", || programs(name, id).iter().any(|pid| !before.contains(pid)));
    eventually("the server answers again", answers);

    // It ends with the role, though the monitor does nothing.
    let after = programs(name, id);
    let role = parent_of(after[0]);
    let monitor = parent_of(role);
    end(monitor, Signal::SIGSTOP);
    end(role, Signal::SIGKILL);
    eventually("the program ends with its role", || {
        processes(|words| is(words, name)).iter().all(|pid| !after.contains(pid))
    });
    end(monitor, Signal::SIGCONT);
    home.ok(&["rm", "-f", "web"]);
}

fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Whether a command line is that of a program.
fn is(words: &[String], name: &str) -> bool {
    words[0].rsplit('/').next() == Some(name)
}

/// The programs that the net roles of a container have started.
fn programs(name: &str, id: &str) -> Vec<i32> {
    let roles = processes(|words| words[0] == "sublet-net" && words.get(1).is_some_and(|label| label == id));
    let all = processes(|words| is(words, name));
    all.into_iter().filter(|pid| roles.contains(&parent_of(*pid))).collect()
}

#[test]
fn a_container_has_its_network_by_slirp4netns() {
    if !is_missing("slirp4netns") {
        // Its sandbox unmounts all that it has, and must take nothing from the machine.
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        works("slirp4netns", ["10.0.2.100", "10.0.2.3"]);
        assert_eq!(mounts(), before);
    }
}

#[test]
fn a_container_has_its_network_by_pasta() {
    if !is_missing("pasta") {
        works("pasta", ["10.213.0.100", "10.213.0.2"]);
    }
}

#[test]
fn what_a_program_cannot_do_is_refused_before_anything_is_made() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let refused = |options: &[&str], why: &str| {
        let said = home.fails(1, &[&["create"], options, &[image.as_str(), "true"]].concat());
        assert!(said.contains(why), "{options:?}: {said}");
    };
    refused(&["--network", "slirp:speed=high"], "there is none of this name");
    refused(&["--network", "slirp4netns:port_handler=rootlesskit"], "ports are published by slirp4netns itself");
    refused(&["--network", "slirp", "-p", "[::1]:8080:80"], "slirp4netns publishes ports of IPv4 only");
    refused(&["--network", "slirp", "--ip", "10.0.2.7"], "user specified IP address");
    refused(&["--network", "pasta:--netns,/proc/1/ns/net"], "it is none that sublet hands on");
    refused(&["--network", "pasta:-t,80"], "ports are published by --publish");
    let mut without = home.command(&["create", "--network", "pasta", &image, "true"]);
    let said = finish(without.env("PATH", "/nowhere"), b"", LIMIT).stderr;
    assert!(said.contains("install the package passt"), "{said}");
    assert_eq!(home.containers(), Vec::<String>::new());
}
