//! Open-file-description locks on whole files: they belong to the open file, so they end when its last descriptor is
//! closed, by its process or by its death. Over NFS the server keeps them (fcntl(2), "Open file description locks").

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Call, Result};

/// An exclusive lock on the whole file, whatever its length.
const WHOLE: libc::flock = libc::flock {
    l_type: libc::F_WRLCK as libc::c_short,
    l_whence: libc::SEEK_SET as libc::c_short,
    l_start: 0,
    l_len: 0,
    l_pid: 0,
};

/// Waits until the exclusive lock is ours. The file must be open for writing; `path` names it in the error.
pub fn exclusive(file: impl AsFd, path: &Path) -> Result<()> {
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLKW(&WHOLE)) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop).call(|| format!("fcntl({}, F_OFD_SETLKW, F_WRLCK)", path.display())),
        }
    }
}

/// Waits until a shared lock is ours, which keeps exclusive ones away. The file must be open for reading.
pub fn shared(file: impl AsFd, path: &Path) -> Result<()> {
    let shared = libc::flock { l_type: libc::F_RDLCK as libc::c_short, ..WHOLE };
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLKW(&shared)) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop).call(|| format!("fcntl({}, F_OFD_SETLKW, F_RDLCK)", path.display())),
        }
    }
}

/// Takes the exclusive lock if nobody has it; `false` if someone has. The file must be open for writing.
pub fn try_exclusive(file: impl AsFd, path: &Path) -> Result<bool> {
    attempt(file, &WHOLE).call(|| format!("fcntl({}, F_OFD_SETLK, F_WRLCK)", path.display()))
}

/// Gives the lock up, also where a child has inherited the descriptor.
pub fn release(file: impl AsFd, path: &Path) -> Result<()> {
    let none = libc::flock { l_type: libc::F_UNLCK as libc::c_short, ..WHOLE };
    attempt(file, &none).map(drop).call(|| format!("fcntl({}, F_OFD_SETLK, F_UNLCK)", path.display()))
}

/// Whether nobody has the exclusive lock; takes a shared one then. The file may be open for reading only.
pub fn is_free(file: impl AsFd, path: &Path) -> Result<bool> {
    let shared = libc::flock { l_type: libc::F_RDLCK as libc::c_short, ..WHOLE };
    attempt(file, &shared).call(|| format!("fcntl({}, F_OFD_SETLK, F_RDLCK)", path.display()))
}

fn attempt(file: impl AsFd, lock: &libc::flock) -> nix::Result<bool> {
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(lock)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno),
    }
}
