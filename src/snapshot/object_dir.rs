//! Content files below the store's directory `objects/ab/<hex>`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use index::{Content, Index};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci::Digest;

use crate::fd_cache::FdCache;
use crate::view_chain::{ContentFiles, OPEN_FILES};

/// The directory `objects`, held open so that a view needs no path and no right to walk there.
#[derive(Debug)]
pub struct ObjectDir(pub OwnedFd);

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NOATIME);

impl ContentFiles for ObjectDir {
    fn object(&self, digest: &Digest) -> Result<OwnedFd, Errno> {
        let hex = digest.hex();
        let name = format!("{}/{hex}", &hex[..2]);
        match openat(&self.0, name.as_str(), FLAGS, Mode::empty()) {
            // In a store that somebody else owns.
            Err(Errno::EPERM) => openat(&self.0, name.as_str(), FLAGS.difference(OFlag::O_NOATIME), Mode::empty()),
            result => result,
        }
    }
}

/// The same for the writable overlay, which leaves the keeping of open files to us.
pub struct CachedObjects {
    objects: ObjectDir,
    files: FdCache,
}

impl CachedObjects {
    pub fn new(objects: ObjectDir) -> Self {
        CachedObjects { objects, files: FdCache::new(OPEN_FILES) }
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
