//! The stack: takes frames, socket events and the time, finds the flow, answers what needs no flow.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::accounts::{Accounts, Kind, Traffic};
use crate::config::{Config, Limits, Members, Names, Route, Target};
use crate::dns::Dns;
use crate::echo::Echoes;
use crate::egress::Rule;
use crate::flows::Protocol;
use crate::rate::{Waiting, Way};
use crate::reassembly::Reassembly;
use crate::refusals::Refusals;
use crate::slab::Slab;
use crate::streams::Streams;
use crate::tcp::{self, Key, Tcp, Verdict};
use crate::timers::Timers;
use crate::udp::Udp;
use crate::wire::ethernet::Mac;
use crate::wire::icmp::Unreachable;
use crate::wire::ip::{self, Fragment, Header, Packet, Parsed, Refusal};
use crate::wire::tcp::{RST, SYN};
use crate::wire::{arp, checksum, ethernet, icmp, vnet};
use crate::{Host, SocketError, TapFull, stash};

/// Room for one peek, or one datagram.
const SCRATCH: usize = 512 << 10;
/// Turns of the ready ring between two looks at other events.
const TURNS: usize = 16;
/// Ports looked at for a client whose own is taken. At most half of those in question can be, by the largest table.
const PORTS_TRIED: usize = 16;

/// The number of a flow; also of its socket in the [`Host`]. Numbers are used again after the socket was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

/// What epoll says about a flow's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Data, an end of stream or an error is there.
    pub readable: bool,
    /// Room, the end of a connect or an error is there.
    pub writable: bool,
}

/// What was dropped, refused or done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that could not be parsed or had a bad checksum.
    pub malformed: u64,
    /// Frames from or to an address that is not allowed.
    pub forbidden: u64,
    /// Fragments that do not fit, and packets of which some never came.
    pub fragments: u64,
    /// Packets of protocols that are not carried.
    pub unsupported: u64,
    /// New flows refused because a table or the rate was exhausted.
    pub refused_flows: u64,
    /// Segments not taken whole because the stash was full or they exceeded the window.
    pub dropped_segments: u64,
    /// Times that data for the container was sent again.
    pub retransmissions: u64,
    /// DNS questions that were dropped.
    pub dropped_questions: u64,
    /// Datagrams and pings beyond what a container may carry.
    pub beyond_rate: u64,
}

/// What the flows share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub config: Config,
    pub timers: Timers,
    pub stash: stash::Pool,
    pub streams: Streams,
    pub scratch: Vec<u8>,
    pub ready: VecDeque<FlowId>,
    pub acks: Vec<FlowId>,
    pub tap_full: Vec<FlowId>,
    pub waiting: Waiting,
    pub counters: Counters,
    pub accounts: Accounts,
    /// What the container cannot know of [`Shared::initial_number`].
    secret: RandomState,
}

impl Shared {
    /// The number of our SYN (RFC 6528): between the same ends each is above the last, so that a container in TIME_WAIT
    /// takes the next connection (RFC 9293 §3.6.1).
    fn initial_number(&self, key: &Key, now_us: u64) -> u32 {
        ((now_us / 4) as u32).wrapping_add(self.secret.hash_one(key) as u32)
    }
}

/// One event's view: what is shared, the host, the time, the flow.
pub(crate) struct Run<'a, H> {
    pub shared: &'a mut Shared,
    pub half_open: &'a mut u32,
    pub host: &'a mut H,
    pub now_us: u64,
    pub id: FlowId,
}

/// Which table a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Tcp(u32),
    Udp(u32),
    Echo(u32),
    Dns(u32),
}

/// The translating stack of one network.
#[derive(Debug)]
pub struct Stack {
    shared: Shared,
    pub(crate) tcp: Slab<Key, Tcp>,
    half_open: u32,
    pub(crate) udp: Udp,
    pub(crate) echo: Echoes,
    dns: Dns,
    reassembly: Reassembly,
}

impl Stack {
    /// A stack without flows.
    pub fn new(config: Config) -> Self {
        let limits = config.limits;
        let flows = limits.flows();
        Stack {
            tcp: Slab::new(limits.tcp),
            half_open: 0,
            udp: Udp::new(limits.tcp, limits.udp),
            echo: Echoes::new(limits.tcp + limits.udp, limits.echo),
            dns: Dns::new(limits.tcp + limits.udp + limits.echo, limits.dns),
            reassembly: Reassembly::new(),
            shared: Shared {
                timers: Timers::new(flows),
                stash: stash::Pool::new(),
                streams: Streams::new(),
                scratch: vec![0; SCRATCH],
                secret: RandomState::new(),
                ready: VecDeque::with_capacity(limits.tcp as usize),
                acks: Vec::with_capacity(limits.tcp as usize),
                tap_full: Vec::with_capacity(limits.tcp as usize),
                waiting: Waiting::new(limits.tcp),
                counters: Counters::default(),
                accounts: Accounts::new(limits, &config.members),
                config,
            },
        }
    }

    /// Tells which containers there are from now on; the flows of others end.
    pub fn set_members<H: Host>(&mut self, now_us: u64, members: Members, host: &mut H) {
        self.shared.accounts.follow(now_us, &members);
        self.shared.config.members = members;
        for slot in 0..self.tcp.touched() {
            let members = &self.shared.config.members;
            if self.tcp.get_mut(slot).is_some_and(|(key, _)| members.find(key.container.0).is_none()) {
                host.close(FlowId(slot), true);
                self.free_tcp(now_us, slot, host);
            }
        }
        let mut run = run_of(&mut self.shared, &mut self.half_open, host, now_us, FlowId(0));
        self.udp.forget_strangers(&mut run);
    }

    /// Tells which names are answered from now on.
    pub fn set_names(&mut self, names: Names) {
        self.shared.config.names = names;
    }

    /// Tells which resolvers to ask from now on, best first. Questions that are with others are waited for.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        if resolvers == self.shared.config.resolvers {
            return;
        }
        self.shared.config.resolvers = resolvers;
        self.dns.forget_the_dead();
    }

    /// Tells which members have other resolvers, by their IPv4 addresses.
    pub fn set_resolvers_of_one(&mut self, resolvers: BTreeMap<Ipv4Addr, Vec<SocketAddr>>) {
        self.shared.config.resolvers_of_one = resolvers;
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// Tells what members may reach, by their IPv4 addresses, from now on: one that is not named may reach anything. Flows that
    /// have begun go on.
    pub fn set_egress(&mut self, egress: &BTreeMap<Ipv4Addr, Arc<[Rule]>>) {
        self.shared.accounts.restrict(egress);
    }

    /// Tells how many bits a second members may carry in each direction, by their IPv4 addresses, from now on: one that is not
    /// named as many as there are.
    pub fn set_rates(&mut self, now_us: u64, rates: &BTreeMap<Ipv4Addr, u64>) {
        self.shared.accounts.limit(now_us, rates);
    }

    /// What a member has had, by one of its addresses.
    pub fn traffic(&self, of: IpAddr) -> Option<Traffic> {
        self.shared.config.members.place(of).map(|place| self.shared.accounts.traffic(place))
    }

    pub(crate) fn members(&self) -> &Members {
        &self.shared.config.members
    }

    pub(crate) fn limits(&self) -> Limits {
        self.shared.config.limits
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.shared.accounts.refusals
    }

    /// How many flows of all kinds exist.
    pub fn flows(&self) -> usize {
        self.tcp.len() + self.udp.len() + self.echo.len() + self.dns.len()
    }

    /// Whether few TCP slots are left, so that published ports should wait with accepting.
    pub fn is_crowded(&self) -> bool {
        self.tcp.len() * 10 >= self.shared.config.limits.tcp as usize * 9
    }

    /// When [`tick`](Self::tick) has something to do, at the latest; `None` while everything waits for events.
    pub fn next_deadline(&self, now_us: u64) -> Option<u64> {
        if !self.shared.ready.is_empty() {
            return Some(now_us);
        }
        let retry = (!self.shared.tap_full.is_empty()).then_some(now_us + 1000);
        [self.shared.timers.next(), retry, self.shared.waiting.due_us()].into_iter().flatten().min()
    }

    /// Takes one frame of the TAP device, vnet header first. [`end_batch`](Self::end_batch) must follow the last one.
    pub fn frame_in<H: Host>(&mut self, now_us: u64, frame: &[u8], host: &mut H) {
        let parsed = vnet::parse(frame).and_then(|(vnet, frame)| Some((vnet, ethernet::parse(frame)?)));
        let Some((vnet, (ends, ether_type, payload))) = parsed else {
            self.shared.counters.malformed += 1;
            return;
        };
        // A bridge sends us what it does not know the place of, too.
        if ends.destination != self.shared.config.gateway_mac && !ends.is_multicast() {
            self.shared.counters.forbidden += 1;
            return;
        }
        let packet = match ether_type {
            ethernet::IPV4 => ip::parse_v4(payload),
            ethernet::IPV6 => ip::parse_v6(payload),
            ethernet::ARP => return self.arp_in(now_us, payload, host),
            _ => {
                self.shared.counters.unsupported += 1;
                return;
            }
        };
        let source = match &packet {
            Ok(Parsed::Whole(packet)) => Some(packet.source),
            Ok(Parsed::Part(part)) => Some(part.source),
            Err(_) => None,
        };
        let members = &self.shared.config.members;
        if let Some(place) = source.and_then(|source| members.place(source)) {
            // Nobody speaks for another one.
            if members.mac(place) != Some(ends.source) {
                self.shared.counters.forbidden += 1;
                return;
            }
            self.shared.accounts.came(place, frame.len() - vnet::LEN);
        }
        match packet {
            Ok(Parsed::Whole(packet)) => self.packet_in(now_us, &packet, vnet.checksum_ok, host),
            Ok(Parsed::Part(part)) => self.fragment_in(now_us, &part, host),
            Err(Refusal::Malformed) => self.shared.counters.malformed += 1,
            Err(Refusal::SourceRoute) => self.shared.counters.forbidden += 1,
            Err(Refusal::Option) => self.shared.counters.unsupported += 1,
        }
    }

    fn fragment_in<H: Host>(&mut self, now_us: u64, part: &Fragment<'_>, host: &mut H) {
        // Before it takes room.
        if !self.shared.config.is_member(part.source) {
            self.shared.counters.forbidden += 1;
            return;
        }
        let whole = self.reassembly.add(now_us, part);
        self.shared.counters.fragments = self.reassembly.lost;
        let Some(whole) = whole else { return };
        match whole.parse() {
            Ok(Parsed::Whole(packet)) => {
                self.packet_in(now_us, &Packet { dont_fragment: false, ..packet }, false, host);
            }
            _ => self.shared.counters.malformed += 1,
        }
        self.reassembly.give_back(whole);
    }

    fn packet_in<H: Host>(&mut self, now_us: u64, packet: &Packet<'_>, checksum_ok: bool, host: &mut H) {
        if packet.protocol == ip::ICMPV6
            && let Some(target) = icmp::parse_solicitation(packet)
        {
            return self.solicited(now_us, packet.source, target, host);
        }
        if !self.shared.config.is_member(packet.source) {
            self.shared.counters.forbidden += 1;
            return;
        }
        let transport = packet.protocol == ip::TCP || packet.protocol == ip::UDP;
        if transport && !checksum_ok {
            let pseudo = checksum::pseudo(packet.source, packet.destination, packet.protocol, packet.payload.len());
            let absent =
                packet.protocol == ip::UDP && packet.source.is_ipv4() && packet.payload.get(6..8) == Some(&[0, 0]);
            if !absent && !checksum::holds(pseudo, packet.payload) {
                self.shared.counters.malformed += 1;
                return;
            }
        }
        match packet.protocol {
            ip::TCP => self.tcp_in(now_us, packet, host),
            ip::UDP => self.udp_in(now_us, packet, host),
            ip::ICMP if packet.source.is_ipv4() => self.icmp_in(now_us, packet, host),
            ip::ICMPV6 if packet.source.is_ipv6() => self.icmp_in(now_us, packet, host),
            _ => self.unsupported(now_us, packet, host),
        }
    }

    /// IGMP (2) is expected and needs no answer; "no next header" (59) says that there is nothing.
    fn unsupported<H: Host>(&mut self, now_us: u64, packet: &Packet<'_>, host: &mut H) {
        self.shared.counters.unsupported += 1;
        if ![2, 59].contains(&packet.protocol) && matches!(self.shared.config.route(packet.destination), Route::Out(_))
        {
            self.run(now_us, host, FlowId(0)).refuse_packet(packet, Unreachable::Protocol);
        }
    }

    fn run<'a, H: Host>(&'a mut self, now_us: u64, host: &'a mut H, id: FlowId) -> Run<'a, H> {
        Run { shared: &mut self.shared, half_open: &mut self.half_open, host, now_us, id }
    }

    fn arp_in<H: Host>(&mut self, now_us: u64, payload: &[u8], host: &mut H) {
        let v4 = self.shared.config.v4;
        let Some(request) = arp::parse_request(payload) else { return };
        if request.target == v4.gateway || request.target == v4.dns {
            let reply = arp::reply(&request, self.shared.config.gateway_mac);
            self.run(now_us, host, FlowId(0)).link_frame(request.sender_mac, ethernet::ARP, &Header::new(), &reply);
        }
    }

    fn solicited<H: Host>(&mut self, now_us: u64, from: IpAddr, target: std::net::Ipv6Addr, host: &mut H) {
        let v6 = self.shared.config.v6;
        if (target != v6.gateway && target != v6.dns) || from.is_unspecified() {
            return;
        }
        let body = icmp::advertisement(target, self.shared.config.gateway_mac);
        // Router, solicited, override.
        let header = icmp::header(target.into(), from, (136, 0), [0xe0, 0, 0, 0], &body);
        self.run(now_us, host, FlowId(0)).icmp(target.into(), from, 255, header, &body);
    }

    fn tcp_in<H: Host>(&mut self, now_us: u64, packet: &Packet<'_>, host: &mut H) {
        let Some(segment) = crate::wire::tcp::parse(packet.payload) else {
            self.shared.counters.malformed += 1;
            return;
        };
        let key = Key {
            container: (packet.source, segment.source_port),
            remote: (packet.destination, segment.destination_port),
        };
        let begins = segment.flags & (SYN | RST | crate::wire::tcp::ACK) == SYN;
        if let Some(slot) = self.tcp.find(&key) {
            let lingering = self.tcp.get_mut(slot).is_some_and(|(_, flow)| flow.is_lingering());
            if !(begins && lingering) {
                return self.on_tcp(now_us, slot, host, |key, flow, run| flow.segment_in(key, &segment, run));
            }
            self.free_tcp(now_us, slot, host);
        }
        if !begins {
            return tcp::answer_stray(&key, &segment, &mut self.run(now_us, host, FlowId(0)));
        }
        if key.container.1 == 0 || key.remote.1 == 0 {
            self.shared.counters.forbidden += 1;
            return;
        }
        self.tcp_begin(now_us, packet, key, &segment, host);
    }

    fn tcp_begin<H: Host>(
        &mut self,
        now_us: u64,
        packet: &Packet<'_>,
        key: Key,
        syn: &crate::wire::tcp::Segment<'_>,
        host: &mut H,
    ) {
        let address = match self.destination(packet.destination, host) {
            Ok(address) => address,
            Err(None) => return,
            Err(Some(reason)) => return self.run(now_us, host, FlowId(0)).refuse_packet(packet, reason),
        };
        let dns = self.shared.config.route(packet.destination) == Route::Dns;
        let mut run = self.run(now_us, host, FlowId(0));
        let restricted = run.is_restricted(packet.source);
        if !dns && !run.may_reach(key.container, Protocol::Tcp, key.remote) {
            return run.refuse_packet(packet, Unreachable::Prohibited);
        }
        let (half_open, all) = (self.half_open as usize, self.tcp.len());
        let mut run = self.run(now_us, host, FlowId(0));
        let source = packet.source;
        let crowded = !run.may_hold(source, Kind::Tcp, all);
        if crowded || !run.may_hold(source, Kind::HalfOpen, half_open) {
            run.refused(Protocol::Tcp, key.container, key.remote, false);
            // A full table stays so for a while, which is worth telling; one of beginnings does not.
            if crowded {
                tcp::answer_stray(&key, syn, &mut run);
            }
            return;
        }
        if !self.admit(source, now_us) {
            return;
        }
        let resolver = self.dns.best(now_us, self.shared.config.resolvers_of(key.container.0), None);
        let served = dns && self.shared.streams.has_room();
        // What a resolver answers to one that has rules is not to pass unread.
        let to = if dns { resolver.filter(|_| !restricted) } else { Some(tcp::target(address, &key)) };
        if dns && key.remote.1 != 53 || !served && to.is_none() {
            return tcp::answer_stray(&key, syn, &mut self.run(now_us, host, FlowId(0)));
        }
        let initial = host.random() as u32;
        let flow = Tcp::outward(syn, initial, self.shared.config.mss(key.remote.0), now_us);
        let Some(slot) = self.tcp_insert(now_us, key, flow, host) else { return };
        self.on_tcp(now_us, slot, host, |key, flow, run| {
            if served {
                run.shared.streams.begin(run.id, key.container.0, resolver, restricted);
                return flow.socket_ready(key, false, true, run);
            }
            match to.map_or(Err(SocketError::Failed), |to| run.host.tcp_connect(run.id, to)) {
                Ok(()) => {
                    flow.start(key, run);
                    Verdict::Keep
                }
                Err(error) => {
                    flow.refuse(key, error, run);
                    Verdict::Free
                }
            }
        });
    }

    fn tcp_insert<H: Host>(&mut self, now_us: u64, key: Key, flow: Tcp, host: &mut H) -> Option<u32> {
        let slot = self.tcp.insert(key, flow)?;
        self.half_open += 1;
        let mut run = self.run(now_us, host, FlowId(slot));
        run.hold(key.container.0, Kind::Tcp);
        run.hold(key.container.0, Kind::HalfOpen);
        Some(slot)
    }

    /// The address to reach for one that the container names. `Err(None)`: drop; `Err(Some(..))`: refuse.
    fn destination<H: Host>(&self, named: IpAddr, host: &mut H) -> Result<IpAddr, Option<Unreachable>> {
        match self.shared.config.route(named) {
            Route::Out(address) => Ok(address),
            Route::Dns => Ok(named),
            Route::Drop => Err(None),
            Route::Refuse(reason) => Err(Some(reason)),
            Route::HostAlias if self.shared.config.host_loopback => Ok(match named {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            }),
            Route::HostAlias => host.primary_address(named).ok_or(Some(Unreachable::Network)),
        }
    }

    /// The ends that the container sees of a client of a published port. The client's own address shows, unless the
    /// container could not answer to it: then the gateway's stands for it, over IPv4 where the container has no other.
    /// `None` where there is no such container.
    fn published_key(&self, client: SocketAddr, target: Target) -> Option<Key> {
        let config = &self.shared.config;
        let member = config.members.find(target.container.into())?;
        let ip = client.ip().to_canonical();
        if ip.is_ipv6() && !member.ipv6 {
            return Some(config.over_ipv4(target, client.port()));
        }
        let container = if ip.is_ipv6() { member.v6.into() } else { member.v4.into() };
        let near = matches!(config.route(ip), Route::Dns | Route::HostAlias | Route::Refuse(Unreachable::Host));
        let own = ip.is_loopback() || near || config.members.find(ip).is_some();
        let remote = (if own { config.gateway(ip) } else { ip }, client.port());
        Some(Key { container: (container, target.port), remote })
    }

    /// Takes a datagram that a client sent to a published port. When it begins a flow, `install` tells the host under
    /// which number answers will be sent.
    pub fn datagram_in<H: Host>(
        &mut self,
        now_us: u64,
        client: SocketAddr,
        target: Target,
        payload: &[u8],
        host: &mut H,
        install: impl FnOnce(&mut H, FlowId),
    ) {
        let Some(key) = self.published_key(client, target) else { return };
        if !self.udp.knows(&key, client) && !self.admit(key.container.0, now_us) {
            return;
        }
        let mut run = run_of(&mut self.shared, &mut self.half_open, host, now_us, FlowId(0));
        self.udp.datagram_in(key, client, payload, &mut run, install);
    }

    /// Begins a flow for a connection to a published port. `install` gives the host the accepted socket under the
    /// flow's number; it is not called when there is no room (`false`): the socket is then to be reset.
    pub fn accept<H: Host>(
        &mut self,
        now_us: u64,
        client: SocketAddr,
        target: Target,
        host: &mut H,
        install: impl FnOnce(&mut H, FlowId) -> bool,
    ) -> bool {
        let key = self.published_key(client, target).and_then(|key| self.free_key(now_us, key, host));
        let begun = key.and_then(|key| {
            let all = self.tcp.len();
            if !self.run(now_us, host, FlowId(0)).may_hold(key.container.0, Kind::Tcp, all) {
                return None;
            }
            let number = self.shared.initial_number(&key, now_us);
            let flow = Tcp::inward(number, self.shared.config.mss(key.remote.0), now_us);
            self.tcp_insert(now_us, key, flow, host)
        });
        let Some(slot) = begun else {
            let container = (target.container.into(), target.port);
            let remote = (client.ip().to_canonical(), client.port());
            self.run(now_us, host, FlowId(0)).refused(Protocol::Tcp, container, remote, true);
            return false;
        };
        if !install(host, FlowId(slot)) {
            self.free_tcp(now_us, slot, host);
            return false;
        }
        self.on_tcp(now_us, slot, host, |key, flow, run| {
            flow.start(key, run);
            Verdict::Keep
        });
        true
    }

    /// These ends, or with another port of the remote's when a flow has them: clients that show as the gateway may have
    /// the same port, and so may one client of two ports of the host. `None` when no port was found.
    fn free_key<H: Host>(&mut self, now_us: u64, mut key: Key, host: &mut H) -> Option<Key> {
        for _ in 0..PORTS_TRIED {
            let Some(slot) = self.tcp.find(&key) else { return Some(key) };
            if self.tcp.get_mut(slot).is_some_and(|(_, flow)| flow.is_lingering()) {
                self.free_tcp(now_us, slot, host);
                return Some(key);
            }
            key.remote.1 = 0x8000 | host.random() as u16;
        }
        None
    }

    /// Runs an event on a TCP flow and frees it when that was its last.
    fn on_tcp<H: Host>(
        &mut self,
        now_us: u64,
        slot: u32,
        host: &mut H,
        event: impl FnOnce(&Key, &mut Tcp, &mut Run<'_, H>) -> Verdict,
    ) {
        let Some((key, flow)) = self.tcp.get_mut(slot) else { return };
        let mut run = Run { shared: &mut self.shared, half_open: &mut self.half_open, host, now_us, id: FlowId(slot) };
        match event(key, flow, &mut run) {
            Verdict::Keep => {}
            Verdict::Free => self.free_tcp(now_us, slot, host),
            Verdict::OverIpv4 => self.over_ipv4(now_us, slot, host),
        }
    }

    /// Begins a flow of a client over IPv6 again over IPv4. A client over IPv4 is not offered over IPv6 when it is
    /// refused: who listens on IPv6 takes IPv4 too unless told not to, and a container that has switched its IPv6 off
    /// would not even refuse.
    fn over_ipv4<H: Host>(&mut self, now_us: u64, slot: u32, host: &mut H) {
        let Some((key, _)) = self.tcp.get_mut(slot) else { return };
        let key = *key;
        let Key { container, remote } = key;
        let member = self.shared.config.members.find(key.container.0);
        let target = member.map(|member| Target { container: member.v4, port: key.container.1 });
        let key = target.map(|target| self.shared.config.over_ipv4(target, key.remote.1));
        let Some(key) = key.and_then(|key| self.free_key(now_us, key, host)) else {
            self.run(now_us, host, FlowId(slot)).refused(Protocol::Tcp, container, remote, true);
            host.close(FlowId(slot), true);
            return self.free_tcp(now_us, slot, host);
        };
        self.tcp.rekey(slot, key);
        self.on_tcp(now_us, slot, host, |key, flow, run| {
            flow.begin_again(run.shared.initial_number(key, run.now_us), run.shared.config.mss(key.remote.0));
            flow.start(key, run);
            Verdict::Keep
        });
    }

    fn free_tcp<H: Host>(&mut self, now_us: u64, slot: u32, host: &mut H) {
        if let Some((key, mut flow)) = self.tcp.remove(slot) {
            self.shared.timers.clear(FlowId(slot));
            let mut run = self.run(now_us, host, FlowId(slot));
            flow.release(&key, &mut run);
            run.let_go(key.container.0, Kind::Tcp);
        }
    }

    fn udp_in<H: Host>(&mut self, now_us: u64, packet: &Packet<'_>, host: &mut H) {
        let Some(datagram) = crate::wire::udp::parse(packet.payload) else {
            self.shared.counters.malformed += 1;
            return;
        };
        let key = Key {
            container: (packet.source, datagram.source_port),
            remote: (packet.destination, datagram.destination_port),
        };
        if key.remote.1 == 0 {
            self.shared.counters.forbidden += 1;
            return;
        }
        let mut run = Run { shared: &mut self.shared, half_open: &mut self.half_open, host, now_us, id: FlowId(0) };
        if run.shared.config.route(packet.destination) == Route::Dns {
            if key.remote.1 == 53 {
                self.dns.question_in(&key, datagram.payload, &mut run);
            } else {
                run.refuse_packet(packet, Unreachable::Port);
            }
            return;
        }
        if !run.passes(packet.source, Way::FromContainer, datagram.payload.len()) {
            return;
        }
        let whole = packet.dont_fragment;
        if self.udp.send(&key, datagram.payload, whole, &mut run) {
            return;
        }
        let address = match self.destination(packet.destination, host) {
            Ok(address) => address,
            Err(None) => return,
            Err(Some(reason)) => return self.run(now_us, host, FlowId(0)).refuse_packet(packet, reason),
        };
        let mut run = self.run(now_us, host, FlowId(0));
        if !run.may_reach(key.container, Protocol::Udp, key.remote) {
            return run.refuse_packet(packet, Unreachable::Prohibited);
        }
        if !self.admit(packet.source, now_us) {
            return;
        }
        let to = tcp::target(address, &key);
        let mut run = Run { shared: &mut self.shared, half_open: &mut self.half_open, host, now_us, id: FlowId(0) };
        self.udp.begin(key, to, datagram.payload, whole, &mut run);
    }

    fn icmp_in<H: Host>(&mut self, now_us: u64, packet: &Packet<'_>, host: &mut H) {
        let Some(echo) = icmp::parse_echo_request(packet) else { return };
        let mut run = Run { shared: &mut self.shared, half_open: &mut self.half_open, host, now_us, id: FlowId(0) };
        match run.shared.config.route(packet.destination) {
            Route::HostAlias | Route::Dns => {
                run.echo_reply(packet.destination, packet.source, echo.id, echo.sequence, echo.data);
            }
            Route::Out(to) => self.echo.request(packet, &echo, to, &mut run),
            Route::Drop => {}
            Route::Refuse(reason) => run.refuse_packet(packet, reason),
        }
    }

    /// A flow's socket has news.
    pub fn socket_ready<H: Host>(&mut self, now_us: u64, id: FlowId, readiness: Readiness, host: &mut H) {
        let table = self.shared_table(id);
        if let Table::Tcp(slot) = table {
            if readiness.writable {
                self.shared.streams.socket_writable(host, id);
            }
            return self.on_tcp(now_us, slot, host, |key, flow, run| {
                flow.socket_ready(key, readiness.readable, readiness.writable, run)
            });
        }
        let mut run = run_of(&mut self.shared, &mut self.half_open, host, now_us, id);
        match table {
            Table::Udp(slot) if readiness.readable => self.udp.socket_ready(slot, &mut run),
            Table::Echo(slot) if readiness.readable => self.echo.socket_ready(slot, &mut run),
            Table::Dns(slot) if readiness.readable => self.dns.socket_ready(slot, &mut run),
            _ => {}
        }
    }

    fn shared_table(&self, id: FlowId) -> Table {
        table_of(&self.shared.config.limits, id)
    }

    /// Everything that is due: deadlines, then a bounded number of turns of the ready ring.
    pub fn tick<H: Host>(&mut self, now_us: u64, host: &mut H) {
        while let Some(id) = self.shared.timers.pop(now_us) {
            match self.shared_table(id) {
                Table::Tcp(slot) => self.on_tcp(now_us, slot, host, |key, flow, run| flow.timer(key, run)),
                Table::Udp(slot) => {
                    self.udp.expire(slot, &mut run_of(&mut self.shared, &mut self.half_open, host, now_us, id));
                }
                Table::Echo(slot) => {
                    self.echo.expire(slot, &mut run_of(&mut self.shared, &mut self.half_open, host, now_us, id));
                }
                Table::Dns(slot) => {
                    self.dns.expire(slot, &mut run_of(&mut self.shared, &mut self.half_open, host, now_us, id));
                }
            }
        }
        while let Some(id) = self.shared.tap_full.pop() {
            self.on_tcp(now_us, id.0, host, |_, flow, run| {
                flow.tap_writable(run);
                Verdict::Keep
            });
        }
        self.wake_waiting(now_us, host);
        for _ in 0..TURNS {
            let Some(id) = self.shared.ready.pop_front() else { break };
            self.on_tcp(now_us, id.0, host, |key, flow, run| flow.turn(key, run));
        }
        self.end_batch(now_us, host);
    }

    /// Lets the flows go on that have waited for their container to be allowed more.
    fn wake_waiting<H: Host>(&mut self, now_us: u64, host: &mut H) {
        let due = self.shared.waiting.due(now_us);
        for _ in 0..due {
            let Some(id) = self.shared.waiting.pop() else { break };
            self.on_tcp(now_us, id.0, host, |key, flow, run| {
                flow.resume(key, run);
                Verdict::Keep
            });
        }
        if due > 0 {
            self.shared.waiting.pause(now_us);
        }
    }

    /// Sends the acknowledgements that a batch of frames has made due: at most one for each flow.
    pub fn end_batch<H: Host>(&mut self, now_us: u64, host: &mut H) {
        while let Some(id) = self.shared.streams.next_news() {
            self.on_tcp(now_us, id.0, host, |key, flow, run| flow.socket_ready(key, true, false, run));
        }
        while let Some(id) = self.shared.acks.pop() {
            self.on_tcp(now_us, id.0, host, |key, flow, run| {
                flow.send_due_ack(key, run);
                Verdict::Keep
            });
        }
    }

    /// Whether one more flow of a container may begin now; counts the one that may not.
    fn admit(&mut self, container: IpAddr, now_us: u64) -> bool {
        let place = self.shared.config.members.place(container);
        let admitted = place.is_some_and(|place| self.shared.accounts.admit(place, now_us));
        self.shared.counters.refused_flows += u64::from(!admitted);
        admitted
    }

    #[cfg(test)]
    pub(crate) fn each_tcp(&mut self, mut look: impl FnMut(&Tcp)) {
        for slot in 0..self.tcp.touched() {
            if let Some((_, flow)) = self.tcp.get_mut(slot) {
                look(flow);
            }
        }
    }
}

fn run_of<'a, H: Host>(
    shared: &'a mut Shared,
    half_open: &'a mut u32,
    host: &'a mut H,
    now_us: u64,
    id: FlowId,
) -> Run<'a, H> {
    Run { shared, half_open, host, now_us, id }
}

impl Limits {
    /// All flows together: how many numbers there are.
    pub fn flows(&self) -> u32 {
        self.tcp + self.udp + self.echo + self.dns
    }
}

/// TCP flows come first, then UDP, echo and DNS.
fn table_of(limits: &Limits, id: FlowId) -> Table {
    let mut slot = id.0;
    for (size, table) in
        [(limits.tcp, Table::Tcp as fn(u32) -> Table), (limits.udp, Table::Udp), (limits.echo, Table::Echo)]
    {
        if slot < size {
            return table(slot);
        }
        slot -= size;
    }
    Table::Dns(slot)
}

impl<H: Host> Run<'_, H> {
    /// Writes a frame without vnet offloads: `header` follows the Ethernet header.
    pub fn link_frame(&mut self, to: Mac, ether_type: u16, header: &Header, body: &[u8]) {
        let mut head = Header::new();
        head.push(&vnet::PLAIN);
        head.push(&ethernet::header(to, self.shared.config.gateway_mac, ether_type));
        head.push(header.as_slice());
        // Nothing here is promised to arrive: who asked will ask again.
        let _ = self.host.transmit(head.as_slice(), body);
    }

    /// Counts a frame for a container; whose it is.
    fn address_to(&mut self, container: IpAddr, bytes: usize) -> Option<Mac> {
        let place = self.shared.config.members.place(container)?;
        self.shared.accounts.went(place, ethernet::LEN + bytes);
        self.shared.config.members.mac(place)
    }

    /// Writes an ICMP message whose 8 bytes of header are complete.
    pub fn icmp(&mut self, source: IpAddr, destination: IpAddr, hop_limit: u8, header: [u8; 8], body: &[u8]) {
        let (ether_type, protocol, ip_len) = if source.is_ipv4() {
            (ethernet::IPV4, ip::ICMP, ip::V4_LEN)
        } else {
            (ethernet::IPV6, ip::ICMPV6, ip::V6_LEN)
        };
        let Some(to) = self.address_to(destination, ip_len + 8 + body.len()) else { return };
        let mut head = Header::new();
        ip::write(&mut head, source, destination, protocol, 8 + body.len(), hop_limit);
        head.push(&header);
        self.link_frame(to, ether_type, &head, body);
    }

    /// Answers a ping.
    pub fn echo_reply(&mut self, source: IpAddr, destination: IpAddr, id: u16, sequence: u16, data: &[u8]) {
        let kind = if source.is_ipv4() { 0 } else { 129 };
        let (id, sequence) = (id.to_be_bytes(), sequence.to_be_bytes());
        let header = icmp::header(source, destination, (kind, 0), [id[0], id[1], sequence[0], sequence[1]], data);
        self.icmp(source, destination, 64, header, data);
    }

    /// Refuses a packet, quoting it.
    pub fn refuse_packet(&mut self, packet: &Packet<'_>, reason: Unreachable) {
        // RFC 1812 §4.3.2.3 wants as much as fits 576 bytes; header and 64 bits are what matters.
        let quoted = &packet.whole[..packet.whole.len().min(128)];
        self.send_unreachable(packet.source, quoted, reason);
    }

    /// Refuses a packet that is gone: its header is written again over the first bytes of its payload.
    pub fn unreachable(&mut self, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8], reason: Unreachable) {
        let mut quoted = Header::new();
        ip::write(&mut quoted, from, to, protocol, payload.len(), 64);
        quoted.push(payload);
        self.send_unreachable(from, quoted.as_slice(), reason);
    }

    fn send_unreachable(&mut self, to: IpAddr, quoted: &[u8], reason: Unreachable) {
        let from = self.shared.config.gateway(to);
        let header = icmp::header(from, to, reason.code(to.is_ipv6()), reason.rest(to.is_ipv6()), quoted);
        self.icmp(from, to, 64, header, quoted);
    }

    /// Writes TCP segments of `mss` bytes in one frame.
    pub fn segment(&mut self, segment: &crate::wire::tcp::Outgoing, payload: &[u8], mss: u16) -> Result<(), TapFull> {
        let v6 = segment.source.0.is_ipv6();
        let (ether_type, ip_len) = if v6 { (ethernet::IPV6, ip::V6_LEN) } else { (ethernet::IPV4, ip::V4_LEN) };
        let size = ip_len + segment.header_len() + payload.len();
        let Some(to) = self.address_to(segment.destination.0, size) else { return Ok(()) };
        let start = ethernet::LEN + ip_len;
        let mut vnet = vnet::partial(start, crate::wire::tcp::CHECKSUM_OFFSET, start + segment.header_len());
        if payload.len() > usize::from(mss) && mss > 0 {
            vnet::segmented(&mut vnet, v6, mss);
        }
        let mut head = Header::new();
        head.push(&vnet);
        head.push(&ethernet::header(to, self.shared.config.gateway_mac, ether_type));
        let length = segment.header_len() + payload.len();
        ip::write(&mut head, segment.source.0, segment.destination.0, ip::TCP, length, 64);
        segment.write(&mut head, payload.len());
        self.host.transmit(head.as_slice(), payload)
    }

    /// Writes a UDP datagram; a full TAP loses it, as a full queue anywhere would.
    pub fn datagram(&mut self, source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) {
        let v6 = source.0.is_ipv6();
        let (ether_type, ip_len) = if v6 { (ethernet::IPV6, ip::V6_LEN) } else { (ethernet::IPV4, ip::V4_LEN) };
        let size = ip_len + crate::wire::udp::LEN + payload.len();
        let Some(to) = self.address_to(destination.0, size) else { return };
        if size > usize::from(self.shared.config.mtu) {
            return self.fragments(to, source, destination, payload);
        }
        let start = ethernet::LEN + ip_len;
        let mut head = Header::new();
        head.push(&vnet::partial(start, crate::wire::udp::CHECKSUM_OFFSET, start + crate::wire::udp::LEN));
        head.push(&ethernet::header(to, self.shared.config.gateway_mac, ether_type));
        ip::write(&mut head, source.0, destination.0, ip::UDP, crate::wire::udp::LEN + payload.len(), 64);
        crate::wire::udp::write(&mut head, source, destination, payload.len());
        let _ = self.host.transmit(head.as_slice(), payload);
    }

    /// Writes a datagram that is larger than the MTU, in fragments: a bridge passes nothing on that is larger. Its checksum is
    /// that of the whole, so the kernel cannot complete it.
    fn fragments(&mut self, to: Mac, source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) {
        const UDP_LEN: usize = crate::wire::udp::LEN;
        let (ether_type, ip_len) = match source.0 {
            IpAddr::V4(_) => (ethernet::IPV4, ip::V4_LEN),
            IpAddr::V6(_) => (ethernet::IPV6, ip::V6_LEN + ip::FRAGMENT_LEN),
        };
        let room = usize::from(self.shared.config.mtu).saturating_sub(ip_len).max(UDP_LEN) & !7;
        let header = crate::wire::udp::complete(source, destination, payload);
        let (id, total, mut offset) = (self.host.random() as u32, UDP_LEN + payload.len(), 0);
        while offset < total {
            let end = total.min(offset + room);
            let mut head = Header::new();
            head.push(&vnet::PLAIN);
            head.push(&ethernet::header(to, self.shared.config.gateway_mac, ether_type));
            let part = ip::Part { id, offset: offset as u16, more: end < total };
            ip::write_fragment(&mut head, (source.0, destination.0), ip::UDP, end - offset, part);
            if offset == 0 {
                head.push(&header);
            }
            let body = &payload[offset.saturating_sub(UDP_LEN)..end - UDP_LEN];
            // Without one of them the others are of no use.
            if self.host.transmit(head.as_slice(), body).is_err() {
                return;
            }
            offset = end;
        }
    }

    /// Translates a socket's error into the message that a router would have sent.
    pub fn datagram_error(&mut self, key: &Key, error: SocketError) {
        let reason = match error {
            SocketError::Refused => Unreachable::Port,
            SocketError::NetworkUnreachable => Unreachable::Network,
            SocketError::HostUnreachable => Unreachable::Host,
            SocketError::Prohibited => Unreachable::Prohibited,
            SocketError::TooBig { mtu } => Unreachable::TooBig { mtu },
            SocketError::TimedOut | SocketError::Failed => return,
        };
        let mut quoted = [0; 8];
        quoted[..2].copy_from_slice(&key.container.1.to_be_bytes());
        quoted[2..4].copy_from_slice(&key.remote.1.to_be_bytes());
        quoted[5] = 8;
        self.unreachable(key.container.0, key.remote.0, ip::UDP, &quoted, reason);
    }
}
