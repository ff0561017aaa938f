//! The network stack under a container that writes any frame, clients of a published port and a world that answers
//! anything: no panic, no growth beyond its tables.
//!
//! The input is a list of acts: a kind, a length (two bytes, little endian), that many bytes.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::wire::{checksum, ethernet, ip, vnet};
use netstack::{
    Config, FlowId, Host, Limits, Member, Names, Peek, Readiness, Received, Side, SocketError, Stack, TapFull, Target, Wrote,
};

/// A world that takes its answers from the input.
struct World<'a>(&'a [u8]);

impl World<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    fn outcome(&mut self) -> Result<(), SocketError> {
        match self.byte() % 8 {
            1 => Err(SocketError::Refused),
            2 => Err(SocketError::NetworkUnreachable),
            3 => Err(SocketError::TimedOut),
            4 => Err(SocketError::Prohibited),
            _ => Ok(()),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(usize::from(self.byte())).min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        buffer[..count].copy_from_slice(taken);
        self.0 = rest;
        count
    }
}

impl Host for World<'_> {
    fn transmit(&mut self, _: &[u8], _: &[u8]) -> Result<(), TapFull> {
        if self.byte() == 255 { Err(TapFull) } else { Ok(()) }
    }
    fn primary_address(&mut self, _: IpAddr) -> Option<IpAddr> {
        Some(Ipv4Addr::new(192, 0, 2, 1).into())
    }
    fn tcp_connect(&mut self, _: FlowId, _: SocketAddr) -> Result<(), SocketError> {
        self.outcome()
    }
    fn tcp_connected(&mut self, _: FlowId) -> Result<(), SocketError> {
        self.outcome()
    }
    fn tcp_peek(&mut self, _: FlowId, _: usize, buffer: &mut [u8]) -> Peek {
        match self.byte() % 4 {
            0 => Peek::Nothing,
            1 => Peek::End,
            2 => Peek::Broken,
            _ => match self.fill(buffer) {
                0 => Peek::Nothing,
                count => Peek::Data(count),
            },
        }
    }
    fn tcp_consume(&mut self, _: FlowId, _: usize) -> bool {
        self.byte() != 255
    }
    fn tcp_write(&mut self, _: FlowId, bytes: &[u8]) -> Wrote {
        match self.byte() {
            255 => Wrote::Broken,
            count => Wrote::Taken(bytes.len().min(count.into())),
        }
    }
    fn tcp_room(&mut self, _: FlowId) -> u32 {
        u32::from(self.byte()) << 8
    }
    fn tcp_shutdown(&mut self, _: FlowId) {}
    fn udp_open(&mut self, _: FlowId, _: Option<u16>, _: SocketAddr) -> Result<(), SocketError> {
        self.outcome()
    }
    fn echo_open(&mut self, _: FlowId, _: IpAddr) -> Result<(), SocketError> {
        self.outcome()
    }
    fn datagram_dont_fragment(&mut self, _: FlowId, _: bool) {}
    fn datagram_send(&mut self, _: FlowId, _: &[u8]) -> Result<(), SocketError> {
        self.outcome()
    }
    fn datagram_receive(&mut self, _: FlowId, buffer: &mut [u8]) -> Received {
        match self.byte() % 4 {
            0 => Received::Nothing,
            1 => Received::Failed(SocketError::Refused),
            _ => Received::Datagram(self.fill(buffer)),
        }
    }
    fn close(&mut self, _: FlowId, _: bool) {}
    fn random(&mut self) -> u64 {
        u64::from(self.byte())
    }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

fn member(last: u8) -> Member {
    Member { v4: v4(last), v6: v6(last.into()), ipv6: true, mac: [2, 0, 0, 0, 0, last] }
}

fn config() -> Config {
    Config {
        v4: Side { gateway: v4(1), dns: v4(3), prefix: 24 },
        v6: Side { gateway: v6(1), dns: v6(3), prefix: 64 },
        members: [member(2), member(4)].into_iter().collect(),
        gateway_mac: [2, 0, 0, 0, 0, 1],
        mtu: 65_520,
        mss: 1460,
        host_loopback: false,
        internal: false,
        peek_offset: true,
        resolvers: vec![SocketAddr::from(([192, 0, 2, 53], 53))],
        resolvers_of_one: Default::default(),
        names: Names { of_all: vec![("web".to_owned(), vec![v4(2).into()])], ..Names::default() },
        limits: Limits { tcp: 8, half_open: 4, udp: 8, echo: 2, dns: 4, new_flows_per_s: 1000 },
    }
}

/// A frame with an IPv4 packet, whole or a fragment, of the container's: its checksum holds, which chance does not find.
fn packet(bytes: &[u8]) -> Option<Vec<u8>> {
    let (fields, payload) = bytes.split_at_checked(6)?;
    let mut frame = vec![0; vnet::LEN];
    frame.extend(ethernet::header([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], ethernet::IPV4));
    let mut header = [0; ip::V4_LEN];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((ip::V4_LEN + payload.len()) as u16).to_be_bytes());
    header[4..10].copy_from_slice(fields);
    header[12..16].copy_from_slice(&v4(2).octets());
    header[16..20].copy_from_slice(&[192, 0, 2, 9]);
    let check = checksum::finish(0, &header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    frame.extend(header);
    frame.extend(payload);
    Some(frame)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut stack = Stack::new(config());
    let mut world = World(input);
    let mut now_us = 0;
    while !world.0.is_empty() {
        let kind = world.byte();
        let length = usize::from(u16::from_le_bytes([world.byte(), world.byte()])).min(world.0.len());
        match kind % 4 {
            0 | 1 => {
                let (bytes, rest) = world.0.split_at(length);
                world.0 = rest;
                let packet = packet(bytes).filter(|_| kind & 4 != 0);
                stack.frame_in(now_us, packet.as_deref().unwrap_or(bytes), &mut world);
            }
            2 if kind & 16 != 0 => {
                let client = if kind & 4 != 0 { v6(9).into() } else { IpAddr::from(v4(9)) };
                let target = Target { container: v4(2), port: 80 };
                stack.accept(now_us, (client, length as u16).into(), target, &mut world, |_, _| kind & 8 == 0);
            }
            2 if kind & 32 != 0 => {
                let members = [2, 4].into_iter().filter(|last| kind & last == 0).map(member).collect();
                stack.set_members(now_us, members, &mut world);
            }
            2 => {
                let readiness = Readiness { readable: kind & 4 != 0, writable: kind & 8 != 0 };
                stack.socket_ready(now_us, FlowId(length as u32 % 22), readiness, &mut world);
            }
            _ => {
                now_us += length as u64 * 1000;
                stack.tick(now_us, &mut world);
            }
        }
        stack.end_batch(now_us, &mut world);
        assert!(stack.flows() <= 22, "more flows than the tables hold");
    }
});
