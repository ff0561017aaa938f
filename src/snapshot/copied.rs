//! The whole root file system of one container, for the driver `copy`: the image copied, and written in place.
//!
//! ```text
//! <snaps>/<key>/upper/      all that the container has
//!               owners      at rest, and where needed: the true owners and modes (see `owner_log`)
//! ```
//! As in a native upper ([`crate::native`]) files belong to ids of the container while it runs, and to the caller at rest.
//! What it has changed is found by a comparison with the index of its image.

use std::path::Path;

use base::{Explain, Kind};
use index::Index;
use sys::SysError;
use sys::namespace::IdMap;

use crate::directory::{self, Driver, Meta, SnapshotError};
use crate::object_dir::ObjectDirs;
use crate::seed::{Seed, SeedError, seed};

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The snapshot could not be made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The image could not be written out.
    #[error(transparent)]
    Seed(#[from] SeedError),
}

impl Explain for CopyError {
    fn kind(&self) -> Kind {
        match self {
            CopyError::Sys(error) => error.kind(),
            CopyError::Snapshot(error) => error.kind(),
            CopyError::Seed(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CopyError::Sys(_) => None,
            CopyError::Snapshot(error) => error.hint(),
            CopyError::Seed(error) => error.hint(),
        }
    }
}

/// Makes the snapshot `key` below `snaps` (which is made too) by copying the image, or finds it as it is; `maps` are the
/// container's ids (users and groups) in terms of the outer ones. It waits for [`crate::owner_client::restore`].
pub fn prepare(
    snaps: &Path,
    key: &str,
    maps: (&IdMap, &IdMap),
    (index, objects): (&Index, &ObjectDirs),
    how: Seed<'_>,
) -> Result<(), CopyError> {
    directory::prepare(snaps, key, &Meta::new(Driver::Copy, maps.0, maps.1), !how.sync, |new| {
        Ok(seed(new, "upper", (index, index.root()), objects, how)?)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, UNIX_EPOCH};

    use index::{DeviceNumber, Entry, Metadata, TreeBuilder};
    use oci::{DiffId, Digest};
    use store::Family;
    use sys::xattr::{Existing, set};

    use super::*;
    use crate::changes::{Change, ChangeKind, Ours, Truth, changes, contents};
    use crate::directory::{meta, open_dir};
    use crate::ids::MappedIds;
    use crate::lower::ChainLower;

    /// A file of the image, its time as the layer has it.
    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(7)).unwrap();
    }

    #[test]
    fn a_copy_is_compared_to_the_last_byte() {
        let scratch = tempfile::tempdir().unwrap();
        let large = vec![b'x'; 100_000];
        let (snaps, store, digest) = (scratch.path().join("snaps"), scratch.path().join("objects"), Digest::of(&large));
        let object = store.join(Family::Objects.path_of(&digest));
        fs::create_dir_all(object.parent().unwrap()).unwrap();
        fs::write(&object, &large).unwrap();
        let open = || open_dir(&store).unwrap();
        let objects = ObjectDirs { own: open(), trash: open(), below: Vec::new() };
        let mut layer = TreeBuilder::new();
        let mtime = index::Time { seconds: 7, nanoseconds: 0 };
        let metadata = |permissions| Metadata { permissions, mtime, ..Metadata::default() };
        let inline = |text: &str| Entry::InlineFile(text.as_bytes().to_vec());
        for (path, permissions, entry) in [
            ("", 0o755, Entry::Directory),
            ("dir", 0o555, Entry::Directory),
            ("dir/file", 0o644, inline("one")),
            ("closed", 0, inline("shut")),
            ("link", 0o777, Entry::Symlink(b"dir/file".to_vec())),
            ("node", 0o600, Entry::CharDevice(DeviceNumber { major: 1, minor: 3 })),
            ("set", 0o4755, inline("set")),
        ] {
            layer.insert(path.as_bytes(), &metadata(permissions), entry).unwrap();
        }
        let object = Entry::ObjectFile { digest, size: large.len() as u64 };
        layer.insert(b"large", &metadata(0o644), object).unwrap();
        let layer = Index::from_bytes(layer.write(DiffId(Digest::of(b"layer")), None).unwrap()).unwrap();
        let chain = Index::from_bytes(index::merge(&[&layer]).unwrap()).unwrap();

        let one = vec![sys::namespace::Extent { inside: 0, outside: 0, size: 1 }];
        let how = Seed { owner: &|_, _| (0, 0), log_all: false, sync: false };
        prepare(&snaps, "key", (&one, &one), (&chain, &objects), how).unwrap();
        let (dir, upper) = (snaps.join("key"), snaps.join("key/upper"));
        let meta = meta(&snaps, "key").unwrap().unwrap();
        let truth = Truth::read(&dir, &meta, None).unwrap();
        let lower = ChainLower { index: &chain, ids: MappedIds { uids: 1, gids: 1 }, objects: Some(&objects) };
        let told = || changes(&upper, &lower, &truth, &|_| false).unwrap();
        let kept = || contents(open_dir(&upper).unwrap().as_fd(), &lower, &truth, &Ours::default()).unwrap();
        let list = |changes: Vec<Change>| -> Vec<String> {
            let letter = |kind| match kind {
                ChangeKind::Added => 'A',
                ChangeKind::Changed => 'C',
                ChangeKind::Deleted => 'D',
            };
            changes.iter().map(|one| format!("{} {}", letter(one.kind), one.path.display())).collect()
        };
        assert_eq!((list(told()), list(kept())), (vec![], vec![]));
        // What no look tells.
        let mut other = large;
        other[99_999] = b'y';
        write(&upper.join("large"), std::str::from_utf8(&other).unwrap());
        fs::set_permissions(upper.join("dir"), PermissionsExt::from_mode(0o755)).unwrap();
        write(&upper.join("dir/file"), "two");
        fs::set_permissions(upper.join("dir"), PermissionsExt::from_mode(0o555)).unwrap();
        set(File::open(upper.join("set")).unwrap(), c"user.note", b"1", Existing::Any).unwrap();
        assert_eq!(list(told()), Vec::<String>::new());
        assert_eq!(list(kept()), ["C /", "C /dir", "C /dir/file", "C /large", "C /set"]);
        // No mark of overlayfs hides anything in a copy.
        set(File::open(upper.join("dir")).unwrap(), c"user.overlay.opaque", b"y", Existing::Any).unwrap();
        File::create(upper.join("mark")).unwrap();
        set(File::open(upper.join("mark")).unwrap(), c"user.overlay.whiteout", b"y", Existing::Any).unwrap();
        fs::remove_file(upper.join("link")).unwrap();
        symlink("dir/elif", upper.join("link")).unwrap();
        fs::remove_file(upper.join("closed")).unwrap();
        assert_eq!(list(told()), ["D /closed", "C /link", "A /mark"]);
    }
}
