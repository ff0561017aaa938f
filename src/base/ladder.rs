//! What a ladder of fallbacks found: the material of `doctor` and of the one line that each step down prints.

use serde::Serialize;

/// One ladder after it was climbed down as far as needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ladder {
    /// The part that has the ladder: `ids`, `rootfs`, `network`, `cgroup`.
    pub part: &'static str,
    /// The rungs in order of preference, up to and including the chosen one.
    pub trials: Vec<Trial>,
    /// The rung in use; `None` when no rung holds.
    pub chosen: Option<&'static str>,
    /// What the user can do to stand on a better rung, when this is not the best.
    pub fix: Option<String>,
}

/// One rung that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// The rung's name, as options spell it.
    pub rung: &'static str,
    /// `None` when it holds, else why not, down to the errno.
    pub failure: Option<String>,
}

impl Ladder {
    /// The line to print when the best rung did not hold: what is used instead, why, and the fix.
    pub fn step_down(&self) -> Option<String> {
        let first = self.trials.first()?;
        let reason = first.failure.as_ref()?;
        let instead = self.chosen.unwrap_or("nothing");
        let fix = self.fix.as_ref().map(|fix| format!(" ({fix})")).unwrap_or_default();
        Some(format!("{}: {} is not possible: {reason}; using {instead}{fix}", self.part, first.rung))
    }
}
