//! What a container may reach: a list of what is allowed, which refuses everything else once there is one.
//!
//! **Names** are enforced at our DNS server and pinned to its answers: a question for a name that no rule has is refused
//! there, and an address is let through for as long as an answer to one that a rule has says, and for [`PIN_MIN_US`] at least,
//! since programs keep addresses while they try them. An address that is ours, or is never routed, is not pinned: what the owner
//! of a name answers is not to open the host. Of TCP only names of our own table are answered, as what a resolver says there is
//! not read; so that nobody has to ask that way, a cut answer with addresses is passed on as a whole one.
//!
//! The check is made where a flow begins. One that has begun goes on; so do those that clients of published ports began.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::flows::Protocol;

/// How long an address is let through at least.
const PIN_MIN_US: u64 = 60_000_000;
/// How long at most.
const PIN_MAX_US: u64 = 24 * 3600 * 1_000_000;
/// Addresses that are let through at a time.
const PINS: usize = 1024;

/// Where a rule leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    /// The addresses that share so many bits with this one.
    Block(IpAddr, u8),
    /// A name, in lower case.
    Name(String),
    /// All names that end like this, which begins with a dot.
    Below(String),
    /// All names.
    AnyName,
}

/// A rule: `HOST[:PORT[-PORT]][/tcp|/udp]`, where the host is a name, `*.NAME`, `*` for all names, an address, or a block of
/// addresses. An IPv6 address before a port stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    to: To,
    ports: (u16, u16),
    protocol: Option<Protocol>,
}

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRule(pub &'static str);

impl FromStr for Rule {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            _ => (text, None),
        };
        let (host, ports) = split_ports(rest)?;
        let ports = match ports {
            None => (0, u16::MAX),
            Some(ports) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
                let range = port(first).zip(port(last)).filter(|(first, last)| first <= last);
                range.ok_or(NoRule("a port is a number from 1 to 65535, or two with - between them"))?
            }
        };
        Ok(Rule { to: to(host)?, ports, protocol })
    }
}

/// A host, and the ports behind it.
fn split_ports(text: &str) -> Result<(&str, Option<&str>), NoRule> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(NoRule("a bracket is not closed"))?;
        return match rest.strip_prefix(':') {
            Some(ports) => Ok((address, Some(ports))),
            None if rest.is_empty() => Ok((address, None)),
            None => Err(NoRule("a port follows after a colon; the length of a prefix stands inside the brackets")),
        };
    }
    // More than one colon is an address of IPv6.
    Ok(match text.split_once(':') {
        Some((host, ports)) if !ports.contains(':') => (host, Some(ports)),
        _ => (text, None),
    })
}

fn to(host: &str) -> Result<To, NoRule> {
    let (address, bits) = host.split_once('/').map_or((host, None), |(address, bits)| (address, Some(bits)));
    if let Ok(address) = address.parse::<IpAddr>() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok().filter(|bits| *bits <= most));
        return Ok(To::Block(address, bits.ok_or(NoRule("the length of a prefix is up to 32, or 128 for IPv6"))?));
    }
    if bits.is_some() {
        return Err(NoRule("what follows a slash is tcp, udp, or the length of an address's prefix"));
    }
    if host == "*" {
        return Ok(To::AnyName);
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let name = host.strip_prefix("*.").unwrap_or(&host);
    let is_label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !label.is_empty() && label.len() <= 63 && label.bytes().all(known)
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(NoRule("a host is a name, *.NAME, *, an address, or ADDRESS/BITS"));
    }
    if name.len() < host.len() { Ok(To::Below(format!(".{name}"))) } else { Ok(To::Name(host)) }
}

impl Rule {
    /// Whether it has this name, which is in lower case and without a dot at the end.
    fn has_name(&self, name: &str) -> bool {
        match &self.to {
            To::Block(..) => false,
            To::Name(own) => own == name,
            To::Below(end) => name.len() > end.len() && name.ends_with(end.as_str()),
            To::AnyName => true,
        }
    }

    fn has_port(&self, protocol: Protocol, port: u16) -> bool {
        match protocol {
            // Nothing that has ports.
            Protocol::Icmp => self.protocol.is_none() && self.ports == (0, u16::MAX),
            _ => self.protocol.is_none_or(|own| own == protocol) && (self.ports.0..=self.ports.1).contains(&port),
        }
    }
}

fn is_in(address: IpAddr, block: IpAddr, bits: u8) -> bool {
    let differing = match (address, block) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (u32::from(one) ^ u32::from(other)).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (u128::from(one) ^ u128::from(other)).leading_zeros(),
        _ => return false,
    };
    differing >= bits.into()
}

/// An address that was answered for a name.
#[derive(Clone, Copy, Debug)]
struct Pin {
    address: IpAddr,
    /// The number of the rule that has the name.
    rule: usize,
    until_us: u64,
}

/// The rules of one container, and the addresses that its names have now.
#[derive(Debug)]
pub(crate) struct Egress {
    rules: Arc<[Rule]>,
    pins: Vec<Pin>,
}

impl Egress {
    pub fn new(rules: Arc<[Rule]>) -> Self {
        Egress { rules, pins: Vec::new() }
    }

    pub fn has(&self, rules: &Arc<[Rule]>) -> bool {
        self.rules == *rules
    }

    /// Whether a name may be asked for.
    pub fn allows_name(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.has_name(name))
    }

    /// Whether a flow may begin. `names` are those of our own table that have the address.
    pub fn allows<'a>(
        &self,
        now_us: u64,
        protocol: Protocol,
        (address, port): (IpAddr, u16),
        names: &(impl Iterator<Item = &'a str> + Clone),
    ) -> bool {
        let pinned = |rule: usize| {
            let is = |pin: &Pin| pin.address == address && pin.rule == rule && pin.until_us > now_us;
            self.pins.iter().any(is)
        };
        self.rules.iter().enumerate().filter(|(_, rule)| rule.has_port(protocol, port)).any(|(number, rule)| match rule
            .to
        {
            To::Block(block, bits) => is_in(address, block, bits),
            _ => pinned(number) || names.clone().any(|name| rule.has_name(name)),
        })
    }

    /// Lets an address through that was answered for a name, for so many seconds.
    pub fn pin(&mut self, now_us: u64, name: &str, address: IpAddr, ttl_s: u32) {
        let until_us = now_us + (u64::from(ttl_s) * 1_000_000).clamp(PIN_MIN_US, PIN_MAX_US);
        for (rule, _) in self.rules.iter().enumerate().filter(|(_, rule)| rule.has_name(name)) {
            if let Some(pin) = self.pins.iter_mut().find(|pin| pin.address == address && pin.rule == rule) {
                pin.until_us = pin.until_us.max(until_us);
                continue;
            }
            if self.pins.len() >= PINS {
                self.pins.retain(|pin| pin.until_us > now_us);
            }
            if self.pins.len() >= PINS {
                // The one that would end first.
                let first = self.pins.iter().enumerate().min_by_key(|(_, pin)| pin.until_us).map(|(place, _)| place);
                first.map(|place| self.pins.swap_remove(place));
            }
            self.pins.push(Pin { address, rule, until_us });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn egress(rules: &[&str]) -> Egress {
        Egress::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn allows(egress: &Egress, now_us: u64, protocol: Protocol, to: &str, port: u16) -> bool {
        egress.allows(now_us, protocol, (to.parse().unwrap(), port), &std::iter::empty())
    }

    #[test]
    fn addresses_blocks_ports_and_protocols_are_kept_to() {
        let rules = egress(&["192.0.2.7:443/tcp", "198.51.100.0/24:8000-8010", "fd00::/8", "[2001:db8::1]:53/udp"]);
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        for (protocol, to, port, expected) in [
            (tcp, "192.0.2.7", 443, true),
            (udp, "192.0.2.7", 443, false),
            (tcp, "192.0.2.7", 80, false),
            (tcp, "192.0.2.8", 443, false),
            (udp, "198.51.100.9", 8010, true),
            (udp, "198.51.100.9", 8011, false),
            (tcp, "198.51.101.9", 8000, false),
            (tcp, "fd12::3", 1, true),
            (Protocol::Icmp, "fd12::3", 0, true),
            (Protocol::Icmp, "192.0.2.7", 0, false),
            (udp, "2001:db8::1", 53, true),
            (tcp, "2001:db8::1", 53, false),
        ] {
            assert_eq!(allows(&rules, 0, protocol, to, port), expected, "{protocol:?} {to} {port}");
        }
        assert!(!allows(&egress(&[]), 0, tcp, "192.0.2.7", 443));
    }

    #[test]
    fn names_let_their_addresses_through_as_long_as_they_were_answered() {
        let mut rules = egress(&["One.Example.org.:443", "*.example.net"]);
        assert!(rules.allows_name("one.example.org") && rules.allows_name("a.b.example.net"));
        assert!(!rules.allows_name("example.net") && !rules.allows_name("two.example.org"));
        assert!(!rules.allows_name("badexample.net") && egress(&["*"]).allows_name("any"));
        rules.pin(0, "one.example.org", [192, 0, 2, 1].into(), 300);
        rules.pin(0, "two.example.org", [192, 0, 2, 2].into(), 300);
        let reaches = |rules: &Egress, now_s: u64, to, port| allows(rules, now_s * 1_000_000, Protocol::Tcp, to, port);
        assert!(reaches(&rules, 299, "192.0.2.1", 443) && !reaches(&rules, 301, "192.0.2.1", 443));
        assert!(!reaches(&rules, 1, "192.0.2.1", 80) && !reaches(&rules, 1, "192.0.2.2", 443));
        // A name that is not kept at all is still kept for as long as it takes to connect.
        rules.pin(0, "x.example.net", [192, 0, 2, 3].into(), 0);
        assert!(reaches(&rules, 59, "192.0.2.3", 80) && !reaches(&rules, 61, "192.0.2.3", 80));
    }

    #[test]
    fn our_own_names_need_no_answer() {
        let rules = egress(&["host.docker.internal:80"]);
        let gateway = ([10, 0, 0, 1].into(), 80);
        assert!(rules.allows(0, Protocol::Tcp, gateway, &["host.docker.internal"].into_iter()));
        assert!(!rules.allows(0, Protocol::Tcp, gateway, &["web"].into_iter()));
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let mut rules = egress(&["*"]);
        for number in 0..5000_u32 {
            rules.pin(0, "a", Ipv4Addr::from(number).into(), 100 + number);
        }
        assert_eq!(rules.pins.len(), PINS);
        assert!(allows(&rules, 0, Protocol::Tcp, "0.0.19.135", 1), "the last to end is there");
        rules.pin(PIN_MAX_US, "a", Ipv6Addr::LOCALHOST.into(), 1);
        assert_eq!(rules.pins.len(), 1);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "a..b",
            "*",
            "a b",
            "host:0",
            "host:9-8",
            "host:99999",
            "host:",
            "10.0.0.0/33",
            "host/24",
            "[fd00::1",
            "[fd00::]x",
            "*x.org",
            "a.*.org",
            "host/sctp",
        ] {
            assert_eq!(text.parse::<Rule>().is_ok(), text == "*", "{text}");
        }
    }
}
