//! One process that the monitor started and reaps: the container's main process, or one more by exec.
//!
//! Both come to life the same way: a stage forks the process as our child and both talk over a [`Channel`]; READY is
//! answered with GO, and the end of the channel after GO means that the payload has been executed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Failure, Kind, Report};
use net::setup::Tap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::channel::{Channel, Message};
use runtime::launch::WrittenLaunch;
use sys::process::{Child, Exit};
use sys::role::Spawn;
use sys::{Call, SysError};

use crate::streams::Streams;

/// Where a process is on its way to being the payload.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its stage or its init is at work.
    Starting,
    /// Init waits for GO.
    Ready,
    /// GO was sent.
    Going,
    /// The payload runs, or has run.
    Running,
    /// It never became the payload.
    Failed(Failure),
}

/// What a stage gets besides its configuration.
#[derive(Debug)]
pub struct Given<'a> {
    /// Descriptors by name; the channel comes first.
    pub fds: Vec<(&'static str, BorrowedFd<'a>)>,
    /// The payload's standard streams.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// The directory of the cgroup that it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl<'a> Given<'a> {
    fn all(&self, channel: &'a Channel) -> Vec<(&'static str, BorrowedFd<'a>)> {
        std::iter::once(("channel", channel.as_fd())).chain(self.fds.iter().copied()).collect()
    }
}

/// A process of the container.
#[derive(Debug)]
pub struct Supervised {
    /// Pid of the stage until it was reaped.
    pub stage: Option<i32>,
    /// Pid once it exists.
    pub pid: Option<i32>,
    /// The same process as a descriptor.
    pub pidfd: Option<OwnedFd>,
    /// The way to its payload.
    pub phase: Phase,
    /// Present until the payload is executed.
    pub channel: Option<Channel>,
    /// Its standard streams.
    pub streams: Streams,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Nobody waits for its streams or its code.
    pub detached: bool,
    /// By what name events tell of it, if it is one more process.
    pub execution: Option<Execution>,
}

/// One more process, as events name it.
#[derive(Debug)]
pub struct Execution {
    id: String,
    command: String,
}

impl Execution {
    /// A new name for a process with these words.
    pub fn new(words: &[String]) -> Result<Self, SysError> {
        let bytes: [u8; 32] = sys::random()?;
        let id = bytes.iter().fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        Ok(Execution { id, command: words.join(" ") })
    }

    /// `exec_start: sh -c true`.
    pub fn action(&self, action: &str) -> String {
        format!("{action}: {}", self.command)
    }

    /// What tells it from others.
    pub fn detail(&self) -> (&'static str, String) {
        ("execID", self.id.clone())
    }
}

/// What a message on the channel asks the monitor to do.
#[derive(Debug)]
pub enum Event {
    /// Nothing further.
    Nothing,
    /// The process exists.
    Born,
    /// The container's TAP device has come.
    Tap(Tap),
    /// Its network namespace has come, for devices of the networks that it joins.
    Network(OwnedFd),
    /// The listener of its filter has come, for the role notify.
    Listener(OwnedFd),
    /// A line for the user.
    Notice(String),
    /// The mounts are made; init waits for GO to go on.
    Mounted,
    /// Init waits for GO.
    Ready,
    /// The payload runs.
    Started,
    /// The start failed; see [`Phase::Failed`].
    Failed,
}

impl Supervised {
    /// Starts the role stage, and by it the container's main process.
    pub fn start_main(launch: &WrittenLaunch, given: &Given<'_>, streams: Streams) -> Result<Self, Report> {
        let (ours, theirs) = Channel::pair()?;
        let stage = |inherited| runtime::stage::main(launch, inherited);
        let child = sys::role::fork(&given.all(&theirs), given.stdio, given.cgroup, stage)?;
        Ok(Supervised::born(&child, ours, streams))
    }

    /// Starts the role exec, and by it one more process of the container `label`.
    pub fn start_exec(label: &str, config: &[u8], given: &Given<'_>, streams: Streams) -> Result<Self, Report> {
        let (ours, theirs) = Channel::pair()?;
        let Given { stdio, cgroup, .. } = *given;
        let fds = &given.all(&theirs)[..];
        let spawn = Spawn { argv0: "sublet-exec", label, config, fds, stdio, session: false, cgroup };
        Ok(Supervised::born(&spawn.start()?, ours, streams))
    }

    /// A container's main process that another monitor has started, and whose end is told by its descriptor alone.
    pub fn taken_over(pid: i32, pidfd: OwnedFd, streams: Streams) -> Self {
        Supervised {
            stage: None,
            pid: Some(pid),
            pidfd: Some(pidfd),
            phase: Phase::Running,
            channel: None,
            streams,
            exit: None,
            detached: false,
            execution: None,
        }
    }

    fn born(stage: &Child, channel: Channel, streams: Streams) -> Self {
        Supervised {
            stage: Some(stage.pid),
            pid: None,
            pidfd: None,
            phase: Phase::Starting,
            channel: Some(channel),
            streams,
            exit: None,
            detached: false,
            execution: None,
        }
    }

    /// Takes one message of the channel.
    pub fn on_channel(&mut self) -> Result<Event, Report> {
        let Some(channel) = &self.channel else { return Ok(Event::Nothing) };
        Ok(match channel.receive()? {
            Some((Message::Init { pid }, pidfd)) => {
                self.pid = Some(pid);
                self.pidfd = pidfd;
                Event::Born
            }
            Some((Message::Tap { ipv6 }, Some(device))) => Event::Tap(Tap { device, ipv6 }),
            Some((Message::Network, Some(namespace))) => Event::Network(namespace),
            Some((Message::Console, Some(master))) => {
                self.streams.set_terminal(master).call(|| "fcntl(terminal, O_NONBLOCK)".to_owned())?;
                Event::Nothing
            }
            Some((Message::Listener, Some(listener))) => Event::Listener(listener),
            Some((Message::Notice(text), _)) => Event::Notice(text),
            Some((Message::Mounted, _)) => Event::Mounted,
            Some((Message::Ready, _)) => {
                self.phase = Phase::Ready;
                Event::Ready
            }
            Some((Message::Failed(failure), _)) => {
                // The first is the cause: who of stage and init waits for the other then fails too.
                if !matches!(self.phase, Phase::Failed(_)) {
                    self.phase = Phase::Failed(failure);
                }
                Event::Nothing
            }
            Some(_) => Event::Nothing,
            None => self.on_channel_end(),
        })
    }

    fn on_channel_end(&mut self) -> Event {
        self.channel = None;
        match self.phase {
            Phase::Going => {
                self.phase = Phase::Running;
                Event::Started
            }
            Phase::Failed(_) => Event::Failed,
            _ => {
                let report = Report::new(Kind::Internal, "the process was killed while it was being set up");
                self.phase = Phase::Failed(Failure::from(&report));
                Event::Failed
            }
        }
    }

    /// Lets init go on after [`Event::Mounted`].
    pub fn resume(&self) -> Result<(), Report> {
        Ok(self.channel.as_ref().map_or(Ok(()), |channel| channel.send(&Message::Go, None))?)
    }

    /// Lets init become the payload.
    pub fn go(&mut self) -> Result<(), Report> {
        if let Some(channel) = &self.channel {
            channel.send(&Message::Go, None)?;
            self.phase = Phase::Going;
        }
        Ok(())
    }

    /// Whether it is still on its way to being the payload.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Ready | Phase::Going)
    }

    /// Whether its pid may still come.
    pub fn is_unborn(&self) -> bool {
        self.pid.is_none() && self.channel.is_some()
    }

    /// Gives the start up: init ends at the end of its channel.
    pub fn abandon(&mut self, report: &Report) {
        // Stage and init may be in a step that waits for nothing of ours. The stage is our child and not reaped yet.
        if let Some(stage) = self.stage {
            let _ = kill(Pid::from_raw(stage), Signal::SIGKILL);
        }
        self.meet_init();
        let _ = self.signal(Signal::SIGKILL as i32);
        self.phase = Phase::Failed(Failure::from(report));
        self.channel = None;
    }

    /// Reads what waits in the channel until it tells of init.
    fn meet_init(&mut self) {
        let waits = |channel: &Channel| {
            let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        };
        while self.pidfd.is_none() && self.channel.as_ref().is_some_and(waits) {
            if self.on_channel().is_err() {
                return;
            }
        }
    }

    /// Sends a signal to the process, if it exists and has not ended.
    pub fn signal(&self, number: i32) -> Result<(), SysError> {
        match (&self.pidfd, self.exit) {
            (Some(pidfd), None) => sys::process::pidfd_send_signal(pidfd.as_fd(), number),
            _ => Ok(()),
        }
    }

    /// Whether nothing of it is left to wait for: ended (or never born), its channel read to the end, stage reaped.
    ///
    /// The exit may be seen before what the process said last, which is why its start failed.
    pub fn finished(&self) -> bool {
        let gone = self.exit.is_some() || self.pid.is_none();
        gone && self.channel.is_none() && self.stage.is_none()
    }
}
