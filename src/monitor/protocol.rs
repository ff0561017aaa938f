//! What a monitor and its clients say to each other: SEQPACKET frames, one kind byte and a body.
//!
//! A connection is at first a *control* connection. `Attach` binds it to the container's main process, `Exec` to a new
//! one; from then on it carries that process's streams until `Exit`. That of the command which starts the container is
//! bound to the main process from birth, and the command says nothing before `Started` but `Abort`. Unknown kinds are
//! skipped, so that a newer client can talk to an older monitor.
//!
//! A frame that no socket's buffer holds, as that of an `exec` with many arguments, goes as a sealed file in memory: so
//! its reader neither waits nor finds it changed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use base::Failure;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};
use sys::terminal::WindowSize;
use sys::{Call, Errno, SysError};

use crate::networks::Admission;
use crate::restart::Terms;

/// The most bytes of a stream in one frame.
pub const DATA_MAX: usize = 32 << 10;
/// The largest frame that is a message of the socket.
pub const FRAME_MAX: usize = 128 << 10;
/// The largest frame that is a file: execve(2) takes 6 MiB of arguments and variables.
const FILE_MAX: usize = 16 << 20;
/// The message that stands for one.
const IN_A_FILE: &[u8] = b"M";
const SEALS: SealFlag = SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK);

/// A frame.
#[derive(Debug)]
pub enum Frame {
    /// Client: stream the main process's output here; `stdin` says whether input will come.
    Attach {
        /// Whether this client feeds the standard input.
        stdin: bool,
    },
    /// Client: run one more process, with its streams here.
    Exec(Box<ExecRequest>),
    /// Client: probe the container's health; `Exit` has the probe's code.
    Probe,
    /// Client: from now on these hold for further starts. The monitor closes the connection when it has taken them.
    Terms(Box<Terms>),
    /// Client: the container is to be in a network, too; carries the membership and the network's namespace. Answered by `Exit`
    /// with 0, or `Failed`.
    Connect(Box<Admission>),
    /// Client: the container has this name from now on. Answered likewise.
    Rename(String),
    /// Client: the container is not to be in the network with this id any more. Answered likewise.
    Disconnect(String),
    /// Client: somebody wants to look at the container's traffic in the shared network with this id, or without in its own; carries
    /// the socket for that ([`net::observe`]). Answered likewise.
    Observe(Option<String>),
    /// Client: bytes for the standard input.
    Input(Vec<u8>),
    /// Client: the standard input has ended.
    InputEnd,
    /// Client: the terminal has this size now.
    Resize(WindowSize),
    /// Client: send this signal to the process that the connection is bound to (else to the main process).
    Signal(i32),
    /// Client: give the start up; a process that runs already gets this signal instead (0 for none).
    Abort(i32),
    /// Client: send the outer user namespace (answered by `Outer` with a descriptor).
    AskOuter,
    /// Monitor: bytes of standard output (or of the terminal).
    Output(Vec<u8>),
    /// Monitor: bytes of standard error.
    ErrorOutput(Vec<u8>),
    /// Monitor: a line for the user, on standard error.
    Notice(String),
    /// Monitor: the process runs.
    Started {
        /// Its host pid.
        pid: i32,
    },
    /// Monitor: the process could not be started.
    Failed(Failure),
    /// Monitor: the process has ended with this code and all of its output was sent. A client that has asked for nothing is
    /// told of the container's end.
    Exit(i32),
    /// Monitor: carries the outer user namespace.
    Outer,
}

/// The body of [`Frame::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// What to run.
    pub process: Process,
    /// `USER[:GROUP]`; empty means the process's own ids.
    pub user: String,
    /// Whether the standard input stays open for [`Frame::Input`].
    pub stdin: bool,
    /// Whether the client wants no streams and no exit code: `Started` or `Failed` is the last frame.
    pub detach: bool,
}

impl Frame {
    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Serialising these plain types into memory cannot fail; an empty body is refused by the receiver.
        let json = |value: Result<Vec<u8>, serde_json::Error>| value.unwrap_or_default();
        let (kind, body) = match self {
            Frame::Attach { stdin } => (b'A', vec![u8::from(*stdin)]),
            Frame::Exec(request) => (b'X', json(serde_json::to_vec(request))),
            Frame::Probe => (b'H', Vec::new()),
            Frame::Terms(terms) => (b'T', json(serde_json::to_vec(terms))),
            Frame::Connect(admission) => (b'J', json(serde_json::to_vec(admission))),
            Frame::Rename(name) => (b'M', name.clone().into_bytes()),
            Frame::Disconnect(network) => (b'D', network.clone().into_bytes()),
            Frame::Observe(network) => (b'V', network.clone().unwrap_or_default().into_bytes()),
            Frame::Input(bytes) => (b'I', bytes.clone()),
            Frame::InputEnd => (b'C', Vec::new()),
            Frame::Resize(size) => (b'R', [size.rows.to_le_bytes(), size.columns.to_le_bytes()].concat()),
            Frame::Signal(number) => (b'S', number.to_le_bytes().to_vec()),
            Frame::Abort(number) => (b'K', number.to_le_bytes().to_vec()),
            Frame::AskOuter => (b'o', Vec::new()),
            Frame::Output(bytes) => (b'1', bytes.clone()),
            Frame::ErrorOutput(bytes) => (b'2', bytes.clone()),
            Frame::Notice(text) => (b'N', text.clone().into_bytes()),
            Frame::Started { pid } => (b'B', pid.to_le_bytes().to_vec()),
            Frame::Failed(failure) => (b'F', json(serde_json::to_vec(failure))),
            Frame::Exit(code) => (b'E', code.to_le_bytes().to_vec()),
            Frame::Outer => (b'O', Vec::new()),
        };
        let mut bytes = Vec::with_capacity(body.len() + 1);
        bytes.push(kind);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The frame that these bytes are; `None` for a kind that this build does not know or a body that does not fit it.
    pub fn decode(bytes: &[u8]) -> Option<Frame> {
        let (kind, body) = bytes.split_first()?;
        let number = || body.try_into().ok().map(i32::from_le_bytes);
        Some(match kind {
            b'A' => Frame::Attach { stdin: *body.first()? != 0 },
            b'X' => Frame::Exec(serde_json::from_slice(body).ok()?),
            b'H' => Frame::Probe,
            b'T' => Frame::Terms(serde_json::from_slice(body).ok()?),
            b'J' => Frame::Connect(serde_json::from_slice(body).ok()?),
            b'M' => Frame::Rename(String::from_utf8_lossy(body).into_owned()),
            b'D' => Frame::Disconnect(String::from_utf8_lossy(body).into_owned()),
            b'V' => {
                let network = String::from_utf8_lossy(body).into_owned();
                Frame::Observe((!network.is_empty()).then_some(network))
            }
            b'I' => Frame::Input(body.to_vec()),
            b'C' => Frame::InputEnd,
            b'R' => {
                let half = |from: usize| Some(u16::from_le_bytes(body.get(from..from + 2)?.try_into().ok()?));
                Frame::Resize(WindowSize { rows: half(0)?, columns: half(2)? })
            }
            b'S' => Frame::Signal(number()?),
            b'K' => Frame::Abort(number()?),
            b'o' => Frame::AskOuter,
            b'1' => Frame::Output(body.to_vec()),
            b'2' => Frame::ErrorOutput(body.to_vec()),
            b'N' => Frame::Notice(String::from_utf8_lossy(body).into_owned()),
            b'B' => Frame::Started { pid: number()? },
            b'F' => Frame::Failed(serde_json::from_slice(body).ok()?),
            b'E' => Frame::Exit(number()?),
            b'O' => Frame::Outer,
            _ => return None,
        })
    }
}

/// Sends one frame, with descriptors where its kind carries some; `EMSGSIZE` beyond 16 MiB.
pub fn send(socket: BorrowedFd<'_>, frame: &Frame, fds: &[BorrowedFd<'_>]) -> Result<(), SysError> {
    let bytes = frame.encode();
    if bytes.len() <= FRAME_MAX {
        return sys::socket::send(socket, &bytes, fds);
    }
    if bytes.len() > FILE_MAX {
        return Err(SysError::new(format!("send(a frame of {} bytes)", bytes.len()), Errno::EMSGSIZE));
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"frame", flags).call(|| "memfd_create()".to_owned())?);
    file.write_all(&bytes).call(|| "write(frame)".to_owned())?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).call(|| "fcntl(F_ADD_SEALS)".to_owned())?;
    sys::socket::send(socket, IN_A_FILE, &[file.as_fd()])
}

fn read_file(file: OwnedFd) -> Result<Vec<u8>, SysError> {
    let wrong = |errno| SysError::new("a frame in a file", errno);
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(wrong)?;
    let file = File::from(file);
    let length = file.metadata().call(|| "fstat(frame)".to_owned())?.len() as usize;
    if !SealFlag::from_bits_truncate(seals).contains(SEALS) || length > FILE_MAX {
        return Err(wrong(Errno::EINVAL));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).call(|| "read(frame)".to_owned())?;
    Ok(bytes)
}

/// What [`receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A frame, and the descriptors that came with it.
    Frame(Frame, Vec<OwnedFd>),
    /// A frame of a kind that this build does not know.
    Unknown,
    /// Nothing yet (non-blocking socket).
    Nothing,
    /// The peer is gone.
    End,
}

/// Receives one frame into `buffer` ([`FRAME_MAX`] bytes).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, SysError> {
    match sys::socket::receive(socket, buffer) {
        Ok((0, _)) => Ok(Received::End),
        Ok((length, mut fds)) => {
            let frame = match (&buffer[..length], fds.pop_if(|_| &buffer[..length] == IN_A_FILE)) {
                (_, Some(file)) => Frame::decode(&read_file(file)?),
                (bytes, None) => Frame::decode(bytes),
            };
            Ok(frame.map_or(Received::Unknown, |frame| Received::Frame(frame, fds)))
        }
        Err(error) if error.errno() == Errno::EAGAIN => Ok(Received::Nothing),
        Err(error) => Err(error),
    }
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restart::Policy;

    #[test]
    fn frames_survive_the_wire() {
        let size = WindowSize { rows: 24, columns: 80 };
        for frame in [
            Frame::Attach { stdin: true },
            Frame::Probe,
            Frame::Terms(Box::new(Terms {
                policy: Some(Policy::OnFailure(3)),
                limits: Some(cgroup::Limits::default()),
                stopped: true,
            })),
            Frame::Input(b"x\0y".to_vec()),
            Frame::InputEnd,
            Frame::Resize(size),
            Frame::Signal(15),
            Frame::Abort(2),
            Frame::Rename("new".to_owned()),
            Frame::Disconnect("id".to_owned()),
            Frame::Observe(None),
            Frame::Observe(Some("id".to_owned())),
            Frame::Notice("a word".to_owned()),
            Frame::Exit(-1),
            Frame::Started { pid: 42 },
        ] {
            let back = Frame::decode(&frame.encode()).map(|back| format!("{back:?}"));
            assert_eq!(back, Some(format!("{frame:?}")));
        }
    }

    #[test]
    fn a_large_frame_is_a_sealed_file() -> Result<(), Box<dyn std::error::Error>> {
        let (ours, theirs) = sys::socket::pair()?;
        let mut buffer = vec![0; FRAME_MAX];
        for length in [FRAME_MAX - 1, FRAME_MAX, 3 << 20] {
            send(ours.as_fd(), &Frame::Input(vec![7; length]), &[])?;
            let received = receive(theirs.as_fd(), &mut buffer)?;
            assert!(
                matches!(received, Received::Frame(Frame::Input(bytes), fds) if fds.is_empty() && bytes == vec![7; length])
            );
        }
        let refused = send(ours.as_fd(), &Frame::Input(vec![7; FILE_MAX]), &[]);
        assert_eq!(refused.map_err(|error| error.errno()), Err(Errno::EMSGSIZE));
        // What can still be changed, or waited for, is not read.
        let (pipe, _writer) = nix::unistd::pipe()?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        for file in [pipe, memfd_create(c"open", flags)?] {
            sys::socket::send(ours.as_fd(), IN_A_FILE, &[file.as_fd()])?;
            let refused = receive(theirs.as_fd(), &mut buffer).map(|_| ());
            assert_eq!(refused.map_err(|error| error.errno()), Err(Errno::EINVAL));
        }
        Ok(())
    }

    #[test]
    fn what_is_not_a_frame_is_none() {
        for bytes in [&b""[..], b"?", b"E", b"E12", b"R123", b"X{", b"A"] {
            assert!(Frame::decode(bytes).is_none(), "{bytes:?}");
        }
    }
}
