//! The root file system: overlayfs over the view, or the view itself; and the change of root.

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

use crate::launch::{Launch, Rootfs};

/// The directories that overlayfs writes, on a mount that is attached to nothing yet.
#[derive(Debug)]
pub struct Layers {
    mount: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
}

/// Opens upper and work with the caller's identity: a home directory is often closed to everybody but its owner.
pub fn open_layers(rootfs: &Rootfs) -> Result<Option<Layers>, SysError> {
    const FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
    let Rootfs::Overlay { directory, .. } = rootfs else { return Ok(None) };
    let opened = nix::fcntl::open(directory.as_path(), FLAGS, Mode::empty())
        .call(|| format!("open({directory:?}, O_PATH|O_DIRECTORY)"))?;
    let mount = clone_mount(opened.as_fd(), SELF, false)?;
    // A clone that real root makes is a peer of the host's mount: what is attached on it would appear there too.
    Change::set(Attr::empty()).propagation(Propagation::Private).apply(mount.as_fd(), false)?;
    // On the clone, so that they are in the container's mount namespace when it is attached there.
    let below = |name: &str| {
        nix::fcntl::openat(&mount, name, FLAGS | OFlag::O_NOFOLLOW, Mode::empty())
            .call(|| format!("open({:?}, O_PATH|O_DIRECTORY)", directory.join(name)))
    };
    let (upper, work) = (below("upper")?, below("work")?);
    Ok(Some(Layers { mount, upper, work }))
}

/// Mounts the root file system and returns its root, `O_PATH`.
///
/// It is attached on top of the old root directory, which every process can reach. Paths of the host still work: they
/// begin at the root directory itself, below what is attached on it.
pub fn mount(launch: &Launch, layers: Option<Layers>, view: Option<OwnedFd>) -> Result<OwnedFd, SysError> {
    let view = view.ok_or_else(|| SysError::new("the stage sent no view", Errno::EBADF))?;
    let old_root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(/, O_PATH)".to_owned())?;
    let root = match (&launch.rootfs, layers) {
        (Rootfs::Overlay { volatile, .. }, Some(layers)) => {
            // overlayfs takes only layers that are attached in our own mount namespace, and then has copies of its own.
            attach(layers.mount.as_fd(), old_root.as_fd())?;
            attach(view.as_fd(), layers.work.as_fd())?;
            let overlay = overlay(view.as_fd(), &layers, *volatile)?;
            // Now, since at the pivot only the top of what lies on the old root directory would go.
            umount2(proc_fd(layers.mount.as_fd()).as_c_str(), MntFlags::MNT_DETACH)
                .call(|| "umount2(layers of overlayfs, MNT_DETACH)".to_owned())?;
            overlay
        }
        _ => view,
    };
    attach(root.as_fd(), old_root.as_fd())?;
    let read_only = launch.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false);
    let flags = fstatvfs(&root).call(|| "fstatvfs(root)".to_owned())?.flags();
    if flags.contains(FsFlags::ST_RDONLY) && !read_only {
        return Err(SysError::new("overlayfs mounted itself read-only: the upper directory is not ours", Errno::EROFS));
    }
    Ok(root)
}

/// `mount -t overlay`, unprivileged (Linux 5.11). `xino=on` keeps one st_dev over files and directories.
fn overlay(view: BorrowedFd<'_>, layers: &Layers, volatile: bool) -> Result<OwnedFd, SysError> {
    let context = FsContext::open(c"overlay")?;
    context.set(c"source", c"overlay")?;
    context.set(c"lowerdir", &proc_fd(view))?;
    context.set(c"upperdir", &proc_fd(layers.upper.as_fd()))?;
    context.set(c"workdir", &proc_fd(layers.work.as_fd()))?;
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

/// Makes `root` the root directory and detaches everything that was before: pivot_root(2) onto itself.
pub fn pivot(spec: &Spec, root: BorrowedFd<'_>) -> Result<(), SysError> {
    if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false) {
        Change::set(Attr::RDONLY).apply(root, false)?;
    }
    nix::unistd::fchdir(root).call(|| "fchdir(root)".to_owned())?;
    nix::unistd::pivot_root(".", ".").map_err(|errno| match errno {
        Errno::EINVAL => SysError::new(
            "pivot_root(., .): the host's root is its initial ramdisk, which cannot be left this way",
            Errno::EINVAL,
        ),
        errno => SysError::new("pivot_root(., .)", errno),
    })?;
    umount2(".", MntFlags::MNT_DETACH).call(|| "umount2(old root, MNT_DETACH)".to_owned())?;
    nix::unistd::chdir("/").call(|| "chdir(/)".to_owned())
}

/// A path below the root as the kernel wants it in messages and keys.
pub fn c_string(text: &str) -> Result<CString, SysError> {
    sys::path::c_path(Path::new(text))
}
