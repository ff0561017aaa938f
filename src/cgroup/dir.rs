//! One cgroup: a directory by descriptor, its control files by name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sys::error::Call;

use crate::error::CgroupError;

/// Control files are small; a larger answer is cut.
const FILE_MAX: u64 = 1 << 20;
/// How long `rmdir` is tried again: a killed process leaves its cgroup a moment after it is reaped.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);
const ENABLE_PAUSE: Duration = Duration::from_millis(10);
/// What `cgroup.procs` has for a process that has no number in the reader's pid namespace. For kill(2) it is the caller's own
/// process group.
pub const ELSEWHERE: i32 = 0;

/// An open cgroup directory; the path is for people.
#[derive(Debug)]
pub struct Dir {
    pub path: PathBuf,
    fd: OwnedFd,
}

impl Dir {
    /// Opens a cgroup by its path.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let fd = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let fd = fd.call(|| format!("open({path:?})")).map_err(|source| file_error(path, source))?;
        Ok(Dir { path: path.to_owned(), fd })
    }

    /// Opens a child, which is made when it is missing.
    pub fn make_child(&self, name: &str) -> Result<Self, CgroupError> {
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.child(name),
            Err(errno) => Err(self.error(format!("mkdirat({name:?})"), errno)),
        }
    }

    /// Opens a child.
    pub fn child(&self, name: impl AsRef<OsStr>) -> Result<Self, CgroupError> {
        let name = name.as_ref();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty())
            .map_err(|errno| self.error(format!("openat({name:?}, O_DIRECTORY)"), errno))?;
        Ok(Dir { path: self.path.join(name), fd })
    }

    /// The directory's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The directory's descriptor alone.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Opens a control file.
    pub fn file(&self, name: &str, flags: OFlag) -> Result<File, Errno> {
        openat(&self.fd, name, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty()).map(File::from)
    }

    /// What a control file says.
    pub fn read(&self, name: &str) -> Result<String, CgroupError> {
        let mut text = String::with_capacity(sys::file::SMALL);
        let read = self
            .file(name, OFlag::O_RDONLY)
            .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text).map_err(|error| errno_of(&error)));
        read.map_err(|errno| self.error(format!("read({name:?})"), errno))?;
        Ok(text)
    }

    /// Writes a control file in one call.
    pub fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        self.put(name, value).map_err(|errno| self.error(format!("write({name:?}, {value:?})"), errno))
    }

    /// As [`Dir::write`], for callers that choose by errno.
    pub fn put(&self, name: &str, value: &str) -> Result<(), Errno> {
        let mut file = self.file(name, OFlag::O_WRONLY)?;
        file.write_all(value.as_bytes()).map_err(|error| errno_of(&error))
    }

    /// Gives every controller that this cgroup has to its children. What cannot be given is missing in the child, where
    /// a limit that needs it is refused by name. `tries`: how often to come back, every ten milliseconds, to a cgroup in
    /// which a process stands.
    ///
    /// Such a cgroup gives nothing: the kernel would let it give on those controllers that count threads, but then no
    /// process could be born below it.
    pub fn enable_controllers(&self, tries: u32) -> Result<(), CgroupError> {
        let given = self.read("cgroup.subtree_control")?;
        let given: Vec<&str> = given.split_whitespace().collect();
        let had = self.read("cgroup.controllers")?;
        let missing: Vec<&str> = had.split_whitespace().filter(|name| !given.contains(name)).collect();
        if missing.is_empty() || !self.stands_empty(tries)? {
            return Ok(());
        }
        for controller in missing {
            for _ in 0..tries {
                match self.put("cgroup.subtree_control", &format!("+{controller}")) {
                    Err(Errno::EBUSY) => std::thread::sleep(ENABLE_PAUSE),
                    // It is not ours to change.
                    Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) => return Ok(()),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Whether no process stands in this cgroup itself, or none that counts, as in the root of all.
    fn stands_empty(&self, tries: u32) -> Result<bool, CgroupError> {
        if self.file("cgroup.type", OFlag::O_RDONLY).is_err_and(|errno| errno == Errno::ENOENT) {
            return Ok(true);
        }
        for _ in 1..tries {
            if self.own_processes()?.is_empty() {
                return Ok(true);
            }
            std::thread::sleep(ENABLE_PAUSE);
        }
        Ok(self.own_processes()?.is_empty())
    }

    /// The number after `key` in a file of `key number` lines; 0 when there is none.
    pub fn number(&self, name: &str, key: &str) -> Result<u64, CgroupError> {
        Ok(value_of(&self.read(name)?, key))
    }

    /// Every process below, this directory's first, each [`ELSEWHERE`] among them.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut all = Vec::new();
        self.walk(&mut |dir| {
            all.extend(dir.own_processes()?);
            Ok(())
        })?;
        Ok(all)
    }

    /// The processes of this cgroup itself, each [`ELSEWHERE`] among them.
    pub fn own_processes(&self) -> Result<Vec<i32>, CgroupError> {
        match self.read("cgroup.procs") {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            // It vanished; or it is threaded, and the processes of its threads are listed above.
            Err(CgroupError::File { source, .. }) if matches!(source.errno(), Errno::ENODEV | Errno::EOPNOTSUPP) => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the child `name` with everything below it, waiting for the last processes to be gone. A missing child is
    /// no error.
    pub fn remove_child(&self, name: &str) -> Result<(), CgroupError> {
        let until = Instant::now() + REMOVE_LIMIT;
        let mut pause = Duration::from_millis(1);
        loop {
            match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY) if Instant::now() < until => {
                    if let Ok(child) = self.child(name) {
                        for below in child.children()? {
                            // What is still busy is told by the next try of ours.
                            let _ = child.remove_empty(&below);
                        }
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(errno) => return Err(self.error(format!("unlinkat({name:?}, AT_REMOVEDIR)"), errno)),
            }
        }
    }

    /// Removes a child tree, the deepest first; the first error stops it. The container chooses how deep it is, so not more
    /// than one of its cgroups is open at a time.
    fn remove_empty(&self, name: &OsStr) -> Result<(), CgroupError> {
        let (mut at, mut way) = (self.child(name)?, vec![name.to_owned()]);
        loop {
            if let Some(below) = at.children()?.pop() {
                at = at.child(&below)?;
                way.push(below);
                continue;
            }
            let Some(name) = way.pop() else { return Ok(()) };
            at = at.parent()?;
            unlinkat(&at.fd, name.as_os_str(), UnlinkatFlags::RemoveDir)
                .map_err(|errno| at.error(format!("unlinkat({name:?}, AT_REMOVEDIR)"), errno))?;
            if way.is_empty() {
                return Ok(());
            }
        }
    }

    /// Calls `visit` for this cgroup and each below it, however deep.
    fn walk(&self, visit: &mut impl FnMut(&Dir) -> Result<(), CgroupError>) -> Result<(), CgroupError> {
        visit(self)?;
        let fd = self.fd.try_clone().map_err(|error| self.error("dup()".to_owned(), errno_of(&error)))?;
        let (mut at, mut levels) = (Dir { path: self.path.clone(), fd }, vec![self.children()?]);
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.pop() else {
                levels.pop();
                if !levels.is_empty() {
                    at = at.parent()?;
                }
                continue;
            };
            // Gone since it was listed, or since it was opened.
            let gone = |error: &CgroupError| matches!(error, CgroupError::File { source, .. } if source.errno() == Errno::ENOENT);
            let child = match at.child(&name) {
                Err(error) if gone(&error) => continue,
                child => child?,
            };
            visit(&child)?;
            levels.push(child.children()?);
            at = child;
        }
        Ok(())
    }

    /// The cgroup that this one was made in; a cgroup never moves.
    fn parent(&self) -> Result<Dir, CgroupError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, "..", flags, Mode::empty())
            .map_err(|errno| self.error("open(\"..\")".to_owned(), errno))?;
        Ok(Dir { path: self.path.parent().unwrap_or(Path::new("/")).to_owned(), fd })
    }

    /// Removes a child unless it has processes or children.
    pub fn remove_if_empty(&self, name: &str) {
        // EBUSY is the usual answer and the point of the try.
        let _ = unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir);
    }

    /// The names of the cgroups right below.
    pub fn children(&self) -> Result<Vec<OsString>, CgroupError> {
        self.names(std::fs::FileType::is_dir)
    }

    /// The names of the control files.
    pub fn files(&self) -> Result<Vec<String>, CgroupError> {
        let names = self.names(std::fs::FileType::is_file)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn names(&self, wanted: fn(&std::fs::FileType) -> bool) -> Result<Vec<OsString>, CgroupError> {
        let listing = std::fs::read_dir(format!("/proc/self/fd/{}", sys::role::number(&self.fd)));
        let listing = listing.map_err(|error| self.error("getdents()".to_owned(), errno_of(&error)))?;
        let entries = listing.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| wanted(&kind)));
        Ok(entries.map(|entry| entry.file_name()).collect())
    }

    /// The error of a call on this cgroup.
    pub fn error(&self, call: String, errno: Errno) -> CgroupError {
        file_error(&self.path, sys::SysError::new(call, errno))
    }
}

/// The number after `key` in `key number` lines.
pub fn value_of(text: &str, key: &str) -> u64 {
    let fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.filter(|(name, _)| *name == key).find_map(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

fn file_error(path: &Path, source: sys::SysError) -> CgroupError {
    CgroupError::File { path: path.display().to_string(), source }
}

/// The errno of an I/O error.
pub fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
