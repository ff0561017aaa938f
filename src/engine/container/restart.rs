//! Stopping a container and starting it again; and what holds for the starts that its monitor makes by itself.

use std::os::fd::AsFd;

use base::{ContainerId, Kind, Report};
use monitor::client::{self, ClientError};
use monitor::restart::{Policy, Terms};

use crate::Engine;
use crate::container::lock::{dial, lock};
use crate::container::record::{HostSettings, load};
use crate::container::start::{Started, start_locked};
use crate::container::state::{Life, condition};
use crate::container::stop::{self, Ending};
use crate::container::wait::Watch;
use crate::events;

/// Stops a container as [`stop::stop`] does and starts it again; one that does not run is only started.
pub fn restart(engine: &Engine, id: &ContainerId, ending: Ending) -> Result<Started, Report> {
    let record = load(engine, id)?;
    // Its monitor removes it under the lock, unless it runs again by then.
    let held = record.host.auto_remove.then(|| lock(engine, id)).transpose()?;
    if stop::end(engine, &record, ending)? {
        events::of_container(engine, id, "stop", &[]);
    }
    let locked = match held {
        Some(held) => held.looked_at_again(engine, id)?,
        None => lock(engine, id)?,
    };
    let started = start_locked(engine, &record, locked, None)?;
    events::of_container(engine, id, "restart", &[]);
    Ok(started)
}

/// Refuses a policy that Docker refuses, in its words.
pub(crate) fn check(host: &HostSettings) -> Result<(), Report> {
    if host.auto_remove && host.restart != Policy::No {
        return Err(Report::new(Kind::Usage, "conflicting options: cannot specify both --restart and --rm"));
    }
    Ok(())
}

/// Tells the monitor of a container what holds for further starts; one that has ended, or was killed, starts nothing. The caller
/// does not hold the container's lock.
pub(crate) fn set_terms(engine: &Engine, id: &ContainerId, terms: Terms) -> Result<(), Report> {
    match dial(engine, id) {
        Ok(socket) => client::set_terms(socket.as_fd(), terms),
        Err(ClientError::NoMonitor { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends the policy of a container that runs, until a command starts it again. The answer is whether that was its end, since it
/// was waiting to be started. What the record says does not count: its monitor may not have been told.
pub(crate) fn stay_down(engine: &Engine, id: &ContainerId) -> Result<bool, Report> {
    let life = condition(engine, id)?.life;
    if !life.is_active() {
        return Ok(false);
    }
    let was_between = matches!(life, Life::Restarting { .. });
    set_terms(engine, id, Terms { policy: Some(Policy::No), limits: None, stopped: true })?;
    let mut watch = Watch::new(engine, id)?;
    while matches!(watch.life()?, Life::Restarting { .. }) {
        watch.wait()?;
    }
    Ok(was_between && !watch.active()?)
}

/// Docker's words for a container that is between two runs.
pub(crate) fn refuse_between(id: &ContainerId, life: &Life) -> Result<(), Report> {
    if matches!(life, Life::Restarting { .. }) {
        let text = format!("Container {id} is restarting, wait until the container is running");
        return Err(Report::new(Kind::Conflict, text));
    }
    Ok(())
}
