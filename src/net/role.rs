//! The network process: one event loop over the TAP device, the host's sockets and the control socket.
//!
//! Order at the start: bind the published ports, confine itself, say that it is ready. The TAP device may come before
//! or after that. It ends when the control socket ends; the TAP device of a dead container stays silent for ever.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use base::{Failure, Report};
use netstack::{Config, Limits, Readiness, Side, Stack};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use sys::role::Inherited;
use sys::{Call, SysError};

use crate::control::{Message, receive, send};
use crate::host::{Sockets, peek_offset_works};
use crate::ports::Listener;
use crate::{NetError, NetSpec, Published, files, ports, sandbox};

const TAP: u64 = 1 << 60;
const CONTROL: u64 = 2 << 60;
const LISTENER: u64 = 3 << 60;
const DATAGRAMS: u64 = 4 << 60;
const KIND: u64 = 0xf << 60;

/// Frames that are read before sockets get their turn.
const BATCH: usize = 32;
/// Connections that are accepted before others get their turn.
const ACCEPTS: usize = 64;
/// Datagrams that are taken from a published port before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 64;
/// The largest frame: vnet and Ethernet headers and an IP packet of 65535 bytes, rounded up.
const FRAME_MAX: usize = 65536 + 64;
/// Descriptors that are kept for other uses than flows.
const RESERVE: u64 = 64;

/// Runs the role with what it inherited: the configuration is a [`NetSpec`], the descriptor `control` the socket of
/// [`crate::control`], the descriptor `tap` the device if it exists already.
pub fn main(mut inherited: Inherited) -> ExitCode {
    let Ok(control) = inherited.fd("control") else {
        return ExitCode::from(125);
    };
    let tap = inherited.optional_fd("tap");
    let started = Role::start(&inherited.config, control.as_fd().try_clone_to_owned().ok(), tap);
    drop(inherited);
    match started.and_then(|mut role| role.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::from(&Report::from(error));
            // If the monitor is gone nobody is left to be told.
            let _ = send(control.as_fd(), &Message::Failed(failure), None);
            ExitCode::from(125)
        }
    }
}

struct Role {
    control: OwnedFd,
    listeners: Vec<(TcpListener, Published)>,
    /// The published UDP ports, by the numbers of their sockets in `sockets`.
    datagram_ports: Vec<Published>,
    /// Whether accepting has stopped because the table is nearly full.
    waiting: bool,
    stack: Stack,
    sockets: Sockets,
    /// A frame, or a datagram of a published port.
    frame: Vec<u8>,
    /// Control messages of such a datagram.
    ancillary: Vec<u8>,
    began: Instant,
}

impl Role {
    fn start(config: &[u8], control: Option<OwnedFd>, tap: Option<OwnedFd>) -> Result<Self, NetError> {
        let control = control.ok_or_else(|| SysError::new("dup(control)", Errno::EMFILE))?;
        let spec: NetSpec = serde_json::from_slice(config).map_err(NetError::Protocol)?;
        let (mut published, mut listeners, mut datagrams, mut datagram_ports) = (vec![], vec![], vec![], vec![]);
        for wish in &spec.publish {
            for (listener, port) in ports::listen_on(wish)? {
                published.push(port);
                match listener {
                    Listener::Stream(listener) => listeners.push((listener, port)),
                    Listener::Datagram(socket) => {
                        datagrams.push(socket);
                        datagram_ports.push(port);
                    }
                }
            }
        }
        let descriptors = sandbox::enter()?;
        let peek_offset = peek_offset_works();
        let config = stack_config(&spec, descriptors, peek_offset);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).call(|| "epoll_create1()".to_owned())?;
        watch(&epoll, &control, CONTROL)?;
        for (number, (listener, _)) in listeners.iter().enumerate() {
            watch(&epoll, listener, LISTENER | number as u64)?;
        }
        for (number, socket) in datagrams.iter().enumerate() {
            watch(&epoll, socket, DATAGRAMS | number as u64)?;
        }
        let sockets = Sockets::new(epoll, datagrams, config.limits.flows(), peek_offset);
        let mut role = Role {
            control,
            listeners,
            datagram_ports,
            waiting: false,
            stack: Stack::new(config),
            sockets,
            frame: vec![0; FRAME_MAX],
            ancillary: nix::cmsg_space!(nix::libc::in_pktinfo, nix::libc::in6_pktinfo),
            began: Instant::now(),
        };
        if let Some(tap) = tap {
            role.take_tap(tap)?;
        }
        sandbox::filter()?;
        send(role.control.as_fd(), &Message::Ready { published }, None)?;
        Ok(role)
    }

    fn take_tap(&mut self, tap: OwnedFd) -> Result<(), SysError> {
        watch(self.sockets.epoll(), &tap, TAP)?;
        self.sockets.tap = Some(tap);
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// The loop; returns at the end of the control socket.
    fn run(&mut self) -> Result<(), NetError> {
        let mut events = [EpollEvent::empty(); 128];
        loop {
            let now_us = self.now_us();
            let timeout = match self.stack.next_deadline(now_us) {
                None => EpollTimeout::NONE,
                Some(at) => {
                    let ms = at.saturating_sub(now_us).div_ceil(1000).min(60_000);
                    EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::ZERO)
                }
            };
            let count = match self.sockets.epoll().wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                result => result.call(|| "epoll_wait()".to_owned())?,
            };
            let now_us = self.now_us();
            for event in &events[..count] {
                match event.data() & KIND {
                    TAP => self.read_tap(now_us),
                    CONTROL => {
                        if !self.read_control()? {
                            return Ok(());
                        }
                    }
                    DATAGRAMS => self.receive_datagrams(now_us, (event.data() & !KIND) as usize),
                    LISTENER => self.accept(now_us, (event.data() & !KIND) as usize),
                    _ => self.socket_event(now_us, *event),
                }
            }
            self.stack.tick(now_us, &mut self.sockets);
            self.resume_accepting();
        }
    }

    fn read_tap(&mut self, now_us: u64) {
        for _ in 0..BATCH {
            let Some(tap) = &self.sockets.tap else { break };
            match nix::unistd::read(tap, &mut self.frame) {
                Ok(length) => self.stack.frame_in(now_us, &self.frame[..length], &mut self.sockets),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(_) => {
                    // EBADFD: root of the container has deleted the device. The end comes by the control socket.
                    if let Some(tap) = self.sockets.tap.take() {
                        let _ = self.sockets.epoll().delete(tap);
                    }
                }
            }
        }
        self.stack.end_batch(now_us, &mut self.sockets);
    }

    /// `false` at the end of the control socket.
    fn read_control(&mut self) -> Result<bool, NetError> {
        match receive(&self.control)? {
            None => return Ok(false),
            Some((Message::Tap { ipv6 }, Some(tap))) => {
                self.stack.set_ipv6(ipv6);
                self.take_tap(tap)?;
            }
            Some((Message::Resolvers(resolvers), _)) => self.stack.set_resolvers(resolvers),
            Some(_) => {}
        }
        Ok(true)
    }

    fn socket_event(&mut self, now_us: u64, event: EpollEvent) {
        let Some(id) = self.sockets.flow(event.data()) else { return };
        let flags = event.events();
        let broken = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let readiness = Readiness {
            readable: broken || flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP),
            writable: broken || flags.contains(EpollFlags::EPOLLOUT),
        };
        self.stack.socket_ready(now_us, id, readiness, &mut self.sockets);
    }

    fn accept(&mut self, now_us: u64, number: usize) {
        for _ in 0..ACCEPTS {
            if self.stack.is_crowded() {
                return self.stop_accepting();
            }
            let Some((listener, rule)) = self.listeners.get(number) else { return };
            let Ok((stream, client)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let fd = OwnedFd::from(stream);
            // When there is no room the socket is closed by its drop.
            self.stack.accept(now_us, client, rule.container_port, &mut self.sockets, |sockets, id| {
                sockets.install(id, fd, true).is_ok()
            });
        }
    }

    fn receive_datagrams(&mut self, now_us: u64, number: usize) {
        let Some(port) = self.datagram_ports.get(number).copied() else { return };
        for _ in 0..DATAGRAMS_AT_ONCE {
            let Some((length, client, called)) = self.receive_datagram(number) else { return };
            let called = called.filter(|_| port.host_ip.is_unspecified());
            let (stack, payload) = (&mut self.stack, &self.frame[..length]);
            stack.datagram_in(now_us, client, port.container_port, payload, &mut self.sockets, |sockets, id| {
                sockets.answer_through(id, number, client, called);
            });
        }
    }

    /// One datagram into `frame`: its length, who sent it, and to which of the host's addresses. `None` when there is
    /// no more.
    fn receive_datagram(&mut self, number: usize) -> Option<(usize, SocketAddr, Option<IpAddr>)> {
        let fd = self.sockets.published(number)?.as_raw_fd();
        let mut slices = [IoSliceMut::new(&mut self.frame)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut self.ancillary), flags).ok()?;
        let client = message.address.and_then(socket_address)?;
        let called = message.cmsgs().ok()?.find_map(|part| match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
            _ => None,
        });
        Some((message.bytes, client, called))
    }

    fn stop_accepting(&mut self) {
        self.waiting = true;
        for (listener, _) in &self.listeners {
            let _ = self.sockets.epoll().delete(listener);
        }
    }

    fn resume_accepting(&mut self) {
        if self.waiting && !self.stack.is_crowded() {
            self.waiting = false;
            for (number, (listener, _)) in self.listeners.iter().enumerate() {
                let _ = watch(self.sockets.epoll(), listener, LISTENER | number as u64);
            }
        }
    }
}

fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

fn watch(epoll: &Epoll, fd: &impl AsRawFdAsFd, data: u64) -> Result<(), SysError> {
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, data)).call(|| format!("epoll_ctl(ADD, {})", fd.as_raw_fd()))
}

/// Both views of a descriptor.
trait AsRawFdAsFd: AsFd + AsRawFd {}
impl<T: AsFd + AsRawFd> AsRawFdAsFd for T {}

fn stack_config(spec: &NetSpec, descriptors: u64, peek_offset: bool) -> Config {
    let addressing = &spec.addressing;
    let (v4, v6) = (addressing.v4, addressing.v6);
    let mut names = spec.names.clone();
    for name in files::HOST_NAMES {
        names.push((name.to_owned(), vec![v4.gateway.into(), v6.gateway.into()]));
    }
    for (name, _) in &mut names {
        name.make_ascii_lowercase();
    }
    let mut limits = Limits::default();
    // Three of four descriptors for TCP, most of the rest for UDP.
    let usable = descriptors.saturating_sub(RESERVE + u64::from(limits.echo + limits.dns)).max(64) as u32;
    limits.tcp = limits.tcp.min(usable / 4 * 3);
    limits.udp = limits.udp.min(usable / 4);
    Config {
        v4: Side { container: v4.container, gateway: v4.gateway, dns: v4.dns },
        v6: Side { container: v6.container, gateway: v6.gateway, dns: v6.dns },
        container_mac: addressing.mac,
        gateway_mac: addressing.gateway_mac,
        mtu: addressing.mtu,
        mss: 8960,
        host_loopback: spec.host_loopback,
        peek_offset,
        resolvers: spec.resolvers.clone(),
        names,
        limits,
    }
}
