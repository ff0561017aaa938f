//! `/dev`: the six nodes that every program expects, the customary links, and the devices of the specification.
//!
//! A user namespace cannot make device nodes: there they are clones of the host's, which are opened without following
//! links and must be the right device. Real root's containers get nodes of their own: with a clone, a change of mode or
//! owner inside would be one of the host's node, and what only root may open could not be opened inside. Where the
//! specification binds a directory over `/dev`, only what it lists is made.
//!
//! Devices whose place on the host the caller names ([`Launch::devices`]) are opened with the caller's identity, before
//! init becomes root inside ([`Opened`]). Where the caller is real root and init has a user namespace, the stage makes
//! the nodes, on a file system that is attached to nothing and comes to init by its descriptor.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use sys::mount::{Attr, Change, FsContext, attach, clone_mount};
use sys::path::{SELF, make_dirs_in, proc_fd};
use sys::{Call, Errno, SysError};

use crate::init::mounts::{Source, unlinked};
use crate::launch::Launch;

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

/// The devices of [`Launch::devices`], opened or made with the caller's identity.
#[derive(Debug, Default)]
pub struct Opened {
    /// Nodes of the host, by their path in the container.
    hosts: BTreeMap<PathBuf, Source>,
    /// A detached file system with nodes of the container's own, each named by its place in the specification's list.
    own: Option<OwnedFd>,
}

/// Opens the host's nodes in init itself.
pub fn open(launch: &Launch) -> Result<Opened, Report> {
    open_as(launch, |node| Ok(Source::Place(node)))
}

/// Makes nodes for the container, or clones the host's where even root may make none, before init is born.
pub fn make_own(launch: &Launch) -> Result<Opened, Report> {
    if launch.devices.is_empty() {
        return Ok(Opened::default());
    }
    match nodes_of_own(launch) {
        Ok(own) => Ok(Opened { own: Some(own), ..Opened::default() }),
        Err(error) if error.errno() == Errno::EPERM => {
            open_as(launch, |node| Ok(Source::Clone(clone_mount(node.as_fd(), SELF, false)?)))
        }
        Err(error) => Err(error.into()),
    }
}

fn open_as(launch: &Launch, hold: fn(OwnedFd) -> Result<Source, SysError>) -> Result<Opened, Report> {
    let mut hosts = BTreeMap::new();
    for device in listed(&launch.spec) {
        if let Some(host) = launch.devices.get(device.path()) {
            let opened = kind(device)
                .and_then(|kind| Ok(hold(open_host(&host.path, kind, device.major() as u64, device.minor() as u64)?)?));
            hosts.insert(device.path().clone(), opened.step(|| format!("opening the device {}", host.path.display()))?);
        }
    }
    Ok(Opened { hosts, own: None })
}

fn nodes_of_own(launch: &Launch) -> Result<OwnedFd, SysError> {
    let context = FsContext::open(c"tmpfs")?;
    context.set(c"source", c"devices")?;
    context.set(c"mode", c"755")?;
    let own = context.mount(Attr::NOSUID | Attr::NOEXEC)?;
    for (place, device) in listed(&launch.spec).iter().enumerate() {
        let Some((host, kind)) = launch.devices.get(device.path()).zip(kind(device).ok()) else { continue };
        let name = place.to_string();
        let (number, mode) = (makedev(device.major() as u64, device.minor() as u64), mode(device));
        mknodat(&own, name.as_str(), kind, mode, number)
            .call(|| format!("mknodat({:?}, {kind:?}, {}:{})", device.path(), device.major(), device.minor()))?;
        let (uid, gid) = (Uid::from_raw(host.owner.0), Gid::from_raw(host.owner.1));
        fchownat(&own, name.as_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .call(|| format!("fchownat({name:?}, {uid}, {gid})"))?;
        // Our umask has had its part in the first.
        fchmodat(&own, name.as_str(), mode, FchmodatFlags::FollowSymlink)
            .call(|| format!("fchmodat({name:?}, {mode:?})"))?;
    }
    Ok(own)
}

/// Clones of the nodes on a file system of their own. Only what is attached in our mount namespace can be cloned, so it
/// lies on the container's `/dev` for that moment.
fn clones_of_own(
    spec: &Spec,
    root: BorrowedFd<'_>,
    own: BorrowedFd<'_>,
) -> Result<BTreeMap<PathBuf, Source>, SysError> {
    let dev = make_dirs_in(root, Path::new("/dev"))?;
    attach(own, dev.as_fd())?;
    let mut clones = BTreeMap::new();
    for (place, device) in listed(spec).iter().enumerate() {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = match nix::fcntl::openat(own, place.to_string().as_str(), flags, Mode::empty()) {
            // One that is looked for at its own path.
            Err(Errno::ENOENT) => continue,
            node => node.call(|| format!("openat(devices, {place})"))?,
        };
        clones.insert(device.path().clone(), Source::Clone(clone_mount(node.as_fd(), SELF, false)?));
    }
    umount2(proc_fd(own).as_c_str(), MntFlags::MNT_DETACH).call(|| "umount2(devices, MNT_DETACH)".to_owned())?;
    Ok(clones)
}

/// Refuses what no node can be made of, as far as that can be said without the host.
pub fn check(spec: &Spec) -> Result<(), Report> {
    for device in listed(spec) {
        let wrong = |message: &str| {
            Err(Report::new(Kind::Usage, message).with_step(format!("the device {}", device.path().display())))
        };
        let kind = kind(device).step(|| format!("the device {}", device.path().display()))?;
        if !device.path().is_absolute() || device.path().file_name().is_none() {
            return wrong("its path is not absolute, or has no name at its end");
        }
        // Of the kernel, linux/kdev_t.h.
        let fits = (0..1 << 12).contains(&device.major()) && (0..1 << 20).contains(&device.minor());
        if kind != SFlag::S_IFIFO && !fits {
            return wrong(&format!("{}:{} is no number of a device", device.major(), device.minor()));
        }
    }
    Ok(())
}

fn listed(spec: &Spec) -> &[LinuxDevice] {
    spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default()
}

/// Fills the tmpfs that the specification has mounted on `/dev`, and adds the devices that it lists.
pub fn make(spec: &Spec, root: BorrowedFd<'_>, opened: Opened) -> Result<(), Report> {
    let listed = listed(spec);
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
    // Who names its place wants it there: that is refused.
    let is_link = |path: &Path| has_own_dev(spec) && LINKS.iter().any(|(name, _)| path == Path::new("/dev").join(name));
    let Opened { mut hosts, own } = opened;
    if let Some(own) = own {
        hosts = clones_of_own(spec, root, own.as_fd())?;
    }
    for device in listed {
        if is_link(device.path()) && !hosts.contains_key(device.path()) {
            continue;
        }
        let made = match hosts.remove(device.path()) {
            Some(source) => attach_node(root, device.path(), source),
            None => one(root, device),
        };
        made.step(|| format!("making the device {}", device.path().display()))?;
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
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    node(root, device.path(), (kind(device)?, device.major() as u64, device.minor() as u64), mode(device), owner)
}

fn kind(device: &LinuxDevice) -> Result<SFlag, Report> {
    match device.typ() {
        LinuxDeviceType::B => Ok(SFlag::S_IFBLK),
        LinuxDeviceType::C | LinuxDeviceType::U => Ok(SFlag::S_IFCHR),
        LinuxDeviceType::P => Ok(SFlag::S_IFIFO),
        LinuxDeviceType::A => Err(Report::new(Kind::Usage, "type \"a\" is for cgroup rules, not for a node")),
    }
}

fn mode(device: &LinuxDevice) -> Mode {
    Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777)
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
            attach_node(root, path, Source::Place(find_host(path, kind, major, minor)?))
        }
        Err(errno) => Err(SysError::new(format!("mknodat({path:?}, {kind:?}, {major}:{minor})"), errno).into()),
    }
}

/// The host's device: at the same path, or where the kernel says.
fn find_host(path: &Path, kind: SFlag, major: u64, minor: u64) -> Result<OwnedFd, SysError> {
    open_host(path, kind, major, minor).or_else(|error| {
        let class = if kind == SFlag::S_IFBLK { "block" } else { "char" };
        let known = std::fs::read_to_string(format!("/sys/dev/{class}/{major}:{minor}/uevent")).unwrap_or_default();
        let name = known.lines().find_map(|line| line.strip_prefix("DEVNAME=")).ok_or(error)?;
        open_host(&Path::new("/dev").join(name), kind, major, minor)
    })
}

fn attach_node(root: BorrowedFd<'_>, path: &Path, source: Source) -> Result<(), Report> {
    let clone = match source {
        Source::Place(node) => clone_mount(node.as_fd(), SELF, false)?,
        Source::Clone(clone) => clone,
    };
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
