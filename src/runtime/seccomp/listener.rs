//! From the listener of a filter that notifies to the agent that answers: `listenerPath` of the runtime specification.
//!
//! The agent listens on a Unix socket of the host. For each process of a container it gets one connection with one
//! message: the `ContainerProcessState` in JSON and, beside it, the listener's descriptor.
//!
//! **The knot.** The process that loads the filter is under it at once: were `sendmsg` among the notified calls, it would
//! wait for an agent that gets the listener by this very call. A parent cannot fetch the descriptor by `pidfd_getfd`
//! either, since init is non-dumpable. So [`load`] starts a thread, the courier, before it loads the filter. A filter
//! is a thread's own, hence the courier's calls stay free; it shares the descriptors, so the listener's number, which
//! reaches it through memory, is all it needs. The loading thread makes no call before the courier has sent the
//! message and closed the listener; then it joins it, with calls that every program's end makes too (`futex`, `munmap`),
//! and which the agent can answer by now. So every call may be notified, `write` too, which runc refuses.
//!
//! **Failure.** When the message cannot be sent the courier closes the listener all the same. Notified calls then fail
//! with `ENOSYS` instead of waiting for nobody, and the caller reports the error.
//!
//! Both wait by polling memory: there is no event that the loading thread could raise, or wait for, without a call. It is
//! short. The courier waits as long as the kernel takes to load the filter, the loading thread as long as it takes to put a
//! message into the socket's buffer, which is made large enough for it. The courier never waits for the agent: a message for
//! which there is no room is a failure.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt,
    shutdown, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use oci_spec::OciSpecError;
use oci_spec::runtime::{ContainerProcessState, ContainerProcessStateBuilder, SECCOMP_FD_NAME, State};
use sys::{Call, Errno, SysError};

use super::Filter;

/// How long an agent may take to accept the connection.
const CONNECT_TIMEOUT_S: i64 = 10;
/// The buffer that is asked for; the kernel gives what `net.core.wmem_max` allows, and counts some more than the message.
const BUFFER_BYTES: usize = 1 << 20;
/// What the courier's few frames need, with room to spare.
const COURIER_STACK_BYTES: usize = 64 << 10;

// What the courier reads where the listener's number will stand.
const LOADING: RawFd = -1;
const FAILED: RawFd = -2;

/// A connection to a profile's agent, for one process.
#[derive(Debug)]
pub struct Agent(OwnedFd);

impl Agent {
    /// Connects to the socket at `listenerPath`, of any length; close-on-exec. For a process that still sees the host's
    /// files, before it gives up rights that reach the socket.
    pub fn connect(path: &Path) -> Result<Agent, SysError> {
        let call = || format!("connect(AF_UNIX, {path:?})");
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(SysError::new(call(), Errno::EINVAL));
        };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        // By a descriptor, as an address holds 107 bytes.
        let directory =
            nix::fcntl::open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .call(call)?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        let address = UnixAddr::new(&short).call(call)?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).call(call)?;
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_TIMEOUT_S)).call(call)?;
        setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES).call(call)?;
        connect(socket.as_raw_fd(), &address).call(call)?;
        Ok(Agent(socket))
    }
}

/// An agent, and what it is told of the process.
#[derive(Debug)]
pub struct Handover {
    /// Who answers.
    pub agent: Agent,
    /// See [`message`].
    pub message: Vec<u8>,
}

/// The message to an agent about a process of a container: `pid` as the runtime sees it, which for a container's init is
/// also `state`'s; `metadata` is the profile's `listenerMetadata`.
pub fn message(state: State, pid: i32, metadata: Option<&str>) -> Result<Vec<u8>, OciSpecError> {
    let builder = ContainerProcessStateBuilder::default()
        .version(state.version().clone())
        .fds([SECCOMP_FD_NAME.to_owned()])
        .pid(pid)
        .state(state);
    let builder = if let Some(metadata) = metadata { builder.metadata(metadata) } else { builder };
    let state: ContainerProcessState = builder.build()?;
    Ok(serde_json::to_vec(&state)?)
}

/// Loads a filter that notifies into the calling thread, and hands its listener with the message to the agent, which
/// has it when this returns.
///
/// Needs what [`Filter::load`] needs; starts a thread and ends it.
pub fn load(filter: &Filter, handover: &Handover) -> Result<(), SysError> {
    let handed = Arc::new(AtomicI32::new(LOADING));
    let courier = {
        let (handed, socket) = (Arc::clone(&handed), handover.agent.0.as_raw_fd());
        let message = handover.message.clone();
        let builder = thread::Builder::new().stack_size(COURIER_STACK_BYTES);
        builder.spawn(move || carry(&handed, socket, &message)).call(|| "clone(CLONE_THREAD)".to_owned())?
    };
    let loaded = filter.load();
    let number = match loaded {
        Ok(Some(ref listener)) => listener.as_raw_fd(),
        Ok(None) | Err(_) => FAILED,
    };
    handed.store(number, Ordering::Release);
    // A wait would be a call; until the agent has the listener nobody would answer it.
    while !courier.is_finished() {
        std::hint::spin_loop();
    }
    // The courier has closed it.
    let loaded = loaded.map(|listener| listener.map(IntoRawFd::into_raw_fd));
    let carried =
        courier.join().unwrap_or_else(|_| Err(SysError::new("the thread that sends the listener", Errno::EIO)));
    loaded.and(carried)
}

/// The courier: waits for the listener, sends and closes it.
fn carry(handed: &AtomicI32, socket: RawFd, message: &[u8]) -> Result<(), SysError> {
    let listener = loop {
        match handed.load(Ordering::Acquire) {
            LOADING => thread::yield_now(),
            FAILED => return Ok(()),
            listener => break listener,
        }
    };
    let sent = send(socket, message, listener);
    // Now the agent has the only copy, or nobody has one. The end of the stream is the end of the message.
    let _ = shutdown(socket, Shutdown::Both);
    let _ = nix::unistd::close(listener);
    sent.call(|| format!("sendmsg({} bytes, the seccomp listener) to the agent of the seccomp profile", message.len()))
}

/// Sends all of a message on a stream, the descriptor with its first byte.
fn send(socket: RawFd, mut message: &[u8], listener: RawFd) -> Result<(), Errno> {
    let rights = [listener];
    let mut control = Some(ControlMessage::ScmRights(&rights));
    while !message.is_empty() {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<UnixAddr>(socket, &[IoSlice::new(message)], control.as_slice(), flags, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(count) => {
                control = None;
                message = &message[count..];
            }
        }
    }
    Ok(())
}
