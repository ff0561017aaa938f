//! Sending a signal to a container's first process, with or without a monitor.

use std::os::fd::AsFd;

use base::{ContainerId, Report};
use sys::Errno;

use crate::Engine;
use crate::container::exec::{not_running, pids};
use crate::container::record;

/// Sends a signal to the container's init. The signal goes through a descriptor that was proved to be that process.
pub fn kill(engine: &Engine, id: &ContainerId, signal: i32) -> Result<(), Report> {
    record::require(engine, id)?;
    let init = pids(engine, id)?.init()?.ok_or_else(|| not_running(id))?;
    match sys::process::pidfd_send_signal(init.as_fd(), signal) {
        Err(error) if error.errno() == Errno::ESRCH => Err(not_running(id)),
        result => Ok(result?),
    }
}
