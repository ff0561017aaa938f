//! Starting the container again in place: what its last run has left goes, and after a wait the monitor begins as at first.
//!
//! It keeps what it was given (the namespaces that the container joins too, as they were), its socket, the log, the writable
//! layer as it is and the volumes. The cgroup, the network process, the streams and all namespaces of the container are made
//! anew. Meanwhile the state says `restarting`, until the payload runs again. And the end of a run that takes too long (`--timeout`).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::protocol::Frame;
use crate::record::{State, Status};
use crate::restart::{BackOff, Policy, Terms};
use crate::role::{MAIN, Monitor, given_up};
use crate::supervised::Phase;

/// Where the container is between two runs.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// When it is started.
    pub(super) at: Option<Instant>,
    /// When its payload began to run.
    pub(super) started: Option<Instant>,
    /// Whether that run was killed for its length.
    timed_out: bool,
    back_off: BackOff,
}

impl Monitor {
    /// After the end of the main process: whether the container is to be started again, and then everything for that but the
    /// wait.
    pub(super) fn prepare_again(&mut self) -> bool {
        let code = self.processes.get(&MAIN).and_then(|main| main.exit).map(sys::process::Exit::shell_code);
        let (None, Some(code), Some(started)) = (&self.state.error, code, self.again.started) else { return false };
        if !self.config.restart.wants(code, self.state.restart_count) {
            return false;
        }
        self.take_exit();
        self.state.status = Status::Restarting;
        self.state.restart_count += 1;
        // What a start that fails goes back to.
        self.config.before = State { status: Status::Exited, ..self.state.clone() };
        self.mounts = None;
        self.write_state(false);
        self.tell_exit(code);
        let attached = self.clients.values_mut().filter(|client| client.bound.is_some());
        attached.for_each(|client| (client.bound, client.closing) = (None, true));
        self.answers.tear_down();
        self.poststop();
        // What they leave is met by the start.
        let _ = self.resources.tear_down();
        self.networks.rest();
        self.processes.clear();
        self.unclaimed.clear();
        self.published.clear();
        self.drain_until = None;
        let wait = self.again.back_off.wait(started.elapsed());
        self.again.at = Instant::now().checked_add(wait);
        (self.again.started, self.again.timed_out) = (None, false);
        true
    }

    /// When its run is to be over, while it goes on.
    pub(super) fn timeout_at(&self) -> Option<Instant> {
        let limit = Duration::from_secs(self.config.timeout_s?);
        let main = self.processes.get(&MAIN).filter(|main| main.exit.is_none() && !self.again.timed_out)?;
        self.again.started.filter(|_| main.phase == Phase::Running)?.checked_add(limit)
    }

    /// Kills what has run for as long as it may.
    pub(super) fn check_timeout(&mut self) {
        if self.timeout_at().is_some_and(|at| at <= Instant::now())
            && let Some(main) = self.processes.get(&MAIN)
        {
            // It may have ended by itself.
            let _ = main.signal(Signal::SIGKILL as i32);
            self.again.timed_out = true;
        }
    }

    /// Begins the start that is due.
    pub(super) fn check_again(&mut self) {
        if self.again.at.take_if(|at| *at <= Instant::now()).is_some() {
            self.begin();
        }
    }

    /// Takes other terms; a container that waits for a start which nobody wants any more has ended.
    pub(super) fn take_terms(&mut self, terms: Terms) {
        self.config.restart = terms.policy.unwrap_or(self.config.restart);
        self.config.limits = terms.limits.unwrap_or_else(|| std::mem::take(&mut self.config.limits));
        if terms.stopped && !self.state.stopped {
            // What a start that is given up goes back to says so too.
            (self.state.stopped, self.config.before.stopped) = (true, true);
            self.write_state(false);
        }
        if self.config.restart == Policy::No && self.is_again() {
            match self.again.at.take() {
                Some(_) => self.finished = true,
                None => self.start_failed(&given_up()),
            }
        }
    }

    /// Tells a code to who is attached to the container, and to who has asked for nothing: that one waits for it.
    pub(super) fn tell_exit(&mut self, code: i32) {
        let waiting = self.clients.values_mut().filter(|client| !client.closing);
        let told = waiting.filter(|client| client.bound.is_none_or(|bound| bound == MAIN));
        told.for_each(|client| client.send(&Frame::Exit(code)));
    }

    /// Whether the container is being started in place of a run that has ended.
    pub(super) fn is_again(&self) -> bool {
        self.state.status == Status::Restarting
    }
}
