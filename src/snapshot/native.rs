//! The writable state of one container for the drivers `overlay` and `tree`: a directory tree that the kernel's overlayfs writes.
//!
//! ```text
//! <snaps>/<key>/upper/      what the container wrote, whiteouts and opaque marks as overlayfs makes them with `userxattr`
//!               work/       scratch of overlayfs
//!               owners      only at rest, and only when needed: the true owners and modes (see `owner_log`)
//! ```
//! While a container runs, files in `upper` belong to ids of its user namespace, and may have modes that stop the user
//! who owns it all. [`crate::owner_client::reclaim`] turns that into data when it has ended.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use sys::error::Call;
use sys::namespace::IdMap;

use crate::directory;
use crate::directory::{Driver, Meta, SnapshotError, make_dir, open_dir};
use crate::owner_log;

pub use crate::changes::{Truth, changes};
pub use crate::lower::{ChainLower, HostLower, Lower, LowerEntry, TrueOwner};

/// The directories that overlayfs is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// `upperdir`; its own mode and owner are those of the container's root directory.
    pub upper: PathBuf,
    /// `workdir`; on the same file system.
    pub work: PathBuf,
}

/// The places of a snapshot that exists.
pub fn places(snaps: &Path, key: &str) -> Native {
    let dir = snaps.join(key);
    Native { upper: dir.join("upper"), work: dir.join("work") }
}

/// How the root directory of an image looks. Overlayfs shows the upper's own in its place and copies nothing up there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootLook {
    /// Permission bits with set-id and sticky bits.
    pub permissions: u16,
    /// User and group: for [`prepare`] in ids of the outer user namespace.
    pub owner: (u32, u32),
    /// Last change: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
}

/// Makes the snapshot `key` of a driver below `snaps` (which is made too), or finds it as it is. `maps` are the container's ids
/// (users and groups) in terms of the outer ones; `owner` is who new directories belong to, in the caller's ids: the
/// container's root when the caller is root, `None` for the caller. A new upper looks like `root`, its owner as far as the
/// log `owners` says so, which [`crate::owner_client::restore`] follows. `volatile` syncs nothing.
pub fn prepare(
    driver: Driver,
    (snaps, key): (&Path, &str),
    maps: (&IdMap, &IdMap),
    owner: Option<(u32, u32)>,
    root: Option<RootLook>,
    volatile: bool,
) -> Result<Native, SnapshotError> {
    directory::prepare(snaps, key, &Meta::new(driver, maps.0, maps.1), volatile, |new| {
        let upper = new.join("upper");
        make_dir(&upper, root.map_or(0o755, |root| root.permissions.into()), owner)?;
        make_dir(&new.join("work"), 0o755, owner)?;
        root.map_or(Ok(()), |root| look_like(&root, new, &upper, maps, volatile))
    })?;
    Ok(places(snaps, key))
}

/// Makes the scratch of a snapshot again that was removed.
pub fn make_work(snaps: &Path, key: &str, owner: Option<(u32, u32)>) -> Result<(), SnapshotError> {
    make_dir(&places(snaps, key).work, 0o755, owner)
}

/// Gives a new upper the time of an image's root directory, and writes down an owner other than the container's root.
fn look_like(
    root: &RootLook,
    new: &Path,
    upper: &Path,
    maps: (&IdMap, &IdMap),
    volatile: bool,
) -> Result<(), SnapshotError> {
    let time = TimeSpec::new(root.mtime.0, root.mtime.1.into());
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, upper, &time, &time, flags).call(|| format!("utimensat({upper:?})"))?;
    let first = |map: &IdMap| map.iter().find(|extent| extent.inside == 0).map_or(0, |extent| extent.outside);
    if root.owner != (first(maps.0), first(maps.1)) {
        let dir = open_dir(new)?;
        let mut log = owner_log::Writer::new(dir.as_fd());
        let mode = nix::libc::S_IFDIR | u32::from(root.permissions);
        let (uid, gid) = root.owner;
        log.add(b".", &owner_log::Record { mode, uid, gid, attributes: Vec::new(), stamp: None })?;
        log.finish(!volatile)?;
    }
    Ok(())
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
        let none = (&IdMap::new(), &IdMap::new());
        // What a kill in the middle leaves.
        std::fs::create_dir_all(snaps.join("one.new/upper")).unwrap();
        let made = prepare(Driver::Overlay, (&snaps, "one"), none, None, None, false).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode(&snaps.join("one")), mode(&made.upper), mode(&made.work)], [0o700, 0o755, 0o755]);
        std::fs::write(made.upper.join("file"), "kept").unwrap();
        std::fs::set_permissions(&made.upper, PermissionsExt::from_mode(0o1777)).unwrap();
        assert_eq!(prepare(Driver::Overlay, (&snaps, "one"), none, None, None, false).unwrap(), made);
        assert_eq!(std::fs::read(made.upper.join("file")).unwrap(), b"kept");
        assert_eq!(mode(&made.upper), 0o1777);
        directory::remove(&snaps, "one", None).unwrap();
        directory::remove(&snaps, "one", None).unwrap();
        assert_eq!(std::fs::read_dir(&snaps).unwrap().count(), 0);
    }
}
