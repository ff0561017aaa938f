//! What a network is told: addresses, published ports, resolvers, names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use base::ContainerId;
use serde::{Deserialize, Serialize};

use crate::helper::HelperSpec;

/// Addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family<A> {
    /// The container's address; unspecified where it has none of this family.
    pub container: A,
    /// The gateway's, which is also the host's as the container sees it.
    pub gateway: A,
    /// The DNS server's.
    pub dns: A,
    /// Length of the subnet's prefix.
    pub prefix: u8,
}

/// The addresses of a container in its own network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressing {
    /// IPv4.
    pub v4: Family<Ipv4Addr>,
    /// IPv6.
    pub v6: Family<Ipv6Addr>,
    /// The container's MAC.
    pub mac: [u8; 6],
    /// The gateway's MAC; zeroes where the container is to ask for it.
    pub gateway_mac: [u8; 6],
    /// MTU of the device.
    pub mtu: u16,
}

impl Addressing {
    /// The default network: a small private subnet of which each container has its own copy, as nothing on the link is
    /// shared, and a unique local IPv6 prefix (RFC 4193) made from the container's id.
    pub fn default_bridge(id: &ContainerId) -> Self {
        let digit = |at: usize| u8::from_str_radix(id.as_str().get(at * 2..at * 2 + 2).unwrap_or("0"), 16).unwrap_or(0);
        let pair = |at: usize| u16::from_be_bytes([digit(at), digit(at + 1)]);
        let v6 = |host| Ipv6Addr::new(0xfd00 | u16::from(digit(0)), pair(1), pair(3), 0, 0, 0, 0, host);
        Addressing {
            v4: Family {
                container: Ipv4Addr::new(10, 213, 0, 100),
                gateway: Ipv4Addr::new(10, 213, 0, 1),
                dns: Ipv4Addr::new(10, 213, 0, 2),
                prefix: 24,
            },
            v6: Family { container: v6(0x100), gateway: v6(1), dns: v6(2), prefix: 64 },
            // Locally administered, unicast.
            mac: [0x02, digit(5), digit(6), digit(7), digit(8), digit(9)],
            gateway_mac: [0x02, 0x5b, 0, 0, 0, 1],
            mtu: 65520,
        }
    }
}

/// The protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The wish for a port of the host that leads into the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address to listen on; `None` is all addresses of both families.
    pub host_ip: Option<IpAddr>,
    /// The first port of the host that may be taken; 0 is any free one.
    pub host_port: u16,
    /// The last one; `host_port` when there is no choice.
    pub host_port_last: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub transport: Transport,
}

/// A port of the host that leads into the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The host's address that is listened on; unspecified for all of that family.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub transport: Transport,
}

impl From<Published> for Publish {
    /// The wish for just that port.
    fn from(Published { host_ip, host_port, container_port, transport }: Published) -> Self {
        Publish { host_ip: Some(host_ip), host_port, host_port_last: host_port, container_port, transport }
    }
}

/// A subnet of a network that containers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet<A> {
    /// The gateway's address, which is also the host's as containers see it.
    pub gateway: A,
    /// The DNS server's.
    pub dns: A,
    /// Length of the prefix.
    pub prefix: u8,
}

/// A network that containers share: the configuration of a role that serves one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Its name, for messages.
    pub name: String,
    /// IPv4.
    pub v4: Subnet<Ipv4Addr>,
    /// The first and the last address for containers that ask for none.
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// IPv6. Who asks for no address has the number in the subnet that its IPv4 address has.
    pub v6: Subnet<Ipv6Addr>,
    /// The gateway's MAC.
    pub gateway_mac: [u8; 6],
    /// MTU of all devices.
    pub mtu: u16,
    /// Whether nothing leads out of it.
    pub internal: bool,
    /// DNS servers to forward to, best first.
    pub resolvers: Vec<SocketAddr>,
}

/// What a role is started for.
#[derive(Debug, Serialize, Deserialize)]
pub enum RoleSpec {
    /// One container's own network.
    Own(NetSpec),
    /// The same by an installed program.
    Program(HelperSpec),
    /// A network that containers join and leave.
    Shared(NetworkSpec),
}

/// The configuration of a role that serves one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetSpec {
    /// Addresses.
    pub addressing: Addressing,
    /// Ports to publish.
    pub publish: Vec<Publish>,
    /// DNS servers to forward to, best first; reached from the host, so a stub on its loopback is fine.
    pub resolvers: Vec<SocketAddr>,
    /// Whether these are the host's, whose changes are to be followed.
    #[serde(default)]
    pub resolvers_are_the_hosts: bool,
    /// Names answered for the container besides `host.docker.internal` and `host.containers.internal`.
    pub names: Vec<(String, Vec<IpAddr>)>,
    /// Whether the gateway's address leads to the host's loopback.
    #[serde(default)]
    pub host_loopback: bool,
    /// How many bits a second the container may carry in each direction; as many as there are without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// What the container may reach, as rules of [`crate::egress`]; anything without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<String>>,
}
