//! The mounts of the specification, each built detached, given its attributes, and attached by descriptor.
//!
//! Targets are resolved inside the root by `openat2`, and made when missing. Bind sources were opened with the caller's
//! identity and cloned before anything else (`open_sources`), as root inside may not search the caller's directories.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use oci_spec::runtime::{Mount, Spec};
use sys::mount::{Attr, Change, FsContext, Propagation, attach, clone_mount};
use sys::path::{make_dirs_in, make_file_in, open_in};
use sys::{Call, Errno, SysError};

use crate::channel::Channel;
use crate::init::rootfs::c_string;

/// Detached clones of the bind sources by the position of their mount in the specification.
pub type Sources = BTreeMap<usize, OwnedFd>;

/// Clones the sources of all bind mounts, with everything below where the mount asks for that.
///
/// With `shift`, a user namespace, its ids stand for those on disk, and so the files of real root, who has no id in the
/// container, are those of the container's root. What cannot be shifted is told: its files belong to nobody inside.
pub fn open_sources(spec: &Spec, shift: Option<BorrowedFd<'_>>, channel: &Channel) -> Result<Sources, Report> {
    let mut sources = Sources::new();
    let mut unshifted = Vec::new();
    for (position, mount) in mounts(spec).enumerate() {
        let Some(source) = bind_source(mount) else { continue };
        let recursive = Options::of(mount).recursive;
        let clone = nix::fcntl::open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open({source:?}, O_PATH)"))
            .and_then(|fd| clone_below(fd.as_fd(), recursive))
            .step(|| format!("mounting {} on {}", source.display(), mount.destination().display()))?;
        if let Some(user_namespace) = shift
            && !shift_owners(clone.as_fd(), user_namespace, recursive)?
        {
            unshifted.push(source.to_string_lossy());
        }
        sources.insert(position, clone);
    }
    if !unshifted.is_empty() {
        channel.notice(format!(
            "bind mounts: the file system of {} cannot show its owners to a user namespace; what is there belongs to \
             nobody inside",
            unshifted.join(", ")
        ));
    }
    Ok(sources)
}

/// A clone that mount events reach, and none leaves: one that real root makes is a peer of the host's mount at first.
fn clone_below(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, SysError> {
    let clone = clone_mount(source, sys::path::SELF, recursive)?;
    Change::set(Attr::empty()).propagation(Propagation::Slave).apply(clone.as_fd(), recursive)?;
    Ok(clone)
}

/// False where a file system cannot shift owners. Of a subtree that has such mounts at least the top is tried.
fn shift_owners(clone: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<bool, SysError> {
    let change = Change::set(Attr::empty()).idmap(user_namespace);
    let mut refused = false;
    for recursive in if recursive { [true, false].as_slice() } else { &[false] } {
        match change.apply(clone, *recursive) {
            Ok(()) => return Ok(!refused),
            // Not of this type, or a mount that is shifted already.
            Err(error) if matches!(error.errno(), Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPERM) => refused = true,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Performs every mount of the specification in its order.
pub fn mount_all(spec: &Spec, root: BorrowedFd<'_>, mut sources: Sources, channel: &Channel) -> Result<(), Report> {
    for (position, mount) in mounts(spec).enumerate() {
        mount_one(mount, root, sources.remove(&position), channel)
            .step(|| format!("mounting {}", mount.destination().display()))?;
    }
    Ok(())
}

fn mounts(spec: &Spec) -> impl Iterator<Item = &Mount> {
    spec.mounts().iter().flatten()
}

fn bind_source(mount: &Mount) -> Option<&PathBuf> {
    let options = mount.options().iter().flatten();
    let bind = mount.typ().as_deref() == Some("bind") || options.into_iter().any(|o| o == "bind" || o == "rbind");
    mount.source().as_ref().filter(|_| bind)
}

fn mount_one(mount: &Mount, root: BorrowedFd<'_>, source: Option<OwnedFd>, channel: &Channel) -> Result<(), Report> {
    let options = Options::of(mount);
    let typ = mount.typ().as_deref().unwrap_or("bind");
    let built = match (source, typ) {
        (Some(clone), _) => bind(clone, &options)?,
        (None, "proc") => procfs(&options)?,
        (None, "sysfs") => sysfs(&options, channel)?,
        (None, "cgroup" | "cgroup2") => cgroupfs(&options, channel)?,
        (None, "tmpfs" | "devpts" | "mqueue") => file_system(typ, &options, options.attr)?,
        (None, other) => {
            let message = format!("a mount of type {other:?} is not possible without root");
            return Err(Report::new(Kind::Unsupported, message));
        }
    };
    let target = target(root, mount.destination(), &built, typ)?;
    attach(built.as_fd(), target.as_fd())?;
    if let Some(propagation) = options.propagation {
        Change::set(Attr::empty()).propagation(propagation).apply(built.as_fd(), options.recursive)?;
    }
    Ok(())
}

/// Opens the mount point inside the root, making it as a file or a directory like the source. `/proc` and `/sys` must
/// be real directories: an image that has links there would redirect later writes (CVE-2023-27561).
fn target(root: BorrowedFd<'_>, path: &Path, built: &OwnedFd, typ: &str) -> Result<OwnedFd, Report> {
    let stat = fstat(built).call(|| "fstat(mount)".to_owned())?;
    let directory = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
    if matches!(typ, "proc" | "sysfs") {
        let link = open_in(root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty());
        if link
            .is_ok_and(|fd| fstat(&fd).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits()))
        {
            let message = format!("the image has something that is no directory at {}", path.display());
            return Err(Report::new(Kind::Denied, message));
        }
    }
    let target = if directory { make_dirs_in(root, path) } else { make_file_in(root, path) }?;
    let stat = fstat(&target).call(|| "fstat(mount point)".to_owned())?;
    let target_is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
    if target_is_directory != directory {
        let message = "not a directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the \
                       specified host path exists and is the expected type";
        return Err(Report::new(Kind::CommandNotFound, message));
    }
    Ok(target)
}

fn bind(clone: OwnedFd, options: &Options) -> Result<OwnedFd, SysError> {
    if !options.attr.is_empty() {
        Change::set(options.attr).apply(clone.as_fd(), options.recursive)?;
    }
    Ok(clone)
}

fn file_system(typ: &str, options: &Options, attr: Attr) -> Result<OwnedFd, SysError> {
    let context = FsContext::open(&c_string(typ)?)?;
    context.set(c"source", &c_string(typ)?)?;
    for option in &options.data {
        match option.split_once('=') {
            Some((key, value)) => context.set(&c_string(key)?, &c_string(value)?)?,
            None => context.set_flag(&c_string(option)?)?,
        }
    }
    context.mount(attr)
}

/// What helps when the kernel refuses a new procfs.
pub(crate) const PROC_IS_MASKED: &str =
    "the surrounding container masks /proc; unmask it there (--security-opt unmask=ALL)";

/// A new procfs of the container's pid namespace. The kernel refuses it where the surrounding procfs has masks.
fn procfs(options: &Options) -> Result<OwnedFd, Report> {
    file_system("proc", options, options.attr).map_err(|error| {
        let masked = error.errno() == Errno::EPERM;
        let report = Report::from(error);
        if masked { report.with_hint(PROC_IS_MASKED) } else { report }
    })
}

/// A new sysfs when the container owns its network namespace, else the host's, recursively and read-only.
fn sysfs(options: &Options, channel: &Channel) -> Result<OwnedFd, SysError> {
    match file_system("sysfs", options, options.attr) {
        Err(error) if error.errno() == Errno::EPERM => {
            let host = nix::fcntl::open("/sys", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                .call(|| "open(/sys, O_PATH)".to_owned())?;
            let clone = clone_mount(host.as_fd(), sys::path::SELF, true)?;
            let attr = options.attr | Attr::RDONLY;
            Change::set(attr).propagation(Propagation::Slave).apply(clone.as_fd(), true)?;
            Ok(clone)
        }
        Err(error) => {
            channel.notice(format!("sysfs: not mounted: {error}: {}", error.cause));
            Err(error)
        }
        mounted => mounted,
    }
}

/// cgroup2 rooted at the container's own cgroup; where the host has none to give, an empty read-only directory.
fn cgroupfs(options: &Options, channel: &Channel) -> Result<OwnedFd, SysError> {
    let plain = Options { data: Vec::new(), ..options.clone() };
    match file_system("cgroup2", &plain, options.attr) {
        Err(error) if matches!(error.errno(), Errno::EPERM | Errno::EBUSY | Errno::ENODEV) => {
            channel.notice(format!("cgroup file system: cannot be mounted ({}); /sys/fs/cgroup is empty", error.cause));
            file_system("tmpfs", &plain, options.attr | Attr::RDONLY)
        }
        mounted => mounted,
    }
}

/// A mount's options, taken apart.
#[derive(Clone, Debug)]
struct Options {
    attr: Attr,
    recursive: bool,
    propagation: Option<Propagation>,
    data: Vec<String>,
}

impl Options {
    /// The words of mount(8) that the runtime specification allows; the rest goes to the file system.
    fn of(mount: &Mount) -> Self {
        let mut parsed = Options { attr: Attr::empty(), recursive: false, propagation: None, data: Vec::new() };
        for option in mount.options().iter().flatten() {
            match option.as_str() {
                "ro" | "rro" => parsed.attr |= Attr::RDONLY,
                "nosuid" | "rnosuid" => parsed.attr |= Attr::NOSUID,
                "nodev" | "rnodev" => parsed.attr |= Attr::NODEV,
                "noexec" | "rnoexec" => parsed.attr |= Attr::NOEXEC,
                "noatime" => parsed.attr |= Attr::NOATIME,
                "strictatime" => parsed.attr |= Attr::STRICTATIME,
                "nodiratime" => parsed.attr |= Attr::NODIRATIME,
                "nosymfollow" => parsed.attr |= Attr::NOSYMFOLLOW,
                // What a new mount is anyway; on a bind of the host's they are locked and need no words.
                "rw" | "suid" | "dev" | "exec" | "relatime" | "atime" | "diratime" | "bind" | "defaults" => {}
                "rbind" => parsed.recursive = true,
                "private" | "rprivate" => parsed.propagation = Some(Propagation::Private),
                "slave" | "rslave" => parsed.propagation = Some(Propagation::Slave),
                "shared" | "rshared" => parsed.propagation = Some(Propagation::Shared),
                "unbindable" | "runbindable" => parsed.propagation = Some(Propagation::Unbindable),
                other => parsed.data.push(other.to_owned()),
            }
        }
        parsed
    }
}
