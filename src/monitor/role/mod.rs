//! The role monitor: set-up, the poll loop, and the end; `clients.rs` has its clients, `pipes.rs` the payload's streams,
//! `hooks.rs` the programs that devices have run, `probes.rs` its health check, `again.rs` what lies
//! between two runs, `taken_over.rs` the container of a monitor that was killed.
//!
//! ```text
//! start ─▶ cgroup ─▶ net role (in parallel) ─▶ stage ─▶ Init, Tap, Console ─▶ Ready + net ready ─▶ GO ─▶ Running
//!                                              │ any failure, Abort, or nobody waits for the start any more: Failed
//! Running ─▶ init reaped ─▶ output drained ─▶ by its policy: wait ─▶ start, or
//!                                             exit record ─▶ clients told ─▶ tidy: net, cgroup, upper, run directory
//! ```
//! Everything is polled in one place; nothing here blocks on a client, a container or a helper without a limit.
//! SIGCHLD reaps by pid, as stages, inits, execs, net and helpers are all our children.

mod again;
mod clients;
mod hooks;
mod joining;
mod pipes;
mod probes;
mod taken_over;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use base::time::rfc3339;
use base::{ContainerId, Context, Failure, Kind, Report};
use net::RoleSpec;
use net::helper::HelperSpec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use runtime::launch::WrittenLaunch;
use serde::{Deserialize, Serialize};
use sys::namespace::{open_namespace, proc_dir};
use sys::process::{Exit, reap_any};
use sys::role::Inherited;
use sys::{Call, SysError};

use crate::answers::Answers;
use crate::health;
use crate::log::{self, Log, Stream};
use crate::networks::{Admission, Joining, Networks};
use crate::pid_file::PidFile;
use crate::protocol::{self, DATA_MAX, FRAME_MAX, Frame};
use crate::record::{self, FORMAT, PidRecord, State, Status};
use crate::resources::Resources;
use crate::restart::Policy;
use crate::role::again::Again;
use crate::role::pipes::PayloadEnds;
use crate::role::probes::Probes;
use crate::role::taken_over::TakenOver;
use crate::streams::{Client, Sink, Streams};
use crate::supervised::{Event, Given, Phase, Supervised};
use crate::tidy::{self, After, Callbacks};

pub use crate::role::hooks::RuntimeHooks;
pub use crate::role::taken_over::Kept;

/// The key of the container's main process.
const MAIN: u64 = 0;
/// How long output may still come after the container's last process has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// How long after a start the monitor lets go of what it needed for that: a short command does not pay for it.
const SETTLING: Duration = Duration::from_millis(50);
/// How long a network's process that takes nothing is let alone before it is told again.
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// Reads that empty a pipe of the largest size that a plain user may give it, 1 MiB (pipe(7)).
const DRAIN_READS: usize = (1 << 20) / DATA_MAX + 1;

/// The configuration of the role.
///
/// Descriptors, by name: `member-0`, `network-0`, … (membership and namespace of the networks, in their order), `client` (the connection to the command that starts the container), `outer` (user namespace),
/// `view` (mount namespace of the fs role), `fs` (the connection that keeps the fs role alive); `user`, `net` and `pid` where
/// the container joins those namespaces; `init` (a pidfd) where the container runs already and its monitor was killed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Config {
    /// Which container.
    pub id: ContainerId,
    /// Its data directory: `state.json`, `pid.json`, `log`.
    pub container_dir: PathBuf,
    /// Its runtime directory: `sock`, `stdout`, `stderr`.
    pub run_dir: PathBuf,
    /// A file for the pid of its first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    /// How its log is kept.
    #[serde(default)]
    pub log: log::Rules,
    /// What the stage makes, and what later processes of the container have of it.
    pub launch: WrittenLaunch,
    /// Whether the payload has a terminal.
    pub terminal: bool,
    /// Whether the standard input stays open for a client.
    pub stdin: bool,
    /// Whether the command that starts the container feeds it.
    pub client_feeds: bool,
    /// Whether it ends with the first client that has fed it.
    pub stdin_once: bool,
    /// Who the payload's standard streams are given to, in the monitor's ids, so that the container's root can give them
    /// on; `None` where it is the monitor's own user.
    pub streams_owner: Option<(u32, u32)>,
    /// The container's own network, where it has one by our stack.
    pub network: Option<net::NetSpec>,
    /// The same, where it has one by an installed program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<HelperSpec>,
    /// The networks that it shares with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Admission>,
    /// Ports to publish by the first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<net::Publish>,
    /// The hooks of its devices, where they have any.
    pub hooks: Option<RuntimeHooks>,
    /// Whether it is started again when it has ended.
    pub restart: Policy,
    /// The signal that it names to be ended by; after that one it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// How it is probed, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<health::Check>,
    /// What the container may use.
    pub limits: cgroup::Limits,
    /// The cgroup in which its own is to be, as `--cgroup-parent` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<String>,
    /// After how many seconds of a run it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// The user's D-Bus address, where the environment names one.
    pub bus: Option<String>,
    /// Processes that serve the container: they must live as long as it does, whatever becomes of the session that started them.
    pub servers: Vec<i32>,
    /// Whether a step down a ladder is an error.
    pub strict: bool,
    /// Whether the payload is not to run: the command that starts the container works in its files, and is told so by
    /// `Started`. The end of its connection is the end of the container, of which no state tells.
    pub hold: bool,
    /// What the state record says before this start: a start that fails goes back to it.
    pub before: State,
    /// What [`Callbacks::event`] needs, passed on unread; `None` where nothing is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// What is to be done after the exit.
    pub after: After,
}

impl Config {
    /// What the process of the container's own network is told, where it has one.
    fn own_network(&self) -> Option<RoleSpec> {
        let builtin = self.network.clone().map(RoleSpec::Own);
        builtin.or_else(|| self.program.clone().map(RoleSpec::Program))
    }
}

/// What the role does with what it inherited.
pub fn main(mut inherited: Inherited, callbacks: Callbacks) -> ExitCode {
    let client = inherited.fd("client");
    let init = inherited.optional_fd("init");
    match Monitor::set_up(&mut inherited, callbacks) {
        Ok(mut monitor) => {
            if let Ok(client) = client {
                monitor.adopt_starter(client);
            }
            // Here, and after each further part of a start: what it has been through is not needed together.
            sys::memory::release_code();
            match init.map(|init| monitor.take_over(init)) {
                None => monitor.begin(),
                Some(Ok(())) => {}
                Some(Err(report)) => {
                    monitor.tell(MAIN, &Frame::Failed(Failure::from(&report)));
                    monitor.farewell();
                    return ExitCode::from(125);
                }
            }
            monitor.run();
            monitor.end()
        }
        Err(report) => {
            if let Ok(client) = client {
                // A client that is gone does not need to know.
                let _ = protocol::send(client.as_fd(), &Frame::Failed(Failure::from(&report)), &[]);
            }
            ExitCode::from(125)
        }
    }
}

struct Monitor {
    config: Config,
    callbacks: Callbacks,
    pid_file: Option<PidFile>,
    outer: OwnedFd,
    view: Option<OwnedFd>,
    /// Namespaces that the container joins; a policy that starts it again may come later.
    joined: Vec<(&'static str, OwnedFd)>,
    /// Only held: its end tells the fs role that this user is gone.
    fs: Option<OwnedFd>,
    signals: SignalFd,
    /// Until the exit is recorded.
    listener: Option<OwnedFd>,
    log: Log,
    resources: Resources,
    networks: Networks,
    answers: Answers,
    probes: Probes,
    again: Again,
    /// Until a main process that another monitor has started has ended.
    taken_over: Option<TakenOver>,
    processes: BTreeMap<u64, Supervised>,
    clients: BTreeMap<u64, Client>,
    next_key: u64,
    state: State,
    published: Vec<net::Published>,
    /// Init's pid, how many published ports, and which networks `pid.json` tells of.
    recorded: Option<(i32, usize, Vec<Joining>)>,
    /// The container's mount namespace, held so that the kernel takes it down (up to a millisecond) after the exit has been
    /// noticed, and with `--rm` after its clients have been let go.
    mounts: Option<OwnedFd>,
    /// When the code of the start is let go of.
    settled_at: Option<Instant>,
    /// Whether a network's process has not taken all that it was told.
    is_behind: bool,
    /// Set when the main process has ended: until then its output may still come.
    drain_until: Option<Instant>,
    finished: bool,
    /// Children that have ended, and which one of our processes may turn out to have been: its pid comes in its channel,
    /// and a start that fails at once may be over before that is read.
    unclaimed: Vec<(i32, Exit)>,
    buffer: Vec<u8>,
}

/// What a polled descriptor belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Net,
    Networks,
    Answers,
    TakenOver,
    Channel(u64),
    Output(u64, Stream),
    Input(u64),
    Client(u64),
}

impl Monitor {
    fn set_up(inherited: &mut Inherited, callbacks: Callbacks) -> Result<Self, Report> {
        let config: Config =
            serde_json::from_slice(&inherited.config).map_err(|error| Report::of(Kind::Internal, error))?;
        inherited.config = Vec::new();
        let outer = inherited.fd("outer")?;
        // Container root may be our own user on the host: it must not look into us, whatever namespace it shares.
        nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
        nix::sys::prctl::set_child_subreaper(true).call(|| "prctl(PR_SET_CHILD_SUBREAPER)".to_owned())?;
        nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
        nix::unistd::chdir("/").call(|| "chdir(/)".to_owned())?;
        let signals = take_signals()?;
        let log = Log::open(&config.container_dir, config.log.clone());
        let log = log.call(|| format!("open({:?})", config.container_dir.join(log::NAME)))?;
        let pid_file = config.pid_file.as_deref().map(PidFile::at).transpose();
        let pid_file = pid_file.step(|| "preparing the file for the container's pid".to_owned())?;
        let listener = clients::listen_in(&config.run_dir).step(|| "making the monitor's socket".to_owned())?;
        let fds =
            |number| Ok((inherited.fd(&format!("member-{number}"))?, inherited.fd(&format!("network-{number}"))?));
        let memberships = (0..config.networks.len()).map(fds).collect::<Result<_, SysError>>()?;
        let State { finished_at, health, .. } = config.before.clone();
        Ok(Monitor {
            outer,
            view: inherited.optional_fd("view"),
            joined: ["user", "net", "pid", "ipc", "mnt"]
                .into_iter()
                .filter_map(|kind| Some((kind, inherited.optional_fd(kind)?)))
                .collect(),
            fs: inherited.optional_fd("fs"),
            signals,
            listener: Some(listener),
            log,
            resources: Resources::default(),
            networks: Networks::new(&config.networks, memberships, config.network.is_some()),
            answers: Answers::default(),
            probes: Probes::default(),
            again: Again::default(),
            taken_over: None,
            processes: BTreeMap::new(),
            clients: BTreeMap::new(),
            next_key: MAIN + 1,
            state: State { finished_at, health, ..State::new(Status::Starting) },
            published: Vec::new(),
            recorded: None,
            mounts: None,
            settled_at: None,
            is_behind: false,
            drain_until: None,
            finished: false,
            unclaimed: Vec::new(),
            buffer: vec![0; FRAME_MAX],
            callbacks,
            pid_file,
            config,
        })
    }

    /// Starts everything that the container needs; a failure becomes the container's.
    fn begin(&mut self) {
        if let Err(report) = self.try_begin() {
            self.start_failed(&report);
        }
    }

    fn try_begin(&mut self) -> Result<(), Report> {
        // First who we are: a state that says "starting" is believed only while this process lives.
        self.write_pid(0)?;
        if self.is_again() { self.resources.place_again(&self.config.limits) } else { self.place() }
            .step(|| "placing the container in its cgroup".to_owned())?;
        sys::memory::release_code();
        if let Some(network) = self.config.own_network() {
            self.resources.start_network(&self.config.id, &network).step(|| "starting the network".to_owned())?;
        }
        if !self.config.publish.is_empty() {
            self.networks.publish(&self.config.publish).step(|| "starting the network".to_owned())?;
            self.published = self.networks.published().to_vec();
        }
        let (streams, ends) =
            if self.config.terminal { (Streams::default(), PayloadEnds::default()) } else { self.fifos()? };
        let mut fds = vec![("outer", self.outer.as_fd())];
        fds.extend(self.view.as_ref().map(|view| ("view", view.as_fd())));
        fds.extend(self.joined.iter().map(|(kind, namespace)| (*kind, namespace.as_fd())));
        let given = Given { fds, stdio: ends.stdio(), cgroup: self.resources.cgroup_dir() };
        let main = Supervised::start_main(&self.config.launch, &given, streams);
        let main = main.step(|| "starting the stage".to_owned())?;
        // While the stage is at work, and again when the payload has run for a while.
        sys::memory::release_code();
        self.processes.insert(MAIN, main);
        Ok(())
    }

    /// Says that the container is being started, and finds it its place.
    fn place(&mut self) -> Result<(), Report> {
        if !self.config.hold {
            record::write_state(&self.config.container_dir, &self.state, false)?;
        }
        let Config { id, bus, limits, cgroup_parent, servers, strict, .. } = &self.config;
        let strict = *strict;
        // The only step that may take long before the loop, in which Abort is read, runs.
        let cancel = self.clients.values().next().map(|starter| starter.socket.as_fd());
        let ladder = self.resources.place(
            cgroup::Request { id, bus: bus.as_deref(), servers, parent: cgroup_parent.as_deref(), cancel },
            limits,
        );
        if cancel.is_none_or(clients::has_spoken) {
            return Err(given_up());
        }
        let ladder = ladder?;
        match ladder.step_down() {
            Some(line) if strict => return Err(Report::new(Kind::Unsupported, line)),
            // Nothing was asked for that a lower rung cannot give: limits that cannot be set were refused above.
            Some(line) if ladder.chosen.is_none() => self.notice(MAIN, &line),
            _ => {}
        }
        Ok(())
    }

    // ---- the loop ----

    fn run(&mut self) {
        self.check_end();
        while !self.finished {
            let ready = self.wait();
            if self.settled_at.take_if(|at| *at <= Instant::now()).is_some() {
                // Without it the container is not taken over should we be killed, and nothing else fails.
                let _ = self.keep();
                sys::memory::release_code();
            }
            for source in ready {
                self.serve(source);
            }
            self.check_starter();
            self.check_stalled();
            self.check_taken_over();
            self.check_timeout();
            self.check_end();
            self.check_probes();
            self.check_again();
            self.check_networks();
            self.is_behind = self.resources.catch_up() | self.networks.catch_up();
            self.clients.retain(|_, client| !client.closing || client.waiting());
        }
    }

    /// A start that nobody waits for any more is given up.
    fn check_starter(&mut self) {
        let is_waited_for = self.clients.values().any(|client| client.bound == Some(MAIN) && !client.closing);
        if self.state.status == Status::Starting && !is_waited_for {
            self.start_failed(&given_up());
        }
    }

    fn wait(&self) -> Vec<Source> {
        let mut waited: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        waited.extend(self.listener.as_ref().map(|listener| (Source::Listener, listener.as_fd(), PollFlags::POLLIN)));
        waited.extend(self.resources.net_socket().map(|net| (Source::Net, net, PollFlags::POLLIN)));
        waited.extend(self.networks.fds().map(|fd| (Source::Networks, fd, PollFlags::POLLIN)));
        waited.extend(self.answers.fds().map(|fd| (Source::Answers, fd, PollFlags::POLLIN)));
        waited.extend(self.taken_over_init().map(|(init, flags)| (Source::TakenOver, init, flags)));
        for (key, process) in &self.processes {
            if let Some(channel) = &process.channel {
                waited.push((Source::Channel(*key), channel.as_fd(), PollFlags::POLLIN));
            }
            // Output must not overtake the word that the process runs, before which clients take none.
            let held_back = process.is_starting()
                || self.clients.values().any(|client| client.bound == Some(*key) && client.full());
            for (stream, file) in [(Stream::Stdout, &process.streams.output), (Stream::Stderr, &process.streams.error)]
            {
                if let Some(file) = file.as_ref().filter(|_| !held_back) {
                    waited.push((Source::Output(*key, stream), file.as_fd(), PollFlags::POLLIN));
                }
            }
            if let Some(input) = process.streams.input_waiting() {
                waited.push((Source::Input(*key), input, PollFlags::POLLOUT));
            }
        }
        for (key, client) in &self.clients {
            let busy =
                client.bound.and_then(|bound| self.processes.get(&bound)).is_some_and(|p| p.streams.input_full());
            // Of one that is only waited for nothing is read any more.
            let mut flags = if busy || client.closing { PollFlags::empty() } else { PollFlags::POLLIN };
            flags.set(PollFlags::POLLOUT, client.waiting());
            waited.push((Source::Client(*key), client.socket.as_fd(), flags));
        }
        let mut fds: Vec<PollFd<'_>> = waited.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        if poll(&mut fds, self.timeout()).is_err() {
            // Interrupted; or out of memory, and then another round is as good as any.
            return Vec::new();
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        waited.iter().zip(&fds).filter(|(_, fd)| ready(fd)).map(|((source, _, _), _)| *source).collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let taken_over = self.taken_over.as_ref().map(TakenOver::deadline);
        let deadlines = [
            self.drain_until,
            self.settled_at,
            self.probes.deadline(),
            self.again.at,
            taken_over,
            self.timeout_at(),
            self.networks.deadline(),
            self.is_behind.then(|| Instant::now() + TELL_AGAIN),
        ];
        deadlines.into_iter().flatten().chain(self.stalled().map(|(_, until)| until)).min()
    }

    fn timeout(&self) -> PollTimeout {
        let Some(until) = self.next_deadline() else { return PollTimeout::NONE };
        let left = until.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Signals => self.on_signals(),
            Source::Listener => self.on_connect(),
            Source::Net => self.on_net(),
            Source::Networks => self.on_networks(),
            Source::Answers => self.on_answers(),
            // Looked at in each round.
            Source::TakenOver => {}
            Source::Channel(key) => self.on_channel(key),
            Source::Output(key, stream) => drop(self.pump(key, stream)),
            Source::Input(key) => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.streams.flush_input();
                }
            }
            Source::Client(key) => self.on_client(key),
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGIO as u32 {
                self.resources.on_resolvers();
                self.networks.on_resolvers();
            }
        }
        // An error says that there is no child.
        while let Ok(Some((pid, exit))) = reap_any() {
            let mut known = false;
            for process in self.processes.values_mut() {
                if process.pid == Some(pid) {
                    (process.exit, known) = (Some(exit), true);
                } else if process.stage == Some(pid) {
                    (process.stage, known) = (None, true);
                }
            }
            if !known && self.processes.values().any(Supervised::is_unborn) {
                self.unclaimed.push((pid, exit));
            }
        }
    }

    /// Gives each process whose pid has come the exit that was seen before.
    fn claim_exits(&mut self) {
        for process in self.processes.values_mut().filter(|process| process.exit.is_none()) {
            let own = self.unclaimed.iter().find(|(pid, _)| process.pid == Some(*pid));
            process.exit = own.map(|(_, exit)| *exit);
        }
        if !self.processes.values().any(Supervised::is_unborn) {
            self.unclaimed.clear();
        }
    }

    fn on_net(&mut self) {
        match self.resources.on_net() {
            Ok(published) => {
                self.published = published.unwrap_or_default();
                self.try_go();
            }
            Err(report) if self.state.status != Status::Running => self.start_failed(&report),
            Err(report) => {
                let text = report.lines().join(": ");
                let what_now = match self.revive_own_network() {
                    Ok(()) => {
                        self.follow_resolvers();
                        "it was started again; connections through it are lost".to_owned()
                    }
                    Err(report) => format!("the container goes on without it: {}", report.lines().join(": ")),
                };
                self.notice(MAIN, &format!("network: {text}; {what_now}"));
            }
        }
    }

    fn on_answers(&mut self) {
        if let Err(report) = self.answers.on_ready(&self.config.id, self.outer.as_fd()) {
            let text = report.lines().join(": ");
            self.notice(MAIN, &format!("one id: {text}; calls that give files to other users, or become them, fail"));
        }
    }

    fn on_channel(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let event = process.on_channel();
        let result = match event {
            Err(report) => Err(report),
            Ok(Event::Nothing) => Ok(()),
            Ok(Event::Born) => {
                self.born(key);
                Ok(())
            }
            Ok(Event::Notice(text)) => {
                self.notice(key, &text);
                Ok(())
            }
            Ok(Event::Mounted) => self.on_mounted(),
            Ok(Event::Tap(tap)) => self.resources.hand_tap(&tap),
            Ok(Event::Network(namespace)) => self.plug(&namespace),
            Ok(Event::Listener(listener)) => {
                self.answers.add(listener);
                Ok(())
            }
            Ok(Event::Ready) if key == MAIN => {
                self.try_go();
                Ok(())
            }
            Ok(Event::Ready) => process.go(),
            Ok(Event::Started) => self.started(key),
            Ok(Event::Failed) => {
                self.failed(key);
                Ok(())
            }
        };
        if let Err(report) = result {
            if key == MAIN {
                self.start_failed(&report);
            } else if let Some(process) = self.processes.get_mut(&key) {
                process.abandon(&report);
                self.failed(key);
            }
        }
    }

    /// Records init while it is at work: a payload may have ended before the monitor hears that it runs.
    fn born(&mut self, key: u64) {
        if key == MAIN
            && let Some(pid) = self.processes.get(&MAIN).and_then(|process| process.pid)
        {
            // It is written again where this fails.
            let _ = self.write_pid(pid);
        }
    }

    /// GO once init is ready and the network is up.
    fn try_go(&mut self) {
        if !self.resources.net_ready() || !self.networks.are_ready() {
            return;
        }
        let Some(main) = self.processes.get_mut(&MAIN).filter(|main| main.phase == Phase::Ready) else { return };
        if let Some(pid) = main.pid.filter(|_| self.config.hold) {
            self.tell(MAIN, &Frame::Started { pid });
        } else if let Err(report) = main.go() {
            self.start_failed(&report);
        }
    }

    /// The payload runs: record it, then tell.
    fn started(&mut self, key: u64) -> Result<(), Report> {
        let Some(pid) = self.processes.get(&key).and_then(|process| process.pid) else { return Ok(()) };
        sys::memory::release_code();
        if key == MAIN {
            // Of a payload that has ended already there is nothing to hold.
            self.mounts = proc_dir(pid).and_then(|process| open_namespace(process.as_fd(), "mnt")).ok();
            self.write_pid(pid)?;
            self.state.status = Status::Running;
            self.state.pid = Some(pid);
            self.state.started_at = Some(rfc3339(SystemTime::now()));
            (self.state.exit_code, self.state.oom_killed) = (None, false);
            self.again.started = Some(Instant::now());
            self.begin_probes();
            record::write_state(&self.config.container_dir, &self.state, false)?;
            self.write_pid_file(pid);
            self.event("start", &[]);
            self.poststart(pid)?;
        } else if let Some(execution) = self.processes.get(&key).and_then(|process| process.execution.as_ref()) {
            self.event(&execution.action("exec_start"), &[execution.detail()]);
        }
        let detached = self.processes.get(&key).is_some_and(|process| process.detached);
        for client in self.clients.values_mut().filter(|client| client.bound == Some(key)) {
            client.send(&Frame::Started { pid });
            client.closing |= detached;
        }
        self.settled_at = Some(Instant::now() + SETTLING);
        sys::memory::release_code();
        if key == MAIN {
            self.follow_resolvers();
        }
        Ok(())
    }

    /// Now that nobody waits for the start.
    fn follow_resolvers(&mut self) {
        let network = self.config.network.as_ref().filter(|network| network.resolvers_are_the_hosts);
        let own = network.map(|network| self.resources.follow_resolvers(&network.resolvers));
        let shares = self.networks.joinings().next().is_some();
        let shared = shares.then(|| self.networks.follow_resolvers());
        let followed = own.or(shared);
        if let Some(Err(report)) = followed {
            let hint = report.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            let text = format!(
                "names: the host's resolvers are asked as they were at the start ({}){hint}",
                report.lines().join(": ")
            );
            self.notice(MAIN, &text);
        }
    }

    /// Writes `pid.json`, unless it says so already.
    fn write_pid(&mut self, pid: i32) -> Result<(), Report> {
        let networks: Vec<Joining> = self.networks.joinings().cloned().collect();
        let current = Some((pid, self.published.len(), networks.clone()));
        if self.recorded == current {
            return Ok(());
        }
        let monitor_pid = std::process::id() as i32;
        // The payload may have ended already; then its start time is unknown and no other process can match 0.
        let start_time = sys::process::start_time(pid).unwrap_or(0);
        let record = PidRecord {
            format: FORMAT,
            pid,
            start_time,
            boot_id: sys::process::boot_id()?,
            monitor_pid,
            monitor_start_time: sys::process::start_time(monitor_pid)?,
            cgroup: self.resources.cgroup_path(),
            published: self.published.clone(),
            networks,
        };
        record::write_pid(&self.config.container_dir, &record)?;
        self.recorded = current;
        Ok(())
    }

    /// Writes the file that the user has asked for.
    fn write_pid_file(&mut self, pid: i32) {
        if let Some(file) = &self.pid_file
            && let Err(error) = file.write(pid)
        {
            let (path, why) = (file.path().display(), Report::from(error).lines().join(": "));
            let text = format!("the container's pid could not be written to {path}: {why}");
            self.notice(MAIN, &text);
        }
    }

    /// The container could not be started: record why, tell, end.
    fn start_failed(&mut self, report: &Report) {
        match self.processes.get_mut(&MAIN) {
            Some(main) => {
                main.abandon(report);
                self.failed(MAIN);
            }
            None => self.record_failure(&Failure::from(report)),
        }
    }

    fn failed(&mut self, key: u64) {
        let Some(Phase::Failed(failure)) = self.processes.get(&key).map(|process| &process.phase) else { return };
        let failure = failure.clone();
        if key == MAIN {
            self.record_failure(&failure);
            return;
        }
        if self.probes.output_of(key).is_some() {
            // A probe that could not be started is one that has failed.
            return;
        }
        for client in self.clients.values_mut().filter(|client| client.bound == Some(key)) {
            client.send(&Frame::Failed(failure.clone()));
            client.closing = true;
        }
    }

    fn record_failure(&mut self, failure: &Failure) {
        if self.state.error.is_some() {
            return;
        }
        self.state = State {
            exit_code: Some(i32::from(failure.kind.exit_code_of_run())),
            error: Some(failure.lines.join(": ")),
            ..self.config.before.clone()
        };
        if !self.config.hold {
            self.write_state(true);
        }
        self.tell(MAIN, &Frame::Failed(failure.clone()));
        self.drain_until.get_or_insert_with(|| Instant::now() + DRAIN);
    }

    /// A state that cannot be written is said to whoever listens; the run directory still tells that we are gone.
    fn write_state(&mut self, sync: bool) {
        if let Err(error) = record::write_state(&self.config.container_dir, &self.state, sync) {
            self.notice(MAIN, &format!("the state of the container could not be recorded: {error}"));
        }
    }

    fn pump(&mut self, key: u64, stream: Stream) -> bool {
        let Some(process) = self.processes.get_mut(&key) else { return false };
        let mut bound: Vec<&mut Client> =
            self.clients.values_mut().filter(|client| client.bound == Some(key) && !client.closing).collect();
        let sink = match key {
            MAIN => Some(&mut self.log as &mut dyn Sink),
            key => self.probes.output_of(key).map(|output| output as &mut dyn Sink),
        };
        process.streams.pump(stream, sink, &mut bound)
    }

    /// Reads what a process that has ended has left in its pipes, and no more: others may go on writing there.
    fn drain(&mut self, key: u64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let _more = (0..DRAIN_READS).all(|_| self.pump(key, stream));
        }
    }

    // ---- what clients are told ----

    fn notice(&mut self, key: u64, text: &str) {
        self.tell(key, &Frame::Notice(text.to_owned()));
    }

    fn tell(&mut self, key: u64, frame: &Frame) {
        for client in self.clients.values_mut().filter(|client| client.bound == Some(key)) {
            client.send(frame);
        }
    }

    // ---- the end ----

    /// Notices what has ended: execs answer their clients, the main process ends the loop.
    fn check_end(&mut self) {
        self.claim_exits();
        let ended: Vec<u64> = self
            .processes
            .iter()
            .filter(|(key, process)| **key != MAIN && process.finished())
            .map(|(key, _)| *key)
            .collect();
        for key in ended {
            self.drain(key);
            let Some(process) = self.processes.remove(&key) else { continue };
            let code = process.exit.map_or(125, Exit::shell_code);
            if let Some(execution) = process.execution.as_ref().filter(|_| process.phase == Phase::Running) {
                self.event("exec_die", &[execution.detail(), ("exitCode", code.to_string())]);
            }
            self.take_probe(key, &process);
            for client in self.clients.values_mut().filter(|client| client.bound == Some(key)) {
                if process.phase == Phase::Running {
                    client.send(&Frame::Exit(code));
                }
                client.closing = true;
            }
        }
        let main_gone = self.processes.get(&MAIN).is_none_or(Supervised::finished);
        if !main_gone || self.again.at.is_some() {
            return;
        }
        let until = *self.drain_until.get_or_insert_with(|| Instant::now() + DRAIN);
        let drained = self.processes.get(&MAIN).is_none_or(|main| main.streams.ended());
        if drained || Instant::now() >= until {
            self.finish_log();
            self.end_probes();
            self.finished |= !self.prepare_again();
        }
    }

    /// Nothing more of the run that has ended comes into the log.
    fn finish_log(&mut self) {
        self.drain(MAIN);
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.log.finish(stream);
        }
    }

    /// What is to be known of the run that has ended.
    fn take_exit(&mut self) {
        let exit = self.processes.get(&MAIN).and_then(|main| main.exit);
        self.state.pid = None;
        self.state.finished_at = Some(rfc3339(SystemTime::now()));
        self.state.exit_code = exit.map(Exit::shell_code);
        self.state.oom_killed = self.resources.oom_killed();
        if self.state.oom_killed {
            self.event("oom", &[]);
        }
        let code = exit.map(|exit| exit.shell_code().to_string());
        let ran_s = self.again.started.map(|started| started.elapsed().as_secs().to_string());
        let details = [("exitCode", code), ("execDuration", ran_s)];
        let details: Vec<_> = details.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        self.event("die", &details);
    }

    /// Tells of a change of the container.
    fn event(&self, action: &str, details: &[(&str, String)]) {
        if let Some(order) = &self.config.events {
            (self.callbacks.event)(order, action, details);
        }
    }

    /// The exit record, the clients, and everything that was made for the container.
    fn end(mut self) -> ExitCode {
        if self.log.lost() > 0 {
            let lost = self.log.lost();
            self.notice(MAIN, &format!("{lost} bytes of the log could not be written; the disk may be full"));
        }
        if self.state.error.is_none() {
            if !self.is_again() {
                self.take_exit();
            }
            self.state.status = Status::Exited;
            if self.config.after.remove.is_none() {
                // From the record on it may be started again, over the same writable layer.
                self.mounts = None;
            }
            // What is removed at once need not outlast a power loss.
            self.write_state(self.config.after.remove.is_none());
            if let Some(exit) = self.processes.get(&MAIN).and_then(|main| main.exit) {
                self.tell_exit(exit.shell_code());
            }
        }
        // Who waits and was told nothing is told by the end of the connection to look at the record: of a start that has failed,
        // and who has connected since the loop ended.
        self.listener = None;
        self.clients.retain(|_, client| client.bound.is_some() || client.waiting());
        self.answers.tear_down();
        self.networks = Networks::default();
        for failure in self.resources.tear_down() {
            self.notice(MAIN, &failure.lines().join(": "));
        }
        self.poststop();
        // Before the farewell, which slow clients draw out: the next start may come at once.
        tidy::forget_run_dir(&self.config.container_dir, &self.config.run_dir);
        let After { reclaim, volumes, remove: order, unmount_first } = self.config.after.clone();
        if unmount_first {
            (self.mounts, self.view, self.fs) = (None, None, None);
        }
        if let Some(Err(report)) = volumes.map(|order| (self.callbacks.volumes)(&order, self.outer.as_fd())) {
            // The next command that looks at them tries again.
            self.notice(MAIN, &format!("volumes: their files are not given back: {}", report.lines().join(": ")));
        }
        let remove = self.callbacks.remove;
        let outer = self.outer.try_clone().call(|| "fcntl(outer user namespace, F_DUPFD_CLOEXEC)".to_owned());
        let removed = order.as_deref().map(|order| remove(order, outer?.as_fd(), &mut || self.leave()));
        if let Some(Err(report)) = &removed {
            self.notice(MAIN, &format!("the container is not removed: {}", report.lines().join(": ")));
        }
        self.leave();
        if removed.is_none() {
            // That has no listener left; the next command does it.
            let _ = tidy::reclaim(&self.config.container_dir, &self.outer, &reclaim);
        }
        ExitCode::SUCCESS
    }

    /// Lets go of clients and mounts.
    fn leave(&mut self) {
        self.farewell();
        self.mounts = None;
    }
}

/// Why a start that was going well has failed.
fn given_up() -> Report {
    Report::new(
        Kind::Conflict,
        "the start was given up, by who had asked for it or by a command that ends the container",
    )
}

/// SIGCHLD and the SIGIO of a change by descriptor; signals meant for a command line leave the container alone.
fn take_signals() -> Result<SignalFd, SysError> {
    let taken: SigSet = [Signal::SIGCHLD, Signal::SIGIO].into_iter().collect();
    let ignored: SigSet =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP].into_iter().collect();
    let mut blocked = taken;
    blocked.extend(ignored.iter());
    blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK).call(|| "sigprocmask(SIG_SETMASK)".to_owned())?;
    SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).call(|| "signalfd()".to_owned())
}
