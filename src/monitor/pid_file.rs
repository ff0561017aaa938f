//! The file for a container's pid that the user has asked for (`--pidfile`).
//!
//! Its directory may be a volume of the container, which is hostile: it is opened once, before the payload runs, and the file
//! appears in it whole, by a rename, so that no link and no pipe that the container puts there leads or holds the monitor.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use sys::{Call, Errno, SysError};

/// A file that holds the pid of a container's first process.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl PidFile {
    /// At this absolute path, whose directory must be there.
    pub fn at(path: &Path) -> Result<Self, SysError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(SysError::new(format!("open({path:?})"), Errno::EISDIR));
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent, flags, Mode::empty()).call(|| format!("open({parent:?})"))?;
        Ok(PidFile { path: path.to_owned(), directory, name: name.to_owned() })
    }

    /// Its path, for who is told of it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the pid, in place of what is there.
    pub fn write(&self, pid: i32) -> Result<(), SysError> {
        let new = format!(".sublet-pid-{:016x}", u64::from_ne_bytes(sys::random()?));
        let (new, directory) = (new.as_str(), self.directory.as_fd());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(directory, new, flags, Mode::from_bits_truncate(0o644)).call(|| format!("open({new:?})"))?;
        let written = File::from(file).write_all(pid.to_string().as_bytes()).call(|| format!("write({new:?})"));
        let named = written.and_then(|()| {
            renameat(directory, new, directory, self.name.as_os_str())
                .call(|| format!("rename({new:?}, {:?})", self.path))
        });
        if named.is_err() {
            // The first failure is the one to tell.
            let _ = unlinkat(directory, new, UnlinkatFlags::NoRemoveDir);
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn neither_a_link_nor_a_pipe_is_written_to() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (path, precious) = (directory.path().join("pid"), directory.path().join("precious"));
        fs::write(&precious, "kept").expect("a file");
        let file = PidFile::at(&path).expect("a directory");
        symlink(&precious, &path).expect("a link");
        file.write(12).expect("a pid");
        assert_eq!(fs::read_to_string(&precious).expect("the other file"), "kept");
        assert_eq!(fs::read_to_string(&path).expect("the pid"), "12");
        fs::remove_file(&path).expect("a removal");
        mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("a pipe");
        file.write(34).expect("a pid");
        assert_eq!(fs::read_to_string(&path).expect("the pid"), "34");
        fs::remove_file(&path).expect("a removal");
        fs::create_dir(&path).expect("a directory");
        assert!(file.write(56).is_err());
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 2, "nothing half is left");
        assert!(PidFile::at(&directory.path().join("none/pid")).is_err() && PidFile::at(Path::new("/")).is_err());
    }
}
