//! sd_notify(3) through the container's wall, with runc's semantics: a service manager that waits for `READY=1` gets it
//! from the payload.
//!
//! ```text
//! manager's socket ◀── READY, MAINPID, BARRIER ── start or run ◀── READY=1 ── <state>/notify/notify.sock
//! ($NOTIFY_SOCKET of ours)                                                    = /run/notify/notify.sock, the payload's
//! ```
//! `create` makes the socket and its directory, which the container sees read-only. Init keeps the socket and gives it to the
//! `start` whose GO is the first. That one, and a detached `run`, wait until the payload is ready or has ended, without a
//! limit: the manager has one. A `run` that waits for the end passes the word on meanwhile. Whatever else the payload says
//! comes from a container and goes nowhere: pids of its own namespace, descriptors for the manager's store.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base::{Context, Report};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, socket};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{Mount, Spec};
use sys::process::{has_ended, is_directory};
use sys::socket::{address_in, open_directory};
use sys::{Call, Errno, SysError};

use crate::log::Log;
use crate::state::Place;

/// The manager's variable, and the payload's.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// The socket in the directory of the state.
const SOCKET: &str = "notify.sock";
/// The directory as the container sees it; runc's.
const INSIDE: &str = "/run/notify";
/// How long a manager may take to close the descriptor of a barrier; older ones than systemd 246 know none. runc's.
const BARRIER_LIMIT_MS: u16 = 30_000;
/// How often a process is looked at that nothing tells of.
const PAUSE_MS: u8 = 10;

/// Whether a service manager waits for what the payload of a new container says.
pub fn is_wanted(log: &Log) -> bool {
    let Some(address) = manager() else { return false };
    let known = is_unix(&address);
    if !known {
        let address = address.display();
        log.warn(&format!("{VARIABLE}={address}: only sockets of unix(7) are supported; nobody is notified"));
    }
    known
}

/// Where the service manager listens, if we run for one.
fn manager() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|address| !address.is_empty())
}

fn is_unix(address: &OsStr) -> bool {
    matches!(address.as_bytes(), [b'/' | b'@', ..])
}

/// Shows the payload the directory of the socket, and tells it the name.
pub fn show(spec: &mut Spec, directory: PathBuf) {
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from(INSIDE)).set_source(Some(directory)).set_typ(None);
    mount.set_options(Some(["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).into()));
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        let mut environment = process.env().clone().unwrap_or_default();
        environment.retain(|variable| !variable.starts_with("NOTIFY_SOCKET="));
        environment.push(format!("{VARIABLE}={INSIDE}/{SOCKET}"));
        process.set_env(Some(environment));
    }
}

/// Makes the socket in its directory; it does not block.
pub fn listen(place: &Place) -> Result<OwnedFd, Report> {
    let step = || "making the socket for notifications".to_owned();
    place.make_notify_directory().step(step)?;
    let path = place.notify_directory();
    let directory = open_directory(&path).step(step)?;
    let socket = datagram_socket(SockFlag::SOCK_NONBLOCK).step(step)?;
    let address = address_in(directory.as_fd(), SOCKET).step(step)?;
    // Whoever the payload is may write to it.
    let before = umask(Mode::empty());
    let bound = bind(socket.as_raw_fd(), &address);
    umask(before);
    bound.call(|| format!("bind({:?})", path.join(SOCKET))).step(step)?;
    Ok(socket)
}

/// The socket of one container, and where its word goes.
#[derive(Debug)]
pub struct Proxy {
    socket: OwnedFd,
    manager: OsString,
}

impl Proxy {
    /// Where somebody waits for it.
    pub fn new(socket: Option<OwnedFd>, log: &Log) -> Option<Self> {
        let manager = manager().filter(|address| is_unix(address))?;
        if socket.is_none() {
            log.warn(&format!("{VARIABLE} was not set when the container was created; nobody is notified"));
        }
        Some(Proxy { socket: socket?, manager })
    }

    /// Takes what the payload has said next: whether that it is ready. `None` when there is nothing.
    pub fn hear(&self) -> Option<bool> {
        // As large as systemd's own; of a longer message nothing is lost that counts here.
        let mut buffer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
        Some(buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1"))
    }

    /// Waits until the payload is ready or has ended, tells the manager, whose main process is `pid` then, and waits until it
    /// has heard: it looks up whose word it is by the sender, which must still be there.
    pub fn wait(&self, init: BorrowedFd<'_>, pid: i32, log: &Log) -> Result<(), SysError> {
        // Where `pidfd_open` is refused, nothing tells of the end.
        let silent = is_directory(init);
        loop {
            let mut fds = vec![PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            fds.extend((!silent).then(|| PollFd::new(init, PollFlags::POLLIN)));
            let timeout = if silent { PollTimeout::from(PAUSE_MS) } else { PollTimeout::NONE };
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => continue,
                polled => polled.call(|| "poll(notifications)".to_owned())?,
            };
            // Asked first, so that what was said last is heard.
            let ended = has_ended(init);
            match self.hear() {
                Some(true) => {
                    // A manager that has gone meanwhile will hear nothing.
                    let _ = self.tell(pid, log).map(|manager| wait_heard(&manager));
                    return Ok(());
                }
                None if ended => return Ok(()),
                _ => {}
            }
        }
    }

    /// Tells the manager that the service is ready, and what its main process is; the answer is the connection. A manager that
    /// cannot be told has its own limit.
    pub fn tell(&self, pid: i32, log: &Log) -> Option<OwnedFd> {
        let told = self.try_tell(pid).step(|| format!("notifying the service manager at {}", self.manager.display()));
        told.map_err(|report| log.warn(&report.lines().join(": "))).ok()
    }

    fn try_tell(&self, pid: i32) -> Result<OwnedFd, SysError> {
        let manager = datagram_socket(SockFlag::empty())?;
        connect(manager.as_raw_fd(), &address(&self.manager)?).call(|| format!("connect({:?})", self.manager))?;
        sys::socket::send(manager.as_fd(), format!("READY=1\nMAINPID={pid}\n").as_bytes(), &[])?;
        Ok(manager)
    }
}

/// Waits until a manager has read what was sent before: sd_notify_barrier(3).
fn wait_heard(manager: &OwnedFd) -> Result<(), SysError> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).call(|| "pipe2()".to_owned())?;
    sys::socket::send(manager.as_fd(), b"BARRIER=1", &[theirs.as_fd()])?;
    drop(theirs);
    poll(&mut [PollFd::new(ours.as_fd(), PollFlags::POLLIN)], BARRIER_LIMIT_MS).call(|| "poll(barrier)".to_owned())?;
    Ok(())
}

impl AsFd for Proxy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn datagram_socket(flags: SockFlag) -> Result<OwnedFd, SysError> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::Datagram, flags, None).call(|| "socket(AF_UNIX, SOCK_DGRAM)".to_owned())
}

/// A path, or `@` and a name in the abstract namespace.
fn address(text: &OsStr) -> Result<UnixAddr, SysError> {
    let address = match text.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => UnixAddr::new(Path::new(text)),
    };
    address.call(|| format!("socket address {text:?}"))
}
