//! Listening on published ports.
//!
//! A wish without an address is for all addresses of both families, at one port number. Each family has its own socket,
//! so that an error names the right one and no client shows as an IPv4 address in IPv6 form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket, sockopt,
};
use sys::{Call, SysError};

use crate::{NetError, Publish, Published, Transport, owner};

/// Tries to find a port number that both families have free.
const TRIES: u32 = 16;

/// How long a process may take to let go of its ports.
const LET_GO: Duration = Duration::from_secs(2);
/// Between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A published port's socket.
#[derive(Debug)]
pub enum Listener {
    /// Accepts connections.
    Stream(TcpListener),
    /// Receives every client's datagrams.
    Datagram(UdpSocket),
}

/// Binds what a wish asks for: the first port of its range that is free at all of its addresses.
pub fn listen_on(wish: &Publish) -> Result<Vec<(Listener, Published)>, NetError> {
    let both = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses = wish.host_ip.as_ref().map_or(both.as_slice(), std::slice::from_ref);
    let tries = if wish.host_port == 0 { TRIES } else { 1 };
    for port in (wish.host_port..=wish.host_port_last).flat_map(|port| (0..tries).map(move |_| port)) {
        if let Some(bound) = bind_all(wish, addresses, port)? {
            return Ok(bound);
        }
    }
    let address = addresses.first().copied().unwrap_or(both[0]);
    Err(match wish.host_port_last - wish.host_port {
        0 => {
            let address = SocketAddr::new(address, wish.host_port);
            NetError::PortTaken { address, owner: owner::of(address, wish.transport) }
        }
        _ => NetError::PortsTaken { address, first: wish.host_port, last: wish.host_port_last },
    })
}

/// Waits until these can be bound that a process has had which has just ended, or was told to let go of them.
pub fn await_free(wishes: &[Publish]) {
    let until = Instant::now() + LET_GO;
    for wish in wishes {
        while listen_on(wish).is_err() && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Binds one port at all addresses; `None` when it is taken at one of them.
fn bind_all(
    wish: &Publish,
    addresses: &[IpAddr],
    mut port: u16,
) -> Result<Option<Vec<(Listener, Published)>>, NetError> {
    let mut bound = Vec::new();
    for ip in addresses {
        let address = SocketAddr::new(*ip, port);
        match open(address, wish.transport) {
            Ok((listener, chosen)) => {
                port = chosen;
                let Publish { container_port, transport, .. } = *wish;
                bound.push((listener, Published { host_ip: *ip, host_port: port, container_port, transport }));
            }
            // A kernel without this family, or one in which it is switched off, has no such addresses.
            Err(error)
                if wish.host_ip.is_none()
                    && ip.is_ipv6()
                    && [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].contains(&error.errno()) => {}
            Err(error) if error.errno() == Errno::EADDRINUSE => return Ok(None),
            Err(source) => return Err(NetError::Bind { address, unprivileged_from: unprivileged_from(), source }),
        }
    }
    Ok(Some(bound))
}

/// A bound socket and its port.
fn open(address: SocketAddr, transport: Transport) -> Result<(Listener, u16), SysError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let fd = socket(family, kind, flags, None).call(|| format!("socket({family:?}, {kind:?})"))?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).call(|| "setsockopt(IPV6_V6ONLY)".to_owned())?;
    }
    if transport == Transport::Tcp {
        // Connections of an earlier container may linger. For UDP this option would let others take the port.
        setsockopt(&fd, sockopt::ReuseAddr, &true).call(|| "setsockopt(SO_REUSEADDR)".to_owned())?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).call(|| format!("bind({address})"))?;
    let port = port_of(&fd)?;
    let listener = match transport {
        Transport::Tcp => {
            listen(&fd, Backlog::MAXCONN).call(|| format!("listen({address})"))?;
            Listener::Stream(fd.into())
        }
        Transport::Udp => {
            tell_destination(&fd, address)?;
            Listener::Datagram(fd.into())
        }
    };
    Ok((listener, port))
}

fn port_of(fd: &OwnedFd) -> Result<u16, SysError> {
    let own: SockaddrStorage = getsockname(fd.as_raw_fd()).call(|| "getsockname()".to_owned())?;
    let v4 = own.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
    Ok(v4.or_else(|| own.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port)).unwrap_or(0))
}

/// At "all addresses" a client must be answered from the one that it called.
fn tell_destination(fd: &OwnedFd, address: SocketAddr) -> Result<(), SysError> {
    match address {
        SocketAddr::V4(_) => setsockopt(&fd.as_fd(), sockopt::Ipv4PacketInfo, &true),
        SocketAddr::V6(_) => setsockopt(&fd.as_fd(), sockopt::Ipv6RecvPacketInfo, &true),
    }
    .call(|| "setsockopt(IP_PKTINFO)".to_owned())
}

fn unprivileged_from() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}
