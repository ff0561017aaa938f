//! On which rungs a container's `/proc`, `/sys` and terminal would stand: tried in namespaces like a container's.

use std::os::fd::{AsFd, BorrowedFd};

use base::{Ladder, Trial};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use sys::mount::{Attr, FsContext};
use sys::process::{Flags, fork, reap};
use sys::{Call, Errno, SysError, socket};

use crate::init::mounts::PROC_IS_MASKED;

/// What is tried, each a new file system: its type and options.
const TRIALS: [(&str, &[(&str, &str)]); 4] = [
    ("proc", &[]),
    ("sysfs", &[]),
    ("devpts", &[("newinstance", ""), ("gid", "5")]),
    ("devpts", &[("newinstance", "")]),
];

/// The ladders `/proc, /sys` and `console` in this outer user namespace. Takes some milliseconds. The caller must have
/// one thread.
pub fn probe(outer: BorrowedFd<'_>) -> [Ladder; 2] {
    let [proc, sysfs, with_group, without_group] = try_all(outer).unwrap_or_else(|error| {
        let failure = words(&error);
        std::array::from_fn(|_| Some(failure.clone()))
    });
    [kernel_files(proc, sysfs), console(with_group, without_group)]
}

/// The same ladders where there is no user namespace to try them in.
pub fn without_namespace() -> [Ladder; 2] {
    let failure = Some("it needs a user namespace".to_owned());
    [kernel_files(failure.clone(), None), console(failure.clone(), failure)]
}

fn kernel_files(proc: Option<String>, sysfs: Option<String>) -> Ladder {
    const MOUNT: &str = "new mount";
    const BIND: &str = "bind of the outer /sys";
    let (chosen, fix) = match (&proc, &sysfs) {
        (None, None) => (Some(MOUNT), None),
        (None, Some(_)) => (Some(BIND), None),
        (Some(failure), _) => (None, failure.contains("EPERM").then(|| PROC_IS_MASKED.to_owned())),
    };
    let mut trials = vec![Trial { rung: MOUNT, failure: proc.or(sysfs) }];
    if chosen == Some(BIND) {
        trials.push(Trial { rung: BIND, failure: None });
    }
    Ladder { part: "/proc, /sys", trials, chosen, fix }
}

fn console(with_group: Option<String>, without_group: Option<String>) -> Ladder {
    let rungs = [("devpts with gid 5", with_group), ("devpts without gid", without_group)];
    let used = rungs.iter().position(|(_, failure)| failure.is_none());
    let trials = rungs.into_iter().take(used.map_or(2, |used| used + 1));
    let trials: Vec<Trial> = trials.map(|(rung, failure)| Trial { rung, failure }).collect();
    let fix = (used == Some(1)).then(|| "as for the part ids: group 5 needs subordinate ids".to_owned());
    Ladder { part: "console", chosen: used.map(|used| trials[used].rung), trials, fix }
}

/// Each trial's failure, from a child that joins the namespace and one of its own in further namespaces.
fn try_all(outer: BorrowedFd<'_>) -> Result<[Option<String>; 4], SysError> {
    let (ours, theirs) = socket::pair()?;
    let child = fork(Flags::empty(), None, || i32::from(join_and_try(outer, theirs.as_fd()).is_err()))?;
    drop(theirs);
    let mut message = [0; 4096];
    let received = socket::receive(ours.as_fd(), &mut message);
    reap(child.pidfd.as_fd(), true)?;
    let length = received?.0;
    if length == 0 {
        return Err(SysError::new("trial of file systems: the process died", Errno::EIO));
    }
    let text = String::from_utf8_lossy(&message[..length]);
    let mut lines = text.split('\n');
    Ok(std::array::from_fn(|_| lines.next().filter(|line| !line.is_empty()).map(str::to_owned)))
}

/// Answers with a line a trial, empty where it held; where none can be made, with the reason for each.
fn join_and_try(outer: BorrowedFd<'_>, answer: BorrowedFd<'_>) -> Result<(), SysError> {
    let made = join(outer).and_then(|()| {
        let inside = Flags::NEWNS | Flags::NEWPID | Flags::NEWIPC | Flags::NEWNET;
        let child = fork(inside, None, || {
            let lines = TRIALS.map(|(typ, options)| mount(typ, options).err().map_or_else(String::new, |e| words(&e)));
            i32::from(socket::send(answer, lines.join("\n").as_bytes(), &[]).is_err())
        })?;
        reap(child.pidfd.as_fd(), true).map(drop)
    });
    made.or_else(|error| socket::send(answer, TRIALS.map(|_| words(&error)).join("\n").as_bytes(), &[]))
}

fn join(outer: BorrowedFd<'_>) -> Result<(), SysError> {
    setns(outer, CloneFlags::CLONE_NEWUSER).call(|| "setns(user)".to_owned())?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).call(|| "setresgid(0)".to_owned())?;
    setresuid(uid, uid, uid).call(|| "setresuid(0)".to_owned())
}

fn mount(typ: &str, options: &[(&str, &str)]) -> Result<(), SysError> {
    let text = crate::init::rootfs::c_string;
    let context = FsContext::open(&text(typ)?)?;
    for (key, value) in options {
        match *value {
            "" => context.set_flag(&text(key)?)?,
            value => context.set(&text(key)?, &text(value)?)?,
        }
    }
    context.mount(Attr::empty()).map(drop)
}

fn words(error: &SysError) -> String {
    format!("{error}: {}", error.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_sysfs_is_a_step_down_and_a_refused_proc_the_end() {
        let refused = || Some("fsmount(sysfs): EPERM".to_owned());
        assert_eq!(kernel_files(None, None).step_down(), None);
        assert_eq!(kernel_files(None, refused()).chosen, Some("bind of the outer /sys"));
        let without = kernel_files(refused(), None);
        assert_eq!((without.chosen, without.fix.as_deref()), (None, Some(PROC_IS_MASKED)));
    }

    #[test]
    fn a_terminal_needs_no_group() {
        let failure = || Some("no".to_owned());
        assert_eq!(console(None, None).trials.len(), 1);
        assert_eq!(console(failure(), None).chosen, Some("devpts without gid"));
        assert_eq!(console(failure(), failure()).chosen, None);
    }
}
