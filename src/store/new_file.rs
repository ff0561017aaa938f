//! A file that is written whole before it has a name.
//!
//! Where the file system can, it is made without a name (`O_TMPFILE`) and linked when it is done, so that a kill leaves
//! nothing. Where it cannot (NFS), it has a temporary name and a lock, by which a sweep tells it from a dead one. Where there
//! are no hard links either (many file systems of programs), that name becomes the final one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use sys::{Call, Errno, SysError, lock};

use crate::Result;
use crate::dir::{Dir, temporary_name};

/// A word of `SUBLET_WITHOUT`: store and names are as on a file system without hard links and files without a name.
pub const HARD_LINKS: &str = "hard-links";

/// When written content must be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// With the next [`Store::sync`](crate::Store::sync), which must come before the name that makes it reachable.
    Later,
    /// Before it gets its name.
    Now,
}

impl Durability {
    pub(crate) fn apply(self, file: &File, words: impl FnOnce() -> String) -> Result<()> {
        match self {
            Durability::Later => Ok(()),
            Durability::Now => {
                sys::step();
                Ok(nix::unistd::fdatasync(file).call(words)?)
            }
        }
    }
}

/// A file without a final name; gone when dropped.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    dir: Dir,
    temporary: Option<String>,
}

impl NewFile {
    /// A new empty file on the file system of this directory. When it is published it is read-only for everybody.
    pub fn create(dir: &Dir) -> Result<Self> {
        let dir = dir.try_clone()?;
        if can_link_unnamed() {
            let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
            match openat(&dir, ".", flags, READ_ONLY) {
                Ok(fd) => return Ok(NewFile { file: File::from(fd), dir, temporary: None }),
                // What file systems without it say; EISDIR comes from kernels that do not know the flag.
                Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => {}
                Err(errno) => return Err(SysError::new(dir.words("openat", ". (O_TMPFILE)"), errno).into()),
            }
        }
        NewFile::create_named(dir)
    }

    pub(crate) fn create_named(dir: Dir) -> Result<Self> {
        let temporary = temporary_name();
        let file = dir.create(&temporary, READ_ONLY)?;
        Ok(NewFile { file, dir, temporary: Some(temporary) })
    }

    /// The open file, to write and read.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name in `to`, if nothing has it yet. `false`: something has, and it was left as it is.
    pub(crate) fn link(&self, to: &Dir, name: &str) -> Result<bool> {
        sys::step();
        let result = if let Some(temporary) = &self.temporary {
            match link_named(&self.dir, temporary, to, name) {
                // What file systems without hard links say (link(2)).
                Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => return self.move_to(temporary, to, name),
                linked => linked,
            }
        } else {
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, path.as_str(), to, name, AtFlags::AT_SYMLINK_FOLLOW)
        };
        match result {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(SysError::new(to.words("linkat", name), errno).into()),
        }
    }

    /// The same by a rename. Whoever gives the name to another file between the look and the rename loses it to ours, which is
    /// as good: a final name is that of the content.
    fn move_to(&self, temporary: &str, to: &Dir, name: &str) -> Result<bool> {
        if to.stat(name)?.is_some() {
            return Ok(false);
        }
        self.dir.rename(temporary, to, name)?;
        Ok(true)
    }

    /// Gives the file its name in `to`, in place of whatever had it.
    pub fn publish_over(self, to: &Dir, name: &str, durability: Durability) -> Result<()> {
        durability.apply(&self.file, || to.words("fdatasync", name))?;
        let temporary = temporary_name();
        // Under a temporary name it is a dead process's unless it is locked. Who looks whether it is has the lock for a moment.
        lock::exclusive(&self.file, to.path())?;
        self.link(to, &temporary)?;
        to.rename(&temporary, to, name)
    }

    /// Takes the temporary name away, after the file got another.
    pub(crate) fn forget_name(&mut self) {
        if let Some(name) = self.temporary.take() {
            // A leftover goes with the next sweep.
            let _ = self.dir.unlink(&name);
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        self.forget_name();
    }
}

const READ_ONLY: Mode = Mode::S_IRUSR.union(Mode::S_IRGRP).union(Mode::S_IROTH);

fn link_named(dir: &Dir, temporary: &str, to: &Dir, name: &str) -> nix::Result<()> {
    if sys::without(HARD_LINKS) {
        return Err(Errno::EPERM);
    }
    linkat(dir, temporary, to, name, AtFlags::empty())
}

/// Linking a file without a name goes through /proc (linkat(2)); `AT_EMPTY_PATH` wants a capability before Linux 6.10.
fn can_link_unnamed() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| !sys::without(HARD_LINKS) && std::fs::metadata("/proc/self/fd").is_ok())
}
