//! The TCP machine between a scripted container and a scripted host socket, under any order of arrivals, losses,
//! repetitions, refusals and timeouts.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use crate::wire::ip::Header;
use crate::wire::tcp::{ACK, FIN, Outgoing, RST, SYN, SeqNumber, SynOptions};
use crate::wire::{ethernet, ip, tcp, vnet};
use crate::{
    Config, FlowId, Host, Limits, Member, Names, Peek, Readiness, Received, Side, SocketError, Stack, TapFull, Wrote,
};

const CONTAINER: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 4000);
const REMOTE: (IpAddr, u16) = (IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)), 80);
const FLOW: FlowId = FlowId(0);
/// What each side sends in total.
const LENGTH: usize = 600_000;

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// The host's socket and the TAP device.
#[derive(Default)]
struct Script {
    frames: VecDeque<Vec<u8>>,
    tap_full: bool,
    /// Bytes that have arrived from the world so far, and how many of them were consumed.
    arrived: usize,
    consumed: usize,
    /// What the socket has taken, and how much more it takes.
    taken: usize,
    room: usize,
    shut: bool,
    open: bool,
}

impl Host for Script {
    fn transmit(&mut self, head: &[u8], body: &[u8]) -> Result<(), TapFull> {
        if self.tap_full {
            return Err(TapFull);
        }
        self.frames.push_back([head, body].concat());
        Ok(())
    }
    fn primary_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        None
    }
    fn tcp_connect(&mut self, _: FlowId, _: SocketAddr) -> Result<(), SocketError> {
        self.open = true;
        Ok(())
    }
    fn tcp_connected(&mut self, _: FlowId) -> Result<(), SocketError> {
        Ok(())
    }
    fn tcp_peek(&mut self, _: FlowId, offset: usize, buffer: &mut [u8]) -> Peek {
        assert!(self.open && self.consumed + offset <= self.arrived, "a peek lies inside what has arrived");
        let start = self.consumed + offset;
        let count = buffer.len().min(self.arrived - start);
        for (at, out) in buffer[..count].iter_mut().enumerate() {
            *out = byte(start + at);
        }
        match count {
            0 if self.arrived == LENGTH => Peek::End,
            0 => Peek::Nothing,
            _ => Peek::Data(count),
        }
    }
    fn tcp_consume(&mut self, _: FlowId, count: usize) -> bool {
        self.consumed += count;
        assert!(self.consumed <= self.arrived);
        true
    }
    fn tcp_write(&mut self, _: FlowId, bytes: &[u8]) -> Wrote {
        assert!(self.open && !self.shut);
        let count = bytes.len().min(self.room);
        assert!((self.taken..).zip(&bytes[..count]).all(|(at, got)| *got == byte(at)), "what is delivered is a prefix");
        self.taken += count;
        self.room -= count;
        Wrote::Taken(count)
    }
    fn tcp_room(&mut self, _: FlowId) -> u32 {
        self.room as u32
    }
    fn tcp_shutdown(&mut self, _: FlowId) {
        assert_eq!(self.taken, LENGTH, "the end comes after everything else");
        self.shut = true;
    }
    fn udp_open(&mut self, _: FlowId, _: Option<u16>, _: SocketAddr) -> Result<(), SocketError> {
        Err(SocketError::Failed)
    }
    fn echo_open(&mut self, _: FlowId, _: IpAddr) -> Result<(), SocketError> {
        Err(SocketError::Failed)
    }
    fn datagram_dont_fragment(&mut self, _: FlowId, _: bool) {}
    fn datagram_send(&mut self, _: FlowId, _: &[u8]) -> Result<(), SocketError> {
        Err(SocketError::Failed)
    }
    fn datagram_receive(&mut self, _: FlowId, _: &mut [u8]) -> Received {
        Received::Nothing
    }
    fn close(&mut self, _: FlowId, reset: bool) {
        assert!(!reset, "nobody gave a reason to reset");
        self.open = false;
    }
    fn random(&mut self) -> u64 {
        // Numbers wrap around during the test.
        u64::from(u32::MAX - 1000)
    }
}

/// The container's kernel, with an initial number just before the wrap.
struct Peer {
    una: usize,
    next: usize,
    edge: usize,
    received: usize,
    window: u16,
    their_first: Option<SeqNumber>,
    their_fin: bool,
}

const FIRST: u32 = u32::MAX - 50_000;
const SHIFT: u8 = 4;

struct World {
    stack: Stack,
    host: Script,
    peer: Peer,
    now_us: u64,
    edge: Option<SeqNumber>,
}

impl World {
    fn new(peek_offset: bool) -> Self {
        let side = |last| std::net::Ipv4Addr::new(10, 0, 0, last);
        let v6 = std::net::Ipv6Addr::UNSPECIFIED;
        let config = Config {
            v4: Side { gateway: side(1), dns: side(3), prefix: 24 },
            v6: Side { gateway: v6, dns: v6, prefix: 64 },
            members: [Member { v4: side(2), v6, ipv6: true, mac: [2; 6] }].into_iter().collect(),
            gateway_mac: [4; 6],
            mtu: 9000,
            mss: 8960,
            host_loopback: false,
            internal: false,
            peek_offset,
            resolvers: Vec::new(),
            resolvers_of_one: BTreeMap::new(),
            names: Names::default(),
            limits: Limits { tcp: 4, half_open: 4, udp: 1, echo: 1, dns: 1, new_flows_per_s: 100 },
        };
        let peer = Peer { una: 0, next: 0, edge: 0, received: 0, window: 4000, their_first: None, their_fin: false };
        let mut world =
            World { stack: Stack::new(config), host: Script::default(), peer, now_us: 1_000_000, edge: None };
        let syn = SynOptions { mss: Some(1460), window_shift: Some(SHIFT) };
        world.send(SYN, SeqNumber(FIRST.wrapping_sub(1)), &[], Some(syn));
        world.stack.socket_ready(world.now_us, FLOW, Readiness { readable: false, writable: true }, &mut world.host);
        world
    }

    fn send(&mut self, flags: u8, seq: SeqNumber, payload: &[u8], syn: Option<SynOptions>) {
        let ack = self
            .peer
            .their_first
            .map_or(SeqNumber(0), |first| first.plus(1 + self.peer.received as u32 + u32::from(self.peer.their_fin)));
        let window = self.peer.window;
        let outgoing = Outgoing { source: CONTAINER, destination: REMOTE, seq, ack, flags, window, syn };
        let mut head = Header::new();
        let start = ethernet::LEN + ip::V4_LEN;
        head.push(&vnet::partial(start, tcp::CHECKSUM_OFFSET, start + outgoing.header_len()));
        head.push(&ethernet::header([4; 6], [2; 6], ethernet::IPV4));
        ip::write(&mut head, CONTAINER.0, REMOTE.0, ip::TCP, outgoing.header_len() + payload.len(), 64);
        outgoing.write(&mut head, payload.len());
        self.stack.frame_in(self.now_us, &[head.as_slice(), payload].concat(), &mut self.host);
        self.stack.end_batch(self.now_us, &mut self.host);
        let before = self.edge;
        self.stack.each_tcp(|flow| {
            flow.check();
            self.edge = Some(flow.edge());
        });
        if let (Some(before), Some(now)) = (before, self.edge) {
            assert!(now.since(before) >= 0, "the window's right edge never moves left");
        }
    }

    fn seq(at: usize) -> SeqNumber {
        SeqNumber(FIRST.wrapping_add(at as u32))
    }

    /// The container sends up to `count` new bytes, and its FIN behind the last; `lost` never arrives.
    fn peer_sends(&mut self, count: usize, lost: bool) {
        let Some(_) = self.peer.their_first else { return };
        let end = (self.peer.next + count).min(self.peer.edge).min(LENGTH);
        if end < self.peer.next || self.peer.next > LENGTH {
            return;
        }
        let bytes: Vec<u8> = (self.peer.next..end).map(byte).collect();
        let fin = if end == LENGTH { FIN } else { 0 };
        let seq = Self::seq(self.peer.next);
        self.peer.next = end + usize::from(fin != 0);
        if !lost {
            self.send(ACK | fin, seq, &bytes, None);
        }
    }

    /// The container sends twice `count` bytes, of which the second half arrives first.
    fn peer_overtakes_itself(&mut self, count: usize) {
        let first = self.peer.next;
        if self.peer.their_first.is_none() || first + 2 * count > self.peer.edge.min(LENGTH) {
            return;
        }
        for from in [first + count, first] {
            self.peer.next = from;
            self.peer_sends(count, false);
        }
        self.peer.next = first + 2 * count + usize::from(first + 2 * count == LENGTH);
    }

    /// The next frame reaches the container, which answers.
    fn deliver(&mut self) {
        let Some(frame) = self.host.frames.pop_front() else { return };
        let (_, rest) = vnet::parse(&frame).expect("a vnet header");
        let (_, _, packet) = ethernet::parse(rest).expect("an Ethernet header");
        let Ok(ip::Parsed::Whole(packet)) = ip::parse_v4(packet) else { panic!("a packet") };
        let segment = tcp::parse(packet.payload).expect("a segment");
        assert!(!segment.has(RST), "nobody gave a reason to reset");
        assert!(segment.has(ACK));
        if segment.has(SYN) {
            self.peer.their_first = Some(segment.seq);
            self.peer.edge = self.peer.edge.max(usize::from(segment.window));
            return self.send(ACK, Self::seq(self.peer.next), &[], None);
        }
        let Some(first) = self.peer.their_first else { return };
        let acked = segment.ack.since(SeqNumber(FIRST));
        assert!(acked >= 0 && acked as usize <= self.peer.next.max(LENGTH + 1), "only what was sent is acknowledged");
        self.peer.una = self.peer.una.max(acked as usize);
        self.peer.next = self.peer.next.max(self.peer.una);
        self.peer.edge = self.peer.edge.max(acked as usize + (usize::from(segment.window) << 8));
        let at = segment.seq.since(first.plus(1));
        let end = at + segment.payload.len() as i32;
        let known = self.peer.received as i32;
        if at <= known && end >= known && !self.peer.their_fin {
            let fresh = &segment.payload[(known - at) as usize..];
            let room = usize::from(self.peer.window) << SHIFT;
            let fresh = &fresh[..fresh.len().min(room)];
            assert!((self.peer.received..).zip(fresh).all(|(at, got)| *got == byte(at)), "received is a prefix");
            self.peer.received += fresh.len();
            if segment.has(FIN) && self.peer.received as i32 == end {
                assert_eq!(self.peer.received, LENGTH);
                self.peer.their_fin = true;
            }
        }
        if !segment.payload.is_empty() || segment.has(FIN) || at < known {
            self.send(ACK, Self::seq(self.peer.next), &[], None);
        }
    }

    fn ready(&mut self) {
        let readiness = Readiness { readable: true, writable: true };
        self.stack.socket_ready(self.now_us, FLOW, readiness, &mut self.host);
        self.tick(0);
    }

    fn tick(&mut self, passed_us: u64) {
        self.now_us += passed_us;
        self.stack.tick(self.now_us, &mut self.host);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Deliver => self.deliver(),
            Step::Lose => drop(self.host.frames.pop_front()),
            Step::Repeat => {
                let copy = self.host.frames.front().cloned();
                self.host.frames.extend(copy);
            }
            Step::PeerSends(count, lost) => self.peer_sends(usize::from(count).min(60_000), lost),
            Step::PeerOvertakes(count) => self.peer_overtakes_itself(usize::from(count).min(60_000)),
            Step::PeerGoesBack => self.peer.next = self.peer.una,
            Step::PeerWindow(window) => self.peer.window = window,
            Step::Arrives(count) => {
                self.host.arrived = (self.host.arrived + usize::from(count)).min(LENGTH);
                if self.host.open {
                    self.ready();
                }
            }
            Step::Room(room) => {
                self.host.room = room.into();
                if self.host.open {
                    self.ready();
                }
            }
            Step::TapFull(full) => self.host.tap_full = full,
            // A handshake that nobody answers is given up after some seconds.
            Step::Passes(ms) if self.peer.their_first.is_some() => self.tick(u64::from(ms) * 1000),
            Step::Passes(_) => {}
        }
    }

    /// With nothing in the way any more both streams arrive whole, and the flow goes.
    fn finish(&mut self) {
        self.host.tap_full = false;
        self.host.arrived = LENGTH;
        self.peer.window = 4000;
        for _ in 0..4000 {
            if self.host.open {
                self.host.room = 1 << 20;
                self.ready();
            }
            while !self.host.frames.is_empty() {
                self.deliver();
            }
            if self.host.open {
                self.peer.next = self.peer.una;
                self.peer_sends(60_000, false);
            }
            if self.stack.flows() == 0 {
                break;
            }
            let until = self.stack.next_deadline(self.now_us).unwrap_or(self.now_us);
            self.tick(until.saturating_sub(self.now_us).clamp(1000, 10_000_000));
        }
        let mut state = String::new();
        self.stack.each_tcp(|flow| state = format!("{flow:?}"));
        assert_eq!((self.host.taken, self.host.shut, self.host.open), (LENGTH, true, false), "{state}");
        assert_eq!((self.peer.received, self.peer.their_fin), (LENGTH, true));
        assert_eq!(self.stack.flows(), 0);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Deliver,
    Lose,
    Repeat,
    PeerSends(u16, bool),
    PeerOvertakes(u16),
    PeerGoesBack,
    PeerWindow(u16),
    Arrives(u16),
    Room(u16),
    TapFull(bool),
    Passes(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Deliver),
        1 => Just(Step::Lose),
        1 => Just(Step::Repeat),
        4 => (any::<u16>(), prop::bool::weighted(0.1)).prop_map(|(count, lost)| Step::PeerSends(count, lost)),
        2 => any::<u16>().prop_map(Step::PeerOvertakes),
        1 => Just(Step::PeerGoesBack),
        1 => prop_oneof![Just(0_u16), 1..5000_u16].prop_map(Step::PeerWindow),
        4 => any::<u16>().prop_map(Step::Arrives),
        3 => any::<u16>().prop_map(Step::Room),
        1 => prop::bool::weighted(0.3).prop_map(Step::TapFull),
        2 => (0..1500_u16).prop_map(Step::Passes),
    ]
}

/// A segment that overtook others is not sent again, as on networks of veth(4) and a bridge it happens.
#[test]
fn what_came_before_its_turn_is_taken_when_its_turn_comes() {
    let mut world = World::new(true);
    world.host.room = LENGTH;
    world.deliver();
    while world.peer.next < LENGTH - 30_000 {
        let before = world.peer.next;
        world.peer_overtakes_itself(10_000);
        assert_eq!((world.host.taken, world.peer.next), (before + 20_000, before + 20_000));
        while !world.host.frames.is_empty() {
            world.deliver();
        }
    }
    // A part that comes again, with the gap; and the end.
    let at = world.peer.next;
    world.send(ACK, World::seq(at + 5000), &(at + 5000..at + 9000).map(byte).collect::<Vec<_>>(), None);
    world.send(ACK | FIN, World::seq(at + 9000), &(at + 9000..LENGTH).map(byte).collect::<Vec<_>>(), None);
    assert_eq!(world.host.taken, at);
    world.send(ACK, World::seq(at), &(at..at + 7000).map(byte).collect::<Vec<_>>(), None);
    assert_eq!((world.host.taken, world.host.shut), (LENGTH, true));
    world.peer.next = LENGTH + 1;
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn both_streams_arrive_whole_whatever_happens(
        peek_offset in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..250),
    ) {
        let mut world = World::new(peek_offset);
        for step in &steps {
            world.apply(step);
        }
        world.finish();
    }
}
