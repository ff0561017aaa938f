//! `/dev`: the six nodes that every program expects, as clones of the host's, and the customary links.
//!
//! A user namespace cannot make device nodes. The host's are opened without following links and must be the right
//! device; where the specification binds a directory over `/dev`, only what it lists is made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use sys::mount::{Attr, Change, attach, clone_mount};
use sys::path::{SELF, make_dirs_in, make_file_in};
use sys::{Call, Errno, SysError};

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
                bind(root, &path, &path, (SFlag::S_IFCHR, major, minor))?;
            }
        }
        links(root)?;
    }
    for device in listed {
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

/// A device of the specification's list: a node of our own where that is allowed (real root), else the host's.
fn one(root: BorrowedFd<'_>, device: &LinuxDevice) -> Result<(), Report> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(Report::new(Kind::Usage, "type \"a\" is for cgroup rules, not for a node")),
    };
    let path = device.path();
    let parent = make_dirs_in(root, path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().map(Path::new);
    let name = name.ok_or_else(|| Report::new(Kind::Usage, "a device needs a path with a name"))?;
    let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777);
    let (major, minor) = (device.major() as u64, device.minor() as u64);
    match mknodat(parent.as_fd(), name, kind, mode, makedev(major, minor)) {
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(device.uid().unwrap_or(0)), Gid::from_raw(device.gid().unwrap_or(0)));
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(parent.as_fd(), name, Some(uid), Some(gid), flags).call(|| format!("fchownat({name:?})"))?;
            Ok(())
        }
        // The image has it already; with a device of its own it would have to be the right one, which a bind makes sure.
        Err(Errno::EPERM | Errno::EEXIST) if kind != SFlag::S_IFIFO => {
            let source = host_path(path, kind, major, minor);
            Ok(bind(root, path, &source, (kind, major, minor))?)
        }
        Err(errno) => Err(SysError::new(format!("mknodat({path:?}, {kind:?}, {major}:{minor})"), errno).into()),
    }
}

/// Where the host has the device: at the same path, or where the kernel says.
fn host_path(path: &Path, kind: SFlag, major: u64, minor: u64) -> PathBuf {
    let class = if kind == SFlag::S_IFBLK { "block" } else { "char" };
    let known = std::fs::read_to_string(format!("/sys/dev/{class}/{major}:{minor}/uevent")).unwrap_or_default();
    let name = known.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    match name {
        Some(name) if open_host(path, kind, major, minor).is_err() => Path::new("/dev").join(name),
        _ => path.to_owned(),
    }
}

fn bind(root: BorrowedFd<'_>, path: &Path, source: &Path, node: (SFlag, u64, u64)) -> Result<(), SysError> {
    let (kind, major, minor) = node;
    let host = open_host(source, kind, major, minor)?;
    let clone = clone_mount(host.as_fd(), SELF, false)?;
    Change::set(Attr::NOSUID | Attr::NOEXEC).apply(clone.as_fd(), false)?;
    let target = make_file_in(root, path)?;
    attach(clone.as_fd(), target.as_fd())
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
