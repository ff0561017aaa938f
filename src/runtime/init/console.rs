//! The container's terminal: a pseudo-terminal of its own devpts, whose master goes to the monitor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::Report;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use sys::mount::{attach, clone_mount};
use sys::path::{SELF, open_in};
use sys::{Call, Errno, SysError};

use crate::channel::{Channel, Message};
use crate::init::mounts::unlinked;

/// linux/magic.h.
const DEVPTS_SUPER_MAGIC: FsType = FsType(0x1cd1);

/// Opens a pseudo-terminal inside `root`, shows it as `/dev/console`, sends the master and returns the other end.
pub fn open(root: BorrowedFd<'_>, channel: &Channel) -> Result<OwnedFd, Report> {
    let terminal = open_pair(root, channel)?;
    // Cloning the descriptor's own mount, never a path that the container could replace (CVE-2025-52565).
    let clone = clone_mount(terminal.as_fd(), SELF, false)?;
    // Nor to a place that it names by a link: a mask or a read-only path would come to lie below.
    let target = unlinked(root, Path::new("/dev/console"), false)?;
    attach(clone.as_fd(), target.as_fd())?;
    Ok(terminal)
}

/// Opens a pseudo-terminal of the devpts at `/dev/pts` inside `root`, sends its master, returns the other end.
pub fn open_pair(root: BorrowedFd<'_>, channel: &Channel) -> Result<OwnedFd, Report> {
    let master =
        open_in(root, Path::new("/dev/pts/ptmx"), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW, Mode::empty())?;
    let kind = fstatfs(&master).call(|| "fstatfs(ptmx)".to_owned())?.filesystem_type();
    if kind != DEVPTS_SUPER_MAGIC {
        return Err(SysError::new("/dev/pts/ptmx of the container is not on devpts", Errno::ENOTTY).into());
    }
    sys::terminal::unlock(master.as_fd())?;
    let terminal = sys::terminal::peer(master.as_fd())?;
    channel.send(&Message::Console, Some(master.as_fd()))?;
    Ok(terminal)
}
