//! The writable state of one container for the driver `overlay`: a directory tree that the kernel's overlayfs writes.
//!
//! ```text
//! <snaps>/<key>/meta.json   {"format":1,"driver":"overlay"}; there is no snapshot without it
//!               upper/      what the container wrote, whiteouts and opaque marks as overlayfs makes them with `userxattr`
//!               work/       scratch of overlayfs
//!               owners      only at rest, and only when needed: the true owners and modes (see `owner_log`)
//! ```
//! While a container runs, files in `upper` belong to ids of its user namespace, and may have modes that stop the user
//! who owns it all. [`crate::owner_client::reclaim`] turns that into data when it has ended.
//! The caller holds the container's lock.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Explain, Kind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use serde::{Deserialize, Serialize};
use sys::SysError;
use sys::error::Call;

use crate::owner_client::{self, OwnerError};
use crate::tree_walk::remove_contents;

pub use crate::changes::{Change, ChangeKind, ChangesError, HostLower, Lower, LowerEntry, changes};

/// What `meta.json` says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    format: u32,
    driver: String,
}

const FORMAT: u32 = 1;
const DRIVER: &str = "overlay";

/// The directories that overlayfs is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// `upperdir`; its own mode and owner are those of the container's root directory.
    pub upper: PathBuf,
    /// `workdir`; on the same file system.
    pub work: PathBuf,
}

/// Why there is no snapshot, or why it is still there.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The directory belongs to another driver or another version.
    #[error("snapshot {path:?} is not of driver {DRIVER} and format {FORMAT}")]
    Foreign {
        /// Its directory.
        path: PathBuf,
    },
    /// Files of other ids need the outer user namespace to be removed, and none was given.
    #[error("{path:?} has files of subordinate ids")]
    NeedsOuter {
        /// The snapshot.
        path: PathBuf,
        /// The call that showed it.
        source: SysError,
    },
    /// The role that removes such files failed.
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

impl Explain for NativeError {
    fn kind(&self) -> Kind {
        match self {
            NativeError::Sys(error) => error.kind(),
            NativeError::Foreign { .. } => Kind::Conflict,
            NativeError::NeedsOuter { .. } => Kind::Denied,
            NativeError::Owner(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            NativeError::Owner(error) => error.hint(),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, NativeError>;

/// The places of a snapshot that exists.
pub fn places(snaps: &Path, key: &str) -> Native {
    let dir = snaps.join(key);
    Native { upper: dir.join("upper"), work: dir.join("work") }
}

/// Makes the snapshot `key` below `snaps` (which is made too), or finds it as it is. `owner` is who new directories
/// belong to, in the caller's ids: the container's root when the caller is root, `None` for the caller.
///
/// It appears whole, by one rename, so a kill in between leaves only what the next call removes.
pub fn prepare(snaps: &Path, key: &str, owner: Option<(u32, u32)>) -> Result<Native> {
    let dir = snaps.join(key);
    match std::fs::read(dir.join("meta.json")) {
        Ok(text) => match serde_json::from_slice::<Meta>(&text) {
            Ok(meta) if meta.format == FORMAT && meta.driver == DRIVER => return Ok(places(snaps, key)),
            _ => return Err(NativeError::Foreign { path: dir }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => Err(error).call(|| format!("read({:?})", dir.join("meta.json")))?,
    }
    std::fs::create_dir_all(snaps).call(|| format!("mkdir -p {snaps:?}"))?;
    let new = snaps.join(format!("{key}.new"));
    remove_tree(&new)?;
    make_dir(&new, 0o700, None)?;
    make_dir(&new.join("upper"), 0o755, owner)?;
    make_dir(&new.join("work"), 0o755, owner)?;
    let meta = Meta { format: FORMAT, driver: DRIVER.to_owned() };
    let text = serde_json::to_vec(&meta).map_err(|_| SysError::new("meta.json", Errno::EINVAL))?;
    std::fs::write(new.join("meta.json"), text).call(|| format!("write({:?})", new.join("meta.json")))?;
    std::fs::rename(&new, &dir).call(|| format!("rename({new:?}, {dir:?})"))?;
    Ok(places(snaps, key))
}

/// A directory with exactly this mode, whatever the umask.
fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let mode = Mode::from_bits_truncate(mode);
    nix::unistd::mkdir(path, Mode::S_IRWXU).call(|| format!("mkdir({path:?})"))?;
    let dir = open_dir(path)?;
    if let Some((uid, gid)) = owner {
        fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .call(|| format!("chown({path:?}, {uid}:{gid})"))?;
    }
    nix::sys::stat::fchmod(&dir, mode).call(|| format!("chmod({path:?}, {mode:?})"))?;
    Ok(())
}

fn open_dir(path: &Path) -> std::result::Result<OwnedFd, SysError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))
}

/// Removes the snapshot `key`; one that does not exist is fine. Files of other ids are removed by the role `owner` in
/// the user namespace `outer`: [`NativeError::NeedsOuter`] without one, after which a second call goes on.
///
/// With `outer` the caller must have one thread.
pub fn remove(snaps: &Path, key: &str, outer: Option<BorrowedFd<'_>>) -> Result<()> {
    let dir = snaps.join(key);
    remove_tree(&snaps.join(format!("{key}.new")))?;
    // The role that gives files back may still be at work.
    let held = match open_dir(&dir) {
        Err(error) if error.errno() == Errno::ENOENT => return Ok(()),
        opened => owner_client::hold(opened?, &dir)?,
    };
    let removed = remove_tree(&dir);
    drop(held);
    match removed {
        Err(error) if matches!(error.errno(), Errno::EACCES | Errno::EPERM) => match outer {
            Some(outer) => owner_client::remove(outer, &dir)?,
            None => return Err(NativeError::NeedsOuter { path: dir, source: error }),
        },
        result => return Ok(result?),
    }
    Ok(remove_tree(&dir)?)
}

/// Removes a directory with everything in it, as the caller.
fn remove_tree(path: &Path) -> std::result::Result<(), SysError> {
    let dir = match open_dir(path) {
        Err(error) if error.errno() == Errno::ENOENT => return Ok(()),
        dir => dir?,
    };
    remove_contents(dir.as_fd())?;
    unlinkat(nix::fcntl::AT_FDCWD, path, UnlinkatFlags::RemoveDir).call(|| format!("rmdir({path:?})"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn prepared_once_and_removed_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let snaps = scratch.path().join("snaps");
        // What a kill in the middle leaves.
        std::fs::create_dir_all(snaps.join("one.new/upper")).unwrap();
        let made = prepare(&snaps, "one", None).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode(&snaps.join("one")), mode(&made.upper), mode(&made.work)], [0o700, 0o755, 0o755]);
        std::fs::write(made.upper.join("file"), "kept").unwrap();
        std::fs::set_permissions(&made.upper, PermissionsExt::from_mode(0o1777)).unwrap();
        assert_eq!(prepare(&snaps, "one", None).unwrap(), made);
        assert_eq!(std::fs::read(made.upper.join("file")).unwrap(), b"kept");
        assert_eq!(mode(&made.upper), 0o1777);
        remove(&snaps, "one", None).unwrap();
        remove(&snaps, "one", None).unwrap();
        assert_eq!(std::fs::read_dir(&snaps).unwrap().count(), 0);
    }

    #[test]
    fn another_drivers_snapshot_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("two")).unwrap();
        std::fs::write(scratch.path().join("two/meta.json"), r#"{"format":1,"driver":"fuse"}"#).unwrap();
        assert!(matches!(prepare(scratch.path(), "two", None), Err(NativeError::Foreign { .. })));
    }
}
