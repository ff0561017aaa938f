//! Removing networks.

use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use base::time::parse_rfc3339;
use base::{Kind, Report};
use sys::socket::open_directory;

use crate::Engine;
use crate::network::create::forget;
use crate::network::list::{Listed, list};
use crate::network::{BUILT_IN, Network, all, find, lock};
use crate::system::filter::PruneFilter;

/// How long the role of a network that has no member may still be there.
const ROLE_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at that.
const ROLE_WAIT: Duration = Duration::from_millis(10);

/// Removes a network that no running container is in.
pub fn remove(engine: &Engine, name: &str) -> Result<(), Report> {
    if BUILT_IN.iter().any(|(built_in, _)| *built_in == name) {
        return Err(Report::new(Kind::Denied, format!("{name} is a pre-defined network and cannot be removed")));
    }
    let _locked = lock(engine)?;
    let network = find(engine, name)?;
    let listed = list(engine)?.into_iter().find(|listed| listed.network.id == network.id);
    let members = listed.map(|listed| listed.members).unwrap_or_default();
    if !members.is_empty() {
        let names: Vec<String> =
            members.iter().map(|member| format!("name:\"{}\" id:\"{}\"", member.name, member.id.short())).collect();
        let text = format!(
            "error while removing network: network {} id {} has active endpoints ({})",
            network.name,
            network.id,
            names.join(" ")
        );
        return Err(Report::new(Kind::Conflict, text).with_hint("stop these containers, or disconnect them"));
    }
    if is_served(engine, &network)? {
        let text = format!("error while removing network: network {} has a container that is starting", network.name);
        return Err(Report::new(Kind::Conflict, text).with_hint("try again when it runs, or stop it"));
    }
    forget(engine, &network)
}

/// Whether a network has its role, which ends a moment after its last member.
fn is_served(engine: &Engine, network: &Network) -> Result<bool, Report> {
    let path = engine.paths().run_network(&network.id);
    if !path.exists() {
        return Ok(false);
    }
    let directory = open_directory(&path)?;
    let until = Instant::now() + ROLE_LIMIT;
    loop {
        let is_served = net::client::is_served(directory.as_fd()).map_err(net::NetError::into_report)?;
        if !is_served || Instant::now() > until {
            return Ok(is_served);
        }
        sleep(ROLE_WAIT);
    }
}

/// Removes the networks that no container has and that the filter lets pass; their names.
pub fn prune(engine: &Engine, filter: &PruneFilter) -> Result<Vec<String>, Report> {
    // Without any there is nothing to be locked, and no directory for that.
    if all(engine)?.is_empty() {
        return Ok(Vec::new());
    }
    let _locked = lock(engine)?;
    let unused = |listed: &Listed| {
        let created = parse_rfc3339(&listed.network.created_at).ok();
        listed.dangling && listed.members.is_empty() && filter.matches(created, &listed.network.labels)
    };
    let mut removed = Vec::new();
    for Listed { network, .. } in list(engine)?.into_iter().filter(unused) {
        if is_served(engine, &network)? {
            continue;
        }
        forget(engine, &network)?;
        removed.push(network.name);
    }
    Ok(removed)
}
