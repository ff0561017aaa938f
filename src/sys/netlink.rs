//! Route netlink: links, addresses, routes and neighbours of the calling thread's network namespace. rtnetlink(7).
//!
//! Requests are built into one buffer and sent together, so that setting up a network costs a handful of system calls.
//! The messages are fixed structures with attributes, written here by hand; `netlink-packet-route` would add its
//! crates and an allocation for each attribute to the start path without doing more.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::error::{Call, Result, SysError};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE_REPLACE: u16 = 0x400 | 0x100;
const IFF_UP: u32 = 1;
const IFA_F_NODAD_NOPREFIXROUTE: u32 = 0x02 | 0x200;
const NUD_PERMANENT: u16 = 0x80;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const HEADER: usize = 16;
/// Frames that a TAP device keeps for its reader; a full queue drops. The default of 1000 is less than the windows of
/// a few dozen bulk senders hold, as a frame counts as sent as soon as it stands here.
const TRANSMIT_QUEUE: u32 = 8192;

/// A number of requests, in the order in which they will be done.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Batch {
    /// Sets MTU, MAC and the length of the transmit queue of a link; the kernel is not to make an IPv6 link-local
    /// address of its own when it is raised (`ipv6`; `EAFNOSUPPORT` where there is no IPv6).
    pub fn link_setup(&mut self, index: u32, mtu: u32, mac: [u8; 6], ipv6: bool) -> &mut Self {
        let start = self.begin(RTM_NEWLINK, 0, format!("RTM_NEWLINK({index}, mtu {mtu}, mac {mac:x?}, ipv6 {ipv6})"));
        self.link_header(index, 0, 0);
        self.attribute(1, &mac);
        self.attribute(4, &mtu.to_ne_bytes());
        self.attribute(13, &TRANSMIT_QUEUE.to_ne_bytes());
        if ipv6 {
            let mode = attribute(8, &[IN6_ADDR_GEN_MODE_NONE]);
            let inet6 = attribute(libc::AF_INET6 as u16, &mode);
            self.attribute(26, &inet6);
        }
        self.end(start);
        self
    }

    /// Raises a link.
    pub fn link_up(&mut self, index: u32) -> &mut Self {
        let start = self.begin(RTM_NEWLINK, 0, format!("RTM_NEWLINK({index}, up)"));
        self.link_header(index, IFF_UP, IFF_UP);
        self.end(start);
        self
    }

    /// Adds an address: no duplicate detection, no route by itself.
    pub fn address(&mut self, index: u32, address: IpAddr, prefix: u8) -> &mut Self {
        let start = self.begin(RTM_NEWADDR, NLM_F_CREATE_REPLACE, format!("RTM_NEWADDR({address}/{prefix})"));
        self.bytes.extend_from_slice(&[family(address), prefix, 0, 0]);
        self.bytes.extend_from_slice(&index.to_ne_bytes());
        self.attribute(2, &octets(address));
        self.attribute(1, &octets(address));
        self.attribute(8, &IFA_F_NODAD_NOPREFIXROUTE.to_ne_bytes());
        self.end(start);
        self
    }

    /// Adds a route to `destination` by the link, through `gateway` if there is one. A prefix of 0 is the default.
    pub fn route(&mut self, index: u32, destination: (IpAddr, u8), gateway: Option<IpAddr>) -> &mut Self {
        let (address, prefix) = destination;
        let name = format!("RTM_NEWROUTE({address}/{prefix} via {gateway:?})");
        let start = self.begin(RTM_NEWROUTE, NLM_F_CREATE_REPLACE, name);
        // Scope link (253) without a gateway, universe with; table main, protocol boot, type unicast.
        let scope = if gateway.is_some() { 0 } else { 253 };
        self.bytes.extend_from_slice(&[family(address), prefix, 0, 0, 254, 3, scope, 1, 0, 0, 0, 0]);
        if prefix > 0 {
            self.attribute(1, &octets(address));
        }
        if let Some(gateway) = gateway {
            self.attribute(5, &octets(gateway));
        }
        self.attribute(4, &index.to_ne_bytes());
        self.end(start);
        self
    }

    /// Makes an IPv6 address of the link be delivered to this host from now on. The kernel does the same, but in a
    /// work queue some time after the address is there; what arrives before is dropped.
    pub fn local_route(&mut self, index: u32, address: Ipv6Addr) -> &mut Self {
        let name = format!("RTM_NEWROUTE(local {address})");
        let start = self.begin(RTM_NEWROUTE, NLM_F_CREATE_REPLACE, name);
        // Table local, protocol kernel, scope universe, type local.
        self.bytes.extend_from_slice(&[libc::AF_INET6 as u8, 128, 0, 0, 255, 2, 0, 2, 0, 0, 0, 0]);
        self.attribute(1, &address.octets());
        self.attribute(4, &index.to_ne_bytes());
        self.end(start);
        self
    }

    /// Says for good which MAC an address on the link has.
    pub fn neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> &mut Self {
        let start = self.begin(RTM_NEWNEIGH, NLM_F_CREATE_REPLACE, format!("RTM_NEWNEIGH({address})"));
        self.bytes.extend_from_slice(&[family(address), 0, 0, 0]);
        self.bytes.extend_from_slice(&index.to_ne_bytes());
        self.bytes.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
        self.bytes.extend_from_slice(&[0, 0]);
        self.attribute(1, &octets(address));
        self.attribute(2, &mac);
        self.end(start);
        self
    }

    /// Does all requests; blocks for the kernel's answers. The first that failed is reported; later ones were tried.
    pub fn run(&self) -> Result<()> {
        let socket: OwnedFd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .call(|| "socket(AF_NETLINK, NETLINK_ROUTE)".to_owned())?;
        send(socket.as_raw_fd(), &self.bytes, MsgFlags::empty())
            .call(|| format!("send(netlink, {} requests)", self.names.len()))?;
        let mut failure = None;
        let mut answered = 0;
        let mut buffer = vec![0_u8; 32 << 10];
        while answered < self.names.len() {
            let length =
                recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).call(|| "recv(netlink)".to_owned())?;
            let mut rest = &buffer[..length];
            while let Some((kind, sequence, errno, next)) = acknowledgement(rest) {
                rest = next;
                if kind != NLMSG_ERROR {
                    continue;
                }
                answered += 1;
                if errno != 0 && failure.is_none() {
                    let name = self.names.get(sequence as usize).cloned().unwrap_or_default();
                    failure = Some(SysError::new(format!("netlink {name}"), Errno::from_raw(-errno)));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn begin(&mut self, kind: u16, flags: u16, name: String) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST_ACK).to_ne_bytes());
        self.bytes.extend_from_slice(&(self.names.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.names.push(name);
        start
    }

    /// `struct ifinfomsg`.
    fn link_header(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&index.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&change.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&attribute(kind, value));
    }

    fn end(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// One attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Type, sequence number and errno of the first message, and what follows it.
fn acknowledgement(bytes: &[u8]) -> Option<(u16, u32, i32, &[u8])> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = word(0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    if length < HEADER || length > bytes.len() {
        return None;
    }
    let errno = word(HEADER).unwrap_or(0) as i32;
    Some((kind, word(8)?, errno, bytes.get(length.next_multiple_of(4)..).unwrap_or(&[])))
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
