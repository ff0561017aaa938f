//! Waiting for a container's processes to be killed for want of memory, and for its end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::container::Container;
use crate::dir::{errno_of, value_of};
use crate::error::CgroupError;

/// An open watch. Poll [`OomWatch::fds`] for `POLLPRI`, then [`OomWatch::read`], which arms it again.
#[derive(Debug)]
pub struct OomWatch {
    path: String,
    /// `memory.events`; none without the controller.
    memory: Option<File>,
    /// `cgroup.events`.
    events: File,
}

/// What a watch has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomState {
    /// Processes killed for want of memory since the cgroup was made; 0 without the controller.
    pub kills: u64,
    /// Whether any process is left. Once none is, nothing more will come.
    pub populated: bool,
}

impl OomWatch {
    pub(crate) fn open(container: &Container) -> Result<Self, CgroupError> {
        let dir = container.directory();
        let open = |name: &str| match dir.file(name, OFlag::O_RDONLY) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(dir.error(format!("open({name:?})"), errno)),
        };
        let events =
            open("cgroup.events")?.ok_or_else(|| dir.error("open(\"cgroup.events\")".to_owned(), Errno::ENOENT))?;
        Ok(OomWatch { path: dir.path.display().to_string(), memory: open("memory.events")?, events })
    }

    /// What to poll for `POLLPRI`.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.memory.iter().chain([&self.events]).map(AsFd::as_fd).collect()
    }

    /// What has happened up to now. A cgroup that is gone has no process.
    pub fn read(&mut self) -> Result<OomState, CgroupError> {
        let path = &self.path;
        let mut text_of = |file: &mut File| {
            let mut text = String::new();
            match file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)) {
                Ok(_) => Ok(text),
                Err(error) if errno_of(&error) == Errno::ENODEV => Ok(String::new()),
                Err(error) => {
                    let source = sys::SysError::new("read(events)", errno_of(&error));
                    Err(CgroupError::File { path: path.clone(), source })
                }
            }
        };
        let memory = self.memory.as_mut().map(&mut text_of).transpose()?.unwrap_or_default();
        let events = text_of(&mut self.events)?;
        Ok(OomState { kills: value_of(&memory, "oom_kill"), populated: value_of(&events, "populated") == 1 })
    }
}
