//! The files of `/etc` that every container has of its own: `hosts`, `hostname`, `resolv.conf`.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use base::Report;
use net::Addressing;
use net::resolvers::RESOLV_CONF;

use crate::Engine;
use crate::container::network;
use crate::container::record::{HostSettings, NetworkMode, Record};
use crate::file::{failed, replace};
use crate::network::program;

/// The one that a container need not have.
pub(crate) const HOSTS: &str = "hosts";
/// Name in the container's directory, path in the container.
pub(crate) const BOUND: [(&str, &str); 3] =
    [(HOSTS, "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// The most that is read of one.
const FILE_MAX: u64 = 1 << 20;

/// The directory that they lie in: with another container's network they are the other's.
pub(crate) fn directory(engine: &Engine, record: &Record) -> Result<PathBuf, Report> {
    Ok(engine.paths().container(&network::owner(engine, record)?.id))
}

/// Writes the files anew, as the machine's resolvers may have changed since the last start. Nothing runs meanwhile.
/// `addressing` is what it has in its networks, the first of which leads to what is elsewhere.
pub(crate) fn write(engine: &Engine, record: &Record, addressing: &[&Addressing]) -> Result<(), Report> {
    if matches!(record.host.network, NetworkMode::Container(_)) {
        return Ok(());
    }
    let directory = engine.paths().container(&record.id);
    let hostname = format!("{}\n", record.settings.hostname);
    let contents = [hosts(record, addressing), hostname, resolv_conf(record, addressing)];
    for ((name, _), content) in BOUND.iter().zip(contents) {
        replace(&directory.join(name), content.as_bytes(), false)?;
    }
    Ok(())
}

/// Has those that say what a container has in its networks say what it has now, as it runs; `before` is what it had. What
/// somebody in the container has written besides stays.
pub(crate) fn refresh(
    engine: &Engine,
    record: &Record,
    before: &[&Addressing],
    now: &[&Addressing],
) -> Result<(), Report> {
    let directory = engine.paths().container(&record.id);
    let edit = |number: usize, edited: &dyn Fn(&str) -> String| {
        let path = directory.join(BOUND[number].0);
        let text = read_bounded(&path)?;
        // It is bound into the container: a file in its place would not be seen.
        let new = edited(&text);
        let written = fs::File::options().write(true).open(&path).and_then(|mut file| {
            file.write_all(new.as_bytes())?;
            file.set_len(new.len() as u64)
        });
        written.map_err(|error| failed("writing", &path, error))
    };
    let old: Vec<IpAddr> = before.iter().flat_map(|had| [had.v4.container.into(), had.v6.container.into()]).collect();
    let gateways = (before.first().map(|had| had.v4.gateway), now.first().map(|has| has.v4.gateway));
    let servers = (before.first().map(|had| had.v4.dns), now.first().map(|has| has.v4.dns));
    edit(0, &|text| {
        let own = |line: &str| line.split_whitespace().next()?.parse().ok().filter(|address| old.contains(address));
        let kept = text.lines().filter(|line| own(line).is_none());
        let kept: String = kept.map(|line| exchanged(line, gateways) + "\n").collect();
        let names = own_names(record).join(" ");
        let own = now.iter().flat_map(|has| [has.v4.container.to_string(), has.v6.container.to_string()]);
        kept + &own.map(|address| address + "\t" + &names + "\n").collect::<String>()
    })?;
    edit(2, &|text| {
        let line = |line: &str| match line.strip_prefix("nameserver ") {
            Some(server) => ["nameserver ", &exchanged(server, servers), "\n"].concat(),
            None => [line, "\n"].concat(),
        };
        text.lines().map(line).collect()
    })
}

/// A line whose first word is the address that was before, with the one that is now in its place.
fn exchanged(line: &str, (before, now): (Option<Ipv4Addr>, Option<Ipv4Addr>)) -> String {
    let (Some(before), Some(now)) = (before.map(|address| address.to_string()), now) else { return line.to_owned() };
    match line.strip_prefix(&before) {
        Some(rest) if rest.is_empty() || rest.starts_with(char::is_whitespace) => format!("{now}{rest}"),
        _ => line.to_owned(),
    }
}

/// What the container's root has made of a file, if it is of a size that somebody reads.
fn read_bounded(path: &Path) -> Result<String, Report> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| {
        if file.metadata()?.len() > FILE_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        file.take(FILE_MAX).read_to_string(&mut text)
    });
    read.map(|_| text).map_err(|error| failed("reading", path, error))
}

/// The names that a container has for itself.
fn own_names(record: &Record) -> Vec<&str> {
    let mut names = vec![record.settings.hostname.as_str()];
    if record.name != record.settings.hostname {
        names.push(&record.name);
    }
    names
}

/// `host-gateway` is the network's gateway, and the machine itself where the container is in its network.
fn hosts(record: &Record, addressing: &[&Addressing]) -> String {
    let given = record.host.add_hosts.iter().map(|(name, address)| (name.clone(), address.parse().ok()));
    let added: Vec<(String, Option<IpAddr>)> = given.collect();
    if let Some(first) = addressing.first() {
        let host = program::host(record).unwrap_or(first.v4.gateway.into());
        return net::files::hosts(addressing, host, &own_names(record), &added);
    }
    let mut text = match record.host.network {
        NetworkMode::Host => fs::read_to_string("/etc/hosts").unwrap_or_default(),
        _ => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, address) in added {
        let address = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

fn resolv_conf(record: &Record, addressing: &[&Addressing]) -> String {
    let host = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let HostSettings { dns, dns_search, dns_options, .. } = &record.host;
    match addressing.first() {
        // A program asks the host's resolvers and no others.
        Some(_) if !dns.is_empty() && matches!(record.host.network, NetworkMode::Program(_)) => {
            net::files::resolv_conf(&host, dns, dns_search, dns_options)
        }
        Some(addressing) if addressing.v4.dns.is_unspecified() => {
            net::files::resolv_conf(&host, &[addressing.v6.dns.into()], dns_search, dns_options)
        }
        // It asks those that were given in its turn.
        Some(addressing) => net::files::resolv_conf(&host, &[addressing.v4.dns.into()], dns_search, dns_options),
        None if dns.is_empty() && dns_search.is_empty() && dns_options.is_empty() => host,
        None => net::files::resolv_conf(&host, dns, dns_search, dns_options),
    }
}
