//! Paths that a container or an image can influence are resolved inside a root, by descriptor: `openat2(2)`, Linux 5.6.
//!
//! Where the kernel or a filter of the surrounding container refuses that call, the path is walked by components: every
//! step opens one name without following links, `..` goes back along the descriptors that led here, and a link's text
//! is put in front of what is left of the path. So nothing outside the root is ever named, whoever renames what meanwhile;
//! magic links are followed by their text too, which means nothing outside their `/proc`.

use std::collections::VecDeque;
use std::ffi::{CStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use crate::error::{Call, Result, SysError};

/// How often `openat2` is asked again when a rename elsewhere made it give up (`EAGAIN`); each try is a full walk.
const RETRIES: u32 = 128;
/// How many links a path may lead through, as in the kernel: path_resolution(7).
const LINKS_MAX: u32 = 40;

/// Opens `path` inside `root`: absolute paths and symbolic links start at `root`, `..` stops there, magic links are
/// refused. Returns a close-on-exec descriptor.
pub fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
    if crate::without("in-root") {
        let path = Path::new(".").join(path.strip_prefix("/").unwrap_or(path));
        return nix::fcntl::openat(root, &path, flags | OFlag::O_CLOEXEC, mode).call(|| format!("openat({path:?})"));
    }
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut tries = 0;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < RETRIES => tries += 1,
            Err(Errno::ENOSYS | Errno::EPERM) if openat2_is_refused() => return walk(root, path, flags, mode),
            result => return result.call(|| format!("openat2(root, {path:?}, {flags:?})")),
        }
    }
}

/// Whether no path at all is opened: filters answer `EPERM`, which a file may do too.
fn openat2_is_refused() -> bool {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
    matches!(openat2(nix::fcntl::AT_FDCWD, "/", how), Err(Errno::ENOSYS | Errno::EPERM))
}

/// [`open_in`] by components.
fn walk(root: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
    let call = |errno: Errno| SysError::new(format!("open({path:?} in root, {flags:?})"), errno);
    if path.as_os_str().is_empty() {
        return Err(call(Errno::ENOENT));
    }
    let root = root.try_clone_to_owned().call(|| "dup(root)".to_owned())?;
    let mut way = vec![root];
    let mut left: VecDeque<OsString> = names(path);
    // What stands before a slash at the end must be a directory, or a link to one.
    let end = path.as_os_str().as_bytes();
    let slash = end.ends_with(b"/") || end.ends_with(b"/.");
    let flags = if slash { (flags | OFlag::O_DIRECTORY) - OFlag::O_NOFOLLOW } else { flags };
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            way.truncate((way.len() - 1).max(1));
            continue;
        }
        let dir = way.last().ok_or_else(|| call(Errno::EBADF))?.as_fd();
        let name = Path::new(&name);
        let is_last = left.is_empty();
        let found = match open_below(dir, name, OFlag::O_PATH) {
            Err(error) if error.errno() == Errno::ENOENT && is_last && flags.contains(OFlag::O_CREAT) => {
                return nix::fcntl::openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode).map_err(call);
            }
            found => found.map_err(|error| call(error.errno()))?,
        };
        let kind = fstat(&found).call(|| format!("fstat({name:?})"))?.st_mode & SFlag::S_IFMT.bits();
        if kind == SFlag::S_IFLNK.bits() && !(is_last && flags.contains(OFlag::O_NOFOLLOW)) {
            links += 1;
            if links > LINKS_MAX {
                return Err(call(Errno::ELOOP));
            }
            let text = nix::fcntl::readlinkat(&found, "").map_err(call)?;
            let text = Path::new(&text);
            if text.is_absolute() {
                way.truncate(1);
            }
            for name in names(text).into_iter().rev() {
                left.push_front(name);
            }
            continue;
        }
        if is_last {
            // Another file may be there by now, but one of the same directory, and no link.
            let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            return nix::fcntl::openat(dir, name, flags, mode).map_err(call);
        }
        if kind != SFlag::S_IFDIR.bits() {
            return Err(call(Errno::ENOTDIR));
        }
        way.push(found);
    }
    let dir = way.last().ok_or_else(|| call(Errno::EBADF))?;
    if flags.contains(OFlag::O_CREAT) {
        return Err(call(if flags.contains(OFlag::O_EXCL) { Errno::EEXIST } else { Errno::EISDIR }));
    }
    nix::fcntl::openat(dir, ".", flags | OFlag::O_CLOEXEC, mode).map_err(call)
}

/// The names of a path, `..` among them.
fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(name).collect()
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// The walk's answer to every path is the kernel's: the same file, or the same errno.
    #[test]
    fn the_walk_ends_where_openat2_ends() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join("a/b/c")).unwrap();
        std::fs::create_dir(place.path().join("outside")).unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        let links = [
            ("up", "../../../../outside"),
            ("absolute", "/a/b"),
            ("a/relative", "b/c"),
            ("a/b/back", "../file"),
            ("loop", "loop"),
            ("far", "/absolute/back"),
            ("nowhere", "/none"),
            ("a/slash", "b/"),
            ("top", "/"),
        ];
        for (link, text) in links {
            symlink(text, root.join(link)).unwrap();
        }
        let fd = open_directory(&root);
        let paths = [
            "",
            "/",
            ".",
            "..",
            "a",
            "/a/b/c",
            "a/b/../file",
            "../../a",
            "up",
            "absolute",
            "absolute/c",
            "a/relative",
            "a/relative/..",
            "a/b/back",
            "loop",
            "loop/x",
            "far",
            "nowhere",
            "nowhere/x",
            "a/slash",
            "a/slash/c",
            "top",
            "top/a",
            "a/file",
            "a/file/",
            "a/file/x",
            "a/none",
            "a/none/x",
            "a//b/",
            "./a/./b",
            "a/file/.",
            "a/relative/",
            "a/b/c/../../../../../a/file",
        ];
        let path_only = OFlag::O_PATH;
        let kinds = [path_only, path_only | OFlag::O_DIRECTORY, path_only | OFlag::O_NOFOLLOW, OFlag::O_RDONLY];
        let show = |result: Result<OwnedFd>| {
            result.map(|fd| std::fs::File::from(fd).metadata().unwrap().ino()).map_err(|error| error.errno())
        };
        for path in paths {
            for flags in kinds {
                let (kernel, ours) = (open_in(fd.as_fd(), Path::new(path), flags, Mode::empty()), {
                    walk(fd.as_fd(), Path::new(path), flags, Mode::empty())
                });
                assert_eq!(show(ours), show(kernel), "{path:?} {flags:?}");
            }
        }
        let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
        walk(fd.as_fd(), Path::new("absolute/new"), new, Mode::S_IRUSR).unwrap();
        assert!(root.join("a/b/new").exists());
        assert_eq!(show(walk(fd.as_fd(), Path::new("absolute/new"), new, Mode::S_IRUSR)), Err(Errno::EEXIST));
    }

    fn open_directory(path: &Path) -> OwnedFd {
        nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
    }
}
