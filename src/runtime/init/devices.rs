//! `/dev`: the six nodes that every program expects, and the customary links.
//!
//! A user namespace cannot make device nodes: there they are clones of the host's, which are opened without following
//! links and must be the right device. Real root's containers get nodes of their own: with a clone, a change of mode or
//! owner inside would be one of the host's node. Where the specification binds a directory over `/dev`, only what it lists
//! is made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use sys::mount::{Attr, Change, attach, clone_mount};
use sys::path::{SELF, make_dirs_in};
use sys::{Call, Errno, SysError};

use crate::init::mounts::unlinked;

/// Name, major and minor number: Documentation/admin-guide/devices.txt of the kernel.
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("core", "/proc/kcore"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills the tmpfs that the specification has mounted on `/dev`, and adds the devices that it lists.
pub fn make(spec: &Spec, root: BorrowedFd<'_>) -> Result<(), Report> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    if has_own_dev(spec) {
        for (name, major, minor) in NODES {
            let path = Path::new("/dev").join(name);
            if !listed.iter().any(|device| *device.path() == path) {
                node(root, &path, (SFlag::S_IFCHR, major, minor), Mode::from_bits_truncate(0o666), (0, 0))?;
            }
        }
        links(root)?;
    }
    // A link of ours leads to the container's own, as `/dev/ptmx` to that of its devpts, and the host's would cover that.
    let is_link = |path: &Path| has_own_dev(spec) && LINKS.iter().any(|(name, _)| path == Path::new("/dev").join(name));
    for device in listed.iter().filter(|device| !is_link(device.path())) {
        one(root, device).step(|| format!("making the device {}", device.path().display()))?;
    }
    Ok(())
}

/// Where the specification binds the host's directory, or has nothing at all, nothing is made unasked.
fn has_own_dev(spec: &Spec) -> bool {
    let mounts = spec.mounts().iter().flatten();
    mounts.into_iter().any(|mount| mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs"))
}

fn links(root: BorrowedFd<'_>) -> Result<(), SysError> {
    let dev = make_dirs_in(root, Path::new("/dev"))?;
    for (name, to) in LINKS {
        // A kernel may be built without it.
        if name == "core" && !Path::new(to).exists() {
            continue;
        }
        match nix::unistd::symlinkat(to, dev.as_fd(), name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(SysError::new(format!("symlinkat({to:?}, /dev/{name})"), errno)),
        }
    }
    Ok(())
}

/// A device of the specification's list.
fn one(root: BorrowedFd<'_>, device: &LinuxDevice) -> Result<(), Report> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(Report::new(Kind::Usage, "type \"a\" is for cgroup rules, not for a node")),
    };
    let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777);
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    node(root, device.path(), (kind, device.major() as u64, device.minor() as u64), mode, owner)
}

/// A node of our own where that is allowed (real root), else the host's.
fn node(
    root: BorrowedFd<'_>,
    path: &Path,
    (kind, major, minor): (SFlag, u64, u64),
    mode: Mode,
    (uid, gid): (u32, u32),
) -> Result<(), Report> {
    let parent = make_dirs_in(root, path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().map(Path::new);
    let name = name.ok_or_else(|| Report::new(Kind::Usage, "a device needs a path with a name"))?;
    match mknodat(parent.as_fd(), name, kind, mode, makedev(major, minor)) {
        Ok(()) => {
            let (uid, gid, flags) = (Uid::from_raw(uid), Gid::from_raw(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
            fchownat(parent.as_fd(), name, Some(uid), Some(gid), flags).call(|| format!("fchownat({name:?})"))?;
            Ok(())
        }
        // The image has it already; with a device of its own it would have to be the right one, which a bind makes sure.
        Err(Errno::EPERM | Errno::EEXIST) if kind != SFlag::S_IFIFO => {
            let source = host_path(path, kind, major, minor);
            bind(root, path, &source, (kind, major, minor))
        }
        Err(errno) => Err(SysError::new(format!("mknodat({path:?}, {kind:?}, {major}:{minor})"), errno).into()),
    }
}

/// Where the host has the device: at the same path, or where the kernel says.
fn host_path(path: &Path, kind: SFlag, major: u64, minor: u64) -> PathBuf {
    if open_host(path, kind, major, minor).is_ok() {
        return path.to_owned();
    }
    let class = if kind == SFlag::S_IFBLK { "block" } else { "char" };
    let known = std::fs::read_to_string(format!("/sys/dev/{class}/{major}:{minor}/uevent")).unwrap_or_default();
    let name = known.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| path.to_owned(), |name| Path::new("/dev").join(name))
}

fn bind(root: BorrowedFd<'_>, path: &Path, source: &Path, node: (SFlag, u64, u64)) -> Result<(), Report> {
    let (kind, major, minor) = node;
    let host = open_host(source, kind, major, minor)?;
    let clone = clone_mount(host.as_fd(), SELF, false)?;
    Change::set(Attr::NOSUID | Attr::NOEXEC).apply(clone.as_fd(), false)?;
    let target = unlinked(root, path, false)?;
    sys::step();
    Ok(attach(clone.as_fd(), target.as_fd())?)
}

/// Opens a device node of the host and proves that it is that device.
pub fn open_host(path: &Path, kind: SFlag, major: u64, minor: u64) -> Result<OwnedFd, SysError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, Mode::empty()).call(|| format!("open({path:?}, O_PATH|O_NOFOLLOW)"))?;
    let stat = fstat(&fd).call(|| format!("fstat({path:?})"))?;
    if stat.st_mode & SFlag::S_IFMT.bits() != kind.bits() || stat.st_rdev != makedev(major, minor) {
        let message = format!("{} is not the device {major}:{minor}", path.display());
        return Err(SysError::new(message, Errno::ENODEV));
    }
    Ok(fd)
}
