//! The stack's [`Host`]: the TAP device and real sockets, by flow number.

use std::hash::{BuildHasher, RandomState};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netstack::wire::vnet;
use netstack::{FlowId, Host, Peek, Received, SocketError, TapFull, Wrote};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockname,
    getsockopt, recv, recvmsg, send, sendto, setsockopt, shutdown, socket, sockopt,
};
use sys::netsock;

use crate::role::Capture;

/// What is in flight at most without `SO_PEEK_OFF`, and so what may have to be skipped.
const SKIP_MAX: usize = 256 << 10;

/// One flow's socket.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// Where the kernel's next peek begins.
    peek_at: usize,
}

/// Where the answers to a client of a published UDP port go.
#[derive(Debug)]
struct Answer {
    /// The number of the port's socket.
    through: usize,
    client: SocketAddr,
    /// The address that the client has called, where the socket is bound to all.
    called: Option<IpAddr>,
}

/// What a flow sends through.
#[derive(Debug)]
enum Door {
    Own(Socket),
    /// Boxed: few flows have it, and the table has a place for each.
    Published(Box<Answer>),
}

/// The outside of a stack.
#[derive(Debug)]
pub struct Sockets {
    pub tap: Option<OwnedFd>,
    epoll: Epoll,
    /// Published UDP ports; their numbers are told to [`Sockets::answer_through`].
    datagrams: Vec<Option<UdpSocket>>,
    flows: Vec<Option<Door>>,
    /// Told to epoll with the number, so that an event of a socket that is gone is not taken for its successor's.
    generations: Vec<u16>,
    peek_offset: bool,
    skip: Vec<u8>,
    secret: RandomState,
    drawn: u64,
    /// Who wants to see frames.
    pub captures: Vec<Capture>,
}

/// Whether this kernel can peek TCP at an offset, for every family that it has.
pub fn peek_offset_works() -> bool {
    [AddressFamily::Inet, AddressFamily::Inet6].into_iter().all(|family| {
        match socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
            Ok(socket) => netsock::set_peek_offset(socket.as_fd(), 0).is_ok(),
            Err(errno) => errno == Errno::EAFNOSUPPORT,
        }
    })
}

impl Sockets {
    pub fn new(epoll: Epoll, flows: u32, peek_offset: bool) -> Self {
        Sockets {
            tap: None,
            epoll,
            datagrams: Vec::new(),
            flows: (0..flows).map(|_| None).collect(),
            generations: vec![0; flows as usize],
            peek_offset,
            skip: vec![0; if peek_offset { 0 } else { SKIP_MAX }],
            secret: RandomState::new(),
            drawn: 0,
            captures: Vec::new(),
        }
    }

    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// The flow of an event; `None` when its socket is gone.
    pub fn flow(&self, data: u64) -> Option<FlowId> {
        let (number, generation) = (data as u32, (data >> 32) as u16);
        (self.generations.get(number as usize) == Some(&generation)).then_some(FlowId(number))
    }

    /// Puts a connected or connecting socket in place and watches it.
    pub fn install(&mut self, id: FlowId, fd: OwnedFd, stream: bool) -> Result<(), Errno> {
        if stream {
            // Only delay depends on it. TCP_NOTSENT_LOWAT stays as it is: it makes a socket refuse bytes for which its
            // buffer has room, and so would break promises made to the container by the size of that room.
            let _ = setsockopt(&fd, sockopt::TcpNoDelay, &true);
            // An urgent byte stays in its place, which RFC 6093 §3.2 asks of applications; else it would be missing.
            let _ = setsockopt(&fd, sockopt::OobInline, &true);
            if self.peek_offset {
                netsock::set_peek_offset(fd.as_fd(), 0).map_err(|error| error.errno())?;
            }
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let number = id.0 as usize;
        self.generations[number] = self.generations[number].wrapping_add(1);
        let data = (u64::from(self.generations[number]) << 32) | u64::from(id.0);
        self.epoll.add(&fd, EpollEvent::new(flags, data))?;
        self.flows[number] = Some(Door::Own(Socket { fd, peek_at: 0 }));
        Ok(())
    }

    /// Lets a flow answer through a published UDP port. `called` is the address that the client has called, if the port
    /// is bound to all addresses.
    pub fn answer_through(&mut self, id: FlowId, through: usize, client: SocketAddr, called: Option<IpAddr>) {
        self.flows[id.0 as usize] = Some(Door::Published(Box::new(Answer { through, client, called })));
    }

    /// The socket of a published UDP port.
    pub fn published(&self, number: usize) -> Option<&UdpSocket> {
        self.datagrams.get(number)?.as_ref()
    }

    /// Gives a published UDP port's number a socket, or takes it away.
    pub fn set_published(&mut self, number: usize, socket: Option<UdpSocket>) {
        if self.datagrams.len() <= number {
            self.datagrams.resize_with(number + 1, || None);
        }
        self.datagrams[number] = socket;
    }

    /// Shows a frame, which begins with its vnet header, to those who want to see it.
    pub fn show(&mut self, head: &[u8], body: &[u8]) {
        for capture in &mut self.captures {
            capture.take(head.get(vnet::LEN..).unwrap_or_default(), body);
        }
    }

    fn get(&mut self, id: FlowId) -> Option<&mut Socket> {
        match self.flows.get_mut(id.0 as usize)? {
            Some(Door::Own(socket)) => Some(socket),
            _ => None,
        }
    }

    fn send_answer(&self, answer: &Answer, bytes: &[u8]) -> Result<(), Errno> {
        let Some(socket) = self.published(answer.through) else { return Err(Errno::EBADF) };
        let sent = if let Some(called) = answer.called {
            netsock::send_from(socket.as_fd(), bytes, answer.client, called).map_err(|error| error.errno())
        } else {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(answer.client), flags)
        };
        match sent {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn open_datagram(&mut self, id: FlowId, source: Option<u16>, to: SocketAddr) -> Result<(), Errno> {
        let fd = socket(family(to.ip()), SockType::Datagram, flags(), None)?;
        if let Some(port) = source {
            // A port that is taken or privileged is replaced by any other.
            let _ = setsockopt(&fd, sockopt::ReuseAddr, &true);
            let _ = bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(unspecified(to.ip()), port)));
        }
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        self.install(id, fd, false)
    }

    fn open_echo(&mut self, id: FlowId, to: IpAddr) -> Result<(), Errno> {
        let protocol = if to.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
        let fd = socket(family(to), SockType::Datagram, flags(), protocol)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
        self.install(id, fd, false)
    }

    fn open_stream(&mut self, id: FlowId, to: SocketAddr) -> Result<(), Errno> {
        let fd = socket(family(to.ip()), SockType::Stream, flags(), None)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => self.install(id, fd, true),
            Err(errno) => Err(errno),
        }
    }
}

fn flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The address that the host has towards what is elsewhere, of the family of this one; `None` without such a route.
pub fn primary_address(like: IpAddr) -> Option<IpAddr> {
    // Connecting a datagram socket asks the routing table and sends nothing; the addresses are for documentation.
    let elsewhere: IpAddr = match like {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let fd = socket(family(like), SockType::Datagram, flags(), None).ok()?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(elsewhere, 9))).ok()?;
    let own: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    let v4 = own.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| own.as_sockaddr_in6().map(|address| address.ip().into()))
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Why a datagram's socket refuses, or the network behind it.
fn datagram_reason(fd: &OwnedFd, errno: Errno) -> SocketError {
    match errno {
        Errno::EMSGSIZE => netsock::path_mtu(fd.as_fd()).map_or(SocketError::Failed, |mtu| SocketError::TooBig { mtu }),
        _ => reason(errno),
    }
}

fn reason(errno: Errno) -> SocketError {
    match errno {
        Errno::ECONNREFUSED => SocketError::Refused,
        Errno::ENETUNREACH | Errno::EADDRNOTAVAIL => SocketError::NetworkUnreachable,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => SocketError::HostUnreachable,
        Errno::EACCES | Errno::EPERM => SocketError::Prohibited,
        Errno::ETIMEDOUT => SocketError::TimedOut,
        _ => SocketError::Failed,
    }
}

impl Host for Sockets {
    fn transmit(&mut self, head: &[u8], body: &[u8]) -> Result<(), TapFull> {
        self.show(head, body);
        let Some(tap) = &self.tap else { return Ok(()) };
        match nix::sys::uio::writev(tap, &[IoSlice::new(head), IoSlice::new(body)]) {
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => Err(TapFull),
            // EIO: the container has taken the device down; the frame is lost as on a cut wire.
            _ => Ok(()),
        }
    }

    fn primary_address(&mut self, like: IpAddr) -> Option<IpAddr> {
        primary_address(like)
    }

    fn tcp_connect(&mut self, id: FlowId, to: SocketAddr) -> Result<(), SocketError> {
        self.open_stream(id, to).map_err(reason)
    }

    fn tcp_connected(&mut self, id: FlowId) -> Result<(), SocketError> {
        let socket = self.get(id).ok_or(SocketError::Failed)?;
        match getsockopt(&socket.fd, sockopt::SocketError) {
            Ok(0) => Ok(()),
            Ok(errno) => Err(reason(Errno::from_raw(errno))),
            Err(errno) => Err(reason(errno)),
        }
    }

    fn tcp_peek(&mut self, id: FlowId, offset: usize, buffer: &mut [u8]) -> Peek {
        let Some(Some(Door::Own(socket))) = self.flows.get_mut(id.0 as usize) else { return Peek::Broken };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let result = if self.peek_offset {
            if socket.peek_at != offset {
                if netsock::set_peek_offset(socket.fd.as_fd(), offset as i32).is_err() {
                    return Peek::Broken;
                }
                socket.peek_at = offset;
            }
            let result = recv(socket.fd.as_raw_fd(), buffer, flags);
            socket.peek_at += result.unwrap_or(0);
            result
        } else {
            let Some(skip) = self.skip.get_mut(..offset) else { return Peek::Nothing };
            let mut slices = [IoSliceMut::new(skip), IoSliceMut::new(buffer)];
            match recvmsg::<()>(socket.fd.as_raw_fd(), &mut slices, None, flags).map(|message| message.bytes) {
                // Only what is in flight already: the end of stream looks the same and is found once that is consumed.
                Ok(count) if count <= offset && offset > 0 => Err(Errno::EAGAIN),
                Ok(count) => Ok(count - offset),
                Err(errno) => Err(errno),
            }
        };
        match result {
            Ok(0) => Peek::End,
            Ok(count) => Peek::Data(count),
            Err(Errno::EAGAIN | Errno::EINTR) => Peek::Nothing,
            Err(_) => Peek::Broken,
        }
    }

    fn tcp_consume(&mut self, id: FlowId, count: usize) -> bool {
        let Some(socket) = self.get(id) else { return false };
        let mut left = count;
        while left > 0 {
            match netsock::discard(socket.fd.as_fd(), left) {
                Ok(0) | Err(_) => return false,
                Ok(done) => {
                    left -= done;
                    socket.peek_at = socket.peek_at.saturating_sub(done);
                }
            }
        }
        true
    }

    fn tcp_write(&mut self, id: FlowId, bytes: &[u8]) -> Wrote {
        let Some(socket) = self.get(id) else { return Wrote::Broken };
        match send(socket.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(count) => Wrote::Taken(count),
            Err(Errno::EAGAIN | Errno::EINTR) => Wrote::Taken(0),
            Err(_) => Wrote::Broken,
        }
    }

    fn tcp_room(&mut self, id: FlowId) -> u32 {
        let Some(socket) = self.get(id) else { return 0 };
        netsock::send_memory(socket.fd.as_fd()).map_or(0, |(size, used)| size.saturating_sub(used) / 2)
    }

    fn tcp_shutdown(&mut self, id: FlowId) {
        if let Some(socket) = self.get(id) {
            // ENOTCONN: the peer has reset, which a read will tell.
            let _ = shutdown(socket.fd.as_raw_fd(), Shutdown::Write);
        }
    }

    fn udp_open(&mut self, id: FlowId, source_port: Option<u16>, to: SocketAddr) -> Result<(), SocketError> {
        self.open_datagram(id, source_port, to).map_err(reason)
    }

    fn echo_open(&mut self, id: FlowId, to: IpAddr) -> Result<(), SocketError> {
        self.open_echo(id, to).map_err(reason)
    }

    fn datagram_dont_fragment(&mut self, id: FlowId, dont: bool) {
        if let Some(socket) = self.get(id) {
            // A kernel that refuses cuts what is too large, as it would without.
            let _ = netsock::set_dont_fragment(socket.fd.as_fd(), dont);
        }
    }

    fn datagram_send(&mut self, id: FlowId, bytes: &[u8]) -> Result<(), SocketError> {
        if let Some(Some(Door::Published(answer))) = self.flows.get(id.0 as usize) {
            return self.send_answer(answer, bytes).map_err(reason);
        }
        let socket = self.get(id).ok_or(SocketError::Failed)?;
        match send(socket.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(datagram_reason(&socket.fd, errno)),
        }
    }

    fn datagram_receive(&mut self, id: FlowId, buffer: &mut [u8]) -> Received {
        let Some(socket) = self.get(id) else { return Received::Nothing };
        match recv(socket.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(count) => Received::Datagram(count),
            Err(Errno::EAGAIN | Errno::EINTR) => Received::Nothing,
            Err(errno) => Received::Failed(datagram_reason(&socket.fd, errno)),
        }
    }

    fn close(&mut self, id: FlowId, reset: bool) {
        let Some(door) = self.flows.get_mut(id.0 as usize).and_then(Option::take) else { return };
        if let (true, Door::Own(socket)) = (reset, &door) {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(&socket.fd, sockopt::Linger, &at_once);
        }
        self.generations[id.0 as usize] = self.generations[id.0 as usize].wrapping_add(1);
    }

    fn random(&mut self) -> u64 {
        self.drawn += 1;
        self.secret.hash_one(self.drawn)
    }
}
