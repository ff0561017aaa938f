//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{be16, be32, checksum};

/// Length of the IPv4 header we write (no options).
pub const V4_LEN: usize = 20;
/// Length of the IPv6 header.
pub const V6_LEN: usize = 40;
/// Length of IPv6's fragment header.
pub const FRAGMENT_LEN: usize = 8;
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
    /// The protocol of the payload.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub hop_limit: u8,
    /// Whether it must not be cut on its way: the bit of IPv4, and IPv6 unless it was in fragments.
    pub dont_fragment: bool,
    /// What follows the header and IPv6's extension headers, without padding of the frame.
    pub payload: &'a [u8],
    /// The packet from its header on, without padding of the frame.
    pub whole: &'a [u8],
}

/// A part of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol of the packet; in IPv6 the header that follows in the first fragment.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub hop_limit: u8,
    /// What the packet's fragments have in common.
    pub id: u32,
    /// Where in the packet's payload it belongs, in bytes.
    pub offset: usize,
    /// Whether others follow behind it.
    pub more: bool,
    /// What it brings.
    pub payload: &'a [u8],
}

/// What a packet's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'a> {
    /// A packet.
    Whole(Packet<'a>),
    /// A fragment of one.
    Part(Fragment<'a>),
}

/// Why a packet is not processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A length, version or checksum is wrong.
    Malformed,
    /// Options that steer the packet's way.
    SourceRoute,
    /// An option that must be understood and is not.
    Option,
}

/// Reads an IPv4 packet.
pub fn parse_v4(bytes: &[u8]) -> Result<Parsed<'_>, Refusal> {
    let first = *bytes.first().ok_or(Refusal::Malformed)?;
    let header_len = usize::from(first & 15) * 4;
    let total = usize::from(be16(bytes, 2));
    if first >> 4 != 4 || header_len < V4_LEN || total < header_len || bytes.len() < total {
        return Err(Refusal::Malformed);
    }
    if !checksum::holds(0, &bytes[..header_len]) {
        return Err(Refusal::Malformed);
    }
    if source_routed(&bytes[V4_LEN..header_len]) {
        return Err(Refusal::SourceRoute);
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]));
    let (source, destination) = (address(12), address(16));
    let (protocol, hop_limit, payload) = (bytes[9], bytes[8], &bytes[header_len..total]);
    let word = be16(bytes, 6);
    let (dont_fragment, more, offset) = (word & 0x4000 != 0, word & 0x2000 != 0, usize::from(word & 0x1fff) * 8);
    if more || offset > 0 {
        let id = be16(bytes, 4).into();
        return Ok(Parsed::Part(Fragment { source, destination, protocol, hop_limit, id, offset, more, payload }));
    }
    let whole = &bytes[..total];
    Ok(Parsed::Whole(Packet { source, destination, protocol, hop_limit, dont_fragment, payload, whole }))
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

/// Extension headers of IPv6 (RFC 8200 §4) that are looked through.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// How many of them; a packet with more is none that anybody needs.
const EXTENSIONS_MAX: usize = 8;

/// Reads an IPv6 packet.
pub fn parse_v6(bytes: &[u8]) -> Result<Parsed<'_>, Refusal> {
    if bytes.len() < V6_LEN || bytes[0] >> 4 != 6 {
        return Err(Refusal::Malformed);
    }
    let end = V6_LEN + usize::from(be16(bytes, 4));
    let whole = bytes.get(..end).ok_or(Refusal::Malformed)?;
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (source, destination, hop_limit) = (address(8), address(24), bytes[7]);
    let (mut next, mut rest, mut dont_fragment) = (bytes[6], &whole[V6_LEN..], true);
    for number in 0..=EXTENSIONS_MAX {
        if ![HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION].contains(&next) {
            let (protocol, payload) = (next, rest);
            return Ok(Parsed::Whole(Packet {
                source,
                destination,
                protocol,
                hop_limit,
                dont_fragment,
                payload,
                whole,
            }));
        }
        let length = if next == FRAGMENT { 8 } else { usize::from(rest.get(1).copied().unwrap_or(0)) * 8 + 8 };
        let (header, payload) = rest.split_at_checked(length).ok_or(Refusal::Malformed)?;
        match next {
            HOP_BY_HOP if number > 0 => return Err(Refusal::Malformed),
            // Where it was to go on the way it has been, unless segments are left (RFC 8200 §4.4, RFC 5095).
            ROUTING if header[3] != 0 => return Err(Refusal::SourceRoute),
            ROUTING => {}
            FRAGMENT => {
                let word = be16(header, 2);
                let (offset, more) = (usize::from(word & 0xfff8), word & 1 != 0);
                if more || offset > 0 {
                    let (protocol, id) = (header[0], be32(header, 4));
                    let part = Fragment { source, destination, protocol, hop_limit, id, offset, more, payload };
                    return Ok(Parsed::Part(part));
                }
                // One that is whole (RFC 6946).
                dont_fragment = false;
            }
            _ => options(&header[2..])?,
        }
        (next, rest) = (header[0], payload);
    }
    Err(Refusal::Malformed)
}

/// Looks through the options of an extension header. The two highest bits of an unknown one say what becomes of the packet
/// (RFC 8200 §4.2); none says anything that we do.
fn options(mut options: &[u8]) -> Result<(), Refusal> {
    while let Some(&kind) = options.first() {
        let length = if kind == 0 { 1 } else { usize::from(*options.get(1).ok_or(Refusal::Malformed)?) + 2 };
        if kind >> 6 != 0 {
            return Err(Refusal::Option);
        }
        options = options.get(length..).ok_or(Refusal::Malformed)?;
    }
    Ok(())
}

/// Appends the header for a payload of `payload_len` bytes: don't fragment, id 0, no ECN. Both addresses must have the
/// same family.
pub fn write(out: &mut Header, source: IpAddr, destination: IpAddr, protocol: u8, payload_len: usize, hop_limit: u8) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.push(&v4_header((source, destination), protocol, payload_len, hop_limit, (0, 0x4000)));
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

/// Which part of its packet an outgoing fragment is.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What the packet's fragments have in common; IPv4 has room for its lower half.
    pub id: u32,
    /// Where in the packet's payload it begins, a multiple of 8 bytes.
    pub offset: u16,
    /// Whether others follow behind it.
    pub more: bool,
}

/// Appends the headers for a fragment of `length` bytes. Both addresses must have the same family.
pub fn write_fragment(out: &mut Header, (from, to): (IpAddr, IpAddr), protocol: u8, length: usize, part: Part) {
    const HOP_LIMIT: u8 = 64;
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        let word = (part.offset / 8) | if part.more { 0x2000 } else { 0 };
        out.push(&v4_header((from, to), protocol, length, HOP_LIMIT, (part.id as u16, word)));
        return;
    }
    write(out, from, to, FRAGMENT, FRAGMENT_LEN + length, HOP_LIMIT);
    let [high, low] = (part.offset | u16::from(part.more)).to_be_bytes();
    let [a, b, c, d] = part.id.to_be_bytes();
    out.push(&[protocol, 0, high, low, a, b, c, d]);
}

/// `identification` and the word of flags and offset behind it.
fn v4_header(
    (source, destination): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    payload_len: usize,
    hop_limit: u8,
    (identification, word): (u16, u16),
) -> [u8; V4_LEN] {
    let mut header = [0; V4_LEN];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((V4_LEN + payload_len) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].copy_from_slice(&word.to_be_bytes());
    header[8] = hop_limit;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let check = checksum::finish(0, &header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use etherparse::Ipv6Slice;
    use proptest::prelude::*;

    use super::*;

    /// An IPv6 packet with these extension headers (number, body behind the length byte) and a payload of UDP.
    fn packet(extensions: &[(u8, Vec<u8>)], payload: &[u8]) -> Vec<u8> {
        let mut header = Header::new();
        let (source, destination) = ("fd00::2".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let length = payload.len() + extensions.iter().map(|(_, body)| body.len() + 2).sum::<usize>();
        write(&mut header, source, destination, extensions.first().map_or(UDP, |(kind, _)| *kind), length, 64);
        let mut bytes = header.as_slice().to_vec();
        for (number, (kind, body)) in extensions.iter().enumerate() {
            bytes.push(extensions.get(number + 1).map_or(UDP, |(next, _)| *next));
            // The fragment header has a reserved byte there.
            bytes.push(if *kind == FRAGMENT { 0 } else { ((body.len() + 2) / 8).wrapping_sub(1) as u8 });
            bytes.extend_from_slice(body);
        }
        [&bytes, payload].concat()
    }

    fn parsed(bytes: &[u8]) -> Result<(u8, Vec<u8>, bool), Refusal> {
        match parse_v6(bytes)? {
            Parsed::Whole(packet) => Ok((packet.protocol, packet.payload.to_vec(), packet.dont_fragment)),
            Parsed::Part(part) => panic!("{part:?}"),
        }
    }

    proptest! {
        #[test]
        fn extension_headers_are_looked_through_as_by_an_independent_parser(
            kinds in proptest::collection::vec((0_usize..3, 0_usize..3), 0..6),
            by_hop in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let extension = |(kind, units): (usize, usize)| match [DESTINATION, ROUTING, FRAGMENT][kind] {
                FRAGMENT => (FRAGMENT, vec![0, 0, 1, 2, 3, 4]),
                ROUTING => (ROUTING, [&[4, 0][..], &vec![9; 4 + units * 8]].concat()),
                // PadN over all of it.
                other => (other, [&[1, 4 + units as u8 * 8][..], &vec![0; 4 + units * 8]].concat()),
            };
            let mut extensions: Vec<(u8, Vec<u8>)> = kinds.into_iter().map(extension).collect();
            if by_hop {
                // A router alert and Pad1 twice.
                extensions.insert(0, (HOP_BY_HOP, vec![5, 2, 0, 0, 0, 0]));
            }
            let bytes = packet(&extensions, &payload);
            let (protocol, own, whole) = parsed(&bytes).unwrap();
            prop_assert_eq!((protocol, &own), (UDP, &payload));
            prop_assert_eq!(whole, extensions.iter().all(|(kind, _)| *kind != FRAGMENT));
            if let Ok(slice) = Ipv6Slice::from_slice(&bytes) {
                prop_assert_eq!((slice.payload().ip_number.0, slice.payload().payload), (protocol, &own[..]));
            }
        }

        #[test]
        fn a_fragment_is_read_as_it_was_written(id: u32, unit in 0_u16..8191, more: bool, v6: bool, body in 1_usize..200) {
            let ends = if v6 { ["fd00::2", "2001:db8::1"] } else { ["10.0.0.2", "192.0.2.1"] };
            let ends: [IpAddr; 2] = ends.map(|address| address.parse().unwrap());
            let mut header = Header::new();
            write_fragment(&mut header, ends.into(), UDP, body, Part { id, offset: unit * 8, more });
            prop_assume!(more || unit > 0);
            let bytes = [header.as_slice(), &vec![7; body]].concat();
            let read = if v6 { parse_v6(&bytes) } else { parse_v4(&bytes) };
            let Ok(Parsed::Part(part)) = read else { panic!("{read:?}") };
            prop_assert_eq!((part.source, part.destination, part.protocol), (ends[0], ends[1], UDP));
            prop_assert_eq!((part.offset, part.more), (usize::from(unit) * 8, more));
            prop_assert_eq!((part.id, part.payload.len()), (if v6 { id } else { id & 0xffff }, body));
        }

        #[test]
        fn nothing_breaks_the_parsers(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in any::<u8>()) {
            let _ = (parse_v4(&bytes), parse_v6(&bytes));
            let _ = parse_v6(&packet(&[(kind, bytes)], &[]));
        }
    }

    #[test]
    fn what_steers_or_must_be_understood_is_refused() {
        let refusal = |extensions: &[(u8, Vec<u8>)]| parsed(&packet(extensions, b"data")).unwrap_err();
        assert_eq!(refusal(&[(ROUTING, vec![0, 1, 0, 0, 0, 0])]), Refusal::SourceRoute);
        // A jumbo payload, and a home address.
        assert_eq!(refusal(&[(HOP_BY_HOP, vec![0xc2, 4, 0, 1, 0, 0])]), Refusal::Option);
        assert_eq!(refusal(&[(DESTINATION, vec![0xc9, 4, 0, 0, 0, 0])]), Refusal::Option);
        let padding = || vec![1, 4, 0, 0, 0, 0];
        assert_eq!(refusal(&[(DESTINATION, padding()), (HOP_BY_HOP, padding())]), Refusal::Malformed);
        assert_eq!(refusal(&[(DESTINATION, vec![1, 9, 0, 0, 0, 0])]), Refusal::Malformed);
        assert_eq!(refusal(&vec![(DESTINATION, padding()); EXTENSIONS_MAX + 1]), Refusal::Malformed);
        assert!(parsed(&packet(&vec![(DESTINATION, padding()); EXTENSIONS_MAX], b"data")).is_ok());
    }
}
