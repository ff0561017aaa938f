//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{be16, checksum};

/// Length of the IPv4 header we write (no options).
pub const V4_LEN: usize = 20;
/// Length of the IPv6 header.
pub const V6_LEN: usize = 40;
/// Protocol numbers that are understood.
pub const ICMP: u8 = 1;
/// Transmission Control Protocol.
pub const TCP: u8 = 6;
/// User Datagram Protocol.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub const ICMPV6: u8 = 58;

/// A packet whose lengths fit the bytes present.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol of the payload; for IPv6 the next header, extension headers are not skipped.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub hop_limit: u8,
    /// What follows the header, without padding of the frame.
    pub payload: &'a [u8],
    /// The packet from its header on, without padding of the frame.
    pub whole: &'a [u8],
}

/// Why a packet is not processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A length, version or checksum is wrong.
    Malformed,
    /// A part of a fragmented packet.
    Fragment,
    /// Options that steer the packet's way.
    SourceRoute,
}

/// Reads an IPv4 packet.
pub fn parse_v4(bytes: &[u8]) -> Result<Packet<'_>, Refusal> {
    let first = *bytes.first().ok_or(Refusal::Malformed)?;
    let header_len = usize::from(first & 15) * 4;
    let total = usize::from(be16(bytes, 2));
    if first >> 4 != 4 || header_len < V4_LEN || total < header_len || bytes.len() < total {
        return Err(Refusal::Malformed);
    }
    if !checksum::holds(0, &bytes[..header_len]) {
        return Err(Refusal::Malformed);
    }
    // More-fragments bit or an offset.
    if be16(bytes, 6) & 0x3fff != 0 {
        return Err(Refusal::Fragment);
    }
    if source_routed(&bytes[V4_LEN..header_len]) {
        return Err(Refusal::SourceRoute);
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]));
    Ok(Packet {
        source: address(12),
        destination: address(16),
        protocol: bytes[9],
        hop_limit: bytes[8],
        payload: &bytes[header_len..total],
        whole: &bytes[..total],
    })
}

/// Whether IPv4 options contain loose (131) or strict (137) source routing, or cannot be read to their end.
fn source_routed(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        let length = match kind {
            0 => return false,
            1 => 1,
            131 | 137 => return true,
            _ => usize::from(options.get(1).copied().unwrap_or(0)),
        };
        if length == 0 || (kind != 1 && length < 2) || length > options.len() {
            return true;
        }
        options = &options[length..];
    }
    false
}

/// Reads an IPv6 packet.
pub fn parse_v6(bytes: &[u8]) -> Result<Packet<'_>, Refusal> {
    if bytes.len() < V6_LEN || bytes[0] >> 4 != 6 {
        return Err(Refusal::Malformed);
    }
    let end = V6_LEN + usize::from(be16(bytes, 4));
    let whole = bytes.get(..end).ok_or(Refusal::Malformed)?;
    if bytes[6] == 44 {
        return Err(Refusal::Fragment);
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    Ok(Packet {
        source: address(8),
        destination: address(24),
        protocol: bytes[6],
        hop_limit: bytes[7],
        payload: &whole[V6_LEN..],
        whole,
    })
}

/// Appends the header for a payload of `payload_len` bytes: don't fragment, id 0, no ECN. Both addresses must have the
/// same family.
pub fn write(out: &mut Header, source: IpAddr, destination: IpAddr, protocol: u8, payload_len: usize, hop_limit: u8) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; V4_LEN];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((V4_LEN + payload_len) as u16).to_be_bytes());
            header[6] = 0x40;
            header[8] = hop_limit;
            header[9] = protocol;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let check = checksum::finish(0, &header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            out.push(&header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = [0; V6_LEN];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
            header[6] = protocol;
            header[7] = hop_limit;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            out.push(&header);
        }
        _ => debug_assert!(false, "a packet has one family"),
    }
}

/// The headers of one outgoing frame, built from the outside in.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Header {
    /// vnet + Ethernet + IPv6 + TCP with the options we send, rounded up.
    pub const MAX: usize = 128;

    /// An empty one.
    pub fn new() -> Self {
        Header { bytes: [0; Self::MAX], len: 0 }
    }

    /// Appends bytes; what exceeds [`Self::MAX`] is a bug of the caller and is left out.
    pub fn push(&mut self, part: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + part.len()) {
            room.copy_from_slice(part);
            self.len += part.len();
        } else {
            debug_assert!(false, "headers exceed {} bytes", Self::MAX);
        }
    }

    /// What was appended.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}
