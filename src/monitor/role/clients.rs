//! The monitor's clients: who may connect, what their frames ask for, and how they are let go.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use base::{Failure, Kind, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockFlag, bind, listen};
use runtime::Launch;
use runtime::launch::ExecLaunch;
use sys::socket::{address_in, open_directory, seqpacket};
use sys::{Call, SysError};

use crate::protocol::{self, ExecRequest, Frame, Received};
use crate::record::Status;
use crate::restart::{Policy, is_end};
use crate::role::pipes::PayloadEnds;
use crate::role::{MAIN, Monitor, given_up};
use crate::streams::{Client, Streams};
use crate::supervised::{Execution, Given, Phase, Supervised};

/// How long a client may take to read what is left after the exit.
const FAREWELL: Duration = Duration::from_secs(30);
/// How many clients and executed processes may be there at once.
const CLIENTS_MAX: usize = 256;

impl Monitor {
    /// The command that starts the container.
    pub(super) fn adopt_starter(&mut self, socket: OwnedFd) {
        let feeds = self.config.client_feeds && self.config.stdin;
        if let Some(client) = self.adopt_client(socket) {
            client.bound = Some(MAIN);
            client.feeds = feeds;
        }
    }

    /// A socket that cannot be made non-blocking is closed: its peer sees the end.
    fn adopt_client(&mut self, socket: OwnedFd) -> Option<&mut Client> {
        let client = Client::new(socket).ok()?;
        self.next_key += 1;
        Some(self.clients.entry(self.next_key - 1).or_insert(client))
    }

    pub(super) fn on_connect(&mut self) {
        let Some(Ok(socket)) = self.listener.as_ref().map(|listener| sys::socket::accept(listener.as_fd())) else {
            return;
        };
        if self.clients.len() < CLIENTS_MAX && trusted(socket.as_fd()) {
            self.adopt_client(socket);
        }
    }

    pub(super) fn on_client(&mut self, key: u64) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.flush();
        if client.closing {
            return;
        }
        match protocol::receive(client.socket.as_fd(), &mut self.buffer) {
            Ok(Received::Frame(frame, fds)) => self.on_frame(key, frame, fds),
            Ok(Received::Unknown | Received::Nothing) => {}
            Ok(Received::End) | Err(_) => self.client_gone(key),
        }
    }

    /// Clients that take nothing while others wait for it, and until when each may do so. A command that nobody else has joined holds
    /// its process back as long as it likes, as any reader of a pipe.
    pub(super) fn stalled(&self) -> impl Iterator<Item = (u64, Instant)> {
        let is_awaited = |key: &u64, client: &Client| {
            let mut others = self.clients.iter().filter(|(other, _)| *other != key);
            client.joined || others.any(|(_, other)| other.bound == client.bound && !other.closing)
        };
        let waited_for = self.clients.iter().filter(move |(key, client)| client.full() && is_awaited(key, client));
        waited_for.filter_map(|(key, client)| Some((*key, client.patience()?)))
    }

    /// Lets go of clients for which others have waited long enough.
    pub(super) fn check_stalled(&mut self) {
        let now = Instant::now();
        let stalled: Vec<u64> = self.stalled().filter(|(_, until)| *until <= now).map(|(key, _)| key).collect();
        for key in stalled {
            let Some(client) = self.clients.get_mut(&key) else { continue };
            let report =
                Report::new(Kind::Conflict, "the container's output was not read for 10 s, and goes on without it")
                    .with_hint("`sublet logs` has all of it, `sublet attach` joins it again");
            let fed = client.bound.filter(|_| client.feeds);
            client.let_go(&Frame::Failed(Failure::from(&report)));
            if let Some(fed) = fed {
                self.end_input(fed);
            }
        }
    }

    fn client_gone(&mut self, key: u64) {
        let Some(client) = self.clients.remove(&key) else { return };
        if let Some(bound) = client.bound.filter(|_| client.feeds) {
            self.end_input(bound);
        }
    }

    /// The input of a process has ended; that of the main process may go on with another client.
    fn end_input(&mut self, key: u64) {
        if let Some(process) = self.processes.get_mut(&key).filter(|_| key != MAIN || self.config.stdin_once) {
            process.streams.end_input();
        }
    }

    fn on_frame(&mut self, key: u64, frame: Frame, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let bound = client.bound;
        match frame {
            Frame::Attach { stdin } => {
                (client.bound, client.joined) = (Some(MAIN), true);
                client.feeds = stdin && self.config.stdin;
                if let (Status::Running, Some(pid)) = (self.state.status, self.state.pid) {
                    client.send(&Frame::Started { pid });
                }
            }
            Frame::Abort(number) => self.abort(bound.unwrap_or(MAIN), number),
            Frame::Exec(request) => self.exec(key, *request),
            Frame::Terms(terms) => {
                client.closing = true;
                self.take_terms(*terms);
            }
            Frame::Probe => self.probe_for(key),
            Frame::Connect(admission) => self.connect(key, *admission, fds),
            Frame::Rename(name) => self.rename(key, &name),
            Frame::Disconnect(network) => self.disconnect(key, &network),
            Frame::Observe(network) => self.show(key, network.as_deref(), &fds),
            Frame::AskOuter => {
                let sent = protocol::send(client.socket.as_fd(), &Frame::Outer, &[self.outer.as_fd()]);
                client.closing |= sent.is_err();
            }
            Frame::Input(bytes) => {
                if let Some(process) = bound.and_then(|bound| self.processes.get_mut(&bound)) {
                    process.streams.feed(&bytes);
                }
            }
            Frame::InputEnd => {
                client.feeds = false;
                if let Some(bound) = bound {
                    self.end_input(bound);
                }
            }
            Frame::Resize(size) => {
                if let Some(process) = bound.and_then(|bound| self.processes.get(&bound)) {
                    process.streams.resize(size);
                }
            }
            Frame::Signal(number) => self.signal(bound.unwrap_or(MAIN), number),
            // Frames of our own direction mean nothing from a client.
            _ => {}
        }
    }

    /// Sends a signal to a process; one that ends the container ends its policy too.
    fn signal(&mut self, key: u64, number: i32) {
        let Some(process) = self.processes.get(&key) else { return };
        if key == MAIN && is_end(number, self.config.stop_signal) {
            self.config.restart = Policy::No;
        }
        // A process that has just ended needs none.
        let _ = process.signal(number);
    }

    /// Gives the start of a process up, or sends the signal to one that runs already; 0 is no signal.
    fn abort(&mut self, key: u64, number: i32) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if !process.is_starting() {
            if number != 0 {
                self.signal(key, number);
            }
            return;
        }
        if key == MAIN {
            self.start_failed(&given_up());
        } else {
            process.abandon(&given_up());
            self.failed(key);
        }
    }

    fn exec(&mut self, client: u64, request: ExecRequest) {
        let key = self.next_key;
        self.next_key += 1;
        if let Some(client) = self.clients.get_mut(&client) {
            client.bound = Some(key);
            client.feeds = request.stdin;
        }
        match self.start_exec(request) {
            Ok(process) => drop(self.processes.insert(key, process)),
            Err(report) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.send(&Frame::Failed(Failure::from(&report)));
                    client.closing = true;
                }
            }
        }
    }

    pub(super) fn start_exec(&self, request: ExecRequest) -> Result<Supervised, Report> {
        let main = self.processes.get(&MAIN).filter(|main| main.phase == Phase::Running && main.exit.is_none());
        let Some((init_pid, init)) = main.and_then(|main| Some((main.pid?, main.pidfd.as_ref()?))) else {
            return Err(Report::new(Kind::Conflict, format!("container {} is not running", self.config.id)));
        };
        let terminal = request.process.terminal().unwrap_or(false);
        let (streams, ends) = if terminal || request.detach {
            (Streams::default(), PayloadEnds::default())
        } else {
            self.exec_pipes(request.stdin)?
        };
        let container = Launch::read(&self.config.launch)?;
        let launch = ExecLaunch {
            process: request.process,
            user: request.user,
            groups: container.groups,
            init_pid,
            seccomp: runtime::launch::profile(&container.spec).cloned(),
            // The engine sets neither.
            memory_policy: None,
            personality: None,
            default_profile: container.default_profile,
            notify: container.notify,
            setgroups: container.setgroups,
            keep_groups: container.keep_groups,
            preserve_fds: 0,
            listen_fds: 0,
            bundle: None,
            annotations: None,
            keyring: true,
        };
        let execution = Execution::new(launch.process.args().as_deref().unwrap_or_default())?;
        let config = serde_json::to_vec(&launch).map_err(|error| Report::of(Kind::Internal, error))?;
        let fds = vec![("outer", self.outer.as_fd()), ("init", init.as_fd())];
        let cgroup = self.resources.cgroup_for_exec(init_pid)?;
        let given = Given { fds, stdio: ends.stdio(), cgroup: cgroup.as_ref().map(AsFd::as_fd) };
        let mut process = Supervised::start_exec(self.config.id.short(), &config, &given, streams)?;
        process.detached = request.detach;
        self.event(&execution.action("exec_create"), &[execution.detail()]);
        process.execution = Some(execution);
        Ok(process)
    }

    /// Lets clients read what is queued for them, up to a limit.
    pub(super) fn farewell(&mut self) {
        let until = Instant::now() + FAREWELL;
        while self.clients.values().any(Client::waiting) && Instant::now() < until {
            let fds: Vec<_> = self.clients.values().filter(|client| client.waiting()).collect();
            let mut fds: Vec<PollFd<'_>> =
                fds.iter().map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLOUT)).collect();
            // A failing poll only costs another round.
            let _ = poll(&mut fds, PollTimeout::from(1000u16));
            self.clients.values_mut().for_each(Client::flush);
            // Who has everything need not wait for a slower one.
            self.clients.retain(|_, client| client.waiting());
        }
        self.clients.clear();
    }
}

/// Binds the monitor's socket in the runtime directory, which only the user may enter.
pub(super) fn listen_in(run_dir: &Path) -> Result<OwnedFd, SysError> {
    let path = run_dir.join("sock");
    match nix::unistd::unlink(&path) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(SysError::new(format!("unlink({path:?})"), errno)),
    }
    let directory = open_directory(run_dir)?;
    let fd = seqpacket(SockFlag::SOCK_NONBLOCK)?;
    bind(fd.as_raw_fd(), &address_in(directory.as_fd(), "sock")?).call(|| format!("bind({path:?})"))?;
    listen(&fd, Backlog::MAXCONN).call(|| format!("listen({path:?})"))?;
    Ok(fd)
}

/// Whether a client has sent something, or is gone.
pub(super) fn has_spoken(client: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::POLLIN)];
    // One that cannot be asked is no help either.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// A peer is served when its user *and its user namespace* are ours: inside a container into which the directory was
/// bound, our own uid would show too.
fn trusted(socket: BorrowedFd<'_>) -> bool {
    let Ok((pid, uid)) = sys::socket::peer(socket) else { return false };
    uid == nix::unistd::geteuid().as_raw() && is_in_our_namespace(socket, pid).unwrap_or(false)
}

fn is_in_our_namespace(socket: BorrowedFd<'_>, pid: i32) -> Result<bool, SysError> {
    let process = match sys::socket::peer_process(socket) {
        // Before Linux 6.5. Then a peer that has handed its end on and ended can be taken for whoever has got its pid.
        Err(error) if error.errno() == Errno::ENOPROTOOPT => None,
        process => Some(process?),
    };
    let theirs = sys::namespace::open_namespace(sys::namespace::proc_dir(pid)?.as_fd(), "user")?;
    // As long as the peer is there, the pid was its own.
    if let Some(process) = process {
        sys::process::pidfd_send_signal(process.as_fd(), 0)?;
    }
    Ok(sys::namespace::identity(theirs)? == sys::namespace::identity(sys::namespace::open_own("user")?)?)
}
