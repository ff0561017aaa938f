//! The network process: one event loop over the TAP device, the host's sockets and the control sockets.
//!
//! It serves one container, or ([`shared`]) a network of several. Order at the start: bind the published ports, confine itself,
//! say that it is ready. A container's TAP device may come before or after that. It ends with its last member; the TAP device
//! of a dead container stays silent for ever.

mod members;
mod observers;
mod shared;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use base::{Failure, Report};
use netstack::{Config, Limits, NameTable, Names, Readiness, Side, Stack, Target};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use sys::role::Inherited;
use sys::{Call, SysError};

use crate::control::{Message, receive, send};
use crate::host::{Sockets, peek_offset_works};
use crate::ports::Listener;
use crate::role::members::{Connection, Joined, Members, host_names};
use crate::role::observers::{Observers, Whose};
use crate::role::shared::{Shared, SharedFds};
use crate::{Addressing, NetError, NetSpec, NetworkSpec, Published, RoleSpec, Transport, egress, ports, sandbox};

pub use crate::role::observers::Capture;

const TAP: u64 = 1 << 60;
const DOOR: u64 = 2 << 60;
const LISTENER: u64 = 3 << 60;
const DATAGRAMS: u64 = 4 << 60;
const MEMBER: u64 = 5 << 60;
const OBSERVER: u64 = 6 << 60;
const KIND: u64 = 0xf << 60;

/// Frames that are read before sockets get their turn.
const BATCH: usize = 32;
/// Connections that are accepted before others get their turn.
const ACCEPTS: usize = 64;
/// Datagrams that are taken from a published port before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 64;
/// The largest frame: vnet and Ethernet headers and an IP packet of 65535 bytes, rounded up.
const FRAME_MAX: usize = 65536 + 64;
/// The number of the standard error, at which the start of a role that is no monitor's own complains.
const STDERR: i32 = 2;
/// When a member that did not take the names is tried again.
const RETRY_US: u64 = 100_000;
/// Descriptors that are kept for other uses than flows.
const RESERVE: u64 = 64;
/// The same for the members of a network that is shared, and for their ports.
const RESERVE_OF_MANY: u64 = 2 * members::MEMBERS_MAX as u64;
/// How long nobody is let in after there was no descriptor for one.
const SHUT_US: u64 = 1_000_000;

/// Runs the role with what it inherited: the configuration is a [`RoleSpec`]. For a container's own network the descriptor
/// `control` is the socket of [`crate::control`], and `tap` the device if it exists already; for a shared one `door` is the
/// socket on which it listens, `namespace` the network's, and `tap` its device.
pub fn main(mut inherited: Inherited) -> ExitCode {
    match serde_json::from_slice(&inherited.config) {
        Ok(RoleSpec::Own(spec)) => own(&spec, &mut inherited),
        Ok(RoleSpec::Program(spec)) => crate::helper::role::main(&spec, &mut inherited),
        Ok(RoleSpec::Shared(spec)) => shared::main(spec, inherited),
        Err(_) => ExitCode::from(125),
    }
}

fn own(spec: &NetSpec, inherited: &mut Inherited) -> ExitCode {
    let Ok(control) = inherited.fd("control") else { return ExitCode::from(125) };
    let tap = inherited.optional_fd("tap");
    let copy = control.try_clone().map_err(|_| NetError::from(SysError::new("dup(control)", Errno::EMFILE)));
    match copy.and_then(|copy| Role::own(spec, copy, tap)).and_then(|mut role| role.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::from(&Report::from(error));
            // If the monitor is gone nobody is left to be told.
            let _ = send(control.as_fd(), &Message::Failed(failure), None);
            ExitCode::from(125)
        }
    }
}

/// A published port.
#[derive(Debug)]
struct Port<L> {
    socket: L,
    target: Target,
    /// Whether clients call it by any of the host's addresses.
    everywhere: bool,
    /// Whose it is.
    member: u64,
}

struct Role {
    /// A network that containers join; without, there is one member and its end is the role's.
    shared: Option<Shared>,
    members: Members,
    listeners: Vec<Option<Port<TcpListener>>>,
    /// The published UDP ports, by the numbers of their sockets in `sockets`.
    datagram_ports: Vec<Option<Port<()>>>,
    /// Names that are not those of members: the host's, and of a network of its own its container's.
    own_names: NameTable,
    /// Whether a member could not take the names of the others yet.
    is_behind: bool,
    /// Whether accepting has stopped because the table is nearly full.
    waiting: bool,
    /// Until when nobody is let in, as there was no descriptor for one: who knocks waits.
    shut_until_us: Option<u64>,
    observers: Observers,
    /// Whether an observer who takes more has more to be told.
    is_telling: bool,
    stack: Stack,
    sockets: Sockets,
    /// A frame, or a datagram of a published port.
    frame: Vec<u8>,
    /// Control messages of such a datagram.
    ancillary: Vec<u8>,
    began: Instant,
    ended: bool,
}

impl Role {
    /// Serves one container.
    fn own(spec: &NetSpec, control: OwnedFd, tap: Option<OwnedFd>) -> Result<Self, NetError> {
        let mut bound = Vec::new();
        for wish in &spec.publish {
            bound.extend(ports::listen_on(wish)?);
        }
        let published = bound.iter().map(|(_, port)| *port).collect();
        let mut members = Members::default();
        let egress = spec.egress.as_deref().map(egress::parse).transpose()?;
        let number = members.add(Connection::new(control, Some(Joined::alone(&spec.addressing, egress, spec.rate))));
        let mut role = Role::start(own_config(spec), members, None)?;
        for (listener, port) in bound {
            role.publish(number, listener, &port)?;
        }
        if let Some(connection) = role.members.get(number) {
            watch(role.sockets.epoll(), &connection.control, MEMBER | number)?;
        }
        if let Some(tap) = tap {
            role.take_tap(tap)?;
        }
        sandbox::filter(sandbox::Serves::One)?;
        if let Some(connection) = role.members.get(number) {
            send(connection.control.as_fd(), &Message::Ready { published }, None)?;
        }
        Ok(role)
    }

    /// Serves a network.
    fn shared(spec: NetworkSpec, shared: SharedFds) -> Result<Self, NetError> {
        let SharedFds { door, namespace, tap } = shared;
        let silence = File::options().write(true).open("/dev/null").call(|| "open(/dev/null)".to_owned())?;
        let user_namespace = sys::namespace::identity(sys::namespace::open_own("user")?)?;
        let config = shared_config(&spec);
        let shared = Shared { spec, door, namespace, user_namespace, pid: std::process::id() as i32 };
        let mut role = Role::start(config, Members::default(), Some(shared))?;
        if let Some(shared) = &role.shared {
            watch(role.sockets.epoll(), &shared.door, DOOR)?;
        }
        role.take_tap(tap)?;
        // Who waits for the end of the command's output is not to wait for ours.
        sys::process::place(silence.as_fd(), STDERR)?;
        sandbox::filter(sandbox::Serves::Many)?;
        Ok(role)
    }

    fn start(spec: Config, members: Members, shared: Option<Shared>) -> Result<Self, NetError> {
        let descriptors = sandbox::enter()?;
        let peek_offset = peek_offset_works();
        let own_names = spec.names.of_all.clone();
        let reserve = RESERVE + if shared.is_some() { RESERVE_OF_MANY } else { 0 };
        let config = Config { limits: limits(descriptors, reserve), peek_offset, members: members.members(), ..spec };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).call(|| "epoll_create1()".to_owned())?;
        let sockets = Sockets::new(epoll, config.limits.flows(), peek_offset);
        let mut stack = Stack::new(config);
        stack.set_egress(&members.egress());
        stack.set_rates(0, &members.rates());
        Ok(Role {
            shared,
            members,
            listeners: Vec::new(),
            datagram_ports: Vec::new(),
            own_names,
            is_behind: false,
            waiting: false,
            shut_until_us: None,
            observers: Observers::default(),
            is_telling: false,
            sockets,
            stack,
            frame: vec![0; FRAME_MAX],
            ancillary: nix::cmsg_space!(nix::libc::in_pktinfo, nix::libc::in6_pktinfo),
            began: Instant::now(),
            ended: false,
        })
    }

    /// Listens at a bound port for a member from now on.
    fn publish(&mut self, member: u64, listener: Listener, port: &Published) -> Result<(), NetError> {
        let Some(container) = self.members.address(member) else { return Ok(()) };
        let target = Target { container, port: port.container_port };
        let everywhere = port.host_ip.is_unspecified();
        match listener {
            Listener::Stream(socket) => {
                let number = free_place(&mut self.listeners);
                watch(self.sockets.epoll(), &socket, LISTENER | number as u64)?;
                self.listeners[number] = Some(Port { socket, target, everywhere, member });
            }
            Listener::Datagram(socket) => {
                let number = free_place(&mut self.datagram_ports);
                watch(self.sockets.epoll(), &socket, DATAGRAMS | number as u64)?;
                self.sockets.set_published(number, Some(socket));
                self.datagram_ports[number] = Some(Port { socket: (), target, everywhere, member });
            }
        }
        Ok(())
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
            let telling = self.is_telling.then_some(now_us);
            let behind = self.is_behind.then_some(now_us + RETRY_US);
            let others = [behind, self.deserted_at_us(), self.shut_until_us, telling];
            let timeout = match self.stack.next_deadline(now_us).into_iter().chain(others.into_iter().flatten()).min() {
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
                    DOOR => self.welcome(now_us),
                    MEMBER => self.read_member(now_us, event.data() & !KIND)?,
                    DATAGRAMS => self.receive_datagrams(now_us, (event.data() & !KIND) as usize),
                    OBSERVER => {
                        let number = event.data() & !KIND;
                        self.observers.on_event(number, event.events(), &self.stack, &mut self.sockets);
                    }
                    LISTENER => self.accept(now_us, (event.data() & !KIND) as usize),
                    _ => self.socket_event(now_us, *event),
                }
            }
            self.stack.tick(now_us, &mut self.sockets);
            self.resume_accepting();
            self.open_door(now_us);
            self.is_telling = self.observers.tell(now_us, &self.stack, &mut self.sockets);
            self.is_behind = self.members.tell_names();
            if self.ended || self.is_deserted() {
                return Ok(());
            }
        }
    }

    fn read_tap(&mut self, now_us: u64) {
        for _ in 0..BATCH {
            let Some(tap) = &self.sockets.tap else { break };
            match nix::unistd::read(tap, &mut self.frame) {
                Ok(length) => {
                    self.sockets.show(&self.frame[..length], &[]);
                    self.stack.frame_in(now_us, &self.frame[..length], &mut self.sockets);
                }
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

    /// Takes one message of a member's; its end, and what nobody says, is its leave.
    fn read_member(&mut self, now_us: u64, number: u64) -> Result<(), NetError> {
        let Some(connection) = self.members.get(number) else { return Ok(()) };
        let has_joined = connection.joined.is_some();
        let done = match receive(&connection.control) {
            Ok(Some((Message::Join(wish), Some(namespace)))) => self.join(now_us, number, wish, &namespace),
            Ok(Some((message, fd))) if has_joined => self.obey(now_us, number, message, fd),
            Ok(_) => {
                self.leave(now_us, number);
                Ok(())
            }
            Err(error) => Err(error),
        };
        match done {
            // What one sends is not to end the network of others.
            Err(_) if self.shared.is_some() => self.leave(now_us, number),
            done => done?,
        }
        Ok(())
    }

    /// Does what a member says.
    fn obey(&mut self, now_us: u64, number: u64, message: Message, fd: Option<OwnedFd>) -> Result<(), NetError> {
        match (message, fd) {
            (Message::Tap { ipv6 }, Some(tap)) if self.shared.is_none() => {
                self.take_tap(tap)?;
                self.set_ipv6(now_us, number, ipv6);
            }
            (Message::Ipv6(ipv6), _) => self.set_ipv6(now_us, number, ipv6),
            (Message::Called(names), _) => {
                self.members.call(number, names);
                self.tell_stack(now_us);
            }
            (Message::Observe, Some(socket)) => {
                if let Some(address) = self.members.address(number) {
                    let mac = self.shared.as_ref().and_then(|_| self.members.mac(number));
                    self.observers.add(socket, Whose { member: number, address, mac }, self.sockets.epoll());
                }
            }
            (Message::Follow, _) => self.members.follow(number),
            (Message::Names { first, names }, _) => {
                self.members.take_others(number, first, names);
                // What one finds elsewhere is no news for the others.
                self.tell_names();
            }
            (Message::Resolvers(resolvers), _) if !self.is_internal() => self.stack.set_resolvers(resolvers),
            (Message::Publish(port), Some(socket)) => {
                let listener = match port.transport {
                    Transport::Tcp => Listener::Stream(socket.into()),
                    Transport::Udp => Listener::Datagram(socket.into()),
                };
                self.publish(number, listener, &port)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn set_ipv6(&mut self, now_us: u64, number: u64, ipv6: bool) {
        self.members.set_ipv6(number, ipv6);
        self.tell_stack(now_us);
    }

    /// Tells the stack who is there, after a change.
    fn tell_stack(&mut self, now_us: u64) {
        self.stack.set_members(now_us, self.members.members(), &mut self.sockets);
        self.stack.set_egress(&self.members.egress());
        self.stack.set_rates(now_us, &self.members.rates());
        if !self.is_internal() {
            self.stack.set_resolvers_of_one(self.members.resolvers());
        }
        self.tell_names();
        self.members.names_changed();
    }

    fn tell_names(&mut self) {
        let mut of_all = self.own_names.clone();
        of_all.extend(self.members.names());
        self.stack.set_names(Names { of_all, of_one: self.members.others(), links: self.members.links() });
    }

    /// Forgets a connection and what it has.
    fn leave(&mut self, now_us: u64, number: u64) {
        self.members.remove(number);
        self.observers.forget(number, &mut self.sockets);
        if self.shared.is_none() {
            self.ended = true;
            return;
        }
        for port in &mut self.listeners {
            port.take_if(|port| port.member == number);
        }
        for (place, port) in self.datagram_ports.iter_mut().enumerate() {
            if port.take_if(|port| port.member == number).is_some() {
                self.sockets.set_published(place, None);
            }
        }
        self.tell_stack(now_us);
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
            let Some(Some(Port { socket, target, .. })) = self.listeners.get(number) else { return };
            let Ok((stream, client)) = socket.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let fd = OwnedFd::from(stream);
            // When there is no room the socket is closed by its drop.
            self.stack.accept(now_us, client, *target, &mut self.sockets, |sockets, id| {
                sockets.install(id, fd, true).is_ok()
            });
        }
    }

    fn receive_datagrams(&mut self, now_us: u64, number: usize) {
        let Some(Some(Port { target, everywhere, .. })) = self.datagram_ports.get(number) else { return };
        let (target, everywhere) = (*target, *everywhere);
        for _ in 0..DATAGRAMS_AT_ONCE {
            let Some((length, client, called)) = self.receive_datagram(number) else { return };
            let called = called.filter(|_| everywhere);
            let (stack, payload) = (&mut self.stack, &self.frame[..length]);
            stack.datagram_in(now_us, client, target, payload, &mut self.sockets, |sockets, id| {
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
        for port in self.listeners.iter().flatten() {
            let _ = self.sockets.epoll().delete(&port.socket);
        }
    }

    fn resume_accepting(&mut self) {
        if self.waiting && !self.stack.is_crowded() {
            self.waiting = false;
            for (number, port) in self.listeners.iter().enumerate() {
                let Some(port) = port else { continue };
                let _ = watch(self.sockets.epoll(), &port.socket, LISTENER | number as u64);
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

/// The first place that is free, with a new one where none is.
fn free_place<T>(places: &mut Vec<Option<T>>) -> usize {
    let free = places.iter().position(Option::is_none);
    free.unwrap_or_else(|| {
        places.push(None);
        places.len() - 1
    })
}

/// Three of four descriptors for TCP, most of the rest for UDP.
fn limits(descriptors: u64, reserve: u64) -> Limits {
    let mut limits = Limits::default();
    // Where there are few, at least half are for flows.
    let reserve = reserve.min(descriptors / 2) + u64::from(limits.echo + limits.dns);
    let usable = descriptors.saturating_sub(reserve).max(64) as u32;
    limits.tcp = limits.tcp.min(usable / 4 * 3);
    limits.udp = limits.udp.min(usable / 4);
    limits
}

fn own_config(spec: &NetSpec) -> Config {
    let Addressing { v4, v6, .. } = spec.addressing;
    let mut names: Vec<_> = spec.names.iter().map(|(name, own)| (name.to_ascii_lowercase(), own.clone())).collect();
    names.extend(host_names(v4.gateway, v6.gateway));
    Config {
        v4: Side { gateway: v4.gateway, dns: v4.dns, prefix: v4.prefix },
        v6: Side { gateway: v6.gateway, dns: v6.dns, prefix: v6.prefix },
        gateway_mac: spec.addressing.gateway_mac,
        mtu: spec.addressing.mtu,
        host_loopback: spec.host_loopback,
        resolvers: spec.resolvers.clone(),
        names: Names { of_all: names, ..Names::default() },
        ..nobodys_config()
    }
}

fn shared_config(spec: &NetworkSpec) -> Config {
    let (v4, v6) = (spec.v4, spec.v6);
    Config {
        v4: Side { gateway: v4.gateway, dns: v4.dns, prefix: v4.prefix },
        v6: Side { gateway: v6.gateway, dns: v6.dns, prefix: v6.prefix },
        gateway_mac: spec.gateway_mac,
        mtu: spec.mtu,
        internal: spec.internal,
        names: Names { of_all: host_names(v4.gateway, v6.gateway).collect(), ..Names::default() },
        // What leads out leads a question for a name out too.
        resolvers: if spec.internal { Vec::new() } else { spec.resolvers.clone() },
        ..nobodys_config()
    }
}

/// What all have in common.
fn nobodys_config() -> Config {
    Config {
        v4: Side { gateway: Ipv4Addr::UNSPECIFIED, dns: Ipv4Addr::UNSPECIFIED, prefix: 0 },
        v6: Side { gateway: Ipv6Addr::UNSPECIFIED, dns: Ipv6Addr::UNSPECIFIED, prefix: 0 },
        members: netstack::Members::default(),
        gateway_mac: [0; 6],
        mtu: 0,
        mss: 8960,
        host_loopback: false,
        internal: false,
        peek_offset: false,
        resolvers: Vec::new(),
        resolvers_of_one: BTreeMap::new(),
        names: Names::default(),
        limits: Limits::default(),
    }
}
