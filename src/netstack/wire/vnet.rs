//! The virtio-net header in front of every frame of the TAP device: 10 bytes, little-endian (virtio 1.2 §5.1.6).

/// Length of the header.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// What the kernel says about a frame that it hands us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The transport checksum is not to be verified: it is partial, or the kernel has checked it.
    pub checksum_ok: bool,
}

/// Reads the header and splits it off. `None` when the frame is too short, says offsets outside itself or uses a
/// segmentation that was not enabled.
pub fn parse(frame: &[u8]) -> Option<(Received, &[u8])> {
    let (header, rest) = frame.split_at_checked(LEN)?;
    let le16 = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let partial = header[0] & NEEDS_CSUM != 0;
    if partial && le16(6) + le16(8) + 2 > rest.len() {
        return None;
    }
    match header[1] & !GSO_ECN {
        GSO_NONE => {}
        GSO_TCPV4 | GSO_TCPV6 if partial => {}
        _ => return None,
    }
    Some((Received { checksum_ok: partial || header[0] & DATA_VALID != 0 }, rest))
}

/// The header of a frame whose checksums are complete.
pub const PLAIN: [u8; LEN] = [0; LEN];

/// The header of a frame whose transport checksum the kernel is to complete: `start` is the transport header's offset
/// in the frame, `offset` the checksum's offset in that.
pub fn partial(start: usize, offset: usize, header_len: usize) -> [u8; LEN] {
    let mut header = [0; LEN];
    header[0] = NEEDS_CSUM;
    header[2..4].copy_from_slice(&(header_len as u16).to_le_bytes());
    header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(offset as u16).to_le_bytes());
    header
}

/// Marks a frame as TCP segments of `size` payload bytes each, to be cut by whoever needs them cut.
pub fn segmented(header: &mut [u8; LEN], v6: bool, size: u16) {
    header[1] = if v6 { GSO_TCPV6 } else { GSO_TCPV4 };
    header[4..6].copy_from_slice(&size.to_le_bytes());
}
