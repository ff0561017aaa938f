//! Listening on published ports.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use sys::{Call, SysError};

use crate::{NetError, Published};

/// Binds one port; `rule.host_port` becomes the one that was chosen. `None` for "all addresses" of a family that this
/// kernel does not have, as then there are none.
pub fn listen_on(rule: &mut Published) -> Result<Option<TcpListener>, NetError> {
    let address = SocketAddr::new(rule.host_ip, rule.host_port);
    let listener = match open(address) {
        Ok(listener) => listener,
        Err(error) if error.errno() == Errno::EAFNOSUPPORT && rule.host_ip.is_unspecified() => return Ok(None),
        Err(error) if error.errno() == Errno::EADDRINUSE => return Err(NetError::PortTaken { address }),
        Err(source) => return Err(NetError::Bind { address, unprivileged_from: unprivileged_from(), source }),
    };
    rule.host_port = listener.local_addr().call(|| "getsockname()".to_owned())?.port();
    Ok(Some(listener))
}

fn open(address: SocketAddr) -> Result<TcpListener, SysError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None).call(|| format!("socket({family:?}, SOCK_STREAM)"))?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).call(|| "setsockopt(SO_REUSEADDR)".to_owned())?;
    if address.is_ipv6() {
        // Each family has its own socket, so that an error names the right one.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).call(|| "setsockopt(IPV6_V6ONLY)".to_owned())?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).call(|| format!("bind({address})"))?;
    listen(&fd, Backlog::MAXCONN).call(|| format!("listen({address})"))?;
    Ok(fd.into())
}

fn unprivileged_from() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}
