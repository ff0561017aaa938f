//! A limit of what data files may take on the disk, in bytes of blocks; files below and the log do not count.
//!
//! A change says first how much it may take, and is refused with `ENOSPC` when that is too much, as by the kernel's project
//! quotas on xfs. Afterwards what it has really taken is counted. So the data of files does not exceed the limit by much
//! more than the rounding of the file system below. It is no fence against a container that means harm: names, links and
//! attributes are not counted, and what the file system below gives or takes by itself only at the next mount.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Whence, lseek64};

use crate::attr::Result;

/// The unit of `st_blocks`, stat(2).
const BLOCK: u64 = 512;

/// The limit, and what counts towards it.
#[derive(Debug)]
pub(crate) struct Quota {
    /// `u64::MAX` is none; then nothing is counted.
    limit: u64,
    used: AtomicU64,
}

/// Room for a change that is under way.
pub(crate) struct Room<'a> {
    quota: &'a Quota,
    taken: u64,
    before: u64,
}

impl Quota {
    /// No limit.
    pub(crate) const fn none() -> Self {
        Quota { limit: u64::MAX, used: AtomicU64::new(0) }
    }

    /// A limit, of which this much is used.
    pub(crate) fn new(limit: u64, used: u64) -> Self {
        Quota { limit, used: AtomicU64::new(used) }
    }

    /// The limit and what is used, if there is a limit.
    pub(crate) fn usage(&self) -> Option<(u64, u64)> {
        (self.limit != u64::MAX).then(|| (self.limit, self.used.load(Ordering::Relaxed)))
    }

    /// Room for `most` more bytes of a file that is about to change, or `ENOSPC`.
    pub(crate) fn room(&self, file: &File, most: u64) -> Result<Option<Room<'_>>> {
        if self.limit == u64::MAX {
            return Ok(None);
        }
        let before = bytes(&fstat(file)?);
        let fits = |used: u64| used.checked_add(most).filter(|after| *after <= self.limit || most == 0);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map_err(|_| Errno::ENOSPC)?;
        Ok(Some(Room { quota: self, taken: most, before }))
    }

    /// A data file goes.
    pub(crate) fn release(&self, stat: impl FnOnce() -> Result<FileStat>) {
        if self.limit != u64::MAX
            && let Ok(stat) = stat()
        {
            self.give_back(bytes(&stat));
        }
    }

    fn give_back(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Room<'_> {
    /// Counts what the change has taken.
    pub(crate) fn settle(self, file: &File) -> Result<()> {
        let after = bytes(&fstat(file)?);
        self.quota.used.fetch_add(after.saturating_sub(self.before), Ordering::Relaxed);
        self.quota.give_back(self.before.saturating_sub(after));
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.quota.give_back(self.taken);
    }
}

/// What a file takes.
pub(crate) fn bytes(stat: &FileStat) -> u64 {
    stat.st_blocks.unsigned_abs() * BLOCK
}

/// The most that a write may take: all of it where it meets a hole, else what lies behind the end.
pub(crate) fn most_of_write(file: &File, offset: u64, length: u64) -> Result<u64> {
    let size = fstat(file)?.st_size.unsigned_abs();
    let end = offset.saturating_add(length);
    if offset >= size {
        return Ok(length);
    }
    let at = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let hole = lseek64(file, at, Whence::SeekHole).map_or(size, i64::unsigned_abs);
    Ok(if hole < end.min(size) { length } else { end.saturating_sub(size) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn room_is_refused_taken_and_given_back() {
        let file = tempfile::tempfile().unwrap();
        let quota = Quota::new(64 << 10, 0);
        let write = |offset: u64, length: usize| -> Result<()> {
            let room = quota.room(&file, most_of_write(&file, offset, length as u64)?)?;
            file.write_all_at(&vec![1; length], offset).unwrap();
            room.map_or(Ok(()), |room| room.settle(&file))
        };
        let used = || quota.usage().unwrap().1;
        write(0, 64 << 10).unwrap();
        assert_eq!(used(), bytes(&fstat(&file).unwrap()));
        assert_eq!(write(64 << 10, 1), Err(Errno::ENOSPC));
        assert_eq!(used(), 64 << 10, "what was refused takes nothing");
        write(4096, 8192).unwrap();
        let room = quota.room(&file, 0).unwrap();
        file.set_len(0).unwrap();
        room.unwrap().settle(&file).unwrap();
        assert_eq!(used(), 0);
        file.set_len(1 << 30).unwrap();
        assert_eq!(most_of_write(&file, 5000, 100).unwrap(), 100, "a hole takes what is written into it");
        drop(quota.room(&file, 64 << 10).unwrap());
        assert_eq!(used(), 0, "room that is not used is given back");
        quota.release(|| fstat(&file));
        assert!(Quota::none().room(&file, u64::MAX).unwrap().is_none());
    }
}
