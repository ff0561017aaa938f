//! Looking at the traffic of a container that runs: of each network that it has, the process shows it ([`net::observe`]).

use std::os::fd::AsFd;

use base::{ContainerId, Context, Kind, Report};
use net::NetError;
use net::observe::Observer;
pub use net::observe::{Flow, Traffic};

use crate::Engine;
use crate::container::network::owner;
use crate::container::record::{NetworkMode, load};
use crate::container::state::{Life, condition};

/// A container's traffic in one network.
#[derive(Debug)]
pub struct Sight {
    /// The network's name.
    pub network: String,
    /// Whether what is elsewhere is reached by it.
    pub leads: bool,
    /// Who is asked.
    pub(crate) observer: Observer,
}

impl Sight {
    /// The flows that there are now; none where the network has ended.
    pub fn flows(&self) -> Result<Vec<Flow>, Report> {
        self.observer.flows().map_err(NetError::into_report)
    }

    /// The traffic up to now; `None` where the network has ended.
    pub fn traffic(&self) -> Result<Option<Traffic>, Report> {
        self.observer.traffic().map_err(NetError::into_report)
    }
}

/// All networks of a container that have a process of ours; none where it has the machine's, or does not run. One that has
/// another container's network has that one's traffic.
pub fn observe(engine: &Engine, id: &ContainerId) -> Result<Vec<Sight>, Report> {
    let record = owner(engine, &load(engine, id)?)?;
    let condition = condition(engine, &record.id)?;
    if !matches!(condition.life, Life::Running { .. }) {
        return Ok(Vec::new());
    }
    let own = record.host.network == NetworkMode::Builtin;
    let joinings = condition.pids.map(|pids| pids.networks).unwrap_or_default();
    let shared = joinings.into_iter().map(|joining| (joining.name, joining.default, Some(joining.network)));
    let all = own.then(|| (record.host.network.to_string(), true, None)).into_iter().chain(shared);
    let open = |(name, leads, network): (String, bool, Option<String>)| {
        let (observer, theirs) = Observer::new().map_err(NetError::into_report)?;
        let monitor = monitor::client::dial(&engine.paths().run_container(&record.id))?;
        monitor::client::show(monitor.as_fd(), network.as_deref(), theirs.as_fd())
            .step(|| format!("asking for the traffic of container {} in network {name}", record.name))?;
        Ok(Sight { network: name, leads, observer })
    };
    all.map(open).collect()
}

/// The error for a container without any of that.
pub fn nothing(engine: &Engine, id: &ContainerId) -> Report {
    let name = load(engine, id).map_or_else(|_| id.short().to_owned(), |record| record.name);
    Report::new(Kind::Conflict, format!("container {name} does not run, or has no network of its own")).with_hint(
        "traffic of the networks builtin and of those that were made is seen, not that of host, none, programs and ns:PATH",
    )
}
