//! The data path allocates nothing: a flow that is under way costs no allocation, whatever it carries and whichever way.
//!
//! The counter is the process's, so this has one thread and a `main` of its own.

use std::alloc::System;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::wire::ip::Header;
use netstack::wire::tcp::{ACK, Outgoing, SYN, SeqNumber, SynOptions};
use netstack::wire::{ethernet, ip, tcp, udp, vnet};
use netstack::{
    Config, FlowId, Host, Limits, Member, Names, Peek, Readiness, Received, Side, SocketError, Stack, TapFull, Wrote,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Packets of each kind that are counted, after as many that are not.
const PACKETS: usize = 10_000;
const PAYLOAD: [u8; 1000] = [7; 1000];
const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const TCP_PORT: u16 = 4000;
const UDP_PORT: u16 = 5000;

/// A host whose sockets take everything and have `offered` datagrams or bytes for the container.
#[derive(Default)]
struct World {
    tcp: Option<FlowId>,
    udp: Option<FlowId>,
    offered: usize,
    taken: usize,
    datagrams: usize,
    /// The last number that the stack's side of the connection has sent, and how many frames have gone out.
    last: u32,
    frames: usize,
}

impl Host for World {
    fn transmit(&mut self, head: &[u8], body: &[u8]) -> Result<(), TapFull> {
        self.frames += 1;
        let (_, _, packet) = ethernet::parse(&head[vnet::LEN..]).expect("an Ethernet header");
        if packet.get(9) == Some(&ip::TCP) {
            let number = packet.get(ip::V4_LEN + 4..ip::V4_LEN + 8).and_then(|field| field.try_into().ok());
            let flags = packet[ip::V4_LEN + 13];
            self.last =
                u32::from_be_bytes(number.expect("a TCP header")) + body.len() as u32 + u32::from(flags & SYN != 0);
        }
        Ok(())
    }
    fn primary_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        None
    }
    fn tcp_connect(&mut self, id: FlowId, _: SocketAddr) -> Result<(), SocketError> {
        self.tcp = Some(id);
        Ok(())
    }
    fn tcp_connected(&mut self, _: FlowId) -> Result<(), SocketError> {
        Ok(())
    }
    fn tcp_peek(&mut self, _: FlowId, offset: usize, buffer: &mut [u8]) -> Peek {
        match buffer.len().min(self.offered - offset.min(self.offered)) {
            0 => Peek::Nothing,
            count => {
                buffer[..count].fill(1);
                Peek::Data(count)
            }
        }
    }
    fn tcp_consume(&mut self, _: FlowId, count: usize) -> bool {
        self.offered -= count;
        true
    }
    fn tcp_write(&mut self, _: FlowId, bytes: &[u8]) -> Wrote {
        self.taken += bytes.len();
        Wrote::Taken(bytes.len())
    }
    fn tcp_room(&mut self, _: FlowId) -> u32 {
        1 << 20
    }
    fn tcp_shutdown(&mut self, _: FlowId) {}
    fn udp_open(&mut self, id: FlowId, _: Option<u16>, _: SocketAddr) -> Result<(), SocketError> {
        self.udp = Some(id);
        Ok(())
    }
    fn echo_open(&mut self, _: FlowId, _: IpAddr) -> Result<(), SocketError> {
        Err(SocketError::Failed)
    }
    fn datagram_dont_fragment(&mut self, _: FlowId, _: bool) {}
    fn datagram_send(&mut self, _: FlowId, _: &[u8]) -> Result<(), SocketError> {
        self.datagrams += 1;
        Ok(())
    }
    fn datagram_receive(&mut self, _: FlowId, buffer: &mut [u8]) -> Received {
        if self.offered == 0 {
            return Received::Nothing;
        }
        self.offered -= 1;
        buffer[..PAYLOAD.len()].copy_from_slice(&PAYLOAD);
        Received::Datagram(PAYLOAD.len())
    }
    fn close(&mut self, _: FlowId, _: bool) {}
    fn random(&mut self) -> u64 {
        1
    }
}

/// The stack, its host, and a container that sends what it is told.
struct Bed {
    stack: Stack,
    world: World,
    now_us: u64,
    /// The container's next number.
    next: u32,
}

impl Bed {
    fn new() -> Self {
        let side = |last| Ipv4Addr::new(10, 0, 0, last);
        let v6 = Ipv6Addr::UNSPECIFIED;
        let stack = Stack::new(Config {
            v4: Side { gateway: side(1), dns: side(3), prefix: 24 },
            v6: Side { gateway: v6, dns: v6, prefix: 64 },
            members: [Member { v4: CONTAINER, v6, ipv6: true, mac: [2; 6] }].into_iter().collect(),
            gateway_mac: [4; 6],
            mtu: 1500,
            mss: 1460,
            host_loopback: false,
            internal: false,
            peek_offset: true,
            resolvers: Vec::new(),
            resolvers_of_one: BTreeMap::new(),
            names: Names::default(),
            limits: Limits { tcp: 4, half_open: 4, udp: 4, echo: 1, dns: 1, new_flows_per_s: 100 },
        });
        Bed { stack, world: World::default(), now_us: 1_000_000, next: 1000 }
    }

    fn frame(&mut self, head: &Header, payload: &[u8]) {
        let mut frame = [0; 2048];
        let length = head.as_slice().len();
        frame[..length].copy_from_slice(head.as_slice());
        frame[length..length + payload.len()].copy_from_slice(payload);
        self.now_us += 10;
        self.stack.frame_in(self.now_us, &frame[..length + payload.len()], &mut self.world);
        self.stack.end_batch(self.now_us, &mut self.world);
        self.stack.tick(self.now_us, &mut self.world);
    }

    fn segment(&mut self, flags: u8, payload: &[u8], syn: Option<SynOptions>) {
        let outgoing = Outgoing {
            source: (CONTAINER.into(), TCP_PORT),
            destination: (REMOTE.into(), 80),
            seq: SeqNumber(self.next),
            ack: SeqNumber(self.world.last),
            flags,
            window: 4000,
            syn,
        };
        let mut head = Self::head(tcp::CHECKSUM_OFFSET, outgoing.header_len());
        ip::write(&mut head, CONTAINER.into(), REMOTE.into(), ip::TCP, outgoing.header_len() + payload.len(), 64);
        outgoing.write(&mut head, payload.len());
        self.next += payload.len() as u32 + u32::from(flags & SYN != 0);
        self.frame(&head, payload);
    }

    fn datagram(&mut self) {
        let mut head = Self::head(udp::CHECKSUM_OFFSET, udp::LEN);
        ip::write(&mut head, CONTAINER.into(), REMOTE.into(), ip::UDP, udp::LEN + PAYLOAD.len(), 64);
        udp::write(&mut head, (CONTAINER.into(), UDP_PORT), (REMOTE.into(), 53), PAYLOAD.len());
        self.frame(&head, &PAYLOAD);
    }

    fn head(checksum: usize, transport_len: usize) -> Header {
        let start = ethernet::LEN + ip::V4_LEN;
        let mut head = Header::new();
        head.push(&vnet::partial(start, checksum, start + transport_len));
        head.push(&ethernet::header([4; 6], [2; 6], ethernet::IPV4));
        head
    }

    fn ready(&mut self, flow: Option<FlowId>) {
        let readiness = Readiness { readable: true, writable: true };
        self.stack.socket_ready(self.now_us, flow.expect("the flow exists"), readiness, &mut self.world);
        self.stack.tick(self.now_us, &mut self.world);
    }

    /// Data of the container on its way to the host.
    fn upload(&mut self) {
        self.segment(ACK, &PAYLOAD, None);
    }

    /// Data of the host on its way to the container, and its acknowledgement.
    fn download(&mut self) {
        self.world.offered = PAYLOAD.len();
        self.ready(self.world.tcp);
        self.segment(ACK, &[], None);
    }

    fn datagram_back(&mut self) {
        self.world.offered = 1;
        self.ready(self.world.udp);
    }
}

/// Allocations of so many rounds, when as many have gone before; what they did is checked by the caller.
fn count(bed: &mut Bed, round: impl Fn(&mut Bed)) -> usize {
    for _ in 0..PACKETS {
        round(bed);
    }
    let region = Region::new(COUNTING);
    for _ in 0..PACKETS {
        round(bed);
    }
    let change = region.change();
    change.allocations + change.reallocations
}

fn a_flow_under_way_allocates_nothing() {
    let mut bed = Bed::new();
    bed.segment(SYN, &[], Some(SynOptions { mss: Some(1460), window_shift: Some(7) }));
    bed.ready(bed.world.tcp);
    bed.segment(ACK, &[], None);
    let (before, frames) = (bed.world.taken, bed.world.frames);
    assert_eq!(count(&mut bed, Bed::upload), 0, "TCP of the container");
    assert_eq!(bed.world.taken - before, 2 * PACKETS * PAYLOAD.len(), "it has arrived");
    assert!(bed.world.frames > frames, "it was acknowledged");
    let frames = bed.world.frames;
    assert_eq!(count(&mut bed, Bed::download), 0, "TCP to the container");
    assert!(bed.world.frames - frames >= 2 * PACKETS && bed.world.offered == 0, "it has gone out");

    bed.datagram();
    assert_eq!(count(&mut bed, Bed::datagram), 0, "UDP of the container");
    assert_eq!(bed.world.datagrams, 2 * PACKETS + 1);
    let frames = bed.world.frames;
    assert_eq!(count(&mut bed, Bed::datagram_back), 0, "UDP to the container");
    assert_eq!(bed.world.frames - frames, 2 * PACKETS);
    assert_eq!(bed.stack.flows(), 2, "they are still there");
}

fn main() {
    let region = Region::new(COUNTING);
    drop(vec![0_u8; 100]);
    assert!(region.change().allocations >= 1, "the counter counts");
    a_flow_under_way_allocates_nothing();
    println!("test a_flow_under_way_allocates_nothing ... ok");
    println!("test result: ok. 1 passed; 0 failed");
}
