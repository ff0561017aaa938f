//! Paths that a container or an image can influence are resolved inside a root, by descriptor: `openat2(2)`.
//!
//! Before Linux 5.6 there is no `openat2`; those kernels are refused with the errno (`ENOSYS`) until the walk by
//! components exists.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::error::{Call, Result};

/// How often `openat2` is asked again when a rename elsewhere made it give up (`EAGAIN`); each try is a full walk.
const RETRIES: u32 = 128;

/// Opens `path` inside `root`: absolute paths and symbolic links start at `root`, `..` stops there, magic links are
/// refused. Returns a close-on-exec descriptor.
pub fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut tries = 0;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < RETRIES => tries += 1,
            result => return result.call(|| format!("openat2(root, {path:?}, {flags:?})")),
        }
    }
}

/// Opens the directory `path` inside `root`, making what is missing with mode 0755, and returns it as `O_PATH`.
///
/// Existing components are resolved as [`open_in`] does, so a link inside the root is followed inside the root; a
/// missing component is made and opened without following links.
pub fn make_dirs_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    match open_in(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()) {
        Err(error) if error.errno() == Errno::ENOENT => {}
        found => return found,
    }
    let (parent, name) = split(path);
    let parent = make_dirs_in(root, parent)?;
    match mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).call(|| format!("mkdirat({path:?} in root)")),
    }
    open_below(parent.as_fd(), name, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// Opens the file `path` inside `root` as `O_PATH`, making an empty one (mode 0644) and its parents when missing.
pub fn make_file_in(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    match open_in(root, path, OFlag::O_PATH, Mode::empty()) {
        Err(error) if error.errno() == Errno::ENOENT => {}
        found => return found,
    }
    let (parent, name) = split(path);
    let parent = make_dirs_in(root, parent)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    match nix::fcntl::openat(parent.as_fd(), name, flags, Mode::from_bits_truncate(0o644)) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).call(|| format!("openat({path:?} in root, O_CREAT|O_EXCL)")),
    }
    open_below(parent.as_fd(), name, OFlag::O_PATH)
}

/// Opens one name in a directory without following a link.
fn open_below(dir: BorrowedFd<'_>, name: &Path, flags: OFlag) -> Result<OwnedFd> {
    nix::fcntl::openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("openat({name:?}, {flags:?})"))
}

/// The parent of a path inside a root (`/` at the top) and its last name.
fn split(path: &Path) -> (&Path, &Path) {
    let name = match path.components().next_back() {
        Some(Component::Normal(name)) => Path::new(name),
        // `..` and `/` always exist inside a root, so a missing path never ends with one of them.
        _ => Path::new("."),
    };
    (path.parent().unwrap_or(Path::new("/")), name)
}

/// The magic link of a descriptor, for calls that only take a path; needs the host's or the container's own `/proc`.
pub fn proc_fd(fd: BorrowedFd<'_>) -> std::ffi::CString {
    use std::os::fd::AsRawFd;
    std::ffi::CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// The bytes of a path as a C string; `EINVAL` when it contains a NUL.
pub fn c_path(path: &Path) -> Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Errno::EINVAL)
        .call(|| format!("path {path:?} contains a NUL byte"))
}

/// An empty path: the descriptor itself, where `AT_EMPTY_PATH` is implied.
pub const SELF: &CStr = c"";
