//! The files of `/etc` that every container has of its own: `hosts`, `hostname`, `resolv.conf`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use base::Report;
use net::Addressing;
use net::resolvers::RESOLV_CONF;

use crate::Engine;
use crate::container::network;
use crate::container::record::{HostSettings, NetworkMode, Record};
use crate::file::{failed, replace};

/// Name in the container's directory, path in the container.
pub(crate) const BOUND: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

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

/// Writes those that say what a container has in its networks anew, as it runs, where it has others now than `before`. What
/// somebody in the container has written stays, which is told.
pub(crate) fn refresh(
    engine: &Engine,
    record: &Record,
    before: &[&Addressing],
    now: &[&Addressing],
) -> Result<(), Report> {
    let directory = engine.paths().container(&record.id);
    for (number, contents) in [(0, hosts as fn(&Record, &[&Addressing]) -> String), (2, resolv_conf)] {
        let path = directory.join(BOUND[number].0);
        let (known, new) = (contents(record, before), contents(record, now));
        let found = fs::read(&path).map_err(|error| failed("reading", &path, error))?;
        if found != known.as_bytes() {
            engine.notice(&format!("{} was changed in the container and stays as it is", BOUND[number].1));
            continue;
        }
        // It is bound into the container: a file in its place would not be seen.
        let written = fs::File::options().write(true).open(&path).and_then(|mut file| {
            file.write_all(new.as_bytes())?;
            file.set_len(new.len() as u64)
        });
        written.map_err(|error| failed("writing", &path, error))?;
    }
    Ok(())
}

/// `host-gateway` is the network's gateway, and the machine itself where the container is in its network.
fn hosts(record: &Record, addressing: &[&Addressing]) -> String {
    let given = record.host.add_hosts.iter().map(|(name, address)| (name.clone(), address.parse().ok()));
    let added: Vec<(String, Option<IpAddr>)> = given.collect();
    if !addressing.is_empty() {
        let mut names = vec![record.settings.hostname.as_str()];
        if record.name != record.settings.hostname {
            names.push(&record.name);
        }
        return net::files::hosts(addressing, &names, &added);
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
        // It asks those that were given in its turn.
        Some(addressing) => net::files::resolv_conf(&host, &[addressing.v4.dns.into()], dns_search, dns_options),
        None if dns.is_empty() && dns_search.is_empty() && dns_options.is_empty() => host,
        None => net::files::resolv_conf(&host, dns, dns_search, dns_options),
    }
}
