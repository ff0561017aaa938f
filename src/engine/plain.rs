//! Plain commands of the machine: as root of the user namespace in which containers are made (`unshare`), and under the limits
//! that a container may have (`limit`). The calling process becomes the command, so nothing has to wait for its end.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use base::{ContainerId, Kind, Report};
use cgroup::{Placement, Request};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use runtime::stage::join_outer;
use sys::Call;

use crate::Engine;
use crate::container::record::{HostSettings, IoClass};
use crate::container::rootfs::outer_namespace;
use crate::container::update::LimitRequest;
use crate::container::{isolation, limits};

/// Becomes a command that is root over the user's subordinate ids, with mounts of its own, so that it may look at files of
/// containers and change them. Returns only when that fails. The caller has one thread.
pub fn unshare(engine: &Engine, command: &[String]) -> Report {
    match enter_outer(engine) {
        Ok(()) => become_program(command),
        Err(report) => report.with_step("entering the user namespace of containers"),
    }
}

fn enter_outer(engine: &Engine) -> Result<(), Report> {
    if nix::unistd::geteuid().is_root() {
        let text = "you are root of this machine, and no id of a container is closed to you";
        return Err(Report::new(Kind::Unsupported, text).with_hint("run the command as it is"));
    }
    join_outer(outer_namespace(engine)?.as_fd())?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare(CLONE_NEWNS)".to_owned())?;
    // What it mounts stays its own; what the machine mounts it sees.
    let none = None::<&str>;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .call(|| "mount(\"/\", MS_REC | MS_SLAVE)".to_owned())?;
    Ok(())
}

/// Becomes a command of this class of I/O, in a cgroup that has these limits and no others. Returns only when that fails.
/// Its cgroup is removed by the next command that makes one.
pub fn limit(engine: &Engine, request: LimitRequest, io_class: Option<IoClass>, command: &[String]) -> Report {
    match take_limits(engine, request, io_class) {
        Ok(()) => become_program(command),
        Err(report) => report.with_step("limiting what the command may use"),
    }
}

fn take_limits(engine: &Engine, request: LimitRequest, io_class: Option<IoClass>) -> Result<(), Report> {
    let has_limits = request != LimitRequest::default();
    if !has_limits && io_class.is_none() {
        return Err(Report::new(Kind::Usage, "no limit is named").with_hint("name one, as in --memory 1g"));
    }
    io_class.map_or(Ok(()), isolation::set_io_class)?;
    if has_limits { enter_cgroup(engine, request) } else { Ok(()) }
}

fn enter_cgroup(engine: &Engine, request: LimitRequest) -> Result<(), Report> {
    // Only of a container something is taken that nobody has asked for.
    let mut host = HostSettings { pids_limit: Some(-1), ..HostSettings::default() };
    request.apply(&mut host);
    limits::check(&host)?;
    let limits = limits::limits(&host)?;
    let id = ContainerId::from_random(sys::random()?);
    let bus = engine.options().bus.as_deref();
    let placement = Placement::climb(Request { id: &id, bus, servers: &[], parent: None, cancel: None })?;
    // Without a place for one it is an error that names the limit.
    if let Some(cgroup) = placement.container(&limits)? {
        cgroup.enter()?;
    }
    Ok(())
}

/// Why the process could not become a program.
fn become_program(command: &[String]) -> Report {
    let Some((program, arguments)) = command.split_first() else {
        return Report::new(Kind::CommandNotFound, "no command specified");
    };
    let error = Command::new(program).args(arguments).exec();
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => Kind::CommandNotFound,
        _ => Kind::CommandNotExecutable,
    };
    Report::of(kind, error).with_step(format!("exec {program}"))
}
