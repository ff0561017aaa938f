//! The container's cgroup: limits, freezing, killing, events, removal.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use sys::SysError;

use crate::dir::{Dir, ELSEWHERE, value_of};
use crate::error::CgroupError;
use crate::limits::Limits;
use crate::setting::{self, Setting};
use crate::stats::Stats;
use crate::tree::Tree;

/// How long freezing and killing may take until they count as failed.
const LIMIT: Duration = Duration::from_secs(2);
/// How long one round of signals waits for processes to stand still, and then to end. It is microseconds, but for a process
/// that waits for a device.
const ROUND: Duration = Duration::from_millis(200);

/// The cgroup of one container.
#[derive(Debug)]
pub struct Container {
    parent: Dir,
    name: String,
    dir: Dir,
}

impl Container {
    /// Makes the cgroup and writes the limits; it is removed again when that fails.
    pub(crate) fn create(parent: Dir, name: String, limits: &Limits) -> Result<Self, CgroupError> {
        let dir = parent.make_child(&name)?;
        let container = Container { parent, name, dir };
        match container.write(&limits.settings()) {
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

    /// Writes other limits over those that it has.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.write(&limits.settings())
    }

    /// Writes control files.
    pub(crate) fn write(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        setting::write(&self.dir, &self.parent, settings)
    }

    /// Its open directory.
    pub(crate) fn directory(&self) -> &Dir {
        &self.dir
    }

    /// The directory to be born in (`CLONE_INTO_CGROUP`).
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.fd()
    }

    /// Moves the calling process into it.
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.dir.write("cgroup.procs", "0")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Kills every process, those being born included, and waits until they are gone. Needs Linux 5.14 for one call;
    /// older kernels freeze, kill one by one and thaw, until none is left.
    pub fn kill(&self) -> Result<(), CgroupError> {
        // systemd removes a scope with its last process.
        self.kill_all().or_else(|error| if self.is_gone() { Ok(()) } else { Err(error) })
    }

    fn kill_all(&self) -> Result<(), CgroupError> {
        let killed = if sys::without("cgroup.kill") { Err(Errno::ENOENT) } else { self.dir.put("cgroup.kill", "1") };
        let gone = match killed {
            Ok(()) => self.wait_for("populated", 0, LIMIT)?,
            Err(Errno::ENOENT | Errno::EACCES | Errno::EPERM) => self.kill_one_by_one()?,
            Err(errno) => return Err(self.dir.error("write(\"cgroup.kill\", \"1\")".to_owned(), errno)),
        };
        if gone {
            Ok(())
        } else {
            let path = self.dir.path.display().to_string();
            Err(CgroupError::Survivors { path, waited_ms: LIMIT.as_millis() as u64 })
        }
    }

    fn is_gone(&self) -> bool {
        self.dir
            .file("cgroup.procs", OFlag::O_RDONLY)
            .is_err_and(|errno| matches!(errno, Errno::ENOENT | Errno::ENODEV))
    }

    /// False when some are left at the end of the time. One round does, unless a process did not stand still or was moved
    /// here during it.
    fn kill_one_by_one(&self) -> Result<bool, CgroupError> {
        let until = Instant::now() + LIMIT;
        loop {
            self.signal(Signal::SIGKILL as i32)?;
            if self.wait_for("populated", 0, ROUND)? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    /// Sends a signal to every process. Before that all are made to stand still, so that none is born unseen; a cgroup
    /// that was frozen before stays so (a fatal signal ends frozen processes too). One that waits for a device stands still
    /// only later, and gets the signal all the same.
    pub fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        if self.is_frozen()? {
            return self.send(signal);
        }
        self.dir.write("cgroup.freeze", "1")?;
        let frozen = Frozen { container: Some(self) };
        self.wait_for("frozen", 1, ROUND)?;
        let sent = self.send(signal);
        frozen.thaw()?;
        sent
    }

    fn send(&self, signal: i32) -> Result<(), CgroupError> {
        let (known, unknown): (Vec<_>, Vec<_>) = self.dir.processes()?.into_iter().partition(|pid| *pid != ELSEWHERE);
        for pid in known {
            // Frozen processes do not end by themselves, so the number is still theirs; one that ended before is ESRCH.
            let _ = sys::process::kill(pid, signal);
        }
        if unknown.is_empty() {
            return Ok(());
        }
        Err(CgroupError::Elsewhere { path: self.dir.path.display().to_string(), count: unknown.len() })
    }

    /// Freezes every process and waits until they stand still. They go on when the result is dropped, as every failure
    /// in between does; [`Frozen::keep`] leaves them frozen. When they do not stand still within two seconds they are
    /// thawed.
    pub fn freeze(&self) -> Result<Frozen<'_>, CgroupError> {
        self.dir.write("cgroup.freeze", "1")?;
        let frozen = Frozen { container: Some(self) };
        if self.wait_for("frozen", 1, LIMIT)? {
            return Ok(frozen);
        }
        let source = SysError::new("wait(cgroup.events: frozen 1)", Errno::ETIMEDOUT);
        Err(CgroupError::File { path: self.dir.path.display().to_string(), source })
    }

    /// Lets frozen processes go on.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.dir.write("cgroup.freeze", "0")
    }

    /// Whether its processes stand still because it, or a cgroup above, is frozen.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.dir.number("cgroup.events", "frozen")? == 1)
    }

    /// Whether any process is left.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        Ok(self.dir.number("cgroup.events", "populated")? == 1)
    }

    /// How many processes the kernel killed for want of memory; 0 without the controller.
    pub fn oom_kills(&self) -> u64 {
        self.dir.number("memory.events", "oom_kill").unwrap_or(0)
    }

    /// Every process that has a number in our pid namespace, those in the container's own sub-cgroups included.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut all = self.dir.processes()?;
        all.retain(|pid| *pid != ELSEWHERE);
        Ok(all)
    }

    /// What it uses now, and what happened.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        Stats::read(&self.dir)
    }

    /// Where further processes of the container stand: in the cgroup `below` this one if that is named; else here, or
    /// where its first process is if the container has given controllers to cgroups of its own, since then this one holds
    /// no processes.
    pub(crate) fn place_for_exec(&self, init: i32, below: Option<&Path>) -> Result<Dir, CgroupError> {
        if let Some(below) = below {
            return self.below(below);
        }
        let divided = !self.dir.read("cgroup.subtree_control")?.trim().is_empty();
        let moved = if divided { Tree::find().ok().and_then(|tree| tree.of_process(init)) } else { None };
        Dir::open(&moved.filter(|path| path.starts_with(&self.dir.path)).unwrap_or_else(|| self.dir.path.clone()))
    }

    /// The directory in which a further process of the container is to be born, whose first process is `init`.
    pub fn dir_for_exec(&self, init: i32) -> Result<OwnedFd, CgroupError> {
        self.place_for_exec(init, None).map(Dir::into_fd)
    }

    /// The cgroup of a path that begins here, whether with a slash or not.
    fn below(&self, path: &Path) -> Result<Dir, CgroupError> {
        let mut dir = Dir::open(&self.dir.path)?;
        for part in path.components() {
            dir = match part {
                Component::RootDir | Component::CurDir => dir,
                Component::Normal(name) => dir.child(name)?,
                Component::ParentDir | Component::Prefix(_) => {
                    let option = format!("cgroup {}", path.display());
                    return Err(CgroupError::Invalid { option, reason: "it has a component `..`".to_owned() });
                }
            };
        }
        Ok(dir)
    }

    /// Removes the cgroup and what the container made below it; waits up to two seconds for its last processes.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.parent.remove_child(&self.name)
    }

    /// Waits for a key of `cgroup.events`; `false` when it did not come in time.
    fn wait_for(&self, key: &str, wanted: u64, limit: Duration) -> Result<bool, CgroupError> {
        let until = Instant::now() + limit;
        loop {
            let opened = self.dir.file("cgroup.events", OFlag::O_RDONLY);
            let mut file = opened.map_err(|errno| self.dir.error("open(\"cgroup.events\")".to_owned(), errno))?;
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

/// Whether the processes of a cgroup that a record names stand still; false where it cannot be asked, as when it is gone.
pub fn is_frozen(path: &Path) -> bool {
    std::fs::read_to_string(path.join("cgroup.events")).is_ok_and(|text| value_of(&text, "frozen") == 1)
}

/// Processes that stand still until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the processes go on"]
pub struct Frozen<'a> {
    container: Option<&'a Container>,
}

impl Frozen<'_> {
    /// Leaves them frozen, for [`Container::thaw`].
    pub fn keep(mut self) {
        self.container = None;
    }

    /// Lets them go on, and tells when that fails.
    pub fn thaw(mut self) -> Result<(), CgroupError> {
        self.container.take().map_or(Ok(()), Container::thaw)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(container) = self.container {
            // An error is on its way already, and there is no further way to let them go on.
            let _ = container.thaw();
        }
    }
}
