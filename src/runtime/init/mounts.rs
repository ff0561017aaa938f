//! The mounts of the specification, each built detached, given its attributes, and attached by descriptor.
//!
//! Targets are resolved inside the root by `openat2`, and made when missing. Bind sources were opened with the caller's
//! identity before anything else (`open_sources`, `clone_sources`), as root inside may not search the caller's directories.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use oci_spec::runtime::{Mount, Spec};
use sys::mount::{Attr, Change, FsContext, Propagation, attach, attributes, clone_mount};
use sys::path::{make_dirs_in, make_file_in, open_in};
use sys::{Call, Errno, SysError};

use crate::channel::Channel;
use crate::init::copy;
use crate::init::rootfs::{self, Layers, c_string};
use crate::launch::Launch;

/// Where the host has its cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The bind sources by the position of their mount in the specification.
pub type Sources = BTreeMap<usize, Bound>;

/// A bind source.
#[derive(Debug)]
pub struct Bound {
    source: Source,
    /// What takes the writes in its place, above the source.
    layers: Option<Layers>,
}

/// What a bind mount shows.
#[derive(Debug)]
pub enum Source {
    /// The place itself, to be cloned in its turn: the kernel lists mounts in the order in which they were made.
    Place(OwnedFd),
    /// A clone that is attached nowhere, made by who had the right to.
    Clone(OwnedFd),
}

/// Opens the sources of all bind mounts, for a caller that will mount them itself.
pub fn open_sources(launch: &Launch) -> Result<Sources, Report> {
    let mut sources = Sources::new();
    for (position, mount) in mounts(&launch.spec).enumerate() {
        if let Some(source) = bind_source(mount).filter(|_| !is_joined(launch, mount)) {
            let (place, layers) = open_source(source, mount, launch)?;
            sources.insert(position, Bound { source: Source::Place(place), layers });
        }
    }
    Ok(sources)
}

/// Whether another container has what a bind mount shows: then it is brought by the stage.
fn is_joined(launch: &Launch, mount: &Mount) -> bool {
    launch.binds.get(mount.destination()).is_some_and(|bind| bind.joined)
}

/// Whether anything is.
pub fn any_joined(launch: &Launch) -> bool {
    mounts(&launch.spec).any(|mount| is_joined(launch, mount))
}

/// Puts what the stage has brought in its place.
pub fn add_joined(launch: &Launch, sources: &mut Sources, clone: OwnedFd) {
    if let Some(position) = mounts(&launch.spec).position(|mount| is_joined(launch, mount)) {
        sources.insert(position, Bound { source: Source::Clone(clone), layers: None });
    }
}

/// The source itself, or the part of it that is to be seen, and what is to take its writes.
fn open_source(source: &Path, mount: &Mount, launch: &Launch) -> Result<(OwnedFd, Option<Layers>), Report> {
    let bind = launch.binds.get(mount.destination());
    let open = || {
        let place = nix::fcntl::open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open({source:?}, O_PATH)"))?;
        let place = match bind.and_then(|bind| bind.subpath.as_deref()) {
            Some(subpath) => open_in(place.as_fd(), subpath, OFlag::O_PATH, Mode::empty())
                .step(|| format!("cannot access path {} of the volume", subpath.display()))?,
            None => place,
        };
        let layers = bind.and_then(|bind| bind.layers.as_deref()).map(rootfs::open_layers).transpose()?;
        Ok((place, layers))
    };
    open().map_err(|report: Report| {
        report.with_step(format!("mounting {} on {}", source.display(), mount.destination().display()))
    })
}

/// Clones the sources of all bind mounts, with everything below where the mount asks for that, and shifts the owners of
/// those that are to be id-mapped, for an init that will not have the right to.
///
/// With `shift`, a user namespace, its ids stand for those on disk, and so the files of real root, who has no id in the
/// container, are those of the container's root. What cannot be shifted is told: its files belong to nobody inside.
pub fn clone_sources(launch: &Launch, shift: Option<BorrowedFd<'_>>, channel: &Channel) -> Result<Sources, Report> {
    let spec = &launch.spec;
    let mut sources = Sources::new();
    let mut unshifted = Vec::new();
    for (position, mount) in mounts(spec).enumerate() {
        let Some(source) = bind_source(mount).filter(|_| !is_joined(launch, mount)) else { continue };
        let options = Options::of(mount);
        let (place, layers) = open_source(source, mount, launch)?;
        let clone = clone_source(spec, mount, &options, place.as_fd())
            .step(|| format!("mounting {} on {}", source.display(), mount.destination().display()))?;
        if options.idmap.is_none()
            && let Some(user_namespace) = shift
            && !shift_owners(clone.as_fd(), user_namespace, options.recursive)?
        {
            unshifted.push(source.to_string_lossy());
        }
        sources.insert(position, Bound { source: Source::Clone(clone), layers });
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

fn clone_source(spec: &Spec, mount: &Mount, options: &Options, place: BorrowedFd<'_>) -> Result<OwnedFd, Report> {
    let clone = clone_below(place, options)?;
    if let Some(recursive) = options.idmap {
        id_map(spec, mount, clone.as_fd(), recursive)?;
    }
    Ok(clone)
}

/// A clone that mount events reach, and none leaves, unless it is to be shared: one that real root makes is a peer of the
/// host's mount at first.
fn clone_below(source: BorrowedFd<'_>, options: &Options) -> Result<OwnedFd, SysError> {
    let clone = clone_mount(source, sys::path::SELF, options.recursive)?;
    if !options.propagation.iter().any(|(propagation, _)| *propagation == Propagation::Shared) {
        Change::set(Attr::empty()).propagation(Propagation::Slave).apply(clone.as_fd(), options.recursive)?;
    }
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

/// `linux.mountLabel`: what the file systems made for the container are labelled with, but for those that show the kernel's
/// own state, as with runc.
pub(super) fn label(spec: &Spec) -> Option<&str> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    label.filter(|label| !label.is_empty())
}

/// What the mounts depend on beside the specification.
#[derive(Debug)]
pub struct Place<'a> {
    /// The container's root directory, `O_PATH`.
    pub root: BorrowedFd<'a>,
    /// Its own pid namespace is shown by a procfs of its own; else the host's is shown.
    pub own_pids: bool,
    /// Its own cgroup namespace is shown by a cgroup file system of its own; else the host's may be shown.
    pub own_cgroups: bool,
    /// For lines to the user.
    pub channel: &'a Channel,
}

/// The mounts that something is still to be done with.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// For [`make_read_only`], once all is in them: a tmpfs is empty, and what is mounted below it, a device or the
    /// terminal needs a place there.
    pub late: Vec<OwnedFd>,
    /// For [`super::chown::volumes`], once the user is known.
    pub given: Vec<Given>,
}

/// A bind mount that the payload's user is to own.
#[derive(Debug)]
pub struct Given {
    /// For messages.
    pub destination: PathBuf,
    /// The mount itself, whatever is mounted over it later.
    pub mount: OwnedFd,
    /// It is to become read-only afterwards, with all below it or alone.
    pub read_only: Option<bool>,
}

/// Performs every mount of the specification in its order.
pub fn mount_all(launch: &Launch, place: &Place<'_>, mut sources: Sources) -> Result<Unfinished, Report> {
    let mut unfinished = Unfinished::default();
    for (position, mount) in mounts(&launch.spec).enumerate() {
        mount_one(launch, mount, place, sources.remove(&position), &mut unfinished)
            .step(|| format!("mounting {}", mount.destination().display()))?;
    }
    Ok(unfinished)
}

/// Closes what was left writable while it was filled.
pub fn make_read_only(late: &[OwnedFd]) -> Result<(), SysError> {
    late.iter().try_for_each(|mount| Change::set(Attr::RDONLY).apply(mount.as_fd(), false))
}

fn mounts(spec: &Spec) -> impl Iterator<Item = &Mount> {
    spec.mounts().iter().flatten()
}

/// Reads the options of every mount.
pub(crate) fn take_apart(spec: &Spec) {
    for mount in mounts(spec) {
        let _ = (Options::of(mount), bind_source(mount));
    }
}

/// Whether a bind mount is to show its owners shifted.
pub(crate) fn any_id_mapped(spec: &Spec) -> bool {
    mounts(spec).any(|mount| bind_source(mount).is_some() && Options::of(mount).idmap.is_some())
}

/// The source of a bind mount; a path is the host's.
pub(crate) fn bind_source(mount: &Mount) -> Option<&PathBuf> {
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |word: &str| options.iter().any(|option| option == word);
    let bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
    mount.source().as_ref().filter(|_| bind && !has("remount"))
}

fn mount_one(
    launch: &Launch,
    mount: &Mount,
    place: &Place<'_>,
    bound: Option<Bound>,
    unfinished: &mut Unfinished,
) -> Result<(), Report> {
    let spec = &launch.spec;
    let (source, layers) = bound.map_or((None, None), |Bound { source, layers }| (Some(source), layers));
    let mut options = Options::of(mount);
    if options.remount {
        let target = open_in(place.root, mount.destination(), OFlag::O_PATH, Mode::empty())?;
        change(target.as_fd(), &options, mount, place.channel)?;
        return Ok(());
    }
    let typ = mount.typ().as_deref().unwrap_or("bind");
    if source.is_none() && !matches!(typ, "proc" | "sysfs" | "cgroup" | "cgroup2") {
        options.data.extend(label(spec).map(|label| format!("context={label}")));
    }
    let read_only = (options.set | options.set_all).contains(Attr::RDONLY);
    let recursively = options.set_all.contains(Attr::RDONLY);
    let late = source.is_none() && typ == "tmpfs" && read_only;
    let given = source.is_some() && launch.binds.get(mount.destination()).is_some_and(|bind| bind.chown);
    if late || given {
        options.set.remove(Attr::RDONLY);
        options.set_all.remove(Attr::RDONLY);
    }
    let name = mount.source().as_deref().and_then(Path::to_str).unwrap_or(typ);
    let bound = source.is_some();
    let built = match (source, typ) {
        (Some(Source::Clone(clone)), _) => clone,
        (Some(Source::Place(source)), _) => clone_source(spec, mount, &options, source.as_fd())?,
        (None, "proc") => procfs(name, &options, place)?,
        (None, "sysfs") => sysfs(name, &options, place.channel)?,
        (None, "cgroup" | "cgroup2") => cgroupfs(name, &options, place)?,
        (None, "devpts") => devpts(name, &options)?,
        (None, "mqueue") => mqueue(name, &options)?,
        (None, "tmpfs") => tmpfs(name, &options, place.root, mount.destination())?,
        (None, other) => file_system(other, name, &options, options.set).map_err(|error| needs_root(other, error))?,
    };
    if !bound && options.idmap.is_some() {
        return Err(Report::new(Kind::Unsupported, "only bind mounts can be id-mapped"));
    }
    if bound && !options.data.is_empty() {
        let (words, on) = (options.data.join(","), mount.destination().display());
        place.channel.notice(format!("mount on {on}: {words:?} says nothing to a bind mount, and is ignored"));
    }
    let target = target(place.root, mount.destination(), &built, typ)?;
    let built = match layers {
        Some(layers) => above(built.as_fd(), &layers, target.as_fd())?,
        None => built,
    };
    if bound || !options.set_all.is_empty() || !options.clear_all.is_empty() {
        change(built.as_fd(), &options, mount, place.channel)?;
    }
    if options.copy_up {
        copy::tree(target.as_fd(), built.as_fd()).step(|| "copying what the tmpfs covers".to_owned())?;
    }
    sys::step();
    attach(built.as_fd(), target.as_fd())?;
    sys::step();
    for (propagation, recursive) in &options.propagation {
        Change::set(Attr::empty()).propagation(*propagation).apply(built.as_fd(), *recursive)?;
    }
    if given {
        let destination = mount.destination().clone();
        unfinished.given.push(Given { destination, mount: built, read_only: read_only.then_some(recursively) });
    } else if late {
        unfinished.late.push(built);
    }
    Ok(())
}

/// An overlayfs that takes the writes to a bind source.
fn above(source: BorrowedFd<'_>, layers: &Layers, target: BorrowedFd<'_>) -> Result<OwnedFd, Report> {
    rootfs::overlay_above(source, layers, target, false).map_err(|error| {
        Report::from(error)
            .with_step("keeping writes from the source (cow)")
            .with_hint("the source and the data directory must lie on file systems that overlayfs can stand on")
    })
}

/// Sets and clears attributes of a mount that exists. What the host has locked in its own mount cannot be cleared in a
/// user namespace (mount_namespaces(7)): then it is kept, and told.
fn change(mount: BorrowedFd<'_>, options: &Options, of: &Mount, channel: &Channel) -> Result<(), Report> {
    for (set, clear, recursive) in [(options.set, options.clear, false), (options.set_all, options.clear_all, true)] {
        if !set.is_empty() {
            set_attributes(mount, set, recursive, of, channel)?;
        }
        let clear = if recursive { clear } else { clear & present(mount)? };
        if clear.is_empty() {
            continue;
        }
        match Change::set(Attr::empty()).clear(clear).apply(mount, recursive) {
            Err(error) if error.errno() == Errno::EPERM => channel.notice(format!(
                "mount on {}: the host's mount is {clear:?} and this cannot be taken away without root",
                of.destination().display()
            )),
            result => result?,
        }
    }
    Ok(())
}

/// How access times are kept is locked in a mount of the host's, unlike what only takes rights away.
fn set_attributes(
    mount: BorrowedFd<'_>,
    set: Attr,
    recursive: bool,
    of: &Mount,
    channel: &Channel,
) -> Result<(), SysError> {
    let times = Attr::NOATIME | Attr::STRICTATIME | Attr::NODIRATIME;
    match Change::set(set).apply(mount, recursive) {
        Err(error) if error.errno() == Errno::EPERM && set.intersects(times) => {
            channel.notice(format!(
                "mount on {}: how the host's mount keeps access times cannot be changed without root",
                of.destination().display()
            ));
            let rest = set - times;
            if rest.is_empty() { Ok(()) } else { Change::set(rest).apply(mount, recursive) }
        }
        result => result,
    }
}

/// The attributes that a mount has, of those that a word can clear.
fn present(mount: BorrowedFd<'_>) -> Result<Attr, SysError> {
    // statvfs(3) does not tell these.
    Ok(attributes(mount)? | Attr::STRICTATIME | Attr::NOSYMFOLLOW)
}

/// Shifts the owners of a mount by its own mappings, or else by the container's.
fn id_map(spec: &Spec, mount: &Mount, built: BorrowedFd<'_>, recursive: bool) -> Result<(), Report> {
    let own = mount.uid_mappings().as_ref().zip(mount.gid_mappings().as_ref());
    let linux = spec.linux().as_ref();
    let of_container = || linux.and_then(|linux| linux.uid_mappings().as_ref().zip(linux.gid_mappings().as_ref()));
    let (uids, gids) = own.or_else(of_container).ok_or_else(|| {
        Report::new(Kind::Usage, "an id-mapped mount needs uidMappings and gidMappings, its own or the container's")
    })?;
    let namespace = crate::outer::namespace_of(&extents(uids), &extents(gids))?;
    Change::set(Attr::empty()).idmap(namespace.as_fd()).apply(built, recursive).map_err(|error| {
        let refused = matches!(error.errno(), Errno::EPERM | Errno::EINVAL);
        let report = Report::from(error);
        if refused {
            report.with_hint(
                "owners can be shifted by who has CAP_SYS_ADMIN where the file system was mounted, and on file systems \
                 that support it",
            )
        } else {
            report
        }
    })
}

/// The specification's mappings as the kernel's.
pub fn extents(mappings: &[oci_spec::runtime::LinuxIdMapping]) -> sys::namespace::IdMap {
    let extent = |mapping: &oci_spec::runtime::LinuxIdMapping| sys::namespace::Extent {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        size: mapping.size(),
    };
    mappings.iter().map(extent).collect()
}

/// Opens the mount point inside the root, making it as a file or a directory like the source. `/proc` and `/sys` must
/// be real directories: an image that has links there would redirect later writes (CVE-2023-27561).
fn target(root: BorrowedFd<'_>, path: &Path, built: &OwnedFd, typ: &str) -> Result<OwnedFd, Report> {
    let stat = fstat(built).call(|| "fstat(mount)".to_owned())?;
    let directory = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
    let target = match (typ, directory) {
        ("proc" | "sysfs", _) => unlinked(root, path, true)?,
        (_, true) => make_dirs_in(root, path)?,
        (_, false) => make_file_in(root, path)?,
    };
    let stat = fstat(&target).call(|| "fstat(mount point)".to_owned())?;
    let target_is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
    if target_is_directory != directory {
        let message = "not a directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the \
                       specified host path exists and is the expected type";
        return Err(Report::new(Kind::CommandNotFound, message));
    }
    Ok(target)
}

/// Opens a mount point that must be no link, making it when missing. It is looked up once: a second look could see what
/// somebody has put there meanwhile.
pub(crate) fn unlinked(root: BorrowedFd<'_>, path: &Path, directory: bool) -> Result<OwnedFd, Report> {
    let look = || open_in(root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty());
    let make = || if directory { make_dirs_in(root, path) } else { make_file_in(root, path) };
    let found = match look() {
        Err(error) if error.errno() == Errno::ENOENT => make().and_then(|_| look())?,
        found => found?,
    };
    let kind = fstat(&found).call(|| "fstat(mount point)".to_owned())?.st_mode & SFlag::S_IFMT.bits();
    if kind == SFlag::S_IFDIR.bits() && directory || kind != SFlag::S_IFLNK.bits() && !directory {
        return Ok(found);
    }
    let wanted = if directory { "is no directory" } else { "is a link" };
    Err(Report::new(Kind::Denied, format!("the image has something that {wanted} at {}", path.display())))
}

fn file_system(typ: &str, source: &str, options: &Options, attr: Attr) -> Result<OwnedFd, SysError> {
    let context = FsContext::open(&c_string(typ)?)?;
    context.set(c"source", &c_string(source)?)?;
    for option in &options.data {
        match option.split_once('=') {
            Some((key, value)) => context.set(&c_string(key)?, &c_string(value)?)?,
            None => context.set_flag(&c_string(option)?)?,
        }
    }
    context.mount(attr)
}

fn needs_root(typ: &str, error: SysError) -> Report {
    let hint = match error.errno() {
        Errno::EPERM => Some(format!("a mount of type {typ:?} is not possible in a user namespace")),
        Errno::ENODEV => Some(format!("the kernel does not know the file system {typ:?}")),
        _ => None,
    };
    let report = Report::from(error);
    match hint {
        Some(hint) => report.with_hint(hint),
        None => report,
    }
}

/// What helps when the kernel refuses a new procfs.
pub(crate) const PROC_IS_MASKED: &str =
    "the surrounding container masks /proc; unmask it there (--security-opt unmask=ALL)";

/// A new procfs of the container's pid namespace. The kernel refuses it where the surrounding procfs has masks. Where
/// the pid namespace is the host's and not ours, so is its `/proc`.
fn procfs(name: &str, options: &Options, place: &Place<'_>) -> Result<OwnedFd, Report> {
    match file_system("proc", name, options, options.set) {
        Err(error) if error.errno() == Errno::EPERM && !place.own_pids => Ok(host("/proc", options.set)?),
        Err(error) => {
            let masked = error.errno() == Errno::EPERM;
            let report = Report::from(error);
            Err(if masked { report.with_hint(PROC_IS_MASKED) } else { report })
        }
        Ok(mounted) => Ok(mounted),
    }
}

/// A new sysfs when the container owns its network namespace, else the host's, recursively and read-only.
fn sysfs(name: &str, options: &Options, channel: &Channel) -> Result<OwnedFd, SysError> {
    match file_system("sysfs", name, options, options.set) {
        Err(error) if error.errno() == Errno::EPERM => host("/sys", options.set | Attr::RDONLY),
        Err(error) => {
            channel.notice(format!("sysfs: not mounted: {error}: {}", error.cause));
            Err(error)
        }
        mounted => mounted,
    }
}

/// The message queues of the container's ipc namespace, or the host's where it has none of its own.
fn mqueue(name: &str, options: &Options) -> Result<OwnedFd, SysError> {
    match file_system("mqueue", name, options, options.set) {
        Err(error) if error.errno() == Errno::EPERM => host("/dev/mqueue", options.set),
        Ok(mounted) => {
            // Its directory belongs to who made the namespace, the caller, and that may be another user inside. One that
            // is joined may be another's altogether, and stays so.
            let (root, flags) = (nix::unistd::Uid::from_raw(0), nix::fcntl::AtFlags::AT_EMPTY_PATH);
            let _ = nix::unistd::fchownat(&mounted, "", Some(root), Some(nix::unistd::Gid::from_raw(0)), flags);
            Ok(mounted)
        }
        Err(error) => Err(error),
    }
}

/// A tmpfs, which has the mode of the directory that it covers where nothing else is said, as with runc.
fn tmpfs(name: &str, options: &Options, root: BorrowedFd<'_>, covers: &Path) -> Result<OwnedFd, SysError> {
    let mut options = options.clone();
    if !options.data.iter().any(|option| option.starts_with("mode="))
        && let Ok(directory) = open_in(root, covers, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
    {
        let mode = fstat(&directory).call(|| format!("fstat({covers:?})"))?.st_mode & 0o7777;
        options.data.push(format!("mode={mode:o}"));
    }
    file_system("tmpfs", name, &options, options.set)
}

/// A devpts of its own. A group that is not mapped cannot own its terminals: Linux 6.15 refuses that at another step
/// than kernels before, so the option is left out by what the map says and not by the error.
fn devpts(name: &str, options: &Options) -> Result<OwnedFd, Report> {
    let map = sys::file::read_text("/proc/self/gid_map").call(|| "read(/proc/self/gid_map)".to_owned())?;
    let unmapped = |option: &String| {
        option.strip_prefix("gid=").and_then(|gid| gid.parse().ok()).is_some_and(|gid| !sys::namespace::maps(&map, gid))
    };
    let mut fitting = options.clone();
    fitting.data.retain(|option| !unmapped(option));
    Ok(file_system("devpts", name, &fitting, options.set)?)
}

/// A clone of what the host has at `path`, with everything below, that mount events of the host still reach.
fn host(path: &str, attr: Attr) -> Result<OwnedFd, SysError> {
    let fd = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?}, O_PATH)"))?;
    let clone = clone_mount(fd.as_fd(), sys::path::SELF, true)?;
    Change::set(attr).propagation(Propagation::Slave).apply(clone.as_fd(), true)?;
    Ok(clone)
}

/// cgroup2 rooted at the container's own cgroup. A user namespace without a cgroup namespace of its own cannot mount it, and
/// gets the host's, as with runc and crun: what its `/proc/self/cgroup` names lies there. Where the host has none to give it
/// is an empty read-only directory.
fn cgroupfs(name: &str, options: &Options, place: &Place<'_>) -> Result<OwnedFd, SysError> {
    let plain = Options { data: Vec::new(), ..options.clone() };
    match file_system("cgroup2", name, &plain, options.set) {
        Err(error) if matches!(error.errno(), Errno::EPERM | Errno::EBUSY | Errno::ENODEV) => {
            if !place.own_cgroups && statfs(CGROUPS).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC) {
                return host(CGROUPS, options.set);
            }
            let text = format!("cgroup file system: cannot be mounted ({}); /sys/fs/cgroup is empty", error.cause);
            place.channel.notice(text);
            file_system("tmpfs", "tmpfs", &plain, options.set | Attr::RDONLY)
        }
        mounted => mounted,
    }
}

/// A mount's options, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Of the mount itself.
    set: Attr,
    clear: Attr,
    /// Of the mount and all below it: `rro`, `rnosuid` and their kind.
    set_all: Attr,
    clear_all: Attr,
    /// With everything that is mounted below the source.
    recursive: bool,
    /// Each applied in turn: to the mount, or with `true` to all below it as well.
    propagation: Vec<(Propagation, bool)>,
    /// Changes the mount that is there instead of making one.
    remount: bool,
    /// A tmpfs begins with what it covers.
    copy_up: bool,
    /// Owners are shifted, below the mount as well with `true`.
    idmap: Option<bool>,
    /// For the file system.
    data: Vec<String>,
}

impl Options {
    /// The words of the runtime specification (config-linux.md, "Mount options"); the rest goes to the file system.
    pub(crate) fn of(mount: &Mount) -> Self {
        let mut parsed = Options {
            set: Attr::empty(),
            clear: Attr::empty(),
            set_all: Attr::empty(),
            clear_all: Attr::empty(),
            recursive: false,
            propagation: Vec::new(),
            remount: false,
            copy_up: false,
            idmap: None,
            data: Vec::new(),
        };
        for option in mount.options().iter().flatten() {
            parsed.add(option);
        }
        if parsed.idmap.is_none() && mount.uid_mappings().is_some() {
            parsed.idmap = Some(false);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        if let Some((attr, on)) = attribute(option) {
            turn(&mut self.set, &mut self.clear, attr, on);
            return;
        }
        if let Some((attr, on)) = option.strip_prefix('r').and_then(attribute) {
            turn(&mut self.set_all, &mut self.clear_all, attr, on);
            return;
        }
        if let Some(propagation) = propagation(option) {
            self.propagation.push((propagation, false));
            return;
        }
        if let Some(propagation) = option.strip_prefix('r').and_then(propagation) {
            self.propagation.push((propagation, true));
            return;
        }
        match option {
            "rbind" => self.recursive = true,
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            // What is the default, or means nothing to a mount that a user may make.
            "bind" | "defaults" | "silent" | "loud" | "iversion" | "noiversion" | "nolazytime" | "nomand" | "async" => {
            }
            other => self.data.push(other.to_owned()),
        }
    }
}

fn turn(set: &mut Attr, clear: &mut Attr, attr: Attr, on: bool) {
    let (to, from) = if on { (set, clear) } else { (clear, set) };
    to.insert(attr);
    from.remove(attr);
}

/// The attribute that a word of mount(8) sets (true) or clears.
fn attribute(word: &str) -> Option<(Attr, bool)> {
    Some(match word {
        "ro" => (Attr::RDONLY, true),
        "rw" => (Attr::RDONLY, false),
        "nosuid" => (Attr::NOSUID, true),
        "suid" => (Attr::NOSUID, false),
        "nodev" => (Attr::NODEV, true),
        "dev" => (Attr::NODEV, false),
        "noexec" => (Attr::NOEXEC, true),
        "exec" => (Attr::NOEXEC, false),
        "noatime" => (Attr::NOATIME, true),
        "atime" => (Attr::NOATIME, false),
        "strictatime" => (Attr::STRICTATIME, true),
        "nostrictatime" => (Attr::STRICTATIME, false),
        // The kernel's default, which is no bit but a value of the field.
        "relatime" => (Attr::NOATIME | Attr::STRICTATIME, false),
        "norelatime" => (Attr::empty(), false),
        "nodiratime" => (Attr::NODIRATIME, true),
        "diratime" => (Attr::NODIRATIME, false),
        "nosymfollow" => (Attr::NOSYMFOLLOW, true),
        "symfollow" => (Attr::NOSYMFOLLOW, false),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<Propagation> {
    Some(match word {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        let mut mount = Mount::default();
        mount.set_options(Some(words.iter().map(|word| (*word).to_owned()).collect()));
        Options::of(&mount)
    }

    #[test]
    fn recursive_words_are_apart_from_plain_ones() {
        let parsed = options(&["rbind", "ro", "rnosuid", "rprivate", "slave", "mode=755"]);
        assert!(parsed.recursive);
        assert_eq!((parsed.set, parsed.set_all), (Attr::RDONLY, Attr::NOSUID));
        assert_eq!(parsed.propagation, [(Propagation::Private, true), (Propagation::Slave, false)]);
        assert_eq!(parsed.data, ["mode=755"]);
    }

    #[test]
    fn the_last_of_two_opposite_words_counts() {
        assert_eq!(options(&["ro", "rw"]).set, Attr::empty());
        assert_eq!(options(&["ro", "rw"]).clear, Attr::RDONLY);
        assert_eq!(options(&["rw", "ro"]).clear, Attr::empty());
        assert_eq!(options(&["rrw", "rro"]).set_all, Attr::RDONLY);
    }

    #[test]
    fn words_that_begin_with_r_are_no_recursive_ones() {
        let parsed = options(&["relatime", "remount", "rw", "ro"]);
        assert!(parsed.remount);
        assert_eq!((parsed.set_all, parsed.clear_all), (Attr::empty(), Attr::empty()));
        assert_eq!(options(&["rrelatime"]).clear_all, Attr::NOATIME | Attr::STRICTATIME);
    }
}
