//! The other side of [`crate::fs_role`]: finds the server of a view, or starts it.
//!
//! `<run>/fs/<key>/sock` is the socket; `<locks>/fs-<key>.lock` is locked while somebody starts a server and never
//! else, so two starts of one image make one server. A socket that nobody listens on is replaced under the lock.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::{Explain, Failure, Kind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockFlag, bind, connect, listen};
use nix::sys::stat::Mode;
use sys::error::Call;
use sys::role::Spawn;
use sys::socket::{address_in, open_directory, seqpacket};
use sys::{SysError, namespace, process};

use crate::fs_role::{ARGV0, FsConfig, LEAVE, Welcome};

/// How long a server may take to answer; mounting takes milliseconds, a loaded machine some more.
const ANSWER_MS: u16 = 20_000;

/// A server that stays as long as this value lives, and what it hands out.
#[derive(Debug)]
pub struct FsConnection {
    /// Its end is how the server learns that this user is gone. Whoever outlives us must hold it (the monitor).
    pub socket: OwnedFd,
    /// Its processes, as it says itself: the socket's credentials are those of whoever made the listener.
    pub pids: Vec<i32>,
    /// What its starter knew of the outer user namespace.
    pub note: String,
    /// The outer user namespace that the view belongs to.
    pub user_namespace: OwnedFd,
    /// The mount namespace whose root is the view: join it (as root of the user namespace), clone its `/` as a detached
    /// mount, and attach that where it is needed.
    pub mount_namespace: OwnedFd,
    /// The server's binary on a mount that nobody can write to; `None` where that cannot be made.
    pub binary: Option<OwnedFd>,
}

/// Where servers of this host are found.
#[derive(Clone, Copy, Debug)]
pub struct FsPlaces<'a> {
    /// `<run>/fs`: short-lived, sockets only.
    pub run: &'a Path,
    /// The per-host data directory, for the lock.
    pub locks: &'a Path,
}

/// What to start when there is no server.
#[derive(Debug)]
pub struct FsSpec<'a> {
    /// Names the view: the chain ID, or `host-…`; a file name.
    pub key: &'a str,
    /// What the role is told.
    pub config: &'a FsConfig,
    /// The outer user namespace; also what a running server must have.
    pub user_namespace: BorrowedFd<'a>,
    /// The view's own descriptors (`index`, `objects`).
    pub fds: &'a [(&'a str, BorrowedFd<'a>)],
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum FsClientError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The server could not start; its own words.
    #[error("starting the file server of view {key}: {}", failure.lines.join(": "))]
    Refused {
        /// Which view.
        key: String,
        /// What it said.
        failure: Failure,
    },
    /// The server ended without a word.
    #[error("the file server of view {key} ended before it answered")]
    Died {
        /// Which view.
        key: String,
    },
}

impl Explain for FsClientError {
    fn kind(&self) -> Kind {
        match self {
            FsClientError::Sys(error) => error.kind(),
            FsClientError::Refused { failure, .. } => failure.kind,
            FsClientError::Died { .. } => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            FsClientError::Refused { failure, .. } => failure.hint.clone(),
            _ => None,
        }
    }
}

impl FsConnection {
    /// Ends this use, and has the server wait for nobody else once it has no user. One of an earlier version of the program
    /// waits all the same.
    pub fn leave(self) -> Result<(), SysError> {
        sys::socket::send(self.socket.as_fd(), LEAVE, &[])
    }
}

/// Connects to the server of a view if one runs.
pub fn try_connect(places: &FsPlaces<'_>, key: &str) -> Result<Option<FsConnection>, FsClientError> {
    let dir = match open_directory(&places.run.join(key)) {
        Err(error) if error.errno() == Errno::ENOENT => return Ok(None),
        dir => dir?,
    };
    let socket = seqpacket(SockFlag::empty())?;
    match connect(socket.as_raw_fd(), &address_in(dir.as_fd(), "sock")?) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(None),
        result => result.call(|| format!("connect({:?})", places.run.join(key).join("sock")))?,
    }
    match greet(socket, key) {
        // It was on its way out when we connected.
        Err(FsClientError::Died { .. }) => Ok(None),
        Err(FsClientError::Sys(error)) if error.errno() == Errno::EPIPE => Ok(None),
        result => result.map(Some),
    }
}

/// Connects to the server of a view, and starts it when there is none, or when the one there is belongs to an outer user
/// namespace of the past. The caller must have one thread (it forks).
pub fn connect_or_spawn(places: &FsPlaces<'_>, spec: &FsSpec<'_>) -> Result<FsConnection, FsClientError> {
    let wanted = namespace::identity(spec.user_namespace)?;
    let usable = |found: &FsConnection| namespace::identity(&found.user_namespace).is_ok_and(|it| it == wanted);
    if let Some(found) = try_connect(places, spec.key)?.filter(usable) {
        return Ok(found);
    }
    let _locked = lock(&places.locks.join(format!("fs-{}.lock", spec.key)))?;
    if let Some(found) = try_connect(places, spec.key)?.filter(usable) {
        return Ok(found);
    }
    let path = places.run.join(spec.key);
    std::fs::create_dir_all(&path).call(|| format!("mkdir -p {}", path.display()))?;
    let dir = open_directory(&path)?;
    match nix::unistd::unlinkat(&dir, "sock", nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(SysError::new(format!("unlink({:?})", path.join("sock")), errno).into()),
    }
    let listener = seqpacket(SockFlag::empty())?;
    bind(listener.as_raw_fd(), &address_in(dir.as_fd(), "sock")?).call(|| format!("bind({:?})", path.join("sock")))?;
    let backlog = Backlog::new(64).unwrap_or(Backlog::MAXCONN);
    listen(&listener, backlog).call(|| format!("listen({:?})", path.join("sock")))?;
    start(spec, listener.as_fd())?;
    drop(listener);
    let socket = seqpacket(SockFlag::empty())?;
    connect(socket.as_raw_fd(), &address_in(dir.as_fd(), "sock")?)
        .call(|| format!("connect({:?})", path.join("sock")))?;
    greet(socket, spec.key)
}

/// Removes what a server that will not be needed again has left: its socket and its lock. One that still runs goes on.
pub fn forget(places: &FsPlaces<'_>, key: &str) -> Result<(), SysError> {
    let run = places.run.join(key);
    for (path, directory) in
        [(run.join("sock"), false), (run, true), (places.locks.join(format!("fs-{key}.lock")), false)]
    {
        let removed = if directory { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.call(|| format!("remove({path:?})"))?,
        }
    }
    Ok(())
}

fn start(spec: &FsSpec<'_>, listener: BorrowedFd<'_>) -> Result<(), FsClientError> {
    let config = serde_json::to_vec(spec.config)
        .map_err(|_| SysError::new("configuration of the role fs as JSON", Errno::EINVAL))?;
    let mut fds = vec![("userns", spec.user_namespace), ("listen", listener)];
    fds.extend_from_slice(spec.fds);
    let stderr = std::io::stderr();
    let spawn = Spawn {
        argv0: ARGV0,
        label: spec.key,
        config: &config,
        fds: &fds,
        stdio: [None, None, Some(stderr.as_fd())],
        session: true,
        cgroup: None,
    };
    // The role forks away from us at once.
    let child = spawn.start()?;
    process::reap(child.pidfd.as_fd(), true)?;
    Ok(())
}

/// Shows that we are no container and takes what the server hands out.
fn greet(socket: OwnedFd, key: &str) -> Result<FsConnection, FsClientError> {
    let own = namespace::open_own("user")?;
    sys::socket::send(socket.as_fd(), b"hello", &[own.as_fd()])?;
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(ANSWER_MS)).call(|| "poll(fs answer)".to_owned())? == 0 {
        return Err(SysError::new(format!("answer of the file server of view {key}"), Errno::ETIMEDOUT).into());
    }
    let mut answer = vec![0; 64 << 10];
    let (length, mut fds) = sys::socket::receive(socket.as_fd(), &mut answer)?;
    let binary = fds.drain(fds.len().min(2)..).next();
    match <[OwnedFd; 2]>::try_from(fds) {
        Ok([user_namespace, mount_namespace]) => {
            let welcome = serde_json::from_slice(&answer[..length]);
            let Welcome { pids, note } = welcome.map_err(|_| FsClientError::Died { key: key.to_owned() })?;
            Ok(FsConnection { socket, pids, note, user_namespace, mount_namespace, binary })
        }
        Err(_none) => match serde_json::from_slice(&answer[..length]) {
            Ok(failure) => Err(FsClientError::Refused { key: key.to_owned(), failure }),
            Err(_) => Err(FsClientError::Died { key: key.to_owned() }),
        },
    }
}

/// Takes a lock that dies with the descriptor, or with us.
fn lock(path: &Path) -> Result<OwnedFd, SysError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::from_bits_truncate(0o600)).call(|| format!("open({path:?}, O_CREAT)"))?;
    sys::lock::exclusive(&file, path)?;
    Ok(file)
}
