//! Making networks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::SystemTime;

use base::time::rfc3339;
use base::{ContainerId, Kind, Report};
use sys::file::sync_directory;

use crate::file::{failed, replace_json};
use crate::network::subnet::{self, Subnet, Wishes};
use crate::network::{BUILT_IN, FORMAT, MTU, Network, all, directory, file, lock, read};
use crate::{Engine, events};

/// The smallest MTU of IPv6 (RFC 8200 §5), and the largest that a TAP device takes.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=65_520;
/// With what ends its file it must still be a name of one.
const NAME_MAX: usize = 200;

/// What a network is to be.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnets: Wishes,
    /// Whether nothing leads out of it.
    pub internal: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Of the driver: [`MTU`], or Podman's `mtu`.
    pub options: BTreeMap<String, String>,
    /// Whether one of that name may be there already; then it is the answer as it is.
    pub ignore: bool,
}

/// Refuses what is no name of a network.
pub fn check_name(name: &str) -> Result<(), Report> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !begins || !name.bytes().all(word) || name.len() > NAME_MAX {
        let text = format!("invalid network name \"{name}\": only \"[a-zA-Z0-9][a-zA-Z0-9_.-]*\" are allowed");
        return Err(Report::new(Kind::Usage, text));
    }
    Ok(())
}

/// Makes a network.
pub fn create(engine: &Engine, request: CreateRequest) -> Result<Network, Report> {
    let CreateRequest { name, subnets, internal, labels, options, ignore } = request;
    check_name(&name)?;
    if BUILT_IN.iter().any(|(built_in, _)| *built_in == name)
        || ["builtin", "default", "pasta", "slirp", "slirp4netns"].contains(&name.as_str())
    {
        let text = format!("operation is not permitted on predefined {name} network");
        return Err(Report::new(Kind::Denied, text).with_hint("give it another name"));
    }
    let options = options.into_iter().map(check_option).collect::<Result<BTreeMap<_, _>, _>>()?;
    let _locked = lock(engine)?;
    if let Some(network) = read(engine, &name)? {
        if ignore {
            return Ok(network);
        }
        return Err(Report::new(Kind::Conflict, format!("network with name {name} already exists")));
    }
    let mut taken = vec![subnet::OF_OWN_NETWORKS];
    for network in all(engine)? {
        taken.extend([network.v4.cidr(), network.v6.cidr()]);
    }
    let (v4, v6) = subnet::choose(&subnets, &taken, &subnet::of_routes(), sys::random()?)?;
    let id = ContainerId::from_random(sys::random()?).to_string();
    let created_at = rfc3339(SystemTime::now());
    let network = Network { format: FORMAT, id, name, created_at, internal, v4, v6, labels, options };
    let path = file(engine, &network.name);
    replace_json(&path, &network, true)?;
    let directory = directory(engine);
    sync_directory(&directory).map_err(|error| failed("syncing", &directory, error))?;
    events::of_network(engine, &network, "create", None);
    Ok(network)
}

fn check_option((key, value): (String, String)) -> Result<(String, String), Report> {
    let wrong = |text: String| Err(Report::new(Kind::Usage, text));
    if key != MTU && key != "mtu" {
        return wrong(format!("unsupported network option \"{key}\" (the options are {MTU} and mtu)"));
    }
    match value.parse::<u16>() {
        Ok(mtu) if MTUS.contains(&mtu) => Ok((MTU.to_owned(), value)),
        _ => wrong(format!("invalid MTU {value}: it is from {} to {}", MTUS.start(), MTUS.end())),
    }
}

/// Removes a network's file; one that is not there is gone.
pub(super) fn forget(engine: &Engine, network: &Network) -> Result<(), Report> {
    let path = file(engine, &network.name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(|error| failed("removing", &path, error))?,
    }
    events::of_network(engine, network, "destroy", None);
    Ok(())
}
