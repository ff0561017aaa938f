//! The truth about a container's life, as plain files.
//!
//! `state.json` lies in the container's data directory and is written by the monitor (or by the command that repairs
//! after a dead monitor), always whole, to a temporary name and renamed. Readers need no lock.

use serde::{Deserialize, Serialize};

/// The version of `state.json` that this build writes; readers accept older ones and ignore unknown keys.
pub const FORMAT: u32 = 1;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Where the container is in its life.
    pub status: Status,
    /// Host pid of the container's init while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// RFC 3339 with nanoseconds, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339 with nanoseconds, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// The exit code as a shell shows it (128+n for signal n); `None` while running, or when it could not be learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the kernel's OOM killer ended a process of the container.
    #[serde(default)]
    pub oom_killed: bool,
    /// Why a start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The stations of a container's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The record exists; nothing was started yet.
    Created,
    /// A monitor is setting the container up.
    Starting,
    /// Init has executed the payload.
    Running,
    /// Init has ended.
    Exited,
}
