//! One more process in a running container.

use std::os::fd::AsFd;
use std::path::Path;

use base::{ContainerId, Kind, Report};
use monitor::client;
use monitor::client::{Begun, ClientError};
use monitor::protocol::{self, Frame};
use monitor::record::PidRecord;

use crate::Engine;
use crate::container::attach::{Attachment, Streams, Until, relay};
use crate::container::create::check_workdir;
use crate::container::lock::dial;
use crate::container::record::load;
use crate::container::restart::refuse_between;
use crate::container::spec;
use crate::container::state::{Condition, Life, condition};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables over the container's.
    pub env: Vec<String>,
    /// `USER[:GROUP]`; empty is the container's own.
    pub user: String,
    /// Where it starts; empty is the container's own.
    pub workdir: String,
    /// Whether it has every capability.
    pub privileged: bool,
    /// What is joined to ours.
    pub streams: Streams,
    /// Return when it runs.
    pub detach: bool,
}

/// Runs a process in a container; its exit code, 0 when detached, 128 + n when signal n came before it ran.
pub fn exec(engine: &Engine, id: &ContainerId, request: &ExecRequest) -> Result<i32, Report> {
    let container = load(engine, id)?;
    let condition = condition(engine, id)?;
    refuse_between(id, &condition.life)?;
    if !matches!(condition.life, Life::Running { .. }) {
        return Err(not_running(id));
    }
    if condition.is_paused() {
        let text = format!("Container {id} is paused, unpause the container before exec");
        return Err(Report::new(Kind::Conflict, text));
    }
    let mut process = spec::process_of(engine, &container, request.streams.tty)?;
    let mut env = process.env().clone().unwrap_or_default();
    for entry in &request.env {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        env.retain(|old| old.split_once('=').is_none_or(|(old, _)| old != name));
        env.push(entry.clone());
    }
    process.set_args(Some(request.command.clone())).set_env(Some(env));
    if request.privileged {
        process.set_capabilities(Some(spec::capability_sets(runtime::capabilities::resolve(&[], &[], true)?)));
    }
    if !request.workdir.is_empty() {
        check_workdir(&request.workdir)?;
        process.set_cwd(Path::new("/").join(&request.workdir));
    }
    let user = if request.user.is_empty() { container.settings.user } else { request.user.clone() };
    let socket = dial(engine, id).map_err(|error| match error {
        ClientError::NoMonitor { .. } => {
            let step = format!("container {id} runs, but its monitor was killed, and only that could execute in it");
            why_not_begun(engine, id, Report::from(error).with_step(step))
        }
        error => error.into(),
    })?;
    client::block_signals()?;
    let frame = protocol::ExecRequest { process, user, stdin: request.streams.stdin, detach: request.detach };
    if !client::send_or_gone(socket.as_fd(), &Frame::Exec(Box::new(frame)))? {
        return Err(not_running(id));
    }
    let begun = client::wait_started(socket.as_fd(), !request.detach, |line| engine.notice(line))
        .map_err(|report| why_not_begun(engine, id, report))?;
    if let Begun::Interrupted(signal) = begun {
        return Ok(128 + signal);
    }
    if request.detach {
        return Ok(0);
    }
    Ok(relay(engine, Attachment::new(socket, request.streams.clone(), Until::Exit))?.code())
}

/// A container may end while it is asked, and its monitor with it.
fn why_not_begun(engine: &Engine, id: &ContainerId, report: Report) -> Report {
    match condition(engine, id) {
        Ok(condition) if !condition.life.is_active() => not_running(id),
        _ => report,
    }
}

/// Docker's words for a container that would have to run.
pub(crate) fn not_running(id: &ContainerId) -> Report {
    Report::new(Kind::Conflict, format!("container {id} is not running"))
}

/// The recorded process ids of a running container; one that is being started has none that are anybody's business.
pub(crate) fn pids(engine: &Engine, id: &ContainerId) -> Result<PidRecord, Report> {
    let Condition { life, pids, .. } = condition(engine, id)?;
    pids.filter(|_| matches!(life, Life::Running { .. })).ok_or_else(|| not_running(id))
}
