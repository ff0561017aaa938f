//! Who answers the calls that a container with one id hands out: the role notify, from the first such call on.
//!
//! The monitor keeps a copy of each listener, since without any the calls would fail with `ENOSYS`, also while a role that
//! was killed is started again. One whose last process has ended is let go of.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{ContainerId, Kind, Report};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use runtime::notify::ARGV0;
use sys::process::Child;
use sys::role::Spawn;

/// How often a role that ends is started again: a call that ends it could be made again and again.
const STARTS_MAX: u32 = 8;

/// The listeners of a container, and the role that serves them.
#[derive(Debug, Default)]
pub struct Answers {
    listeners: Vec<OwnedFd>,
    role: Option<Role>,
    starts: u32,
}

#[derive(Debug)]
struct Role {
    process: Child,
    control: OwnedFd,
}

impl Answers {
    /// Takes one more listener.
    pub fn add(&mut self, listener: OwnedFd) {
        self.listeners.retain(|listener| !has_hung_up(listener.as_fd()));
        if let Some(role) = &self.role {
            // One that has ended is started again, with all of them.
            let _ = hand(role, listener.as_fd());
        }
        self.listeners.push(listener);
    }

    /// What is to be polled: the end of the role, or as long as there is none, the listeners.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = if self.role.is_none() { &self.listeners[..] } else { &[] };
        self.role.iter().map(|role| role.control.as_fd()).chain(waiting.iter().map(AsFd::as_fd))
    }

    /// Starts the role if a call waits for it, or anew if it has ended. After a failure nobody answers any more.
    pub fn on_ready(&mut self, id: &ContainerId, outer: BorrowedFd<'_>) -> Result<(), Report> {
        self.listeners.retain(|listener| !has_hung_up(listener.as_fd()));
        if let Some(role) = self.role.take_if(|role| has_hung_up(role.control.as_fd())) {
            end(&role);
        }
        if self.role.is_some() || self.listeners.is_empty() {
            return Ok(());
        }
        let started = self.start(id, outer);
        if started.is_err() {
            self.listeners.clear();
        }
        started
    }

    fn start(&mut self, id: &ContainerId, outer: BorrowedFd<'_>) -> Result<(), Report> {
        if self.starts == STARTS_MAX {
            return Err(Report::new(Kind::Internal, format!("{ARGV0} has ended {STARTS_MAX} times")));
        }
        self.starts += 1;
        let (control, theirs) = sys::socket::pair()?;
        let fds = [("control", theirs.as_fd()), ("outer", outer)];
        let stdio = [None; 3];
        let spawn =
            Spawn { argv0: ARGV0, label: id.short(), config: b"", fds: &fds, stdio, session: false, cgroup: None };
        let role = Role { process: spawn.start()?, control };
        let handed = self.listeners.iter().try_for_each(|listener| hand(&role, listener.as_fd()));
        self.role = Some(role);
        handed
    }

    /// Ends the role, after which it may be needed by another run.
    pub fn tear_down(&mut self) {
        self.starts = 0;
        self.listeners.clear();
        if let Some(role) = self.role.take() {
            end(&role);
        }
    }
}

fn hand(role: &Role, listener: BorrowedFd<'_>) -> Result<(), Report> {
    Ok(sys::socket::send(role.control.as_fd(), b"listener", &[listener])?)
}

/// Kills and reaps it; it may have ended before, and been reaped with others.
fn end(role: &Role) {
    let _ = sys::process::pidfd_send_signal(role.process.pidfd.as_fd(), Signal::SIGKILL as i32);
    let _ = sys::process::reap(role.process.pidfd.as_fd(), true);
}

fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    polled && fds[0].revents().is_some_and(|found| found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}
