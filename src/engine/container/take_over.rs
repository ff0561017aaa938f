//! Giving a container that runs and whose monitor was killed another monitor, as any command does that lists or names it.
//!
//! The new one gets what its predecessor has left in `monitor.json`, with what commands have changed since; the outer user
//! namespace is the one above the container's own. It tells that it has taken over while the container's lock is held, so two
//! commands make one. A failure is told and leaves the container as it is: it can be stopped and removed all the same.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::{ContainerId, Context, Kind, Report};
use monitor::client::Begun;
use monitor::record::{PidRecord, Status};
use monitor::restart::Policy;
use monitor::role::{Config, Kept};
use nix::sys::signal::{Signal, raise};
use sys::process::{has_executed, is_directory};

use crate::container::joined::Joined;
use crate::container::record::{Record, load};
use crate::container::rootfs::ServedView;
use crate::container::start::{Given, Launched, spawn};
use crate::container::state::{Condition, Left};
use crate::container::{driver, limits, rootfs};
use crate::network::join::again;
use crate::{Engine, events};

/// Has a container taken over if its condition says that it has no monitor; whether its condition is another one now: it has a
/// monitor, or it has ended meanwhile. The caller holds the container's lock and has one thread.
pub(crate) fn if_left(engine: &Engine, id: &ContainerId, condition: &Condition) -> Result<bool, Report> {
    let (Left::Container, Some(pids)) = (condition.left()?, &condition.pids) else { return Ok(false) };
    // Until its payload runs it ends with its monitor.
    if condition.state.status != Status::Running && !has_executed(pids.pid).unwrap_or(false) {
        return Ok(false);
    }
    match take_over(engine, id, pids) {
        Err(_) if pids.init()?.is_none() => Ok(true),
        Err(report) => {
            let why = report.lines().join(": ");
            let text = format!("container {}: its monitor was killed, and no other could take over: {why}", id.short());
            engine.notice(&text);
            Ok(false)
        }
        taken => taken,
    }
}

fn take_over(engine: &Engine, id: &ContainerId, pids: &PidRecord) -> Result<bool, Report> {
    // The kernel would not tell of the end of what stands in for a pidfd.
    let Some(init) = pids.init()?.filter(|init| !is_directory(init.as_fd())) else { return Ok(false) };
    let Some(kept) = Kept::of_run(&engine.paths().container(id), pids)? else { return Ok(false) };
    let record = load(engine, id)?;
    engine.paths().make_run()?;
    rootfs::run_dir(engine, &record)?;
    let outer = outer_of(pids.pid, init.as_fd())?;
    let mut config = Config {
        restart: record.host.restart,
        limits: limits::limits(&record.host)?,
        events: Some(events::order(engine, &record)?),
        bus: engine.options().bus.clone(),
        client_feeds: false,
        // One whose directory is gone would be an error.
        pid_file: kept.pid_file.filter(|path| path.parent().is_some_and(Path::is_dir)),
        ..kept
    };
    let (mut view, mut joined) = (None, Joined::default());
    // Only a start needs them.
    if config.restart != Policy::No {
        match for_a_start(engine, &record, outer.as_fd()) {
            Ok(found) => (view, joined) = found,
            Err(report) => {
                config.restart = Policy::No;
                let why = report.lines().join(": ");
                engine.notice(&format!(
                    "container {}: its restart policy has ended with its monitor: {why}",
                    record.name
                ));
            }
        }
    }
    let places = again(engine, &config.networks, outer.as_fd(), (pids.pid, init.as_fd()))?;
    let servers = view.iter().flat_map(|view| view.pids.clone()).chain(places.iter().map(|place| place.pid));
    config.servers = servers.collect();
    config.networks = places.iter().map(|place| place.admission.clone()).collect();
    engine.notice(&format!("container {}: its monitor was killed, and another one takes over", record.name));
    let given = Given { outer: outer.as_fd(), view, joined: &joined, places: &places, init: Some(init.as_fd()) };
    let Launched { begun, .. } = spawn(engine, &config, given, false)?;
    let unblocked = monitor::client::unblock_signals();
    if let Begun::Interrupted(signal) = begun? {
        // It was meant for the command, not for what it does by the way.
        Signal::try_from(signal).and_then(raise).map_err(|errno| Report::of(Kind::Internal, errno))?;
    }
    unblocked?;
    Ok(true)
}

/// The user namespace in which a container's own was made.
fn outer_of(pid: i32, init: BorrowedFd<'_>) -> Result<OwnedFd, Report> {
    let step = || "finding the outer user namespace".to_owned();
    let own = runtime::exec::open_namespaces(pid, init, &["user"]).step(step)?.pop();
    let own = own.ok_or_else(|| Report::new(Kind::Internal, "it has no user namespace"))?;
    sys::namespace::parent(own).step(step)
}

fn for_a_start(
    engine: &Engine,
    record: &Record,
    outer: BorrowedFd<'_>,
) -> Result<(Option<ServedView>, Joined), Report> {
    let driver = driver::choose(engine, record)?;
    Ok((rootfs::view_again(engine, record, driver, outer)?, Joined::open(engine, record)?))
}
