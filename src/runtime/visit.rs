//! A process of the host's that works in a container's files as its root, without being a process of the container.
//!
//! It joins the user and the mount namespace of the container's init and no other: paths mean what they mean inside, and lead
//! nowhere else. Nothing inside sees it, since it is in no pid namespace of theirs, and nothing may look into it, as it is not
//! dumpable.

use std::os::fd::{AsFd, BorrowedFd};

use base::Report;
use nix::sched::{CloneFlags, setns};
use sys::namespace::open_namespace;
use sys::process::{Child, Flags, fork, pidfd_send_signal};
use sys::{Call, SysError};

use crate::channel::Channel;
use crate::exec::visible;
use crate::stage;

/// Forks a process that does `work` there. What fails is told over the channel. `/proc` is the container's, in which the
/// process has no number. The caller must have one thread.
pub fn visit(
    outer: BorrowedFd<'_>,
    (pid, init): (i32, BorrowedFd<'_>),
    channel: &Channel,
    work: impl FnOnce() -> Result<(), Report>,
) -> Result<Child, SysError> {
    fork(Flags::empty(), None, || {
        let joined = join(outer, pid, init).map_err(|error| Report::from(error).with_step("entering the container"));
        match joined.and_then(|()| work()) {
            Ok(()) => 0,
            Err(report) => {
                channel.fail(&report);
                1
            }
        }
    })
}

fn join(outer: BorrowedFd<'_>, pid: i32, init: BorrowedFd<'_>) -> Result<(), SysError> {
    let undumpable = || nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned());
    stage::join_outer(outer)?;
    undumpable()?;
    let (process, mounts) = visible(pid)?;
    let user = open_namespace(process.as_fd(), "user")?;
    // Only now is it sure that the number still meant this process when it was used.
    pidfd_send_signal(init, 0)?;
    setns(&user, CloneFlags::CLONE_NEWUSER).call(|| "setns(user)".to_owned())?;
    stage::become_mapped_root()?;
    undumpable()?;
    setns(&mounts, CloneFlags::CLONE_NEWNS).call(|| "setns(mnt)".to_owned())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    Ok(())
}
