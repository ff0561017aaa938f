//! What the user says of a program: Podman's `slirp4netns:KEY=VALUE,…` and `pasta:OPTION,…`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use base::{ContainerId, Kind, Report};

use crate::helper::{Choice, Program};
use crate::setup::DEVICE;
use crate::{Addressing, Family};

/// Options of pasta that a user may give, with their short spelling and whether a value follows. The others are ours to set.
const PASTA: &[(&str, &str, bool)] = &[
    ("address", "a", true),
    ("netmask", "n", true),
    ("gateway", "g", true),
    ("dns-forward", "", true),
    ("mtu", "m", true),
    ("ns-ifname", "I", true),
    ("tcp-ns", "T", true),
    ("udp-ns", "U", true),
    ("interface", "i", true),
    ("outbound", "o", true),
    ("outbound-if4", "", true),
    ("outbound-if6", "", true),
    ("pcap", "p", true),
    ("map-host-loopback", "", true),
    ("map-guest-addr", "", true),
    ("ipv4-only", "4", false),
    ("ipv6-only", "6", false),
    ("map-gw", "", false),
    ("no-map-gw", "", false),
    ("no-tcp", "", false),
    ("no-udp", "", false),
    ("no-icmp", "", false),
    ("no-dhcp", "", false),
    ("no-dhcpv6", "", false),
    ("no-ndp", "", false),
    ("no-ra", "", false),
];

/// Those that pasta is not given as they are: they become [`Plan`].
const PLANNED: &[&str] = &[
    "address",
    "netmask",
    "gateway",
    "dns-forward",
    "mtu",
    "ns-ifname",
    "ipv4-only",
    "ipv6-only",
    "map-gw",
    "no-map-gw",
];

/// What options and defaults come to.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The container's addresses; a family that it has none of is unspecified.
    pub addressing: Addressing,
    /// The name of its device.
    pub device: String,
    /// Further arguments for the program.
    pub arguments: Vec<String>,
    /// Whether the gateway's address leads to the host's loopback. Otherwise the host is its own address.
    pub gateway_is_host: bool,
}

impl Choice {
    /// Reads `slirp4netns[:…]`, `slirp[:…]` and `pasta[:…]`; `None` for something else.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let program = match name {
            "slirp" | "slirp4netns" => Program::Slirp,
            "pasta" => Program::Pasta,
            _ => return None,
        };
        let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
        Some(Choice { program, options })
    }

    /// What it means for this container, on a host that reaches others by IPv6 or does not.
    pub fn plan(&self, id: &ContainerId, mac: Option<[u8; 6]>, ipv6: bool) -> Result<Plan, Report> {
        let mut plan = match self.program {
            Program::Slirp => self.slirp(id)?,
            Program::Pasta => self.pasta(id, ipv6)?,
        };
        plan.addressing.gateway_mac = [0; 6];
        plan.addressing.mac = mac.unwrap_or(plan.addressing.mac);
        Ok(plan)
    }

    fn wrong(&self, option: &str, why: &str) -> Report {
        Report::new(Kind::Usage, format!("invalid option {option:?} of the network {self}: {why}"))
    }

    fn value<T: FromStr>(&self, option: &str, value: &str, what: &str) -> Result<T, Report> {
        value.parse().map_err(|_| self.wrong(option, &format!("not {what}")))
    }

    fn slirp(&self, id: &ContainerId) -> Result<Plan, Report> {
        let mut addressing = Addressing::default_bridge(id);
        addressing.v4 = in_network([10, 0, 2, 0].into(), 24);
        let v6 = |number| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number);
        // libslirp's own, which slirp4netns cannot change.
        addressing.v6 = Family { container: v6(0x100), gateway: v6(2), dns: v6(3), prefix: 64 };
        let (mut arguments, mut gateway_is_host, mut ipv6) = (Vec::new(), false, true);
        for option in &self.options {
            let (key, value) = option.split_once('=').ok_or_else(|| self.wrong(option, "not KEY=VALUE"))?;
            let on = || self.value::<bool>(option, value, "true or false");
            match key {
                "mtu" => addressing.mtu = self.value(option, value, "a size in bytes")?,
                "cidr" => {
                    let (address, prefix) =
                        value.split_once('/').ok_or_else(|| self.wrong(option, "not ADDRESS/PREFIX"))?;
                    let prefix = self.value(option, prefix, "the length of a prefix")?;
                    if !(8..=25).contains(&prefix) {
                        return Err(self.wrong(option, "its prefix is not of 8 to 25 bits"));
                    }
                    addressing.v4 = in_network(self.value(option, address, "an IPv4 address")?, prefix);
                    arguments.push(format!("--cidr={}/{prefix}", network(addressing.v4.container, prefix)));
                }
                "allow_host_loopback" => gateway_is_host = on()?,
                "enable_ipv6" => ipv6 = on()?,
                "outbound_addr" => arguments.push(format!("--outbound-addr={value}")),
                "outbound_addr6" => arguments.push(format!("--outbound-addr6={value}")),
                "port_handler" if value == "slirp4netns" => {}
                "port_handler" => return Err(self.wrong(option, "ports are published by slirp4netns itself")),
                _ => {
                    let keys =
                        "mtu, cidr, allow_host_loopback, enable_ipv6, outbound_addr, outbound_addr6, port_handler";
                    return Err(self
                        .wrong(option, "there is none of this name")
                        .with_hint(format!("the options are {keys}")));
                }
            }
        }
        self.check_mtu(addressing.mtu, 65_521)?;
        if !gateway_is_host {
            arguments.push("--disable-host-loopback".to_owned());
        }
        if ipv6 {
            arguments.push("--enable-ipv6".to_owned());
        } else {
            addressing.v6 = without(Ipv6Addr::UNSPECIFIED);
        }
        arguments.push(format!("--mtu={}", addressing.mtu));
        Ok(Plan { addressing, device: DEVICE.to_owned(), arguments, gateway_is_host })
    }

    /// IPv6 wants 1280 bytes (RFC 8200 §5); `most` is what the program takes.
    fn check_mtu(&self, mtu: u16, most: u16) -> Result<(), Report> {
        if (1280..=most).contains(&mtu) {
            return Ok(());
        }
        Err(self.wrong(&format!("mtu={mtu}"), &format!("not of 1280 to {most}")))
    }

    fn pasta(&self, id: &ContainerId, ipv6: bool) -> Result<Plan, Report> {
        let given = self.pasta_options()?;
        let mut plan = Plan {
            addressing: Addressing::default_bridge(id),
            device: DEVICE.to_owned(),
            arguments: Vec::new(),
            gateway_is_host: false,
        };
        let Addressing { v4, v6, mtu, .. } = &mut plan.addressing;
        for (name, value) in &given {
            let family = || self.value::<IpAddr>(name, value, "an address");
            match *name {
                "netmask" => v4.prefix = self.value(name, value, "the length of a prefix")?,
                "mtu" => *mtu = self.value(name, value, "a size in bytes")?,
                // pasta's limit is one below the kernel's.
                "ns-ifname" if value.len() > 14 || value == "lo" || value.contains(['/', ' ', ':']) => {
                    return Err(self.wrong(value, "not a name for a device, of 14 letters at most"));
                }
                "ns-ifname" => value.clone_into(&mut plan.device),
                "map-gw" => plan.gateway_is_host = true,
                "address" => match family()? {
                    IpAddr::V4(address) => v4.container = address,
                    IpAddr::V6(address) => v6.container = address,
                },
                "gateway" => match family()? {
                    IpAddr::V4(address) => v4.gateway = address,
                    IpAddr::V6(address) => v6.gateway = address,
                },
                "dns-forward" => match family()? {
                    IpAddr::V4(address) => v4.dns = address,
                    IpAddr::V6(address) => v6.dns = address,
                },
                _ => {}
            }
        }
        self.check_mtu(*mtu, 65_520)?;
        let has = |name: &str| given.iter().any(|(given, _)| *given == name);
        if !(8..=30).contains(&v4.prefix) {
            return Err(self.wrong("netmask", "its prefix is not of 8 to 30 bits"));
        }
        if has("ipv4-only") && has("ipv6-only") {
            return Err(self.wrong("ipv6-only", "ipv4-only is given too"));
        }
        if has("ipv6-only") && !ipv6 {
            return Err(self.wrong("ipv6-only", "this machine has no IPv6"));
        }
        // It answers nothing by IPv6 where the host has none.
        if has("ipv4-only") || !ipv6 {
            *v6 = without(Ipv6Addr::UNSPECIFIED);
        }
        if has("ipv6-only") {
            *v4 = without(Ipv4Addr::UNSPECIFIED);
        }
        plan.arguments = pasta_arguments(&plan);
        for name in ["tcp-ns", "udp-ns"].into_iter().filter(|name| !has(name)) {
            plan.arguments.extend([format!("--{name}"), "none".to_owned()]);
        }
        for (name, value) in given.iter().filter(|(name, _)| !PLANNED.contains(name)) {
            plan.arguments.push(format!("--{name}"));
            plan.arguments.extend((!value.is_empty()).then(|| value.clone()));
        }
        Ok(plan)
    }

    /// Names without dashes, and values.
    fn pasta_options(&self) -> Result<Vec<(&'static str, String)>, Report> {
        let mut given = Vec::new();
        let mut words = self.options.iter();
        while let Some(word) = words.next() {
            let (option, attached) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let known = PASTA.iter().find(|(long, short, _)| {
                option.strip_prefix("--").is_some_and(|name| name == *long)
                    || (!short.is_empty() && option.strip_prefix('-').is_some_and(|name| name == *short))
            });
            let (long, _, takes_value) = known.ok_or_else(|| match option {
                "-t" | "-u" | "--tcp-ports" | "--udp-ports" => {
                    self.wrong(word, "ports are published by --publish").with_hint("publish the ports with -p")
                }
                _ => self.wrong(word, "it is none that sublet hands on"),
            })?;
            let value = match (takes_value, attached) {
                (false, Some(_)) => return Err(self.wrong(word, "it takes no value")),
                (false, None) => String::new(),
                (true, attached) => attached
                    .or_else(|| words.next().cloned())
                    .filter(|value| !value.is_empty())
                    .ok_or_else(|| self.wrong(word, "its value is missing"))?,
            };
            given.push((*long, value));
        }
        Ok(given)
    }
}

impl Plan {
    /// An option that the help of this build of the program does not name.
    pub fn missing(&self, help: &str) -> Option<&str> {
        let named =
            |option: &str| help.split(|c: char| c.is_whitespace() || ",=".contains(c)).any(|word| word == option);
        let mut options = self.arguments.iter().filter_map(|argument| argument.split('=').next());
        options.find(|option| option.starts_with("--") && !named(option))
    }
}

/// What pasta is told of addresses.
fn pasta_arguments(plan: &Plan) -> Vec<String> {
    let Addressing { v4, v6, mtu, .. } = &plan.addressing;
    let mut arguments = vec!["--ns-ifname".to_owned(), plan.device.clone()];
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("--mtu", mtu.to_string());
    let (has_v4, has_v6) = (!v4.container.is_unspecified(), !v6.container.is_unspecified());
    if has_v4 {
        add("--address", v4.container.to_string());
        add("--netmask", v4.prefix.to_string());
        add("--gateway", v4.gateway.to_string());
        add("--dns-forward", v4.dns.to_string());
    }
    if has_v6 {
        add("--address", v6.container.to_string());
        add("--gateway", v6.gateway.to_string());
        add("--dns-forward", v6.dns.to_string());
    }
    arguments.extend((!has_v6).then(|| "--ipv4-only".to_owned()));
    arguments.extend((!has_v4).then(|| "--ipv6-only".to_owned()));
    arguments.extend((!plan.gateway_is_host).then(|| "--no-map-gw".to_owned()));
    arguments
}

/// A family that a container has no address of.
fn without<A: Copy>(unspecified: A) -> Family<A> {
    Family { container: unspecified, gateway: unspecified, dns: unspecified, prefix: 0 }
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

/// libslirp's numbers in a network.
fn in_network(address: Ipv4Addr, prefix: u8) -> Family<Ipv4Addr> {
    let at = |number| Ipv4Addr::from(u32::from(network(address, prefix)) | number);
    Family { container: at(100), gateway: at(2), dns: at(3), prefix }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        let id = "0123456789abcdef".repeat(4).parse().unwrap();
        Choice::parse(text).unwrap().plan(&id, None, true).map_err(|report| report.lines().join(": "))
    }

    #[test]
    fn podmans_spelling_is_read() {
        let slirp =
            plan("slirp4netns:port_handler=slirp4netns,mtu=1400,cidr=10.9.0.0/16,allow_host_loopback=true").unwrap();
        assert_eq!(slirp.arguments, ["--cidr=10.9.0.0/16", "--enable-ipv6", "--mtu=1400"]);
        let v4 = slirp.addressing.v4;
        assert_eq!((v4.container, v4.gateway, v4.prefix), ([10, 9, 0, 100].into(), [10, 9, 0, 2].into(), 16));
        assert!(slirp.gateway_is_host);
        let pasta = plan(
            "pasta:-I,tap0,--ipv4-only,-a,10.0.2.5,-n,24,-g,10.0.2.2,--dns-forward,10.0.2.3,-m,1500,--no-ndp,-T,5201",
        )
        .unwrap();
        assert_eq!(
            pasta.arguments.join(" "),
            "--ns-ifname tap0 --mtu 1500 --address 10.0.2.5 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3 --ipv4-only \
             --no-map-gw --udp-ns none --no-ndp --tcp-ns 5201"
        );
        assert_eq!((pasta.device.as_str(), pasta.addressing.mtu), ("tap0", 1500));
        assert!(pasta.addressing.v6.container.is_unspecified());
        assert_eq!(pasta.missing("  -I, --ns-ifname NAME\n --mtu --address --netmask\n"), Some("--gateway"));
        assert_eq!(Choice::parse("slirp:mtu=9000").unwrap().to_string(), "slirp4netns:mtu=9000");
        assert_eq!(Choice::parse("front"), None);
    }

    #[test]
    fn what_a_program_cannot_do_is_refused() {
        for (text, why) in [
            ("slirp:mtu=70000", "not a size in bytes"),
            ("slirp:mtu=100", "not of 1280 to 65521"),
            ("slirp:cidr=10.0.2.0/30", "its prefix is not of 8 to 25 bits"),
            ("slirp:port_handler=rootlesskit", "ports are published by slirp4netns itself"),
            ("slirp:enable_ipv6=maybe", "not true or false"),
            ("slirp:speed=high", "there is none of this name"),
            ("pasta:-t,80", "ports are published by --publish"),
            ("pasta:--netns,/proc/1/ns/net", "it is none that sublet hands on"),
            ("pasta:-a", "its value is missing"),
            ("pasta:-a,somewhere", "not an address"),
            ("pasta:-I,lo", "of 14 letters at most"),
            ("pasta:-m,1000", "not of 1280 to 65520"),
            ("pasta:-4,-6", "ipv4-only is given too"),
            ("pasta:--map-gw=yes", "it takes no value"),
        ] {
            assert!(plan(text).unwrap_err().ends_with(why), "{text}: {:?}", plan(text));
        }
        let id = "0123456789abcdef".repeat(4).parse().unwrap();
        let alone = Choice::parse("pasta:-6").unwrap().plan(&id, None, false);
        assert!(alone.unwrap_err().to_string().ends_with("this machine has no IPv6"));
    }
}
