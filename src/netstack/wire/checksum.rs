//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// The ones' complement sum of the bytes as big-endian 16-bit words, not folded; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0_u64;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        total += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let rest = chunks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to 16 bits, without inverting it.
pub fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over the pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => sum(&source.octets()) + sum(&destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => sum(&source.octets()) + sum(&destination.octets()),
        // One packet has one family; a mix cannot be built from a parsed packet or a flow.
        _ => 0,
    };
    addresses + u64::from(protocol) + length as u64
}

/// The checksum field for these bytes, whose own field must be zero, plus a pseudo header's sum.
pub fn finish(pseudo: u64, bytes: &[u8]) -> u16 {
    !fold(pseudo + sum(bytes))
}

/// Whether bytes that contain their checksum sum up correctly.
pub fn holds(pseudo: u64, bytes: &[u8]) -> bool {
    fold(pseudo + sum(bytes)) == 0xffff
}
