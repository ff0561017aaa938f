//! Content under the digest it is named by: blobs, objects, indexes of layers and of chains.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use oci::Digest;
use sys::{Call, Errno, SysError};

use crate::Result;
use crate::dir::{Dir, read_capped};
use crate::error::StoreError;
use crate::new_file::{Durability, NewFile};

/// One kind of content.
#[derive(Debug)]
pub struct Shelf {
    dir: Dir,
    trash: Dir,
    family: &'static str,
    /// Whether files are spread over 256 directories by their first byte.
    fan_out: bool,
    suffix: &'static str,
}

/// What publishing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The content is new.
    New,
    /// It was there already; ours was discarded.
    Existed,
}

impl AsFd for Shelf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Shelf {
    pub(crate) fn new(dir: Dir, trash: Dir, family: &'static str, fan_out: bool, suffix: &'static str) -> Self {
        Shelf { dir, trash, family, fan_out, suffix }
    }

    /// Its directory. What another crate opens through it must be content that a lease or a name keeps.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The path of a content below [`Shelf::dir`].
    pub fn path_of(&self, digest: &Digest) -> String {
        let hex = digest.hex();
        if self.fan_out { format!("{}/{hex}{}", &hex[..2], self.suffix) } else { hex + self.suffix }
    }

    /// Opens a content for reading; `None` if it is not there. What a sweep has put in the trash comes back.
    pub fn open(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.path_of(digest);
        self.look(digest, || self.dir.open_file(&path))
    }

    /// Looks for a content in its place; where it is not there, in the trash, and then in its place once more: between
    /// the first two looks, another may have brought it back.
    fn look<T>(&self, digest: &Digest, in_place: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
        let found = in_place()?;
        if found.is_some() {
            return Ok(found);
        }
        self.rescue(digest)?;
        in_place()
    }

    /// The whole content, which must be there and no longer than this.
    pub fn read(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        let file = self.open(digest)?.ok_or(StoreError::Missing { digest: *digest })?;
        read_capped(file, max_bytes, &self.dir.path().join(self.path_of(digest)))
    }

    /// The size of a content; `None` if it is not there.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.path_of(digest);
        Ok(self.look(digest, || self.dir.stat(&path))?.map(|stat| stat.st_size as u64))
    }

    /// Whether a content is there.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.size(digest)?.is_some())
    }

    /// Whether a content is there in this size; from then on a sweep leaves it alone for as long as a lease lives that
    /// began before. Ask this before skipping the work of making it. Another size is what a power loss leaves of a
    /// file that was not synced: it counts as absent, and publishing replaces it.
    pub fn claim(&self, digest: &Digest, size_bytes: u64) -> Result<bool> {
        if self.size(digest)? != Some(size_bytes) {
            return Ok(false);
        }
        let path = self.path_of(digest);
        if self.touch(&path)? { Ok(true) } else { Ok(self.rescue(digest)? && self.touch(&path)?) }
    }

    /// Marks a file as in use now; `false` if it is not there.
    fn touch(&self, path: &str) -> Result<bool> {
        let flags = UtimensatFlags::NoFollowSymlink;
        match utimensat(&self.dir, path, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW, flags) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(SysError::new(self.dir.words("utimensat", path), errno).into()),
        }
    }

    /// A file to write content into that will be published here.
    pub fn create(&self) -> Result<NewFile> {
        NewFile::create(&self.dir)
    }

    /// Publishes a file as the content of this digest, which the caller has verified.
    pub fn publish(&self, new: NewFile, digest: &Digest, durability: Durability) -> Result<Published> {
        let path = self.path_of(digest);
        durability.apply(new.file(), || self.dir.words("fdatasync", &path))?;
        if self.link(&new, digest, &path)? {
            return Ok(Published::New);
        }
        let size_bytes = new.file().metadata().call(|| self.dir.words("fstat", &path))?.len();
        if self.claim(digest, size_bytes)? {
            return Ok(Published::Existed);
        }
        new.publish_over(&self.dir, &path, Durability::Later)?;
        Ok(Published::New)
    }

    /// Publishes small content.
    pub fn put(&self, digest: &Digest, content: &[u8], durability: Durability) -> Result<Published> {
        use std::io::Write;
        if self.claim(digest, content.len() as u64)? {
            return Ok(Published::Existed);
        }
        let mut new = self.create()?;
        new.write_all(content).call(|| self.dir.words("write", &self.path_of(digest)))?;
        self.publish(new, digest, durability)
    }

    fn link(&self, new: &NewFile, digest: &Digest, path: &str) -> Result<bool> {
        match new.link(&self.dir, path) {
            Err(error) if self.fan_out && error.errno() == Some(Errno::ENOENT) => {
                self.dir.subdir(&digest.hex()[..2], true)?;
                new.link(&self.dir, path)
            }
            other => other,
        }
    }

    /// Moves a whole file from elsewhere in the store here.
    pub(crate) fn adopt(&self, from: &Dir, name: &str, digest: &Digest) -> Result<()> {
        if self.fan_out {
            self.dir.subdir(&digest.hex()[..2], true)?;
        }
        from.rename(name, &self.dir, &self.path_of(digest))
    }

    /// Removes a content; `false` if it was not there.
    pub fn remove(&self, digest: &Digest) -> Result<bool> {
        self.dir.unlink(&self.path_of(digest))
    }

    /// All contents, in no order.
    pub fn list(&self) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        let mut take = |names: Vec<String>| found.extend(names.iter().filter_map(|name| self.digest_of(name)));
        if self.fan_out {
            for part in self.dir.names()?.iter().filter(|name| name.len() == 2) {
                take(self.dir.subdir(part, false)?.names()?);
            }
        } else {
            take(self.dir.names()?);
        }
        Ok(found)
    }

    fn digest_of(&self, name: &str) -> Option<Digest> {
        Digest::from_hex(name.strip_suffix(self.suffix)?).ok()
    }

    fn trash_name(&self, digest: &Digest) -> String {
        format!("{}-{}", self.family, digest.hex())
    }

    /// Takes a content out of place; a reader that misses it brings it back.
    pub(crate) fn discard(&self, digest: &Digest) -> Result<()> {
        match self.dir.rename(&self.path_of(digest), &self.trash, &self.trash_name(digest)) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Brings a content back from the trash; `false` if it is not there.
    pub(crate) fn rescue(&self, digest: &Digest) -> Result<bool> {
        match self.trash.rename(&self.trash_name(digest), &self.dir, &self.path_of(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The contents of this kind in the trash.
    pub(crate) fn discarded(&self) -> Result<Vec<Digest>> {
        let names = self.trash.names()?;
        let hex = |name: &String| Digest::from_hex(name.strip_prefix(self.family)?.strip_prefix('-')?).ok();
        Ok(names.iter().filter_map(hex).collect())
    }

    /// Deletes a content from the trash for good; the bytes it took on the disk, `None` if it had been brought back.
    pub(crate) fn destroy(&self, digest: &Digest) -> Result<Option<u64>> {
        let name = self.trash_name(digest);
        let Some(stat) = self.trash.stat(&name)? else { return Ok(None) };
        Ok(self.trash.unlink(&name)?.then_some(stat.st_blocks as u64 * 512))
    }

    /// When a content was last published or claimed, in place or in the trash: seconds and nanoseconds.
    pub(crate) fn used(&self, digest: &Digest) -> Result<Option<(i64, i64)>> {
        let stat = match self.dir.stat(&self.path_of(digest))? {
            None => self.trash.stat(&self.trash_name(digest))?,
            found => found,
        };
        Ok(stat.map(|stat| (stat.st_mtime, stat.st_mtime_nsec)))
    }
}
