//! Connections to published ports, between scripted clients and a scripted container.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::wire::ip::Header;
use netstack::wire::tcp::{ACK, FIN, Outgoing, PSH, RST, SYN, SeqNumber, SynOptions};
use netstack::wire::{ethernet, ip, tcp, vnet};
use netstack::{
    Config, FlowId, Host, Limits, Member, Members, Names, Peek, Readiness, Received, Side, SocketError, Stack, TapFull,
    Target, Wrote,
};

type End = (IpAddr, u16);

const PORT: u16 = 80;
const GATEWAY: [IpAddr; 2] = [v4(1), v6(1)];
const CONTAINER: [IpAddr; 2] = [v4(2), v6(2)];
/// A client elsewhere.
const CLIENT: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));
/// The number of the container's first byte.
const FIRST: SeqNumber = SeqNumber(7000);
const S: u64 = 1_000_000;

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}

/// Two containers, of which the first has IPv6 or not.
fn members(ipv6: bool) -> Members {
    let member = |last: u8, ipv6| Member {
        v4: Ipv4Addr::new(10, 0, 0, last),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()),
        ipv6,
        mac: [2, 0, 0, 0, 0, last],
    };
    [member(2, ipv6), member(4, true)].into_iter().collect()
}

/// The published port.
const TARGET: Target = Target { container: Ipv4Addr::new(10, 0, 0, 2), port: PORT };

/// The host's socket of a client.
#[derive(Default)]
struct Client {
    /// What it has sent and the container has not acknowledged.
    unread: Vec<u8>,
    ended: bool,
    gone: bool,
    /// What it has received.
    received: Vec<u8>,
}

#[derive(Default)]
struct World {
    clients: BTreeMap<FlowId, Client>,
    frames: VecDeque<Vec<u8>>,
    connects: usize,
    resets: usize,
    drawn: u64,
}

impl Host for World {
    fn transmit(&mut self, head: &[u8], body: &[u8]) -> Result<(), TapFull> {
        self.frames.push_back([head, body].concat());
        Ok(())
    }
    fn primary_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        None
    }
    fn tcp_connect(&mut self, _: FlowId, _: SocketAddr) -> Result<(), SocketError> {
        self.connects += 1;
        Err(SocketError::TimedOut)
    }
    fn tcp_connected(&mut self, id: FlowId) -> Result<(), SocketError> {
        self.clients.get(&id).filter(|client| !client.gone).map(drop).ok_or(SocketError::Failed)
    }
    fn tcp_peek(&mut self, id: FlowId, offset: usize, buffer: &mut [u8]) -> Peek {
        let Some(client) = self.clients.get(&id).filter(|client| !client.gone) else { return Peek::Broken };
        let rest = &client.unread[offset..];
        match rest.len().min(buffer.len()) {
            0 if client.ended => Peek::End,
            0 => Peek::Nothing,
            count => {
                buffer[..count].copy_from_slice(&rest[..count]);
                Peek::Data(count)
            }
        }
    }
    fn tcp_consume(&mut self, id: FlowId, count: usize) -> bool {
        self.clients.get_mut(&id).is_some_and(|client| client.unread.drain(..count).count() == count)
    }
    fn tcp_write(&mut self, id: FlowId, bytes: &[u8]) -> Wrote {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.gone) else { return Wrote::Broken };
        client.received.extend_from_slice(bytes);
        Wrote::Taken(bytes.len())
    }
    fn tcp_room(&mut self, _: FlowId) -> u32 {
        1 << 20
    }
    fn tcp_shutdown(&mut self, _: FlowId) {}
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
    fn close(&mut self, id: FlowId, reset: bool) {
        self.clients.remove(&id).expect("a socket is closed once");
        self.resets += usize::from(reset);
    }
    fn random(&mut self) -> u64 {
        // Any sequence without a pattern in its low bits.
        self.drawn += 1;
        self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
    }
}

/// A segment that has come to the container.
#[derive(Debug)]
struct Seen {
    from: End,
    to: End,
    flags: u8,
    seq: SeqNumber,
    payload: Vec<u8>,
}

impl Seen {
    fn is_syn(&self, from: End, to: End) {
        assert_eq!((self.from, self.to, self.flags), (from, to, SYN));
    }
}

struct Bed {
    stack: Stack,
    world: World,
    now_us: u64,
}

impl Bed {
    fn new() -> Self {
        let (v4, v6) = (|last| Ipv4Addr::new(10, 0, 0, last), |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        let stack = Stack::new(Config {
            v4: Side { gateway: v4(1), dns: v4(3), prefix: 24 },
            v6: Side { gateway: v6(1), dns: v6(3), prefix: 64 },
            members: members(true),
            gateway_mac: [4; 6],
            mtu: 1500,
            mss: 1460,
            host_loopback: false,
            internal: false,
            peek_offset: true,
            resolvers: Vec::new(),
            resolvers_of_one: BTreeMap::new(),
            names: Names::default(),
            limits: Limits { tcp: 4, half_open: 1, udp: 4, echo: 1, dns: 1, new_flows_per_s: 100 },
        });
        Bed { stack, world: World::default(), now_us: S }
    }

    /// A client connects that has sent `unread`; its socket's one event comes before any answer.
    fn accept(&mut self, client: impl Into<SocketAddr>, unread: &[u8]) -> FlowId {
        let mut flow = None;
        let put = |world: &mut World, id| {
            flow = Some(id);
            world.clients.insert(id, Client { unread: unread.to_vec(), ..Client::default() }).is_none()
        };
        assert!(self.stack.accept(self.now_us, client.into(), TARGET, &mut self.world, put));
        self.ready(flow.unwrap());
        flow.unwrap()
    }

    fn ready(&mut self, flow: FlowId) {
        let readiness = Readiness { readable: true, writable: true };
        self.stack.socket_ready(self.now_us, flow, readiness, &mut self.world);
        self.pass(0);
    }

    /// The client has reset its connection.
    fn leave(&mut self, flow: FlowId) {
        self.world.clients.get_mut(&flow).unwrap().gone = true;
        self.ready(flow);
    }

    fn pass(&mut self, us: u64) {
        self.now_us += us;
        self.stack.tick(self.now_us, &mut self.world);
    }

    /// What has come to the container since the last look.
    fn seen(&mut self) -> Vec<Seen> {
        let parse = |frame: Vec<u8>| {
            let (_, frame) = vnet::parse(&frame).unwrap();
            let (_, ether_type, packet) = ethernet::parse(frame).unwrap();
            let parsed = if ether_type == ethernet::IPV4 { ip::parse_v4(packet) } else { ip::parse_v6(packet) };
            let Ok(ip::Parsed::Whole(packet)) = parsed else { panic!("{parsed:?}") };
            let segment = tcp::parse(packet.payload).unwrap();
            Seen {
                from: (packet.source, segment.source_port),
                to: (packet.destination, segment.destination_port),
                flags: segment.flags,
                seq: segment.seq,
                payload: segment.payload.to_vec(),
            }
        };
        self.world.frames.drain(..).map(parse).collect()
    }

    fn only(&mut self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    /// The container answers all that it has seen up to `to`; `at` bytes of its own have gone before.
    fn answer(&mut self, to: &Seen, flags: u8, at: u32, payload: &[u8]) {
        let taken = to.payload.len() as u32 + u32::from(to.flags & (SYN | FIN) != 0);
        let seq = match flags {
            _ if flags & RST != 0 => SeqNumber(0),
            _ if flags & SYN != 0 => FIRST.plus(0_u32.wrapping_sub(1)),
            _ => FIRST.plus(at),
        };
        let syn = (flags & SYN != 0).then_some(SynOptions { mss: Some(1460), window_shift: Some(7) });
        self.send(to.to, to.from, (flags, seq, to.seq.plus(taken)), syn, payload);
    }

    fn send(
        &mut self,
        source: End,
        destination: End,
        (flags, seq, ack): (u8, SeqNumber, SeqNumber),
        syn: Option<SynOptions>,
        payload: &[u8],
    ) {
        let outgoing = Outgoing { source, destination, seq, ack, flags, window: 4000, syn };
        let (ether_type, ip_len) =
            if source.0.is_ipv4() { (ethernet::IPV4, ip::V4_LEN) } else { (ethernet::IPV6, ip::V6_LEN) };
        let start = ethernet::LEN + ip_len;
        let mut head = Header::new();
        head.push(&vnet::partial(start, tcp::CHECKSUM_OFFSET, start + outgoing.header_len()));
        let last = match source.0 {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        head.push(&ethernet::header([4; 6], [2, 0, 0, 0, 0, last], ether_type));
        ip::write(&mut head, source.0, destination.0, ip::TCP, outgoing.header_len() + payload.len(), 64);
        outgoing.write(&mut head, payload.len());
        self.stack.frame_in(self.now_us, &[head.as_slice(), payload].concat(), &mut self.world);
        self.stack.end_batch(self.now_us, &mut self.world);
        self.pass(0);
    }

    /// The container takes a connection; its SYN's answer draws the acknowledgement and what the client has sent.
    fn take(&mut self, syn: &Seen) -> Vec<Seen> {
        self.answer(syn, SYN | ACK, 0, &[]);
        self.seen()
    }

    /// A whole conversation from the container's side, after its SYN: reads all, answers, ends, and so does the client.
    fn converse(&mut self, flow: FlowId, syn: &Seen, expected: &[u8]) {
        let data = self.take(syn);
        assert_eq!(data.iter().flat_map(|seen| &seen.payload).copied().collect::<Vec<u8>>(), expected);
        self.answer(data.last().unwrap(), ACK | PSH, 0, b"and back");
        let client = self.world.clients.get_mut(&flow).unwrap();
        assert_eq!((client.unread.as_slice(), client.received.as_slice()), (&[][..], &b"and back"[..]));
        client.ended = true;
        self.ready(flow);
        let end = self.seen().pop().unwrap();
        assert_eq!((end.flags, end.seq), (FIN | ACK, syn.seq.plus(1 + expected.len() as u32)));
        self.answer(&end, FIN | ACK, 8, &[]);
        self.seen();
    }

    /// No flow, no timer, no socket; `resets` clients got a reset; and the one place for half-open flows is free.
    fn nothing_is_left(&mut self, resets: usize) {
        // Flows that have ended linger for a FIN sent again.
        self.pass(5 * S);
        assert_eq!((self.stack.flows(), self.stack.next_deadline(self.now_us)), (0, None));
        assert_eq!((self.world.clients.len(), self.world.resets), (0, resets));
        assert_eq!(self.world.frames.len(), 0);
        let before = self.world.connects;
        let outside = (IpAddr::from([192, 0, 2, 9]), 443);
        self.send((CONTAINER[0], 4000), outside, (SYN, SeqNumber(1), SeqNumber(0)), None, &[]);
        assert_eq!((self.world.connects, self.stack.flows()), (before + 1, 0));
        assert_eq!(self.stack.counters().refused_flows, 0);
    }
}

#[test]
fn two_clients_that_look_the_same_have_different_ports() {
    let mut bed = Bed::new();
    let clients = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
    let flows = clients.map(|client| bed.accept((client, 5000), &client.octets()));
    let syns = bed.seen();
    assert_eq!(syns.len(), 2);
    syns[0].is_syn((GATEWAY[0], 5000), (CONTAINER[0], PORT));
    syns[1].is_syn((GATEWAY[0], syns[1].from.1), (CONTAINER[0], PORT));
    assert_ne!(syns[1].from.1, 5000);
    for ((syn, flow), client) in syns.iter().zip(flows).zip(clients) {
        bed.converse(flow, syn, &client.octets());
    }
    bed.nothing_is_left(0);
}

#[test]
fn a_reset_after_the_end_is_passed_on() {
    let mut bed = Bed::new();
    let flow = bed.accept((Ipv4Addr::LOCALHOST, 5000), b"");
    let syn = bed.only();
    bed.take(&syn);
    bed.world.clients.get_mut(&flow).unwrap().ended = true;
    bed.ready(flow);
    let end = bed.only();
    assert_eq!(end.flags, FIN | ACK);
    bed.answer(&end, ACK, 0, &[]);
    assert_eq!(bed.seen().len(), 0);
    bed.leave(flow);
    assert_eq!(bed.only().flags, RST | ACK);
    bed.nothing_is_left(1);
}

#[test]
fn the_same_ends_can_be_used_again_at_once() {
    let mut bed = Bed::new();
    let client = (Ipv4Addr::new(192, 0, 2, 7), 5000);
    let mut last: Option<SeqNumber> = None;
    for _ in 0..3 {
        let flow = bed.accept(client, b"again");
        let syn = bed.only();
        assert!(last.is_none_or(|last| syn.seq.since(last) > 0), "a container in TIME_WAIT takes no lower number");
        last = Some(syn.seq);
        // It may be of another mind, as after much traffic: then its end of the earlier connection is reset.
        let stray = SeqNumber(77);
        bed.send(syn.to, syn.from, (ACK, FIRST, stray), None, &[]);
        let reset = bed.only();
        assert_eq!((reset.from, reset.to, reset.flags, reset.seq), (syn.from, syn.to, RST, stray));
        bed.pass(S);
        let second = bed.only();
        assert_eq!((second.flags, second.seq), (SYN, syn.seq));
        bed.converse(flow, &second, b"again");
        bed.pass(5 * S);
    }
    bed.nothing_is_left(0);
}

#[test]
fn refused_over_ipv6_a_connection_is_made_over_ipv4() {
    for (client, shown) in [(CLIENT, CLIENT), (Ipv6Addr::LOCALHOST.into(), GATEWAY[1])] {
        let mut bed = Bed::new();
        let flow = bed.accept((client, 5000), b"early");
        let first = bed.only();
        first.is_syn((shown, 5000), (CONTAINER[1], PORT));
        bed.answer(&first, RST | ACK, 0, &[]);
        let second = bed.only();
        second.is_syn((GATEWAY[0], 5000), (CONTAINER[0], PORT));
        assert_ne!(first.seq, second.seq);
        bed.converse(flow, &second, b"early");
        bed.nothing_is_left(0);
    }
}

#[test]
fn taken_over_ipv6_a_connection_shows_its_client() {
    let mut bed = Bed::new();
    let flow = bed.accept((CLIENT, 5000), b"early");
    let syn = bed.only();
    syn.is_syn((CLIENT, 5000), (CONTAINER[1], PORT));
    bed.converse(flow, &syn, b"early");
    bed.nothing_is_left(0);
}

#[test]
fn without_ipv6_inside_a_client_is_led_to_ipv4() {
    let mut bed = Bed::new();
    // The first comes before it is known.
    let early = bed.accept((CLIENT, 5000), b"early");
    let lost = bed.only();
    lost.is_syn((CLIENT, 5000), (CONTAINER[1], PORT));
    bed.stack.set_members(bed.now_us, members(false), &mut bed.world);
    let flow = bed.accept((CLIENT, 5001), b"late");
    let syn = bed.only();
    syn.is_syn((GATEWAY[0], 5001), (CONTAINER[0], PORT));
    bed.converse(flow, &syn, b"late");
    bed.pass(S);
    let again = bed.only();
    again.is_syn((GATEWAY[0], 5000), (CONTAINER[0], PORT));
    bed.converse(early, &again, b"early");
    bed.nothing_is_left(0);
}

#[test]
fn datagrams_keep_their_family_while_there_is_one() {
    let mut bed = Bed::new();
    for (ipv6, from, to) in [(true, CLIENT, CONTAINER[1]), (false, GATEWAY[0], CONTAINER[0])] {
        bed.stack.set_members(bed.now_us, members(ipv6), &mut bed.world);
        bed.stack.datagram_in(bed.now_us, (CLIENT, 5000).into(), TARGET, b"question", &mut bed.world, |_, _| ());
        let frame = bed.world.frames.pop_front().unwrap();
        let (_, _, packet) = ethernet::parse(vnet::parse(&frame).unwrap().1).unwrap();
        let parsed = if ipv6 { ip::parse_v6(packet) } else { ip::parse_v4(packet) };
        let Ok(ip::Parsed::Whole(packet)) = parsed else { panic!("{parsed:?}") };
        assert_eq!((packet.source, packet.destination), (from, to));
    }
}

/// The rate of the first container: 8,000 bytes a second.
fn slow(bed: &mut Bed) {
    bed.stack.set_rates(bed.now_us, &[(Ipv4Addr::new(10, 0, 0, 2), 64_000)].into());
}

#[test]
fn datagrams_beyond_the_rate_are_dropped() {
    let mut bed = Bed::new();
    slow(&mut bed);
    let passed = |bed: &mut Bed| {
        for _ in 0..100 {
            let client = (CLIENT, 5000).into();
            bed.stack.datagram_in(bed.now_us, client, TARGET, &[0; 1000], &mut bed.world, |_, _| ());
        }
        bed.world.frames.drain(..).count()
    };
    // 64 KiB may come at once.
    assert_eq!(passed(&mut bed), 66);
    bed.pass(S);
    assert_eq!(passed(&mut bed), 8);
    assert_eq!(bed.stack.counters().beyond_rate, 34 + 92);
}

#[test]
fn a_connection_beyond_the_rate_is_held_back_and_loses_nothing() {
    let mut bed = Bed::new();
    slow(&mut bed);
    let sent: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    let flow = bed.accept((Ipv4Addr::LOCALHOST, 5000), &sent);
    let syn = bed.only();
    let mut come = bed.take(&syn);
    let bytes = |come: &[Seen]| come.iter().flat_map(|seen| seen.payload.clone()).collect::<Vec<u8>>();
    let mut received = bytes(&come);
    let began_us = bed.now_us;
    while received.len() < sent.len() {
        if let Some(last) = come.last() {
            bed.answer(last, ACK, 0, &[]);
        }
        bed.pass(10_000);
        come = bed.seen();
        received.extend(bytes(&come));
    }
    assert!(received == sent);
    // 64 KiB come at once, the rest by 8,000 bytes a second, and the last segment when a full one may come.
    assert!((4_200_000..4_600_000).contains(&(bed.now_us - began_us)), "{} us", bed.now_us - began_us);
    assert!(bed.world.clients[&flow].received.is_empty());
}

#[test]
fn refused_over_both_the_client_gets_its_reset() {
    let mut bed = Bed::new();
    bed.accept((CLIENT, 5000), b"early");
    for (shown, container) in [(CLIENT, CONTAINER[1]), (GATEWAY[0], CONTAINER[0])] {
        assert_eq!(bed.world.resets, 0);
        let syn = bed.only();
        syn.is_syn((shown, 5000), (container, PORT));
        bed.answer(&syn, RST | ACK, 0, &[]);
    }
    bed.nothing_is_left(1);
}

#[test]
fn refused_over_ipv4_the_client_gets_its_reset_at_once() {
    let mut bed = Bed::new();
    bed.accept(([198, 51, 100, 9], 5000), b"early");
    let syn = bed.only();
    syn.is_syn(([198, 51, 100, 9].into(), 5000), (CONTAINER[0], PORT));
    bed.answer(&syn, RST | ACK, 0, &[]);
    bed.nothing_is_left(1);
}

#[test]
fn a_client_that_goes_while_it_is_offered_leaves_nothing() {
    // Before it is refused over IPv6, before it is taken over IPv4, or never to be answered.
    for (early, answered) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut bed = Bed::new();
        let flow = bed.accept((CLIENT, 5000), b"early");
        let first = bed.only();
        if early {
            bed.leave(flow);
        }
        bed.answer(&first, RST | ACK, 0, &[]);
        let second = bed.only();
        if !early {
            bed.leave(flow);
        }
        if answered {
            let seen = bed.take(&second);
            assert_eq!(seen.last().map(|seen| (seen.from, seen.flags)), Some((second.from, RST | ACK)));
        } else {
            for wait in [1, 2, 4, 8] {
                bed.pass(wait * S);
                bed.only().is_syn(second.from, second.to);
            }
            bed.pass(16 * S);
            assert_eq!(bed.only().flags, RST | ACK);
        }
        bed.nothing_is_left(1);
    }
}

#[test]
fn what_comes_late_over_the_other_family_changes_nothing() {
    let mut bed = Bed::new();
    let flow = bed.accept((CLIENT, 5000), b"early");
    // The SYN is lost once, and both are refused.
    bed.pass(S);
    let first = bed.seen();
    bed.answer(&first[1], RST | ACK, 0, &[]);
    let second = bed.only();
    bed.answer(&first[0], RST | ACK, 0, &[]);
    assert_eq!(bed.seen().len(), 0);
    bed.answer(&first[0], SYN | ACK, 0, &[]);
    let reset = bed.only();
    assert_eq!((reset.from, reset.to, reset.flags), (first[0].from, first[0].to, RST));
    bed.converse(flow, &second, b"early");
    bed.nothing_is_left(0);
}

#[test]
fn one_number_of_a_port_in_both_families_is_two_connections() {
    let mut bed = Bed::new();
    let plain = bed.accept((Ipv4Addr::LOCALHOST, 5000), b"plain");
    let plain_syn = bed.only();
    let flow = bed.accept((Ipv6Addr::LOCALHOST, 5000), b"early");
    let first = bed.only();
    bed.answer(&first, RST | ACK, 0, &[]);
    let second = bed.only();
    second.is_syn((GATEWAY[0], second.from.1), (CONTAINER[0], PORT));
    assert_ne!(second.from, plain_syn.from);
    bed.converse(flow, &second, b"early");
    bed.converse(plain, &plain_syn, b"plain");
    bed.nothing_is_left(0);
}
