//! Content under the digest it is named by: blobs, objects, indexes of layers and of chains.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::stat::{FileStat, UtimensatFlags, fstat, utimensat};
use nix::sys::time::TimeSpec;
use oci::Digest;
use sys::{Call, Errno, SysError};

use crate::Result;
use crate::additional::Below;
use crate::dir::{Dir, read_capped};
use crate::error::StoreError;
use crate::floor::Floor;
use crate::new_file::{Durability, NewFile};

/// The kinds of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Merged indexes, by chain id.
    Chains,
    /// Indexes of layers, by diff id.
    Layers,
    /// Contents of the files of layers.
    Objects,
    /// Manifests, configurations and layers as registries hand them out.
    Blobs,
}

impl Family {
    /// All of them; those that name others before what they name.
    pub const ALL: [Family; 4] = [Family::Chains, Family::Layers, Family::Objects, Family::Blobs];

    /// The name of its directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Chains => "chains",
            Family::Layers => "layers",
            Family::Objects => "objects",
            Family::Blobs => "blobs",
        }
    }

    /// Whether files are spread over 256 directories by their first byte.
    pub(crate) fn fans_out(self) -> bool {
        matches!(self, Family::Objects | Family::Blobs)
    }

    fn suffix(self) -> &'static str {
        if self.fans_out() { "" } else { ".idx" }
    }

    /// The path of a content below the directory of its kind.
    pub fn path_of(self, digest: &Digest) -> String {
        let hex = digest.hex();
        if self.fans_out() { format!("{}/{hex}", &hex[..2]) } else { hex + self.suffix() }
    }

    /// Its name in the trash.
    pub fn trash_name(self, digest: &Digest) -> String {
        format!("{}-{}", self.as_str(), digest.hex())
    }
}

/// How the list of what was read of a chain ends, which lies beside its index.
const READS: &str = ".reads";

/// The name of the list of what was read of a chain, in the directory of its index.
pub fn list_of_reads(chain: &Digest) -> String {
    chain.hex() + READS
}

/// A content as it lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The bytes it takes on the disk, with the list of reads of a chain.
    pub disk_bytes: u64,
    /// When it was last published or claimed: seconds and nanoseconds since 1970.
    pub used: (i64, i64),
}

/// One kind of content.
#[derive(Debug)]
pub struct Shelf {
    dir: Dir,
    trash: Dir,
    family: Family,
    floor: Arc<Floor>,
    /// The same of stores that are only read.
    below: Vec<Below>,
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
    pub(crate) fn new(dir: Dir, trash: Dir, family: Family, floor: Arc<Floor>) -> Self {
        Shelf { dir, trash, family, floor, below: Vec::new() }
    }

    /// Adds a directory of a store that is only read.
    pub(crate) fn put_below(&mut self, below: Below) {
        self.below.push(below);
    }

    /// The same directories of stores that are only read, in the order in which they are looked at. Refused where somebody
    /// could put something into one of them whom we do not trust.
    pub fn below(&self) -> Result<Vec<&Dir>> {
        self.below.iter().map(Below::whole).collect()
    }

    /// What lies here.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Its directory. What another crate opens through it must be content that a lease or a name keeps.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Where a sweep puts what it takes out of place, by [`Family::trash_name`], until it deletes it or brings it back. What a
    /// killed one has left there is as good as in its place, for those too who look by descriptors of their own.
    pub fn trash(&self) -> &Dir {
        &self.trash
    }

    /// The path of a content below [`Shelf::dir`].
    pub fn path_of(&self, digest: &Digest) -> String {
        self.family.path_of(digest)
    }

    /// Opens a content for reading; `None` if it is not there. What a sweep has put in the trash comes back.
    pub fn open(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.path_of(digest);
        let found = self.look_here(digest, || self.dir.open_file(&path))?;
        if found.is_some() { Ok(found) } else { self.open_below(&path) }
    }

    /// Opens a content of the stores that are only read.
    fn open_below(&self, path: &str) -> Result<Option<File>> {
        for below in &self.below {
            match below.look(path, Dir::open_file) {
                // What is closed to us, or went with its server or its disk, is as if it were not there.
                Err(error) if matches!(error.errno(), Some(Errno::EACCES | Errno::ESTALE | Errno::EIO)) => {}
                Ok(None) => {}
                found => return found,
            }
        }
        Ok(None)
    }

    /// The size of a content in the stores that are only read. It is opened: what is listed there may still be closed to us.
    fn size_below(&self, path: &str) -> Result<Option<u64>> {
        let Some(file) = self.open_below(path)? else { return Ok(None) };
        Ok(Some(file.metadata().call(|| self.dir.words("fstat", path))?.len()))
    }

    /// Looks for a content in its place; where it is not there, in the trash, and then in its place once more: between
    /// the first two looks, another may have brought it back.
    fn look_here<T>(&self, digest: &Digest, in_place: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
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
        match self.look_here(digest, || self.dir.stat(&path))? {
            Some(stat) => Ok(Some(stat.st_size as u64)),
            None => self.size_below(&path),
        }
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
        if self.touch(&path)? || (self.rescue(digest)? && self.touch(&path)?) {
            return Ok(true);
        }
        // Nobody sweeps there on our account.
        Ok(self.size_below(&path)? == Some(size_bytes))
    }

    /// Marks a file as in use now; `false` if it is not there.
    fn touch(&self, path: &str) -> Result<bool> {
        sys::step();
        if !self.set_time(path, &TimeSpec::UTIME_NOW)? {
            return Ok(false);
        }
        let floor = self.floor.seconds();
        match self.dir.stat(path)? {
            Some(stat) if stat.st_mtime < floor => self.set_time(path, &TimeSpec::new(floor, 0)),
            found => Ok(found.is_some()),
        }
    }

    fn set_time(&self, path: &str, time: &TimeSpec) -> Result<bool> {
        match utimensat(&self.dir, path, &TimeSpec::UTIME_OMIT, time, UtimensatFlags::NoFollowSymlink) {
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
        self.floor.lift(new.file(), |call| self.dir.words(call, &path))?;
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

    /// Makes sure that a content of a store that is only read is in this one too; where none of them has it, nothing is done.
    /// The bytes are taken as they are: who uses them checks them.
    pub fn bring_here(&self, digest: &Digest) -> Result<()> {
        let path = self.path_of(digest);
        if self.stored(digest)?.is_some() {
            return Ok(());
        }
        let Some(mut file) = self.open_below(&path)? else { return Ok(()) };
        let mut new = self.create()?;
        std::io::copy(&mut file, &mut new).call(|| self.dir.words("write", &path))?;
        self.publish(new, digest, Durability::Later).map(drop)
    }

    /// Publishes a file in place of whatever has this digest, for content that the caller has looked at and found damaged.
    pub fn replace(&self, new: NewFile, digest: &Digest, durability: Durability) -> Result<()> {
        let path = self.path_of(digest);
        self.floor.lift(new.file(), |call| self.dir.words(call, &path))?;
        new.publish_over(&self.dir, &path, durability)
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
            Err(error) if self.family.fans_out() && error.errno() == Some(Errno::ENOENT) => {
                self.dir.subdir(&digest.hex()[..2], true)?;
                new.link(&self.dir, path)
            }
            other => other,
        }
    }

    /// Moves a whole file from elsewhere in the store here.
    pub(crate) fn adopt(&self, from: &Dir, name: &str, digest: &Digest) -> Result<()> {
        if self.family.fans_out() {
            self.dir.subdir(&digest.hex()[..2], true)?;
        }
        from.rename(name, &self.dir, &self.path_of(digest))
    }

    /// Removes a content, and with it the list of reads of a chain; `false` if it was not there.
    pub fn remove(&self, digest: &Digest) -> Result<bool> {
        self.drop_list(digest)?;
        self.dir.unlink(&self.path_of(digest))
    }

    /// Removes a content that was found damaged; `false` if it is not there, or is whole by now.
    ///
    /// Another command may have replaced it since it was looked at, and may do so at any moment. So `is_whole` is asked about
    /// the file in its place, and what then goes through the trash is deleted only if it is that very file. A kill leaves it
    /// in the trash, and whatever lies there is found.
    pub fn remove_damaged(&self, digest: &Digest, is_whole: impl FnOnce(&File) -> bool) -> Result<bool> {
        let path = self.path_of(digest);
        // Open until the end, so that no other file can get its number.
        let Some(file) = self.dir.open_file(&path)? else { return Ok(false) };
        if is_whole(&file) {
            return Ok(false);
        }
        let judged = Some(identity(&fstat(&file).call(|| self.dir.words("fstat", &path))?));
        // A reader that misses it brings it back: then it goes once more.
        while self.dir.stat(&path)?.as_ref().map(identity) == judged {
            self.discard(digest)?;
            let moved = self.trash.stat(&self.family.trash_name(digest))?.as_ref().map(identity);
            if moved == judged && self.destroy(digest)?.is_some() {
                return Ok(true);
            }
            if moved != judged {
                self.rescue(digest)?;
            }
        }
        Ok(false)
    }

    /// The digests of all contents, in no order.
    pub fn list(&self) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        let mut take = |names: Vec<String>| found.extend(names.iter().filter_map(|name| self.digest_of(name)));
        if self.family.fans_out() {
            for part in self.dir.names()?.iter().filter(|name| name.len() == 2) {
                take(self.dir.subdir(part, false)?.names()?);
            }
        } else {
            take(self.dir.names()?);
        }
        Ok(found)
    }

    /// All contents as they lie on the disk, in no order. One that is gone since it was listed is left out.
    pub fn contents(&self) -> Result<Vec<Stored>> {
        self.list()?.into_iter().filter_map(|digest| self.stored(&digest).transpose()).collect()
    }

    /// One content as it lies on the disk; `None` if it is not there. Stores that are only read are not looked at, nor are
    /// they by the functions that list.
    pub fn stored(&self, digest: &Digest) -> Result<Option<Stored>> {
        let path = self.path_of(digest);
        let Some(stat) = self.look_here(digest, || self.dir.stat(&path))? else { return Ok(None) };
        Ok(Some(Stored {
            digest: *digest,
            size_bytes: stat.st_size as u64,
            disk_bytes: disk_bytes(&stat) + self.list_of_reads(digest)?.as_ref().map_or(0, disk_bytes),
            used: (stat.st_mtime, stat.st_mtime_nsec),
        }))
    }

    /// The list of what was read of a chain; `None` where there is none, and for other content.
    fn list_of_reads(&self, digest: &Digest) -> Result<Option<FileStat>> {
        if self.family == Family::Chains { self.dir.stat(&list_of_reads(digest)) } else { Ok(None) }
    }

    /// Removes the list of reads of a chain, before its index goes: who is killed in between leaves no list alone. The bytes that
    /// it took on the disk.
    fn drop_list(&self, digest: &Digest) -> Result<u64> {
        let Some(stat) = self.list_of_reads(digest)? else { return Ok(0) };
        Ok(if self.dir.unlink(&list_of_reads(digest))? { disk_bytes(&stat) } else { 0 })
    }

    /// Removes the lists of chains whose index is neither in its place nor in the trash: a server that ended after its image was
    /// removed may have written one. The bytes that they took on the disk.
    pub(crate) fn drop_lists_alone(&self) -> Result<u64> {
        let mut freed_bytes = 0;
        for name in self.dir.names()? {
            let Some(digest) = name.strip_suffix(READS).and_then(|hex| Digest::from_hex(hex).ok()) else { continue };
            if self.used(&digest)?.is_none() {
                freed_bytes += self.drop_list(&digest)?;
            }
        }
        Ok(freed_bytes)
    }

    fn digest_of(&self, name: &str) -> Option<Digest> {
        Digest::from_hex(name.strip_suffix(self.family.suffix())?).ok()
    }

    /// Takes a content out of place; a reader that misses it brings it back.
    pub(crate) fn discard(&self, digest: &Digest) -> Result<()> {
        match self.dir.rename(&self.path_of(digest), &self.trash, &self.family.trash_name(digest)) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Brings a content back from the trash; `false` if it is not there.
    pub(crate) fn rescue(&self, digest: &Digest) -> Result<bool> {
        match self.trash.rename(&self.family.trash_name(digest), &self.dir, &self.path_of(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The contents of this kind in the trash.
    pub(crate) fn discarded(&self) -> Result<Vec<Digest>> {
        let names = self.trash.names()?;
        let hex = |name: &String| Digest::from_hex(name.strip_prefix(self.family.as_str())?.strip_prefix('-')?).ok();
        Ok(names.iter().filter_map(hex).collect())
    }

    /// Deletes a content from the trash for good, and with it the list of reads of a chain; the bytes it took on the disk, `None`
    /// if it had been brought back.
    pub(crate) fn destroy(&self, digest: &Digest) -> Result<Option<u64>> {
        let name = self.family.trash_name(digest);
        let Some(stat) = self.trash.stat(&name)? else { return Ok(None) };
        let list_bytes = self.drop_list(digest)?;
        Ok(self.trash.unlink(&name)?.then_some(disk_bytes(&stat) + list_bytes))
    }

    /// When a content was last published or claimed, in place or in the trash: seconds and nanoseconds.
    pub(crate) fn used(&self, digest: &Digest) -> Result<Option<(i64, i64)>> {
        let stat = match self.dir.stat(&self.path_of(digest))? {
            None => self.trash.stat(&self.family.trash_name(digest))?,
            found => found,
        };
        Ok(stat.map(|stat| (stat.st_mtime, stat.st_mtime_nsec)))
    }
}

/// The bytes that a file takes on the disk.
fn disk_bytes(stat: &FileStat) -> u64 {
    stat.st_blocks as u64 * 512
}

/// What tells a file from all others for as long as it is open.
fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
