//! Names of the UTS namespace, and the paths of `/proc` and `/sys` that are hidden or made read-only.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use base::{Context, Report};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use oci_spec::runtime::Spec;
use sys::mount::{Attr, Change, FsContext, attach, clone_mount};
use sys::path::{SELF, open_in};
use sys::{Call, Errno, SysError};

use crate::init::devices::open_host;
use crate::init::mounts::label;
use crate::init::rootfs::c_string;

/// Sets host name and domain name.
pub fn names(spec: &Spec) -> Result<(), Report> {
    if let Some(name) = spec.hostname() {
        nix::unistd::sethostname(name).call(|| format!("sethostname({name:?})"))?;
    }
    if let Some(name) = spec.domainname() {
        sys::namespace::set_domain_name(name)?;
    }
    Ok(())
}

/// Hides `maskedPaths` and protects `readonlyPaths`; what does not exist needs neither.
pub fn apply(spec: &Spec, root: BorrowedFd<'_>) -> Result<(), Report> {
    let linux = spec.linux().as_ref();
    for path in linux.and_then(|linux| linux.readonly_paths().as_ref()).into_iter().flatten() {
        protect(root, Path::new(path)).step(|| format!("making {path} read-only"))?;
    }
    let masked: Vec<&String> = linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten().collect();
    if masked.is_empty() {
        return Ok(());
    }
    // One device and one empty directory serve all masks: each is cloned from a descriptor that was verified.
    let null = open_host(Path::new("/dev/null"), SFlag::S_IFCHR, 1, 3)?;
    let empty = FsContext::open(c"tmpfs")?;
    empty.set(c"source", c"tmpfs")?;
    empty.set(c"nr_inodes", c"2")?;
    if let Some(label) = label(spec) {
        empty.set(c"context", &c_string(label)?)?;
    }
    let empty = empty.mount(Attr::RDONLY | Attr::NOSUID | Attr::NODEV | Attr::NOEXEC)?;
    let mut attached = false;
    for path in masked {
        hide(root, Path::new(path), null.as_fd(), empty.as_fd(), &mut attached).step(|| format!("masking {path}"))?;
    }
    Ok(())
}

fn protect(root: BorrowedFd<'_>, path: &Path) -> Result<(), SysError> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let clone = clone_mount(target.as_fd(), SELF, true)?;
    Change::set(Attr::RDONLY).apply(clone.as_fd(), true)?;
    attach(clone.as_fd(), target.as_fd())
}

/// The first directory gets the empty tmpfs itself (a detached mount cannot be cloned before Linux 6.15), the others
/// clones of it.
fn hide(
    root: BorrowedFd<'_>,
    path: &Path,
    null: BorrowedFd<'_>,
    empty: BorrowedFd<'_>,
    attached: &mut bool,
) -> Result<(), SysError> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let directory =
        fstat(&target).call(|| format!("fstat({path:?})"))?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
    if !directory {
        let clone = clone_mount(null, SELF, false)?;
        // It is the host's node, whose mode and owner root of the host could change; a device takes writes all the same.
        Change::set(Attr::RDONLY).apply(clone.as_fd(), false)?;
        return attach(clone.as_fd(), target.as_fd());
    }
    if *attached {
        let clone = clone_mount(empty, SELF, false)?;
        return attach(clone.as_fd(), target.as_fd());
    }
    *attached = true;
    attach(empty, target.as_fd())
}

fn existing(root: BorrowedFd<'_>, path: &Path) -> Result<Option<std::os::fd::OwnedFd>, SysError> {
    match open_in(root, path, OFlag::O_PATH, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}
