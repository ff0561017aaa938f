//! Stopping a container: its stop signal, a time of grace, then SIGKILL.

use std::os::fd::AsFd;
use std::time::Duration;

use base::units::parse_signal;
use base::{ContainerId, Kind, Report};
use nix::sys::signal::Signal;
use sys::process::wait_end;

use crate::Engine;
use crate::container::exec::pids;
use crate::container::kill::kill;
use crate::container::lock::lock;
use crate::container::record::{Record, load};
use crate::container::restart::stay_down;
use crate::container::start::give_up;
use crate::container::state::condition;
use crate::container::wait::wait;
use crate::events;

/// The seconds of grace where neither the container nor the request says, as in Docker.
const GRACE_S: i64 = 10;
/// How often it is looked whether a container that has no end of time has ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How a container is ended. What is `None` is as the container has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ending {
    /// The signal that asks for it.
    pub signal: Option<i32>,
    /// The seconds of grace until it is killed; less than 0 waits for ever.
    pub grace_s: Option<i64>,
}

/// Stops a container; one that does not run is stopped already, and a start that is under way is given up. Returns when the
/// exit is recorded.
pub fn stop(engine: &Engine, id: &ContainerId, ending: Ending) -> Result<(), Report> {
    let ran = end(engine, &load(engine, id)?, ending)?;
    if condition(engine, id)?.state.status.is_active() {
        // The monitor was killed: taking the lock does what it could not do.
        lock(engine, id)?;
    }
    if ran {
        events::of_container(engine, id, "stop", &[]);
    }
    Ok(())
}

/// The same, but that a killed monitor's work may be left to do. The answer is whether it ran.
pub(crate) fn end(engine: &Engine, record: &Record, ending: Ending) -> Result<bool, Report> {
    let id = &record.id;
    let signal = ending.signal.unwrap_or_else(|| stop_signal(&record.settings.stop_signal));
    let grace_s = ending.grace_s.or(record.settings.stop_timeout).unwrap_or(GRACE_S);
    let grace = u64::try_from(grace_s).ok().map(Duration::from_secs);
    // With `--rm` there is no policy, and the caller may hold the lock.
    if !record.host.auto_remove {
        stay_down(engine, id)?;
    }
    give_up(engine, id)?;
    let pids = match pids(engine, id) {
        // It was never started, or has ended.
        Err(report) if report.kind() == Kind::Conflict => return Ok(false),
        pids => pids?,
    };
    let Some(init) = pids.init()? else { return Ok(false) };
    match kill(engine, id, signal) {
        Err(report) if report.kind() == Kind::Conflict => return Ok(false),
        result => result?,
    }
    let has_ended = match grace {
        Some(grace) => wait_end(init.as_fd(), Some(grace)),
        // Of one that is held up at its end nothing tells.
        None => loop {
            if wait_end(init.as_fd(), Some(LOOK_INTERVAL)) || pids.init()?.is_none() {
                break true;
            }
        },
    };
    if !has_ended {
        match kill(engine, id, Signal::SIGKILL as i32) {
            Err(report) if report.kind() != Kind::Conflict => return Err(report),
            _ => {}
        }
    }
    match wait(engine, id) {
        // Removed by its monitor (`--rm`).
        Err(report) if report.kind() == Kind::NotFound => Ok(true),
        code => code.map(|_| true),
    }
}

/// The signal that an image names; one that names none, or nothing that is a signal, is stopped by SIGTERM.
fn stop_signal(text: &str) -> i32 {
    parse_signal(text).unwrap_or(Signal::SIGTERM as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_names_stops_it_or_sigterm_does() {
        for (text, number) in [("SIGRTMIN+3", 37), ("QUIT", 3), ("9", 9), ("", 15), ("0", 15), ("-2", 15), ("no", 15)] {
            assert_eq!(stop_signal(text), number, "{text}");
        }
    }
}
