//! Ethernet II headers.

use super::be16;

/// A MAC address.
pub type Mac = [u8; 6];

/// Length of the header.
pub const LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Whom the frame is for.
    pub destination: Mac,
    /// Who says to have sent it.
    pub source: Mac,
}

impl Ends {
    /// Whether it is for all, or for a group.
    pub fn is_multicast(&self) -> bool {
        self.destination[0] & 1 != 0
    }
}

/// The ends, the EtherType and the payload of a frame; `None` when it is too short. VLAN tags are an EtherType like any other.
pub fn parse(frame: &[u8]) -> Option<(Ends, u16, &[u8])> {
    let (header, payload) = frame.split_at_checked(LEN)?;
    let (mut destination, mut source) = ([0; 6], [0; 6]);
    destination.copy_from_slice(&header[..6]);
    source.copy_from_slice(&header[6..12]);
    Some((Ends { destination, source }, be16(header, 12), payload))
}

/// The header from `source` to `destination`.
pub fn header(destination: Mac, source: Mac, ether_type: u16) -> [u8; LEN] {
    let mut header = [0; LEN];
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&ether_type.to_be_bytes());
    header
}
