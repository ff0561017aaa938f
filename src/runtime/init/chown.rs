//! Giving volumes to the payload's user (`-v …:U`), as root inside.
//!
//! What is in a volume is hostile: it is walked from the descriptor that its mount has had since it was made, each entry is
//! changed by a descriptor of its own, no link is followed, and what is mounted below is left alone, whatever file system that
//! is on. What belongs to that user already is not touched, so a second start is a walk. A mount that is to be read-only
//! becomes so afterwards.
//!
//! Others may nest directories deeper than there are descriptors: the walk has one open directory and goes up by `..`.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Context, Report};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, fchownat};
use sys::mount::{Attr, Change};
use sys::{Call, Errno, SysError};

use crate::init::mounts::Given;
use crate::init::user::Identity;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Gives away the volumes that are to be.
pub fn volumes(given: &[Given], to: &Identity) -> Result<(), Report> {
    for volume in given {
        give(volume.mount.as_fd(), to)
            .step(|| format!("giving {} to {}:{} (U)", volume.destination.display(), to.uid, to.gid))?;
        if let Some(recursive) = volume.read_only {
            Change::set(Attr::RDONLY).apply(volume.mount.as_fd(), recursive)?;
        }
    }
    Ok(())
}

/// A directory between the top and where the walk is.
struct Above {
    stat: FileStat,
    names: Vec<CString>,
}

fn give(top: BorrowedFd<'_>, to: &Identity) -> Result<(), SysError> {
    let mut here_stat = fstat(top).call(|| "fstat(volume)".to_owned())?;
    own(top, c"", &here_stat, to)?;
    if !is_directory(&here_stat) {
        return Ok(());
    }
    let mut here = openat(top, ".", DIRECTORY, Mode::empty()).call(|| "open(volume)".to_owned())?;
    let mut names = names_of(&here)?;
    let mut above: Vec<Above> = Vec::new();
    loop {
        if let Some(name) = names.pop() {
            let Some(entry) = below(here.as_fd(), &name)? else { continue };
            let stat = fstat(&entry).call(|| format!("fstat({name:?})"))?;
            own(entry.as_fd(), &name, &stat, to)?;
            if is_directory(&stat) {
                here = openat(&entry, ".", DIRECTORY, Mode::empty()).call(|| format!("open({name:?})"))?;
                let names = std::mem::replace(&mut names, names_of(&here)?);
                above.push(Above { stat: std::mem::replace(&mut here_stat, stat), names });
            }
        } else {
            let Some(up) = above.pop() else { return Ok(()) };
            here = openat(&here, "..", DIRECTORY, Mode::empty()).call(|| "open(..)".to_owned())?;
            let stat = fstat(&here).call(|| "fstat(..)".to_owned())?;
            if (stat.st_dev, stat.st_ino) != (up.stat.st_dev, up.stat.st_ino) {
                return Err(SysError::new("a directory was moved while it was walked", Errno::EAGAIN));
            }
            (names, here_stat) = (up.names, up.stat);
        }
    }
}

/// An entry itself; `None` where something is mounted on it, or it has gone.
fn below(here: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, SysError> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    match openat2(here, name, how.resolve(ResolveFlag::RESOLVE_NO_XDEV)) {
        Err(Errno::EXDEV | Errno::ENOENT) => Ok(None),
        opened => opened.map(Some).call(|| format!("openat2({name:?}, RESOLVE_NO_XDEV)")),
    }
}

fn names_of(dir: &OwnedFd) -> Result<Vec<CString>, SysError> {
    let copy = dir.try_clone().call(|| "dup(directory)".to_owned())?;
    let mut listing = Dir::from_fd(copy).call(|| "fdopendir(directory)".to_owned())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.call(|| "readdir()".to_owned())?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

fn own(entry: BorrowedFd<'_>, name: &CStr, stat: &FileStat, to: &Identity) -> Result<(), SysError> {
    if (stat.st_uid, stat.st_gid) == (to.uid, to.gid) {
        return Ok(());
    }
    fchownat(entry, c"", Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)), AtFlags::AT_EMPTY_PATH)
        .call(|| format!("fchownat({name:?}, {}:{})", to.uid, to.gid))
}
