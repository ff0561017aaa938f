//! Content files of stores, in their place `objects/ab/<hex>` or in the trash.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use index::{Content, Index};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci::Digest;
use store::{Family, Shelf, StoreError};
use sys::{Call, SysError};

use crate::fd_cache::FdCache;
use crate::view_chain::{ContentFiles, OPEN_FILES};

/// The directories in which the files lie, held open so that a view needs no path and no right to walk there.
#[derive(Debug)]
pub struct ObjectDirs {
    /// `objects` of the user's store.
    pub own: OwnedFd,
    /// `trash` of the user's store: what a sweep that was killed has left there is in use when an image that names it came
    /// back, and only the next sweep puts it in its place again.
    pub trash: OwnedFd,
    /// `objects` of the stores that are only read.
    pub below: Vec<OwnedFd>,
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NOATIME);

impl ObjectDirs {
    /// Those of an open store.
    pub fn of(objects: &Shelf) -> Result<Self, StoreError> {
        let again = |dir: &store::Dir| {
            dir.as_fd().try_clone_to_owned().call(|| format!("fcntl({}, F_DUPFD_CLOEXEC)", dir.path().display()))
        };
        let below = objects.below()?.into_iter().map(again).collect::<Result<_, SysError>>()?;
        Ok(ObjectDirs { own: again(objects.dir())?, trash: again(objects.trash())?, below })
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &OwnedFd> {
        [&self.own, &self.trash].into_iter().chain(&self.below)
    }
}

impl ContentFiles for ObjectDirs {
    fn object(&self, digest: &Digest) -> Result<OwnedFd, Errno> {
        let (path, trashed) = (Family::Objects.path_of(digest), Family::Objects.trash_name(digest));
        // In its place once more: between the first two looks another may have brought it back.
        let own = [(&self.own, &path), (&self.trash, &trashed), (&self.own, &path)];
        for (dir, name) in own.into_iter().chain(self.below.iter().map(|dir| (dir, &path))) {
            let opened = match openat(dir, name.as_str(), FLAGS, Mode::empty()) {
                // In a store that somebody else owns.
                Err(Errno::EPERM) => openat(dir, name.as_str(), FLAGS.difference(OFlag::O_NOATIME), Mode::empty()),
                opened => opened,
            };
            match opened {
                // It may be in the next; a store on a network file system may have gone, or be closed to us.
                Err(Errno::ENOENT | Errno::ESTALE | Errno::EACCES | Errno::EIO) => {}
                opened => return opened,
            }
        }
        // The file is there for whoever asks for its content: what lacks is as if the disk were bad.
        Err(Errno::EIO)
    }
}

/// The same for the writable overlay, which leaves the keeping of open files to us.
pub struct CachedObjects {
    objects: ObjectDirs,
    files: FdCache,
}

impl CachedObjects {
    pub fn new(objects: ObjectDirs) -> Self {
        CachedObjects { objects, files: FdCache::new(OPEN_FILES) }
    }

    /// Where they lie.
    pub fn dirs(&self) -> &ObjectDirs {
        &self.objects
    }
}

impl overlayfs::Contents for CachedObjects {
    fn open(&self, _index: &Index, content: &Content<'_>) -> Result<Arc<File>, Errno> {
        match content {
            Content::Object { number, digest, .. } => {
                self.files.get(u64::from(*number), || self.objects.object(digest))
            }
            _ => Err(Errno::EINVAL),
        }
    }
}
