//! The network from inside: out to a host's server, in by a published port, names, and none at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod apt;

use std::collections::HashMap;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use support::http::{Answer, Server, get, primary_address};
use support::{Home, Need, busybox, eventually, free_port, skip};

fn page(body: &[u8]) -> HashMap<String, Answer> {
    [("/".to_owned(), Answer::ok("text/plain", body))].into()
}

#[test]
fn a_server_outside_is_reached() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let server = Server::start_on(address, page(b"from outside\n"));
    let seen = home.sh(&[], &format!("wget -q -O - http://{}/", server.address));
    assert_eq!(seen, "from outside\n");
}

#[test]
fn a_large_answer_arrives_whole() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let body: Vec<u8> = (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let digest = fixture::image::digest(&body);
    let server = Server::start_on(address, page(&body));
    let seen = home.sh(&[], &format!("wget -q -O - http://{}/ | sha256sum", server.address));
    assert_eq!(format!("sha256:{}", seen.split(' ').next().unwrap_or_default()), digest);
}

#[test]
fn datagrams_go_out_and_come_back() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..length], from).unwrap();
    });
    let seen = home.sh(&[], &format!("echo ping | timeout 5 nc -u -w 2 {address} {port}"));
    assert_eq!(seen, "ping\n");
}

#[test]
fn a_refused_connection_is_refused_inside() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    let seen = home.sh(&[], &format!("wget -T 10 -q -O - http://{address}:{port}/ 2>&1 || true"));
    assert!(seen.contains("refused"), "{seen}");
}

#[test]
fn loopback_of_the_host_is_not_reached_unless_shared() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let server = Server::start(page(b"loopback\n"));
    let script = format!("wget -T 3 -q -O - http://{}/ 2>/dev/null || echo unreachable", server.address);
    assert_eq!(home.sh(&[], &script), "unreachable\n");
    assert_eq!(home.sh(&["--network", "host"], &script), "loopback\n");
}

#[test]
fn without_a_network_there_is_loopback_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.sh(&["--network", "none"], "ls /sys/class/net; ip addr show lo | grep -c 'inet 127.0.0.1'");
    assert_eq!(seen, "lo\n1\n");
}

#[test]
fn a_published_port_answers_on_the_host() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    home.ok(&["run", "-d", "-p", &publish, "--name", "web", &busybox(), "httpd", "-f", "-h", "/var/www"]);
    let address = format!("127.0.0.1:{port}");
    eventually("the server answers", || get(&address, "/").is_ok_and(|body| body == "it works\n"));
    let ports = home.ok(&["ps", "--format", "{{.Ports}}"]);
    assert_eq!(ports, format!("127.0.0.1:{port}->80/tcp\n"));
    home.ok(&["stop", "-t", "0", "web"]);
    eventually("the port is free again", || TcpListener::bind(&address).is_ok());
}

#[test]
fn a_port_in_use_is_refused_and_nothing_is_left() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("127.0.0.1:{}:80", taken.local_addr().unwrap().port());
    let said = home.fails(125, &["run", "-d", "--name", "late", "-p", &publish, &busybox(), "sleep", "600"]);
    assert!(said.contains("port is already allocated") || said.contains("in use"), "{said}");
    let running = home.ok(&["ps", "-q"]);
    assert_eq!(running, "");
}

#[test]
fn names_are_resolved_by_the_forwarder() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    // No name outside is asked for: that the forwarder answers at all, and for itself, is what is seen here.
    let seen = home.sh(&[], "grep -c ^nameserver /etc/resolv.conf; nslookup localhost 2>&1 | grep -c 127.0.0.1");
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|count| *count != "0"), "{seen}");
}

#[test]
fn the_gateway_answers_echo_requests() {
    let Some(home) = Home::with_busybox(&[Need::Tun, Need::Subids]) else { return };
    let script = "gateway=$(ip route | awk '/^default/ {print $3}'); ping -c 1 -W 5 $gateway >/dev/null && echo alive";
    assert_eq!(home.sh(&[], script), "alive\n");
}
