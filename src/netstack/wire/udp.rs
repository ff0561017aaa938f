//! UDP headers (RFC 768).

use std::net::IpAddr;

use super::{be16, checksum, ip};

/// Length of the header.
pub const LEN: usize = 8;
/// Offset of the checksum in the header.
pub const CHECKSUM_OFFSET: usize = 6;

/// A datagram whose length fits the bytes present.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// The checksum field; 0 is "none", allowed in IPv4 only.
    pub checksum: u16,
    /// Data.
    pub payload: &'a [u8],
}

/// Reads a datagram; `None` when its length is wrong.
pub fn parse(bytes: &[u8]) -> Option<Datagram<'_>> {
    let length = usize::from(be16(bytes, 4));
    let payload = bytes.get(LEN..length)?;
    Some(Datagram { source_port: be16(bytes, 0), destination_port: be16(bytes, 2), checksum: be16(bytes, 6), payload })
}

/// The header of a datagram, with its checksum.
pub fn complete(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> [u8; LEN] {
    let length = LEN + payload.len();
    let mut header = [0; LEN];
    header[..2].copy_from_slice(&source.1.to_be_bytes());
    header[2..4].copy_from_slice(&destination.1.to_be_bytes());
    header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    let before = checksum::pseudo(source.0, destination.0, ip::UDP, length) + checksum::sum(&header);
    // One that is 0 says that there is none.
    let check = match checksum::finish(before, payload) {
        0 => u16::MAX,
        check => check,
    };
    header[CHECKSUM_OFFSET..].copy_from_slice(&check.to_be_bytes());
    header
}

/// Appends the header; the checksum field holds the pseudo header's sum, for the kernel to complete.
pub fn write(out: &mut ip::Header, source: (IpAddr, u16), destination: (IpAddr, u16), payload_len: usize) {
    let length = LEN + payload_len;
    let mut header = [0; LEN];
    header[..2].copy_from_slice(&source.1.to_be_bytes());
    header[2..4].copy_from_slice(&destination.1.to_be_bytes());
    header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    let pseudo = checksum::pseudo(source.0, destination.0, ip::UDP, length);
    header[6..8].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    out.push(&header);
}
