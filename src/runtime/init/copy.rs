//! Copying a directory of the image into the tmpfs that will cover it (mount option `tmpcopyup`).
//!
//! The directory is hostile: every step is by descriptor and follows no link; sockets, devices and what the container's
//! root may not read are left out, as they could not be made either.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use base::{Kind, Report};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use sys::{Call, Errno, SysError};

/// The deepest directory that is copied; each level holds two descriptors.
const DEPTH_MAX: usize = 64;

/// Copies all that is in `from` into `to`.
pub fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Report> {
    directory(from, to, DEPTH_MAX)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<(), Report> {
    if depth == 0 {
        return Err(Report::new(Kind::Unsupported, format!("directories deeper than {DEPTH_MAX} levels")));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = Dir::openat(from, ".", flags, Mode::empty()).call(|| "open(directory)".to_owned())?;
    for entry in entries.iter() {
        let entry = entry.call(|| "readdir()".to_owned())?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &std::ffi::CStr, depth: usize) -> Result<(), Report> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW).call(|| format!("fstatat({name:?})"))?;
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            mkdirat(to, name, Mode::S_IRWXU).call(|| format!("mkdirat({name:?})"))?;
            let target = openat(to, name, flags, Mode::empty()).call(|| format!("openat({name:?})"))?;
            if let Some(source) = readable(openat(from, name, flags, Mode::empty())) {
                let source = source.call(|| format!("openat({name:?})"))?;
                directory(source.as_fd(), target.as_fd(), depth - 1)?;
            }
            own(to, name, &stat)?;
            fchmod(&target, mode).call(|| format!("fchmod({name:?})"))?;
        }
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let Some(source) = readable(openat(from, name, flags, Mode::empty())) else { return Ok(()) };
            let source = source.call(|| format!("openat({name:?})"))?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let target = openat(to, name, flags, Mode::S_IRUSR).call(|| format!("openat({name:?}, O_CREAT)"))?;
            let mut target = File::from(target);
            std::io::copy(&mut File::from(source), &mut target).call(|| format!("copy({name:?})"))?;
            own(to, name, &stat)?;
            fchmod(&target, mode).call(|| format!("fchmod({name:?})"))?;
        }
        SFlag::S_IFLNK => {
            let link = readlinkat(from, name).call(|| format!("readlinkat({name:?})"))?;
            symlinkat(link.as_os_str(), to, name).call(|| format!("symlinkat({name:?})"))?;
            own(to, name, &stat)?;
        }
        _ => return Ok(()),
    }
    let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(to, name, &time, &time, UtimensatFlags::NoFollowSymlink).call(|| format!("utimensat({name:?})"))?;
    Ok(())
}

/// `None` for what the container's root may not read.
fn readable<T>(opened: nix::Result<T>) -> Option<nix::Result<T>> {
    (!matches!(opened, Err(Errno::EACCES))).then_some(opened)
}

/// Gives a copy to the owner of the original; one that the container has no id for stays with its root.
fn own(to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &FileStat) -> Result<(), SysError> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(errno) => Err(SysError::new(format!("fchownat({name:?})"), errno)),
    }
}
