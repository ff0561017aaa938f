//! Stopping a container and starting it again.

use std::time::Duration;

use base::{ContainerId, Report};

use crate::Engine;
use crate::container::lock::lock;
use crate::container::record::load;
use crate::container::start::{Started, start_locked};
use crate::container::stop;

/// Stops a container as [`stop::stop`] does and starts it again; one that does not run is only started.
pub fn restart(
    engine: &Engine,
    id: &ContainerId,
    signal: Option<i32>,
    grace: Option<Duration>,
) -> Result<Started, Report> {
    let record = load(engine, id)?;
    // Its monitor removes it under the lock, unless it runs again by then.
    let held = record.host.auto_remove.then(|| lock(engine, id)).transpose()?;
    stop::end(engine, &record, signal, grace)?;
    let locked = match held {
        Some(held) => held.looked_at_again(engine, id)?,
        None => lock(engine, id)?,
    };
    start_locked(engine, &record, locked, None)
}
