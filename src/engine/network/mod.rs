//! Networks that containers share.
//!
//! ```text
//! hosts/<machine>/networks/<name>.json   what it is
//!                          lock          while one is made, removed, or its role is started; never for a container's life
//! <run>/n/<id>/sock                      where its role listens, as long as it has members
//! ```
//! A network is data until a container that has it starts: then it gets a namespace with a bridge, and a role ([`net::role`]) that
//! is its gateway and name server ([`join`]). Both end with its last member. Who is a member is what the records of running
//! containers say (`pid.json`); which addresses are free its role knows.

pub mod capture;
pub mod connect;
pub mod create;
pub mod endpoint;
pub(crate) mod join;
pub mod list;
pub mod observe;
pub mod program;
pub mod remove;
pub mod subnet;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use base::{Kind, Report};
use net::NetworkSpec;
use serde::{Deserialize, Serialize};
use sys::lock::exclusive;

use crate::Engine;
use crate::file::{failed, read_json};
use crate::network::subnet::{Subnet, SubnetV4, SubnetV6};
use crate::paths::{make_dir, names_in};

/// The version of a network's file that this build writes.
const FORMAT: u32 = 1;
/// What ends the names of the files.
const SUFFIX: &str = ".json";
/// The option by which Docker's users set the MTU.
pub const MTU: &str = "com.docker.network.driver.mtu";
/// The MTU where nothing is said.
const DEFAULT_MTU: u16 = 65_520;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Whether nothing leads out of it.
    pub internal: bool,
    /// Its IPv4 subnet.
    pub v4: SubnetV4,
    /// Its IPv6 subnet.
    pub v6: SubnetV6,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What its driver was told.
    pub options: BTreeMap<String, String>,
}

impl Network {
    /// The first digits of its id.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// The MTU of its devices.
    fn mtu(&self) -> u16 {
        self.options.get(MTU).and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_MTU)
    }

    /// What its role is told.
    fn spec(&self) -> NetworkSpec {
        let digit = |at: usize| u8::from_str_radix(self.id.get(at * 2..at * 2 + 2).unwrap_or("0"), 16).unwrap_or(0);
        NetworkSpec {
            name: self.name.clone(),
            v4: self.v4.of_role(),
            pool: self.v4.pool(),
            v6: self.v6.of_role(),
            // Locally administered, unicast; those of its bridge and device have other last bytes.
            gateway_mac: [0x02, 0x5b, digit(0), digit(1), digit(2), 0x01],
            mtu: self.mtu(),
            internal: self.internal,
            // Those of the moment in which a role is started.
            resolvers: Vec::new(),
        }
    }

    /// Refuses an address that a container cannot ask for here.
    pub(crate) fn check_v4(&self, address: Ipv4Addr) -> Result<(), Report> {
        let refused = [self.v4.network(), self.v4.broadcast(), self.v4.gateway, self.v4.dns];
        check(self.v4.contains(address) && !refused.contains(&address), &address.to_string(), self)
    }

    /// The same for IPv6.
    pub(crate) fn check_v6(&self, address: Ipv6Addr) -> Result<(), Report> {
        let refused = [self.v6.network(), self.v6.gateway, self.v6.dns];
        check(self.v6.contains(address) && !refused.contains(&address), &address.to_string(), self)
    }
}

fn check(is_free: bool, address: &str, network: &Network) -> Result<(), Report> {
    if is_free {
        return Ok(());
    }
    let Network { name, v4, v6, .. } = network;
    let text = format!("invalid endpoint settings:\nno configured subnet contains IP address {address}");
    Err(Report::new(Kind::Usage, text).with_hint(format!(
        "containers of network {name} have addresses of {v4} and {v6}, but for {}, {}, {} and {}",
        v4.gateway, v4.dns, v6.gateway, v6.dns
    )))
}

/// Networks that are there without being made, by the names of their drivers.
pub const BUILT_IN: [(&str, &str); 3] = [("bridge", "bridge"), ("host", "host"), ("none", "null")];

pub(crate) fn directory(engine: &Engine) -> PathBuf {
    engine.paths().host().join("networks")
}

fn file(engine: &Engine, name: &str) -> PathBuf {
    file_in(&directory(engine), name)
}

/// What tells of the network with this name.
pub(crate) fn file_in(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{SUFFIX}"))
}

/// What [`lock`] locks.
fn lock_file(engine: &Engine) -> PathBuf {
    directory(engine).join("lock")
}

/// The lock of all networks.
fn lock(engine: &Engine) -> Result<File, Report> {
    make_dir(&directory(engine))?;
    let path = lock_file(engine);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| failed("opening", &path, error))?;
    exclusive(&file, &path)?;
    Ok(file)
}

/// All networks that were made, by name.
pub fn all(engine: &Engine) -> Result<Vec<Network>, Report> {
    let directory = directory(engine);
    let names = names_in(&directory).map_err(|error| failed("listing", &directory, error))?;
    let mut networks = Vec::new();
    for name in names.iter().filter_map(|name| name.strip_suffix(SUFFIX)) {
        networks.extend(read(engine, name)?);
    }
    networks.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(networks)
}

fn read(engine: &Engine, name: &str) -> Result<Option<Network>, Report> {
    let network: Option<Network> = read_json(&file(engine, name))?;
    match network {
        Some(network) if network.format > FORMAT => {
            let text = format!("network {name} has format {}, this build knows {FORMAT}", network.format);
            Err(Report::new(Kind::Unsupported, text))
        }
        network => Ok(network),
    }
}

/// A network by its name, its id, or the beginning of that.
pub fn find(engine: &Engine, text: &str) -> Result<Network, Report> {
    if create::check_name(text).is_ok()
        && let Some(network) = read(engine, text)?
    {
        return Ok(network);
    }
    let is_id = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut found = all(engine)?;
    found.retain(|network| is_id && network.id.starts_with(text));
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(missing(text)),
        count => Err(Report::new(Kind::Usage, format!("network {text} is ambiguous ({count} matches found on name)"))),
    }
}

/// Docker's words for a network that is not there.
pub(crate) fn missing(name: &str) -> Report {
    Report::new(Kind::NotFound, format!("network {name} not found"))
        .with_hint("make it (network create), or use builtin, host, none, container:NAME or ns:PATH")
}
