//! A container that stands still: until it is told to go on, or while its files are read.
//!
//! Whoever froze it to read may be killed, and then it must not stand still for ever. So a small process of its own, away from
//! our terminal and its signals, waits for the end of ours and thaws.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{ContainerId, Kind, Report};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{setsid, syncfs};
use sys::{process, socket};

use crate::Engine;
use crate::container::exec::not_running;
use crate::container::lock::lock;
use crate::container::restart::refuse_between;
use crate::container::state::{Condition, Life};
use crate::events;

/// Lets a running container stand still until [`unpause`].
pub fn pause(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let locked = lock(engine, id)?;
    let cgroup = cgroup_of(id, &locked.condition)?;
    if cgroup.is_frozen()? {
        return Err(Report::new(Kind::Conflict, format!("Container {id} is already paused")));
    }
    cgroup.freeze()?.keep();
    events::of_container(engine, id, "pause", &[]);
    Ok(())
}

/// Lets it go on.
pub fn unpause(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let locked = lock(engine, id)?;
    let cgroup = cgroup_of(id, &locked.condition)?;
    if !cgroup.is_frozen()? {
        return Err(Report::new(Kind::Conflict, format!("Container {id} is not paused")));
    }
    cgroup.thaw()?;
    events::of_container(engine, id, "unpause", &[]);
    Ok(())
}

/// The cgroup of a running container.
fn cgroup_of(id: &ContainerId, condition: &Condition) -> Result<cgroup::Container, Report> {
    refuse_between(id, &condition.life)?;
    let Some(pids) = condition.pids.as_ref().filter(|_| matches!(condition.life, Life::Running { .. })) else {
        return Err(not_running(id));
    };
    let Some(path) = &pids.cgroup else {
        return Err(Report::new(Kind::Unsupported, format!("container {id} has no cgroup, so it cannot be paused"))
            .with_hint("`sublet doctor` says what would give it one"));
    };
    Ok(cgroup::Container::open(path)?)
}

/// Stands still until this is dropped, or its process ends.
#[derive(Debug)]
pub(crate) struct Paused {
    child: process::Child,
    ours: Option<OwnedFd>,
}

/// Freezes a running container; `None`, with a line that says so, where it has no cgroup of its own. The caller must have
/// one thread.
pub(crate) fn hold_still(engine: &Engine, condition: &Condition) -> Result<Option<Paused>, Report> {
    let Some(path) = condition.pids.as_ref().and_then(|pids| pids.cgroup.as_deref()) else {
        engine.step_down(
            "the container has no cgroup and is not paused: what it writes meanwhile may be in part in it",
        )?;
        return Ok(None);
    };
    let cgroup = cgroup::Container::open(path)?;
    if cgroup.is_frozen()? {
        return Ok(None);
    }
    let (ours, theirs) = socket::pair()?;
    let (mut ours, watched) = (Some(ours), theirs.as_fd());
    let child = process::fork(process::Flags::empty(), None, || {
        // The child's copy of our side would keep the end away.
        drop(ours.take());
        thaw_after(watched, &cgroup)
    })?;
    let paused = Paused { child, ours };
    // The process above is there already: there is no moment in which nobody would thaw.
    cgroup.freeze()?.keep();
    Ok(Some(paused))
}

/// In the child: waits for the end of the other side.
fn thaw_after(theirs: BorrowedFd<'_>, cgroup: &cgroup::Container) -> i32 {
    // Failures change nothing: it would only hear a signal that was meant for our terminal's other processes.
    let _ = setsid();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    let _ = socket::receive(theirs, &mut [0; 1]);
    i32::from(cgroup.thaw().is_err())
}

impl Drop for Paused {
    fn drop(&mut self) {
        drop(self.ours.take());
        // Until it goes on: who comes next may rely on it. A failure to wait has nobody to tell.
        let _ = process::reap(self.child.pidfd.as_fd(), true);
    }
}

/// Brings what the kernel still holds of a running container's writes to the server of its root file system. A child joins
/// the namespace in which that file system may be opened; where it cannot, what is held longer is not seen.
pub(crate) fn flush(outer: BorrowedFd<'_>, condition: &Condition) -> Result<(), Report> {
    let Life::Running { pid } = condition.life else { return Ok(()) };
    let child = process::fork(process::Flags::empty(), None, || {
        let flushed = setns(outer, CloneFlags::CLONE_NEWUSER).and_then(|()| {
            let root = File::open(format!("/proc/{pid}/root/.")).map_err(|_| Errno::last())?;
            syncfs(root)
        });
        i32::from(flushed.is_err())
    })?;
    process::reap(child.pidfd.as_fd(), true)?;
    Ok(())
}
