//! A blob on its way into the store.
//!
//! `ingest/<hex>/` has `data` (the bytes so far), `state` (what they are to become) and `lock`. Whoever holds the lock
//! writes; others that want the same blob wait, look at the growing `data`, and find the blob published, or go on from
//! where a dead holder stopped. The hash of what is there is computed again on opening: a state that claims how far
//! it got could be newer than the bytes after a power loss.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use oci::{Digest, Hasher};
use serde::{Deserialize, Serialize};
use sys::{Call, lock};

use crate::dir::Dir;
use crate::error::StoreError;
use crate::new_file::Durability;
use crate::{Result, Store};

const DATA: &str = "data";
const STATE: &str = "state";
const LOCK: &str = "lock";
/// How often a waiting command looks. A blocking lock could not be cancelled and would show no progress.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a command sees that waits for a blob which another one fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The bytes the other one has.
    pub done_bytes: u64,
    /// The bytes there will be.
    pub size_bytes: u64,
}

/// A blob on its way, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// What it is to become.
    pub digest: Digest,
    /// The bytes that are there.
    pub done_bytes: u64,
    /// The bytes there will be; `None` when its maker was killed before it wrote that down.
    pub size_bytes: Option<u64>,
    /// When bytes last came, in seconds since 1970.
    pub modified_s: i64,
    /// Whether a command is at work on it; else it was interrupted, and the next pull goes on.
    pub active: bool,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct State {
    digest: Digest,
    size_bytes: u64,
}

/// A blob being written by this process alone. Dropped without [`Ingest::commit`] it stays, to be resumed.
#[derive(Debug)]
pub struct Ingest<'a> {
    store: &'a Store,
    dir: Dir,
    /// Held for its lock.
    lock: File,
    data: File,
    hasher: Hasher,
    digest: Digest,
    size_bytes: u64,
}

impl Store {
    /// Begins or resumes a blob; `None` if it is in the store, be it that another command finished it while this one
    /// waited. `waiting` is called every 50 ms of a wait and may end it ([`StoreError::Cancelled`]).
    /// The caller holds a [`Lease`](crate::Lease).
    pub fn ingest(
        &self,
        digest: &Digest,
        size_bytes: u64,
        mut waiting: impl FnMut(Waiting) -> ControlFlow<()>,
    ) -> Result<Option<Ingest<'_>>> {
        let mut waited = false;
        loop {
            if self.blobs().claim(digest, size_bytes)? {
                if waited {
                    // Over NFS it could not go while something in it was open, if only for a look.
                    self.ingest.remove_dir(&digest.hex())?;
                }
                return Ok(None);
            }
            // The last holder may have removed the directory since, or a sweep, to which one without data is old: then this
            // one is no longer the named one.
            let locked = self.ingest.subdir(&digest.hex(), true).and_then(|dir| Ok((dir.open_writable(LOCK)?, dir)));
            let (lock, dir) = match locked {
                Err(error) if error.errno() == Some(sys::Errno::ENOENT) => continue,
                other => other?,
            };
            if !lock::try_exclusive(&lock, &dir.path().join(LOCK))? {
                let done_bytes = dir.stat(DATA)?.map_or(0, |stat| stat.st_size as u64);
                if waiting(Waiting { done_bytes, size_bytes }).is_break() {
                    return Err(StoreError::Cancelled { digest: *digest });
                }
                drop((lock, dir));
                waited = true;
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            if !is_named(&lock, &dir)? || self.blobs().claim(digest, size_bytes)? {
                waited = true;
                continue;
            }
            return Ingest::resume(self, dir, lock, *digest, size_bytes).map(Some);
        }
    }
}

impl<'a> Ingest<'a> {
    fn resume(store: &'a Store, dir: Dir, lock: File, digest: Digest, size_bytes: u64) -> Result<Self> {
        let state = State { digest, size_bytes };
        let known = dir.read(STATE, 4096)?.and_then(|text| serde_json::from_slice::<State>(&text).ok());
        dir.make_writable(DATA)?;
        let mut data = dir.open_writable(DATA)?;
        if known.as_ref() != Some(&state) {
            let text = serde_json::to_vec(&state)
                .map_err(|cause| StoreError::Corrupt { path: dir.path().join(STATE), cause: cause.into() })?;
            data.set_len(0).call(|| dir.words("ftruncate", DATA))?;
            dir.replace(STATE, &text, Durability::Later)?;
        }
        let hasher = hash_prefix(&mut data, size_bytes).call(|| dir.words("read", DATA))?;
        Ok(Ingest { store, dir, lock, data, hasher, digest, size_bytes })
    }

    /// How many bytes are there: where a download goes on.
    pub fn offset(&self) -> u64 {
        self.hasher.size()
    }

    /// The size the blob will have.
    pub fn size(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes so far, from the beginning, through a descriptor with its own position.
    pub fn reader(&self) -> Result<File> {
        self.dir.open_file(DATA)?.ok_or(StoreError::Missing { digest: self.digest })
    }

    /// Takes the next bytes. More than the blob's size is an error; on a full disk all bytes are thrown away.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let found_bytes = self.hasher.size().saturating_add(bytes.len() as u64);
        if found_bytes > self.size_bytes {
            return Err(StoreError::Size { digest: self.digest, wanted_bytes: self.size_bytes, found_bytes });
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            // Not `write_all`: what was written before a failure is hashed, so that both stay in step.
            let count = match self.data.write(rest) {
                Ok(0) => Err(io::Error::from(sys::Errno::ENOSPC)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other,
            };
            let count = match count.call(|| self.dir.words("write", DATA)).map_err(StoreError::from) {
                Err(full @ StoreError::Full { .. }) => {
                    // The blob that filled the disk must not keep it full; the first failure is the one to tell.
                    let _ = self.restart();
                    return Err(full);
                }
                result => result?,
            };
            self.hasher.update(&rest[..count]);
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Throws away what is there, for a source that cannot go on in the middle or sent something wrong.
    pub fn restart(&mut self) -> Result<()> {
        self.data.set_len(0).call(|| self.dir.words("ftruncate", DATA))?;
        self.data.seek(SeekFrom::Start(0)).call(|| self.dir.words("lseek", DATA))?;
        self.hasher = Hasher::new();
        Ok(())
    }

    /// Checks size and digest and publishes the blob. Bytes that are wrong are thrown away; too few stay, to be resumed.
    pub fn commit(mut self, durability: Durability) -> Result<()> {
        let found_bytes = self.hasher.size();
        if found_bytes != self.size_bytes {
            return Err(StoreError::Size { digest: self.digest, wanted_bytes: self.size_bytes, found_bytes });
        }
        let found = self.hasher.clone().finish();
        if found != self.digest {
            self.restart()?;
            return Err(StoreError::Mismatch { wanted: self.digest, found });
        }
        durability.apply(&self.data, || self.dir.words("fdatasync", DATA))?;
        sys::step();
        nix::sys::stat::fchmod(&self.data, nix::sys::stat::Mode::from_bits_truncate(0o444))
            .call(|| self.dir.words("fchmod", DATA))?;
        // What resumed from long ago must be young for a sweep, before it is in place.
        self.data.set_modified(self.store.floor.now()).call(|| self.dir.words("futimens", DATA))?;
        self.store.blobs().adopt(&self.dir, DATA, &self.digest)?;
        remove_dir(&self.store.ingest, self.lock, self.dir, &self.digest.hex())
    }
}

impl Write for Ingest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes what is there and leaves the position at its end; more than there may be is cut to nothing.
fn hash_prefix(data: &mut File, size_bytes: u64) -> io::Result<Hasher> {
    if data.metadata()?.len() > size_bytes {
        data.set_len(0)?;
    }
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match data.read(&mut buffer)? {
            0 => return Ok(hasher),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Whether a lock is the named one still. Over NFS an open file that was removed has another name, and links as before.
fn is_named(lock: &File, dir: &Dir) -> Result<bool> {
    let held = nix::sys::stat::fstat(lock).call(|| dir.words("fstat", LOCK))?;
    Ok(dir.stat(LOCK)?.is_some_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)))
}

/// Removes an ingest directory whose lock is held, the lock last: who waits for it sees that it has no name any more.
fn remove_dir(parent: &Dir, lock: File, dir: Dir, name: &str) -> Result<()> {
    for file in dir.names()?.iter().filter(|name| *name != LOCK) {
        dir.unlink(file)?;
    }
    // What is there from here on is another one's, whose directory stays.
    dir.unlink(LOCK)?;
    // Over NFS the directory stays for as long as the lock is open.
    drop((lock, dir));
    parent.remove_dir(name)
}

impl Store {
    /// The blobs on their way, in no order.
    pub fn partials(&self) -> Result<Vec<Partial>> {
        let mut partials = Vec::new();
        for name in self.ingest.names()? {
            let Ok(digest) = Digest::from_hex(&name) else { continue };
            let dir = match self.ingest.subdir(&name, false) {
                Err(error) if error.errno() == Some(sys::Errno::ENOENT) => continue,
                other => other?,
            };
            let state = dir.read(STATE, 4096)?.and_then(|text| serde_json::from_slice::<State>(&text).ok());
            let data = dir.stat(DATA)?;
            let active = match dir.open_file(LOCK)? {
                Some(file) => !lock::is_free(&file, &dir.path().join(LOCK))?,
                None => false,
            };
            partials.push(Partial {
                digest,
                done_bytes: data.map_or(0, |stat| stat.st_size as u64),
                size_bytes: state.map(|state| state.size_bytes),
                modified_s: data.map_or(0, |stat| stat.st_mtime),
                active,
            });
        }
        Ok(partials)
    }

    /// Throws away what an interrupted download has left; the bytes it took on the disk, `None` if there is none or a
    /// command is at work on it.
    pub fn drop_partial(&self, digest: &Digest) -> Result<Option<u64>> {
        match self.open_partial(digest)? {
            Some((lock, dir)) => self.drop_opened(digest, lock, dir),
            None => Ok(None),
        }
    }

    fn open_partial(&self, digest: &Digest) -> Result<Option<(File, Dir)>> {
        let opened = self.ingest.subdir(&digest.hex(), false).and_then(|dir| Ok((dir.open_writable(LOCK)?, dir)));
        match opened {
            Err(error) if error.errno() == Some(sys::Errno::ENOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    fn drop_opened(&self, digest: &Digest, lock: File, dir: Dir) -> Result<Option<u64>> {
        // Without a name it is that of a holder that has finished the blob, or thrown it away, since it was opened.
        if !lock::try_exclusive(&lock, &dir.path().join(LOCK))? || !is_named(&lock, &dir)? {
            return Ok(None);
        }
        let freed = dir.stat(DATA)?.map_or(0, |stat| stat.st_blocks as u64 * 512);
        remove_dir(&self.ingest, lock, dir, &digest.hex())?;
        Ok(Some(freed))
    }

    /// Removes interrupted downloads that nobody has touched for this long; the bytes they took on the disk.
    pub fn drop_old_partials(&self, older_than: Duration) -> Result<u64> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let limit_s = now.saturating_sub(older_than).as_secs() as i64;
        let mut freed_bytes = 0;
        for partial in self.partials()?.into_iter().filter(|partial| partial.modified_s <= limit_s) {
            match self.drop_partial(&partial.digest) {
                // Its maker was killed before it had made the lock, and now there is no room for one.
                Err(StoreError::Full { .. }) => {}
                dropped => freed_bytes += dropped?.unwrap_or(0),
            }
        }
        Ok(freed_bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a store that fails fails the test")]
mod tests {
    use super::*;

    #[test]
    fn an_ingest_that_ends_while_it_is_opened_to_be_dropped_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), true).unwrap();
        let digest = Digest::of(b"blob");
        drop(store.ingest(&digest, 4, |_| ControlFlow::Break(())).unwrap().unwrap());
        let (lock, opened) = store.open_partial(&digest).unwrap().unwrap();
        assert!(store.drop_partial(&digest).unwrap().is_some());
        assert_eq!(store.drop_opened(&digest, lock, opened).unwrap(), None);
    }
}
