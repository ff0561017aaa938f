//! The terminal of a process: handed to the caller's socket, or carried to the caller's own terminal.

use std::io::{self, IoSlice, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::{Context, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use oci_spec::runtime::Process;
use sys::process::{Exit, pidfd_send_signal, reap};
use sys::terminal::{WindowSize, set_window_size, window_size};
use sys::{Call, SysError};

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

/// The signals that a waiting command hands on.
const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Blocks the signals that [`wait`] hands on; to be called before the process exists, so that none is lost.
pub fn block_signals() -> Result<(), SysError> {
    FORWARDED.into_iter().collect::<SigSet>().thread_block().call(|| "sigprocmask(SIG_BLOCK)".to_owned())
}

/// Waits for a child and hands our signals on to it; with `master`, its terminal is carried to ours. The answer is the
/// code as a shell shows it.
pub fn wait(child: &OwnedFd, master: Option<OwnedFd>) -> Result<i32, Report> {
    let signals =
        SignalFd::with_flags(&FORWARDED.into_iter().collect(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .call(|| "signalfd()".to_owned())?;
    let raw = master.as_ref().map(|_| RawTerminal::enter()).transpose()?;
    let mut relay = master.map(|master| Relay { master, input: true });
    if let Some(relay) = &relay {
        relay.resize();
    }
    let exit = loop {
        let (ended, signal, output, input) = ready(child, &signals, relay.as_ref())?;
        if signal {
            while let Ok(Some(info)) = signals.read_signal() {
                match (info.ssi_signo as i32, &relay) {
                    (number, Some(relay)) if number == Signal::SIGWINCH as i32 => relay.resize(),
                    // It may have ended; then the next round sees it.
                    (number, _) => drop(pidfd_send_signal(child.as_fd(), number)),
                }
            }
        }
        if let Some(one) = &mut relay {
            if input {
                one.take_input();
            }
            if output && !one.give_output() {
                relay = None;
            }
        }
        // What it said last is read before its end is taken.
        if ended
            && !output
            && let Some(exit) = reap(child.as_fd(), false)?
        {
            break exit;
        }
    };
    drop(raw);
    Ok(Exit::shell_code(exit))
}

fn ready(child: &OwnedFd, signals: &SignalFd, relay: Option<&Relay>) -> Result<(bool, bool, bool, bool), SysError> {
    let stdin = io::stdin();
    let mut fds = vec![PollFd::new(child.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    if let Some(relay) = relay {
        fds.push(PollFd::new(relay.master.as_fd(), PollFlags::POLLIN));
        if relay.input {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
    }
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(SysError::new("poll()", errno)),
    }
    let ready = |position: usize| fds.get(position).is_some_and(|fd| fd.any().unwrap_or(false));
    Ok((ready(0), ready(1), ready(2), ready(3)))
}

/// Carries bytes between a terminal's master and our own streams.
struct Relay {
    master: OwnedFd,
    input: bool,
}

impl Relay {
    fn resize(&self) {
        if let Ok(size) = window_size(io::stdout().as_fd()) {
            // A terminal that is gone needs no size.
            let _ = set_window_size(self.master.as_fd(), size);
        }
    }

    fn take_input(&mut self) {
        let mut buffer = [0; 4096];
        match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(0) | Err(Errno::EIO) => self.input = false,
            // The program may have closed its terminal; then there is nobody to tell.
            Ok(length) => drop(write_all(self.master.as_fd(), &buffer[..length])),
            Err(_) => {}
        }
    }

    /// False once the other end is closed by everybody (EIO, pty(7)).
    fn give_output(&self) -> bool {
        let mut buffer = [0; 16384];
        match nix::unistd::read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => false,
            Ok(length) => write_all(io::stdout().as_fd(), &buffer[..length]).is_ok(),
            Err(_) => true,
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Our terminal in raw mode, until it is dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Result<Self, SysError> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(RawTerminal(None));
        }
        let before = tcgetattr(&stdin).call(|| "tcgetattr()".to_owned())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).call(|| "tcsetattr(raw)".to_owned())?;
        Ok(RawTerminal(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may have hung up.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
