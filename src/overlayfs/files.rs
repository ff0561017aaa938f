//! The data files of an upper: their paths and a bounded set of open descriptors.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::attr::Result;
use crate::quota::Quota;

/// How many data files stay open; a quarter of them is closed when it is reached.
const OPEN_MAX: usize = 512;

/// The directory of an upper and its open data files.
pub(crate) struct Files {
    dir: OwnedFd,
    pub(crate) quota: Quota,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    files: HashMap<u64, (Arc<File>, u64)>,
    clock: u64,
}

fn path(ino: u64) -> String {
    format!("up/{:02x}/{ino:x}", ino & 0xff)
}

/// Where a copy-up grows before it gets its path.
fn growing(ino: u64) -> String {
    format!("tmp/{ino:x}")
}

impl Files {
    pub(crate) fn new(dir: OwnedFd) -> Self {
        Files { dir, quota: Quota::none(), open: Mutex::default() }
    }

    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    fn remember(&self, ino: u64, file: &Arc<File>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.files.len() >= OPEN_MAX {
            let mut ages: Vec<u64> = open.files.values().map(|(_, age)| *age).collect();
            let (_, median, _) = ages.select_nth_unstable(OPEN_MAX / 4);
            let oldest = *median;
            open.files.retain(|_, (_, age)| *age > oldest);
        }
        open.clock += 1;
        let age = open.clock;
        open.files.insert(ino, (Arc::clone(file), age));
    }

    /// The data file of an inode that has one.
    pub(crate) fn get(&self, ino: u64) -> Result<Arc<File>> {
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.clock += 1;
            let now = open.clock;
            if let Some((file, age)) = open.files.get_mut(&ino) {
                *age = now;
                return Ok(Arc::clone(file));
            }
        }
        let file = openat(&self.dir, path(ino).as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        let file = Arc::new(File::from(file));
        self.remember(ino, &file);
        Ok(file)
    }

    fn create_at(&self, path: &str) -> Result<Arc<File>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        Ok(Arc::new(openat(&self.dir, path, flags, Mode::from_bits_truncate(0o600))?.into()))
    }

    fn with_parent<T>(&self, ino: u64, make: impl Fn() -> Result<T>) -> Result<T> {
        match make() {
            Err(Errno::ENOENT) => {
                match mkdirat(&self.dir, format!("up/{:02x}", ino & 0xff).as_str(), Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(Errno::EEXIST) => make(),
                    Err(errno) => Err(errno),
                }
            }
            made => made,
        }
    }

    /// Makes an empty data file.
    pub(crate) fn create(&self, ino: u64) -> Result<Arc<File>> {
        let path = path(ino);
        let file = self.with_parent(ino, || self.create_at(&path))?;
        self.remember(ino, &file);
        Ok(file)
    }

    /// Makes a file in which a copy grows. The caller is the only writer of the inode.
    pub(crate) fn grow(&self, ino: u64) -> Result<Arc<File>> {
        self.create_at(&growing(ino))
    }

    /// A grown copy becomes the data file.
    pub(crate) fn grown(&self, ino: u64, file: &Arc<File>) -> Result<()> {
        let (from, to) = (growing(ino), path(ino));
        self.with_parent(ino, || renameat(&self.dir, from.as_str(), &self.dir, to.as_str()))?;
        self.remember(ino, file);
        Ok(())
    }

    /// A copy failed. What cannot be removed now is removed at the next open.
    pub(crate) fn abandon(&self, ino: u64) {
        let _gone_or_swept_later = unlinkat(&self.dir, growing(ino).as_str(), UnlinkatFlags::NoRemoveDir);
    }

    /// Removes the data file of an inode that is gone. A file that stays behind wastes room and is never read, since
    /// numbers are not reused.
    pub(crate) fn remove(&self, ino: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).files.remove(&ino);
        self.quota.release(|| self.stat(ino));
        let _gone_or_wasted = unlinkat(&self.dir, path(ino).as_str(), UnlinkatFlags::NoRemoveDir);
    }

    /// What the file system below says about a data file.
    pub(crate) fn stat(&self, ino: u64) -> Result<FileStat> {
        fstatat(self.dir.as_fd(), path(ino).as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}
