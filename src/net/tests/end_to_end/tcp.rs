//! Connections that the container makes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use sys::seccomp::Instruction;

use crate::Scenario;
use crate::bed::{
    Bed, HOST, LOOPBACK, converse, disable_ipv6, expect_pattern, in_namespaces, send_pattern, spec, thread,
};

pub const SCENARIOS: &[Scenario] = &[
    ("tcp echo and half close by every way to the host", echo),
    ("tcp refused and forbidden at once", refused),
    ("tcp reset by either side", reset),
    ("tcp bulk out", || bulk(200_000_000, 0)),
    ("tcp bulk in", || bulk(0, 200_000_000)),
    ("tcp bulk both ways", || bulk(100_000_000, 100_000_000)),
    ("tcp slow readers", slow_readers),
    ("tcp many short connections", short_connections),
    ("tcp many connections at once", parallel_connections),
    ("tcp bulk with a small mtu", small_mtu),
    ("tcp bulk without SO_PEEK_OFF", without_peek_offset),
    ("tcp without a route of the host fails at once", no_route),
    ("tcp over IPv4 with IPv6 disabled inside", without_ipv6),
];

fn listen(address: IpAddr) -> TcpListener {
    TcpListener::bind(SocketAddr::new(address, 0)).unwrap()
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

fn linger_0(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// Answers each connection with what it sent, but only after its end, and with the peer's address in front.
fn echo_server(listener: TcpListener, connections: usize) -> std::thread::JoinHandle<()> {
    thread(move || {
        for _ in 0..connections {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(format!("{} {text}", peer.ip()).as_bytes()).unwrap();
        }
    })
}

fn echo() {
    let listeners = [listen(HOST[0]), listen(HOST[1])];
    let loopback = [listen(LOOPBACK[0]), listen(LOOPBACK[1])];
    let (ports, loopback_ports) = (listeners.each_ref().map(port), loopback.each_ref().map(port));
    let text = "x".repeat(100_000);
    let mut exposed = spec();
    exposed.host_loopback = true;
    for (spec, exposed) in [(spec(), false), (exposed, true)] {
        let bed = Bed::start(&spec, |inside| {
            for family in 0..2 {
                let gateway = inside.gateways()[family];
                let direct = SocketAddr::new(HOST[family], ports[family]);
                assert_eq!(converse(direct, &text), format!("{} {text}", HOST[family]));
                let (alias, seen_from) = if exposed {
                    (SocketAddr::new(gateway, loopback_ports[family]), LOOPBACK[family])
                } else {
                    (SocketAddr::new(gateway, ports[family]), HOST[family])
                };
                assert_eq!(converse(alias, &text), format!("{seen_from} {text}"));
            }
        });
        let clone = |listener: &TcpListener| listener.try_clone().unwrap();
        let servers = if exposed {
            [(&listeners, 1), (&loopback, 1)].map(|(set, count)| set.each_ref().map(|l| echo_server(clone(l), count)))
        } else {
            [(&listeners, 2), (&loopback, 0)].map(|(set, count)| set.each_ref().map(|l| echo_server(clone(l), count)))
        };
        bed.finish();
        servers.into_iter().flatten().for_each(|server| server.join().unwrap());
    }
}

fn refused() {
    let loopback = [listen(LOOPBACK[0]), listen(LOOPBACK[1])];
    let ports = loopback.each_ref().map(port);
    let bed = Bed::start(&spec(), |inside| {
        let mut nobody: Vec<SocketAddr> = Vec::new();
        for family in 0..2 {
            let gateway = inside.gateways()[family];
            nobody.push(SocketAddr::new(HOST[family], 1));
            nobody.push(SocketAddr::new(gateway, 1));
            // The host's loopback does not answer for its primary address.
            nobody.push(SocketAddr::new(gateway, ports[family]));
        }
        for address in nobody {
            let began = Instant::now();
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}: {error}");
            assert!(began.elapsed() < Duration::from_millis(500), "{address}: {:?}", began.elapsed());
        }
        // A spelling of "this host" (RFC 1122 §3.2.1.3) that its own kernel lets out.
        let forbidden: SocketAddr = ([0, 1, 2, 3], 9).into();
        let began = Instant::now();
        TcpStream::connect_timeout(&forbidden, Duration::from_secs(2)).unwrap_err();
        assert!(began.elapsed() < Duration::from_millis(500), "{forbidden}");
    });
    bed.finish();
}

fn reset() {
    for host in HOST {
        let listener = listen(host);
        let to = SocketAddr::new(host, port(&listener));
        let bed = Bed::start(&spec(), |_| {
            let mut stream = TcpStream::connect(to).unwrap();
            // Before this the reset could overtake the end of the connect.
            stream.write_all(b"now").unwrap();
            let error = stream.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(b"bye").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            linger_0(&stream);
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 3]).unwrap();
        linger_0(&stream);
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        let error = stream.read_to_end(&mut received).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        bed.finish();
    }
}

/// Sends `out` and `back` bytes at the same time over one connection, in both families.
fn bulk(out: usize, back: usize) {
    for host in HOST {
        exchange(host, &spec(), (out, back), 0);
    }
}

fn exchange(host: IpAddr, spec: &net::NetSpec, (out, back): (usize, usize), pause_us: u64) {
    let listener = listen(host);
    let to = SocketAddr::new(host, port(&listener));
    let bed = Bed::start(spec, |_| both(&TcpStream::connect(to).unwrap(), out, back, pause_us));
    both(&listener.accept().unwrap().0, back, out, pause_us);
    bed.finish();
}

fn both(stream: &TcpStream, send: usize, receive: usize, pause_us: u64) {
    let sender = stream.try_clone().unwrap();
    let sending = thread(move || {
        send_pattern(&sender, send);
        sender.shutdown(Shutdown::Write).unwrap();
    });
    expect_pattern(stream, receive, pause_us);
    sending.join().unwrap();
}

fn slow_readers() {
    exchange(HOST[0], &spec(), (6_000_000, 6_000_000), 10_000);
}

fn small_mtu() {
    let mut spec = spec();
    spec.addressing.mtu = 1500;
    exchange(HOST[0], &spec, (50_000_000, 50_000_000), 0);
    exchange(HOST[1], &spec, (50_000_000, 50_000_000), 0);
}

fn short_connections() {
    let listener = listen(HOST[0]);
    let to = SocketAddr::new(HOST[0], port(&listener));
    let bed = Bed::start(&spec(), |_| {
        for number in 0..3000_u32 {
            let text = number.to_string();
            assert_eq!(converse(to, &text), format!("{} {text}", HOST[0]));
        }
    });
    let server = echo_server(listener, 3000);
    bed.finish();
    server.join().unwrap();
}

fn parallel_connections() {
    const COUNT: usize = 64;
    const SIZE: usize = 2_000_000;
    let listener = listen(HOST[0]);
    let to = SocketAddr::new(HOST[0], port(&listener));
    let bed = Bed::start(&spec(), |_| {
        let connections = (0..COUNT).map(|_| thread(move || both(&TcpStream::connect(to).unwrap(), SIZE, SIZE, 0)));
        connections.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    });
    let servers = (0..COUNT).map(|_| {
        let (stream, _) = listener.accept().unwrap();
        thread(move || both(&stream, SIZE, SIZE, 0))
    });
    servers.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    bed.finish();
}

/// As on kernels before 6.11: the option is refused.
fn without_peek_offset() {
    let listener = listen(HOST[1]);
    let to = SocketAddr::new(HOST[1], port(&listener));
    let isolated = crate::bed::in_process("without SO_PEEK_OFF", || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        let instruction = |code, jump_true, jump_false, operand| Instruction { code, jump_true, jump_false, operand };
        let number = nix::libc::SYS_setsockopt as u32;
        sys::seccomp::load(&[
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 0, 3, number),
            // The low half of the third argument.
            instruction(0x20, 0, 0, 16 + 8 * 2),
            instruction(0x15, 0, 1, nix::libc::SO_PEEK_OFF as u32),
            instruction(0x06, 0, 0, 0x0005_0000 | nix::libc::EOPNOTSUPP as u32),
            instruction(0x06, 0, 0, 0x7fff_0000),
        ])
        .unwrap();
        let bed = Bed::start(&spec(), |_| both(&TcpStream::connect(to).unwrap(), 50_000_000, 100_000_000, 0));
        both(&listener.accept().unwrap().0, 100_000_000, 50_000_000, 0);
        bed.finish();
    });
    isolated.finish();
}

fn without_ipv6() {
    let listener = listen(HOST[0]);
    let to = SocketAddr::new(HOST[0], port(&listener));
    let bed = Bed::start_prepared(&spec(), disable_ipv6, |_| {
        assert_eq!(converse(to, "hello"), format!("{} hello", HOST[0]));
    });
    let server = echo_server(listener, 1);
    bed.finish();
    server.join().unwrap();
}

/// The container has addresses and default routes of both families whatever the host has.
fn no_route() {
    let host = in_namespaces("a host without routes", || {
        let bed = Bed::start(&spec(), |_| {
            for address in HOST {
                let began = Instant::now();
                let refused = TcpStream::connect((address, 80)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::NetworkUnreachable, "{address}");
                assert!(began.elapsed() < Duration::from_secs(2), "{address}: {:?}", began.elapsed());
            }
        });
        bed.finish();
    });
    host.unwrap().finish();
}
