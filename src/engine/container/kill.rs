//! Sending a signal to a container's first process, with or without a monitor.

use std::os::fd::AsFd;

use base::units::parse_signal;
use base::{ContainerId, Report};
use monitor::restart::is_end;
use nix::libc;
use sys::Errno;

use crate::Engine;
use crate::container::exec::{not_running, pids};
use crate::container::record::{self, load};
use crate::container::restart::stay_down;
use crate::events;

/// Sends a signal to the container's init. The signal goes through a descriptor that was proved to be that process. A
/// paused container goes on, as in Docker: else it would not notice.
pub fn kill(engine: &Engine, id: &ContainerId, signal: i32) -> Result<(), Report> {
    record::require(engine, id)?;
    // One that cannot be read says nothing of a policy; with `--rm` there is none, and the caller may hold the lock.
    if let Ok(record) = load(engine, id)
        && !record.host.auto_remove
        && is_end(signal, parse_signal(&record.settings.stop_signal).ok())
        && stay_down(engine, id)?
    {
        return Ok(());
    }
    let pids = pids(engine, id)?;
    let init = pids.init()?.ok_or_else(|| not_running(id))?;
    // Before its monitor tells what comes of it.
    events::of_container(engine, id, "kill", &[("signal", signal.to_string())]);
    match sys::process::pidfd_send_signal(init.as_fd(), signal) {
        Err(error) if error.errno() == Errno::ESRCH => return Err(not_running(id)),
        result => result?,
    }
    // SIGKILL ends frozen processes too.
    match pids.cgroup.filter(|path| signal != libc::SIGKILL && cgroup::is_frozen(path)) {
        Some(path) => Ok(cgroup::Container::open(&path)?.thaw()?),
        None => Ok(()),
    }
}
