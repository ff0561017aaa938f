//! The calls of [`crate::mount`] by `mount(2)`, where the kernel (before 5.12) or a filter refuses the new ones.
//!
//! There are no detached mounts then. What comes nearest: a mount in a *staging* file system that nobody else sees, held by
//! a descriptor of its root. Attaching moves it (`MS_MOVE`); the descriptor stays that of the mount. The staging is an empty
//! tmpfs on top of the root directory, where paths do not lead: they begin at the root directory itself, below what is
//! mounted on it. It goes with the old root after the pivot, as one more mount to be detached.
//!
//! It needs a mount namespace of the caller's own ([`begin`]); everywhere else the new calls' error stays. Owners cannot be
//! shifted. Each path is a link of the host's `/proc`, as the old call takes no descriptors.

use std::cell::RefCell;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use crate::error::{Call, Result, SysError};
use crate::mount::{Attr, Propagation, attributes};

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
const NONE: Option<&str> = None;

/// The staging file system, and how many places in it have been taken.
struct Staging {
    root: OwnedFd,
    taken: u32,
}

thread_local! {
    /// Of the mount namespace that [`begin`] was called in: who made it has one thread and leaves it by an exec.
    static STAGING: RefCell<Option<Staging>> = const { RefCell::new(None) };
}

/// Makes the staging in the caller's mount namespace, which must be its own, and which no mount event may leave. The
/// caller's user must have an id there (`EOVERFLOW` when a place is made).
pub fn begin() -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), "/", Some("tmpfs"), flags, Some("mode=700")).call(|| "mount(tmpfs, /)".to_owned())?;
    // At the root `..` stays, and then follows what is mounted there.
    let root = open("/..", PLACE | OFlag::O_DIRECTORY, Mode::empty()).call(|| "open(/.., O_PATH)".to_owned())?;
    STAGING.set(Some(Staging { root, taken: 0 }));
    Ok(())
}

/// Whether mounts are made here.
pub fn is_used() -> bool {
    STAGING.with_borrow(Option::is_some)
}

/// A new file system in the staging; `data` as `mount(2)` takes it.
pub(crate) fn file_system(fs_type: &str, source: &str, data: &str, attr: Attr) -> Result<OwnedFd> {
    let name = take(true)?;
    let path = place(&name)?;
    mount(Some(source), path.as_str(), Some(fs_type), flags_of(attr), Some(data))
        .call(|| format!("mount({fs_type}, {data:?})"))?;
    enter(&name)
}

/// A clone of the mount at `path` below `dir`, or of `dir` itself.
pub(crate) fn clone(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd> {
    let path = path.to_str().map_err(|_| Errno::EINVAL).call(|| format!("path {path:?}"))?;
    let from = if path.is_empty() { link(dir) } else { path.to_owned() };
    let from_directory = path.is_empty() || path.starts_with('/') || dir.as_raw_fd() == AT_FDCWD.as_raw_fd();
    if !from_directory {
        return Err(SysError::new(format!("mount({path:?} in a directory, MS_BIND)"), Errno::EINVAL));
    }
    let source = open(from.as_str(), PLACE, Mode::empty()).call(|| format!("open({from:?}, O_PATH)"))?;
    let kind = fstat(&source).call(|| format!("fstat({from:?})"))?.st_mode & SFlag::S_IFMT.bits();
    let name = take(kind == SFlag::S_IFDIR.bits())?;
    let flags = MsFlags::MS_BIND | if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    mount(Some(from.as_str()), place(&name)?.as_str(), NONE, flags, NONE)
        .call(|| format!("mount({from:?}, MS_BIND, recursive {recursive})"))?;
    let clone = enter(&name)?;
    // Of the host's mount it was a peer: only events from there may come.
    let slave = MsFlags::MS_SLAVE | if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    mount(NONE, link(clone.as_fd()).as_str(), NONE, slave, NONE).call(|| "mount(clone, MS_SLAVE)".to_owned())?;
    Ok(clone)
}

/// Moves a mount from the staging, or from where it is, to its place.
pub(crate) fn attach(mounted: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    mount(Some(link(mounted).as_str()), link(target).as_str(), NONE, MsFlags::MS_MOVE, NONE)
        .call(|| format!("mount(fd {}, fd {}, MS_MOVE)", mounted.as_raw_fd(), target.as_raw_fd()))
}

/// Sets and clears attributes of the mount of this descriptor, and of all below it.
pub(crate) fn change(mounted: BorrowedFd<'_>, set: Attr, clear: u64, recursive: bool) -> Result<()> {
    if !set.is_empty() || clear != 0 {
        remount(mounted, set, clear)?;
        if recursive {
            for below in below(mounted)? {
                remount(below.as_fd(), set, clear)?;
            }
        }
    }
    Ok(())
}

/// Changes how events travel at the mount of this descriptor, and at all below it.
pub(crate) fn propagate(mounted: BorrowedFd<'_>, propagation: Propagation, recursive: bool) -> Result<()> {
    let flags = match propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::Slave => MsFlags::MS_SLAVE,
        Propagation::Shared => MsFlags::MS_SHARED,
        Propagation::Unbindable => MsFlags::MS_UNBINDABLE,
    };
    let recursion = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    mount(NONE, link(mounted).as_str(), NONE, flags | recursion, NONE).call(|| format!("mount({propagation:?})"))
}

fn remount(mounted: BorrowedFd<'_>, set: Attr, clear: u64) -> Result<()> {
    // Nothing said of how access times are kept means relatime.
    let new = Attr::from_bits_retain(attributes(mounted)?.bits() & !clear) | set;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags_of(new);
    mount(NONE, link(mounted).as_str(), NONE, flags, NONE).call(|| format!("mount(MS_REMOUNT|MS_BIND, {new:?})"))
}

fn flags_of(attr: Attr) -> MsFlags {
    let pairs = [
        (Attr::RDONLY, MsFlags::MS_RDONLY),
        (Attr::NOSUID, MsFlags::MS_NOSUID),
        (Attr::NODEV, MsFlags::MS_NODEV),
        (Attr::NOEXEC, MsFlags::MS_NOEXEC),
        (Attr::NOATIME, MsFlags::MS_NOATIME),
        (Attr::STRICTATIME, MsFlags::MS_STRICTATIME),
        (Attr::NODIRATIME, MsFlags::MS_NODIRATIME),
        // linux/mount.h, Linux 5.10.
        (Attr::NOSYMFOLLOW, MsFlags::from_bits_retain(256)),
    ];
    pairs.iter().filter(|(one, _)| attr.contains(*one)).fold(MsFlags::empty(), |all, (_, flag)| all | *flag)
}

/// The mounts below that of a descriptor, each by its root: by `/proc/self/mountinfo`, proc_pid_mountinfo(5).
fn below(mounted: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    let info = std::fs::read("/proc/self/mountinfo").call(|| "read(/proc/self/mountinfo)".to_owned())?;
    let info = String::from_utf8_lossy(&info);
    let own = mount_id(mounted)?;
    let mut lines = Vec::new();
    for line in info.lines() {
        let mut fields = line.split(' ');
        let (id, parent, point) = (fields.next(), fields.next(), fields.nth(2));
        let id = id.and_then(|id| id.parse::<u32>().ok());
        let parent = parent.and_then(|parent| parent.parse::<u32>().ok());
        if let (Some(id), Some(parent), Some(point)) = (id, parent, point) {
            lines.push((id, parent, unescape(point)));
        }
    }
    let top = lines.iter().find(|(id, ..)| *id == own).map(|(.., point)| point.clone()).unwrap_or_default();
    let (mut family, mut found) = (vec![own], Vec::new());
    // A mount is listed behind the one that it is on only as long as none has been moved.
    loop {
        let next = lines.iter().find(|(id, parent, _)| family.contains(parent) && !family.contains(id));
        let Some((id, _, point)) = next else { return Ok(found) };
        family.push(*id);
        let Some(name) = point.strip_prefix(top.trim_end_matches('/')).map(|name| name.trim_start_matches('/')) else {
            continue;
        };
        // One that lies on the very same place is what the descriptor is of.
        if name.is_empty() {
            continue;
        }
        let fd = crate::path::open_in(mounted, Path::new(name), PLACE, Mode::empty())?;
        // Whoever else may write there could have put a link in the way.
        if mount_id(fd.as_fd())? != *id {
            return Err(SysError::new(format!("the mount on {point:?} cannot be reached"), Errno::ESTALE));
        }
        found.push(fd);
    }
}

/// The mount that a descriptor is on: `mnt_id` of its fdinfo file, proc_pid_fdinfo(5).
fn mount_id(fd: BorrowedFd<'_>) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let mut text = String::new();
    File::open(&path).and_then(|mut file| file.read_to_string(&mut text)).call(|| format!("read({path:?})"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| SysError::new(format!("mnt_id in {path}"), Errno::EINVAL))
}

/// Octal escapes of mountinfo: blanks, tabs, line feeds, backslashes.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// A new place in the staging: a directory, or an empty file.
fn take(directory: bool) -> Result<String> {
    STAGING.with_borrow_mut(|staging| {
        let staging = staging.as_mut().ok_or_else(|| SysError::new("no staging for mounts", Errno::ENOSYS))?;
        staging.taken += 1;
        let name = staging.taken.to_string();
        if directory {
            mkdirat(&staging.root, name.as_str(), Mode::S_IRWXU).call(|| format!("mkdirat(staging/{name})"))?;
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&staging.root, name.as_str(), flags, Mode::S_IRUSR).call(|| format!("openat(staging/{name})"))?;
        }
        Ok(name)
    })
}

fn place(name: &str) -> Result<String> {
    STAGING.with_borrow(|staging| {
        let staging = staging.as_ref().ok_or_else(|| SysError::new("no staging for mounts", Errno::ENOSYS))?;
        Ok(format!("{}/{name}", link(staging.root.as_fd())))
    })
}

/// The root of the mount that was made at a place.
fn enter(name: &str) -> Result<OwnedFd> {
    let path = place(name)?;
    open(path.as_str(), PLACE, Mode::empty()).call(|| format!("open({path:?}, O_PATH)"))
}

fn link(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
