//! Starting the role `owner` ([`crate::owner_role`]) and learning how it went.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Explain, Failure, Kind};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use sys::error::Call;
use sys::role::Spawn;
use sys::{SysError, process, socket};

/// `argv[0]` of the role.
pub const ARGV0: &str = "sublet-owner";

/// What the role does with a snapshot's directory. Descriptors: `dir` (that directory), `outer` (the outer user
/// namespace), `report` (a socket).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    Reclaim,
    Restore,
    Remove,
}

/// Why the owners of a snapshot are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The role failed; its own words.
    #[error("{task} the files of {dir:?}: {}", failure.lines.join(": "))]
    Failed {
        /// What it was doing.
        task: &'static str,
        /// The snapshot.
        dir: PathBuf,
        /// What it said.
        failure: Failure,
    },
    /// The role ended without a word.
    #[error("{task} the files of {dir:?}: the process ended before it was done")]
    Died {
        /// What it was doing.
        task: &'static str,
        /// The snapshot.
        dir: PathBuf,
    },
}

impl Explain for OwnerError {
    fn kind(&self) -> Kind {
        match self {
            OwnerError::Sys(error) => error.kind(),
            OwnerError::Failed { failure, .. } => failure.kind,
            OwnerError::Died { .. } => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            OwnerError::Failed { failure, .. } => failure.hint.clone(),
            _ => None,
        }
    }
}

/// Gives every file of a native snapshot back to the calling user, with modes that let it be read and deleted, after a
/// log of what they were. `dir` is the snapshot's directory, `outer` the outer user namespace that the container lived in.
///
/// May be called at any time when the container does not run, and again after a kill at any instant. A tree with
/// nothing to give back is only looked at. The caller must have one thread.
pub fn reclaim(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    run(Task::Reclaim, outer, dir)
}

/// Undoes [`reclaim`] before the container starts again; nothing is done when there is no log. The caller must have one
/// thread.
pub fn restore(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    if !dir.join("owners").exists() {
        return Ok(());
    }
    run(Task::Restore, outer, dir)
}

/// Removes everything in a directory whoever owns it; the directory itself stays. The caller must have one thread.
pub fn remove(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    run(Task::Remove, outer, dir)
}

/// Makes sure that nobody else changes or removes what is in a snapshot's directory; waits until that is so. A role that
/// inherits the descriptor holds it on if its client is killed.
pub(crate) fn hold(opened: OwnedFd, dir: &Path) -> Result<Flock<OwnedFd>, SysError> {
    Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, errno)| errno).call(|| format!("flock({dir:?}, LOCK_EX)"))
}

fn run(task: Task, outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = open(dir, flags, Mode::empty()).call(|| format!("open({dir:?})"))?;
    let opened = hold(opened, dir)?;
    let config = serde_json::to_vec(&task).map_err(|_| SysError::new("task of the role owner", Errno::EINVAL))?;
    let (ours, theirs) = socket::pair()?;
    let stderr = std::io::stderr();
    let spawn = Spawn {
        argv0: ARGV0,
        label: &dir.file_name().unwrap_or_default().to_string_lossy(),
        config: &config,
        fds: &[("dir", opened.as_fd()), ("outer", outer), ("report", theirs.as_fd())],
        stdio: [None, None, Some(stderr.as_fd())],
        session: false,
        cgroup: None,
    };
    let child = spawn.start()?;
    drop(theirs);
    let mut answer = vec![0; 64 << 10];
    // Blocks until it is done; the end of the stream is the role's death.
    let received = socket::receive(ours.as_fd(), &mut answer);
    process::reap(child.pidfd.as_fd(), true)?;
    let answer = &answer[..received?.0];
    let (task, dir) = (task.word(), dir.to_owned());
    match answer {
        b"done" => Ok(()),
        _ => match serde_json::from_slice(answer) {
            Ok(failure) => Err(OwnerError::Failed { task, dir, failure }),
            Err(_) => Err(OwnerError::Died { task, dir }),
        },
    }
}

impl Task {
    fn word(self) -> &'static str {
        match self {
            Task::Reclaim => "taking back",
            Task::Restore => "restoring the owners of",
            Task::Remove => "removing",
        }
    }
}
