//! What members of a network have of the stack: rules for what they may reach, their part of the tables, and nobody else's
//! address.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{Ipv4Header, UdpHeader};
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use netstack::wire::ip::Header;
use netstack::wire::tcp::{Outgoing, SYN, SeqNumber, SynOptions};
use netstack::wire::{ethernet, ip, tcp, udp, vnet};
use netstack::{
    Config, FlowId, Host, Limits, Member, Names, Peek, Protocol, Readiness, Received, Side, SocketError, Stack,
    TapFull, Wrote,
};

/// A member that has rules in these tests, and one that has none.
const ONE: u8 = 2;
const OTHER: u8 = 4;
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)), 53);
const SITE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

#[derive(Default)]
struct World {
    frames: Vec<Vec<u8>>,
    opened: Vec<(FlowId, SocketAddr)>,
    sent: Vec<Vec<u8>>,
    answers: VecDeque<Vec<u8>>,
    drawn: u64,
}

impl Host for World {
    fn transmit(&mut self, head: &[u8], body: &[u8]) -> Result<(), TapFull> {
        self.frames.push([head, body].concat());
        Ok(())
    }
    fn primary_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        None
    }
    fn tcp_connect(&mut self, id: FlowId, to: SocketAddr) -> Result<(), SocketError> {
        self.opened.push((id, to));
        Ok(())
    }
    fn tcp_connected(&mut self, _: FlowId) -> Result<(), SocketError> {
        Ok(())
    }
    fn tcp_peek(&mut self, _: FlowId, _: usize, _: &mut [u8]) -> Peek {
        Peek::Nothing
    }
    fn tcp_consume(&mut self, _: FlowId, _: usize) -> bool {
        true
    }
    fn tcp_write(&mut self, _: FlowId, bytes: &[u8]) -> Wrote {
        Wrote::Taken(bytes.len())
    }
    fn tcp_room(&mut self, _: FlowId) -> u32 {
        1 << 20
    }
    fn tcp_shutdown(&mut self, _: FlowId) {}
    fn udp_open(&mut self, id: FlowId, _: Option<u16>, to: SocketAddr) -> Result<(), SocketError> {
        self.opened.push((id, to));
        Ok(())
    }
    fn echo_open(&mut self, _: FlowId, _: IpAddr) -> Result<(), SocketError> {
        Err(SocketError::Failed)
    }
    fn datagram_dont_fragment(&mut self, _: FlowId, _: bool) {}
    fn datagram_send(&mut self, _: FlowId, bytes: &[u8]) -> Result<(), SocketError> {
        self.sent.push(bytes.to_vec());
        Ok(())
    }
    fn datagram_receive(&mut self, _: FlowId, buffer: &mut [u8]) -> Received {
        let Some(answer) = self.answers.pop_front() else { return Received::Nothing };
        buffer[..answer.len()].copy_from_slice(&answer);
        Received::Datagram(answer.len())
    }
    fn close(&mut self, _: FlowId, _: bool) {}
    fn random(&mut self) -> u64 {
        self.drawn += 7919;
        self.drawn
    }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

struct Bed {
    stack: Stack,
    world: World,
    now_us: u64,
}

impl Bed {
    fn new() -> Self {
        let v6 = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        let member = |last: u8| Member { v4: v4(last), v6: v6(last.into()), ipv6: true, mac: [2, 0, 0, 0, 0, last] };
        let stack = Stack::new(Config {
            v4: Side { gateway: v4(1), dns: DNS, prefix: 24 },
            v6: Side { gateway: v6(1), dns: v6(3), prefix: 64 },
            members: [member(ONE), member(OTHER)].into_iter().collect(),
            gateway_mac: [4; 6],
            mtu: 1500,
            mss: 1460,
            host_loopback: false,
            internal: false,
            peek_offset: true,
            resolvers: vec![RESOLVER],
            resolvers_of_one: BTreeMap::new(),
            names: Names::default(),
            limits: Limits { tcp: 16, half_open: 16, udp: 16, echo: 4, dns: 4, new_flows_per_s: 1000 },
        });
        Bed { stack, world: World::default(), now_us: 1_000_000 }
    }

    /// Lets the first member reach what these rules have, and nothing else.
    fn restrict(&mut self, rules: &[&str]) {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        self.stack.set_egress(&[(v4(ONE), rules)].into());
    }

    fn frame(&mut self, head: &Header, payload: &[u8]) -> Vec<Vec<u8>> {
        self.world.frames.clear();
        self.stack.frame_in(self.now_us, &[head.as_slice(), payload].concat(), &mut self.world);
        self.stack.end_batch(self.now_us, &mut self.world);
        std::mem::take(&mut self.world.frames)
    }

    fn head(mac: u8, checksum: usize, transport_len: usize) -> Header {
        let start = ethernet::LEN + ip::V4_LEN;
        let mut head = Header::new();
        head.push(&vnet::partial(start, checksum, start + transport_len));
        head.push(&ethernet::header([4; 6], [2, 0, 0, 0, 0, mac], ethernet::IPV4));
        head
    }

    /// A datagram with the MAC of one member and the address of one, which may be another.
    fn datagram_of(&mut self, (mac, from): (u8, u8), port: u16, to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<Vec<u8>> {
        let (source, destination) = ((v4(from).into(), port), (to.0.into(), to.1));
        let mut head = Self::head(mac, udp::CHECKSUM_OFFSET, udp::LEN);
        ip::write(&mut head, source.0, destination.0, ip::UDP, udp::LEN + payload.len(), 64);
        udp::write(&mut head, source, destination, payload.len());
        self.frame(&head, payload)
    }

    fn datagram(&mut self, from: u8, port: u16, to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<Vec<u8>> {
        self.datagram_of((from, from), port, to, payload)
    }

    fn syn(&mut self, from: u8, port: u16, to: (Ipv4Addr, u16)) -> Vec<Vec<u8>> {
        let syn = Some(SynOptions { mss: Some(1460), window_shift: Some(7) });
        let (source, destination) = ((v4(from).into(), port), (to.0.into(), to.1));
        let (seq, ack) = (SeqNumber(1), SeqNumber(0));
        let outgoing = Outgoing { source, destination, seq, ack, flags: SYN, window: 4000, syn };
        let mut head = Self::head(from, tcp::CHECKSUM_OFFSET, outgoing.header_len());
        ip::write(&mut head, source.0, destination.0, ip::TCP, outgoing.header_len(), 64);
        outgoing.write(&mut head, 0);
        self.frame(&head, &[])
    }

    /// Asks for a name's IPv4 addresses; what is told at once.
    fn ask(&mut self, from: u8, name: &str) -> Option<Message> {
        let mut message = Message::query();
        message.add_query(Query::query(name.parse().unwrap(), RecordType::A));
        let frames = self.datagram(from, 5353, (DNS, 53), &message.to_vec().unwrap());
        frames.first().map(|frame| dns_of(frame))
    }

    /// The resolver answers the question that it was sent last; what the member is told.
    fn resolve(&mut self, address: Ipv4Addr, ttl_s: u32) -> Message {
        let mut answer = Message::from_vec(self.world.sent.last().unwrap()).unwrap();
        let name = answer.queries[0].name().clone();
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.truncation = true;
        answer.add_answer(Record::from_rdata(name, ttl_s, RData::A(A(address))));
        self.world.answers.push_back(answer.to_vec().unwrap());
        self.world.frames.clear();
        let id = self.world.opened.last().unwrap().0;
        self.stack.socket_ready(self.now_us, id, Readiness { readable: true, writable: false }, &mut self.world);
        dns_of(&self.world.frames[0])
    }

    fn opened(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.world.opened).into_iter().map(|(_, to)| to).collect()
    }

    /// How many flows a member has.
    fn held(&self, member: u8, protocol: Protocol) -> usize {
        let mut next = FlowId(0);
        let mut count = 0;
        while let Some((FlowId(number), flow)) = self.stack.next_flow(self.now_us, next) {
            next = FlowId(number + 1);
            let is =
                flow.protocol == protocol && flow.container.ip() == v4(member) && !flow.state.starts_with("REFUSED");
            count += usize::from(is);
        }
        count
    }
}

fn dns_of(frame: &[u8]) -> Message {
    Message::from_vec(&frame[vnet::LEN + ethernet::LEN + ip::V4_LEN + udp::LEN..]).unwrap()
}

/// Whether the only frame is ICMP's "communication administratively prohibited" (RFC 1812 §5.2.7.1).
fn is_prohibited(frames: &[Vec<u8>]) -> bool {
    let packet = &frames[0][vnet::LEN + ethernet::LEN..];
    frames.len() == 1 && packet[9] == ip::ICMP && packet[ip::V4_LEN..ip::V4_LEN + 2] == [3, 13]
}

#[test]
fn an_address_is_reached_once_its_name_was_answered() {
    let mut bed = Bed::new();
    bed.restrict(&["*.example.org:443"]);
    assert!(is_prohibited(&bed.datagram(ONE, 5000, (SITE, 443), b"x")));
    assert!(is_prohibited(&bed.syn(ONE, 5000, (SITE, 443))));
    assert_eq!(bed.opened(), []);

    assert!(bed.ask(ONE, "www.Example.org.").is_none(), "it is asked for elsewhere");
    let told = bed.resolve(SITE, 300);
    assert!(!told.metadata.truncation && told.answers.len() == 1);
    assert_eq!(bed.opened(), [RESOLVER]);
    assert!(bed.datagram(ONE, 5000, (SITE, 443), b"x").is_empty() && bed.syn(ONE, 5000, (SITE, 443)).is_empty());
    assert_eq!(bed.opened(), [SocketAddr::from((SITE, 443)); 2]);
    assert!(is_prohibited(&bed.syn(ONE, 5001, (SITE, 80))));
    // A flow that has begun goes on when the name's time is over; none begins.
    bed.now_us += 301_000_000;
    assert!(bed.datagram(ONE, 5000, (SITE, 443), b"x").is_empty());
    assert!(is_prohibited(&bed.datagram(ONE, 5001, (SITE, 443), b"x")));

    let refused = bed.ask(ONE, "www.example.net.").unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(bed.stack.traffic(v4(ONE).into()).unwrap().prohibited, 5);
}

#[test]
fn what_the_owner_of_a_name_answers_does_not_open_the_host() {
    let mut bed = Bed::new();
    bed.restrict(&["*"]);
    for address in [v4(1), v4(OTHER), Ipv4Addr::LOCALHOST] {
        assert!(bed.ask(ONE, "evil.example.").is_none());
        bed.resolve(address, 300);
    }
    bed.opened();
    for address in [v4(1), v4(OTHER), Ipv4Addr::LOCALHOST] {
        bed.syn(ONE, 5000, (address, 443));
        assert_eq!(bed.opened(), [], "{address}");
    }
}

#[test]
fn who_has_no_rules_reaches_what_others_may_not() {
    let mut bed = Bed::new();
    bed.restrict(&[]);
    assert!(is_prohibited(&bed.syn(ONE, 5000, (SITE, 443))));
    assert!(bed.syn(OTHER, 5000, (SITE, 443)).is_empty());
    assert_eq!(bed.opened(), [SocketAddr::from((SITE, 443))]);
    assert_eq!(bed.stack.traffic(v4(OTHER).into()).unwrap().prohibited, 0);
    // It is shown as a flow for a while.
    let (number, flow) = bed.stack.next_flow(bed.now_us, FlowId(1)).unwrap();
    assert_eq!((flow.state, flow.remote), ("REFUSED (no rule)", SocketAddr::from((SITE, 443))));
    assert!(flow.container == SocketAddr::from((v4(ONE), 5000)) && !flow.inward);
    assert!(bed.stack.next_flow(bed.now_us, FlowId(number.0 + 1)).is_none());
    bed.now_us += 61_000_000;
    assert!(bed.stack.next_flow(bed.now_us, number).is_none());
}

#[test]
fn nobody_speaks_for_another() {
    let mut bed = Bed::new();
    bed.restrict(&[]);
    assert!(bed.datagram_of((ONE, OTHER), 5000, (SITE, 443), b"x").is_empty());
    assert_eq!((bed.opened(), bed.stack.counters().forbidden), (vec![], 1));
    assert_eq!(bed.stack.traffic(v4(OTHER).into()).unwrap().from_frames, 0);
}

#[test]
fn one_member_leaves_room_for_the_others() {
    let mut bed = Bed::new();
    for port in 5000..5100 {
        bed.datagram(ONE, port, (SITE, 443), b"x");
        bed.syn(ONE, port, (SITE, 443));
    }
    assert_eq!((bed.held(ONE, Protocol::Udp), bed.held(ONE, Protocol::Tcp)), (8, 8), "half of each table");
    for port in 5000..5004 {
        bed.datagram(OTHER, port, (SITE, 443), b"x");
        bed.syn(OTHER, port, (SITE, 443));
    }
    assert_eq!((bed.held(OTHER, Protocol::Udp), bed.held(OTHER, Protocol::Tcp)), (4, 4));
    assert_eq!((bed.held(ONE, Protocol::Udp), bed.held(ONE, Protocol::Tcp)), (8, 8), "which it keeps");
    assert_eq!(bed.stack.traffic(v4(OTHER).into()).unwrap().refused, 0);
    // What has gone is there for others again.
    bed.now_us += 200_000_000;
    bed.stack.tick(bed.now_us, &mut bed.world);
    assert_eq!(bed.stack.flows(), 0);
    bed.syn(ONE, 5000, (SITE, 443));
    assert_eq!(bed.held(ONE, Protocol::Tcp), 1);
}

#[test]
fn a_datagram_larger_than_the_mtu_comes_in_fragments() {
    let mut bed = Bed::new();
    assert!(bed.datagram(ONE, 5000, (SITE, 9), b"x").is_empty());
    let answer: Vec<u8> = (0..4000_u32).map(|number| (number * 7 % 251) as u8).collect();
    bed.world.answers.push_back(answer.clone());
    let id = bed.world.opened.last().unwrap().0;
    bed.stack.socket_ready(bed.now_us, id, Readiness { readable: true, writable: false }, &mut bed.world);
    let packets: Vec<&[u8]> = bed.world.frames.iter().map(|frame| &frame[vnet::LEN + ethernet::LEN..]).collect();
    let mut whole = Vec::new();
    let mut first = None;
    for (number, packet) in packets.iter().enumerate() {
        let (header, body) = Ipv4Header::from_slice(packet).unwrap();
        assert!(packet.len() <= 1500 && header.header_checksum == header.calc_header_checksum());
        assert_eq!(usize::from(header.fragment_offset.byte_offset()), whole.len());
        assert_eq!(header.more_fragments, number + 1 < packets.len());
        whole.extend_from_slice(body);
        assert_eq!(header.identification, first.get_or_insert(header.clone()).identification);
    }
    let (udp, payload) = UdpHeader::from_slice(&whole).unwrap();
    assert_eq!((packets.len(), payload), (3, answer.as_slice()));
    assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&first.unwrap(), payload).unwrap());
}
