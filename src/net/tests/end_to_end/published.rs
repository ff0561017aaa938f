//! Published ports.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use base::Kind;
use net::client;
use net::{NetSpec, Published};

use crate::Scenario;
use crate::bed::{Bed, HOST, LOOPBACK, expect_pattern, send_pattern, spec};

pub const SCENARIOS: &[Scenario] = &[
    ("published port shows the client's address", client_address),
    ("published port bulk both ways", bulk),
    ("published port without a listener inside is reset", nobody_inside),
    ("published port that is taken is named", taken),
];

fn publishing() -> NetSpec {
    let rule = |host_ip| Published { host_ip, host_port: 0, container_port: 8080 };
    let mut spec = spec();
    spec.published = vec![rule(Ipv4Addr::UNSPECIFIED.into()), rule(Ipv6Addr::UNSPECIFIED.into())];
    spec
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

fn nobody_inside() {
    let bed = Bed::start(&publishing(), |inside| {
        inside.ready();
        std::thread::sleep(std::time::Duration::from_millis(300));
    });
    bed.wait_inside();
    for (family, rule) in bed.published.iter().enumerate() {
        let mut stream = TcpStream::connect(SocketAddr::new(HOST[family], rule.host_port)).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    bed.finish();
}

fn taken() {
    let taken = TcpListener::bind((IpAddr::from([0, 0, 0, 0]), 0)).unwrap();
    let mut spec = publishing();
    spec.published[0].host_port = taken.local_addr().unwrap().port();
    let (role, control) = client::spawn(&spec, "test", None, None).unwrap();
    let report = control.wait_ready().unwrap_err().into_report();
    assert_eq!(report.kind(), Kind::Conflict);
    assert!(format!("{report}").contains("port is already allocated"), "{report}");
    sys::process::reap(std::os::fd::AsFd::as_fd(&role.pidfd), true).unwrap();
}
