//! Taking over a container whose monitor was killed, as the next command has it done.
//!
//! The successor gets the configuration that its predecessor has left ([`Kept`]) and a descriptor of the container's init. It
//! reads on in the named pipes, where nothing is lost as long as the container lives, and goes on with socket, log, cgroup, health
//! check and restart policy; its networks, whose connections are lost, are served again. It is not the parent of init: that has ended when its descriptor says so, and with which code the
//! kernel tells from Linux 6.15 on. What ended with the predecessor does not come back before the next run: the terminal, the standard input, and the way to processes that were executed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use base::time::{parse_rfc3339, rfc3339};
use base::{Kind, Report};
use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};
use sys::namespace::{open_namespace, proc_dir};
use sys::process::{Exit, exit_of, has_ended, is_held_up};

use crate::protocol::Frame;
use crate::record::{self, FORMAT, KEPT, PidRecord, RecordError, State, Status};
use crate::role::{Config, MAIN, Monitor, SETTLING};
use crate::streams::Streams;
use crate::supervised::Supervised;

/// The code of an end that could not be learnt.
const UNKNOWN_CODE: i32 = 255;
/// How long whoever is the parent of a process that has ended may take to reap it, before which the kernel tells no code.
const REAP_LIMIT: Duration = Duration::from_secs(1);

/// `monitor.json`: the configuration of a monitor, and the run that it was for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept<C = Config> {
    format: u32,
    /// Host pid of the container's init.
    pid: i32,
    /// Its start time.
    start_time: u64,
    /// The boot in which this holds.
    boot_id: String,
    config: C,
}

impl Kept {
    /// The configuration that the monitor of this run has left in the container's data directory; `None` when there is none, as
    /// of a run that was just beginning.
    pub fn of_run(directory: &Path, pids: &PidRecord) -> Result<Option<Config>, RecordError> {
        let kept: Option<Kept> = record::read(&directory.join(KEPT))?;
        let is_its = |kept: &Kept| {
            let run = (kept.format, kept.pid, kept.start_time, &kept.boot_id);
            run == (FORMAT, pids.pid, pids.start_time, &pids.boot_id)
        };
        Ok(kept.filter(is_its).map(|kept| kept.config))
    }
}

/// How often it is looked whether the main process is held up at its end, of which nothing tells: by what our predecessor had
/// executed, whose parent now may be one that reaps nobody.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The end of a main process that is not our child.
#[derive(Debug)]
pub(super) struct TakenOver {
    /// When it is looked at next, though nothing tells of its end.
    look_at: Instant,
    /// Until when its code is waited for, once it has ended.
    until: Option<Instant>,
}

impl TakenOver {
    fn new() -> Self {
        TakenOver { look_at: Instant::now() + LOOK_INTERVAL, until: None }
    }

    /// When something is to be done.
    pub(super) fn deadline(&self) -> Instant {
        self.until.unwrap_or(self.look_at)
    }

    /// Whether the process is held up at its end, if it is time to look.
    fn finds_held_up(&mut self, pid: i32) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK_INTERVAL;
        is_held_up(pid)
    }

    /// What of its descriptor is waited for: the end, and then that it is reaped, which poll(2) tells unasked.
    pub(super) fn awaited(&self) -> PollFlags {
        if self.until.is_some() { PollFlags::empty() } else { PollFlags::POLLIN }
    }
}

impl Monitor {
    /// Leaves what a successor needs.
    pub(super) fn keep(&self) -> Result<(), Report> {
        let Some((pid, ..)) = self.recorded.as_ref().filter(|_| !self.config.hold) else { return Ok(()) };
        let pid = *pid;
        let (start_time, boot_id) = (sys::process::start_time(pid)?, sys::process::boot_id()?);
        let kept = Kept { format: FORMAT, pid, start_time, boot_id, config: &self.config };
        Ok(record::write(&self.config.container_dir.join(KEPT), &kept, false)?)
    }

    /// Takes the container over that this process is the init of. After a failure nothing has changed.
    pub(super) fn take_over(&mut self, init: OwnedFd) -> Result<(), Report> {
        let directory = &self.config.container_dir;
        let pids = record::read_pid(directory)?;
        let pids = pids.ok_or_else(|| Report::new(Kind::Internal, "there is no record of its processes"))?;
        let pid = pids.pid;
        let now = SystemTime::now();
        // One that cannot be read says nothing but that the container runs.
        let state = record::read_state(directory).ok().flatten().unwrap_or_else(|| State::new(Status::Running));
        let started_at = state.started_at.clone().unwrap_or_else(|| rfc3339(now));
        let age = parse_rfc3339(&started_at).ok().and_then(|then| now.duration_since(then).ok()).unwrap_or_default();
        self.state = State {
            status: Status::Running,
            pid: Some(pid),
            started_at: Some(started_at),
            exit_code: None,
            oom_killed: false,
            ..state
        };
        if let Some(path) = &pids.cgroup {
            self.place_beside(path);
        }
        let streams = if self.config.terminal { Ok(Streams::default()) } else { self.fifos_again() };
        let streams = streams.unwrap_or_else(|report| {
            self.notice(MAIN, &format!("its output is not read any more: {}", report.lines().join(": ")));
            Streams::default()
        });
        self.processes.insert(MAIN, Supervised::taken_over(pid, init, streams));
        self.taken_over = Some(TakenOver::new());
        self.mounts = proc_dir(pid).and_then(|process| open_namespace(process.as_fd(), "mnt")).ok();
        self.again.started = Some(Instant::now().checked_sub(age).unwrap_or_else(Instant::now));
        self.go_on_probing(age);
        self.write_state(false);
        self.published.clone_from(&pids.published);
        self.networks_again(pid);
        // The last step: from then on it is ours.
        self.write_pid(pid)?;
        self.settled_at = Some(Instant::now() + SETTLING);
        self.tell_what_is_lost();
        self.tell(MAIN, &Frame::Started { pid });
        self.clients.values_mut().for_each(|starter| starter.closing = true);
        Ok(())
    }

    /// Without a place of our own the session that we were started in may take us along at its end.
    fn place_beside(&mut self, cgroup: &Path) {
        let Config { id, bus, cgroup_parent, servers, .. } = &self.config;
        let cancel = self.clients.values().next().map(|starter| starter.socket.as_fd());
        let request = cgroup::Request { id, bus: bus.as_deref(), servers, parent: cgroup_parent.as_deref(), cancel };
        if let Err(report) = self.resources.take_over(request, cgroup) {
            self.notice(MAIN, &format!("its cgroup {}: {}", cgroup.display(), report.lines().join(": ")));
        }
    }

    /// The process of its own network has ended with our predecessor; of others it was let go.
    fn networks_again(&mut self, pid: i32) {
        let own = self.revive_own_network();
        let shared = self.networks.take_over(pid, &self.published, &self.config.publish);
        for report in own.err().into_iter().chain(shared.err()) {
            let text = report.lines().join(": ");
            self.notice(MAIN, &format!("network: {text}; it is as before when the container is restarted"));
        }
        self.follow_resolvers();
    }

    fn tell_what_is_lost(&mut self) {
        let Config { terminal, stdin, .. } = &self.config;
        let lost = [
            (*terminal, "its terminal ended with the monitor; what it writes is lost until it is restarted"),
            (*stdin && !*terminal, "its standard input ended with the monitor"),
        ];
        for (_, line) in lost.into_iter().filter(|(is_lost, _)| *is_lost) {
            self.notice(MAIN, line);
        }
    }

    /// The descriptor of a main process that is not our child, until it has ended.
    pub(super) fn taken_over_init(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let (taken, main) = (self.taken_over.as_ref()?, self.processes.get(&MAIN)?);
        Some((main.pidfd.as_ref()?.as_fd(), taken.awaited()))
    }

    /// Notices the end of a main process that is not our child.
    pub(super) fn check_taken_over(&mut self) {
        let (Some(taken), Some(main)) = (&mut self.taken_over, self.processes.get(&MAIN)) else { return };
        let (Some(init), Some(pid)) = (main.pidfd.as_ref(), main.pid) else { return };
        if taken.until.is_none() && !has_ended(init.as_fd()) && !taken.finds_held_up(pid) {
            return;
        }
        let found = exit_of(init.as_fd());
        let until = *taken.until.get_or_insert_with(|| Instant::now() + REAP_LIMIT);
        let exit = match found {
            Ok(None) if Instant::now() < until => return,
            found => found.ok().flatten(),
        };
        self.taken_over = None;
        if exit.is_none() {
            let text = "its exit code is not known, since its monitor was killed: Linux 6.15 would tell it";
            self.notice(MAIN, text);
        }
        if let Some(main) = self.processes.get_mut(&MAIN) {
            main.exit = Some(exit.unwrap_or(Exit::Code(UNKNOWN_CODE)));
        }
    }
}
