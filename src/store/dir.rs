//! A directory of the store: its descriptor, and its path for messages only.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::dir::Dir as Stream;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sys::{Call, Errno, lock};

use crate::Result;
use crate::error::StoreError;
use crate::new_file::Durability;

/// How the names begin that an NFS client gives to open files in place of removing them (`fs/nfs/unlink.c` of Linux).
const REMOVED_OVER_NFS: &str = ".nfs";
/// The smallest page that any of our kernels has.
const PAGE_BYTES: usize = 4096;
/// How names of files begin that are not published yet.
const TEMPORARY: &str = ".new-";

/// Whether this is the name of a file that is being written, or was when its process died.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

/// A name that no one else has: no two calls of one process give the same, and creation is exclusive.
pub(crate) fn temporary_name() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    format!("{TEMPORARY}{}-{nanos:x}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// An open directory. All names given to it are single components chosen by this crate, never by an image.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

    /// Opens a directory by its path.
    pub fn open(path: &Path) -> Result<Self> {
        match open(path, Self::FLAGS, Mode::empty()) {
            Ok(fd) => Ok(Dir { fd, path: path.to_owned() }),
            Err(Errno::ENOENT) => Err(StoreError::Absent { path: path.to_owned() }),
            Err(errno) => Err(sys::SysError::new(format!("open({}, O_DIRECTORY)", path.display()), errno).into()),
        }
    }

    /// A directory that another process has opened.
    pub fn of(fd: OwnedFd, path: PathBuf) -> Self {
        Dir { fd, path }
    }

    /// Where it was when it was opened: for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory in it, made first if wanted.
    pub fn subdir(&self, name: &str, create: bool) -> Result<Dir> {
        if create {
            match mkdirat(self, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                other => other.call(|| self.words("mkdirat", name))?,
            }
        }
        let flags = Self::FLAGS | OFlag::O_NOFOLLOW;
        let fd = openat(self, name, flags, Mode::empty()).call(|| self.words("openat", name))?;
        Ok(Dir { fd, path: self.path.join(name) })
    }

    pub(crate) fn try_clone(&self) -> Result<Dir> {
        let fd = self.fd.try_clone().call(|| format!("dup({})", self.path.display()))?;
        Ok(Dir { fd, path: self.path.clone() })
    }

    /// Opens a file in it for reading; `None` if there is none.
    pub fn open_file(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat(self, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(sys::SysError::new(self.words("openat", name), errno).into()),
        }
    }

    /// Opens a file for reading and writing, made if it is not there.
    pub(crate) fn open_writable(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        Ok(File::from(openat(self, name, flags, mode).call(|| self.words("openat", name))?))
    }

    /// Lets the owner write a file again that was about to be published; nothing if it is not there.
    pub(crate) fn make_writable(&self, name: &str) -> Result<()> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match fchmodat(self, name, mode, FchmodatFlags::FollowSymlink) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(sys::SysError::new(self.words("fchmodat", name), errno).into()),
        }
    }

    /// The whole content of a small file; `None` if there is none.
    pub fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(name)? else { return Ok(None) };
        read_capped(file, max_bytes, &self.path.join(name)).map(Some)
    }

    /// Puts a small file in place at once: a reader sees the old content or the new one.
    pub fn replace(&self, name: &str, content: &[u8], durability: Durability) -> Result<()> {
        let temporary = temporary_name();
        let written = self.write_new(&temporary, content, durability).and_then(|file| {
            self.rename(&temporary, self, name)?;
            Ok(file)
        });
        match written {
            Ok(_lock_until_renamed) if durability == Durability::Now => {
                sys::step();
                Ok(nix::unistd::fsync(self).call(|| format!("fsync({})", self.path.display()))?)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                // The first error is the one to tell; a leftover goes with the next sweep.
                let _ = self.unlink(&temporary);
                Err(error)
            }
        }
    }

    fn write_new(&self, name: &str, content: &[u8], durability: Durability) -> Result<File> {
        let mut file = self.create(name, Mode::S_IRUSR | Mode::S_IWUSR)?;
        file.write_all(content).call(|| self.words("write", name))?;
        durability.apply(&file, || self.words("fdatasync", name))?;
        Ok(file)
    }

    /// Makes a file that was not there, locked so that a sweep can tell it from a dead process's.
    pub(crate) fn create(&self, name: &str, mode: Mode) -> Result<File> {
        sys::step();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = File::from(openat(self, name, flags, mode).call(|| self.words("openat", name))?);
        // Who looks whether it is locked has the lock for a moment.
        lock::exclusive(&file, &self.path.join(name))?;
        Ok(file)
    }

    pub(crate) fn rename(&self, from: &str, to_dir: &Dir, to: &str) -> Result<()> {
        sys::step();
        let words = || format!("renameat({}/{from}, {}/{to})", self.path.display(), to_dir.path.display());
        Ok(renameat(self, from, to_dir, to).call(words)?)
    }

    /// Removes a file; `false` if there was none.
    pub fn unlink(&self, name: &str) -> Result<bool> {
        sys::step();
        match unlinkat(self, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(sys::SysError::new(self.words("unlinkat", name), errno).into()),
        }
    }

    /// Removes an empty directory; no error if it is gone or has been filled again.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<()> {
        sys::step();
        match unlinkat(self, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
            Err(errno) => Err(sys::SysError::new(self.words("rmdir", name), errno).into()),
        }
    }

    /// What a name is; `None` if there is none.
    pub fn stat(&self, name: &str) -> Result<Option<FileStat>> {
        match fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(sys::SysError::new(self.words("fstatat", name), errno).into()),
        }
    }

    /// The names in it. Those that are not UTF-8 are not ours and are left out, as are those under which an NFS client keeps
    /// what was removed while it was open.
    pub fn names(&self) -> Result<Vec<String>> {
        let words = || format!("getdents({})", self.path.display());
        let mut stream = Stream::openat(self, ".", Self::FLAGS, Mode::empty()).call(words)?;
        let mut names = Vec::new();
        for entry in stream.iter() {
            match entry.call(words)?.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) if name.starts_with(REMOVED_OVER_NFS) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    pub(crate) fn words(&self, call: &str, name: &str) -> String {
        format!("{call}({}/{name})", self.path.display())
    }
}

/// Reads a file that must not be longer than this.
pub(crate) fn read_capped(mut file: File, max_bytes: u64, path: &Path) -> Result<Vec<u8>> {
    let read = || format!("read({})", path.display());
    let mut page = [0; PAGE_BYTES];
    let count = loop {
        match file.read(&mut page) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            count => break count.call(read)?,
        }
    };
    // Less than a page is all: a page comes whole or is an error. Most are so small, and a long list reads thousands.
    let size_bytes = match count {
        PAGE_BYTES => file.metadata().call(|| format!("fstat({})", path.display()))?.len(),
        count => count as u64,
    };
    if size_bytes > max_bytes {
        return Err(StoreError::TooLarge { path: path.to_owned(), size_bytes, max_bytes });
    }
    let mut content = Vec::with_capacity(size_bytes as usize);
    content.extend(&page[..count]);
    file.take(size_bytes.saturating_sub(count as u64)).read_to_end(&mut content).call(read)?;
    Ok(content)
}
