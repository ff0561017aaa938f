//! Route netlink: links, addresses, routes and neighbours of the calling thread's network namespace. rtnetlink(7).
//!
//! Requests are built into one buffer and sent together, so that setting up a network costs a handful of system calls.
//! The messages are fixed structures with attributes, written here by hand; `netlink-packet-route` would add its
//! crates and an allocation for each attribute to the start path without doing more.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::error::{Call, Result, SysError};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE_REPLACE: u16 = 0x400 | 0x100;
const NLM_F_CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_F_NODAD_NOPREFIXROUTE: u32 = 0x02 | 0x200;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
const NTF_MASTER_STICKY: u8 = 0x04 | 0x40;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const HEADER: usize = 16;
/// Frames that a TAP device keeps for its reader; a full queue drops. The default of 1000 is less than the windows of
/// a few dozen bulk senders hold, as a frame counts as sent as soon as it stands here.
const TRANSMIT_QUEUE: u32 = 8192;

/// The end of a pair of Ethernet devices that is in another network namespace.
#[derive(Clone, Copy, Debug)]
pub struct FarEnd<'a> {
    /// Its name there.
    pub name: &'a str,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The namespace.
    pub namespace: BorrowedFd<'a>,
}

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
        self.attribute(IFLA_ADDRESS, &mac);
        self.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.attribute(IFLA_TXQLEN, &TRANSMIT_QUEUE.to_ne_bytes());
        if ipv6 {
            self.attribute(IFLA_AF_SPEC, &no_link_local());
        }
        self.end(start);
        self
    }

    /// Makes a bridge with this MAC, which stays its own whatever is attached to it.
    pub fn bridge(&mut self, name: &str, mtu: u32, mac: [u8; 6]) -> &mut Self {
        let start = self.begin(RTM_NEWLINK, NLM_F_CREATE_EXCLUSIVE, format!("RTM_NEWLINK(bridge {name})"));
        self.link_header(0, 0, 0);
        self.attribute(IFLA_IFNAME, &text(name));
        self.attribute(IFLA_ADDRESS, &mac);
        self.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, &text("bridge")));
        self.end(start);
        self
    }

    /// Attaches a link to a bridge.
    pub fn master(&mut self, index: u32, bridge: u32) -> &mut Self {
        let start = self.begin(RTM_NEWLINK, 0, format!("RTM_NEWLINK({index}, master {bridge})"));
        self.link_header(index, 0, 0);
        self.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        self.end(start);
        self
    }

    /// Makes a pair of Ethernet devices, veth(4): `near` here, attached to a bridge, and `far` in another network namespace, over
    /// which the caller has `CAP_NET_ADMIN` too.
    pub fn veth(&mut self, near: &str, bridge: u32, far: &FarEnd<'_>, mtu: u32) -> &mut Self {
        let name = format!("RTM_NEWLINK(veth {near} and {})", far.name);
        let start = self.begin(RTM_NEWLINK, NLM_F_CREATE_EXCLUSIVE, name);
        self.link_header(0, 0, 0);
        self.attribute(IFLA_IFNAME, &text(near));
        self.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        // `struct ifinfomsg` of the other end, then its attributes.
        let mut peer = vec![0; 16];
        peer.extend(attribute(IFLA_IFNAME, &text(far.name)));
        peer.extend(attribute(IFLA_ADDRESS, &far.mac));
        peer.extend(attribute(IFLA_MTU, &mtu.to_ne_bytes()));
        peer.extend(attribute(IFLA_NET_NS_FD, &far.namespace.as_raw_fd().to_ne_bytes()));
        let data = attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer));
        self.attribute(IFLA_LINKINFO, &[attribute(IFLA_INFO_KIND, &text("veth")), data].concat());
        self.end(start);
        self
    }

    /// Takes a link away, and the other end of a pair with it.
    pub fn delete_link(&mut self, name: &str) -> &mut Self {
        let start = self.begin(RTM_DELLINK, 0, format!("RTM_DELLINK({name})"));
        self.link_header(0, 0, 0);
        self.attribute(IFLA_IFNAME, &text(name));
        self.end(start);
        self
    }

    /// Raises a link of a bridge by its name, without an IPv6 link-local address (`ipv6` as for [`Batch::link_setup`]; the kernel
    /// takes no word of that when it makes a link).
    pub fn raise(&mut self, name: &str, ipv6: bool) -> &mut Self {
        let start = self.begin(RTM_NEWLINK, 0, format!("RTM_NEWLINK({name}, up)"));
        self.link_header(0, IFF_UP, IFF_UP);
        self.attribute(IFLA_IFNAME, &text(name));
        if ipv6 {
            self.attribute(IFLA_AF_SPEC, &no_link_local());
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

    /// Says for good at which port of a bridge a MAC is, so that frames which claim to come from it elsewhere change nothing
    /// (`NTF_STICKY`, Linux 4.20; without it they do).
    pub fn sticky(&mut self, port: u32, mac: [u8; 6]) -> &mut Self {
        let start = self.begin(RTM_NEWNEIGH, NLM_F_CREATE_REPLACE, format!("RTM_NEWNEIGH({mac:x?} at port {port})"));
        self.bytes.extend_from_slice(&[libc::AF_BRIDGE as u8, 0, 0, 0]);
        self.bytes.extend_from_slice(&port.to_ne_bytes());
        self.bytes.extend_from_slice(&NUD_NOARP.to_ne_bytes());
        self.bytes.extend_from_slice(&[NTF_MASTER_STICKY, 0]);
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

/// The attribute by which the kernel makes no IPv6 link-local address of its own.
fn no_link_local() -> Vec<u8> {
    attribute(libc::AF_INET6 as u16, &attribute(8, &[IN6_ADDR_GEN_MODE_NONE]))
}

/// A name as the kernel reads it.
fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
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
