//! The truth about a container's life, as plain files.
//!
//! `state.json` lies in the container's data directory and is written by the monitor (or by the command that repairs
//! after a dead monitor), always whole, to a temporary name and renamed. Readers need no lock.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::{Explain, Kind};
use serde::{Deserialize, Serialize};
use sys::file::sync_directory;
use sys::process::{is_held_up, wait_end};
use sys::{Errno, SysError};

use crate::health::Health;
use crate::networks::Joining;

/// The version of `state.json` that this build writes; readers accept older ones and ignore unknown keys.
pub const FORMAT: u32 = 1;

/// The file by which a container is taken over whose monitor was killed: see [`crate::role::Kept`].
pub const KEPT: &str = "monitor.json";

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
    /// What its health check has found; `None` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How often its policy has started it again since a command did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restart_count: u64,
    /// Whether a command has ended it: then `unless-stopped` does not start it at boot.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stopped: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl State {
    /// A container at this station, of which nothing else is known yet.
    pub fn new(status: Status) -> Self {
        State {
            format: FORMAT,
            status,
            pid: None,
            started_at: None,
            finished_at: None,
            exit_code: None,
            oom_killed: false,
            error: None,
            health: None,
            restart_count: 0,
            stopped: false,
        }
    }
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
    /// Init has ended, and its monitor starts the container again.
    Restarting,
    /// Init has ended.
    Exited,
}

impl Status {
    /// Whether there is a monitor, unless it was killed.
    pub fn is_active(self) -> bool {
        matches!(self, Status::Starting | Status::Running | Status::Restarting)
    }
}

/// `pid.json`: which process a running container is, so that no recycled pid is mistaken. It lies in the data directory, as
/// a logout may take the runtime directory away while the container goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidRecord {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Host pid of the container's init.
    pub pid: i32,
    /// Its start time in clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// The boot in which this holds.
    pub boot_id: String,
    /// Host pid of the monitor.
    pub monitor_pid: i32,
    /// The monitor's start time.
    pub monitor_start_time: u64,
    /// The container's cgroup directory.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Ports of the host that lead into the container, as they were bound.
    #[serde(default)]
    pub published: Vec<net::Published>,
    /// The networks that it shares with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Joining>,
}

impl PidRecord {
    /// A descriptor of the container's init when it is still this very process; `None` when it is gone.
    pub fn init(&self) -> Result<Option<OwnedFd>, SysError> {
        alive(self.pid, self.start_time, &self.boot_id)
    }

    /// The same for the monitor.
    pub fn monitor(&self) -> Result<Option<OwnedFd>, SysError> {
        alive(self.monitor_pid, self.monitor_start_time, &self.boot_id)
    }
}

/// How long the end of a process takes that is not held up.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Opens a process and then proves that it is the recorded one. A zombie counts as gone, and so does what is held up at its end.
fn alive(pid: i32, start_time: u64, boot_id: &str) -> Result<Option<OwnedFd>, SysError> {
    if sys::process::boot_id()? != boot_id {
        return Ok(None);
    }
    let pidfd = match sys::process::pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if matches!(error.errno(), Errno::ESRCH | Errno::EINVAL) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(look) = sys::process::look(pid).filter(|look| look.start_time == start_time) else { return Ok(None) };
    let ends = || look.is_exiting && (wait_end(pidfd.as_fd(), Some(END_LIMIT)) || is_held_up(pid));
    Ok((!look.is_zombie && !ends()).then_some(pidfd))
}

/// Reads `state.json` of a container's data directory; `None` when there is none.
pub fn read_state(directory: &Path) -> Result<Option<State>, RecordError> {
    read(&directory.join("state.json"))
}

/// Reads `pid.json` of a container's data directory; `None` when there is none, or none that is whole: it is not synced, so
/// a power loss can leave it cut short, and no process has lived through that. One that is whole and of another form may be
/// about processes that live.
pub fn read_pid(directory: &Path) -> Result<Option<PidRecord>, RecordError> {
    match read(&directory.join("pid.json")) {
        Err(RecordError::Format { source, .. }) if !source.is_data() => Ok(None),
        result => result,
    }
}

/// Writes `state.json`; with `sync` it is on the disk when this returns.
pub fn write_state(directory: &Path, state: &State, sync: bool) -> Result<(), RecordError> {
    write(&directory.join("state.json"), state, sync)
}

/// Writes `pid.json`.
pub fn write_pid(directory: &Path, record: &PidRecord) -> Result<(), RecordError> {
    write(&directory.join("pid.json"), record, false)
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RecordError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|source| RecordError::Io { path: path.to_owned(), source })?,
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| RecordError::Format { path: path.to_owned(), source })
}

pub(crate) fn write(path: &Path, value: &impl Serialize, sync: bool) -> Result<(), RecordError> {
    let error = |source| RecordError::Io { path: path.to_owned(), source };
    let format = |source| RecordError::Format { path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(format)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = std::fs::File::create(&temporary).map_err(error)?;
    file.write_all(&bytes).map_err(error)?;
    if sync {
        file.sync_all().map_err(error)?;
    }
    std::fs::rename(&temporary, path).map_err(error)?;
    if sync {
        // The name must last too.
        sync_directory(path.parent().unwrap_or(Path::new("/"))).map_err(error)?;
    }
    Ok(())
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file failed.
    #[error("cannot access {path:?}")]
    Io {
        /// The record.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file's content is not a record that this build knows.
    #[error("{path:?} cannot be understood")]
    Format {
        /// The record.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

impl Explain for RecordError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
