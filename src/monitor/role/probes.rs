//! The container's health check: when it is probed, and what becomes of a probe, which is a process like one of `exec`.

use std::time::{Duration, Instant, SystemTime};

use base::time::{go_span, rfc3339};
use base::{Failure, Kind, Report};
use nix::sys::signal::Signal;
use sys::process::Exit;

use crate::health::{Check, Health, NO_CODE, Output, Probe, Status};
use crate::protocol::{ExecRequest, Frame};
use crate::record;
use crate::role::{MAIN, Monitor};
use crate::supervised::{Phase, Supervised};

/// How often a container that stands still is looked at whose probe has had its time.
const STANDING: Duration = Duration::from_millis(100);

/// The health check at work.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// When the payload began to run.
    started: Option<Instant>,
    /// When the next one begins.
    due: Option<Instant>,
    running: Option<Running>,
}

/// A probe.
#[derive(Debug)]
struct Running {
    /// Of its process.
    key: u64,
    start: SystemTime,
    /// How long the container had run then.
    age: Duration,
    /// When it has taken too long; `None` once it was killed for that.
    until: Option<Instant>,
    /// Whether the container was seen to stand still when its time was over.
    stood_still: bool,
    output: Output,
}

impl Probes {
    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running.as_ref().map_or(self.due, |running| running.until)
    }

    /// Where the output of this process goes, if it is the probe.
    pub(super) fn output_of(&mut self, key: u64) -> Option<&mut Output> {
        self.running.as_mut().filter(|running| running.key == key).map(|running| &mut running.output)
    }
}

impl Monitor {
    /// The payload runs from now on.
    pub(super) fn begin_probes(&mut self) {
        let Some(check) = &self.config.health else { return };
        let now = Instant::now();
        let wait = check.wait(Status::Starting, Duration::ZERO);
        self.probes = Probes { started: Some(now), due: now.checked_add(wait), running: None };
        self.state.health = Some(Health::starting(self.state.health.take()));
    }

    /// The payload has run for so long, and was probed by another monitor.
    pub(super) fn go_on_probing(&mut self, age: Duration) {
        let Some(check) = &self.config.health else { return };
        let now = Instant::now();
        let status = self.state.health.get_or_insert_with(|| Health::starting(None)).status;
        let started = now.checked_sub(age).unwrap_or(now);
        self.probes = Probes { started: Some(started), due: now.checked_add(check.wait(status, age)), running: None };
    }

    /// The payload has ended: nothing is probed any more.
    pub(super) fn end_probes(&mut self) {
        self.probes = Probes::default();
        if let Some(health) = &mut self.state.health {
            health.status = Status::Unhealthy;
        }
    }

    /// Begins a probe that is due, and ends one that takes too long.
    pub(super) fn check_probes(&mut self) {
        let now = Instant::now();
        if let Some(running) = &mut self.probes.running {
            let key = running.key;
            // One that stands still with the container has its time again once that goes on.
            if running.until.is_some_and(|until| until <= now) {
                let stands_still = self.resources.is_frozen();
                if stands_still {
                    running.until = now.checked_add(STANDING);
                } else if running.stood_still {
                    let timeout = self.config.health.as_ref().map(|check| check.timeout).unwrap_or_default();
                    running.until = now.checked_add(timeout);
                }
                running.stood_still = stands_still;
            }
            if running.until.take_if(|until| *until <= now).is_some()
                && let Some(process) = self.processes.get_mut(&key)
            {
                if process.is_starting() {
                    process.abandon(&Report::new(Kind::Internal, "it was not started in time"));
                } else {
                    // One that has just ended needs no signal.
                    let _ = process.signal(Signal::SIGKILL as i32);
                }
            }
        } else if self.drain_until.is_none() && self.probes.due.take_if(|due| *due <= now).is_some() {
            if self.resources.is_frozen() {
                self.put_probe_off();
            } else {
                self.probe();
            }
        }
    }

    /// Probes for a client, which is told the code; a probe that is under way will do.
    pub(super) fn probe_for(&mut self, client: u64) {
        let refused = (self.probes.started.is_none())
            .then(|| Report::new(Kind::Conflict, format!("container {} runs no health check", self.config.id)));
        let running = self.probes.running.as_ref().map(|running| running.key);
        let key = running.unwrap_or(self.next_key);
        let Some(client) = self.clients.get_mut(&client) else { return };
        if let Some(report) = refused {
            client.send(&Frame::Failed(Failure::from(&report)));
            client.closing = true;
            return;
        }
        client.bound = Some(key);
        if running.is_none() {
            self.probe();
        }
    }

    fn probe(&mut self) {
        let (Some(check), Some(started)) = (&self.config.health, self.probes.started) else { return };
        let Check { process, user, timeout, .. } = check;
        let request = ExecRequest { process: process.clone(), user: user.clone(), stdin: false, detach: false };
        let now = Instant::now();
        let key = self.next_key;
        self.next_key += 1;
        self.probes.running = Some(Running {
            key,
            start: SystemTime::now(),
            age: now - started,
            until: now.checked_add(*timeout),
            stood_still: false,
            output: Output::default(),
        });
        match self.start_exec(request) {
            Ok(process) => drop(self.processes.insert(key, process)),
            Err(report) => self.end_probe(key, NO_CODE, report.lines().join(": ")),
        }
    }

    /// A process that was executed has ended; nothing is done if it is no probe.
    pub(super) fn take_probe(&mut self, key: u64, process: &Supervised) {
        let Some(running) = self.probes.running.as_ref().filter(|running| running.key == key) else { return };
        if self.processes.get(&MAIN).is_none_or(|main| main.exit.is_some()) {
            // It was ended with the container.
            return;
        }
        let output = running.output.text();
        let (code, text) = match &process.phase {
            _ if running.until.is_none() => {
                let timeout = self.config.health.as_ref().map(|check| check.timeout).unwrap_or_default();
                let colon = if output.is_empty() { "" } else { ": " };
                (NO_CODE, format!("Health check exceeded timeout ({}){colon}{output}", go_span(timeout)))
            }
            Phase::Failed(failure) => (NO_CODE, failure.lines.join(": ")),
            _ => (process.exit.map_or(NO_CODE, Exit::shell_code), output),
        };
        self.end_probe(key, code, text);
    }

    fn end_probe(&mut self, key: u64, exit_code: i32, output: String) {
        let (Some(check), Some(running)) = (&self.config.health, self.probes.running.take()) else { return };
        let probe = Probe { start: rfc3339(running.start), end: rfc3339(SystemTime::now()), exit_code, output };
        let before = self.state.health.as_ref().map(|health| health.status);
        if let Some(health) = &mut self.state.health {
            health.take(check, probe, running.age);
        }
        let now = self.state.health.as_ref().map(|health| health.status);
        if let Some(status) = now.filter(|_| now != before) {
            self.event(&format!("health_status: {}", status.as_str()), &[]);
        }
        // It is written again after the next one.
        let _ = record::write_state(&self.config.container_dir, &self.state, false);
        for client in self.clients.values_mut().filter(|client| client.bound == Some(key)) {
            client.send(&Frame::Exit(exit_code));
            client.closing = true;
        }
        self.put_probe_off();
    }

    fn put_probe_off(&mut self) {
        let (Some(check), Some(started), Some(health)) = (&self.config.health, self.probes.started, &self.state.health)
        else {
            return;
        };
        let now = Instant::now();
        self.probes.due = now.checked_add(check.wait(health.status, now - started));
    }
}
