//! Content files below the directory `objects/ab/<hex>` of stores.

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

/// The directories `objects` of the user's store and of those that are only read, held open so that a view needs no path
/// and no right to walk there.
#[derive(Debug)]
pub struct ObjectDirs(pub Vec<OwnedFd>);

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NOATIME);

impl ContentFiles for ObjectDirs {
    fn object(&self, digest: &Digest) -> Result<OwnedFd, Errno> {
        let hex = digest.hex();
        let name = format!("{}/{hex}", &hex[..2]);
        for dir in &self.0 {
            let opened = match openat(dir, name.as_str(), FLAGS, Mode::empty()) {
                // In a store that somebody else owns.
                Err(Errno::EPERM) => openat(dir, name.as_str(), FLAGS.difference(OFlag::O_NOATIME), Mode::empty()),
                opened => opened,
            };
            match opened {
                // It may be in the next; a store on a network file system may have gone.
                Err(Errno::ENOENT | Errno::ESTALE) => {}
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
