//! Open-file-description locks: they belong to the open file, so they end when its last descriptor is closed, by its
//! process or by its death. Over NFS the server keeps them (fcntl(2), "Open file description locks").

use std::fs::File;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use sys::{Call, Errno, SysError};

use crate::Result;

/// An exclusive lock on the whole file, whatever its length.
const WHOLE: libc::flock = libc::flock {
    l_type: libc::F_WRLCK as libc::c_short,
    l_whence: libc::SEEK_SET as libc::c_short,
    l_start: 0,
    l_len: 0,
    l_pid: 0,
};

/// Takes the lock if nobody has it; `false` if someone has. The file must be open for writing.
pub(crate) fn try_exclusive(file: &File, path: &Path) -> Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&WHOLE)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(SysError::new(format!("fcntl({}, F_OFD_SETLK, F_WRLCK)", path.display()), errno).into()),
    }
}

/// Whether nobody has the exclusive lock. The file may be open for reading only.
pub(crate) fn is_free(file: &File, path: &Path) -> Result<bool> {
    let shared = libc::flock { l_type: libc::F_RDLCK as libc::c_short, ..WHOLE };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&shared)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(SysError::new(format!("fcntl({}, F_OFD_SETLK, F_RDLCK)", path.display()), errno).into()),
    }
}

/// Waits until the lock is ours.
pub(crate) fn exclusive(file: &File, path: &Path) -> Result<()> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLKW(&WHOLE)) {
            Err(Errno::EINTR) => {}
            other => {
                return Ok(other.map(drop).call(|| format!("fcntl({}, F_OFD_SETLKW, F_WRLCK)", path.display()))?);
            }
        }
    }
}
