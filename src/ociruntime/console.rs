//! The terminal of a process: handed to the caller's socket, or carried to the caller's own terminal.

use std::io::{self, IoSlice, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::{Context, Kind, Report};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use oci_spec::runtime::Process;
use runtime::signals;
use sys::process::{Exit, pidfd_send_signal, reap};
use sys::terminal::{Raw, WindowSize, set_window_size, window_size};
use sys::{Call, SysError};

use crate::log::Log;
use crate::notify::Proxy;

/// A terminal needs somebody who holds its master once we are gone.
pub fn check_holder(process: Option<&Process>, detached: bool, socket: Option<&Path>) -> Result<(), Report> {
    let terminal = process.and_then(Process::terminal).unwrap_or(false);
    if terminal && detached && socket.is_none() {
        return Err(Report::new(Kind::Usage, "the process has a terminal, and no --console-socket says who gets it"));
    }
    Ok(())
}

/// Gives the terminal the size that the configuration asks for.
pub fn resize(master: BorrowedFd<'_>, process: &Process) -> Result<(), SysError> {
    let Some(wanted) = process.console_size() else { return Ok(()) };
    let number = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    set_window_size(master, WindowSize { rows: number(wanted.height()), columns: number(wanted.width()) })
}

/// Sends the terminal's master to who listens at `path`: one message with the descriptor and its name, as runc does.
pub fn send(path: &Path, master: BorrowedFd<'_>) -> Result<(), Report> {
    let step = || format!("sending the terminal to {}", path.display());
    // The path may be longer than an address holds.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = sys::socket::open_directory(directory).step(step)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let address = sys::socket::address_in(directory.as_fd(), &name).step(step)?;
    let peer = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .call(|| "socket(AF_UNIX, SOCK_STREAM)".to_owned())?;
    connect(peer.as_raw_fd(), &address).call(|| format!("connect({path:?})")).step(step)?;
    let rights = [master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let sent =
        sendmsg::<UnixAddr>(peer.as_raw_fd(), &[IoSlice::new(b"/dev/ptmx")], &control, MsgFlags::MSG_NOSIGNAL, None);
    sent.call(|| format!("sendmsg({path:?})")).step(step)?;
    Ok(())
}

/// Waits for a child and hands our signals on to it; with `master`, its terminal is carried to ours, and with `notify` its
/// word that it is ready, for our own process, to the service manager. The answer is the code as a shell shows it.
pub fn wait(child: &OwnedFd, master: Option<OwnedFd>, mut notify: Option<Proxy>, log: &Log) -> Result<i32, Report> {
    let signals = signals::open(&signals::forwarded())?;
    let raw = (master.is_some() && io::stdin().is_terminal()).then(|| Raw::enter(io::stdin())).transpose()?;
    let mut relay = master.map(Relay::new).transpose()?;
    if let Some(relay) = &relay {
        relay.resize();
    }
    let exit = loop {
        let ready = wait_for_any(child, &signals, relay.as_ref(), notify.as_ref())?;
        let is = |source: Source| ready.contains(&source);
        if is(Source::Signals) {
            while let Ok(Some(info)) = signals.read_signal() {
                match (info.ssi_signo as i32, &relay) {
                    (number, Some(relay)) if number == Signal::SIGWINCH as i32 => relay.resize(),
                    // It may have ended; then the next round sees it.
                    (number, _) => drop(pidfd_send_signal(child.as_fd(), number)),
                }
            }
        }
        if let Some(one) = &mut relay {
            if is(Source::Input) {
                one.take_input();
            }
            if is(Source::Input) || is(Source::MasterTakes) {
                one.give_input();
            }
            let open = (!is(Source::MasterGives) || one.take_output()) && (!is(Source::Output) || one.give_output());
            if !open {
                relay = None;
            }
        }
        if is(Source::Notification)
            && let Some(proxy) = notify.take_if(|proxy| proxy.hear() == Some(true))
        {
            proxy.tell(std::process::id() as i32, log);
        }
        // What it said last is read before its end is taken.
        if is(Source::Child)
            && !is(Source::MasterGives)
            && !is(Source::Notification)
            && let Some(exit) = reap(child.as_fd(), false)?
        {
            break exit;
        }
    };
    drop(raw);
    Ok(Exit::shell_code(exit))
}

/// What a waiting command waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Child,
    Input,
    MasterTakes,
    MasterGives,
    Output,
    Notification,
}

/// Waits until something can be done. Nothing is asked that has no use now: a terminal whose other side has hung up, or a
/// child that has ended, would answer over and over while nobody takes the output.
fn wait_for_any(
    child: &OwnedFd,
    signals: &SignalFd,
    relay: Option<&Relay>,
    notify: Option<&Proxy>,
) -> Result<Vec<Source>, SysError> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut asked = vec![(Source::Signals, signals.as_fd(), PollFlags::POLLIN)];
    match relay.filter(|relay| !relay.to_stdout.is_empty()) {
        // Then its end can wait too.
        Some(_) => asked.push((Source::Output, stdout.as_fd(), PollFlags::POLLOUT)),
        None => asked.push((Source::Child, child.as_fd(), PollFlags::POLLIN)),
    }
    if let Some(relay) = relay {
        if relay.to_stdout.is_empty() {
            asked.push((Source::MasterGives, relay.master.as_fd(), PollFlags::POLLIN));
        }
        if !relay.to_master.is_empty() {
            asked.push((Source::MasterTakes, relay.master.as_fd(), PollFlags::POLLOUT));
        } else if relay.input {
            asked.push((Source::Input, stdin.as_fd(), PollFlags::POLLIN));
        }
    }
    asked.extend(notify.map(|proxy| (Source::Notification, proxy.as_fd(), PollFlags::POLLIN)));
    let mut fds: Vec<PollFd<'_>> = asked.iter().map(|(_, fd, events)| PollFd::new(*fd, *events)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(SysError::new("poll()", errno)),
    }
    let ready = asked.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
    Ok(ready.map(|((source, _, _), _)| *source).collect())
}

/// Carries bytes between a terminal's master and our own streams. In neither direction is anything read while what was
/// read before waits for its taker, so that each goes on when the other cannot.
struct Relay {
    /// Non-blocking.
    master: OwnedFd,
    input: bool,
    to_master: Vec<u8>,
    to_stdout: Vec<u8>,
}

/// A pipe that is ready takes so much without blocking (PIPE_BUF).
const CHUNK: usize = 4096;

impl Relay {
    fn new(master: OwnedFd) -> Result<Self, SysError> {
        let flags = fcntl(&master, FcntlArg::F_GETFL).call(|| "fcntl(terminal, F_GETFL)".to_owned())?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(flags)).call(|| "fcntl(terminal, O_NONBLOCK)".to_owned())?;
        Ok(Relay { master, input: true, to_master: Vec::new(), to_stdout: Vec::new() })
    }

    fn resize(&self) {
        if let Ok(size) = window_size(io::stdout().as_fd()) {
            // A terminal that is gone needs no size.
            let _ = set_window_size(self.master.as_fd(), size);
        }
    }

    fn take_input(&mut self) {
        let mut buffer = [0; CHUNK];
        match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(0) | Err(Errno::EIO) => self.input = false,
            Ok(length) => self.to_master.extend_from_slice(&buffer[..length]),
            Err(_) => {}
        }
    }

    fn give_input(&mut self) {
        if write_some(self.master.as_fd(), &mut self.to_master).is_err() {
            // The program has closed its terminal; there is nobody to tell.
            self.to_master.clear();
            self.input = false;
        }
    }

    /// False once the other end is closed by everybody (EIO, pty(7)).
    fn take_output(&mut self) -> bool {
        let mut buffer = [0; 4 * CHUNK];
        match nix::unistd::read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => return false,
            Ok(length) => self.to_stdout.extend_from_slice(&buffer[..length]),
            Err(_) => {}
        }
        true
    }

    /// False when nobody reads it any more.
    fn give_output(&mut self) -> bool {
        write_some(io::stdout().as_fd(), &mut self.to_stdout).is_ok()
    }
}

/// Writes a chunk and drops from `bytes` what was taken; that it would block is no error.
fn write_some(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> nix::Result<()> {
    match nix::unistd::write(to, &bytes[..bytes.len().min(CHUNK)]) {
        Ok(length) => drop(bytes.drain(..length)),
        Err(Errno::EINTR | Errno::EAGAIN) => {}
        Err(errno) => return Err(errno),
    }
    Ok(())
}
