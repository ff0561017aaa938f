//! Published ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use base::Kind;
use net::client;
use net::{NetSpec, Publish, RoleSpec, Transport};

use crate::Scenario;
use crate::bed::{Bed, HOST, LOOPBACK, disable_ipv6, expect_pattern, send_pattern, spec};

pub const SCENARIOS: &[Scenario] = &[
    ("published port shows the client's address", client_address),
    ("published port bulk both ways", bulk),
    ("published port over IPv6 reaches a server on IPv4 only", ipv4_inside),
    ("published port over IPv6 of a container without IPv6", without_ipv6),
    ("published port without a listener inside is reset at once", nobody_inside),
    ("published port that is taken is named", taken),
    ("published range takes the first port that is free", range),
    ("published udp answers each client from where it called", datagrams),
    ("published udp is a socket of its own", datagram_port_taken),
    ("published ports are reached from inside", hairpin),
];

fn publishing() -> NetSpec {
    let mut spec = spec();
    spec.publish = vec![wish(0, 0, Transport::Tcp)];
    spec
}

/// Port 8080 at all addresses of the host.
fn wish(host_port: u16, host_port_last: u16, transport: Transport) -> Publish {
    Publish { host_ip: None, host_port, host_port_last, container_port: 8080, transport }
}

fn inside_listeners() -> [TcpListener; 2] {
    let address: SocketAddr = ([0, 0, 0, 0], 8080).into();
    let v4 = TcpListener::bind(address).unwrap();
    // Dual-stack sockets cannot share a port with one of the other family: the address itself is bound.
    let v6 = TcpListener::bind(SocketAddr::new(spec().addressing.v6.container.into(), 8080)).unwrap();
    [v4, v6]
}

fn client_address() {
    let bed = Bed::start(&publishing(), |inside| {
        let listeners = inside_listeners();
        inside.ready();
        for (family, listener) in listeners.iter().enumerate() {
            // From the host's own address, then from its loopback, which has no place on a wire.
            for expected in [HOST[family], inside.gateways()[family]] {
                let (stream, peer) = listener.accept().unwrap();
                assert_eq!(peer.ip(), expected);
                send_pattern(&stream, usize::from(peer.port()));
            }
        }
    });
    bed.wait_inside();
    for (family, rule) in bed.published.iter().enumerate() {
        assert_ne!(rule.host_port, 0);
        for address in [HOST[family], LOOPBACK[family]] {
            let stream = TcpStream::connect(SocketAddr::new(address, rule.host_port)).unwrap();
            // The container saw our port too.
            expect_pattern(&stream, stream.local_addr().unwrap().port().into(), 0);
        }
    }
    bed.finish();
}

fn bulk() {
    const SIZE: usize = 100_000_000;
    let bed = Bed::start(&publishing(), |inside| {
        let listeners = inside_listeners();
        inside.ready();
        for listener in &listeners {
            send_pattern(&listener.accept().unwrap().0, SIZE);
            expect_pattern(&listener.accept().unwrap().0, SIZE, 0);
        }
    });
    bed.wait_inside();
    for (family, rule) in bed.published.iter().enumerate() {
        let to = SocketAddr::new(HOST[family], rule.host_port);
        expect_pattern(&TcpStream::connect(to).unwrap(), SIZE, 0);
        send_pattern(&TcpStream::connect(to).unwrap(), SIZE);
    }
    bed.finish();
}

fn ipv4_inside() {
    const SIZE: usize = 3_000_000;
    let bed = Bed::start(&publishing(), |inside| {
        let listener = TcpListener::bind(("0.0.0.0", 8080)).unwrap();
        inside.ready();
        for _ in [HOST[1], LOOPBACK[1]] {
            let (stream, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), inside.gateways()[0]);
            expect_pattern(&stream, SIZE, 0);
            send_pattern(&stream, usize::from(peer.port()));
        }
    });
    bed.wait_inside();
    for address in [HOST[1], LOOPBACK[1]] {
        let stream = TcpStream::connect((address, bed.published[1].host_port)).unwrap();
        // On its way while the container refuses.
        send_pattern(&stream, SIZE);
        stream.shutdown(Shutdown::Write).unwrap();
        expect_pattern(&stream, stream.local_addr().unwrap().port().into(), 0);
    }
    bed.finish();
}

fn without_ipv6() {
    let mut spec = publishing();
    spec.publish.push(wish(0, 0, Transport::Udp));
    let bed = Bed::start_prepared(&spec, disable_ipv6, |inside| {
        let listener = TcpListener::bind(("0.0.0.0", 8080)).unwrap();
        let socket = UdpSocket::bind(("0.0.0.0", 8080)).unwrap();
        inside.ready();
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(peer.to_string().as_bytes()).unwrap();
        drop(stream);
        let (_, peer) = socket.recv_from(&mut [0; 8]).unwrap();
        socket.send_to(peer.to_string().as_bytes(), peer).unwrap();
    });
    bed.wait_inside();
    let began = Instant::now();
    let mut answer = String::new();
    let mut stream = TcpStream::connect((HOST[1], bed.published[1].host_port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("10.213.0.1:{}", stream.local_addr().unwrap().port()));
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let socket = UdpSocket::bind((HOST[1], 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    socket.connect((HOST[1], bed.published[3].host_port)).unwrap();
    socket.send(b"question").unwrap();
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], *format!("10.213.0.1:{}", socket.local_addr().unwrap().port()).as_bytes());
    bed.finish();
}

fn nobody_inside() {
    let bed = Bed::start(&publishing(), |inside| {
        inside.ready();
        std::thread::sleep(Duration::from_millis(300));
    });
    bed.wait_inside();
    for (family, rule) in bed.published.iter().enumerate() {
        let began = Instant::now();
        let mut stream = TcpStream::connect(SocketAddr::new(HOST[family], rule.host_port)).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
    bed.finish();
}

/// How the network process refuses a specification.
fn refusal(spec: &NetSpec) -> String {
    let (role, control) = client::spawn(&RoleSpec::Own(spec.clone()), "test", None, None).unwrap();
    let report = control.wait_ready().unwrap_err().into_report();
    assert_eq!(report.kind(), Kind::Conflict);
    sys::process::reap(std::os::fd::AsFd::as_fd(&role.pidfd), true).unwrap();
    format!("{report}")
}

fn taken() {
    let taken = TcpListener::bind((IpAddr::from([0, 0, 0, 0]), 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut spec = spec();
    spec.publish = vec![wish(port, port, Transport::Tcp)];
    let said = refusal(&spec);
    assert!(said.contains(&format!("Bind for 0.0.0.0:{port} failed: port is already allocated")), "{said}");
    let own = format!("hint: process {} (", std::process::id());
    assert!(said.contains(&own) && said.contains(") has it: publish another port"), "{said}");
}

fn range() {
    // Each is taken for one family only, which is enough.
    let v4 = TcpListener::bind((IpAddr::from([0, 0, 0, 0]), 20_000)).unwrap();
    let v6 = TcpListener::bind((LOOPBACK[1], 20_001)).unwrap();
    let mut spec = spec();
    spec.publish = vec![wish(20_000, 20_003, Transport::Tcp), wish(20_000, 20_003, Transport::Tcp)];
    let bed = Bed::start(&spec, |_| ());
    let ports: Vec<u16> = bed.published.iter().map(|port| port.host_port).collect();
    assert_eq!(ports, [20_002, 20_002, 20_003, 20_003]);
    bed.finish();
    spec.publish.push(wish(20_000, 20_003, Transport::Tcp));
    let said = refusal(&spec);
    assert!(said.contains("Bind for 0.0.0.0:20000-20003 failed: all ports are allocated"), "{said}");
    drop((v4, v6));
}

fn datagrams() {
    const SIZES: [usize; 5] = [0, 1, 1200, 9000, 60_000];
    let mut spec = spec();
    spec.publish = vec![wish(0, 0, Transport::Udp)];
    let bed = Bed::start(&spec, |inside| {
        let v4 = UdpSocket::bind(("0.0.0.0", 8080)).unwrap();
        let v6 = UdpSocket::bind((inside.addressing.v6.container, 8080)).unwrap();
        inside.ready();
        let mut buffer = vec![0; 1 << 16];
        for (family, socket) in [v4, v6].iter().enumerate() {
            socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            for (number, size) in SIZES.into_iter().enumerate() {
                // Two clients in turn: the second is on the host's loopback, which has no place on a wire.
                for expected in [HOST[family], inside.gateways()[family]] {
                    let (length, peer) = socket.recv_from(&mut buffer).unwrap();
                    assert_eq!((length, peer.ip()), (size, expected));
                    buffer[..length].iter_mut().for_each(|byte| *byte = byte.wrapping_add(number as u8 + 1));
                    socket.send_to(&buffer[..length], peer).unwrap();
                    // A second answer to the same question.
                    socket.send_to(&peer.port().to_be_bytes(), peer).unwrap();
                }
            }
        }
    });
    bed.wait_inside();
    for (family, rule) in bed.published.iter().enumerate() {
        let clients = [HOST[family], LOOPBACK[family]].map(|address| {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            // Connected: an answer from another address than the one that was called would not arrive.
            socket.connect(SocketAddr::new(address, rule.host_port)).unwrap();
            socket
        });
        let mut buffer = vec![0; 1 << 16];
        for (number, size) in SIZES.into_iter().enumerate() {
            for socket in &clients {
                socket.send(&vec![7; size]).unwrap();
                let length = socket.recv(&mut buffer).unwrap();
                assert!(buffer[..length] == vec![number as u8 + 8; size], "{size} bytes");
                // The container saw our port too.
                let port = socket.local_addr().unwrap().port();
                assert_eq!((socket.recv(&mut buffer).unwrap(), [buffer[0], buffer[1]]), (2, port.to_be_bytes()));
            }
        }
    }
    bed.finish();
}

fn datagram_port_taken() {
    let tcp = TcpListener::bind((HOST[0], 0)).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let mut spec = spec();
    spec.publish = vec![wish(port, port, Transport::Udp)];
    Bed::start(&spec, |_| ()).finish();
    let udp = UdpSocket::bind((HOST[0], port)).unwrap();
    let said = refusal(&spec);
    assert!(said.contains(&format!("Bind for 0.0.0.0:{port} failed: port is already allocated")), "{said}");
    drop(udp);
}

/// By the host's own address and by the one that stands for the host inside. The port is one of the scenario's own choice,
/// since the inside must know it.
fn hairpin() {
    const PORT: u16 = 20_010;
    let mut spec = spec();
    spec.publish = vec![wish(PORT, PORT, Transport::Tcp), wish(PORT, PORT, Transport::Udp)];
    let bed = Bed::start(&spec, |inside| {
        let listeners = inside_listeners();
        let any = [IpAddr::from([0; 4]), spec.addressing.v6.container.into()];
        let sockets = any.map(|address| UdpSocket::bind((address, 8080)).unwrap());
        for family in 0..2 {
            for address in [HOST[family], inside.gateways()[family]] {
                let to = SocketAddr::new(address, PORT);
                let stream = TcpStream::connect(to).unwrap();
                let (served, peer) = listeners[family].accept().unwrap();
                assert_eq!(peer.ip(), HOST[family]);
                send_pattern(&stream, 100_000);
                stream.shutdown(Shutdown::Write).unwrap();
                expect_pattern(&served, 100_000, 0);
                send_pattern(&served, 100_000);
                drop(served);
                expect_pattern(&stream, 100_000, 0);

                let client = UdpSocket::bind((any[family], 0)).unwrap();
                client.connect(to).unwrap();
                for socket in [&client, &sockets[family]] {
                    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
                }
                client.send(b"question").unwrap();
                let mut buffer = [0; 64];
                let (length, peer) = sockets[family].recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], peer.ip()), (&b"question"[..], HOST[family]));
                sockets[family].send_to(b"answer", peer).unwrap();
                assert_eq!((client.recv(&mut buffer).unwrap(), &buffer[..6]), (6, &b"answer"[..]));
            }
        }
    });
    bed.finish();
}
