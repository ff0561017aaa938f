//! Our own streams joined to a container's.

use std::os::fd::{AsFd, OwnedFd};

use base::{ContainerId, Kind, Report};
use monitor::client::{self, Outcome};
use monitor::protocol::{self, Frame};

use crate::Engine;
use crate::container::lock::dial;
use crate::container::restart::refuse_between;
use crate::container::state::condition;
use crate::events;

/// Which streams are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Our standard input feeds the container's.
    pub stdin: bool,
    /// The container's standard output comes to ours.
    pub stdout: bool,
    /// The container's standard error comes to ours.
    pub stderr: bool,
    /// The container has a terminal.
    pub tty: bool,
    /// Signals that reach us go to the container; else those that end programs end the joining.
    pub sig_proxy: bool,
    /// What is typed at a terminal to leave the container while it goes on; empty is nothing.
    pub detach_keys: Vec<u8>,
}

/// A container's streams, connected before its payload began.
#[derive(Debug)]
pub struct Attachment {
    socket: OwnedFd,
    streams: Streams,
    until: Until,
}

/// What is waited for after the exit.
#[derive(Debug)]
pub(crate) enum Until {
    /// Nothing.
    Exit,
    /// That no command finds the container any more, which the end of the connection tells.
    Gone,
    /// The end of the monitor: then what it tidies up is gone.
    Tidied(OwnedFd),
}

/// How an attachment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process ended with this code, as a shell shows it.
    Exited(i32),
    /// The user typed the detach keys; the process goes on.
    Detached,
    /// A signal that was not for the process has ended the joining; the process goes on.
    Interrupted(i32),
    /// Nobody reads our output any more; the process goes on.
    Unread,
}

impl End {
    /// The exit code of the command whose streams were joined.
    pub fn code(self) -> i32 {
        match self {
            End::Exited(code) => code,
            End::Detached => 0,
            End::Interrupted(signal) => 128 + signal,
            // As if the signal had ended us, as it ends others.
            End::Unread => 128 + nix::libc::SIGPIPE,
        }
    }
}

impl Attachment {
    pub(crate) fn new(socket: OwnedFd, streams: Streams, until: Until) -> Self {
        Attachment { socket, streams, until }
    }
}

/// Connects to a running container's main process.
pub fn attach(engine: &Engine, id: &ContainerId, streams: &Streams) -> Result<Attachment, Report> {
    let condition = condition(engine, id)?;
    let refuse = |why: &str| Err(Report::new(Kind::Conflict, why));
    if !condition.life.is_active() {
        return refuse("you cannot attach to a stopped container, start it first");
    }
    refuse_between(id, &condition.life)?;
    if condition.is_paused() {
        return refuse("you cannot attach to a paused container, unpause it first");
    }
    let socket = dial(engine, id)?;
    client::block_signals()?;
    protocol::send(socket.as_fd(), &Frame::Attach { stdin: streams.stdin }, &[])?;
    events::of_container(engine, id, "attach", &[]);
    Ok(Attachment::new(socket, streams.clone(), Until::Exit))
}

/// Copies between our streams and the container's until it ends or the user detaches. Our terminal is raw meanwhile, and
/// the container has no terminal of ours to get signals from.
pub fn relay(engine: &Engine, attachment: Attachment) -> Result<End, Report> {
    let Attachment { socket, streams, until } = attachment;
    let pump = client::Streams {
        stdin: streams.stdin,
        terminal: streams.tty,
        output: streams.stdout,
        error: streams.stderr,
        forward_signals: streams.sig_proxy,
        detach_keys: streams.detach_keys,
    };
    match client::pump(socket.as_fd(), pump, |line| engine.notice(line))? {
        Outcome::Detached => Ok(End::Detached),
        Outcome::Interrupted(signal) => Ok(End::Interrupted(signal)),
        Outcome::Unread => Ok(End::Unread),
        Outcome::Exit { code, unwritten } => {
            // The code is the answer, whatever becomes of the wait.
            if !matches!(until, Until::Exit)
                && let Err(report) = client::wait_end(socket.as_fd(), |line| engine.notice(line))
            {
                engine.notice(&format!("the container has ended: {}", report.lines().join(": ")));
            }
            drop(socket);
            if let Until::Tidied(monitor) = until {
                sys::process::reap(monitor.as_fd(), true)?;
            }
            unwritten.map_or(Ok(End::Exited(code)), Err)
        }
    }
}
