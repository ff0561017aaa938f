//! The one shape in which an error reaches a user.
//!
//! Library crates have typed enums that implement [`Explain`]: what kind of failure it is and what to do next. At the
//! border of `engine` such an error becomes a [`Report`], which collects *where* it happened ([`Context`]) and is
//! printed as a list: what was tried, the chain of steps below it, the cause down to the errno, and the hint.
//! The kind alone decides the exit code (and later the HTTP status); nobody matches on text.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a caller must care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The request itself is malformed.
    Usage,
    /// The thing named does not exist.
    NotFound,
    /// The thing exists already, or is in a state that forbids the request.
    Conflict,
    /// This kernel, host or build cannot do it.
    Unsupported,
    /// The kernel, the host's policy or a registry said no.
    Denied,
    /// A registry or another machine failed.
    Remote,
    /// The container's command was found but cannot be executed.
    CommandNotExecutable,
    /// The container's command does not exist.
    CommandNotFound,
    /// Everything else: I/O errors, broken files, our own bugs.
    Internal,
}

impl Kind {
    /// The exit code of a command that starts a container (`run`, `exec`), as Docker's users expect it:
    /// 127 and 126 for the container's command, 125 for everything that is the engine's.
    pub fn exit_code_of_run(self) -> u8 {
        match self {
            Kind::CommandNotFound => 127,
            Kind::CommandNotExecutable => 126,
            _ => 125,
        }
    }
}

/// An error that knows its kind and, where there is one, the user's next step.
pub trait Explain: Error + Send + Sync + 'static {
    /// What kind of failure this is.
    fn kind(&self) -> Kind;
    /// What the user can do about it: one sentence, no full stop.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// An error on its way to the user: cause, kind, hint, and the steps that led to it (outermost last).
#[derive(Debug)]
pub struct Report {
    kind: Kind,
    steps: Vec<String>,
    cause: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
}

impl Report {
    /// A report without a lower cause: the message is the whole error.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Report { kind, steps: Vec::new(), cause: message.into().into(), hint: None }
    }

    /// A report of an error from a library that has no [`Explain`] (standard library, third party).
    pub fn of(kind: Kind, cause: impl Error + Send + Sync + 'static) -> Self {
        Report { kind, steps: Vec::new(), cause: Box::new(cause), hint: None }
    }

    /// Adds the next step for the user; an earlier (more specific) hint stays.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Adds one step further out: what was being done when this failed.
    #[must_use]
    pub fn with_step(mut self, step: impl Into<String>) -> Self {
        self.steps.push(step.into());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The next step for the user, if one is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The cause and what lies below it. What a standard I/O error wraps is among them, which its own chain leaves out.
    pub fn causes(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        let cause: &(dyn Error + 'static) = &*self.cause;
        std::iter::successors(Some(cause), |&error| {
            let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
        })
    }

    /// The messages from the outermost step to the innermost cause.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.steps.iter().rev().cloned().collect();
        lines.push(self.cause.to_string());
        let mut below = self.cause.source();
        while let Some(error) = below {
            lines.push(error.to_string());
            below = error.source();
        }
        lines
    }
}

/// A report on its way from one of our processes to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// [`Report::kind`].
    pub kind: Kind,
    /// [`Report::lines`]; at least one.
    pub lines: Vec<String>,
    /// [`Report::hint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Report> for Failure {
    fn from(report: &Report) -> Self {
        Failure { kind: report.kind, lines: report.lines(), hint: report.hint.clone() }
    }
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        let mut lines = failure.lines;
        let cause = lines.pop().unwrap_or_else(|| "unknown failure".to_owned());
        lines.reverse();
        Report { kind: failure.kind, steps: lines, cause: cause.into(), hint: failure.hint }
    }
}

impl<E: Explain> From<E> for Report {
    fn from(error: E) -> Self {
        Report { kind: error.kind(), steps: Vec::new(), hint: error.hint(), cause: Box::new(error) }
    }
}

/// The text after `error: `: the outermost step on the first line, each deeper one indented, the last one as `cause:`
/// when there is more than one, then the hint.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let last = lines.len() - 1;
        for (position, line) in lines.iter().enumerate() {
            match position {
                0 => write!(f, "{line}")?,
                _ if position == last => write!(f, "\n  cause: {line}")?,
                _ => write!(f, "\n  while: {line}")?,
            }
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Adds a step to a failing result where a new fact is known (which container, which layer).
pub trait Context<T> {
    /// Turns the error into a [`Report`] and adds what was being done.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Report>;
}

impl<T, E: Into<Report>> Context<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Report> {
        self.map_err(|error| error.into().with_step(step()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_from_the_outside_in() {
        let report = Report::new(Kind::Denied, "Permission denied (EACCES)")
            .with_step("open(\"/dev/fuse\")")
            .with_step("cannot start container web")
            .with_hint("make /dev/fuse 0666")
            .with_hint("a later, less specific hint");
        assert_eq!(
            report.to_string(),
            "cannot start container web\n  while: open(\"/dev/fuse\")\n  cause: Permission denied (EACCES)\n  hint: make /dev/fuse 0666"
        );
    }

    #[test]
    fn only_the_containers_command_has_its_own_exit_codes() {
        assert_eq!(Kind::CommandNotFound.exit_code_of_run(), 127);
        assert_eq!(Kind::CommandNotExecutable.exit_code_of_run(), 126);
        assert_eq!(Kind::NotFound.exit_code_of_run(), 125);
    }
}
