//! What containers have of networks that they share: what their records ask for, and what they have while they run.

use std::net::{Ipv4Addr, Ipv6Addr};

use base::{ContainerId, Kind, Report};
use monitor::networks::Joining;
use net::control::NAME_MAX;
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::container::record::{self, Found};
use crate::container::state::condition;
use crate::container::{lookup, state::Life};
use crate::network::{Network, find};

/// What a container's record asks of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The network's name; until the container is created, as the user wrote it.
    pub network: String,
    /// Names by which others find the container there besides its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Names of its own for others there, which nobody else finds them by: each with a name that these have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<(String, String)>,
    /// Its IPv4 address, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// The MAC of its device, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
}

/// A container that is in a network now.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// What it has.
    pub joining: Joining,
}

/// Finds the networks that a container wants by what the user wrote, and refuses addresses that they have not.
pub(crate) fn resolve(engine: &Engine, wanted: &mut [Wanted]) -> Result<(), Report> {
    for at in 0..wanted.len() {
        let network = find(engine, &wanted[at].network)?;
        check_addresses(&network, &wanted[at])?;
        wanted[at].network = network.name;
        if wanted[..at].iter().any(|other| other.network == wanted[at].network) {
            let text = format!("network \"{}\" is specified multiple times", wanted[at].network);
            return Err(Report::new(Kind::Usage, text));
        }
    }
    Ok(())
}

/// Refuses addresses that a container cannot have in a network, and names that nobody can ask for.
pub(crate) fn check_addresses(network: &Network, wanted: &Wanted) -> Result<(), Report> {
    let links = wanted.links.iter().flat_map(|(link, name)| [link, name]);
    if let Some(alias) = wanted.aliases.iter().chain(links).find(|name| name.is_empty() || name.len() > NAME_MAX) {
        let text = format!("invalid alias {alias:?}: a name has 1 to {NAME_MAX} characters");
        return Err(Report::new(Kind::Usage, text));
    }
    wanted.ip.map_or(Ok(()), |address| network.check_v4(address))?;
    wanted.ip6.map_or(Ok(()), |address| network.check_v6(address))
}

/// Who is in which network now: of each running container what its record of processes says.
pub fn members(engine: &Engine) -> Result<Vec<Member>, Report> {
    let mut members = Vec::new();
    for id in lookup::ids(engine)? {
        let condition = condition(engine, &id)?;
        let joinings = condition.pids.filter(|_| matches!(condition.life, Life::Running { .. }));
        let Some(joinings) = joinings.map(|pids| pids.networks).filter(|networks| !networks.is_empty()) else {
            continue;
        };
        // One that is being removed is in no network any more.
        let Found::Record(record) = record::look(engine, &id)? else { continue };
        let member = |joining| Member { id: id.clone(), name: record.name.clone(), joining };
        members.extend(joinings.into_iter().map(member));
    }
    Ok(members)
}

/// The names of all networks that containers' records ask for, whether or not these run.
pub(crate) fn wanted_names(engine: &Engine) -> Result<Vec<String>, Report> {
    let mut names = Vec::new();
    for id in lookup::ids(engine)? {
        let Found::Record(record) = record::look(engine, &id)? else { continue };
        names.extend(record.host.networks.into_iter().map(|wanted| wanted.network));
    }
    Ok(names)
}
