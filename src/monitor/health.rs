//! Whether a container works: how it is probed, and what its probes have found. The rules and the shape are Docker's.

use std::time::Duration;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::log::Stream;
use crate::streams::Sink;

/// How many probes are remembered.
const LOG_MAX: usize = 5;
/// How many bytes of a probe's output are.
const OUTPUT_MAX: usize = 4096;
/// The code of a probe that could not be started or took too long.
pub const NO_CODE: i32 = -1;

/// How a container is probed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// What is executed in the container; 0 is healthy.
    pub process: Process,
    /// `USER[:GROUP]`; empty means the process's own ids.
    pub user: String,
    /// From the end of a probe to the next.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// How long after the start failures do not count.
    pub start_period: Duration,
    /// The interval in that time until the first success.
    pub start_interval: Duration,
    /// How many failures in a row make it unhealthy.
    pub retries: u64,
}

impl Check {
    /// How long to wait for the next probe of a container that has run for so long.
    pub fn wait(&self, status: Status, running_for: Duration) -> Duration {
        let starting = status == Status::Starting && running_for < self.start_period;
        if starting { self.start_interval } else { self.interval }
    }
}

/// What is known of a container's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// The verdict.
    pub status: Status,
    /// How many failures in a row have counted.
    pub failing_streak: u64,
    /// The last probes, oldest first.
    pub log: Vec<Probe>,
}

/// The verdict on a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// No probe has succeeded, and not enough have failed.
    Starting,
    /// It works.
    Healthy,
    /// It does not, or does not run.
    Unhealthy,
}

impl Status {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Starting => "starting",
            Status::Healthy => "healthy",
            Status::Unhealthy => "unhealthy",
        }
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Probe {
    /// RFC 3339 with nanoseconds, UTC.
    pub start: String,
    /// The same.
    pub end: String,
    /// As a shell shows it, or [`NO_CODE`].
    pub exit_code: i32,
    /// The beginning of its output, or why there is none.
    pub output: String,
}

impl Health {
    /// That of a container that starts, whose runs before have left these probes.
    pub fn starting(before: Option<Health>) -> Self {
        Health { status: Status::Starting, failing_streak: 0, log: before.map(|before| before.log).unwrap_or_default() }
    }

    /// Takes a probe that began when the container had run for so long.
    pub fn take(&mut self, check: &Check, probe: Probe, running_for: Duration) {
        let success = probe.exit_code == 0;
        self.log.drain(..self.log.len().saturating_sub(LOG_MAX - 1));
        self.log.push(probe);
        if success {
            (self.failing_streak, self.status) = (0, Status::Healthy);
        } else if self.status != Status::Starting || running_for >= check.start_period {
            self.failing_streak += 1;
            if self.failing_streak >= check.retries {
                self.status = Status::Unhealthy;
            }
        }
    }
}

/// The output of a probe, as far as it is remembered.
#[derive(Debug, Default)]
pub struct Output {
    kept: Vec<u8>,
    is_cut: bool,
}

impl Output {
    /// As text; three dots stand for what is cut off.
    pub fn text(&self) -> String {
        let dots = if self.is_cut { "..." } else { "" };
        String::from_utf8_lossy(&self.kept).into_owned() + dots
    }
}

impl Sink for Output {
    fn write(&mut self, _: Stream, bytes: &[u8]) {
        let room = OUTPUT_MAX - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.is_cut |= bytes.len() > room;
    }

    fn finish(&mut self, _: Stream) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(start_period: Duration) -> Check {
        Check {
            process: Process::default(),
            user: String::new(),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            start_period,
            start_interval: Duration::from_secs(5),
            retries: 2,
        }
    }

    fn probe(exit_code: i32) -> Probe {
        Probe { start: String::new(), end: String::new(), exit_code, output: String::new() }
    }

    #[test]
    fn failures_in_a_row_count_and_a_success_ends_them() {
        let check = check(Duration::ZERO);
        let mut health = Health::starting(None);
        let states = [1, 0, 1, NO_CODE, 1, 0].map(|code| {
            health.take(&check, probe(code), Duration::ZERO);
            (health.status, health.failing_streak)
        });
        let expected = [
            (Status::Starting, 1),
            (Status::Healthy, 0),
            (Status::Healthy, 1),
            (Status::Unhealthy, 2),
            (Status::Unhealthy, 3),
            (Status::Healthy, 0),
        ];
        assert_eq!(states, expected);
        assert_eq!(health.log.iter().map(|probe| probe.exit_code).collect::<Vec<_>>(), [0, 1, -1, 1, 0]);
        let again = Health::starting(Some(health));
        assert_eq!((again.status, again.failing_streak, again.log.len()), (Status::Starting, 0, 5));
    }

    #[test]
    fn in_the_start_period_only_a_success_counts() {
        let period = Duration::from_mins(1);
        let check = check(period);
        let mut health = Health::starting(None);
        for _ in 0..4 {
            health.take(&check, probe(1), Duration::from_secs(59));
        }
        assert_eq!((health.status, health.failing_streak), (Status::Starting, 0));
        assert_eq!(check.wait(health.status, Duration::from_secs(59)), check.start_interval);
        assert_eq!(check.wait(health.status, period), check.interval);
        assert_eq!(check.wait(Status::Healthy, Duration::ZERO), check.interval);
        health.take(&check, probe(0), Duration::from_secs(59));
        health.take(&check, probe(1), Duration::from_secs(59));
        assert_eq!((health.status, health.failing_streak), (Status::Healthy, 1));
    }

    #[test]
    fn output_is_cut_with_dots() {
        let mut output = Output::default();
        output.write(Stream::Stdout, &[b'x'; OUTPUT_MAX]);
        assert_eq!(output.text().len(), OUTPUT_MAX);
        output.write(Stream::Stderr, b"y");
        assert_eq!(output.text(), "x".repeat(OUTPUT_MAX) + "...");
    }
}
