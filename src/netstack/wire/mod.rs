//! Views of frames: each protocol's header is checked once against the bytes present and then read by field.
//!
//! Nothing here keeps state or trusts a length field further than the slice it came in. Writers build headers on the
//! stack; payloads are never copied by this module.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ip;
pub mod tcp;
pub mod udp;
pub mod vnet;

/// A big-endian 16-bit field at `at`; 0 when out of bounds, which callers have excluded by a length check.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]))
}

/// A big-endian 32-bit field at `at`; 0 when out of bounds, which callers have excluded by a length check.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |field| u32::from_be_bytes([field[0], field[1], field[2], field[3]]))
}
