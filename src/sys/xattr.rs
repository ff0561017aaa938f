//! Extended attributes: on an open file, and through `/proc/self/fd` on an `O_PATH` descriptor, for which the calls by
//! descriptor answer `EBADF`. `/proc` is then that of a process that sees its own descriptors: mounted, and not masked.
//!
//! By descriptor only: a path that a container can change is resolved by [`crate::path`] first. Through `O_PATH` the
//! object itself is meant, a symbolic link too.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::error::{Result, SysError, check};

/// Longest value (`XATTR_SIZE_MAX`) and longest list of names (`XATTR_LIST_MAX`), `limits.h` of the kernel.
const XATTR_MAX: usize = 1 << 16;
/// Room for nearly all of them. The rest gets the most there can be, which is a map of memory of its own each time.
const XATTR_USUAL: usize = 256;

/// What an attribute may be before it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// There or not.
    Any,
    /// `XATTR_CREATE`: `EEXIST` if it is there.
    Never,
    /// `XATTR_REPLACE`: `ENODATA` if it is not there.
    Always,
}

impl Existing {
    fn flags(self) -> libc::c_int {
        match self {
            Existing::Any => 0,
            Existing::Never => libc::XATTR_CREATE,
            Existing::Always => libc::XATTR_REPLACE,
        }
    }
}

/// How the object is named to the kernel.
enum By<'a> {
    Descriptor(BorrowedFd<'a>),
    Proc(CString),
}

impl<'a> By<'a> {
    fn new(file: BorrowedFd<'a>) -> Result<Self> {
        let flags = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL)
            .map_err(|errno| SysError::new(format!("fcntl({}, F_GETFL)", file.as_raw_fd()), errno))?;
        if flags & libc::O_PATH == 0 {
            return Ok(By::Descriptor(file));
        }
        By::proc("/proc/self", file)
    }

    fn proc(process: &str, file: BorrowedFd<'_>) -> Result<Self> {
        let path = CString::new(format!("{process}/fd/{}", file.as_raw_fd()));
        path.map(By::Proc).map_err(|_| SysError::new("name of a descriptor", Errno::EINVAL))
    }
}

/// The value of an attribute; `None` when it is absent.
pub fn get(file: impl AsFd, name: &CStr) -> Result<Option<Vec<u8>>> {
    get_by(&By::new(file.as_fd())?, file.as_fd(), name)
}

fn get_by(by: &By<'_>, file: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>> {
    with_room(|room| get_within(by, file, name, room))
}

/// Tries with room for what is usual, and for the most where that is too little.
fn with_room<T>(ask: impl Fn(usize) -> Result<T>) -> Result<T> {
    match ask(XATTR_USUAL) {
        Err(error) if error.errno() == Errno::ERANGE => ask(XATTR_MAX),
        answer => answer,
    }
}

fn get_within(by: &By<'_>, file: BorrowedFd<'_>, name: &CStr, room: usize) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; room];
    let (at, room) = (value.as_mut_ptr().cast(), value.len());
    let length = match by {
        // SAFETY: `name` is NUL-terminated, `at` points to `room` writable bytes of `value`, which outlives the call;
        // the descriptor is borrowed for it.
        By::Descriptor(file) => unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), at, room) },
        // SAFETY: as above, and `path` is NUL-terminated and lives through the call.
        By::Proc(path) => unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), at, room) },
    };
    match check(length as libc::c_long, || format!("fgetxattr({}, {name:?})", file.as_raw_fd())) {
        Ok(length) => {
            value.truncate(length as usize);
            Ok(Some(value))
        }
        Err(error) if error.errno() == Errno::ENODATA => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets an attribute.
pub fn set(file: impl AsFd, name: &CStr, value: &[u8], existing: Existing) -> Result<()> {
    set_by(By::new(file.as_fd())?, file.as_fd(), name, value, existing)
}

fn set_by(by: By<'_>, file: BorrowedFd<'_>, name: &CStr, value: &[u8], existing: Existing) -> Result<()> {
    let (at, length, flags) = (value.as_ptr().cast(), value.len(), existing.flags());
    let done = match by {
        // SAFETY: `name` is NUL-terminated, `at` points to `length` readable bytes of `value`, borrowed for the call,
        // as is the descriptor.
        By::Descriptor(file) => unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), at, length, flags) },
        // SAFETY: as above, and `path` is NUL-terminated and lives through the call.
        By::Proc(path) => unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), at, length, flags) },
    };
    let call = || format!("fsetxattr({}, {name:?}, {length} bytes, {existing:?})", file.as_raw_fd());
    check(done.into(), call).map(drop)
}

/// [`get`] on an `O_PATH` descriptor by a process whose root directory has no `/proc` that shows it: its working directory
/// is one instead.
pub fn get_from_proc(file: impl AsFd, name: &CStr) -> Result<Option<Vec<u8>>> {
    get_by(&By::proc("self", file.as_fd())?, file.as_fd(), name)
}

/// [`set`] as in [`get_from_proc`].
pub fn set_from_proc(file: impl AsFd, name: &CStr, value: &[u8], existing: Existing) -> Result<()> {
    set_by(By::proc("self", file.as_fd())?, file.as_fd(), name, value, existing)
}

/// Removes an attribute; `ENODATA` when it is absent.
pub fn remove(file: impl AsFd, name: &CStr) -> Result<()> {
    let file = file.as_fd();
    let done = match By::new(file)? {
        // SAFETY: `name` is NUL-terminated; the descriptor is borrowed for the call.
        By::Descriptor(file) => unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) },
        // SAFETY: both strings are NUL-terminated and live through the call.
        By::Proc(path) => unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) },
    };
    check(done.into(), || format!("fremovexattr({}, {name:?})", file.as_raw_fd())).map(drop)
}

/// The names of all attributes that the caller may see.
pub fn list(file: impl AsFd) -> Result<Vec<CString>> {
    let (by, file) = (By::new(file.as_fd())?, file.as_fd());
    with_room(|room| list_within(&by, file, room))
}

fn list_within(by: &By<'_>, file: BorrowedFd<'_>, room: usize) -> Result<Vec<CString>> {
    let mut names = vec![0u8; room];
    let (at, room) = (names.as_mut_ptr().cast(), names.len());
    let length = match by {
        // SAFETY: `at` points to `room` writable bytes of `names`, which outlives the call; the descriptor is borrowed.
        By::Descriptor(file) => unsafe { libc::flistxattr(file.as_raw_fd(), at, room) },
        // SAFETY: as above, and `path` is NUL-terminated and lives through the call.
        By::Proc(path) => unsafe { libc::listxattr(path.as_ptr(), at, room) },
    };
    let length = check(length as libc::c_long, || format!("flistxattr({})", file.as_raw_fd()))?;
    names.truncate(length as usize);
    let whole = names.split_inclusive(|byte| *byte == 0);
    Ok(whole.filter_map(|name| CStr::from_bytes_with_nul(name).ok()).map(CStr::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]
    use std::fs::File;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn attributes_live_by_descriptor_and_by_path_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let by_path = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        match set(&file, c"user.a", b"one", Existing::Never) {
            Err(error) if error.errno() == Errno::EOPNOTSUPP => return, // no user attributes on this file system
            result => result.unwrap(),
        }
        assert_eq!(get(&by_path, c"user.a").unwrap().unwrap(), b"one");
        set(&by_path, c"user.a", b"two", Existing::Always).unwrap();
        assert_eq!(set(&by_path, c"user.a", b"", Existing::Never).unwrap_err().errno(), Errno::EEXIST);
        assert_eq!(get(&file, c"user.a").unwrap().unwrap(), b"two");
        assert!(list(&by_path).unwrap().contains(&c"user.a".to_owned()));
        remove(&by_path, c"user.a").unwrap();
        assert_eq!(get(&file, c"user.a").unwrap(), None);
        assert_eq!(remove(&file, c"user.a").unwrap_err().errno(), Errno::ENODATA);
    }
}
