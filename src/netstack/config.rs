//! What a stack is told at its start, and where traffic may go.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::tcp::Key;
use crate::wire::ethernet::Mac;
use crate::wire::icmp::Unreachable;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Side<A> {
    /// The router, which is this stack; also the host as containers see it.
    pub gateway: A,
    /// The DNS server, which is this stack.
    pub dns: A,
    /// Length of the prefix of the subnet that both are in.
    pub prefix: u8,
}

/// A container of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Whether it has IPv6, as far as is known. Without, what would be sent there over IPv6 is lost in silence, so clients of
    /// published ports are led to its IPv4 address.
    pub ipv6: bool,
    /// Its MAC.
    pub mac: Mac,
}

/// Where a published port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// A member's address.
    pub container: Ipv4Addr,
    /// A port there.
    pub port: u16,
}

/// The containers of the network, found by their addresses.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// In the order of their IPv4 addresses.
    all: Vec<Member>,
    /// Their IPv6 addresses in order, with their places in `all`.
    v6: Vec<(Ipv6Addr, usize)>,
}

impl FromIterator<Member> for Members {
    /// Of two with one address the first counts.
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let mut all: Vec<Member> = members.into_iter().collect();
        all.sort_by_key(|member| member.v4);
        all.dedup_by_key(|member| member.v4);
        let mut v6: Vec<_> = all.iter().enumerate().map(|(place, member)| (member.v6, place)).collect();
        v6.sort_by_key(|(address, _)| *address);
        v6.dedup_by_key(|(address, _)| *address);
        Members { all, v6 }
    }
}

impl Members {
    /// Whose address it is, whether or not that container has IPv6.
    pub fn find(&self, address: IpAddr) -> Option<&Member> {
        self.place(address).map(|place| &self.all[place])
    }

    /// The same as a number, which counts the members in the order of [`Members::iter`].
    pub(crate) fn place(&self, address: IpAddr) -> Option<usize> {
        match address {
            IpAddr::V4(address) => self.all.binary_search_by_key(&address, |member| member.v4).ok(),
            IpAddr::V6(address) => {
                let at = self.v6.binary_search_by_key(&address, |(address, _)| *address).ok()?;
                Some(self.v6[at].1)
            }
        }
    }

    /// The MAC of the member at this place.
    pub(crate) fn mac(&self, place: usize) -> Option<Mac> {
        self.all.get(place).map(|member| member.mac)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.all.iter()
    }
}

/// Names in lower case without a final dot, with their addresses.
pub type NameTable = Vec<(String, Vec<IpAddr>)>;

/// The tables that one asker is answered from: an earlier one goes before a later one.
pub(crate) type Tables<'a> = [&'a [(String, Vec<IpAddr>)]; 3];

/// What is answered here without asking others.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// To everyone.
    pub of_all: NameTable,
    /// To the member with this IPv4 address besides: what it finds in its other networks.
    pub of_one: BTreeMap<Ipv4Addr, NameTable>,
    /// To the member with this IPv4 address before all others: its own names for some of these.
    pub links: BTreeMap<Ipv4Addr, NameTable>,
}

/// The stack's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// IPv4 addresses.
    pub v4: Side<Ipv4Addr>,
    /// IPv6 addresses.
    pub v6: Side<Ipv6Addr>,
    /// The containers; packets from other addresses are dropped.
    pub members: Members,
    /// Our MAC.
    pub gateway_mac: Mac,
    /// MTU of the container's device.
    pub mtu: u16,
    /// The largest TCP segment that is offered to the container. Large frames carry many of them, so that speed does
    /// not depend on it; a small one keeps every segment far below the smallest window.
    pub mss: u16,
    /// Whether the gateway's address leads to the host's loopback; otherwise to the host's primary address, where only
    /// what listens on all addresses, or that one, answers.
    pub host_loopback: bool,
    /// Whether nothing leads out of the network: neither to the world nor to the host.
    pub internal: bool,
    /// Whether the host can peek at an offset (`SO_PEEK_OFF`); without it less is kept in flight.
    pub peek_offset: bool,
    /// DNS servers to forward to, best first.
    pub resolvers: Vec<SocketAddr>,
    /// Those of members that have others, by their IPv4 addresses.
    pub resolvers_of_one: BTreeMap<Ipv4Addr, Vec<SocketAddr>>,
    /// Names answered here.
    pub names: Names,
    /// Table sizes.
    pub limits: Limits,
}

/// Sizes of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// TCP connections.
    pub tcp: u32,
    /// Of these, not yet established.
    pub half_open: u32,
    /// UDP flows.
    pub udp: u32,
    /// Ping flows.
    pub echo: u32,
    /// DNS questions in flight.
    pub dns: u32,
    /// New flows a second; twice as many may come at once.
    pub new_flows_per_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { tcp: 16384, half_open: 1024, udp: 4096, echo: 64, dns: 256, new_flows_per_s: 20_000 }
    }
}

/// Where a packet that left a container is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this address of the world.
    Out(IpAddr),
    /// To the host itself.
    HostAlias,
    /// To our DNS server.
    Dns,
    /// Nowhere: dropped without an answer.
    Drop,
    /// Nowhere: refused.
    Refuse(Unreachable),
}

impl Config {
    /// The DNS servers to ask for a container, by its address.
    pub(crate) fn resolvers_of(&self, asker: IpAddr) -> &[SocketAddr] {
        let asker = self.members.find(asker).map(|member| member.v4);
        asker.and_then(|asker| self.resolvers_of_one.get(&asker)).unwrap_or(&self.resolvers)
    }

    /// What a container is answered from, by its address.
    pub(crate) fn tables(&self, asker: IpAddr) -> Tables<'_> {
        let asker = self.members.find(asker).map(|member| member.v4);
        let [links, of_one] = [&self.names.links, &self.names.of_one]
            .map(|tables| asker.and_then(|asker| tables.get(&asker)).map_or(&[][..], Vec::as_slice));
        [links, &self.names.of_all, of_one]
    }

    /// The way of a packet to `destination`. Others of the subnet are reached on the link, and not through us.
    pub(crate) fn route(&self, destination: IpAddr) -> Route {
        let (own, out) = match destination {
            IpAddr::V4(address) if address == self.v4.dns => return Route::Dns,
            IpAddr::V6(address) if address == self.v6.dns => return Route::Dns,
            IpAddr::V4(address) => {
                let differing = u32::from(address) ^ u32::from(self.v4.gateway);
                (differing.leading_zeros() >= self.v4.prefix.into(), route_v4(address))
            }
            IpAddr::V6(address) => {
                let differing = u128::from(address) ^ u128::from(self.v6.gateway);
                (differing.leading_zeros() >= self.v6.prefix.into(), route_v6(address))
            }
        };
        match out {
            Route::Out(_) if self.internal => Route::Refuse(Unreachable::Network),
            Route::Out(_) if destination == self.gateway(destination) => Route::HostAlias,
            Route::Out(_) if own => Route::Refuse(Unreachable::Host),
            other => other,
        }
    }

    /// Whether a packet may come from this address.
    pub(crate) fn is_member(&self, source: IpAddr) -> bool {
        self.members.find(source).is_some_and(|member| source.is_ipv4() || member.ipv6)
    }

    /// The gateway's address in the family of `like`.
    pub(crate) fn gateway(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.gateway.into(),
            IpAddr::V6(_) => self.v6.gateway.into(),
        }
    }

    /// The ends of a flow that a client over IPv6 has to a container's IPv4 address: as the gateway, since its own
    /// address is of the other family.
    pub(crate) fn over_ipv4(&self, target: Target, client_port: u16) -> Key {
        Key { container: (target.container.into(), target.port), remote: (self.v4.gateway.into(), client_port) }
    }

    /// The largest segment for packets of this family.
    pub(crate) fn mss(&self, like: IpAddr) -> u16 {
        let headers = if like.is_ipv4() { 40 } else { 60 };
        self.mss.min(self.mtu.saturating_sub(headers)).max(216)
    }
}

/// To an unspecified address Linux connects to itself, and loopback is the host's own: neither is reachable.
fn route_v4(address: Ipv4Addr) -> Route {
    let first = address.octets()[0];
    if address.is_unspecified() || address.is_loopback() || first == 0 {
        Route::Refuse(Unreachable::Prohibited)
    } else if address.is_multicast() || first >= 240 {
        Route::Drop
    } else {
        Route::Out(address.into())
    }
}

/// An IPv6 socket reaches IPv4 through mapped addresses, the loopback too: all embedded forms are refused. Link-local
/// addresses need a link of the host's.
fn route_v6(address: Ipv6Addr) -> Route {
    let segments = address.segments();
    if address.is_multicast() {
        Route::Drop
    } else if segments[..5] == [0; 5] || segments[0] & 0xffc0 == 0xfe80 {
        Route::Refuse(Unreachable::Prohibited)
    } else {
        Route::Out(address.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_the_hosts_loopback_is_routed() {
        for address in ["127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3"] {
            assert!(!matches!(route_v4(address.parse().expect("an address")), Route::Out(_)), "{address}");
        }
        for address in ["::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fe80::1", "ff02::1"] {
            assert!(!matches!(route_v6(address.parse().expect("an address")), Route::Out(_)), "{address}");
        }
        let outside: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        assert_eq!(route_v6(outside), Route::Out(outside.into()));
    }
}
