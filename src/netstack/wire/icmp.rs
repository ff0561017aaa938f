//! ICMP (RFC 792), ICMPv6 (RFC 4443) and the one part of neighbour discovery (RFC 4861) that is answered.

use std::net::{IpAddr, Ipv6Addr};

use super::checksum;
use super::ethernet::Mac;
use super::ip;

/// An echo request or reply.
#[derive(Clone, Copy, Debug)]
pub struct Echo<'a> {
    /// Identifier, chosen by the sender.
    pub id: u16,
    /// Sequence number.
    pub sequence: u16,
    /// What is to come back.
    pub data: &'a [u8],
}

/// Why a destination cannot be reached, in the words of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route.
    Network,
    /// The host does not answer.
    Host,
    /// Nothing listens on the port.
    Port,
    /// Forbidden by policy.
    Prohibited,
    /// The protocol is not carried.
    Protocol,
    /// The packet is too large for its way and must not be cut.
    TooBig {
        /// What would fit, in bytes.
        mtu: u32,
    },
}

impl Unreachable {
    /// Type and code: RFC 792 and 1812 §5.2.7.1 for IPv4, RFC 4443 §3.1, §3.2 and §3.4 for IPv6.
    pub fn code(self, v6: bool) -> (u8, u8) {
        match (self, v6) {
            (Unreachable::Network, false) => (3, 0),
            (Unreachable::Host, false) => (3, 1),
            (Unreachable::Protocol, false) => (3, 2),
            (Unreachable::Port, false) => (3, 3),
            (Unreachable::Prohibited, false) => (3, 13),
            (Unreachable::Network, true) => (1, 0),
            (Unreachable::Host, true) => (1, 3),
            (Unreachable::Port, true) => (1, 4),
            (Unreachable::Prohibited, true) => (1, 1),
            (Unreachable::Protocol, true) => (4, 1),
            (Unreachable::TooBig { .. }, false) => (3, 4),
            (Unreachable::TooBig { .. }, true) => (2, 0),
        }
    }

    /// The four bytes after type, code and checksum: the MTU (RFC 1191 §4, RFC 4443 §3.2), else nothing. No path of IPv6 has
    /// one below 1280.
    pub fn rest(self, v6: bool) -> [u8; 4] {
        match self {
            Unreachable::TooBig { mtu } if v6 => mtu.max(1280).to_be_bytes(),
            Unreachable::TooBig { mtu } => mtu.min(0xffff).to_be_bytes(),
            _ => [0; 4],
        }
    }
}

/// Reads an echo request of either family whose checksum holds; `None` for everything else.
pub fn parse_echo_request<'a>(packet: &ip::Packet<'a>) -> Option<Echo<'a>> {
    let request = if packet.protocol == ip::ICMPV6 { 128 } else { 8 };
    if !checksum_holds(packet) {
        return None;
    }
    parse_echo(packet.payload, request)
}

/// Reads an echo message of type `kind`, without looking at its checksum.
pub fn parse_echo(bytes: &[u8], kind: u8) -> Option<Echo<'_>> {
    if bytes.len() < 8 || bytes[0] != kind || bytes[1] != 0 {
        return None;
    }
    Some(Echo { id: super::be16(bytes, 4), sequence: super::be16(bytes, 6), data: &bytes[8..] })
}

fn checksum_holds(packet: &ip::Packet<'_>) -> bool {
    let pseudo = match packet.protocol {
        ip::ICMPV6 => checksum::pseudo(packet.source, packet.destination, ip::ICMPV6, packet.payload.len()),
        _ => 0,
    };
    checksum::holds(pseudo, packet.payload)
}

/// The 8 bytes in front of `body` for a message of this type and code with these four bytes of rest-of-header.
pub fn header(source: IpAddr, destination: IpAddr, kind: (u8, u8), rest: [u8; 4], body: &[u8]) -> [u8; 8] {
    let mut header = [kind.0, kind.1, 0, 0, rest[0], rest[1], rest[2], rest[3]];
    let pseudo = match source {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => checksum::pseudo(source, destination, ip::ICMPV6, 8 + body.len()),
    };
    let check = !checksum::fold(pseudo + checksum::sum(&header) + checksum::sum(body));
    header[2..4].copy_from_slice(&check.to_be_bytes());
    header
}

/// The address a neighbour solicitation asks for; `None` for anything else. RFC 4861 §7.1.1.
pub fn parse_solicitation(packet: &ip::Packet<'_>) -> Option<Ipv6Addr> {
    let bytes = packet.payload;
    if packet.hop_limit != 255 || bytes.len() < 24 || bytes[..2] != [135, 0] || !checksum_holds(packet) {
        return None;
    }
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[8..24]);
    Some(Ipv6Addr::from(octets))
}

/// The body of the advertisement that `target` is at `mac`: goes behind a header of type 136 with the flags router,
/// solicited and override. RFC 4861 §4.4.
pub fn advertisement(target: Ipv6Addr, mac: Mac) -> [u8; 24] {
    let mut body = [0; 24];
    body[..16].copy_from_slice(&target.octets());
    body[16..18].copy_from_slice(&[2, 1]);
    body[18..].copy_from_slice(&mac);
    body
}
