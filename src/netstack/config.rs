//! What a stack is told at its start, and where traffic may go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::tcp::Key;
use crate::wire::ethernet::Mac;
use crate::wire::icmp::Unreachable;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Side<A> {
    /// The container's only address; packets from others are dropped.
    pub container: A,
    /// The router, which is this stack; also the host as the container sees it.
    pub gateway: A,
    /// The DNS server, which is this stack.
    pub dns: A,
}

/// The stack's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// IPv4 addresses.
    pub v4: Side<Ipv4Addr>,
    /// IPv6 addresses.
    pub v6: Side<Ipv6Addr>,
    /// The container's MAC.
    pub container_mac: Mac,
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
    /// Whether the host can peek at an offset (`SO_PEEK_OFF`); without it less is kept in flight.
    pub peek_offset: bool,
    /// DNS servers to forward to, best first.
    pub resolvers: Vec<SocketAddr>,
    /// Names answered here, in lower case without a final dot, with their addresses.
    pub names: Vec<(String, Vec<IpAddr>)>,
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

/// Where a packet that left the container is to go.
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
    /// The way of a packet to `destination`.
    pub(crate) fn route(&self, destination: IpAddr) -> Route {
        match destination {
            IpAddr::V4(address) if address == self.v4.gateway => Route::HostAlias,
            IpAddr::V6(address) if address == self.v6.gateway => Route::HostAlias,
            IpAddr::V4(address) if address == self.v4.dns => Route::Dns,
            IpAddr::V6(address) if address == self.v6.dns => Route::Dns,
            IpAddr::V4(address) => route_v4(address),
            IpAddr::V6(address) => route_v6(address),
        }
    }

    /// Whether a packet may come from this address.
    pub(crate) fn is_container(&self, source: IpAddr) -> bool {
        match source {
            IpAddr::V4(address) => address == self.v4.container,
            IpAddr::V6(address) => address == self.v6.container,
        }
    }

    /// The gateway's address in the family of `like`.
    pub(crate) fn gateway(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.gateway.into(),
            IpAddr::V6(_) => self.v6.gateway.into(),
        }
    }

    /// The container's address in the family of `like`.
    pub(crate) fn container(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.container.into(),
            IpAddr::V6(_) => self.v6.container.into(),
        }
    }

    /// The ends of a flow that a client over IPv6 has to the container's IPv4 address: as the gateway, since its own
    /// address is of the other family.
    pub(crate) fn over_ipv4(&self, container_port: u16, client_port: u16) -> Key {
        Key { container: (self.v4.container.into(), container_port), remote: (self.v4.gateway.into(), client_port) }
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
