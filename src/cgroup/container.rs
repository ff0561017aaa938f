//! The container's cgroup: limits, freezing, killing, events, removal.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use sys::SysError;

use crate::dir::{Dir, value_of};
use crate::error::CgroupError;
use crate::limits::Limits;

/// How long freezing and killing may take until they count as failed.
const LIMIT: Duration = Duration::from_secs(2);

/// The cgroup of one container.
#[derive(Debug)]
pub struct Container {
    parent: Dir,
    name: String,
    dir: Dir,
}

/// What a container uses now; `None` where the controller is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
    /// Processor time since the container started, microseconds.
    pub cpu_us: Option<u64>,
}

impl Container {
    /// Makes the cgroup and writes the limits; it is removed again when that fails.
    pub(crate) fn create(parent: Dir, name: String, limits: &Limits) -> Result<Self, CgroupError> {
        let dir = parent.make_child(&name)?;
        let container = Container { parent, name, dir };
        match container.limit(limits) {
            Ok(()) => Ok(container),
            Err(error) => {
                // The refused limit is what the user must hear about.
                let _ = container.remove();
                Err(error)
            }
        }
    }

    /// Opens the cgroup that a record names.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let parent = Dir::open(path.parent().unwrap_or(path))?;
        let dir = parent.child(&name)?;
        Ok(Container { parent, name, dir })
    }

    /// Writes limits. A limit that was asked for and cannot be set is an error by its option's name.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        for setting in limits.settings() {
            match (self.dir.put(setting.file, &setting.value), setting.option) {
                (Ok(()), _) | (Err(_), None) => {}
                (Err(Errno::ENOENT), _) if setting.absent_is_same => {}
                // cgroupfs refuses to create files: a missing one is EACCES or EPERM for some callers.
                (Err(Errno::ENOENT | Errno::EACCES | Errno::EPERM), Some(option)) => {
                    return Err(self.missing(option, setting.controller));
                }
                (Err(errno), Some(option)) => {
                    let source = SysError::new(format!("write({:?})", setting.file), errno);
                    return Err(CgroupError::Value { option, file: setting.file, value: setting.value, source });
                }
            }
        }
        Ok(())
    }

    /// Why a controller is not here: the cgroup above has it and cannot give it on, or has none.
    fn missing(&self, option: &'static str, controller: &'static str) -> CgroupError {
        let above = self.parent.read("cgroup.controllers").unwrap_or_default();
        if above.split_whitespace().any(|name| name == controller) {
            return CgroupError::Occupied { option, controller, path: self.parent.path.display().to_string() };
        }
        CgroupError::NotDelegated { option, controller, path: self.dir.path.display().to_string() }
    }

    /// The directory to be born in (`CLONE_INTO_CGROUP`).
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.fd()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Kills every process, those being born included, and waits until they are gone. Needs Linux 5.14 for one call;
    /// older kernels freeze, kill one by one and thaw.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.dir.put("cgroup.kill", "1") {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::EACCES | Errno::EPERM) => self.kill_one_by_one()?,
            Err(_) => self.dir.write("cgroup.kill", "1")?, // words the error
        }
        if self.wait_for("populated", 0)? {
            Ok(())
        } else {
            let path = self.dir.path.display().to_string();
            Err(CgroupError::Survivors { path, waited_ms: LIMIT.as_millis() as u64 })
        }
    }

    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        self.dir.write("cgroup.freeze", "1")?;
        let processes = self.dir.processes();
        for pid in processes.iter().flatten() {
            // Frozen processes do not end, so the number is still theirs; one that ended before is ESRCH.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
        }
        self.dir.write("cgroup.freeze", "0")?;
        processes.map(drop)
    }

    /// Freezes every process and waits until they stand still; when they do not within two seconds they are thawed.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.dir.write("cgroup.freeze", "1")?;
        match self.wait_for("frozen", 1) {
            Ok(true) => Ok(()),
            waited => {
                self.thaw()?;
                waited?;
                let source = SysError::new("wait(cgroup.events: frozen 1)", Errno::ETIMEDOUT);
                Err(CgroupError::File { path: self.dir.path.display().to_string(), source })
            }
        }
    }

    /// Lets frozen processes go on.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.dir.write("cgroup.freeze", "0")
    }

    /// Whether it was frozen.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.dir.number("cgroup.events", "frozen")? == 1)
    }

    /// Whether any process is left.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        Ok(self.dir.number("cgroup.events", "populated")? == 1)
    }

    /// A descriptor that polls `POLLPRI` when [`Container::is_populated`] or [`Container::is_frozen`] changed. The file
    /// must be read once before each poll.
    pub fn watch(&self) -> Result<File, CgroupError> {
        self.dir.file("cgroup.events", OFlag::O_RDONLY).map_err(|errno| {
            let source = SysError::new("open(cgroup.events)", errno);
            CgroupError::File { path: self.dir.path.display().to_string(), source }
        })
    }

    /// How many processes the kernel killed for want of memory; 0 without the controller.
    pub fn oom_kills(&self) -> u64 {
        self.dir.number("memory.events", "oom_kill").unwrap_or(0)
    }

    /// Every process, those in the container's own sub-cgroups included.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        self.dir.processes()
    }

    /// What it uses now.
    pub fn stats(&self) -> Stats {
        let number = |file| self.dir.read(file).ok().and_then(|text| text.trim().parse().ok());
        Stats {
            memory_bytes: number("memory.current"),
            pids: number("pids.current"),
            cpu_us: self.dir.read("cpu.stat").ok().map(|text| value_of(&text, "usage_usec")),
        }
    }

    /// Removes the cgroup and what the container made below it; waits up to two seconds for its last processes.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.parent.remove_child(&self.name)
    }

    /// Waits for a key of `cgroup.events`; `false` when it did not come in time.
    fn wait_for(&self, key: &str, wanted: u64) -> Result<bool, CgroupError> {
        let until = Instant::now() + LIMIT;
        loop {
            let mut file = self.watch()?;
            let mut text = String::new();
            // ENODEV: the cgroup vanished, and its processes with it.
            if file.read_to_string(&mut text).is_err() || value_of(&text, key) == wanted {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // An interrupted or failed poll only means that the file is read again.
            let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout);
        }
    }
}
