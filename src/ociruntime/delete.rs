//! `kill` and `delete`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use base::{Kind, Report};
use nix::sys::signal::Signal;
use oci_spec::runtime::LinuxNamespaceType;
use runtime::hooks;
use sys::Errno;
use sys::process::{pidfd_open, pidfd_send_signal, wait_end};

use crate::args::{Delete, Kill};
use crate::control;
use crate::create::list;
use crate::list::PidNamespace;
use crate::log::Log;
use crate::state::{Container, Root, Status};

/// How long a killed init may take to end.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends a signal to init, or with `--all` to every process of the container.
pub fn kill(root: &Root, arguments: &Kill, log: &Log) -> Result<u8, Report> {
    let container = root.load(&arguments.id)?;
    let signal = base::units::parse_signal(&arguments.signal)?;
    log.debug(|| format!("container {}, {}: signal {signal}", arguments.id, container.status().word()));
    let is_kill = signal == Signal::SIGKILL as i32;
    if (arguments.all || is_kill && !has_own_pids(&container))
        && let Some(group) = container.cgroup()?.container()
    {
        if is_kill {
            group.kill()?;
        } else {
            group.signal(signal)?;
        }
        return Ok(0);
    }
    // The words by which callers know it.
    let gone = || Report::new(Kind::Conflict, format!("container not running: {:?}", arguments.id));
    let (pid, init) = container.init().ok_or_else(gone)?;
    if arguments.all {
        signal_others(pid, signal, log)?;
    }
    match pidfd_send_signal(init.as_fd(), signal) {
        Err(error) if error.errno() == Errno::ESRCH => return Err(gone()),
        sent => sent?,
    }
    if is_kill && container.status() == Status::Paused {
        control::thaw(&container);
    }
    Ok(0)
}

/// Whether the container's processes end with its first. Those of one that shares pids with others would go on.
fn has_own_pids(container: &Container) -> bool {
    let spec = container.place.spec();
    spec.is_ok_and(|spec| runtime::launch::is_new(&spec, LinuxNamespaceType::Pid))
}

/// Signals every process of init's pid namespace but init, for a container without a cgroup. What is born meanwhile may
/// get nothing; of a SIGKILL all die with init.
fn signal_others(init: i32, signal: i32, log: &Log) -> Result<(), Report> {
    let Some(namespace) = PidNamespace::of(init) else {
        log.warn(
            "the container has neither a cgroup nor a pid namespace of its own, so that only its first process can be \
             signalled",
        );
        return Ok(());
    };
    for pid in namespace.processes()?.into_iter().filter(|pid| *pid != init) {
        let Ok(process) = pidfd_open(pid) else { continue };
        // Looked up again, as the number may have become another's before it was opened.
        if !namespace.has(pid) {
            continue;
        }
        match pidfd_send_signal(process.as_fd(), signal) {
            Err(error) if error.errno() != Errno::ESRCH => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a container that has ended or was never started; with `--force` one that runs, too.
pub fn delete(root: &Root, arguments: &Delete, log: &Log) -> Result<u8, Report> {
    let place = match root.find(&arguments.id) {
        Err(report) if arguments.force && report.kind() == Kind::NotFound => {
            root.sweep(&arguments.id)?;
            return Ok(0);
        }
        place => place?,
    };
    let container = match root.load(&arguments.id) {
        // The record goes last where a removal had to be made in place.
        Err(_) if arguments.force && !place.has_record() => {
            place.remove()?;
            return Ok(0);
        }
        container => container?,
    };
    let status = container.status();
    if !arguments.force && !matches!(status, Status::Stopped | Status::Created) {
        let message = format!("cannot delete container {:?} that is not stopped: {}", arguments.id, status.word());
        return Err(Report::new(Kind::Conflict, message).with_hint("--force ends it first"));
    }
    remove(&container, log)?;
    if arguments.force {
        root.sweep(&arguments.id)?;
    }
    Ok(0)
}

/// Ends and removes a container of ours.
pub fn end(root: &Root, id: &str, log: &Log) -> Result<(), Report> {
    remove(&root.load(id)?, log)
}

/// Ends a container, if it still runs, and removes all of it. Of several commands that do so at once one does it and the
/// others wait, so that the hooks run once.
pub fn remove(container: &Container, log: &Log) -> Result<(), Report> {
    end_init(container)?;
    sys::step();
    log.debug(|| format!("container {} has ended", container.place.id()));
    let Some(_owned) = container.place.own_to_remove(LIMIT)? else {
        log.debug(|| "another command has removed it".to_owned());
        return Ok(());
    };
    sys::step();
    // With its cgroup left the record stays and nothing else is done, so that the next try finds it and does the rest.
    control::remove(&container.record)?;
    log.debug(|| "its cgroup is removed".to_owned());
    sys::step();
    // A creator that was killed early may have left no configuration.
    if let Ok(spec) = container.place.spec()
        && let Some(hooks) = spec.hooks()
    {
        let state = container.state(&spec, Status::Stopped);
        hooks::run_all("poststop", list(hooks.poststop().as_ref()), &state, &container.record.bundle, &mut |report| {
            log.warn(&report.lines().join(": "));
        });
        sys::step();
    }
    container.place.remove()
}

/// Kills init, and waits until it has ended, and with it whoever else a killed creator has left on the way to it: each has
/// the lock, which no event tells to be free.
pub fn end_init(container: &Container) -> Result<(), Report> {
    let until = Instant::now() + LIMIT;
    let mut known = container.init().map(|(_, init)| init);
    loop {
        if let Some(init) = known {
            match pidfd_send_signal(init.as_fd(), Signal::SIGKILL as i32) {
                Err(error) if error.errno() != Errno::ESRCH => return Err(error.into()),
                _ => {}
            }
            sys::step();
            control::thaw(container);
            if !wait_end(init.as_fd(), Some(LIMIT)) {
                let message = format!("init of container {:?} was killed and does not end", container.place.id());
                return Err(Report::new(Kind::Internal, message));
            }
        }
        if !container.place.is_held() {
            return Ok(());
        }
        if Instant::now() > until {
            let message =
                format!("container {:?} is being created by a command that does not end", container.place.id());
            return Err(Report::new(Kind::Conflict, message));
        }
        std::thread::sleep(Duration::from_millis(1));
        known = container.place.record().ok().and_then(|record| record.init?.open());
    }
}
