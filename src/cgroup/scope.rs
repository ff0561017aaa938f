//! The role `sublet-scope`: has the user's systemd move a monitor, and the file server of its image, into the delegated
//! scope.
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
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use base::ContainerId;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, alarm, mkdir, pipe2};
use sys::role::{Inherited, Spawn};
use zbus::blocking::{Connection, Proxy, connection};
use zbus::zvariant::{OwnedObjectPath, Value};

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
/// What the role answers when it is done.
const DONE: &str = "done";

/// Starts the role for the process `pid`, whose container is `id`, and its file server, and waits for it.
pub(crate) fn join(bus: &str, id: &ContainerId, pid: i32, server: Option<i32>) -> Result<(), String> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| format!("pipe2(): {errno}"))?;
    let server = server.map(|server| format!("\n{server}")).unwrap_or_default();
    let config = format!("{pid}\n{id}\n{bus}{server}");
    let fds = [("answer", theirs.as_fd())];
    let spawn = Spawn {
        argv0: ROLE,
        label: id.short(),
        config: config.as_bytes(),
        fds: &fds,
        stdio: [None; 3],
        session: false,
        cgroup: None,
    };
    let child = spawn.start().map_err(|error| format!("{error}: {}", error.cause))?;
    drop(theirs);
    let answer = read_all(ours);
    // How it ended is told by its answer; an empty one is a death.
    let _ = waitpid(Pid::from_raw(child.pid), None);
    match answer.as_str() {
        DONE => Ok(()),
        "" => Err(format!("the process that asks systemd ended without an answer (it may take {ROLE_LIMIT_S} s)")),
        failure => Err(failure.to_owned()),
    }
}

fn read_all(pipe: OwnedFd) -> String {
    let mut text = String::new();
    // A failed read leaves the answer empty, which is reported.
    let _ = std::fs::File::from(pipe).read_to_string(&mut text);
    text
}

/// The role. It inherits `answer` (a pipe); its configuration is a line each: pid, container id, bus address,
/// and the pid of the file server if that is to come along.
pub fn main(mut inherited: Inherited) -> ExitCode {
    alarm::set(ROLE_LIMIT_S);
    let Ok(answer) = inherited.fd("answer") else { return ExitCode::FAILURE };
    let config = String::from_utf8_lossy(&inherited.config).into_owned();
    let result = move_process(&config);
    let text = result.err().unwrap_or_else(|| DONE.to_owned());
    // The reader is gone only when the monitor is.
    let _ = std::fs::File::from(answer).write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn move_process(config: &str) -> Result<(), String> {
    let mut lines = config.lines();
    let (Some(pid), Some(id), Some(bus)) = (lines.next(), lines.next(), lines.next()) else {
        return Err("the role's configuration is incomplete".to_owned());
    };
    let number = |text: &str| text.parse::<u32>().map_err(|error| format!("pid {text:?}: {error}"));
    let pid = number(pid)?;
    let server = lines.next().map(number).transpose()?;
    let bus = connection::Builder::address(bus).and_then(|builder| builder.method_timeout(JOB_LIMIT).build());
    let bus = bus.map_err(|error| format!("cannot reach the user's D-Bus: {error}"))?;
    let manager = Proxy::new(&bus, MANAGER, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    let manager = manager.map_err(|error| format!("cannot reach systemd: {error}"))?;
    for _ in 0..TRIES {
        let settled = match control_group(&bus)? {
            Some(path) => {
                attach(&manager, &path, &format!("m-{id}"), pid)?
                    && server.map_or(Ok(true), |server| attach(&manager, &path, &format!("f-{server}"), server))?
            }
            // The next round attaches the server.
            None => start(&manager, pid)? && server.is_none(),
        };
        if settled {
            return Ok(());
        }
    }
    Err(format!("{UNIT} came and went {TRIES} times while we tried to join it"))
}

/// The scope's cgroup path; `None` when it is not running.
fn control_group(bus: &Connection) -> Result<Option<String>, String> {
    // No cache: it would subscribe to changes first, two more round trips.
    let unit = zbus::blocking::proxy::Builder::<Proxy<'_>>::new(bus)
        .destination(MANAGER)
        .and_then(|builder| builder.path(UNIT_PATH))
        .and_then(|builder| builder.interface("org.freedesktop.systemd1.Scope"))
        .and_then(|builder| builder.cache_properties(zbus::proxy::CacheProperties::No).build());
    let path = unit.and_then(|unit| unit.get_property::<String>("ControlGroup"));
    let path = path.map_err(|error| format!("cannot ask systemd for {UNIT}: {error}"))?;
    Ok(Some(path).filter(|path| !path.is_empty()))
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
    let removed = manager.call_method("Subscribe", &()).and_then(|_| manager.receive_signal("JobRemoved"));
    let removed = removed.map_err(|error| format!("cannot wait for jobs of systemd: {error}"))?;
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
    let reply = manager.call_method("StartTransientUnit", &(UNIT, "fail", properties, auxiliary));
    let job: OwnedObjectPath = match reply.and_then(|reply| reply.body().deserialize()) {
        Ok(job) => job,
        Err(error) if is(&error, "UnitExists") => return Ok(false),
        Err(error) => return Err(format!("StartTransientUnit({UNIT}): {error}")),
    };
    let result = wait_for(job, removed)?;
    if result == "done" { Ok(true) } else { Err(format!("systemd could not start {UNIT}: job result {result:?}")) }
}

/// Waits for the end of a job, on a thread of its own since the iterator has no limit.
fn wait_for(job: OwnedObjectPath, removed: zbus::blocking::proxy::SignalIterator<'static>) -> Result<String, String> {
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
    receiver
        .recv_timeout(JOB_LIMIT)
        .map_err(|_| format!("systemd did not start {UNIT} within {} s", JOB_LIMIT.as_secs()))
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(full, ..) if full.as_str().rsplit('.').next() == Some(name))
}
