//! Letting go of what containers share while any of them runs, so that the next one gets all of it anew: after other ranges of
//! subordinate ids were given to the user, or with a newer program.
//!
//! All containers of this machine and data directory are stopped. Then nobody but the servers of files keeps the outer user
//! namespace, and these are asked to go. At rest a container's files are the user's and its owners are ids of that namespace, so
//! other ranges change nothing in them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use base::{ContainerId, Context, Kind, Report};
use snapshot::fs_client::try_connect;
use sys::process::{pidfd_open, wait_end};

use crate::Engine;
use crate::container::rootfs::{Places, find_outer};
use crate::container::state::condition;
use crate::container::stop::{Ending, stop};
use crate::file::failed;
use crate::paths::names_in;
use crate::system::here;

/// How long a monitor may take to give the files of a container back.
const MONITOR_LIMIT: Duration = Duration::from_mins(1);
/// How long a server may take to end.
const SERVER_LIMIT: Duration = Duration::from_secs(10);

/// Stops all containers, each of which is told, and has what they shared made anew by the next start.
pub fn migrate(engine: &Engine, stopped: &mut dyn FnMut(&ContainerId)) -> Result<(), Report> {
    for (store, id) in here::containers(engine)? {
        let was_active = condition(&store, &id)?.life.is_active();
        stop(&store, &id, Ending::default()).step(|| format!("cannot stop container {}", id.short()))?;
        wait_for_monitor(&store, &id)?;
        if was_active {
            stopped(&id);
        }
    }
    for keeper in end_servers(engine)? {
        // One that others use goes with the last of them.
        wait_end(keeper.as_fd(), Some(SERVER_LIMIT));
    }
    // What was found out about this kernel is found out again.
    let _ = fs::remove_file(engine.paths().run().join("overlay"));
    if find_outer(engine, &Places::of(engine).as_ref()).is_some() {
        let text = "the user namespace of all containers is still in use, by containers of another data directory";
        return Err(
            Report::new(Kind::Conflict, text).with_hint("stop those too (`sublet --root DIRECTORY system migrate`)")
        );
    }
    Ok(())
}

/// Waits until the monitor of a container that has ended has given its files back.
fn wait_for_monitor(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let monitor = condition(engine, id)?.pids.map(|pids| pids.monitor()).transpose()?.flatten();
    if monitor.is_none_or(|monitor| wait_end(monitor.as_fd(), Some(MONITOR_LIMIT))) {
        return Ok(());
    }
    Err(Report::new(Kind::Conflict, format!("the monitor of container {} still gives its files back", id.short())))
}

/// Has the servers of files that nobody uses end now, and the others with their last user; the answer is their processes.
pub(crate) fn end_servers(engine: &Engine) -> Result<Vec<OwnedFd>, Report> {
    let places = Places::of(engine);
    let places = places.as_ref();
    let keys = names_in(places.run).map_err(|error| failed("reading directory", places.run, error))?;
    let mut keepers = Vec::new();
    for key in keys {
        // What does not answer keeps nothing.
        let Ok(Some(connection)) = try_connect(&places, &key) else { continue };
        keepers.extend(connection.pids.first().and_then(|pid| pidfd_open(*pid).ok()));
        // One that is gone by now has done so.
        let _ = connection.leave();
    }
    Ok(keepers)
}
