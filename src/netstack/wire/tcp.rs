//! TCP headers and the options that matter here (RFC 9293, RFC 7323).

use std::net::IpAddr;

use super::{be16, be32, checksum, ip};

/// Length of the header without options.
pub const LEN: usize = 20;
/// Offset of the checksum in the header.
pub const CHECKSUM_OFFSET: usize = 16;
/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// The connection is gone.
pub const RST: u8 = 0x04;
/// Hand the data on without waiting.
pub const PSH: u8 = 0x08;
/// The acknowledgement field counts.
pub const ACK: u8 = 0x10;

/// A sequence number; compares around the circle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// The number `count` bytes further.
    #[must_use]
    pub fn plus(self, count: u32) -> Self {
        SeqNumber(self.0.wrapping_add(count))
    }

    /// How far this is after `earlier`; negative when it is before.
    pub fn since(self, earlier: SeqNumber) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }
}

/// A segment whose header fits the bytes present.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Number of the first byte.
    pub seq: SeqNumber,
    /// The next number expected, when [`ACK`] is set.
    pub ack: SeqNumber,
    /// FIN, SYN, RST, PSH, ACK.
    pub flags: u8,
    /// The window field, not scaled.
    pub window: u16,
    /// Raw options.
    pub options: &'a [u8],
    /// Data.
    pub payload: &'a [u8],
}

/// Reads a segment; `None` when its header does not fit. The checksum is the caller's.
pub fn parse(bytes: &[u8]) -> Option<Segment<'_>> {
    if bytes.len() < LEN {
        return None;
    }
    let header_len = usize::from(bytes[12] >> 4) * 4;
    let options = bytes.get(LEN..header_len)?;
    Some(Segment {
        source_port: be16(bytes, 0),
        destination_port: be16(bytes, 2),
        seq: SeqNumber(be32(bytes, 4)),
        ack: SeqNumber(be32(bytes, 8)),
        flags: bytes[13],
        window: be16(bytes, 14),
        options,
        payload: &bytes[header_len..],
    })
}

impl Segment<'_> {
    /// Whether all of these flags are set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The maximum segment size and the window shift that a SYN offers. Reading ends at the first malformed option.
    pub fn syn_options(&self) -> SynOptions {
        let mut found = SynOptions::default();
        let mut rest = self.options;
        while let Some(&kind) = rest.first() {
            let length = match kind {
                0 => break,
                1 => 1,
                _ => usize::from(rest.get(1).copied().unwrap_or(0)),
            };
            if length == 0 || (kind != 1 && length < 2) || length > rest.len() {
                break;
            }
            match (kind, length) {
                (2, 4) => found.mss = Some(be16(rest, 2)),
                // RFC 7323 §2.3: a shift above 14 counts as 14.
                (3, 3) => found.window_shift = Some(rest[2].min(14)),
                _ => {}
            }
            rest = &rest[length..];
        }
        found
    }
}

/// What a SYN offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Window scale; `None` when the sender does not scale.
    pub window_shift: Option<u8>,
}

/// The fields of a segment to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Address and port it seems to come from.
    pub source: (IpAddr, u16),
    /// Address and port of the container.
    pub destination: (IpAddr, u16),
    /// Number of the first byte.
    pub seq: SeqNumber,
    /// The next number expected.
    pub ack: SeqNumber,
    /// FIN, SYN, RST, PSH, ACK.
    pub flags: u8,
    /// The window field, already scaled.
    pub window: u16,
    /// Options, for a SYN only.
    pub syn: Option<SynOptions>,
}

impl Outgoing {
    /// Length of the header with its options.
    pub fn header_len(&self) -> usize {
        match self.syn {
            None => LEN,
            Some(SynOptions { window_shift: None, .. }) => LEN + 4,
            Some(_) => LEN + 8,
        }
    }

    /// Appends the header; the checksum field holds the pseudo header's sum, for the kernel to complete.
    pub fn write(&self, out: &mut ip::Header, payload_len: usize) {
        let length = self.header_len();
        let mut header = [0; LEN + 8];
        header[..2].copy_from_slice(&self.source.1.to_be_bytes());
        header[2..4].copy_from_slice(&self.destination.1.to_be_bytes());
        header[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        header[12] = (length as u8 / 4) << 4;
        header[13] = self.flags;
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        let pseudo = checksum::pseudo(self.source.0, self.destination.0, ip::TCP, length + payload_len);
        header[16..18].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        if let Some(syn) = self.syn {
            header[20..22].copy_from_slice(&[2, 4]);
            header[22..24].copy_from_slice(&syn.mss.unwrap_or(536).to_be_bytes());
            if let Some(shift) = syn.window_shift {
                header[24..28].copy_from_slice(&[1, 3, 3, shift]);
            }
        }
        out.push(&header[..length]);
    }
}
