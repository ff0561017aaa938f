//! Stopping a container: its stop signal, a time of grace, then SIGKILL.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use base::{ContainerId, Kind, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::Engine;
use crate::container::exec::pids;
use crate::container::kill::kill;
use crate::container::record::load;
use crate::container::wait::wait;

/// Stops a container; one that does not run is stopped already. No `signal` means the image's, no `grace` waits for
/// ever. Returns when the exit is recorded.
pub fn stop(engine: &Engine, id: &ContainerId, signal: Option<i32>, grace: Option<Duration>) -> Result<(), Report> {
    let record = load(engine, id)?;
    let signal = match signal {
        Some(signal) => signal,
        None => stop_signal(&record.settings.stop_signal)?,
    };
    let Ok(Some(init)) = pids(engine, id).and_then(|pids| Ok(pids.init()?)) else {
        return Ok(());
    };
    match kill(engine, id, signal) {
        Err(report) if report.kind() == Kind::Conflict => return Ok(()),
        result => result?,
    }
    let until = grace.map(|grace| Instant::now() + grace);
    loop {
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => match kill(engine, id, Signal::SIGKILL as i32) {
                Err(report) if report.kind() != Kind::Conflict => return Err(report),
                _ => break,
            },
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Report::of(Kind::Internal, errno).with_step("poll(init)")),
        }
    }
    wait(engine, id).map(drop)
}

/// The number of a signal as an image names it: `SIGTERM`, `TERM`, `15`; empty is SIGTERM.
pub fn stop_signal(text: &str) -> Result<i32, Report> {
    if text.is_empty() {
        return Ok(Signal::SIGTERM as i32);
    }
    if let Ok(number) = text.parse::<i32>() {
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let signal = name.parse::<Signal>().map(|signal| signal as i32);
    signal.map_err(|_| Report::new(Kind::Usage, format!("Invalid signal: {text}")))
}
