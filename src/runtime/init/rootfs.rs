//! The root file system: overlayfs over the view or a tree, the view itself, a copy of the image, or a directory of the host;
//! and the change of root.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use oci_spec::runtime::Spec;
use sys::mount::{Attr, Change, FsContext, Propagation, attach, clone_mount};
use sys::path::{SELF, make_dirs_in, proc_fd};
use sys::{Call, Errno, SysError};

use crate::init::mounts::Source;
use crate::launch::{Launch, Rootfs};

/// What of the root file system is reached with the caller's identity.
#[derive(Debug)]
pub enum Opened {
    /// The directories that overlayfs writes, and a detached mount of the tree below where that is not the view.
    Layers(Layers, Option<OwnedFd>),
    /// The given directory, or a copy of the image.
    Directory(Source),
    /// Nothing; all comes from the stage.
    Nothing,
}

/// The directories that an overlayfs writes, on a mount that is attached to nothing yet.
#[derive(Debug)]
pub struct Layers {
    /// Of both.
    mount: OwnedFd,
    /// Receives the changes.
    upper: OwnedFd,
    /// overlayfs' own.
    work: OwnedFd,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens it with the caller's identity: a home directory is often closed to everybody but its owner.
pub fn open(rootfs: &Rootfs) -> Result<Opened, SysError> {
    match rootfs {
        Rootfs::View => Ok(Opened::Nothing),
        Rootfs::Overlay { directory, lower, .. } => {
            let lower = lower.as_deref().map(open_lower).transpose()?;
            Ok(Opened::Layers(open_layers(directory)?, lower))
        }
        Rootfs::Copy { directory } => Ok(Opened::Directory(Source::Place(open_directory(&directory.join("upper"))?))),
        Rootfs::Directory { path, .. } => Ok(Opened::Directory(Source::Place(open_directory(path)?))),
    }
}

/// As [`open`], for an init that will not have the right to clone it.
pub fn clone(rootfs: &Rootfs) -> Result<Opened, SysError> {
    match open(rootfs)? {
        Opened::Directory(Source::Place(directory)) => {
            Ok(Opened::Directory(Source::Clone(clone_mount(directory.as_fd(), SELF, true)?)))
        }
        opened => Ok(opened),
    }
}

/// Where the root file system will be attached; to be opened in init's own mount namespace, and with the caller's identity.
///
/// On top of the old root directory, which every process can reach. Paths of the host still work: they begin at the root
/// directory itself, below what is attached on it. A bundle's directory is attached where it lies, since hooks that enter
/// the mount namespace look for it there, unless only the caller's rights over files lead to it, which init has not
/// (Podman's `--userns=keep-id`).
pub fn open_place(rootfs: &Rootfs) -> Result<OwnedFd, SysError> {
    let old_root = || nix::fcntl::open("/", DIRECTORY, Mode::empty()).call(|| "open(/, O_PATH)".to_owned());
    match rootfs {
        Rootfs::Directory { path, .. } => match open_directory(path) {
            Err(error) if error.errno() == Errno::EACCES => old_root(),
            place => place,
        },
        Rootfs::View | Rootfs::Overlay { .. } | Rootfs::Copy { .. } => old_root(),
    }
}

/// The directory of a bundle, or a copy of an image. A symbolic link in its place could be changed while we look.
fn open_directory(path: &Path) -> Result<OwnedFd, SysError> {
    nix::fcntl::open(path, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
        .call(|| format!("open({path:?}, O_PATH|O_DIRECTORY|O_NOFOLLOW)"))
}

/// Opens `upper` and `work` of a directory.
pub(super) fn open_layers(directory: &Path) -> Result<Layers, SysError> {
    let opened = nix::fcntl::open(directory, DIRECTORY, Mode::empty())
        .call(|| format!("open({directory:?}, O_PATH|O_DIRECTORY)"))?;
    let mount = clone_mount(opened.as_fd(), SELF, false)?;
    // A clone that real root makes is a peer of the host's mount: what is attached on it would appear there too.
    Change::set(Attr::empty()).propagation(Propagation::Private).apply(mount.as_fd(), false)?;
    // On the clone, so that they are in the container's mount namespace when it is attached there.
    let below = |name: &str| {
        nix::fcntl::openat(&mount, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
            .call(|| format!("open({:?}, O_PATH|O_DIRECTORY)", directory.join(name)))
    };
    let (upper, work) = (below("upper")?, below("work")?);
    Ok(Layers { mount, upper, work })
}

/// A mount, attached to nothing, of a tree that nobody writes to.
fn open_lower(tree: &Path) -> Result<OwnedFd, SysError> {
    let mount = clone_mount(open_directory(tree)?.as_fd(), SELF, false)?;
    Change::set(Attr::RDONLY).propagation(Propagation::Private).apply(mount.as_fd(), false)?;
    Ok(mount)
}

/// Mounts the root file system at the place of [`open_place`] and returns its root, `O_PATH`.
pub fn mount(launch: &Launch, opened: Opened, on: BorrowedFd<'_>, view: Option<OwnedFd>) -> Result<OwnedFd, SysError> {
    let root = match (&launch.rootfs, opened) {
        (rootfs @ (Rootfs::Directory { .. } | Rootfs::Copy { .. }), Opened::Directory(source)) => {
            let clone = match source {
                Source::Place(directory) => clone_mount(directory.as_fd(), SELF, true)?,
                Source::Clone(clone) => clone,
            };
            // Of a copy, as of overlayfs in a user namespace.
            let attributes = if matches!(rootfs, Rootfs::Copy { .. }) { Attr::NODEV } else { Attr::empty() };
            Change::set(attributes).propagation(propagation(&launch.spec)).apply(clone.as_fd(), true)?;
            clone
        }
        (Rootfs::Overlay { volatile, .. }, Opened::Layers(layers, Some(tree))) => {
            overlay_above(tree.as_fd(), &layers, on, *volatile)?
        }
        (rootfs, opened) => {
            let view = view.ok_or_else(|| SysError::new("the stage sent no view", Errno::EBADF))?;
            match (rootfs, opened) {
                (Rootfs::Overlay { volatile, .. }, Opened::Layers(layers, None)) => {
                    overlay_above(view.as_fd(), &layers, on, *volatile)?
                }
                _ => view,
            }
        }
    };
    attach(root.as_fd(), on)?;
    Ok(root)
}

/// An overlayfs of a detached mount below and directories above; meanwhile both are attached at `on`.
pub(super) fn overlay_above(
    lower: BorrowedFd<'_>,
    layers: &Layers,
    on: BorrowedFd<'_>,
    volatile: bool,
) -> Result<OwnedFd, SysError> {
    let Layers { mount, upper, work } = layers;
    // overlayfs takes only layers that are attached in our own mount namespace, and then has copies of its own.
    attach(mount.as_fd(), on)?;
    attach(lower, work.as_fd())?;
    let overlay = overlay(lower, upper.as_fd(), work.as_fd(), volatile);
    // Now, since at the pivot only the top of what lies on the old root directory would go.
    umount2(proc_fd(mount.as_fd()).as_c_str(), MntFlags::MNT_DETACH)
        .call(|| "umount2(layers of overlayfs, MNT_DETACH)".to_owned())?;
    let overlay = overlay?;
    let flags = fstatvfs(&overlay).call(|| "fstatvfs(overlayfs)".to_owned())?.flags();
    if flags.contains(FsFlags::ST_RDONLY) {
        return Err(SysError::new("overlayfs mounted itself read-only: the upper directory is not ours", Errno::EROFS));
    }
    Ok(overlay)
}

fn read_only(spec: &Spec) -> bool {
    spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false)
}

/// How events travel at the container's root, `rootfsPropagation`. What is shared becomes so after the pivot, which
/// refuses shared mounts.
fn propagation(spec: &Spec) -> Propagation {
    match spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()) {
        Some("slave" | "rslave" | "shared" | "rshared") => Propagation::Slave,
        _ => Propagation::Private,
    }
}

/// `mount -t overlay`, unprivileged (Linux 5.11). `xino=on` keeps one st_dev over files and directories.
fn overlay(
    view: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    volatile: bool,
) -> Result<OwnedFd, SysError> {
    let context = FsContext::open(c"overlay")?;
    context.set(c"source", c"overlay")?;
    context.set(c"lowerdir", &proc_fd(view))?;
    context.set(c"upperdir", &proc_fd(upper))?;
    context.set(c"workdir", &proc_fd(work))?;
    context.set_flag(c"userxattr")?;
    context.set(c"xino", c"on")?;
    if volatile {
        context.set_flag(c"volatile")?;
    }
    context.mount(Attr::empty())
}

/// `/etc/mtab`, the link that programs read mounts through, where the image has none: Docker and Podman make it too.
pub fn mtab(root: BorrowedFd<'_>) -> Result<(), SysError> {
    let etc = make_dirs_in(root, Path::new("/etc"))?;
    match nix::unistd::symlinkat("/proc/mounts", etc.as_fd(), "mtab") {
        // A volume over /etc may be read-only, or not be the container's root's.
        Ok(()) | Err(Errno::EEXIST | Errno::EROFS | Errno::EACCES | Errno::EPERM) => Ok(()),
        Err(errno) => Err(SysError::new("symlinkat(\"/proc/mounts\", /etc/mtab)", errno)),
    }
}

/// Makes `root` the root directory and detaches everything that was before: pivot_root(2) onto itself. In a mount
/// namespace that others are in too, their root must stay: only our own is changed, chroot(2).
pub fn pivot(launch: &Launch, root: BorrowedFd<'_>, own_mounts: bool) -> Result<(), SysError> {
    if read_only(&launch.spec) {
        Change::set(Attr::RDONLY).apply(root, false)?;
    }
    nix::unistd::fchdir(root).call(|| "fchdir(root)".to_owned())?;
    if matches!(launch.rootfs, Rootfs::Directory { pivot: false, .. }) {
        return move_root();
    }
    if !own_mounts {
        nix::unistd::chroot(".").call(|| "chroot(.)".to_owned())?;
        return nix::unistd::chdir("/").call(|| "chdir(/)".to_owned());
    }
    nix::unistd::pivot_root(".", ".").map_err(|errno| match errno {
        Errno::EINVAL => SysError::new(
            "pivot_root(., .): the host's root is its initial ramdisk, which cannot be left this way",
            Errno::EINVAL,
        ),
        errno => SysError::new("pivot_root(., .)", errno),
    })?;
    sys::step();
    umount2(".", MntFlags::MNT_DETACH).call(|| "umount2(old root, MNT_DETACH)".to_owned())?;
    if sys::staging::is_used() {
        // That was the staging, which lies on the old root.
        umount2(".", MntFlags::MNT_DETACH).call(|| "umount2(old root, MNT_DETACH)".to_owned())?;
    }
    nix::unistd::chdir("/").call(|| "chdir(/)".to_owned())?;
    share(&launch.spec)
}

/// The way out of an initial ramdisk: the root is moved over `/`, and everything of the host stays below it, unreachable
/// but for a process that may call chroot(2). That is why it has to be asked for.
fn move_root() -> Result<(), SysError> {
    use nix::mount::{MsFlags, mount};
    let none: Option<&str> = None;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).call(|| "mount(., /, MS_MOVE)".to_owned())?;
    nix::unistd::chroot(".").call(|| "chroot(.)".to_owned())?;
    nix::unistd::chdir("/").call(|| "chdir(/)".to_owned())
}

/// The values of `rootfsPropagation` that could not be set before.
fn share(spec: &Spec) -> Result<(), SysError> {
    let wanted = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let (propagation, recursive) = match wanted {
        Some("shared") => (Propagation::Shared, false),
        Some("rshared") => (Propagation::Shared, true),
        Some("unbindable") => (Propagation::Unbindable, false),
        Some("runbindable") => (Propagation::Unbindable, true),
        _ => return Ok(()),
    };
    let root = nix::fcntl::open("/", DIRECTORY, Mode::empty()).call(|| "open(/, O_PATH)".to_owned())?;
    Change::set(Attr::empty()).propagation(propagation).apply(root.as_fd(), recursive)
}

/// A path below the root as the kernel wants it in messages and keys.
pub fn c_string(text: &str) -> Result<CString, SysError> {
    sys::path::c_path(Path::new(text))
}
