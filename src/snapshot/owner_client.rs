//! Starting the role `owner` ([`crate::owner_role`]) and learning how it went.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Explain, Failure, Kind};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};
use sys::error::Call;
use sys::role::Spawn;
use sys::{SysError, process, socket};

use crate::changes::{Change, Ours};
use crate::directory::Meta;
use crate::ids::MappedIds;
use crate::view_host::HostViewConfig;

/// `argv[0]` of the role.
pub const ARGV0: &str = "sublet-owner";

/// What the role does with a snapshot's directory. Descriptors: `dir` (that directory), `outer` (the outer user
/// namespace), `report` (a socket).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    Reclaim(Tree),
    Restore(Tree),
    Remove,
    /// Further descriptors: `archive` (a pipe to write to), and what [`archive`] passes on.
    Archive(Box<ArchiveOrder>),
    /// The same descriptors; the pipe gets a list ([`Change::to_bytes`]).
    Changes(Box<ArchiveOrder>),
}

/// Whose files are given back, with the log `owners` beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tree {
    /// `upper` of a native snapshot, and its `work` if it has one.
    Upper,
    /// `upper` of a snapshot that goes with its container: nothing is synced.
    Volatile,
    /// `tree` of the driver of that name, of which nothing outlives a boot. Its log is never changed.
    Image,
    /// `_data` of a volume. There owners of real root's containers are the outer user namespace's ids as they are, since
    /// its mounts are shifted.
    Volume,
}

/// What is to be in an archive or a list of a snapshot's changes, and what they are changes of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveOrder {
    /// The snapshot's own word.
    pub meta: Meta,
    /// What is left out.
    pub ours: Ours,
    /// Owners that the view below can show.
    pub ids: MappedIds,
    /// The host's view below, where there is no image.
    pub host: Option<HostViewConfig>,
    /// No time is later than this, in seconds since 1970.
    pub latest_s: Option<i64>,
}

/// An archive on its way from the role. Dropped early the role ends by itself, as nobody reads what it writes.
#[derive(Debug)]
pub struct Archiving {
    role: Role,
    archive: File,
}

impl Archiving {
    /// The archive, to be read to its end before [`Archiving::finish`].
    pub fn archive(&mut self) -> &mut File {
        &mut self.archive
    }

    /// Waits for the role; how many sockets were left out.
    pub fn finish(self) -> Result<u64, OwnerError> {
        drop(self.archive);
        self.role.finish()
    }
}

/// Starts writing the archive of a native snapshot's changes as root of its container, whether that runs or not. `below`:
/// `index` of the image's chain, unless the host is below, and for the driver `copy` [`crate::fs_role::object_fds`]. The
/// caller must have one thread.
pub fn archive(
    outer: BorrowedFd<'_>,
    dir: &Path,
    order: ArchiveOrder,
    below: &[(&str, BorrowedFd<'_>)],
) -> Result<Archiving, OwnerError> {
    let (reading, writing) = pipe2(OFlag::O_CLOEXEC).call(|| "pipe2()".to_owned())?;
    let more = [below, &[("archive", writing.as_fd())]].concat();
    let role = start(&Task::Archive(Box::new(order)), outer, dir, &more)?;
    Ok(Archiving { role, archive: File::from(reading) })
}

/// What a native snapshot changes, as the root of its container sees it, whether that runs or not. `below` and the caller
/// as for [`archive`], but nobody asks for objects.
pub fn changes(
    outer: BorrowedFd<'_>,
    dir: &Path,
    order: ArchiveOrder,
    below: &[(&str, BorrowedFd<'_>)],
) -> Result<Vec<Change>, OwnerError> {
    let (reading, writing) = pipe2(OFlag::O_CLOEXEC).call(|| "pipe2()".to_owned())?;
    let more = [below, &[("archive", writing.as_fd())]].concat();
    let role = start(&Task::Changes(Box::new(order)), outer, dir, &more)?;
    drop(writing);
    let mut bytes = Vec::new();
    let read = File::from(reading).read_to_end(&mut bytes).call(|| "read(changes)".to_owned());
    role.finish()?;
    read?;
    Change::list_of(&bytes).ok_or_else(|| SysError::new("changes that the role owner has found", Errno::EINVAL).into())
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
    run(&Task::Reclaim(Tree::Upper), outer, dir)
}

/// The same for a volume, whose directory is `dir`.
pub fn reclaim_volume(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    run(&Task::Reclaim(Tree::Volume), outer, dir)
}

/// Undoes [`reclaim`] before the container starts again; nothing is done when there is no log. The caller must have one
/// thread.
pub fn restore(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    if is_logged(dir) { run(&Task::Restore(Tree::Upper), outer, dir) } else { Ok(()) }
}

/// The same for a snapshot of which nothing need outlive a power loss.
pub fn restore_volatile(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    if is_logged(dir) { run(&Task::Restore(Tree::Volatile), outer, dir) } else { Ok(()) }
}

/// The same for a volume.
pub fn restore_volume(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    if is_logged(dir) { run(&Task::Restore(Tree::Volume), outer, dir) } else { Ok(()) }
}

/// [`reclaim`] for the tree of an image, whose directory is `dir`: what the log `owners` names, which stays.
pub fn reclaim_tree(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    if is_logged(dir) { run(&Task::Reclaim(Tree::Image), outer, dir) } else { Ok(()) }
}

/// [`restore`] for the tree of an image. The log stays.
pub fn restore_tree(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    if is_logged(dir) { run(&Task::Restore(Tree::Image), outer, dir) } else { Ok(()) }
}

/// Whether the true owners are in the log; but for the tree of an image then they are not on the files.
pub fn is_logged(dir: &Path) -> bool {
    dir.join("owners").exists()
}

/// Removes everything in a directory whoever owns it; the directory itself stays. The caller must have one thread.
pub fn remove(outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    run(&Task::Remove, outer, dir)
}

/// Makes sure that nobody else changes or removes what is in a snapshot's directory; waits until that is so. A role that
/// inherits the descriptor holds it on if its client is killed.
pub(crate) fn hold(opened: OwnedFd, dir: &Path) -> Result<Flock<OwnedFd>, SysError> {
    Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, errno)| errno).call(|| format!("flock({dir:?}, LOCK_EX)"))
}

fn run(task: &Task, outer: BorrowedFd<'_>, dir: &Path) -> Result<(), OwnerError> {
    start(task, outer, dir, &[])?.finish().map(drop)
}

/// A role at work.
#[derive(Debug)]
struct Role {
    child: process::Child,
    report: OwnedFd,
    task: &'static str,
    dir: PathBuf,
    /// Nobody else changes what is in the directory.
    _held: Flock<OwnedFd>,
}

fn start(task: &Task, outer: BorrowedFd<'_>, dir: &Path, more: &[(&str, BorrowedFd<'_>)]) -> Result<Role, OwnerError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = open(dir, flags, Mode::empty()).call(|| format!("open({dir:?})"))?;
    let opened = hold(opened, dir)?;
    let config = serde_json::to_vec(task).map_err(|_| SysError::new("task of the role owner", Errno::EINVAL))?;
    let (ours, theirs) = socket::pair()?;
    let stderr = std::io::stderr();
    let fds = [("dir", opened.as_fd()), ("outer", outer), ("report", theirs.as_fd())];
    let spawn = Spawn {
        argv0: ARGV0,
        label: &dir.file_name().unwrap_or_default().to_string_lossy(),
        config: &config,
        fds: &[&fds[..], more].concat(),
        stdio: [None, None, Some(stderr.as_fd())],
        session: false,
        cgroup: None,
    };
    let child = spawn.start()?;
    Ok(Role { child, report: ours, task: task.word(), dir: dir.to_owned(), _held: opened })
}

impl Role {
    /// Blocks until it is done; the end of its socket is its death. The answer is what it counted.
    fn finish(self) -> Result<u64, OwnerError> {
        let Role { child, report, task, dir, _held } = self;
        let mut answer = vec![0; 64 << 10];
        let received = socket::receive(report.as_fd(), &mut answer);
        process::reap(child.pidfd.as_fd(), true)?;
        let answer = &answer[..received?.0];
        let count = std::str::from_utf8(answer).ok().and_then(|text| text.strip_prefix("done ")?.parse().ok());
        match (count, serde_json::from_slice(answer)) {
            (Some(count), _) => Ok(count),
            (None, Ok(failure)) => Err(OwnerError::Failed { task, dir, failure }),
            (None, Err(_)) => Err(OwnerError::Died { task, dir }),
        }
    }
}

impl Task {
    fn word(&self) -> &'static str {
        match self {
            Task::Reclaim(_) => "taking back",
            Task::Restore(_) => "restoring the owners of",
            Task::Remove => "removing",
            Task::Archive(_) | Task::Changes(_) => "reading",
        }
    }
}
