//! Waiting for a container without asking again and again: its monitor tells the end of its run. Where that is not what is
//! waited for its directories are watched for records that appear, its processes by descriptors that become readable when
//! they end; where the caller has no watches left it does ask again and again.
//!
//! Watches are made when there is something to wait for and not before: their end costs 10 ms (a grace period of the kernel).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{ContainerId, Kind, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sys::process::is_directory;

use crate::Engine;
use crate::container::state::{Condition, Life, Processes, condition, processes};
use crate::container::{lock, record, remove};
use crate::file::failed;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// That it does not run; one that never ran does not.
    NotRunning,
    /// The next end of a run, of one that is still to come too.
    NextExit,
    /// That it is gone.
    Removed,
    /// That it runs.
    Running,
}

/// Waits until a container does not run, and returns the exit code as a shell shows it; one that never ran answers at
/// once (0, or the code of its failed start), as Docker's `not-running`.
pub fn wait(engine: &Engine, id: &ContainerId) -> Result<i32, Report> {
    wait_until(engine, id, Until::NotRunning)
}

/// Waits for something in a container's life and returns the code of its last exit then; -1 when it runs.
pub fn wait_until(engine: &Engine, id: &ContainerId, until: Until) -> Result<i32, Report> {
    record::require(engine, id)?;
    // The record of a container that is removed at its end may be gone before a loaded machine lets us look.
    let mut monitor = monitor::client::dial(&engine.paths().run_container(id)).ok();
    let mut watch = Watch::new(engine, id)?;
    // Which monitor was asked, and what it has told.
    let (mut asked, mut told) = (None, None);
    let first_end = watch.last.state.finished_at.clone();
    let mut code = watch.last.code();
    loop {
        let active = watch.active()?;
        // A container that is gone looks like one that never ran.
        if matches!(watch.last.life, Life::Created) && !record::exists(engine, id)? {
            let removed = code_told(told, monitor).map_or_else(|| remove::code_of_removed(engine, id), Ok);
            return if until == Until::Removed { removed.or(Ok(code)) } else { removed };
        }
        code = watch.last.code();
        let state = &watch.last.state;
        // Of a killed monitor there is no moment of the end.
        let has_ended = || state.finished_at != first_end || state.status.is_active();
        if active && state.finished_at != first_end && matches!(until, Until::NotRunning | Until::NextExit) {
            // It runs again, or will. The code is the state's until then, and its monitor has told it.
            let between = matches!(watch.last.life, Life::Restarting { .. });
            return Ok(if between { code } else { code_told(told, monitor).unwrap_or(code) });
        }
        match until {
            Until::NotRunning if !active => return Ok(code),
            Until::NextExit if !active && has_ended() => return Ok(code),
            Until::Running if matches!(watch.last.life, Life::Running { .. }) => return Ok(-1),
            _ => {}
        }
        if until != Until::Running
            && active
            && let Some(monitor) = monitor.take()
        {
            asked = watch.last.pids.as_ref().map(|pids| pids.monitor_pid);
            told = monitor::client::exit_told(monitor.as_fd());
            continue;
        }
        // One that had no answer may be no better the next time.
        let is_new = || watch.last.pids.as_ref().is_some_and(|pids| asked != Some(pids.monitor_pid));
        if monitor.is_none() && active && is_new() {
            monitor = monitor::client::dial(&engine.paths().run_container(id)).ok();
        }
        watch.wait()?;
    }
}

/// The code that a monitor has told: when it was asked, or on its connection meanwhile.
fn code_told(told: Option<i32>, monitor: Option<OwnedFd>) -> Option<i32> {
    told.or_else(|| monitor.and_then(|monitor| monitor::client::exit_told(monitor.as_fd())))
}

/// Something that can change in a container, waited for.
pub(crate) struct Watch<'a> {
    engine: &'a Engine,
    id: &'a ContainerId,
    watches: Watches,
    processes: Processes,
    last: Condition,
    /// The monitor after whose death it was tried to find another one.
    mourned: Option<i32>,
}

/// What tells of changes in a container's directories.
enum Watches {
    /// Nothing has been waited for.
    None,
    Made(Inotify),
    /// The caller has as many as the kernel gives (`max_user_instances` and `max_user_watches` of `fs.inotify`).
    Refused,
}

impl Watches {
    fn new(engine: &Engine, id: &ContainerId) -> Result<Self, Report> {
        let changes = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let inotify = match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
            Ok(inotify) => inotify,
            Err(Errno::EMFILE) => return Ok(Watches::Refused),
            Err(errno) => return Err(Report::of(Kind::Internal, errno).with_step("inotify_init1()")),
        };
        for (path, what) in [
            (engine.paths().container(id), changes),
            (engine.paths().run_container(id), changes),
            // The monitor's socket keeps the directory itself, whose end is told by the one above.
            (engine.paths().run_containers(), AddWatchFlags::IN_DELETE),
        ] {
            match inotify.add_watch(&path, what) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(Errno::ENOSPC) => return Ok(Watches::Refused),
                Err(errno) => return Err(failed("watching", &path, errno.into())),
            }
        }
        Ok(Watches::Made(inotify))
    }

    fn inotify(&self) -> Option<&Inotify> {
        match self {
            Watches::Made(inotify) => Some(inotify),
            Watches::None | Watches::Refused => None,
        }
    }
}

impl<'a> Watch<'a> {
    pub(crate) fn new(engine: &'a Engine, id: &'a ContainerId) -> Result<Self, Report> {
        let last = condition(engine, id)?;
        Ok(Watch { engine, id, watches: Watches::None, processes: Processes::default(), last, mourned: None })
    }

    /// Whether the container runs, or is about to.
    pub(crate) fn active(&mut self) -> Result<bool, Report> {
        Ok(self.life()?.is_active())
    }

    /// Where the container is in its life. One whose monitor was killed meanwhile gets another one.
    pub(crate) fn life(&mut self) -> Result<Life, Report> {
        self.look()?;
        let dead = self.last.pids.as_ref().filter(|_| self.processes.monitor.is_none()).map(|pids| pids.monitor_pid);
        if matches!(self.last.life, Life::Running { .. }) && dead.is_some() && self.mourned != dead {
            self.mourned = dead;
            // Where that is not possible its end is seen without.
            let _ = lock::repair(self.engine, self.id);
            self.look()?;
        }
        Ok(self.last.life.clone())
    }

    fn look(&mut self) -> Result<(), Report> {
        self.last = condition(self.engine, self.id)?;
        self.processes = processes(self.last.pids.as_ref())?;
        Ok(())
    }

    /// Blocks until something changed since the last look; the first time it does not, so that nothing is missed that
    /// changed before there were watches.
    pub(crate) fn wait(&mut self) -> Result<(), Report> {
        if matches!(self.watches, Watches::None) {
            self.watches = Watches::new(self.engine, self.id)?;
            return Ok(());
        }
        if self.last.life.is_active() && self.processes.monitor.is_none() && self.processes.init.is_none() {
            // They have ended since the records were read, and nothing else would tell.
            return Ok(());
        }
        // While the monitor lives it writes the record, which wakes us; an init that has ended says nothing then.
        let process = self.processes.monitor.as_ref().or(self.processes.init.as_ref());
        // poll(2) tells nothing about what stands in for a pidfd where that call is refused.
        let blind = process.is_some_and(|process| is_directory(process.as_fd()));
        let process = process.filter(|_| !blind);
        let timeout = if blind || self.watches.inotify().is_none() {
            PollTimeout::from(10_u8)
        } else if self.processes.monitor.is_none() {
            // Of an init that is held up at its end nothing tells.
            PollTimeout::from(1000_u16)
        } else {
            PollTimeout::NONE
        };
        let mut fds = Vec::with_capacity(2);
        fds.extend(self.watches.inotify().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        fds.extend(process.map(|fd| PollFd::new(fd.as_fd() as BorrowedFd<'_>, PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, timeout) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Report::of(Kind::Internal, errno).with_step("poll()")),
            }
        }
        drop(fds);
        match self.watches.inotify().map(Inotify::read_events) {
            None | Some(Ok(_) | Err(Errno::EAGAIN)) => Ok(()),
            Some(Err(errno)) => Err(Report::of(Kind::Internal, errno).with_step("read(inotify)")),
        }
    }
}
