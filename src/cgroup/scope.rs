//! The role `sublet-scope`, which speaks with systemd: it moves a monitor, and the file server of its image, into the
//! delegated scope, and keeps the scopes that other engines want for one container each (see `unit`).
//!
//! One scope, `sublet.scope`, holds all containers of a user: systemd is asked once for the first of them and only to
//! attach a process for the others. The scope goes when its last process has gone.
//! ```text
//! ControlGroup of sublet.scope? ── "" ──▶ StartTransientUnit(PIDs=[monitor]), wait for JobRemoved
//!          │                                   └ UnitExists: another one was faster ──▶ again
//!          └─ path ──▶ mkdir m-<id> ──▶ AttachProcessesToUnit("/m-<id>", [monitor]), then f-<pid> for the server
//!                                              └ NoSuchUnit: the last container has just gone ──▶ again
//! ```
//! It is a process of its own for its threads' sake: the monitor that asks for it stays single-threaded.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use base::ContainerId;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, alarm, geteuid, mkdir, pipe2};
use serde::{Deserialize, Serialize};
use sys::role::{Inherited, Spawn};
use zbus::blocking::{Connection, Proxy, connection};
use zbus::zvariant::{OwnedObjectPath, Value};

use crate::unit::{self, Property};

/// The unit's name.
pub const UNIT: &str = "sublet.scope";
/// What `argv[0]` must select [`main`] by.
pub const ROLE: &str = "sublet-scope";

const MANAGER: &str = "org.freedesktop.systemd1";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/sublet_2escope";
/// How long systemd may take; under load it has been seen to need seconds.
const JOB_LIMIT: Duration = Duration::from_secs(30);
/// The role ends by SIGALRM after this, whatever it waits for.
const ROLE_LIMIT_S: u32 = 40;
/// Each lost race is another container's start or end at the same instant.
const TRIES: usize = 5;

/// A bus to speak on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bus {
    /// Its address.
    address: String,
    /// Who we are for whoever sits outside our user namespace, as the bus may.
    uid: u32,
}

/// The role's configuration.
#[derive(Serialize, Deserialize)]
struct Order {
    bus: Bus,
    task: Task,
}

/// What is asked of systemd.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Moves a monitor, and the servers of its files that are to come along, into the shared scope.
    Join { id: String, pid: u32, servers: Vec<u32> },
    /// Starts a scope for one container; the answer is its `ControlGroup`.
    Start { unit: String, properties: Vec<(String, Property)> },
    /// Moves a process into a running unit, or into a cgroup below it.
    Attach { unit: String, below: String, pid: u32 },
    /// Changes a running unit.
    Set { unit: String, properties: Vec<(String, Property)> },
    /// Ends a unit and lets its name go.
    Stop { unit: String },
}

/// Has the role move the process `pid`, whose container is `id`, and its file server.
pub(crate) fn join(
    bus: Bus,
    id: &ContainerId,
    pid: i32,
    servers: &[i32],
    cancel: Option<BorrowedFd<'_>>,
) -> Result<(), String> {
    let servers = servers.iter().copied().map(i32::cast_unsigned).collect();
    let task = Task::Join { id: id.to_string(), pid: pid.cast_unsigned(), servers };
    ask(bus, task, id.short(), cancel).map(drop)
}

/// Starts the role and waits for its answer, until `cancel` can be read. `label` is for people who read a process list.
pub(crate) fn ask(bus: Bus, task: Task, label: &str, cancel: Option<BorrowedFd<'_>>) -> Result<String, String> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| format!("pipe2(): {errno}"))?;
    let config =
        serde_json::to_vec(&Order { bus, task }).map_err(|error| format!("the role's configuration: {error}"))?;
    let fds = [("answer", theirs.as_fd())];
    let spawn =
        Spawn { argv0: ROLE, label, config: &config, fds: &fds, stdio: [None; 3], session: false, cgroup: None };
    let child = spawn.start().map_err(|error| format!("{error}: {}", error.cause))?;
    drop(theirs);
    if let Some(cancel) = cancel
        && !answers_before(ours.as_fd(), cancel)
    {
        // It may have ended this moment; its answer is that of a death then.
        let _ = sys::process::pidfd_send_signal(child.pidfd.as_fd(), nix::libc::SIGKILL);
    }
    let answer = read_all(ours);
    // How it ended is told by its answer; an empty one is a death.
    let _ = waitpid(Pid::from_raw(child.pid), None);
    serde_json::from_str(&answer).unwrap_or_else(|_| {
        Err(format!("the process that asks systemd ended without an answer (it may take {ROLE_LIMIT_S} s)"))
    })
}

/// A bus that answers: the named one, the user's, or the system's.
pub(crate) fn reachable_bus(named: Option<&str>, is_system: bool) -> Result<Bus, String> {
    let uid = outer_uid();
    let path = match named {
        Some(named) => match named.strip_prefix("unix:path=").and_then(|rest| rest.split([',', ';']).next()) {
            Some(path) => path.to_owned(),
            // Another kind of address, which only the library understands.
            None => return Ok(Bus { address: named.to_owned(), uid }),
        },
        None if is_system => "/run/dbus/system_bus_socket".to_owned(),
        None => format!("/run/user/{uid}/bus"),
    };
    UnixStream::connect(&path).map_err(|error| format!("no D-Bus at {path}: {error}"))?;
    Ok(Bus { address: named.map_or_else(|| format!("unix:path={path}"), str::to_owned), uid })
}

/// Our user as the namespace around ours names it: rootless engines call their runtime inside one. The first user
/// namespace maps every id to itself.
fn outer_uid() -> u32 {
    let uid = geteuid().as_raw();
    std::fs::read_to_string("/proc/self/uid_map").ok().and_then(|map| outer_id(&map, uid)).unwrap_or(uid)
}

/// The id outside by a line `inside outside count` of user_namespaces(7).
fn outer_id(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_whitespace().map_while(|field| field.parse::<u32>().ok());
        let (inside, outside, count) = (fields.next()?, fields.next()?, fields.next()?);
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

/// Waits for an answer, or its end, unless `cancel` can be read before.
fn answers_before(answer: BorrowedFd<'_>, cancel: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(answer, PollFlags::POLLIN), PollFd::new(cancel, PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            // Without poll(2) it is waited for until the role's own limit.
            Err(_) => return true,
            Ok(_) => return fds[0].any().unwrap_or(false),
        }
    }
}

fn read_all(pipe: OwnedFd) -> String {
    let mut text = String::new();
    // A failed read leaves the answer empty, which is reported.
    let _ = std::fs::File::from(pipe).read_to_string(&mut text);
    text
}

/// The role. It inherits `answer` (a pipe).
pub fn main(mut inherited: Inherited) -> ExitCode {
    // A command that hands signals on has it blocked, and so have its children.
    let unblocked = [Signal::SIGALRM].into_iter().collect::<SigSet>().thread_unblock();
    if unblocked.is_err() {
        return ExitCode::FAILURE;
    }
    alarm::set(ROLE_LIMIT_S);
    let Ok(answer) = inherited.fd("answer") else { return ExitCode::FAILURE };
    let order = serde_json::from_slice(&inherited.config).map_err(|error| format!("the role's configuration: {error}"));
    let result = order.and_then(carry_out);
    let text = serde_json::to_string(&result).unwrap_or_default();
    // The reader is gone only when the monitor is.
    let _ = std::fs::File::from(answer).write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn carry_out(order: Order) -> Result<String, String> {
    let bus = connection::Builder::address(order.bus.address.as_str())
        .and_then(|builder| builder.method_timeout(JOB_LIMIT).user_id(order.bus.uid).build());
    let bus = bus.map_err(|error| format!("cannot reach D-Bus at {}: {error}", order.bus.address))?;
    let manager = Proxy::new(&bus, MANAGER, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    let manager = manager.map_err(|error| format!("cannot reach systemd: {error}"))?;
    match order.task {
        Task::Join { id, pid, servers } => move_process(&bus, &manager, &id, pid, &servers).map(|()| String::new()),
        Task::Start { unit, properties } => unit::start(&bus, &manager, &unit, &properties),
        Task::Attach { unit, below, pid } => unit::attach(&manager, &unit, &below, pid).map(|()| String::new()),
        Task::Set { unit, properties } => unit::set(&manager, &unit, &properties).map(|()| String::new()),
        Task::Stop { unit } => unit::stop(&manager, &unit).map(|()| String::new()),
    }
}

fn move_process(bus: &Connection, manager: &Proxy<'_>, id: &str, pid: u32, servers: &[u32]) -> Result<(), String> {
    for _ in 0..TRIES {
        let path = control_group(bus, UNIT_PATH).map_err(|error| format!("cannot ask systemd for {UNIT}: {error}"))?;
        let settled = match path {
            Some(path) => {
                let mut all = attach(manager, &path, &format!("m-{id}"), pid)?;
                for server in servers {
                    all = all && attach(manager, &path, &format!("f-{server}"), *server)?;
                }
                all
            }
            // The next round attaches the servers.
            None => start(manager, pid)? && servers.is_empty(),
        };
        if settled {
            return Ok(());
        }
    }
    Err(format!("{UNIT} came and went {TRIES} times while we tried to join it"))
}

/// A scope's cgroup by the unit's object; `None` when it is not running.
pub(crate) fn control_group(bus: &Connection, unit: &str) -> zbus::Result<Option<String>> {
    // No cache: it would subscribe to changes first, two more round trips.
    let unit = zbus::blocking::proxy::Builder::<Proxy<'_>>::new(bus)
        .destination(MANAGER)?
        .path(unit)?
        .interface("org.freedesktop.systemd1.Scope")?
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()?;
    Ok(Some(unit.get_property::<String>("ControlGroup")?).filter(|path| !path.is_empty()))
}

/// Attaches the process to the running scope; `false` when the scope has just gone.
fn attach(manager: &Proxy<'_>, path: &str, leaf: &str, pid: u32) -> Result<bool, String> {
    // systemd attaches to an existing cgroup only. A user's systemd runs with the user's rights, so the scope is ours.
    let directory = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')).join(leaf);
    let made = mkdir(&directory, Mode::from_bits_truncate(0o755));
    if made == Err(Errno::ENOENT) {
        return Ok(false);
    }
    let attached = manager.call_method("AttachProcessesToUnit", &(UNIT, format!("/{leaf}"), vec![pid]));
    match attached {
        Ok(_) => Ok(true),
        Err(error) if is(&error, "NoSuchUnit") || is(&error, "ScopeNotRunning") => Ok(false),
        // Another monitor took the empty leaf for a left one.
        Err(_) if !directory.exists() && made.is_ok() => Ok(false),
        // It has ended; whoever needs it will notice.
        Err(_) if !Path::new("/proc").join(pid.to_string()).exists() => Ok(true),
        Err(error) => Err(format!("AttachProcessesToUnit({UNIT}, /{leaf}, {pid}): {error}")),
    }
}

/// Starts the scope with the process in it; `false` when another one was faster.
fn start(manager: &Proxy<'_>, pid: u32) -> Result<bool, String> {
    let properties = vec![
        ("Description", Value::from("Containers of sublet")),
        ("PIDs", Value::from(vec![pid])),
        ("Delegate", Value::from(true)),
        // A scope whose process was killed for want of memory would stay as failed and keep its name taken.
        ("CollectMode", Value::from("inactive-or-failed")),
        // Each container has its own limit; the sum is the user's slice's business.
        ("TasksMax", Value::from(u64::MAX)),
    ];
    let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    match job(manager, "StartTransientUnit", &(UNIT, "fail", properties, auxiliary)) {
        Ok(result) if result == "done" => Ok(true),
        Ok(result) => Err(format!("systemd could not start {UNIT}: job result {result:?}")),
        Err(JobError::Call(error)) if is(&error, "UnitExists") => Ok(false),
        Err(error) => Err(format!("StartTransientUnit({UNIT}): {error}")),
    }
}

/// Why a job did not come to an end.
pub(crate) enum JobError {
    /// systemd refused to begin.
    Call(zbus::Error),
    /// It did not end in time.
    Late,
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JobError::Call(error) => error.fmt(f),
            JobError::Late => write!(f, "systemd was not through with it after {} s", JOB_LIMIT.as_secs()),
        }
    }
}

impl From<zbus::Error> for JobError {
    fn from(error: zbus::Error) -> Self {
        JobError::Call(error)
    }
}

/// Calls a method that begins a job, and waits for the job's result: `done` when all is well.
pub(crate) fn job<B>(manager: &Proxy<'_>, method: &str, body: &B) -> Result<String, JobError>
where
    B: Serialize + zbus::zvariant::DynamicType,
{
    // Before the call, so that a fast end is not missed; an earlier job of this connection has done it already.
    match manager.call_method("Subscribe", &()) {
        Err(error) if !is(&error, "AlreadySubscribed") => return Err(error.into()),
        _ => {}
    }
    let removed = manager.receive_signal("JobRemoved")?;
    let job: OwnedObjectPath = manager.call_method(method, body)?.body().deserialize()?;
    wait_for(job, removed).ok_or(JobError::Late)
}

/// Waits for the end of a job, on a thread of its own since the iterator has no limit.
fn wait_for(job: OwnedObjectPath, removed: zbus::blocking::proxy::SignalIterator<'static>) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for signal in removed {
            let body = signal.body();
            if let Ok((_, path, _, result)) = body.deserialize::<(u32, OwnedObjectPath, String, String)>()
                && path == job
            {
                // The receiver is gone only after its limit, when the process ends anyway.
                let _ = sender.send(result);
                return;
            }
        }
    });
    receiver.recv_timeout(JOB_LIMIT).ok()
}

pub(crate) fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(full, ..) if full.as_str().rsplit('.').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_knows_us_by_our_id_outside() {
        assert_eq!(outer_id("         0          0 4294967295\n", 1000), Some(1000));
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(outer_id(rootless, 0), Some(1000));
        assert_eq!(outer_id(rootless, 3), Some(100_002));
        assert_eq!(outer_id(rootless, 70_000), None);
        assert_eq!(outer_id("", 0), None);
    }
}
