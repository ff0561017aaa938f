//! Putting containers into networks, and taking them out, whether or not they run.

use std::os::fd::AsFd;

use base::{ContainerId, Kind, Report};
use monitor::networks::Joining;

use crate::container::lock::lock;
use crate::container::record::{NetworkMode, Record, load};
use crate::container::rootfs::outer_namespace;
use crate::container::state::{Condition, Life, condition};
use crate::container::{files, network as own};
use crate::network::endpoint::{Wanted, check_addresses};
use crate::network::find;
use crate::network::join::join;
use crate::{Engine, events};

/// Puts a container into a network: now, if it runs, and at its later starts.
pub fn connect(engine: &Engine, id: &ContainerId, wanted: Wanted) -> Result<(), Report> {
    let network = find(engine, &wanted.network)?;
    let wanted = Wanted { network: network.name.clone(), ..wanted };
    check_addresses(&network, &wanted)?;
    let locked = lock(engine, id)?;
    let mut record = load(engine, id)?;
    check_mode(&record)?;
    if record.host.networks.iter().any(|other| other.network == network.name) {
        let text = format!("endpoint with name {} already exists in network {}", record.name, network.name);
        return Err(Report::new(Kind::Conflict, text));
    }
    let has_place = |condition: &Condition| {
        let networks = condition.pids.iter().flat_map(|pids| &pids.networks);
        networks.into_iter().any(|joining| joining.network == network.id)
    };
    // A command that was killed may have done the first half.
    if runs(&record, &locked.condition)? && !has_place(&locked.condition) {
        let outer = outer_namespace(engine)?;
        let place = join(engine, &record, &network, &wanted, outer.as_fd())?;
        let monitor = monitor::client::dial(&engine.paths().run_container(id))?;
        let fds = [place.socket.as_fd(), place.namespace.as_fd()];
        monitor::client::join_network(monitor.as_fd(), place.admission, fds, |line| engine.notice(line))?;
        events::of_network(engine, &network, "connect", Some(id));
    }
    record.host.networks.push(wanted);
    record.save(engine, true)?;
    // It is done all the same.
    if let Err(report) = refresh(engine, &record, &locked.condition) {
        engine.notice(&report.lines().join(": "));
    }
    Ok(())
}

/// Takes a container out of a network.
pub fn disconnect(engine: &Engine, id: &ContainerId, network: &str) -> Result<(), Report> {
    let network = find(engine, network)?;
    let locked = lock(engine, id)?;
    let mut record = load(engine, id)?;
    let Some(at) = record.host.networks.iter().position(|wanted| wanted.network == network.name) else {
        let text = format!("container {} is not connected to the network {}", record.name, network.name);
        return Err(Report::new(Kind::Conflict, text));
    };
    if runs(&record, &locked.condition)? {
        let monitor = monitor::client::dial(&engine.paths().run_container(id))?;
        monitor::client::leave_network(monitor.as_fd(), &network.id, |line| engine.notice(line))?;
        events::of_network(engine, &network, "disconnect", Some(id));
    }
    record.host.networks.remove(at);
    record.save(engine, true)?;
    // It is done all the same.
    if let Err(report) = refresh(engine, &record, &locked.condition) {
        engine.notice(&report.lines().join(": "));
    }
    Ok(())
}

/// Whether the container is to be changed as it runs.
fn runs(record: &Record, condition: &Condition) -> Result<bool, Report> {
    match condition.life {
        Life::Running { .. } => Ok(true),
        Life::Created | Life::Exited { .. } => Ok(false),
        Life::Starting | Life::Restarting { .. } => {
            let text = format!("container {} is being started", record.name);
            Err(Report::new(Kind::Conflict, text).with_hint("try again when it runs"))
        }
    }
}

/// Lets its files say which networks it has, if it runs; `before` is how it was.
fn refresh(engine: &Engine, record: &Record, before: &Condition) -> Result<(), Report> {
    if !matches!(before.life, Life::Running { .. }) {
        return Ok(());
    }
    let now = condition(engine, &record.id)?;
    let joinings = |condition: &Condition| -> Vec<Joining> {
        condition.pids.as_ref().map(|pids| pids.networks.clone()).unwrap_or_default()
    };
    let (had, has, addressing) = (joinings(before), joinings(&now), own::addressing(record));
    let in_order = |joinings| own::in_order(addressing.as_ref(), joinings);
    files::refresh(engine, record, &in_order(&had), &in_order(&has))
}

/// Docker's words for containers that can be in no further network.
fn check_mode(record: &Record) -> Result<(), Report> {
    let words = match record.host.network {
        NetworkMode::Builtin | NetworkMode::Shared => return Ok(()),
        NetworkMode::Program(_) => "a container whose network is that of a program can be in no other network",
        NetworkMode::None => {
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        }
        NetworkMode::Host | NetworkMode::Container(_) | NetworkMode::Namespace(_) => {
            "container sharing network namespace with another container or host cannot be connected to any other network"
        }
    };
    Err(Report::new(Kind::Conflict, words))
}
