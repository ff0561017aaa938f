//! The running program as a mount of its own that nobody can write to.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Call, Result, SysError};
use crate::mount::{Attr, Change, clone_mount};
use crate::path::{SELF, proc_fd};

/// The running program, by a link that leads to the mount which it was executed from.
pub const EXE: &str = "/proc/self/exe";

/// Clones the mount that the running program lies on, read-only, attached nowhere and in no namespace. The caller must
/// have `CAP_SYS_ADMIN` over its mount namespace.
///
/// In no namespace, because anybody who has `CAP_SYS_ADMIN` over any mount namespace may make a *detached* mount writable
/// again that it has a descriptor of (mount_setattr(2)), and `/proc/PID/exe` gives it one.
///
/// By path, as [`EXE`] leads to the mount of the namespace that the program was executed in, and only one of the caller's
/// own can be cloned; `ESTALE` when the path leads to another file by now.
pub fn read_only_clone() -> Result<OwnedFd> {
    let path = std::fs::read_link(EXE).call(|| format!("readlink({EXE})"))?;
    let fd = nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?}, O_PATH)"))?;
    if !is_running(&fd)? {
        return Err(SysError::new(format!("{} is not the binary that runs", path.display()), Errno::ESTALE));
    }
    let clone = clone_mount(fd.as_fd(), SELF, false)?;
    Change::set(Attr::RDONLY | Attr::NOSUID).apply(clone.as_fd(), false)?;
    // The mount leaves its anonymous namespace when the descriptor that open_tree(2) gave is closed; another one, which
    // only refers to it, keeps it.
    let link = proc_fd(clone.as_fd());
    nix::fcntl::open(link.as_c_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({link:?}, O_PATH)"))
}

/// Whether a descriptor is of the file that the running program was executed from.
pub fn is_running(file: &OwnedFd) -> Result<bool> {
    let stat = nix::sys::stat::fstat(file).call(|| "fstat(binary)".to_owned())?;
    let running = nix::sys::stat::stat(EXE).call(|| format!("stat({EXE})"))?;
    Ok((stat.st_dev, stat.st_ino) == (running.st_dev, running.st_ino))
}
