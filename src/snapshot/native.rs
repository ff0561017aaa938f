//! The writable state of one container for the driver `overlay`: a directory tree that the kernel's overlayfs writes.
//!
//! ```text
//! <snaps>/<key>/upper/      what the container wrote, whiteouts and opaque marks as overlayfs makes them with `userxattr`
//!               work/       scratch of overlayfs
//!               owners      only at rest, and only when needed: the true owners and modes (see `owner_log`)
//! ```
//! While a container runs, files in `upper` belong to ids of its user namespace, and may have modes that stop the user
//! who owns it all. [`crate::owner_client::reclaim`] turns that into data when it has ended.

use std::path::{Path, PathBuf};

use sys::namespace::IdMap;

use crate::directory;
use crate::directory::{Driver, Meta, SnapshotError, make_dir};

pub use crate::changes::{ChainLower, HostLower, Lower, LowerEntry, Truth, changes};

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

/// Makes the snapshot `key` below `snaps` (which is made too), or finds it as it is. `maps` are the container's ids (users
/// and groups) in terms of the outer ones; `owner` is who new directories belong to, in the caller's ids: the container's
/// root when the caller is root, `None` for the caller. `volatile` syncs nothing.
pub fn prepare(
    snaps: &Path,
    key: &str,
    maps: (&IdMap, &IdMap),
    owner: Option<(u32, u32)>,
    volatile: bool,
) -> Result<Native, SnapshotError> {
    directory::prepare(snaps, key, &Meta::new(Driver::Overlay, maps.0, maps.1), volatile, |new| {
        make_dir(&new.join("upper"), 0o755, owner)?;
        make_dir(&new.join("work"), 0o755, owner)
    })?;
    Ok(places(snaps, key))
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
        let made = prepare(&snaps, "one", none, None, false).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode(&snaps.join("one")), mode(&made.upper), mode(&made.work)], [0o700, 0o755, 0o755]);
        std::fs::write(made.upper.join("file"), "kept").unwrap();
        std::fs::set_permissions(&made.upper, PermissionsExt::from_mode(0o1777)).unwrap();
        assert_eq!(prepare(&snaps, "one", none, None, false).unwrap(), made);
        assert_eq!(std::fs::read(made.upper.join("file")).unwrap(), b"kept");
        assert_eq!(mode(&made.upper), 0o1777);
        directory::remove(&snaps, "one", None).unwrap();
        directory::remove(&snaps, "one", None).unwrap();
        assert_eq!(std::fs::read_dir(&snaps).unwrap().count(), 0);
    }
}
