//! A container's network: its own, the machine's, another container's, or a namespace that is there already; and what
//! follows from the choice for its files, its ids, and the role net.
//!
//! One with another container's network has its ids (see `joined`) and its files of `/etc` too.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use base::{ContainerId, Kind, Report};
use monitor::networks::Joining;
use net::{Addressing, Family, NetError, NetSpec, Publish, Transport};

use crate::Engine;
use crate::container::create::CreateRequest;
use crate::container::lookup;
use crate::container::record::{HostSettings, NetworkMode, PortMapping, Protocol, Record, load};
use crate::container::state::condition;
use crate::network::{endpoint, program};

/// Resolves the container that a request names for its network, and refuses, in Docker's words, what comes with that.
pub(crate) fn check(engine: &Engine, request: &mut CreateRequest, id: &ContainerId) -> Result<(), Report> {
    endpoint::resolve(engine, &mut request.host.networks)?;
    check_addresses(&request.host, id)?;
    check_egress(&request.host)?;
    check_rate(&request.host)?;
    let host = &mut request.host;
    let publishes = !host.ports.is_empty() || host.publish_all;
    if let NetworkMode::Program(choice) = &host.network {
        program::check(engine, choice, host, id)?;
    }
    if publishes && !host.network.publishes() && !matches!(host.network, NetworkMode::Container(_)) {
        let kind = host.network.to_string();
        let kind = kind.split(':').next().unwrap_or_default();
        engine.notice(&format!("Published ports are discarded when using {kind} network mode"));
    }
    let NetworkMode::Container(name) = &mut host.network else { return Ok(()) };
    let resolving = !(host.dns.is_empty() && host.dns_search.is_empty() && host.dns_options.is_empty());
    let conflicts = [
        (request.hostname.is_some(), "hostname and the network mode"),
        (resolving, "dns and the network mode"),
        (!host.add_hosts.is_empty(), "custom host-to-IP mapping and the network mode"),
        (publishes, "port publishing and the container type network mode"),
        (!request.exposed_ports.is_empty(), "port exposing and the container type network mode"),
    ];
    if let Some((_, words)) = conflicts.iter().find(|(is, _)| *is) {
        return Err(Report::new(Kind::Usage, format!("conflicting options: {words}"))
            .with_hint("give the option to the container whose network is used"));
    }
    *name = lookup::find(engine, name)?.to_string();
    Ok(())
}

/// Refuses rules that are none, and rules for a network whose traffic is not ours.
fn check_egress(host: &HostSettings) -> Result<(), Report> {
    let Some(rules) = &host.egress else { return Ok(()) };
    if !matches!(host.network, NetworkMode::Builtin | NetworkMode::Shared) {
        return Err(Report::new(Kind::Usage, "conflicting options: egress and the network mode")
            .with_hint("rules are kept by the networks builtin and by those that were made"));
    }
    net::egress::parse(rules).map(drop).map_err(NetError::into_report)
}

/// Refuses a limit for what is not carried by us.
fn check_rate(host: &HostSettings) -> Result<(), Report> {
    if host.net_rate.is_none() || matches!(host.network, NetworkMode::Builtin | NetworkMode::Shared) {
        return Ok(());
    }
    Err(Report::new(Kind::Usage, "conflicting options: net-rate and the network mode")
        .with_hint("rates are kept by the networks builtin and by those that were made"))
}

/// The host name of a container that was given none, where its network has one.
pub(crate) fn hostname(engine: &Engine, host: &HostSettings) -> Result<Option<String>, Report> {
    Ok(match &host.network {
        // What it says of itself on that network is then true.
        NetworkMode::Host => machine(),
        _ if host.host_uts => machine(),
        NetworkMode::Container(id) => Some(load(engine, &id.parse()?)?.settings.hostname),
        _ => None,
    })
}

fn machine() -> Option<String> {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok())
}

/// The container whose network and files of `/etc` this one has: itself, unless it has another's.
pub(crate) fn owner(engine: &Engine, record: &Record) -> Result<Record, Report> {
    let mut owner = record.clone();
    while let NetworkMode::Container(id) = &owner.host.network {
        owner = load(engine, &id.parse()?)?;
    }
    Ok(owner)
}

/// The names of the networks that a container is in; none where they are another container's, or were given by path.
pub(crate) fn names(host: &HostSettings) -> Vec<String> {
    let mode = match &host.network {
        NetworkMode::Container(_) | NetworkMode::Namespace(_) | NetworkMode::Shared => None,
        NetworkMode::Program(choice) => Some(choice.program.name().to_owned()),
        named => Some(named.to_string()),
    };
    mode.into_iter().chain(host.networks.iter().map(|wanted| wanted.network.clone())).collect()
}

/// How a container's network was asked for: as `--network` takes it.
pub(crate) fn mode(host: &HostSettings) -> String {
    let first = host.networks.first().filter(|_| host.network == NetworkMode::Shared);
    first.map_or_else(|| host.network.to_string(), |first| first.network.clone())
}

/// What a container has in its networks, beginning with the one that leads to what is elsewhere.
pub(crate) fn in_order<'a>(own: Option<&'a Addressing>, joinings: &'a [Joining]) -> Vec<&'a Addressing> {
    let (leading, others): (Vec<_>, Vec<_>) = joinings.iter().partition(|joining| joining.default);
    own.into_iter().chain(leading.into_iter().chain(others).map(|joining| &joining.addressing)).collect()
}

/// The addresses of a container with a network of its own.
pub(crate) fn addressing(record: &Record) -> Option<Addressing> {
    if let Some(plan) = program::plan(record) {
        return Some(plan.addressing);
    }
    if record.host.network != NetworkMode::Builtin {
        return None;
    }
    let mut addressing = Addressing::default_bridge(&record.id);
    addressing.v4.container = record.host.ip.unwrap_or(addressing.v4.container);
    if let Some(container) = record.host.ip6 {
        addressing.v6 =
            Family { container, gateway: neighbour(container, 1), dns: neighbour(container, 2), prefix: 64 };
    }
    addressing.mac = record.host.mac_address.unwrap_or(addressing.mac);
    Some(addressing)
}

/// The address with this number in the network of 64 bits that another one is in.
fn neighbour(address: Ipv6Addr, number: u16) -> Ipv6Addr {
    let [a, b, c, d, ..] = address.segments();
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, number)
}

/// Refuses addresses that a container cannot have in a network of its own, or without one.
fn check_addresses(host: &HostSettings, id: &ContainerId) -> Result<(), Report> {
    let has_own = matches!(host.network, NetworkMode::Builtin | NetworkMode::Program(_));
    if !has_own && host.mac_address.is_some() {
        return Err(Report::new(Kind::Usage, "conflicting options: mac-address and the network mode"));
    }
    if host.network != NetworkMode::Builtin && (host.ip.is_some() || host.ip6.is_some()) {
        return Err(Report::new(Kind::Usage, "user specified IP address is supported on the builtin network only"));
    }
    let Addressing { v4, .. } = Addressing::default_bridge(id);
    let refuse = |address: IpAddr, hint: &str| {
        Err(Report::new(Kind::Usage, format!("no configured subnet contains IP address {address}")).with_hint(hint))
    };
    if let Some(ip) = host.ip {
        let [.., last] = ip.octets();
        let inside = ip.octets()[..3] == v4.gateway.octets()[..3] && ![0, 255].contains(&last);
        if !inside || [v4.gateway, v4.dns].contains(&ip) {
            return refuse(ip.into(), "those of containers are 10.213.0.3 to 10.213.0.254");
        }
    }
    if let Some(ip6) = host.ip6 {
        let unicast = matches!(ip6.segments()[0], 0x2000..0x4000 | 0xfc00..0xfe00);
        if !unicast || [neighbour(ip6, 0), neighbour(ip6, 1), neighbour(ip6, 2)].contains(&ip6) {
            return refuse(ip6.into(), "it is of 2000::/3 or fc00::/7, and does not end in ::, ::1 or ::2");
        }
    }
    Ok(())
}

/// What the role net is told.
pub(crate) fn spec(record: &Record, addressing: Addressing) -> NetSpec {
    let given = record.host.dns.iter().map(|address| SocketAddr::new(*address, 53));
    let resolvers_are_the_hosts = record.host.dns.is_empty();
    let own: Vec<IpAddr> = vec![addressing.v4.container.into(), addressing.v6.container.into()];
    let mut names = vec![(record.name.clone(), own.clone())];
    if record.settings.hostname != record.name {
        names.push((record.settings.hostname.clone(), own));
    }
    NetSpec {
        publish: published(record),
        resolvers: if resolvers_are_the_hosts { net::resolvers::now() } else { given.collect() },
        resolvers_are_the_hosts,
        names,
        addressing,
        host_loopback: false,
        egress: record.host.egress.clone(),
        rate: record.host.net_rate,
    }
}

/// The ports to be published.
pub(crate) fn published(record: &Record) -> Vec<Publish> {
    record.host.ports.iter().chain(&all_exposed(record)).map(publish).collect()
}

/// The exposed ports that are published since all are, each at any free port of the host.
fn all_exposed(record: &Record) -> Vec<PortMapping> {
    let exposed = record.settings.exposed_ports.iter().filter(|_| record.host.publish_all);
    let mapping = exposed.filter_map(|port| {
        let (number, protocol) = port.split_once('/')?;
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.as_str() == protocol)?;
        let container_port = number.parse().ok()?;
        Some(PortMapping { host_ip: None, host_port: 0, host_port_last: 0, container_port, protocol })
    });
    let given = |one: &PortMapping| (one.container_port, one.protocol);
    mapping.filter(|one| record.host.ports.iter().all(|other| given(other) != given(one))).collect()
}

fn publish(port: &PortMapping) -> Publish {
    Publish {
        host_ip: port.host_ip,
        host_port: port.host_port,
        host_port_last: port.host_port_last,
        container_port: port.container_port,
        transport: match port.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        },
    }
}

/// Names the container that has a port which a start wanted and did not get: who it is the role net cannot see.
pub(crate) fn name_the_owner(engine: &Engine, record: &Record, report: Report) -> Report {
    let wanted = |taken: &PortMapping| {
        let is = |port: &PortMapping| (port.host_port..=port.host_port_last).contains(&taken.host_port);
        record.host.ports.iter().any(|port| port.protocol == taken.protocol && is(port))
    };
    let has_one = |id: &ContainerId| {
        *id != record.id && condition(engine, id).is_ok_and(|condition| condition.published().iter().any(wanted))
    };
    let other = lookup::ids(engine).unwrap_or_default().into_iter().find(has_one);
    let name = other.filter(|_| report.kind() == Kind::Conflict).and_then(|id| load(engine, &id).ok());
    match name {
        Some(other) => report.with_hint(format!("container {} publishes it: publish another port", other.name)),
        None => report,
    }
}
