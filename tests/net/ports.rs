//! Published ports: Docker's grammar, what listens afterwards, and what a server inside sees.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::json;

use crate::support::http::{Server, get, primary_address, registry_of};
use crate::support::oracle::host_busybox;
use crate::support::{Home, Need, busybox, eventually, free_port, skip};

/// Answers each datagram with the address that it came from.
const UDP_SERVER: &str = "use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => 'udp', LocalPort => 53) or die; \
                          $| = 1; print qq(ready\\n); while ($s->recv(my $b, 9000)) { $s->send($s->peerhost . qq( $b)) }";
/// Answers each connection with the address that it came from.
const TCP_SERVER: &str = "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 9, LocalPort => 80) or die; \
                          $| = 1; print qq(ready\\n); while (my $c = $s->accept) { print $c $c->peerhost; close $c }";

/// The same at both families' addresses, and with the address that was called.
const DUAL_SERVER: &str = "use IO::Socket::IP; my $s = IO::Socket::IP->new(Listen => 9, LocalHost => '::', \
                           LocalPort => 80, V6Only => 0) or die; $| = 1; print qq(ready\n); \
                           while (my $c = $s->accept) { print $c $c->peerhost, ' ', $c->sockhost; close $c }";

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
    let address = taken.local_addr().unwrap();
    assert!(said.contains(&format!("Bind for {address} failed: port is already allocated")), "{said}");
    assert!(said.contains(&format!("hint: process {} (", std::process::id())), "{said}");
    let running = home.ok(&["ps", "-q"]);
    assert_eq!(running, "");
}

#[test]
fn a_port_that_needs_a_privilege_is_explained() {
    let Some(home) = Home::with_busybox(&[Need::Tun, Need::PlainUser]) else { return };
    let from = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if from.trim() != "1024" {
        return skip("this machine gives low ports to everybody");
    }
    let said = home.fails(125, &["run", "--rm", "-p", "127.0.0.1:80:80", &busybox(), "true"]);
    let hint = "hint: ports below 1024 need a privilege: publish a higher one, or let an administrator run sysctl \
                net.ipv4.ip_unprivileged_port_start=80";
    assert!(said.contains("Bind for 127.0.0.1:80 failed") && said.contains(hint), "{said}");
}

#[test]
fn ports_that_are_not_published_are_listed_too() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    // An image of one program, which knows by its name what it is to do.
    let Some(program) = host_busybox() else { return skip("no static busybox on the host") };
    let program = std::fs::read(program).unwrap();
    let layer = LayerBuilder::default().file("sleep", Meta::root(0o755), &program).unwrap().finish().unwrap();
    let exposed = json!({ "ExposedPorts": { "80/tcp": {}, "443/tcp": {}, "444/tcp": {}, "53/udp": {} } });
    let server = Server::start(registry_of("exposing", &Image::new(vec![layer], &exposed)));
    let image = format!("{}/exposing", server.address);
    let run = |options: &[&str]| {
        home.ok(&[&["run", "-d", "--name", "web"], options, &[&image, "/sleep", "600"]].concat());
        let shown = home.ok(&["ps", "--format", "{{.Ports}}"]);
        home.ok(&["rm", "-f", "web"]);
        shown
    };
    assert_eq!(run(&[]), "80/tcp, 443-444/tcp, 53/udp\n");
    let port = free_port();
    let published = run(&["-p", &format!("127.0.0.1:{port}:443")]);
    assert_eq!(published, format!("80/tcp, 444/tcp, 53/udp, 127.0.0.1:{port}->443/tcp\n"));
    assert_eq!(run(&["--network", "none"]), "\n");
}

#[test]
fn all_exposed_ports_can_be_published() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let options = ["-P", "--expose", "80-81", "--expose", "53/udp", "-p", "127.0.0.1::81"];
    home.ok(&[&["run", "-d", "--name", "web"][..], &options, &[&busybox(), "httpd", "-f", "-h", "/var/www"]].concat());
    let number = |port: &str| {
        let bound = format!("(index .NetworkSettings.Ports \"{port}\")");
        home.inspect("web", &format!("{{{{len {bound}}}}} {{{{(index {bound} 0).HostPort}}}}"))
    };
    let (web, other, udp) = (number("80/tcp"), number("81/tcp"), number("53/udp"));
    // At both families' addresses, but for the one that was published by itself.
    let port = web.strip_prefix("2 ").unwrap();
    let address = format!("127.0.0.1:{port}");
    eventually("the server answers", || get(&address, "/").is_ok_and(|body| body == "it works\n"));
    assert!(other.starts_with("1 ") && other != "1 0", "{other}");
    assert!(UdpSocket::bind(("127.0.0.1", udp.strip_prefix("2 ").unwrap().parse().unwrap())).is_err());
    assert_eq!(home.inspect("web", "{{.HostConfig.PublishAllPorts}} {{len .NetworkSettings.Ports}}"), "true 3");
    let said = home.fails(125, &["run", "--rm", "-p", &format!("{port}:80"), &busybox(), "true"]);
    assert!(said.contains("hint: container web publishes it: publish another port"), "{said}");
}

/// The first of `count` neighbouring ports that were free a moment ago, at all addresses.
fn free_range(count: u16) -> u16 {
    // Tests run side by side: each looks in a part of its own.
    static PART: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100 + PART.fetch_add(1, Ordering::Relaxed) * 20;
    let free = |port: u16| TcpListener::bind(("0.0.0.0", port)).is_ok() && TcpListener::bind(("::", port)).is_ok();
    (start..start + 20)
        .step_by(usize::from(count))
        .find(|first| (*first..first + count).all(free))
        .expect("a free range")
}

/// Runs perl of the host with this program and waits until it says that it is ready; false when there is no perl.
fn serve(home: &Home, name: &str, options: &[&str], program: &str) -> bool {
    if !Command::new("perl").args(["-MIO::Socket::INET", "-e", "1"]).status().is_ok_and(|status| status.success()) {
        skip("the host has no perl");
        return false;
    }
    home.ok(&[&["run", "-d", "--name", name][..], options, &["host:", "perl", "-e", program]].concat());
    eventually("the server is ready", || home.run(&["logs", name]).stdout == "ready\n");
    true
}

#[test]
fn a_range_of_ports_leads_to_a_range_inside() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let first = free_range(2);
    let (second, publish) = (first + 1, format!("{first}-{}:80-81", first + 1));
    let script = "echo other >/tmp/index.html; httpd -p 80 -h /var/www; exec httpd -f -p 81 -h /tmp";
    home.ok(&["run", "-d", "-p", &publish, "--name", "web", &busybox(), "sh", "-c", script]);
    for (port, page) in [(first, "it works\n"), (second, "other\n")] {
        let address = format!("127.0.0.1:{port}");
        eventually("the server answers", || get(&address, "/").is_ok_and(|body| body == page));
    }
    let ports = home.ok(&["ps", "--format", "{{.Ports}}"]);
    assert_eq!(ports, format!("0.0.0.0:{first}-{second}->80-81/tcp, [::]:{first}-{second}->80-81/tcp\n"));
    let inspected = home.inspect("web", "{{json .NetworkSettings.Ports}}");
    let both = |port| format!(r#"[{{"HostIp":"0.0.0.0","HostPort":"{port}"}},{{"HostIp":"::","HostPort":"{port}"}}]"#);
    assert_eq!(inspected, format!(r#"{{"80/tcp":{},"81/tcp":{}}}"#, both(first), both(second)));
    let wished = home.inspect("web", "{{json .HostConfig.PortBindings}}");
    let one = |port| format!(r#"[{{"HostIp":"","HostPort":"{port}"}}]"#);
    assert_eq!(wished, format!(r#"{{"80/tcp":{},"81/tcp":{}}}"#, one(first), one(second)));
}

#[test]
fn the_first_free_port_of_a_range_is_taken_and_none_is_an_error() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let first = free_range(2);
    let taken = TcpListener::bind(("127.0.0.1", first)).unwrap();
    let publish = format!("127.0.0.1:{first}-{}:80", first + 1);
    let run = |name| ["run", "-d", "--name", name, "-p", &publish, &busybox(), "sleep", "600"].map(str::to_owned);
    home.ok(&run("one").each_ref().map(String::as_str));
    assert_eq!(home.ok(&["ps", "--format", "{{.Ports}}"]), format!("127.0.0.1:{}->80/tcp\n", first + 1));
    let said = home.fails(125, &run("two").each_ref().map(String::as_str));
    let expected = format!("Bind for 127.0.0.1:{first}-{} failed: all ports are allocated", first + 1);
    assert!(said.contains(&expected), "{said}");
    drop(taken);
}

#[test]
fn ports_without_a_number_of_the_host_get_a_free_one() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let publish = ["-p", "80", "-p", "127.0.0.1::81", "-p", "[::1]::82/tcp", "-p", "83/udp"];
    home.ok(&[&["run", "-d", "--name", "web"][..], &publish, &[&busybox(), "httpd", "-f", "-h", "/var/www"]].concat());
    let bound = |port: &str, at: usize, field: &str| {
        home.inspect("web", &format!("{{{{(index (index .NetworkSettings.Ports \"{port}\") {at}).{field}}}}}"))
    };
    let number = |port: &str, at: usize| bound(port, at, "HostPort").parse::<u16>().unwrap();
    assert_eq!((bound("80/tcp", 0, "HostIp"), bound("80/tcp", 1, "HostIp")), ("0.0.0.0".to_owned(), "::".to_owned()));
    assert_eq!(number("80/tcp", 0), number("80/tcp", 1));
    assert_eq!(
        (bound("81/tcp", 0, "HostIp"), bound("82/tcp", 0, "HostIp")),
        ("127.0.0.1".to_owned(), "::1".to_owned())
    );
    for address in [format!("127.0.0.1:{}", number("80/tcp", 0)), format!("[::1]:{}", number("80/tcp", 1))] {
        eventually("the server answers", || get(&address, "/").is_ok_and(|body| body == "it works\n"));
    }
    let udp = UdpSocket::bind(("127.0.0.1", number("83/udp", 0)));
    assert_eq!(udp.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn an_ipv6_address_of_the_host_can_be_named() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Ok(free) = TcpListener::bind("[::1]:0") else { return skip("this machine has no IPv6") };
    let address = free.local_addr().unwrap();
    drop(free);
    let publish = format!("{address}:80");
    home.ok(&["run", "-d", "--name", "web", "-p", &publish, &busybox(), "httpd", "-f", "-h", "/var/www"]);
    eventually("the server answers", || get(&address.to_string(), "/").is_ok_and(|body| body == "it works\n"));
    assert!(TcpStream::connect(("127.0.0.1", address.port())).is_err(), "only the address that was named");
    assert_eq!(home.ok(&["ps", "--format", "{{.Ports}}"]), format!("{address}->80/tcp\n"));
}

#[test]
fn a_published_udp_port_answers_on_the_host() {
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    let free = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    if !serve(&home, "echo", &["-p", &format!("{port}:53/udp")], UDP_SERVER) {
        return;
    }
    let ports = home.ok(&["ps", "--format", "{{.Ports}}"]);
    assert_eq!(ports, format!("0.0.0.0:{port}->53/udp, [::]:{port}->53/udp\n"));
    // The client's own address shows; the host's loopback is the gateway's inside.
    let mut expected = vec![(SocketAddr::from(([127, 0, 0, 1], port)), "10.213.0.1".to_owned())];
    expected.extend(primary_address().map(|address| ((address, port).into(), address.to_string())));
    for (server, client) in expected {
        let socket = UdpSocket::bind((server.ip(), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.connect(server).unwrap();
        for text in ["one", "two"] {
            socket.send(text.as_bytes()).unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("{client} {text}"));
        }
    }
    let said = home.fails(125, &["run", "-p", &format!("{port}:53/udp"), "host:", "true"]);
    assert!(said.contains(&format!("Bind for 0.0.0.0:{port} failed: port is already allocated")), "{said}");
}

#[test]
fn a_server_sees_its_clients_address() {
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let port = free_port();
    if !serve(&home, "who", &["-p", &format!("{port}:80")], TCP_SERVER) {
        return;
    }
    assert_eq!(ask(&address.to_string(), port), address.to_string());
    assert_eq!(ask("127.0.0.1", port), "10.213.0.1", "the host's loopback is the gateway's address inside");
}

/// All that a server says.
fn ask(address: &str, port: u16) -> String {
    let mut answer = String::new();
    let mut stream = TcpStream::connect((address, port)).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    answer
}

#[test]
fn a_server_on_ipv4_only_is_reached_over_ipv6() {
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("this machine has no IPv6");
    }
    let port = free_port();
    if !serve(&home, "who", &["-p", &format!("{port}:80")], TCP_SERVER) {
        return;
    }
    for address in ["::1", "127.0.0.1"] {
        assert_eq!(ask(address, port), "10.213.0.1", "{address}");
    }
}

#[test]
fn a_server_on_both_families_sees_the_one_that_was_called() {
    let Some(home) = Home::new(&[Need::Tun, Need::Fuse]) else { return };
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("this machine has no IPv6");
    }
    let port = free_port();
    if !serve(&home, "who", &["-p", &format!("{port}:80")], DUAL_SERVER) {
        return;
    }
    assert_eq!(ask("127.0.0.1", port), "::ffff:10.213.0.1 ::ffff:10.213.0.100");
    let seen = ask("::1", port);
    let prefix = seen.strip_suffix("::100").and_then(|seen| seen.split_once(' ')).map(|(_, prefix)| prefix);
    assert!(
        prefix.is_some_and(|prefix| prefix.starts_with("fd") && seen == format!("{prefix}::1 {prefix}::100")),
        "{seen}"
    );
}
