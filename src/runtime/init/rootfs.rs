//! The root file system: overlayfs over the view, or the view itself; and the change of root.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::Report;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use oci_spec::runtime::Spec;
use sys::mount::{Attr, Change, FsContext, attach};
use sys::path::{make_dirs_in, proc_fd};
use sys::{Call, Errno, SysError};

use crate::launch::{Launch, Rootfs};

/// What was opened with the caller's identity, in init's own mount namespace.
#[derive(Debug)]
pub struct Base {
    scratch: OwnedFd,
    layers: Option<Layers>,
}

#[derive(Debug)]
struct Layers {
    upper: OwnedFd,
    work: OwnedFd,
}

/// Opens scratch, upper and work directories: a home directory is often closed to everybody but its owner.
pub fn open(launch: &Launch) -> Result<Base, Report> {
    let directory = |path: &Path| {
        nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open({path:?}, O_PATH|O_DIRECTORY)"))
    };
    let layers = match &launch.rootfs {
        Rootfs::Overlay { upper, work, .. } => Some(Layers { upper: directory(upper)?, work: directory(work)? }),
        Rootfs::View => None,
    };
    Ok(Base { scratch: directory(&launch.scratch)?, layers })
}

/// Mounts the root file system on the scratch directory and returns its root, `O_PATH`.
pub fn mount(launch: &Launch, base: Base, view: Option<OwnedFd>) -> Result<OwnedFd, SysError> {
    let view = view.ok_or_else(|| SysError::new("the stage sent no view", Errno::EBADF))?;
    // overlayfs takes only layers that are attached in our own mount namespace, so the view is attached first; it
    // vanishes with the old root at the pivot, while overlayfs keeps its private copy.
    attach(view.as_fd(), base.scratch.as_fd())?;
    let root = match (&launch.rootfs, base.layers) {
        (Rootfs::Overlay { volatile, .. }, Some(layers)) => {
            let overlay = overlay(view.as_fd(), &layers, *volatile)?;
            attach(overlay.as_fd(), view.as_fd())?;
            overlay
        }
        _ => view,
    };
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
