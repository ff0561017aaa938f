//! Whether and when a container that has ended is started again. The rules are Docker's.

use std::time::Duration;

use cgroup::Limits;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// The first wait; each further one is twice as long, up to [`WAIT_MAX`].
const WAIT: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_mins(1);
/// After a run of this length the waits begin anew.
const STEADY: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Never.
    #[default]
    No,
    /// After a code other than 0, so often; 0 is without end.
    OnFailure(u64),
    /// After each end that nobody has asked for.
    Always,
    /// The same; at boot one that a command has ended stays down.
    UnlessStopped,
}

impl Policy {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Policy::No => "no",
            Policy::OnFailure(_) => "on-failure",
            Policy::Always => "always",
            Policy::UnlessStopped => "unless-stopped",
        }
    }

    /// How often at most, where that was said; else 0.
    pub fn retries_max(self) -> u64 {
        if let Policy::OnFailure(retries) = self { retries } else { 0 }
    }

    /// Whether it starts a container again that has ended with this code after it was started again so often.
    pub fn wants(self, code: i32, restarts: u64) -> bool {
        match self {
            Policy::No => false,
            Policy::OnFailure(max) => code != 0 && (max == 0 || restarts < max),
            Policy::Always | Policy::UnlessStopped => true,
        }
    }
}

/// Whether who sends this signal wants the container to end for good, by Docker's rule: SIGKILL and its stop signal do, and
/// each where it names none that is a signal.
pub fn is_end(signal: i32, stop_signal: Option<i32>) -> bool {
    stop_signal.is_none_or(|own| own == signal) || signal == Signal::SIGKILL as i32
}

/// How long is waited before a start.
#[derive(Debug, Default)]
pub struct BackOff {
    last: Duration,
}

impl BackOff {
    /// The wait after a run of this length.
    pub fn wait(&mut self, run: Duration) -> Duration {
        self.last = if run >= STEADY || self.last.is_zero() { WAIT } else { (self.last * 2).min(WAIT_MAX) };
        self.last
    }
}

/// What holds for the starts to come.
#[derive(Debug, Serialize, Deserialize)]
pub struct Terms {
    /// When there are any; `None` leaves it as it is.
    pub policy: Option<Policy>,
    /// What the container may use then; the same.
    pub limits: Option<Limits>,
    /// Whether a command is about to end it.
    #[serde(default)]
    pub stopped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_steady_run() {
        let mut back_off = BackOff::default();
        let short = Duration::from_millis(9_999);
        let waits: Vec<u128> = (0..12).map(|_| back_off.wait(short).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(back_off.wait(STEADY), WAIT);
        assert_eq!(back_off.wait(short), WAIT * 2);
    }

    #[test]
    fn a_policy_decides_by_code_and_count() {
        for (policy, code, restarts, wanted) in [
            (Policy::No, 1, 0, false),
            (Policy::OnFailure(2), 0, 0, false),
            (Policy::OnFailure(2), 1, 1, true),
            (Policy::OnFailure(2), 1, 2, false),
            (Policy::OnFailure(0), 1, 1_000, true),
            (Policy::Always, 0, 1_000, true),
            (Policy::UnlessStopped, 0, 0, true),
        ] {
            assert_eq!(policy.wants(code, restarts), wanted, "{policy:?} {code} {restarts}");
        }
    }
}
