//! Where a container is in its life: what the record says, held against the processes that are there.
//!
//! A monitor that was killed leaves a record that says *running* for ever. So that word is believed only while the
//! recorded process (boot, pid and start time) exists, or its monitor does, which is about to write the end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base::{ContainerId, Report};
use monitor::record::{self, PidRecord, RecordError, State, Status};
use monitor::role::{Kept, RuntimeHooks};

use crate::container::record::{PortMapping, Protocol, Record, try_load};
use crate::container::remove::{remove_cgroup, remove_file};
use crate::container::rootfs::outer_namespace;
use crate::container::tree;
use crate::{Engine, volume};

/// The exit code shown when it could not be learnt.
pub const UNKNOWN_CODE: i32 = 255;

/// Where a container is in its life, as far as it is true now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never started.
    Created,
    /// A monitor is setting it up.
    Starting,
    /// It has ended, and its monitor starts it again, by its policy.
    Restarting {
        /// The exit code.
        code: i32,
    },
    /// Its first process runs.
    Running {
        /// Host pid of the first process.
        pid: i32,
    },
    /// It has ended.
    Exited {
        /// As a shell shows it; `None` when it could not be learnt.
        code: Option<i32>,
    },
}

/// A container's state record and what it means now.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The record as it is on the disk.
    pub state: State,
    /// Its meaning.
    pub life: Life,
    /// The processes, when the record has any.
    pub pids: Option<PidRecord>,
}

/// What a monitor that was killed has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing, or it lives.
    Nothing,
    /// A container that runs.
    Container,
    /// A part of what is to be done after the end of one.
    Work,
}

/// The descriptors of a container's processes that still are what the record says.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) init: Option<OwnedFd>,
    pub(crate) monitor: Option<OwnedFd>,
}

impl Life {
    /// Docker's lower-case word: `created`, `running`, `exited`.
    pub fn word(&self) -> &'static str {
        match self {
            Life::Created | Life::Starting => "created",
            Life::Running { .. } => "running",
            Life::Restarting { .. } => "restarting",
            Life::Exited { .. } => "exited",
        }
    }

    /// Whether its processes are there or about to be.
    pub fn is_active(&self) -> bool {
        matches!(self, Life::Starting | Life::Restarting { .. } | Life::Running { .. })
    }
}

impl Condition {
    /// The code to show: of the end, or of a start that failed; 0 while there is none.
    pub fn code(&self) -> i32 {
        match self.life {
            Life::Created => self.state.exit_code.unwrap_or(0),
            Life::Starting | Life::Running { .. } => 0,
            Life::Restarting { code } => code,
            Life::Exited { code } => code.unwrap_or(UNKNOWN_CODE),
        }
    }

    /// Whether its processes stand still (`pause`).
    pub fn is_paused(&self) -> bool {
        let cgroup = self.pids.as_ref().filter(|_| matches!(self.life, Life::Running { .. }));
        cgroup.and_then(|pids| pids.cgroup.as_deref()).is_some_and(cgroup::is_frozen)
    }

    /// Docker's lower-case word: that of its life, or `paused`.
    pub fn word(&self) -> &'static str {
        if self.is_paused() { "paused" } else { self.life.word() }
    }

    /// Whether files of other ids may still lie in its upper: while it runs, and after its end until its monitor has given them
    /// back, which removes the record of the processes.
    pub(crate) fn may_hold_foreign_files(&self) -> bool {
        self.life.is_active() || self.pids.is_some()
    }

    /// What its monitor, if that was killed, has left.
    pub(crate) fn left(&self) -> Result<Left, Report> {
        let recorded = self.state.status.is_active();
        let dead = self.pids.as_ref().map(|pids| Ok::<_, Report>(pids.monitor()?.is_none())).transpose()?;
        Ok(match self.life {
            _ if !dead.unwrap_or(recorded) => Left::Nothing,
            Life::Running { .. } => Left::Container,
            _ if self.life.is_active() => Left::Nothing,
            _ => Left::Work,
        })
    }

    /// The ports of the host that lead into the container now, as they were bound.
    pub fn published(&self) -> Vec<PortMapping> {
        let running = matches!(self.life, Life::Running { .. });
        let bound = self.pids.iter().filter(|_| running).flat_map(|pids| &pids.published);
        let mapping = |port: &net::Published| PortMapping {
            host_ip: Some(port.host_ip),
            host_port: port.host_port,
            host_port_last: port.host_port,
            container_port: port.container_port,
            protocol: match port.transport {
                net::Transport::Tcp => Protocol::Tcp,
                net::Transport::Udp => Protocol::Udp,
            },
        };
        bound.map(mapping).collect()
    }
}

/// The condition of a container, read without a lock. A container without a state record was never started.
pub fn condition(engine: &Engine, id: &ContainerId) -> Result<Condition, Report> {
    let directory = engine.paths().container(id);
    loop {
        let state = read_state(&directory)?.unwrap_or_else(|| State::new(Status::Created));
        let pids = record::read_pid(&engine.paths().container(id))?;
        let processes = processes(pids.as_ref())?;
        let init = pids.as_ref().filter(|_| processes.init.is_some()).map(|pids| pids.pid);
        let life = match (state.status, init) {
            (Status::Created, _) => Life::Created,
            (Status::Exited, _) => Life::Exited { code: state.exit_code },
            // The monitor says who it is before it says that it starts, so no pid record is a dead monitor.
            (Status::Starting, _) if processes.monitor.is_some() => Life::Starting,
            (Status::Restarting, _) if processes.monitor.is_some() => {
                Life::Restarting { code: state.exit_code.unwrap_or(UNKNOWN_CODE) }
            }
            // Killed when it had let the payload go, and before it could write that: an init that waits for it ends.
            (Status::Starting | Status::Restarting, Some(pid)) => Life::Running { pid },
            (Status::Running, init) if init.is_some() || processes.monitor.is_some() => {
                Life::Running { pid: state.pid.or(init).unwrap_or_default() }
            }
            (Status::Starting | Status::Running | Status::Restarting, _) => {
                // The monitor may have written the end between our two reads.
                if read_state(&directory)?.as_ref() != Some(&state) {
                    continue;
                }
                Life::Exited { code: state.exit_code }
            }
        };
        return Ok(Condition { state, life, pids });
    }
}

/// The condition of a container of another machine, whose processes cannot be looked at: what its record says.
pub(crate) fn recorded(engine: &Engine, id: &ContainerId) -> Result<Condition, Report> {
    let state = read_state(&engine.paths().container(id))?.unwrap_or_else(|| State::new(Status::Created));
    let life = match state.status {
        Status::Created => Life::Created,
        Status::Starting => Life::Starting,
        Status::Restarting => Life::Restarting { code: state.exit_code.unwrap_or(UNKNOWN_CODE) },
        Status::Running => Life::Running { pid: state.pid.unwrap_or_default() },
        Status::Exited => Life::Exited { code: state.exit_code },
    };
    Ok(Condition { state, life, pids: None })
}

/// The state record. A power loss can leave an empty one of a container that was running, since only ends are synced:
/// what cannot be read is taken for that, and the processes tell the rest.
fn read_state(directory: &Path) -> Result<Option<State>, RecordError> {
    match record::read_state(directory) {
        Err(RecordError::Format { .. }) => Ok(Some(State::new(Status::Running))),
        result => result,
    }
}

/// Which of the recorded processes are still there.
pub(crate) fn processes(pids: Option<&PidRecord>) -> Result<Processes, Report> {
    match pids {
        None => Ok(Processes::default()),
        Some(pids) => Ok(Processes { init: pids.init()?, monitor: pids.monitor()? }),
    }
}

/// Says that a start begins in which files may get owners of the container: if we are killed before there is a monitor, which
/// says the same of itself, the next command finds a dead one and does what is to be done. The caller holds the container's lock.
pub(crate) fn begin(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let pid = std::process::id().cast_signed();
    let record = PidRecord {
        format: record::FORMAT,
        pid: 0,
        start_time: 0,
        boot_id: sys::process::boot_id()?,
        monitor_pid: pid,
        monitor_start_time: sys::process::start_time(pid)?,
        cgroup: None,
        published: Vec::new(),
        networks: Vec::new(),
    };
    Ok(record::write_pid(&engine.paths().container(id), &record)?)
}

/// Undoes what a start of ours has done that has failed before there was a monitor. Its failure is the one to tell; what resists
/// the next command does.
pub(crate) fn give_up(engine: &Engine, record: &Record) {
    let directory = engine.paths().container(&record.id);
    let ours = |pids: PidRecord| pids.monitor_pid == std::process::id().cast_signed();
    let given = give_back(engine, &record.id);
    volume::in_use::leave(engine, record);
    if given.is_ok() && record::read_pid(&directory).ok().flatten().is_some_and(ours) {
        let _ = remove_file(&directory.join("pid.json"));
    }
}

/// Gives the files of other ids back to the caller, as the monitor would have done after the exit.
fn give_back(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let snaps = engine.paths().snapshots();
    let cows = snaps.join(id.as_str()).join("cow");
    let mut layers: Vec<PathBuf> = fs::read_dir(cows).into_iter().flatten().flatten().map(|one| one.path()).collect();
    layers.retain(|layer| layer.join("meta.json").exists());
    if snapshot::meta(&snaps, id.as_str())?.is_some_and(|meta| meta.driver.is_native()) {
        layers.push(snaps.join(id.as_str()));
    }
    if !layers.is_empty() {
        let outer = outer_namespace(engine)?;
        layers.iter().try_for_each(|layer| snapshot::owner_client::reclaim(outer.as_fd(), layer))?;
    }
    Ok(())
}

/// The same for the volumes and the image's tree that no other container uses.
fn give_shared_back(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    tree::give_back(engine, id, None)?;
    let Some(record) = try_load(engine, id)? else { return Ok(()) };
    record.volume_names().iter().try_for_each(|name| volume::in_use::give_back(engine, name, None))
}

/// The hooks of a run whose monitor was killed. Without what that leaves, as where the run was just beginning, there are none.
fn hooks_of(directory: &Path, pids: &PidRecord) -> Option<RuntimeHooks> {
    Kept::of_run(directory, pids).ok().flatten().and_then(|config| config.hooks)
}

/// Does what a killed monitor could not do after the end, and writes the end. The caller holds the container's lock.
pub(crate) fn repair_locked(engine: &Engine, id: &ContainerId) -> Result<Condition, Report> {
    let mut condition = condition(engine, id)?;
    if condition.left()? != Left::Work {
        return Ok(condition);
    }
    let directory = engine.paths().container(id);
    let tidied = give_back(engine, id).and_then(|()| remove_cgroup(&directory, id));
    // Between two runs, and after the end is recorded, the monitor has seen to it.
    let owed = matches!(condition.state.status, Status::Starting | Status::Running);
    if condition.state.status.is_active() {
        // Between two runs the end of the last one is known.
        if condition.state.status != Status::Restarting {
            condition.state.finished_at = Some(base::time::rfc3339(SystemTime::now()));
        }
        condition.state.status = Status::Exited;
        condition.state.pid = None;
        record::write_state(&directory, &condition.state, true)?;
    }
    // Whoever comes later sees that it has ended, so they run once.
    if owed && let Some(hooks) = condition.pids.as_ref().and_then(|pids| hooks_of(&directory, pids)) {
        hooks.poststop(&mut |report| engine.notice(&report.lines().join(": ")));
    }
    // Now that it counts as ended.
    match tidied.and_then(|()| give_shared_back(engine, id)) {
        // It is what tells that something is left to do.
        Ok(()) => {
            remove_file(&directory.join(record::KEPT))?;
            remove_file(&directory.join("pid.json"))?;
        }
        // The next command tries again, and so does the removal, which can delete such files in any case.
        Err(report) => engine.notice(&format!("what container {id} has left cannot be tidied up: {report}")),
    }
    condition.pids = None;
    Ok(condition)
}
