//! The client's half of a monitor's socket: bind to a process, carry its streams to our own, learn how it ended.
//!
//! Runs in the command line's process, which has one thread. Terminal input is raw while a container's terminal is
//! attached, and set back whatever happens. The keys that detach are matched here, byte by byte.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use base::{Explain, Kind, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{SockFlag, connect};
use runtime::signals;
pub use runtime::signals::{block as block_signals, unblock as unblock_signals};
use sys::socket::{address_in, open_directory, seqpacket};
use sys::terminal::Raw;
use sys::{Call, SysError};

use crate::networks::Admission;
use crate::protocol::{self, DATA_MAX, FRAME_MAX, Frame, Received};
use crate::restart::Terms;

/// How long a monitor may take to answer what needs no work: it is busy with nothing that lasts.
const WORD_LIMIT: Duration = Duration::from_secs(10);
/// How long a monitor may take to give a start up, and again to tidy up after that, before nobody waits for it any more. It takes
/// milliseconds.
pub const ABORT_LIMIT: Duration = Duration::from_millis(300);

/// Why a client could not talk to a monitor.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the container does not run, or its monitor was killed.
    #[error("no monitor answers at {path:?}")]
    NoMonitor {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        source: SysError,
    },
    /// The monitor went away in the middle.
    #[error("the container's monitor ended unexpectedly")]
    Ended,
    /// A system call.
    #[error("the connection to the container's monitor failed")]
    System(#[from] SysError),
}

impl Explain for ClientError {
    fn kind(&self) -> Kind {
        match self {
            ClientError::NoMonitor { .. } => Kind::Conflict,
            ClientError::Ended => Kind::Internal,
            ClientError::System(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        let known = matches!(self, ClientError::NoMonitor { .. } | ClientError::Ended);
        known.then(|| "`sublet ps -a` shows the container's state; `sublet rm -f` ends and removes it".to_owned())
    }
}

/// Connects to the monitor of a running container by its runtime directory.
///
/// The path may be longer than a socket address holds, so the directory is reached by descriptor.
pub fn dial(run_dir: &Path) -> Result<OwnedFd, ClientError> {
    let path = run_dir.join("sock");
    let connected = open_directory(run_dir).and_then(|directory| {
        let fd = seqpacket(SockFlag::empty())?;
        connect(fd.as_raw_fd(), &address_in(directory.as_fd(), "sock")?).call(|| format!("connect({path:?})"))?;
        Ok(fd)
    });
    connected.map_err(|source| ClientError::NoMonitor { path, source })
}

/// How the pump is to treat our own streams.
#[derive(Clone, Debug)]
pub struct Streams {
    /// Our standard input goes to the process.
    pub stdin: bool,
    /// The process has a terminal: ours becomes raw.
    pub terminal: bool,
    /// Our output is fed.
    pub output: bool,
    /// Our error output is.
    pub error: bool,
    /// Signals that reach us are sent on to the process; else those that end programs end the pump.
    pub forward_signals: bool,
    /// What is typed at a terminal to detach; empty is nothing.
    pub detach_keys: Vec<u8>,
}

/// How a pump ended.
#[derive(Debug)]
pub enum Outcome {
    /// The process ended.
    Exit {
        /// With this code.
        code: i32,
        /// Why some of its output could not be written to our streams.
        unwritten: Option<Report>,
    },
    /// The user typed the detach keys.
    Detached,
    /// A signal that is not for the process has ended us, by number.
    Interrupted(i32),
    /// Nobody reads our output any more. The process goes on, and its log.
    Unread,
}

/// How the wait for a process that is being started ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It runs.
    Started,
    /// A signal that ends programs came before, by number, and the monitor was asked to give the start up.
    Interrupted(i32),
}

/// Waits until the process runs or its start has failed; notices go to `notice`. Used alone for `run -d`.
///
/// Signals must have been blocked by [`block_signals`]. One that ends programs ends the wait, after [`ABORT_LIMIT`] even if
/// the monitor says nothing. If it comes too late, the process gets it where `pass_on` says so.
pub fn wait_started(socket: BorrowedFd<'_>, pass_on: bool, mut notice: impl FnMut(&str)) -> Result<Begun, Report> {
    let signals = signals::open(&signals::ending())?;
    let mut buffer = vec![0; FRAME_MAX];
    let mut interrupted: Option<(i32, Instant)> = None;
    loop {
        let timeout = interrupted.map_or(PollTimeout::NONE, |(_, until)| {
            PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(socket, PollFlags::POLLIN)];
        if interrupted.is_none() {
            fds.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
        }
        match (poll(&mut fds, timeout), interrupted) {
            (Err(Errno::EINTR), _) => continue,
            (Err(errno), _) => return Err(SysError::new("poll(monitor)", errno).into()),
            (Ok(0), Some((signal, _))) => return Ok(Begun::Interrupted(signal)),
            (Ok(_), _) => {}
        }
        let is_ready = |position: usize| fds.get(position).is_some_and(|fd| fd.any().unwrap_or(false));
        let (answered, signalled) = (is_ready(0), is_ready(1));
        if signalled && let Ok(Some(info)) = signals.read_signal() {
            let signal = info.ssi_signo as i32;
            interrupted = Some((signal, Instant::now() + ABORT_LIMIT));
            // A monitor that is gone shows itself at the next receive.
            let _ = protocol::send(socket, &Frame::Abort(if pass_on { signal } else { 0 }), &[]);
        }
        if !answered {
            continue;
        }
        match (protocol::receive(socket, &mut buffer)?, interrupted) {
            (Received::Frame(Frame::Started { .. }, _), _) => return Ok(Begun::Started),
            (Received::Frame(Frame::Failed(_), _) | Received::End, Some((signal, _))) => {
                return Ok(Begun::Interrupted(signal));
            }
            (Received::Frame(Frame::Failed(failure), _), None) => return Err(failure.into()),
            (Received::Frame(Frame::Notice(text), _), None) => notice(&text),
            (Received::End, None) => return Err(ClientError::Ended.into()),
            _ => {}
        }
    }
}

/// Waits for the end of a monitor that was asked to give its start up, so that what it tidies up is gone; not for long.
pub fn wait_given_up(monitor: BorrowedFd<'_>) -> Result<(), SysError> {
    let limit = PollTimeout::try_from(ABORT_LIMIT).unwrap_or(PollTimeout::ZERO);
    // A failing poll costs only the wait.
    let _ = poll(&mut [PollFd::new(monitor, PollFlags::POLLIN)], limit);
    sys::process::reap(monitor, false).map(drop)
}

/// Carries the streams of the process that `socket` is bound to until it ends, the user detaches, or nobody reads them.
///
/// Signals must have been blocked by [`block_signals`] before the process was started, so that none is lost.
pub fn pump(socket: BorrowedFd<'_>, streams: Streams, mut notice: impl FnMut(&str)) -> Result<Outcome, Report> {
    let raw = (streams.terminal && streams.stdin && io::stdin().is_terminal()).then(|| Raw::enter(io::stdin()));
    let raw = raw.transpose()?;
    let signals = signals::open(&signals::forwarded())?;
    protocol::set_nonblocking(socket).call(|| "fcntl(monitor, O_NONBLOCK)".to_owned())?;
    let mut pump = Pump::new(socket, streams);
    pump.resize()?;
    let outcome = loop {
        let Ready { frames, room, signal, input } = pump.wait(&signals)?;
        if signal && let Some(number) = pump.take_signals(&signals)? {
            break Outcome::Interrupted(number);
        }
        if room {
            pump.flush()?;
        }
        if input && pump.take_input(&mut notice)? {
            break Outcome::Detached;
        }
        if frames && let Some(code) = pump.take_frame(&mut notice)? {
            break Outcome::Exit { code, unwritten: pump.unwritten.take() };
        }
        if pump.unread {
            break Outcome::Unread;
        }
    };
    drop(raw);
    Ok(outcome)
}

/// Waits until the monitor has let go of this client, which for a container that is removed at its end is when nothing
/// finds it any more; notices go to `notice`. A signal that ends programs ends the wait: the monitor goes on.
pub fn wait_end(socket: BorrowedFd<'_>, mut notice: impl FnMut(&str)) -> Result<(), Report> {
    let signals = signals::open(&signals::ending())?;
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        let wanted = PollFlags::POLLIN;
        let mut fds = [PollFd::new(socket, wanted), PollFd::new(signals.as_fd(), wanted)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(SysError::new("poll(monitor)", errno).into()),
            Ok(_) if fds[1].any().unwrap_or(false) => return Ok(()),
            Ok(_) => {}
        }
        match protocol::receive(socket, &mut buffer)? {
            Received::End => return Ok(()),
            Received::Frame(Frame::Notice(text), _) => notice(&text),
            _ => {}
        }
    }
}

/// The exit code of a container that has ended, as its monitor told this connection, on which nothing was asked for; `None`
/// where it did not come to that. What a monitor has sent can be read when it is gone.
pub fn exit_told(socket: BorrowedFd<'_>) -> Option<i32> {
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        match protocol::receive(socket, &mut buffer).ok()? {
            Received::Frame(Frame::Exit(code), _) => return Some(code),
            Received::End => return None,
            _ => {}
        }
    }
}

/// Has the container's health probed; the code of the probe.
pub fn probe(socket: BorrowedFd<'_>) -> Result<i32, Report> {
    protocol::send(socket, &Frame::Probe, &[])?;
    answered(socket, |_| {})
}

/// The code that a request is answered with.
fn answered(socket: BorrowedFd<'_>, mut notice: impl FnMut(&str)) -> Result<i32, Report> {
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        match protocol::receive(socket, &mut buffer)? {
            Received::Frame(Frame::Exit(code), _) => return Ok(code),
            Received::Frame(Frame::Failed(failure), _) => return Err(failure.into()),
            Received::Frame(Frame::Notice(text), _) => notice(&text),
            Received::End => return Err(ClientError::Ended.into()),
            _ => {}
        }
    }
}

/// Has a running container put into a network; membership and namespace come along.
pub fn join_network(
    socket: BorrowedFd<'_>,
    admission: Admission,
    fds: [BorrowedFd<'_>; 2],
    notice: impl FnMut(&str),
) -> Result<(), Report> {
    protocol::send(socket, &Frame::Connect(Box::new(admission)), &fds)?;
    answered(socket, notice).map(drop)
}

/// Tells a running container's networks its new name.
pub fn rename(socket: BorrowedFd<'_>, name: &str) -> Result<(), Report> {
    protocol::send(socket, &Frame::Rename(name.to_owned()), &[])?;
    answered(socket, |_| {}).map(drop)
}

/// Has a running container taken out of the network with this id.
pub fn leave_network(socket: BorrowedFd<'_>, network: &str, notice: impl FnMut(&str)) -> Result<(), Report> {
    protocol::send(socket, &Frame::Disconnect(network.to_owned()), &[])?;
    answered(socket, notice).map(drop)
}

/// Lets somebody look at the container's traffic in the shared network with this id, or without in its own, by that end of
/// [`net::observe`]'s socket.
pub fn show(socket: BorrowedFd<'_>, network: Option<&str>, observer: BorrowedFd<'_>) -> Result<(), Report> {
    protocol::send(socket, &Frame::Observe(network.map(str::to_owned)), &[observer])?;
    await_word(socket, Instant::now() + WORD_LIMIT)?;
    answered(socket, |_| {}).map(drop)
}

/// Sends a frame to a monitor that may end at any time; whether it was there to get it.
pub fn send_or_gone(socket: BorrowedFd<'_>, frame: &Frame) -> Result<bool, SysError> {
    match protocol::send(socket, frame, &[]) {
        Err(error) if matches!(error.errno(), Errno::EPIPE | Errno::ECONNRESET) => Ok(false),
        sent => sent.map(|()| true),
    }
}

/// Tells a monitor what holds for further starts of its container; it has taken that when this returns, or has ended.
pub fn set_terms(socket: BorrowedFd<'_>, terms: Terms) -> Result<(), Report> {
    if !send_or_gone(socket, &Frame::Terms(Box::new(terms)))? {
        return Ok(());
    }
    let until = Instant::now() + WORD_LIMIT;
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        await_word(socket, until)?;
        if matches!(protocol::receive(socket, &mut buffer)?, Received::End) {
            return Ok(());
        }
    }
}

/// Waits for a monitor to say something: one of another version may not know what it was asked.
fn await_word(socket: BorrowedFd<'_>, until: Instant) -> Result<(), Report> {
    loop {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], left) {
            Ok(0) => {
                let text = format!("the container's monitor has not answered within {} s", WORD_LIMIT.as_secs());
                return Err(Report::new(Kind::Conflict, text).with_hint(
                    "it may be of another version of sublet, or be stopped: end it, and start the container again",
                ));
            }
            Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(SysError::new("poll(monitor)", errno).into()),
        }
    }
}

/// Neither direction waits for the other: what the monitor does not take now waits in `unsent`, and as long as something
/// does, no input is read. A monitor that holds its input back until its output is read would never be free again.
struct Pump<'a> {
    /// Non-blocking.
    socket: BorrowedFd<'a>,
    streams: Streams,
    input_open: bool,
    /// Typed keys that may become those that detach.
    held: Vec<u8>,
    unsent: VecDeque<Vec<u8>>,
    unwritten: Option<Report>,
    unread: bool,
    buffer: Vec<u8>,
}

/// What can be done now.
struct Ready {
    frames: bool,
    room: bool,
    signal: bool,
    input: bool,
}

impl<'a> Pump<'a> {
    fn new(socket: BorrowedFd<'a>, streams: Streams) -> Self {
        Pump {
            socket,
            input_open: streams.stdin,
            streams,
            held: Vec::new(),
            unsent: VecDeque::new(),
            unwritten: None,
            unread: false,
            buffer: vec![0; FRAME_MAX],
        }
    }

    /// Waits for something to do: a frame, room for one, a signal, input.
    fn wait(&self, signals: &SignalFd) -> Result<Ready, SysError> {
        let stdin = io::stdin();
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, !self.unsent.is_empty());
        let mut fds = vec![PollFd::new(self.socket, wanted), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if self.input_open && self.unsent.is_empty() {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::new("poll()", errno)),
        }
        let ready = |position: usize| fds.get(position).is_some_and(|fd| fd.any().unwrap_or(false));
        let socket = fds.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let (room, frames) = (PollFlags::POLLOUT, PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR);
        Ok(Ready {
            frames: socket.intersects(frames),
            room: socket.intersects(room),
            signal: ready(1),
            input: ready(2),
        })
    }

    /// Hands signals on; the number of one that ends us instead.
    fn take_signals(&mut self, signals: &SignalFd) -> Result<Option<i32>, Report> {
        while let Ok(Some(info)) = signals.read_signal() {
            let number = info.ssi_signo as i32;
            if number == Signal::SIGWINCH as i32 {
                self.resize()?;
            } else if self.streams.forward_signals {
                self.send(&Frame::Signal(number))?;
            } else if signals::ending().iter().any(|signal| signal as i32 == number) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn resize(&mut self) -> Result<(), Report> {
        match sys::terminal::window_size(io::stdout().as_fd()) {
            Ok(size) if self.streams.terminal => self.send(&Frame::Resize(size)),
            _ => Ok(()),
        }
    }

    /// Reads our input once; true when the detach keys are complete.
    fn take_input(&mut self, notice: &mut impl FnMut(&str)) -> Result<bool, Report> {
        let mut bytes = vec![0; DATA_MAX];
        let length = match io::stdin().lock().read(&mut bytes) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return Ok(false);
            }
            Err(error) => {
                notice(&format!("the container's input ends here: reading ours: {error}"));
                0
            }
        };
        if length == 0 {
            self.input_open = false;
            self.send(&Frame::InputEnd)?;
            return Ok(false);
        }
        let bytes = &bytes[..length];
        if !self.streams.terminal {
            self.send(&Frame::Input(bytes.to_vec()))?;
            return Ok(false);
        }
        let (passed, detached) = self.match_detach_keys(bytes);
        if !passed.is_empty() {
            self.send(&Frame::Input(passed))?;
        }
        Ok(detached)
    }

    /// Holds begun keys back until they are complete or broken.
    fn match_detach_keys(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.streams.detach_keys;
        let mut passed = Vec::with_capacity(bytes.len() + self.held.len());
        for byte in bytes {
            self.held.push(*byte);
            while !keys.starts_with(&self.held) {
                passed.push(self.held.remove(0));
            }
            if !keys.is_empty() && self.held == *keys {
                return (passed, true);
            }
        }
        (passed, false)
    }

    /// Takes one frame; the exit code when the process has ended.
    fn take_frame(&mut self, notice: &mut impl FnMut(&str)) -> Result<Option<i32>, Report> {
        match protocol::receive(self.socket, &mut self.buffer)? {
            Received::Frame(Frame::Output(bytes), _) if self.streams.output => self.write(io::stdout(), &bytes),
            Received::Frame(Frame::ErrorOutput(bytes), _) if self.streams.error => {
                self.write(io::stderr(), &bytes);
            }
            Received::Frame(Frame::Notice(text), _) => notice(&text),
            Received::Frame(Frame::Failed(failure), _) => return Err(failure.into()),
            Received::Frame(Frame::Exit(code), _) => return Ok(Some(code)),
            Received::End => return Err(ClientError::Ended.into()),
            _ => {}
        }
        Ok(None)
    }

    /// What cannot be written is told when the process has ended, which goes on meanwhile.
    fn write(&mut self, stream: impl AsFd, bytes: &[u8]) {
        let written = write_all(stream.as_fd(), bytes);
        self.unread |= written == Err(Errno::EPIPE);
        if let Err(errno) = written {
            let report = || Report::of(Kind::Internal, errno).with_step("writing the container's output");
            self.unwritten.get_or_insert_with(report);
        }
    }

    fn send(&mut self, frame: &Frame) -> Result<(), Report> {
        self.unsent.push_back(frame.encode());
        self.flush()
    }

    /// Sends what the monitor takes now.
    fn flush(&mut self) -> Result<(), Report> {
        while let Some(bytes) = self.unsent.front() {
            match sys::socket::send(self.socket, bytes, &[]) {
                Err(error) if error.errno() == Errno::EAGAIN => break,
                // The process has ended; its last frames are still to be read.
                Err(error) if matches!(error.errno(), Errno::EPIPE | Errno::ECONNRESET) => self.unsent.clear(),
                sent => {
                    sent?;
                    self.unsent.pop_front();
                }
            }
        }
        Ok(())
    }
}

/// Writes everything, also where another program has made our stream non-blocking.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(stream, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            // A failing poll only costs another round.
            Err(Errno::EAGAIN) => drop(poll(&mut [PollFd::new(stream, PollFlags::POLLOUT)], PollTimeout::NONE)),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(keys: &[u8], chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let (one, _other) = sys::socket::pair().expect("a socket pair");
        let detach_keys = keys.to_vec();
        let streams =
            Streams { stdin: true, terminal: true, output: true, error: true, forward_signals: true, detach_keys };
        let mut pump = Pump::new(one.as_fd(), streams);
        let mut all = Vec::new();
        for chunk in chunks {
            let (passed, detached) = pump.match_detach_keys(chunk);
            all.extend(passed);
            if detached {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn detach_keys_are_found_across_reads_and_nothing_else_is_lost() {
        let usual = |chunks: &[&[u8]]| matched(b"\x10\x11", chunks);
        assert_eq!(usual(&[b"ab\x10", b"\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(usual(&[b"a\x10", b"b"]), (b"a\x10b".to_vec(), false));
        assert_eq!(usual(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(usual(&[b"\x11\x10x"]), (b"\x11\x10x".to_vec(), false));
        assert_eq!(matched(b"aab", &[b"aa", b"ab"]), (b"a".to_vec(), true));
        assert_eq!(matched(b"", &[b"\x10\x11"]), (b"\x10\x11".to_vec(), false));
    }
}
