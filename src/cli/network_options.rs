//! `--network` and what belongs to it, of `run` and `create`.

use std::net::{Ipv4Addr, Ipv6Addr};

use base::{Kind, Report};
use clap::Args;
use engine::container::record::NetworkMode;
use engine::network::endpoint::Wanted;
use engine::network::program::Choice;

use crate::parse;

/// Which networks a container has.
#[derive(Args)]
pub struct NetworkOptions {
    /// builtin, host, none, container:NAME, ns:PATH, slirp[:KEY=VALUE,…], pasta[:OPTION,…], or networks that were made: NAME, or name=NAME,alias=…,link=…,ip=…,ip6=…,mac-address=…
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// A name by which the other containers of the network find it
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Another container of the network, and a name that only this one finds it by: NAME[:LINK]
    #[arg(long, value_name = "NAME[:LINK]")]
    link: Vec<String>,
    /// The container's IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// The container's IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// The address of the container's network device
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    /// What the container may reach, and nothing else: HOST[:PORT[-PORT]][/tcp|/udp], where the host is a name, *.NAME, *, an
    /// address or ADDRESS/BITS; or none
    #[arg(long, value_name = "RULE")]
    egress: Vec<String>,
    /// How much the container may send, and receive, in a second: a number with bit, kbit, mbit or gbit
    #[arg(long, value_name = "RATE")]
    net_rate: Option<String>,
}

/// What they say.
#[derive(Debug, Default)]
pub struct Networks {
    pub mode: NetworkMode,
    pub shared: Vec<Wanted>,
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub mac_address: Option<[u8; 6]>,
    /// What it may reach; anything without.
    pub egress: Option<Vec<String>>,
    /// Bits a second in each direction.
    pub rate: Option<u64>,
}

impl NetworkOptions {
    /// Addresses and aliases beside a network that was made are those of the first.
    pub fn into_networks(self) -> Result<Networks, Report> {
        let NetworkOptions { network, network_alias, link, ip, ip6, mac_address, egress, net_rate } = self;
        let egress = rules(egress)?;
        let links = link.iter().map(|text| parse_link(text)).collect::<Result<Vec<_>, _>>()?;
        let rate = net_rate.as_deref().map(parse::net_rate).transpose()?;
        let mac = mac_address.as_deref().map(parse::mac_address).transpose()?;
        let (mut mode, mut shared) = (None, Vec::new());
        for text in &network {
            match builtin(text)? {
                Some(builtin) => mode = Some(builtin),
                None => shared.push(wanted(text)?),
            }
        }
        if mode.is_some() && network.len() > 1 {
            let text = "conflicting options: cannot attach both user-defined and non-user-defined network-modes";
            return Err(Report::new(Kind::Usage, text));
        }
        let Some(first) = shared.first_mut() else {
            if !network_alias.is_empty() {
                let text = "network-scoped alias is supported only for containers in user defined networks";
                return Err(Report::new(Kind::Usage, text)
                    .with_hint("make a network (network create), and name it with --network"));
            }
            if !links.is_empty() {
                let text = "links are supported only for containers in user defined networks";
                return Err(Report::new(Kind::Usage, text)
                    .with_hint("make a network (network create), and name it with --network for both containers"));
            }
            return Ok(Networks { mode: mode.unwrap_or_default(), shared, ip, ip6, mac_address: mac, egress, rate });
        };
        let twice = |option: &str| {
            let text = format!("conflicting options: cannot specify both --{option} and per-network {option}");
            Err(Report::new(Kind::Usage, text))
        };
        first.aliases.extend(network_alias);
        first.links.extend(links);
        match (first.ip, first.ip6, first.mac) {
            (Some(_), ..) if ip.is_some() => return twice("ip"),
            (_, Some(_), _) if ip6.is_some() => return twice("ip6"),
            (.., Some(_)) if mac.is_some() => return twice("mac-address"),
            _ => {}
        }
        (first.ip, first.ip6, first.mac) = (first.ip.or(ip), first.ip6.or(ip6), first.mac.or(mac));
        Ok(Networks { mode: NetworkMode::Shared, shared, egress, rate, ..Networks::default() })
    }
}

/// Docker's `NAME:LINK`: the name that the container has for another one, and that one's.
pub fn parse_link(text: &str) -> Result<(String, String), Report> {
    let (name, link) = text.split_once(':').unwrap_or((text, text));
    if name.is_empty() || link.is_empty() || link.contains(':') {
        return Err(Report::new(Kind::Usage, format!("invalid format for links: {text}")));
    }
    Ok((link.to_owned(), name.to_owned()))
}

/// The rules that `--egress` gives; `none` is an empty list.
fn rules(texts: Vec<String>) -> Result<Option<Vec<String>>, Report> {
    match texts.as_slice() {
        [] => Ok(None),
        [none] if none == "none" => Ok(Some(Vec::new())),
        _ if texts.iter().any(|text| text == "none") => {
            Err(Report::new(Kind::Usage, "conflicting options: --egress none and other rules"))
        }
        _ => Ok(Some(texts)),
    }
}

/// A network that need not be made; `None` for one that has.
fn builtin(text: &str) -> Result<Option<NetworkMode>, Report> {
    let wrong = |text: String| Err(Report::new(Kind::Usage, text));
    Ok(Some(match text {
        "" | "builtin" | "default" | "bridge" => NetworkMode::Builtin,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        _ => match text.split_once(':') {
            Some(("container", "")) => {
                return wrong("Invalid network mode: invalid container format container:<name|id>".to_owned());
            }
            Some(("container", name)) => NetworkMode::Container(name.to_owned()),
            Some(("ns", path)) if path.starts_with('/') => NetworkMode::Namespace(path.into()),
            Some(("ns", path)) => return wrong(format!("invalid network mode: {path:?} is not an absolute path")),
            _ => return Ok(Choice::parse(text).map(NetworkMode::Program)),
        },
    }))
}

/// Docker's `name=NAME,KEY=VALUE,…` and Podman's `NAME[:KEY=VALUE,…]`.
fn wanted(text: &str) -> Result<Wanted, Report> {
    let (name, fields) = match text.split_once(':') {
        _ if text.starts_with("name=") => ("", text),
        Some((name, fields)) => (name, fields),
        None => (text, ""),
    };
    let mut wanted = Wanted { network: name.to_owned(), ..Wanted::default() };
    for field in fields.split(',').filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let wrong = || Report::new(Kind::Usage, format!("invalid field {field} of the network {text}"));
        match key {
            "name" => value.clone_into(&mut wanted.network),
            "link" => wanted.links.push(parse_link(value)?),
            "alias" if !value.is_empty() => wanted.aliases.push(value.to_owned()),
            "ip" => wanted.ip = Some(value.parse().map_err(|_| wrong())?),
            "ip6" => wanted.ip6 = Some(value.parse().map_err(|_| wrong())?),
            "mac-address" | "mac" => wanted.mac = Some(parse::mac_address(value)?),
            _ => return Err(wrong().with_hint("the fields are name, alias, link, ip, ip6 and mac-address")),
        }
    }
    if wanted.network.is_empty() {
        return Err(Report::new(Kind::Usage, format!("network name cannot be empty: {text}")));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn options(networks: &[&str]) -> NetworkOptions {
        let network = networks.iter().map(ToString::to_string).collect();
        let (network_alias, link, egress) = (Vec::new(), Vec::new(), Vec::new());
        NetworkOptions { network, network_alias, link, ip: None, ip6: None, mac_address: None, egress, net_rate: None }
    }

    fn refused(options: NetworkOptions) -> String {
        options.into_networks().map_err(|report| report.lines().join(": ")).unwrap_err()
    }

    #[test]
    fn both_spellings_say_the_same() {
        let fields = "alias=a,alias=b,ip=10.1.2.3,ip6=fd00::3,mac-address=02:00:00:00:00:07";
        let docker = options(&[&format!("name=front,{fields}"), "back"]).into_networks().unwrap();
        let podman = options(&[&format!("front:{fields}"), "back"]).into_networks().unwrap();
        assert_eq!(docker.shared, podman.shared);
        assert_eq!((docker.mode, docker.shared.len()), (NetworkMode::Shared, 2));
        let first = &docker.shared[0];
        assert_eq!((first.network.as_str(), first.aliases.join(" ").as_str()), ("front", "a b"));
        assert_eq!((first.ip, first.mac), (Some([10, 1, 2, 3].into()), Some([2, 0, 0, 0, 0, 7])));
        assert_eq!(docker.shared[1], Wanted { network: "back".to_owned(), ..Wanted::default() });
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert_eq!(options(&[]).into_networks().unwrap().mode, NetworkMode::Builtin);
        assert_eq!(
            options(&["slirp4netns:mtu=1500"]).into_networks().unwrap().mode.to_string(),
            "slirp4netns:mtu=1500"
        );
        let both = "conflicting options: cannot attach both user-defined and non-user-defined network-modes";
        assert_eq!(refused(options(&["front", "host"])), both);
        let alias = NetworkOptions { network_alias: vec!["a".to_owned()], ..options(&["bridge"]) };
        assert_eq!(refused(alias), "network-scoped alias is supported only for containers in user defined networks");
        let link = NetworkOptions { link: vec!["a:b".to_owned()], ..options(&[]) };
        assert_eq!(refused(link), "links are supported only for containers in user defined networks");
        for wrong in ["a:b:c", ":b", "a:", ""] {
            let link = NetworkOptions { link: vec![wrong.to_owned()], ..options(&["front"]) };
            assert_eq!(refused(link), format!("invalid format for links: {wrong}"));
        }
        let twice = NetworkOptions { ip: Some([10, 1, 2, 3].into()), ..options(&["front:ip=10.1.2.4"]) };
        assert_eq!(refused(twice), "conflicting options: cannot specify both --ip and per-network ip");
        assert_eq!(refused(options(&["front:mtu=3"])), "invalid field mtu=3 of the network front:mtu=3");
        let both = NetworkOptions { egress: vec!["none".to_owned(), "a".to_owned()], ..options(&[]) };
        assert_eq!(refused(both), "conflicting options: --egress none and other rules");
        assert_eq!(refused(options(&["ns:here"])), "invalid network mode: \"here\" is not an absolute path");
    }
}
