//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::be16;
use super::ethernet::Mac;

/// Length of the packet.
pub const LEN: usize = 28;

/// The address a request asks for; `None` for anything but a well-formed request. Address probes (RFC 5227) ask from
/// 0.0.0.0 and get an answer too: the addresses we answer for are taken.
pub fn parse_request(bytes: &[u8]) -> Option<Request> {
    if bytes.len() < LEN || bytes[..6] != [0, 1, 8, 0, 6, 4] || be16(bytes, 6) != 1 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let mut sender_mac = [0; 6];
    sender_mac.copy_from_slice(&bytes[8..14]);
    Some(Request { sender_mac, sender: address(14), target: address(24) })
}

/// Who asks for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// MAC of the one who asks.
    pub sender_mac: Mac,
    /// Address of the one who asks.
    pub sender: Ipv4Addr,
    /// The address in question.
    pub target: Ipv4Addr,
}

/// The answer: `target` is at `mac`.
pub fn reply(request: &Request, mac: Mac) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&request.target.octets());
    packet[18..24].copy_from_slice(&request.sender_mac);
    packet[24..28].copy_from_slice(&request.sender.octets());
    packet
}
