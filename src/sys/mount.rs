//! The mount API of Linux 5.2 and later: file system contexts, detached mounts, attributes, moving and pivoting.
//!
//! A *detached mount* is a mount held only by a descriptor; it is built and given its attributes before anybody can
//! reach it by a path, and then attached with one [`attach`]. Sources: fsopen(2), fsconfig(2), fsmount(2),
//! open_tree(2), move_mount(2), mount_setattr(2), pivot_root(2).
//!
//! Where one of them is refused, [`crate::staging`] does the same by mount(2), once its `begin` was called.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bitflags::bitflags;

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::error::{Call, Result, check};
use crate::staging;

// Numbers of the unified table: the same on every architecture since Linux 5.1 (asm-generic/unistd.h).
const SYS_OPEN_TREE: libc::c_long = 428;
const SYS_MOVE_MOUNT: libc::c_long = 429;
const SYS_FSOPEN: libc::c_long = 430;
const SYS_FSCONFIG: libc::c_long = 431;
const SYS_FSMOUNT: libc::c_long = 432;
const SYS_MOUNT_SETATTR: libc::c_long = 442;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const AT_EMPTY_PATH: libc::c_uint = 0x1000;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

bitflags! {
    /// Per-mount attributes, `MOUNT_ATTR_*` of mount_setattr(2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Attr: u64 {
        /// Read-only.
        const RDONLY = 0x1;
        /// Set-user-id bits and file capabilities are ignored.
        const NOSUID = 0x2;
        /// Device nodes cannot be opened.
        const NODEV = 0x4;
        /// Nothing can be executed.
        const NOEXEC = 0x8;
        /// Access times are not updated (value of the atime field, not a bit of its own).
        const NOATIME = 0x10;
        /// Access times are always updated.
        const STRICTATIME = 0x20;
        /// Access times of directories are not updated.
        const NODIRATIME = 0x80;
        /// Owners are shifted by a user namespace's map.
        const IDMAP = 0x10_0000;
        /// Symbolic links are not followed.
        const NOSYMFOLLOW = 0x20_0000;
    }
}

/// The bits of the atime field, which must be cleared together before another value is set.
pub const ATTR_ATIME_FIELD: u64 = 0x70;

/// How mount and unmount events travel, mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Neither receives nor sends.
    Private,
    /// Receives from the mount it was copied from.
    Slave,
    /// Receives and sends.
    Shared,
    /// As private, and cannot be bound elsewhere.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// Whether the kernel, or a filter, refuses one of the calls of this module as a whole. The caller must have
/// `CAP_SYS_ADMIN` over its mount namespace, without which they refuse everything too.
pub fn is_refused() -> bool {
    let calls = [SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT, SYS_MOUNT_SETATTR];
    calls.into_iter().any(|number| {
        // SAFETY: no descriptor has the number -1, and no path is at a null pointer: every one of the calls fails before
        // it does anything (`EBADF`, `EFAULT`, `EINVAL`).
        let result = unsafe { libc::syscall(number, -1, std::ptr::null::<libc::c_char>(), -1, 0, 0) };
        matches!(check(result, String::new), Err(error) if matches!(error.errno(), Errno::ENOSYS | Errno::EPERM))
    })
}

/// A file system being configured: `fsopen(2)`. Needs Linux 5.2 and `CAP_SYS_ADMIN` over the mount namespace.
#[derive(Debug)]
pub struct FsContext {
    kind: Kind,
    name: String,
}

#[derive(Debug)]
enum Kind {
    /// A context of the kernel's.
    Context(OwnedFd),
    /// What is to be said to mount(2) in the end.
    Words(std::cell::RefCell<(String, Vec<String>)>),
}

impl FsContext {
    /// Opens a context for the file system type, such as `c"tmpfs"`.
    pub fn open(fs_type: &CStr) -> Result<Self> {
        let name = fs_type.to_string_lossy().into_owned();
        if staging::is_used() {
            return Ok(FsContext { kind: Kind::Words(std::cell::RefCell::default()), name });
        }
        // SAFETY: `fs_type` is NUL-terminated and outlives the call; the kernel copies it.
        let fd = unsafe { libc::syscall(SYS_FSOPEN, fs_type.as_ptr(), FSOPEN_CLOEXEC) };
        let fd = check(fd, || format!("fsopen({name:?})"))?;
        Ok(FsContext { kind: Kind::Context(owned(fd)), name })
    }

    /// Sets `key=value`. `EINVAL` when the file system does not know the key or refuses the value.
    pub fn set(&self, key: &CStr, value: &CStr) -> Result<()> {
        let fd = match &self.kind {
            Kind::Context(fd) => fd,
            Kind::Words(words) => {
                let (mut words, value) = (words.borrow_mut(), value.to_string_lossy());
                if key == c"source" {
                    words.0 = value.into_owned();
                } else {
                    // A comma ends an option there; only the label of a security module has one, and may be quoted.
                    let quote = if key == c"context" { "\"" } else { "" };
                    words.1.push(format!("{}={quote}{value}{quote}", key.to_string_lossy()));
                }
                return Ok(());
            }
        };
        // SAFETY: both strings are NUL-terminated and outlive the call; the kernel copies them.
        let result = unsafe {
            libc::syscall(SYS_FSCONFIG, fd.as_raw_fd(), FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0)
        };
        check(result, || format!("fsconfig({}, {}={})", self.name, key.to_string_lossy(), value.to_string_lossy()))?;
        Ok(())
    }

    /// Sets a key that has no value.
    pub fn set_flag(&self, key: &CStr) -> Result<()> {
        let fd = match &self.kind {
            Kind::Context(fd) => fd,
            Kind::Words(words) => {
                words.borrow_mut().1.push(key.to_string_lossy().into_owned());
                return Ok(());
            }
        };
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: `key` is NUL-terminated and outlives the call; a flag takes no value, so the pointer must be null.
        let result = unsafe { libc::syscall(SYS_FSCONFIG, fd.as_raw_fd(), FSCONFIG_SET_FLAG, key.as_ptr(), none, 0) };
        check(result, || format!("fsconfig({}, {})", self.name, key.to_string_lossy()))?;
        Ok(())
    }

    /// Makes the superblock and returns it as a detached mount with these attributes.
    pub fn mount(self, attr: Attr) -> Result<OwnedFd> {
        let fd = match &self.kind {
            Kind::Context(fd) => fd,
            Kind::Words(words) => {
                let (source, options) = &*words.borrow();
                return staging::file_system(&self.name, source, &options.join(","), attr);
            }
        };
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: the create command takes neither key nor value: both pointers must be null.
        let result = unsafe { libc::syscall(SYS_FSCONFIG, fd.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) };
        check(result, || format!("fsconfig({}, CMD_CREATE)", self.name))?;
        // SAFETY: no pointers; the descriptor is a live file system context.
        let fd = unsafe { libc::syscall(SYS_FSMOUNT, fd.as_raw_fd(), FSMOUNT_CLOEXEC, attr.bits()) };
        let fd = check(fd, || format!("fsmount({}, {attr:?})", self.name))?;
        Ok(owned(fd))
    }
}

/// Clones the mount at `path` below `dir` (the whole subtree with `recursive`) as a detached mount: `open_tree(2)` with
/// `OPEN_TREE_CLONE`. An empty path means `dir` itself. The mount must belong to the caller's mount namespace.
pub fn clone_mount(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd> {
    if staging::is_used() {
        return staging::clone(dir, path, recursive);
    }
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | AT_EMPTY_PATH
        | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint
        | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and outlives the call; `dir` stays open because it is borrowed.
    let fd = unsafe { libc::syscall(SYS_OPEN_TREE, dir.as_raw_fd(), path.as_ptr(), flags) };
    let fd = check(fd, || format!("open_tree(fd {}, {path:?}, CLONE, recursive {recursive})", dir.as_raw_fd()))?;
    Ok(owned(fd))
}

/// Attaches the detached mount `mount` on the directory or file that `target` refers to: `move_mount(2)`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    if staging::is_used() {
        return staging::attach(mount, target);
    }
    // SAFETY: the paths are empty static strings, allowed by the two EMPTY_PATH flags; both descriptors are borrowed.
    let result = unsafe {
        libc::syscall(
            SYS_MOVE_MOUNT,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    check(result, || format!("move_mount(fd {}, fd {})", mount.as_raw_fd(), target.as_raw_fd()))?;
    Ok(())
}

/// `struct mount_attr` of linux/mount.h, version 0 (32 bytes).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);

/// A change of a mount's attributes, applied by [`Change::apply`].
#[derive(Debug)]
pub struct Change<'a> {
    set: Attr,
    clear: u64,
    propagation: Option<Propagation>,
    idmap: Option<BorrowedFd<'a>>,
}

impl<'a> Change<'a> {
    /// Sets these attributes; an atime value replaces the one in force.
    pub fn set(set: Attr) -> Self {
        let clear = if set.intersects(Attr::NOATIME | Attr::STRICTATIME) { ATTR_ATIME_FIELD } else { 0 };
        Change { set, clear, propagation: None, idmap: None }
    }

    /// Clears these attributes in the same step. A value of the atime field gives way to the kernel's default, relatime.
    #[must_use]
    pub fn clear(mut self, attr: Attr) -> Self {
        let atime = if attr.intersects(Attr::NOATIME | Attr::STRICTATIME) { ATTR_ATIME_FIELD } else { 0 };
        self.clear |= attr.bits() | atime;
        self
    }

    /// Changes the propagation in the same step.
    #[must_use]
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    /// Shifts owners by the map of this user namespace. Only for a detached mount; FUSE needs Linux 6.12.
    #[must_use]
    pub fn idmap(mut self, user_namespace: BorrowedFd<'a>) -> Self {
        self.set |= Attr::IDMAP;
        self.idmap = Some(user_namespace);
        self
    }

    /// `mount_setattr(2)` on the mount of this descriptor (and all below it). Needs Linux 5.12.
    pub fn apply(&self, mount: BorrowedFd<'_>, recursive: bool) -> Result<()> {
        if staging::is_used() {
            if self.idmap.is_some() {
                return Err(crate::SysError::new("mount_setattr(MOUNT_ATTR_IDMAP)", Errno::ENOSYS));
            }
            staging::change(mount, self.set, self.clear, recursive)?;
            return self.propagation.map_or(Ok(()), |new| staging::propagate(mount, new, recursive));
        }
        let attr = MountAttr {
            attr_set: self.set.bits(),
            attr_clr: self.clear,
            propagation: self.propagation.map_or(0, Propagation::bits),
            userns_fd: self.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
        };
        let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
        // SAFETY: the path is an empty static string, allowed by AT_EMPTY_PATH; `attr` is a live `repr(C)` struct of
        // exactly the size passed, which the kernel only reads; the descriptors are borrowed for the call.
        let result = unsafe {
            libc::syscall(
                SYS_MOUNT_SETATTR,
                mount.as_raw_fd(),
                c"".as_ptr(),
                flags,
                std::ptr::from_ref(&attr),
                size_of::<MountAttr>(),
            )
        };
        check(result, || format!("mount_setattr(fd {}, {self:?}, recursive {recursive})", mount.as_raw_fd()))?;
        Ok(())
    }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: called only with the non-negative result of a system call that returned a new descriptor, which nobody
    // else owns yet.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// The attributes of a mount that statvfs(3) tells: neither `STRICTATIME` nor `NOSYMFOLLOW` is among them.
pub fn attributes(mount: BorrowedFd<'_>) -> Result<Attr> {
    let flags = fstatvfs(mount).call(|| "fstatvfs(mount)".to_owned())?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, Attr::RDONLY),
        (FsFlags::ST_NOSUID, Attr::NOSUID),
        (FsFlags::ST_NODEV, Attr::NODEV),
        (FsFlags::ST_NOEXEC, Attr::NOEXEC),
        (FsFlags::ST_NOATIME, Attr::NOATIME),
        (FsFlags::ST_NODIRATIME, Attr::NODIRATIME),
    ];
    Ok(pairs.iter().filter(|(flag, _)| flags.contains(*flag)).fold(Attr::empty(), |all, (_, attr)| all | *attr))
}

/// The current directory of every `*at` call, as a borrowed descriptor.
pub fn cwd() -> BorrowedFd<'static> {
    nix::fcntl::AT_FDCWD.as_fd()
}
