//! The network from inside: out to a host's server, in by a published port, names, and none at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod apt;
mod egress;
mod names;
mod networks;
mod oracle;
mod ports;
mod programs;
mod rate;
mod shared;
mod sight;

use std::collections::HashMap;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use support::http::{Answer, Server, primary_address};
use support::{Home, LIMIT, Need, finish, skip};

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
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..length], from).unwrap();
    });
    let script = format!("exec 3<>/dev/udp/{address}/{port}; echo ping >&3; timeout 10 head -n 1 <&3");
    assert_eq!(home.host_bash(&[], &script), "ping\n");
}

#[test]
fn a_refused_connection_is_refused_inside() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    let seen = home.sh(&[], &format!("timeout 10 wget -q -O - http://{address}:{port}/ 2>&1 || true"));
    assert!(seen.contains("refused"), "{seen}");
}

#[test]
fn loopback_of_the_host_is_not_reached_unless_shared() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let server = Server::start(page(b"loopback\n"));
    let script = format!("timeout 3 wget -q -O - http://{}/ 2>/dev/null || echo unreachable", server.address);
    assert_eq!(home.sh(&[], &script), "unreachable\n");
    assert_eq!(home.sh(&["--network", "host"], &script), "loopback\n");
}

#[test]
fn without_a_network_there_is_loopback_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.sh(&["--network", "none"], "ls /sys/class/net; ip addr show lo | grep -c 'inet 127.0.0.1'; ping -c 1 -w 5 127.0.0.1 | grep -c ' 0% packet loss'");
    assert_eq!(seen, "lo\n1\n1\n");
}

#[test]
fn names_are_resolved_by_the_forwarder() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let seen = home.sh(
        &["--name", "itself"],
        "cat /etc/resolv.conf | grep ^nameserver; for name in itself host.docker.internal; do nslookup $name | \
         awk -v name=$name '$1 == \"Name:\" {named = $2} $1 == \"Address:\" && named == name {print name, $2}' | grep ' 10.'; done",
    );
    assert_eq!(seen, "nameserver 10.213.0.2\nitself 10.213.0.100\nhost.docker.internal 10.213.0.1\n");
}

/// The oracle is the same program asking the host's own resolver. Which answer that gives (even "no such name") is the
/// resolver's affair, and it asks nobody outside for this name.
#[test]
fn other_names_get_the_answer_of_the_hosts_resolver() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let script = "nslookup localhost 2>&1 | grep -v -e ^Server: -e :53$ -e ^$; true";
    let mut on_host = Command::new("busybox");
    home.surround(on_host.args(["sh", "-c", script]));
    let expected = finish(&mut on_host, b"", LIMIT).stdout;
    if expected.is_empty() || expected.contains("timed out") || expected.contains("no servers") {
        return skip("the host's resolver does not answer");
    }
    assert_eq!(home.sh(&[], script), expected);
}

#[test]
fn the_gateway_answers_echo_requests() {
    let Some(home) = Home::with_busybox(&[Need::Tun, Need::Subids]) else { return };
    let script = "gateway=$(ip route | awk '/^default/ {print $3}'); ping -c 1 -W 5 $gateway >/dev/null && echo alive";
    assert_eq!(home.sh(&[], script), "alive\n");
}
