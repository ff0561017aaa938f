//! Walking a directory tree that a container wrote: by descriptor, without following links, at any depth.
//!
//! A container can nest directories deeper than a stack, a path or a table of descriptors goes. So the walk is a loop
//! with a stack of names on the heap and one open directory: down by `openat`, up by `..`, where the directory's
//! identity is checked. If somebody moves a directory meanwhile the walk ends with `EAGAIN` instead of leaving the tree;
//! it never enters another file system.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sys::SysError;
use sys::error::{Call, Result};

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

/// One entry of the tree.
pub(crate) struct At<'a> {
    /// The directory that has it.
    pub parent: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// From the root of the walk, without leading slash.
    pub path: &'a [u8],
    /// Of the entry itself, a link not followed.
    pub stat: &'a FileStat,
}

impl At<'_> {
    /// The `S_IFMT` bits.
    pub fn file_type(&self) -> u32 {
        self.stat.st_mode & nix::libc::S_IFMT
    }

    pub fn is_directory(&self) -> bool {
        self.file_type() == nix::libc::S_IFDIR
    }

    /// The entry itself as an `O_PATH` descriptor; `EAGAIN` when it is another one by now.
    pub fn open_path(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let entry = openat(self.parent, self.name, flags, Mode::empty()).call(|| self.words("open"))?;
        let stat = fstat(&entry).call(|| self.words("fstat"))?;
        if (stat.st_dev, stat.st_ino) == (self.stat.st_dev, self.stat.st_ino) { Ok(entry) } else { Err(self.moved()) }
    }

    /// A call on this entry in words.
    pub fn words(&self, call: &str) -> String {
        format!("{call}({:?})", String::from_utf8_lossy(self.path))
    }

    fn moved(&self) -> SysError {
        SysError::new(
            format!("{:?} was changed while it was walked", String::from_utf8_lossy(self.path)),
            Errno::EAGAIN,
        )
    }
}

/// What is done with each entry.
pub(crate) trait Visitor {
    /// Called for each entry but the root, a directory before what is in it; `false` keeps the walk out of a directory.
    fn enter(&mut self, at: &At<'_>) -> Result<bool>;

    /// Called for each entered directory after what is in it.
    fn leave(&mut self, at: &At<'_>) -> Result<()> {
        let _ = at;
        Ok(())
    }
}

/// A directory between the root and where the walk is.
struct Above {
    stat: FileStat,
    name: CString,
    names: Vec<CString>,
    path_length: usize,
}

/// Walks everything below `root`.
pub(crate) fn walk(root: BorrowedFd<'_>, visitor: &mut impl Visitor) -> Result<()> {
    let mut here = openat(root, c".", DIRECTORY, Mode::empty()).call(|| "open(root of a walk)".to_owned())?;
    let mut here_stat = fstat(&here).call(|| "fstat(root of a walk)".to_owned())?;
    let device = here_stat.st_dev;
    let mut path: Vec<u8> = Vec::new();
    let mut names = names_of(&mut here, &path)?;
    let mut above: Vec<Above> = Vec::new();
    loop {
        if let Some(name) = names.pop() {
            let path_length = path.len();
            push(&mut path, &name);
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            let stat = fstatat(&here, name.as_c_str(), flags).call(|| shown("fstatat", &path))?;
            let at = At { parent: here.as_fd(), name: &name, path: &path, stat: &stat };
            if !visitor.enter(&at)? || !at.is_directory() {
                path.truncate(path_length);
                continue;
            }
            if stat.st_dev != device {
                return Err(SysError::new(shown("walk into the file system mounted on", &path), Errno::EXDEV));
            }
            let mut next = openat(&here, name.as_c_str(), DIRECTORY, Mode::empty()).call(|| shown("open", &path))?;
            let opened = fstat(&next).call(|| shown("fstat", &path))?;
            if opened.st_ino != stat.st_ino || opened.st_dev != device {
                return Err(at.moved());
            }
            let below = names_of(&mut next, &path)?;
            here = next;
            above.push(Above { stat: here_stat, name, names: std::mem::replace(&mut names, below), path_length });
            here_stat = stat;
        } else {
            let Some(up) = above.pop() else { return Ok(()) };
            let parent = openat(&here, c"..", DIRECTORY, Mode::empty()).call(|| shown("open the parent of", &path))?;
            let stat = fstat(&parent).call(|| shown("fstat the parent of", &path))?;
            let at = At { parent: parent.as_fd(), name: &up.name, path: &path, stat: &here_stat };
            if (stat.st_dev, stat.st_ino) != (up.stat.st_dev, up.stat.st_ino) {
                return Err(at.moved());
            }
            visitor.leave(&at)?;
            path.truncate(up.path_length);
            names = up.names;
            here_stat = up.stat;
            here = parent;
        }
    }
}

fn push(path: &mut Vec<u8>, name: &CStr) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
}

fn shown(call: &str, path: &[u8]) -> String {
    format!("{call} {:?}", String::from_utf8_lossy(path))
}

/// All names of an open directory, whose offset is moved.
fn names_of(dir: &mut OwnedFd, path: &[u8]) -> Result<Vec<CString>> {
    let copy = dir.try_clone().call(|| "dup(directory)".to_owned())?;
    let mut listing = Dir::from_fd(copy).call(|| shown("fdopendir", path))?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.call(|| shown("getdents", path))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes everything below `root`. Directories of our own that keep us out are opened first; what belongs to others
/// ends it with `EACCES` or `EPERM`, unless we are their root.
pub fn remove_contents(root: BorrowedFd<'_>) -> Result<()> {
    struct Remover;
    impl Visitor for Remover {
        fn enter(&mut self, at: &At<'_>) -> Result<bool> {
            if !at.is_directory() {
                unlink(at, UnlinkatFlags::NoRemoveDir)?;
                return Ok(false);
            }
            match unlink(at, UnlinkatFlags::RemoveDir) {
                Ok(()) => return Ok(false),
                Err(error) if matches!(error.errno(), Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
            if at.stat.st_mode & 0o700 != 0o700 {
                let mode = Mode::from_bits_truncate((at.stat.st_mode & 0o777) | 0o700);
                fchmodat(at.parent, at.name, mode, FchmodatFlags::NoFollowSymlink).call(|| at.words("chmod u+rwx"))?;
            }
            Ok(true)
        }

        fn leave(&mut self, at: &At<'_>) -> Result<()> {
            unlink(at, UnlinkatFlags::RemoveDir)
        }
    }
    walk(root, &mut Remover)
}

/// What is gone already is fine.
fn unlink(at: &At<'_>, how: UnlinkatFlags) -> Result<()> {
    match unlinkat(at.parent, at.name, how) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).call(|| at.words("unlink")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::fcntl::open;
    use nix::sys::stat::mkdirat;

    use super::*;

    fn open_dir(path: &std::path::Path) -> OwnedFd {
        open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn removes_any_depth_and_follows_no_link() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = scratch.path().join("kept");
        let doomed = scratch.path().join("doomed");
        std::fs::create_dir_all(&doomed).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        symlink(&kept, doomed.join("link")).unwrap();
        // Deeper than a path may be long and than there are descriptors.
        let mut dir = open_dir(&doomed);
        for _ in 0..3000 {
            mkdirat(&dir, c"deep", Mode::S_IRWXU).unwrap();
            dir = openat(&dir, c"deep", DIRECTORY, Mode::empty()).unwrap();
        }
        std::fs::create_dir_all(doomed.join("closed/inside")).unwrap();
        std::fs::set_permissions(doomed.join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
        remove_contents(open_dir(&doomed).as_fd()).unwrap();
        assert_eq!(std::fs::read_dir(&doomed).unwrap().count(), 0);
        assert!(kept.join("file").exists());
    }
}
