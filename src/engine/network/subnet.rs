//! Subnets: what a user may ask for, and which one a network gets that asks for none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base::{Kind, Report};
use serde::{Deserialize, Serialize};

/// The longest prefix of an IPv4 subnet: network, broadcast, gateway, name server, and four containers.
const V4_LONGEST: u8 = 29;
/// The longest of an IPv6 subnet: it takes the numbers of the IPv4 one.
const V6_LONGEST: u8 = 112;
/// Where subnets are taken from: `10.PRIVATE.N.0/24`. The one before is that of containers with networks of their own.
const PRIVATE: std::ops::RangeInclusive<u8> = 214..=223;

/// An address and the length of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub network: IpAddr,
    /// Length of the prefix.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl Cidr {
    /// Reads `10.1.2.0/24`; bits behind the prefix are dropped, as in Docker.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= bits(address))?;
        Some(Cidr { network: masked(address, prefix), prefix })
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.network.is_ipv4() == address.is_ipv4() && masked(address, self.prefix) == self.network
    }

    /// Whether both have an address.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Zeroes behind the prefix.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

/// The subnet of containers that have a network of their own: who is in another one too must tell them apart.
pub const OF_OWN_NETWORKS: Cidr = Cidr { network: IpAddr::V4(Ipv4Addr::new(10, 213, 0, 0)), prefix: 24 };
/// The gateway that each of them has.
pub const OWN_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);

/// What the subnets of both families have in common.
pub(crate) trait Subnet<A: Into<IpAddr> + Copy> {
    /// Its own parts: gateway and prefix.
    fn parts(&self) -> (A, u8);

    /// As users write it.
    fn cidr(&self) -> Cidr {
        let (gateway, prefix) = self.parts();
        Cidr { network: masked(gateway.into(), prefix), prefix }
    }

    /// Whether an address is in it.
    fn contains(&self, address: A) -> bool {
        self.cidr().contains(address.into())
    }
}

/// The IPv4 subnet of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetV4 {
    /// The gateway.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// Length of the prefix.
    pub prefix: u8,
    /// The part from which containers get addresses, where it is not all.
    pub range: Option<(Ipv4Addr, u8)>,
}

/// The IPv6 subnet of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetV6 {
    /// The gateway.
    pub gateway: Ipv6Addr,
    /// The name server.
    pub dns: Ipv6Addr,
    /// Length of the prefix.
    pub prefix: u8,
    /// Whether the user asked for IPv6: it is there in any case.
    pub asked: bool,
}

impl Subnet<Ipv4Addr> for SubnetV4 {
    fn parts(&self) -> (Ipv4Addr, u8) {
        (self.gateway, self.prefix)
    }
}

impl Subnet<Ipv6Addr> for SubnetV6 {
    fn parts(&self) -> (Ipv6Addr, u8) {
        (self.gateway, self.prefix)
    }
}

impl fmt::Display for SubnetV4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr().fmt(f)
    }
}

impl fmt::Display for SubnetV6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr().fmt(f)
    }
}

fn last(network: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    (u32::from(network) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0)).into()
}

impl SubnetV4 {
    /// Its first address.
    pub fn network(&self) -> Ipv4Addr {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        (u32::from(self.gateway) & mask).into()
    }

    /// Its last address.
    pub fn broadcast(&self) -> Ipv4Addr {
        last(self.network(), self.prefix)
    }

    /// The first and the last address for containers that ask for none.
    pub(crate) fn pool(&self) -> (Ipv4Addr, Ipv4Addr) {
        let (from, to) =
            self.range.map_or((self.network(), self.broadcast()), |(network, prefix)| (network, last(network, prefix)));
        let inside = |address: Ipv4Addr| u32::from(address);
        let from = inside(from).max(inside(self.network()) + 1);
        let to = inside(to).min(inside(self.broadcast()) - 1);
        (from.into(), to.into())
    }

    pub(crate) fn of_role(&self) -> net::Subnet<Ipv4Addr> {
        net::Subnet { gateway: self.gateway, dns: self.dns, prefix: self.prefix }
    }
}

impl SubnetV6 {
    /// Its first address.
    pub fn network(&self) -> Ipv6Addr {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        (u128::from(self.gateway) & mask).into()
    }

    pub(crate) fn of_role(&self) -> net::Subnet<Ipv6Addr> {
        net::Subnet { gateway: self.gateway, dns: self.dns, prefix: self.prefix }
    }
}

/// What a user asks for: `--subnet`, `--gateway`, `--ip-range`, each of either family.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Subnets.
    pub subnets: Vec<String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Parts of subnets for containers that ask for no address.
    pub ranges: Vec<String>,
    /// Whether IPv6 is asked for.
    pub ipv6: bool,
}

fn wrong(text: String) -> Report {
    Report::new(Kind::Usage, text)
}

/// The subnets of a new network. `taken` are those that nothing may overlap, `near` those of the host's routes, which only what
/// is chosen here avoids; `seed` is random.
pub(crate) fn choose(
    wishes: &Wishes,
    taken: &[Cidr],
    near: &[Cidr],
    seed: [u8; 5],
) -> Result<(SubnetV4, SubnetV6), Report> {
    let parse = |text: &String, what: &str| Cidr::parse(text).ok_or_else(|| wrong(format!("invalid {what} {text}")));
    let mut subnets = wishes.subnets.iter().map(|text| parse(text, "subnet")).collect::<Result<Vec<_>, _>>()?;
    for subnet in &subnets {
        let longest = if subnet.network.is_ipv4() { V4_LONGEST } else { V6_LONGEST };
        if subnet.prefix > longest || subnet.prefix < 8 {
            let hint = format!("its prefix has 8 to {longest} bits");
            return Err(wrong(format!("invalid subnet {subnet}")).with_hint(hint));
        }
        if taken.iter().any(|other| other.overlaps(subnet)) {
            let text = "invalid pool request: Pool overlaps with other one on this address space";
            return Err(Report::new(Kind::Conflict, text));
        }
    }
    let mut take = |v4: bool| {
        let at = subnets.iter().position(|subnet| subnet.network.is_ipv4() == v4)?;
        Some(subnets.remove(at))
    };
    let (asked_v4, asked_v6) = (take(true), take(false));
    if !subnets.is_empty() {
        return Err(Report::new(Kind::Unsupported, "a network has one subnet of each family at most"));
    }
    let free = |candidate: &Cidr| !taken.iter().chain(near).any(|other| other.overlaps(candidate));
    let v4 = asked_v4.or_else(|| {
        let numbers = PRIVATE.flat_map(|second| (0..=u8::MAX).map(move |third| Ipv4Addr::new(10, second, third, 0)));
        numbers.map(|network| Cidr { network: network.into(), prefix: 24 }).find(free)
    });
    let v4 = v4.ok_or_else(|| {
        Report::new(Kind::Conflict, "all predefined address pools have been fully subnetted")
            .with_hint("remove networks that are not used (network prune), or name a subnet (--subnet)")
    })?;
    // A unique local prefix (RFC 4193): its 40 bits are random.
    let mut local = [0; 16];
    local[0] = 0xfd;
    local[1..6].copy_from_slice(&seed);
    let local = Ipv6Addr::from(local);
    let v6 = asked_v6.unwrap_or(Cidr { network: local.into(), prefix: 64 });
    let gateways =
        wishes.gateways.iter().map(|text| text.parse::<IpAddr>().map_err(|_| wrong(format!("invalid gateway {text}"))));
    let gateways = gateways.collect::<Result<Vec<_>, _>>()?;
    if let Some(gateway) = gateways.iter().find(|gateway| !v4.contains(**gateway) && !v6.contains(**gateway)) {
        return Err(wrong(format!("no matching subnet for gateway {gateway}")));
    }
    let ranges = wishes.ranges.iter().map(|text| parse(text, "ip-range")).collect::<Result<Vec<_>, _>>()?;
    let within = |range: &Cidr| range.prefix >= v4.prefix && v4.contains(range.network);
    if let Some(range) = ranges.iter().find(|range| !within(range)) {
        return Err(wrong(format!("no matching subnet for range {range}")));
    }
    let (IpAddr::V4(base4), IpAddr::V6(base6)) = (v4.network, v6.network) else {
        return Err(Report::new(Kind::Internal, "a subnet of the wrong family"));
    };
    let next4 = |number: u32| Ipv4Addr::from(u32::from(base4) + number);
    let next6 = |number: u128| Ipv6Addr::from(u128::from(base6) + number);
    let asked4 =
        gateways.iter().find_map(|gateway| if let IpAddr::V4(gateway) = gateway { Some(*gateway) } else { None });
    let asked6 =
        gateways.iter().find_map(|gateway| if let IpAddr::V6(gateway) = gateway { Some(*gateway) } else { None });
    let (gateway4, gateway6) = (asked4.unwrap_or(next4(1)), asked6.unwrap_or(next6(1)));
    let subnet4 = SubnetV4 {
        gateway: gateway4,
        dns: [next4(2), next4(3)].into_iter().find(|dns| *dns != gateway4).unwrap_or(next4(2)),
        prefix: v4.prefix,
        range: ranges.iter().find_map(|range| match range.network {
            IpAddr::V4(network) => Some((network, range.prefix)),
            IpAddr::V6(_) => None,
        }),
    };
    if [subnet4.network(), subnet4.broadcast()].contains(&gateway4) {
        return Err(wrong(format!("invalid gateway {gateway4}")));
    }
    let (first, last) = subnet4.pool();
    let own = [gateway4, subnet4.dns].into_iter().filter(|own| (first..=last).contains(own)).count() as u32;
    if u32::from(last) + 1 < u32::from(first) + own + 1 {
        return Err(wrong("the range of addresses has none for a container".to_owned()));
    }
    let subnet6 = SubnetV6 {
        gateway: gateway6,
        dns: [next6(2), next6(3)].into_iter().find(|dns| *dns != gateway6).unwrap_or(next6(2)),
        prefix: v6.prefix,
        asked: wishes.ipv6 || asked_v6.is_some(),
    };
    Ok((subnet4, subnet6))
}

/// The subnets that the host has routes to, but for the whole world.
pub(crate) fn of_routes() -> Vec<Cidr> {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    v4.lines().filter_map(route_v4).chain(v6.lines().filter_map(route_v6)).filter(|route| route.prefix > 0).collect()
}

/// A line of `/proc/net/route`: device, destination, gateway, …, mask in the eighth column; numbers as they lie in memory.
fn route_v4(line: &str) -> Option<Cidr> {
    let number = |column: usize| u32::from_str_radix(line.split_whitespace().nth(column)?, 16).ok();
    let (destination, mask) = (number(1)?.to_ne_bytes(), number(7)?.to_ne_bytes());
    Some(Cidr { network: Ipv4Addr::from(destination).into(), prefix: u32::from_be_bytes(mask).leading_ones() as u8 })
}

/// A line of `/proc/net/ipv6_route`: destination and length of its prefix, hexadecimal.
fn route_v6(line: &str) -> Option<Cidr> {
    let mut columns = line.split_whitespace();
    let destination = u128::from_str_radix(columns.next()?, 16).ok()?;
    let prefix = u8::from_str_radix(columns.next()?, 16).ok()?;
    Some(Cidr { network: Ipv6Addr::from(destination).into(), prefix })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn cidr(text: &str) -> Cidr {
        Cidr::parse(text).unwrap()
    }

    fn wishes(subnets: &[&str], gateways: &[&str], ranges: &[&str]) -> Wishes {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        Wishes { subnets: texts(subnets), gateways: texts(gateways), ranges: texts(ranges), ipv6: false }
    }

    fn chosen(wishes: &Wishes, taken: &[Cidr], near: &[Cidr]) -> Result<(SubnetV4, SubnetV6), String> {
        choose(wishes, taken, near, [1, 2, 3, 4, 5]).map_err(|report| report.lines().join("; "))
    }

    #[test]
    fn the_first_free_subnet_is_taken_and_none_that_the_host_has_a_route_to() {
        let (v4, v6) = chosen(&Wishes::default(), &[], &[]).unwrap();
        assert_eq!((v4.to_string().as_str(), v6.to_string().as_str()), ("10.214.0.0/24", "fd01:203:405::/64"));
        assert_eq!(v4.pool(), ([10, 214, 0, 1].into(), [10, 214, 0, 254].into()));
        let (v4, _) = chosen(&Wishes::default(), &[cidr("10.214.0.0/24")], &[cidr("10.214.0.0/23")]).unwrap();
        assert_eq!(v4.to_string(), "10.214.2.0/24");
        let refused = chosen(&Wishes::default(), &[], &[cidr("10.0.0.0/8")]).unwrap_err();
        assert_eq!(refused, "all predefined address pools have been fully subnetted");
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let asked = wishes(&["192.168.7.9/24", "fd77::/64"], &["192.168.7.2", "fd77::5"], &["192.168.7.128/25"]);
        let (v4, v6) = chosen(&asked, &[], &[cidr("192.168.0.0/16")]).unwrap();
        assert_eq!(
            (v4.network(), v4.gateway, v4.dns),
            ([192, 168, 7, 0].into(), asked.gateways[0].parse().unwrap(), [192, 168, 7, 3].into())
        );
        assert_eq!(v4.pool(), ([192, 168, 7, 128].into(), [192, 168, 7, 254].into()));
        assert_eq!((v6.gateway.to_string(), v6.dns.to_string()), ("fd77::5".to_owned(), "fd77::2".to_owned()));
        for (subnets, gateways, ranges, words) in [
            (&["10.0.0.0/33"][..], &[][..], &[][..], "invalid subnet 10.0.0.0/33"),
            (&["nothing"], &[], &[], "invalid subnet nothing"),
            (&["10.1.0.0/30"], &[], &[], "invalid subnet 10.1.0.0/30"),
            (&["10.9.1.0/24"], &[], &[], "invalid pool request: Pool overlaps with other one on this address space"),
            (&["10.1.0.0/24"], &["10.2.0.1"], &[], "no matching subnet for gateway 10.2.0.1"),
            (&["10.1.0.0/24"], &["10.1.0.255"], &[], "invalid gateway 10.1.0.255"),
            (&["10.1.0.0/24"], &[], &["10.1.0.0/23"], "no matching subnet for range 10.1.0.0/23"),
            (&["10.1.0.0/24", "10.2.0.0/24"], &[], &[], "a network has one subnet of each family at most"),
        ] {
            let refused = chosen(&wishes(subnets, gateways, ranges), &[cidr("10.9.0.0/16")], &[]).unwrap_err();
            assert_eq!(refused, words, "{subnets:?}");
        }
    }

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let line = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t0000FFFF\t0\t0\t0";
        assert_eq!(route_v4(line), Some(cidr("192.168.0.0/16")));
        assert_eq!(route_v4("Iface\tDestination\tGateway \tFlags"), None);
        let line = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 0 0 0 0 eth0";
        assert_eq!(route_v6(line), Some(cidr("fd00::/64")));
    }
}
