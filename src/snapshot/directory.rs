//! The directory of one container's writable state, whatever its driver.
//!
//! ```text
//! <snaps>/<key>/meta.json   which driver it belongs to; there is no snapshot without it
//!               …           what that driver keeps: `native` (overlay), `own` (fuse)
//! ```
//! The caller holds the container's lock.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base::{Explain, Kind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use serde::{Deserialize, Serialize};
use sys::SysError;
use sys::error::Call;
use sys::namespace::IdMap;

use crate::owner_client::{self, OwnerError};
use crate::tree_walk::remove_contents;

/// The version of `meta.json` that this build writes and reads; unknown keys are ignored.
const FORMAT: u32 = 1;
/// How long a server may take to close the files of a container that has ended.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What joins an image and a container's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The kernel's overlayfs, writing a directory tree, above the image's view.
    Overlay,
    /// Our own overlay, a FUSE server of the container, writing data files and a log.
    Fuse,
    /// The kernel's overlayfs above the image written out as a directory tree. No FUSE.
    Tree,
    /// A copy of the image that is the container's own. Neither FUSE nor overlayfs.
    Copy,
}

impl Driver {
    /// All, best first.
    pub const ALL: [Driver; 4] = [Driver::Overlay, Driver::Fuse, Driver::Tree, Driver::Copy];

    /// As options spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Driver::Overlay => "overlay",
            Driver::Fuse => "fuse",
            Driver::Tree => "tree",
            Driver::Copy => "copy",
        }
    }

    /// The driver that an option names.
    pub fn from_name(name: &str) -> Option<Driver> {
        Driver::ALL.into_iter().find(|driver| driver.as_str() == name)
    }

    /// Whether the fs role serves a view for it.
    pub fn is_served(self) -> bool {
        matches!(self, Driver::Overlay | Driver::Fuse)
    }

    /// Whether a container's files lie in a directory tree, and have owners of its ids while it runs.
    pub fn is_native(self) -> bool {
        self != Driver::Fuse
    }
}

/// What `meta.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    format: u32,
    /// Whose the rest of the directory is.
    pub driver: Driver,
    /// The container's user ids in those of the outer user namespace, at its first start.
    #[serde(default)]
    pub uid_map: IdMap,
    /// The same for groups.
    #[serde(default)]
    pub gid_map: IdMap,
}

impl Meta {
    /// Of a new snapshot.
    pub fn new(driver: Driver, uid_map: &IdMap, gid_map: &IdMap) -> Meta {
        Meta { format: FORMAT, driver, uid_map: uid_map.clone(), gid_map: gid_map.clone() }
    }
}

/// Why there is no snapshot, or why it is still there.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The directory belongs to another driver or another version.
    #[error("snapshot {path:?} is not of format {FORMAT} and of the driver that was expected")]
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

impl Explain for SnapshotError {
    fn kind(&self) -> Kind {
        match self {
            SnapshotError::Sys(error) => error.kind(),
            SnapshotError::Foreign { .. } => Kind::Conflict,
            SnapshotError::NeedsOuter { .. } => Kind::Denied,
            SnapshotError::Owner(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            SnapshotError::Owner(error) => error.hint(),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, SnapshotError>;

/// What the snapshot `key` says about itself; `None` when there is none.
pub fn meta(snaps: &Path, key: &str) -> Result<Option<Meta>> {
    let path = snaps.join(key).join("meta.json");
    match std::fs::read(&path) {
        Ok(text) => match serde_json::from_slice::<Meta>(&text) {
            Ok(meta) if meta.format == FORMAT => Ok(Some(meta)),
            _ => Err(SnapshotError::Foreign { path: snaps.join(key) }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).call(|| format!("read({path:?})"))?,
    }
}

/// Makes the snapshot `key` below `snaps` (which is made too), or finds it as it is: of the same driver, or it is
/// [`SnapshotError::Foreign`]. `fill` makes what the driver keeps in the new directory that it is given.
///
/// It appears whole, by one rename, so a kill in between leaves only what the next call removes. Unless it is `volatile`
/// so does a power loss: `meta.json` is on disk before the name is.
pub(crate) fn prepare<E: From<SnapshotError> + From<SysError>>(
    snaps: &Path,
    key: &str,
    wanted: &Meta,
    volatile: bool,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let dir = snaps.join(key);
    match meta(snaps, key)? {
        Some(found) if found.driver == wanted.driver => return Ok(()),
        Some(_) => return Err(SnapshotError::Foreign { path: dir }.into()),
        None => {}
    }
    std::fs::create_dir_all(snaps).call(|| format!("mkdir -p {snaps:?}"))?;
    let new = snaps.join(format!("{key}.new"));
    remove_tree(&new)?;
    make_dir(&new, 0o700, None)?;
    if let Err(error) = fill(&new) {
        // It may have filled the disk. The next call removes what resists.
        let _ = remove_tree(&new);
        return Err(error);
    }
    sys::step();
    let text = serde_json::to_vec(wanted).map_err(|_| SysError::new("meta.json", Errno::EINVAL))?;
    let path = new.join("meta.json");
    let mut file = File::create_new(&path).call(|| format!("open({path:?})"))?;
    file.write_all(&text).call(|| format!("write({path:?})"))?;
    if !volatile {
        file.sync_data().call(|| format!("fdatasync({path:?})"))?;
    }
    nix::unistd::close(file).call(|| format!("close({path:?})"))?;
    std::fs::rename(&new, &dir).call(|| format!("rename({new:?}, {dir:?})"))?;
    sys::step();
    Ok(())
}

/// A directory with exactly this mode, whatever the umask.
pub(crate) fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
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

pub(crate) fn open_dir(path: &Path) -> std::result::Result<OwnedFd, SysError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))
}

/// Removes the snapshot `key`; one that does not exist is fine. Files of other ids are removed by the role `owner` in
/// the user namespace `outer`: [`SnapshotError::NeedsOuter`] without one, after which a second call goes on.
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
    let removed = remove_closed(&dir);
    drop(held);
    match removed {
        Err(error) if matches!(error.errno(), Errno::EACCES | Errno::EPERM) => match outer {
            Some(outer) => owner_client::remove(outer, &dir)?,
            None => return Err(SnapshotError::NeedsOuter { path: dir, source: error }),
        },
        result => return Ok(result?),
    }
    Ok(remove_closed(&dir)?)
}

/// The same as [`remove_tree`] of what a server may have open that is about to end: an NFS client gives such files other names, which
/// cannot be removed, until they are closed (`fs/nfs/unlink.c` of Linux). What another process removes from it meanwhile is looked for
/// once more.
fn remove_closed(path: &Path) -> std::result::Result<(), SysError> {
    let began = Instant::now();
    loop {
        match remove_tree(path) {
            Err(error)
                if matches!(error.errno(), Errno::ENOTEMPTY | Errno::EBUSY | Errno::ENOENT)
                    && began.elapsed() < CLOSED_WITHIN =>
            {
                // What is gone needs no time.
                if error.errno() != Errno::ENOENT {
                    sleep(LOOK_AGAIN);
                }
            }
            removed => return removed,
        }
    }
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
    use super::*;

    #[test]
    fn two_may_remove_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("key");
        for _ in 0..20 {
            for number in 0..300 {
                std::fs::create_dir_all(path.join(format!("{number}"))).unwrap();
                std::fs::write(path.join(format!("{number}/file")), "").unwrap();
            }
            std::thread::scope(|scope| {
                let both = [0, 1].map(|_| scope.spawn(|| remove_closed(&path)));
                for one in both {
                    one.join().unwrap().unwrap();
                }
            });
            assert!(!path.exists());
        }
    }

    #[test]
    fn another_drivers_snapshot_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let wanted = Meta::new(Driver::Overlay, &IdMap::new(), &IdMap::new());
        for (key, text) in [("fuse", r#"{"format":1,"driver":"fuse"}"#), ("new", r#"{"format":2,"driver":"overlay"}"#)]
        {
            std::fs::create_dir(scratch.path().join(key)).unwrap();
            std::fs::write(scratch.path().join(key).join("meta.json"), text).unwrap();
            let made: Result<()> = prepare(scratch.path(), key, &wanted, false, |_| unreachable!());
            assert!(matches!(made, Err(SnapshotError::Foreign { .. })), "{key}: {made:?}");
        }
        assert_eq!(meta(scratch.path(), "fuse").unwrap().unwrap().driver, Driver::Fuse);
        assert_eq!(meta(scratch.path(), "none").unwrap(), None);
    }

    #[test]
    fn drivers_are_named_as_they_are_recorded() {
        for driver in Driver::ALL {
            assert_eq!(Driver::from_name(driver.as_str()), Some(driver));
            assert_eq!(serde_json::to_value(driver).unwrap(), driver.as_str());
        }
        assert_eq!(Driver::from_name("vfs"), None);
    }
}
