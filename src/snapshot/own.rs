//! The writable state of one container for the driver `fuse`: a directory that our own overlay writes.
//!
//! ```text
//! <snaps>/<key>/upper/      the log and the data files of crate `overlayfs`, all the calling user's at any time
//! ```

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use index::Index;
use sys::namespace::IdMap;

use crate::changes::{Change, ChangeKind, ChangesError};
use crate::directory::{self, Driver, Meta, SnapshotError, make_dir, open_dir};

/// Makes the snapshot `key` below `snaps` (which is made too), or finds it as it is; `maps` are the container's ids (users
/// and groups) in terms of the outer ones; `volatile` syncs nothing. Returns the directory to serve, open.
pub fn prepare(snaps: &Path, key: &str, maps: (&IdMap, &IdMap), volatile: bool) -> Result<OwnedFd, SnapshotError> {
    directory::prepare(snaps, key, &Meta::new(Driver::Fuse, maps.0, maps.1), volatile, |new| {
        make_dir(&new.join("upper"), 0o700, None)
    })?;
    Ok(open_dir(&snaps.join(key).join("upper"))?)
}

/// What the snapshot `key` changes in the chain that it stands on, sorted by path, without what `left_out` says (a path with
/// leading slash). Nothing in it is touched: its server may run.
pub fn changes(
    snaps: &Path,
    key: &str,
    chain: Index,
    left_out: &dyn Fn(&[u8]) -> bool,
) -> Result<Vec<Change>, ChangesError> {
    let upper = open_dir(&snaps.join(key).join("upper"))?;
    let found = overlayfs::diff(upper, Arc::new(chain), left_out)?;
    Ok(found.into_iter().map(change).collect())
}

pub(crate) fn change(one: overlayfs::Difference) -> Change {
    let kind = match one.change {
        overlayfs::Change::Added => ChangeKind::Added,
        overlayfs::Change::Changed => ChangeKind::Changed,
        overlayfs::Change::Deleted => ChangeKind::Deleted,
    };
    Change::new(one.path, kind)
}
