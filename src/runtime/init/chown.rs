//! Giving volumes to the payload's user (`-v …:U`), as root inside.
//!
//! What is in a volume is hostile: every step is by descriptor, follows no link and stays on the volume's own file system.
//! What belongs to that user already is not touched, so a second start is a walk.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use base::{Context, Kind, Report};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{Gid, Uid, fchownat};
use sys::path::open_in;
use sys::{Call, SysError};

use crate::init::user::Identity;
use crate::launch::Launch;

/// The deepest directory that is given away; each level holds a descriptor.
const DEPTH_MAX: usize = 256;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Gives away the volumes that are to be. The root directory is the container's.
pub fn volumes(launch: &Launch, to: &Identity) -> Result<(), Report> {
    for (destination, _) in launch.binds.iter().filter(|(_, bind)| bind.chown) {
        give(destination, to).step(|| format!("giving {} to {}:{} (U)", destination.display(), to.uid, to.gid))?;
    }
    Ok(())
}

fn give(destination: &Path, to: &Identity) -> Result<(), Report> {
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(/, O_PATH)".to_owned())?;
    let top = open_in(root.as_fd(), destination, OFlag::O_PATH, Mode::empty())?;
    let stat = nix::sys::stat::fstat(&top).call(|| "fstat(volume)".to_owned())?;
    own(top.as_fd(), c"", &stat, to, AtFlags::AT_EMPTY_PATH)?;
    if is_directory(&stat) {
        let dir = openat(&top, ".", DIRECTORY, Mode::empty()).call(|| "open(volume)".to_owned())?;
        below(Dir::from_fd(dir).call(|| "fdopendir(volume)".to_owned())?, stat.st_dev, to, DEPTH_MAX)?;
    }
    Ok(())
}

fn below(mut dir: Dir, device: u64, to: &Identity, depth: usize) -> Result<(), Report> {
    if depth == 0 {
        return Err(Report::new(Kind::Unsupported, format!("directories deeper than {DEPTH_MAX} levels")));
    }
    let here = dir.as_fd().try_clone_to_owned().call(|| "dup(directory)".to_owned())?;
    for entry in dir.iter() {
        let entry = entry.call(|| "readdir()".to_owned())?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let stat = fstatat(&here, name, flags).call(|| format!("fstatat({name:?})"))?;
        if stat.st_dev != device {
            continue;
        }
        own(here.as_fd(), name, &stat, to, flags)?;
        if is_directory(&stat) {
            let next = openat(&here, name, DIRECTORY, Mode::empty()).call(|| format!("openat({name:?})"))?;
            below(Dir::from_fd(next).call(|| format!("fdopendir({name:?})"))?, device, to, depth - 1)?;
        }
    }
    Ok(())
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

fn own(
    dir: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &FileStat,
    to: &Identity,
    flags: AtFlags,
) -> Result<(), SysError> {
    if (stat.st_uid, stat.st_gid) == (to.uid, to.gid) {
        return Ok(());
    }
    fchownat(dir, name, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)), flags)
        .call(|| format!("fchownat({name:?}, {}:{})", to.uid, to.gid))
}
