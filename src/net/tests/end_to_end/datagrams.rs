//! UDP, DNS and ping.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use net::NetSpec;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Scenario;
use crate::bed::{Bed, HOST, Inside, LOOPBACK, spec, thread};

pub const SCENARIOS: &[Scenario] = &[
    ("udp echo of all sizes", udp_echo),
    ("udp in fragments", fragments),
    ("udp too large for its path is told", path_mtu),
    ("udp to a closed port is refused", udp_refused),
    ("dns own names, forwarding and its failures", dns),
    ("dns other resolvers", other_resolvers),
    ("ping of the gateway and of the host", ping),
];

fn client(to: SocketAddr) -> UdpSocket {
    let unspecified = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((unspecified, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    socket.connect(to).unwrap();
    socket
}

fn udp_echo() {
    echo_all(&spec());
}

/// The container's kernel cuts what its device does not take.
fn fragments() {
    let mut spec = spec();
    spec.addressing.mtu = 1280;
    echo_all(&spec);
}

fn echo_all(spec: &NetSpec) {
    const SIZES: [usize; 6] = [1, 0, 1200, 1473, 9000, 65_000];
    let sockets = HOST.map(|host| UdpSocket::bind((host, 0)).unwrap());
    let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
    let bed = Bed::start(spec, |inside| {
        for family in 0..2 {
            for address in [HOST[family], inside.gateways()[family]] {
                let socket = client(SocketAddr::new(address, ports[family]));
                let mut buffer = vec![0; 70_000];
                for (number, size) in SIZES.into_iter().enumerate() {
                    let sent = vec![number as u8; size];
                    socket.send(&sent).unwrap();
                    let length = socket.recv(&mut buffer).unwrap();
                    assert!(buffer[..length] == sent, "{address}, {size} bytes");
                }
            }
        }
    });
    let servers = sockets.map(|socket| {
        thread(move || {
            let mut buffer = vec![0; 70_000];
            for _ in 0..SIZES.len() * 2 {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(&buffer[..length], from).unwrap();
            }
        })
    });
    bed.finish();
    for server in servers {
        server.join().unwrap();
    }
}

/// The host's route to these leads over a device with an MTU of 1500.
fn path_mtu() {
    let far: [IpAddr; 2] = [[203, 0, 113, 9].into(), "2001:db8:9::9".parse::<IpAddr>().unwrap()];
    let bed = Bed::start(&spec(), |_| {
        for address in far {
            let socket = client((address, 9).into());
            socket.send(&[0; 1400]).unwrap();
            // That the kernel cuts what is too large it does only when it has heard of it.
            socket.send(&[0; 4000]).unwrap();
            let began = Instant::now();
            while mtu(&socket) != 1500 {
                assert!(began.elapsed() < Duration::from_secs(5), "{address}: {}", mtu(&socket));
                std::thread::sleep(Duration::from_millis(10));
            }
            // The word itself is the socket's error.
            assert!(socket.take_error().unwrap().is_some());
            socket.send(&[0; 4000]).unwrap();
        }
    });
    bed.finish();
}

fn mtu(socket: &UdpSocket) -> u32 {
    sys::netsock::path_mtu(socket.as_fd()).unwrap()
}

fn udp_refused() {
    let bed = Bed::start(&spec(), |inside| {
        for address in HOST.into_iter().chain(inside.gateways()) {
            let socket = client(SocketAddr::new(address, 1));
            socket.send(b"anyone?").unwrap();
            assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
        }
    });
    bed.finish();
}

/// A query for addresses of `name`, in the form of RFC 1035 §4.1.
fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&[kind.to_be_bytes(), [0, 1]].concat());
    bytes
}

fn prefixed(question: &[u8]) -> Vec<u8> {
    [&(question.len() as u16).to_be_bytes(), question].concat()
}

fn ask(server: IpAddr, question: &[u8]) -> Vec<u8> {
    let socket = client((server, 53).into());
    socket.send(question).unwrap();
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    assert_eq!(buffer[..2], question[..2], "the client's identifier");
    buffer
}

fn dns() {
    let resolver = UdpSocket::bind((LOOPBACK[0], 0)).unwrap();
    let address = resolver.local_addr().unwrap();
    let over_tcp = TcpListener::bind(address).unwrap();
    let closed = UdpSocket::bind((LOOPBACK[1], 0)).unwrap().local_addr().unwrap();
    let mut spec = spec();
    // The first does not exist: the second is asked.
    spec.resolvers = vec![closed, address];
    let bed = Bed::start(&spec, ask_all);
    let server = thread(move || {
        let mut buffer = [0; 4096];
        for _ in 0..2 {
            let (length, from) = resolver.recv_from(&mut buffer).unwrap();
            assert!(from.ip().is_loopback());
            buffer[2] |= 0x80;
            // Something that only this server knows.
            let answer = [&buffer[..length], b"forwarded"].concat();
            resolver.send_to(&answer, from).unwrap();
        }
        let (mut stream, _) = over_tcp.accept().unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        stream.write_all(&text).unwrap();
    });
    bed.finish();
    server.join().unwrap();
    // Nobody to ask: said at once.
    spec.resolvers.clear();
    let bed = Bed::start(&spec, |inside| {
        let answer = ask(inside.addressing.v4.dns.into(), &query(9, "example.org", 1));
        assert_eq!(answer[3] & 15, 2, "SERVFAIL");
        let mut stream = TcpStream::connect((inside.addressing.v4.dns, 53)).unwrap();
        stream.write_all(&prefixed(&query(9, "example.org", 1))).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer[5] & 15, 2, "SERVFAIL over TCP");
    });
    bed.finish();
}

fn other_resolvers() {
    let resolvers = [(); 2].map(|()| UdpSocket::bind((LOOPBACK[0], 0)).unwrap());
    let addresses = resolvers.each_ref().map(|resolver| resolver.local_addr().unwrap());
    let mut spec = spec();
    spec.resolvers = vec![addresses[0]];
    let mut bed = Bed::start(&spec, |inside| {
        for expected in [b"first ", b"second"] {
            let answer = ask(inside.addressing.v4.dns.into(), &query(1, "example.org", 1));
            assert!(answer.ends_with(expected), "{answer:?}");
        }
    });
    let mut buffer = [0; 512];
    for (resolver, word) in resolvers.iter().zip([b"first ", b"second"]) {
        let (length, from) = resolver.recv_from(&mut buffer).unwrap();
        buffer[2] |= 0x80;
        // Before the answer, after which the next question comes.
        bed.set_resolvers(&addresses[1..]);
        resolver.send_to(&[&buffer[..length], word].concat(), from).unwrap();
    }
    bed.finish();
}

fn ask_all(inside: &Inside) {
    let servers: [IpAddr; 2] = [inside.addressing.v4.dns.into(), inside.addressing.v6.dns.into()];
    for server in servers {
        let answer = ask(server, &query(0x1234, "HOST.docker.internal", 1));
        assert_eq!(answer[6..8], [0, 1]);
        assert!(answer.ends_with(&inside.addressing.v4.gateway.octets()));
        let answer = ask(server, &query(7, "host.containers.internal", 28));
        assert!(answer.ends_with(&inside.addressing.v6.gateway.octets()));
        let answer = ask(server, &query(8, "wEB", 1));
        assert!(answer.ends_with(&[10, 213, 0, 100]));
        // The name exists, such an address does not.
        let answer = ask(server, &query(8, "web", 28));
        assert_eq!((answer[3] & 15, &answer[6..8]), (0, &[0, 0][..]));
        // Backwards.
        let answer = ask(server, &query(9, "1.0.213.10.in-addr.arpa", 12));
        assert_eq!(answer[6..8], [0, 2]);
        assert!(answer.ends_with(b"\x04host\x0acontainers\x08internal\0"), "{answer:?}");
        assert!(ask(server, &query(0xffff, "example.org", 16)).ends_with(b"forwarded"));
    }
    for server in servers {
        // Two questions at once, cut anywhere.
        let questions = [prefixed(&query(1, "web", 1)), prefixed(&query(2, "host.docker.internal", 28))].concat();
        let mut stream = TcpStream::connect((server, 53)).unwrap();
        for part in questions.chunks(7) {
            stream.write_all(part).unwrap();
        }
        for (id, end) in
            [(1, &inside.addressing.v4.container.octets()[..]), (2, &inside.addressing.v6.gateway.octets())]
        {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer).unwrap();
            assert!(answer[1] == id && answer.ends_with(end), "{answer:?}");
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        // One about another name comes too early.
        let mut stream = TcpStream::connect((server, 53)).unwrap();
        stream.write_all(&[prefixed(&query(1, "web", 1)), prefixed(&query(2, "example.org", 1))].concat()).unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        assert!(answers.ends_with(&inside.addressing.v4.container.octets()), "{answers:?}");
    }
    let mut stream = TcpStream::connect((servers[0], 53)).unwrap();
    stream.write_all(b"12345").unwrap();
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"12345");
}

fn ping() {
    let bed = Bed::start(&spec(), |inside| {
        for address in HOST.into_iter().chain(inside.gateways()) {
            for sequence in 1..4_u8 {
                assert!(echoed(address, sequence), "{address}, number {sequence}");
            }
        }
    });
    bed.finish();
}

fn echoed(address: IpAddr, sequence: u8) -> bool {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5)).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0))).unwrap();
    let mut message = vec![0x55; 1008];
    message[..8].copy_from_slice(&[request, 0, 0, 0, 0, 0, 0, sequence]);
    send(socket.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
    let mut buffer = [0; 2000];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    buffer[0] == reply && buffer[7] == sequence && buffer[8..length] == message[8..]
}
