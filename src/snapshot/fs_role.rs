//! The role `fs`: serves one view to all containers of the user that have it as their root.
//!
//! Theory of operation
//! - *Two processes*: the keeper (here) makes the mount, knows the users and holds every descriptor; the server
//!   ([`crate::fs_server`]), its child, answers the kernel. A server that is killed has a successor at once, on the
//!   connection that the keeper still holds; the containers only wait. A keeper that is killed leaves a server that goes on
//!   for the containers there are; a later one gets another server. So any one of them may die.
//! - *Where they run*: as the calling user, in the host's namespaces, with no capability, under no_new_privs, not dumpable.
//!   The mount lives in a mount namespace inside the outer user namespace, made by a child ([`crate::fs_mount`]); the
//!   keeper only has descriptors of both. So reading as "the calling user" is the same thing as root and as a plain user,
//!   and a server that is taken over holds nothing but what it serves.
//! - *Users*: whoever needs the view connects to the socket, proves that it is no container ([`proves_host`]) and gets
//!   the outer user namespace, the mount namespace and a read-only clone of our own binary. Each open connection is one
//!   user; nothing is ever sent again.
//! - *End*: when the last connection has been closed for `linger_ms`, or at once where a user has asked for that, or when none came
//!   for 20 s, the keeper closes its listener and its mount
//!   namespace; the server serves on until the kernel says `ENODEV`, that is until the last clone of the mount is gone (a
//!   container whose monitor was killed still has one), and both end. A client that connected in that instant sees the end
//!   of the stream and starts a new server.
//! - *No successor* has a server that ends by itself, that was killed for a system call which it has no business to make,
//!   or that follows many short-lived ones: what kills it may be a request, which would come again. Those that could not
//!   even begin do not count; they are tried again for some minutes. Nor has any before
//!   Linux 6.9, which cannot send requests again that were read: some would never be answered. Then the connection ends, and
//!   the files of the view's containers answer `ENOTCONN`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base::{Explain, Failure, Kind, Report};
use fuse::{Agreed, SessionError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use sys::error::Call;
use sys::process::{Child, Exit};
use sys::role::Inherited;
use sys::{SysError, namespace, process, socket};

use crate::fs_mount::{self, FuseMount};
use crate::fs_server::{self, Given};
use crate::ids::MappedIds;
use crate::reads::{self, ListFile};
use crate::sandbox;
use crate::view_host::HostViewConfig;

pub use crate::fs_server::object_fds;

/// `argv[0]` of the role.
pub const ARGV0: &str = "sublet-fs";
/// How long a server of a view stays without users, so that one `run --rm` after another finds it warm.
pub const LINGER_MS: u64 = 30_000;
/// The same for the server of one container.
pub const CONTAINER_LINGER_MS: u64 = 1_000;
/// What a user says at its end who wants nobody to be waited for after the last one.
pub(crate) const LEAVE: &[u8] = b"leave";
/// How long its first user may take to come, on a machine that has much else to do.
const FIRST_USER: Duration = Duration::from_secs(20);
/// A server that served for less than this was short-lived; after so many of them in a row there is no other one.
const SHORT_LIFE: Duration = Duration::from_millis(100);
const SHORT_LIVES_MAX: u32 = 20;
/// How long it is waited when one cannot be started, at first and at most, and for how long it is tried.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const TRIED_MAX: Duration = Duration::from_mins(3);
/// The longest word of a server.
const WORD_MAX: usize = 64 << 10;
/// A greeting follows the connect at once; a client that is slower than this is none of ours.
const GREETING_LIMIT: Duration = Duration::from_secs(1);
/// More clients than this are refused; each is one descriptor.
const USERS_MAX: usize = 4096;

/// What the role is told. Descriptors: `userns` (the outer user namespace), `listen` (a listening SEQPACKET socket);
/// for a chain `index` and the [`object_fds`], and for its list of reads `chain` (the index once more) and `chains` (the directory of
/// lists); for an overlay `upper` too (a directory that stays the driver's own); for the host
/// the file that [`crate::host_closed`] names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FsConfig {
    /// What to serve.
    pub view: View,
    /// [`LINGER_MS`] or [`CONTAINER_LINGER_MS`], except in tests.
    pub linger_ms: u64,
    /// What the starter knows of the outer user namespace, handed to every client as it is: to find it out takes a process
    /// that joins the namespace.
    pub note: String,
}

/// What a client is told, with the two namespaces and, where it could be made, the read-only clone of the binary.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The keeper's process and the server's.
    pub pids: Vec<i32>,
    /// [`FsConfig::note`].
    pub note: String,
}

/// What a server shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum View {
    /// The merged index of an image chain.
    Chain {
        /// Owners that the outer user namespace can express.
        ids: MappedIds,
    },
    /// A chain with a writable upper above it: the driver `fuse`, one server a container.
    Overlay {
        /// Owners that the container can express; others are shown as ones that it can, and stay in the index.
        ids: MappedIds,
        /// Nothing is synced; after a crash of the host the upper is refused.
        volatile: bool,
        /// The container's ids are not the outer ones: its mount will be id-mapped.
        shifted: bool,
        /// The most that its data may take on the disk.
        size_bytes: Option<u64>,
    },
    /// The host's own root.
    Host(HostViewConfig),
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum FsRoleError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The configuration is not ours.
    #[error("configuration of the role fs")]
    Config(#[source] serde_json::Error),
    /// The index cannot be used.
    #[error("opening the index of the image chain")]
    Index(#[source] index::OpenError),
    /// The upper cannot be used.
    #[error("opening the writable snapshot")]
    Upper(#[from] overlayfs::OpenError),
    /// The host crashed while nothing was synced.
    #[error("the snapshot was in use without syncs when the host went down; what it holds cannot be trusted")]
    Unsynced,
    /// The index is that of one layer.
    #[error("the index is not that of a merged chain")]
    NotAChain,
    /// The connection to the kernel failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Explain for FsRoleError {
    fn kind(&self) -> Kind {
        match self {
            FsRoleError::Sys(error) => error.kind(),
            FsRoleError::Upper(error) => error.kind(),
            FsRoleError::Unsynced => Kind::Conflict,
            _ => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            FsRoleError::Sys(error) if error.call.contains("/dev/fuse") => Some(match error.errno() {
                Errno::ENOENT => "load the kernel module: modprobe fuse".to_owned(),
                _ => "let everyone use FUSE: chmod 0666 /dev/fuse".to_owned(),
            }),
            _ => None,
        }
    }
}

/// The role's entry.
pub fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", Report::from(error));
            ExitCode::FAILURE
        }
    }
}

/// Leaves whoever started us (who need not wait for us), then keeps.
fn start() -> Result<ExitCode, FsRoleError> {
    let inherited = Inherited::take()?;
    // The first process ends at once: its parent reaps it and the keeper is nobody's child.
    process::fork(process::Flags::empty(), None, || match keep(inherited) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", Report::from(error));
            1
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the mount and starts a server; keeps until that has ended. Tells the waiting client if it cannot even begin.
fn keep(mut inherited: Inherited) -> Result<(), FsRoleError> {
    let listen = UnixListener::from(inherited.fd("listen")?);
    sys::step::begin("keeper");
    let (mut keeper, gifts) = match Keeper::prepare(inherited) {
        Ok(prepared) => prepared,
        Err(error) => return refuse_first(&listen, &Failure::from(&Report::from(error))),
    };
    keeper.doors = Some(Doors { listen, gifts, users: Vec::new(), strangers: Vec::new(), leaving: false });
    let failure = match keeper.start_server(None) {
        Ok(Begun::Serves(server)) => {
            // Whoever reads the standard error of the command that started us waits for its end; we outlive that command.
            process::place(keeper.null.as_fd(), 2)?;
            // That of mounts and documents, which is not run again.
            sys::memory::release_code();
            return keeper.run(server);
        }
        Ok(Begun::Failed(failure)) => failure,
        Ok(Begun::Died) => Failure::from(&Report::new(Kind::Internal, "the file server was killed before it served")),
        Err(error) => Failure::from(&Report::from(error)),
    };
    keeper.doors.map_or(Ok(()), |doors| refuse_first(&doors.listen, &failure))
}

/// What a server says to its keeper, once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// It serves, by what [`Agreed`] holds.
    Ready(u64),
    /// It cannot.
    Failed(Failure),
}

impl Word {
    pub(crate) fn say(&self, keeper: BorrowedFd<'_>) -> Result<(), SysError> {
        let text = serde_json::to_vec(self).map_err(|_| SysError::new("word of the server as JSON", Errno::EINVAL))?;
        socket::send(keeper, &text, &[])
    }
}

/// A server that has said that it serves.
#[derive(Debug)]
struct Server {
    process: Child,
    born: Instant,
    agreed: Agreed,
}

/// What became of the start of a server.
#[derive(Debug)]
enum Begun {
    Serves(Server),
    Failed(Failure),
    /// Killed before it said anything.
    Died,
}

/// Everything that a server needs, and a successor again.
struct Keeper {
    inherited: Inherited,
    view: View,
    device: OwnedFd,
    /// Of [`crate::host_journal`], or of [`crate::reads`].
    journal: File,
    /// What is read of an image, where there is a place for it.
    list: Option<ListFile>,
    null: OwnedFd,
    linger: Duration,
    /// `None` when there will be no further users.
    doors: Option<Doors>,
}

impl Keeper {
    fn prepare(mut inherited: Inherited) -> Result<(Keeper, Gifts), FsRoleError> {
        let config: FsConfig = serde_json::from_slice(&inherited.config).map_err(FsRoleError::Config)?;
        let user_namespace = inherited.fd("userns")?;
        let list = ListFile::open(&mut inherited);
        let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| "open(/dev/null)".to_owned())?;
        let journal = memfd_create(c"sublet-nodes", MFdFlags::MFD_CLOEXEC).call(|| "memfd_create()".to_owned())?;
        let journal = File::from(journal);
        raise_open_files()?;
        let read_only = !matches!(config.view, View::Overlay { .. });
        let FuseMount { device, mount_namespace, binary } = fs_mount::mount(user_namespace.as_fd(), read_only)?;
        sandbox::enter()?;
        let FsConfig { view, linger_ms, note } = config;
        let gifts = Gifts { note, user_namespace, mount_namespace, binary };
        let linger = Duration::from_millis(linger_ms);
        Ok((Keeper { inherited, view, device, journal, list, null, linger, doors: None }, gifts))
    }

    /// Starts a server and waits for its word; on the connection of one that was killed if that is `resumed`.
    fn start_server(&mut self, resumed: Option<Agreed>) -> Result<Begun, FsRoleError> {
        let (ours, theirs) = socket::pair()?;
        let process = process::fork(process::Flags::empty(), None, || self.serve(resumed, theirs.as_fd()))?;
        drop(theirs);
        let mut word = vec![0; WORD_MAX];
        let (length, _) = socket::receive(ours.as_fd(), &mut word)?;
        let word = serde_json::from_slice(&word[..length]);
        if let Ok(Word::Ready(agreed)) = word {
            return Ok(Begun::Serves(Server { process, born: Instant::now(), agreed: Agreed(agreed) }));
        }
        process::reap(process.pidfd.as_fd(), true)?;
        Ok(if let Ok(Word::Failed(failure)) = word { Begun::Failed(failure) } else { Begun::Died })
    }

    /// In the server's process.
    fn serve(&mut self, resumed: Option<Agreed>, keeper: BorrowedFd<'_>) -> i32 {
        // A copy of these would keep the mount, and clients waiting, when the keeper's are closed.
        self.doors = None;
        let Keeper { inherited, view, device, journal, list, null, .. } = self;
        let reads = list.take().map(|list| list.reads().clone()).unwrap_or_default();
        let (device, journal, null) = (device.as_fd(), journal.as_fd(), null.as_fd());
        let given = Given { device, journal, resumed, reads: &reads, keeper, null };
        let Err(error) = fs_server::serve(view.clone(), inherited, &given) else { return 0 };
        // Nobody listens after the first word, and nothing but its end is to be told then.
        let _told = Word::Failed(Failure::from(&Report::from(error))).say(keeper);
        1
    }

    /// Counts users, and puts a successor in the place of a server that was killed, until one has ended otherwise. When there
    /// have been no users for the time to linger, gives up the mount.
    fn run(mut self, mut server: Server) -> Result<(), FsRoleError> {
        let (mut idle_since, mut short_lives) = (Instant::now(), 0);
        let mut linger = self.linger.max(FIRST_USER);
        let mut start_ends = self.list.is_some().then(|| idle_since + reads::START);
        loop {
            let idle = self.doors.as_ref().is_some_and(|doors| doors.users.is_empty());
            let leaving = self.doors.as_ref().is_some_and(|doors| doors.leaving);
            let patience = if leaving { Duration::ZERO } else { linger };
            let lingers = idle.then(|| patience.saturating_sub(idle_since.elapsed()));
            if lingers.is_some_and(|left| left.is_zero()) {
                self.doors = None;
                continue;
            }
            let stranger = self.doors.as_ref().and_then(|doors| doors.strangers.first());
            let silent = stranger.map(|(_, until)| until.saturating_duration_since(Instant::now()));
            let start = start_ends.map(|at| at.saturating_duration_since(Instant::now()));
            let wait = lingers.into_iter().chain(silent).chain(start).min();
            let ready = wait_for(&server.process, self.doors.as_ref(), wait)?;
            if start_ends.take_if(|at| *at <= Instant::now()).is_some() {
                self.note_reads();
            }
            if ready.first().copied().unwrap_or(false) {
                match self.succeed(&server, &mut short_lives)? {
                    Some(successor) => server = successor,
                    None => return Ok(()),
                }
            }
            if let Some(doors) = &mut self.doors
                && doors.serve(&ready[1..], server.process.pid)
                && doors.users.is_empty()
            {
                (idle_since, linger) = (Instant::now(), self.linger);
                self.note_reads();
            }
        }
    }

    /// Puts what was read since into the list.
    fn note_reads(&mut self) {
        if let Some(list) = &mut self.list {
            list.take(&self.journal);
        }
    }

    /// The successor of a server that has ended, if there is to be one.
    fn succeed(&mut self, ended: &Server, short_lives: &mut u32) -> Result<Option<Server>, FsRoleError> {
        let exit = process::reap(ended.process.pidfd.as_fd(), true)?;
        let Some(Exit::Signal(signal)) = exit else { return Ok(None) };
        if signal == libc::SIGSYS || !ended.agreed.can_resume() {
            return Ok(None);
        }
        self.note_reads();
        *short_lives = if ended.born.elapsed() < SHORT_LIFE { *short_lives + 1 } else { 0 };
        if *short_lives >= SHORT_LIVES_MAX {
            return Ok(None);
        }
        let (began, mut pause) = (Instant::now(), PAUSE);
        while began.elapsed() < TRIED_MAX {
            // No request has killed one that did not serve yet: memory or processes are short for a moment. If for longer,
            // there is nobody to tell.
            if let Ok(Begun::Serves(successor)) = self.start_server(Some(ended.agreed)) {
                return Ok(Some(successor));
            }
            std::thread::sleep(pause);
            pause = PAUSE_MAX.min(2 * pause);
        }
        Ok(None)
    }
}

/// Waits for the end of the server, for a client, for the ends of users and for greetings; tells which of them came, in this
/// order. Nothing came when the time is over.
fn wait_for(server: &Child, doors: Option<&Doors>, time: Option<Duration>) -> Result<Vec<bool>, SysError> {
    let timeout = time
        .map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX));
    let mut fds = vec![PollFd::new(server.pidfd.as_fd(), PollFlags::POLLIN)];
    if let Some(doors) = doors {
        fds.push(PollFd::new(doors.listen.as_fd(), PollFlags::POLLIN));
        let clients = doors.users.iter().chain(doors.strangers.iter().map(|(stranger, _)| stranger));
        fds.extend(clients.map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)));
    }
    match poll(&mut fds, timeout) {
        Err(Errno::EINTR) => return Ok(vec![false; fds.len()]),
        result => result.call(|| "poll(server, users)".to_owned())?,
    };
    Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}

/// Raises the soft limit of open files to the hard one.
fn raise_open_files() -> Result<(), SysError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).call(|| "getrlimit(NOFILE)".to_owned())?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).call(|| format!("setrlimit(NOFILE, {hard})"))
}

/// The client that started us learns why there will be no view.
fn refuse_first(listen: &UnixListener, failure: &Failure) -> Result<(), FsRoleError> {
    let text = serde_json::to_vec(failure).unwrap_or_default();
    let client = accept(listen)?;
    let limit = PollTimeout::try_from(GREETING_LIMIT).unwrap_or(PollTimeout::MAX);
    let mut greeting = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    if poll(&mut greeting, limit).call(|| "poll(greeting)".to_owned())? == 0 {
        return Err(SysError::new("greeting of a client", Errno::ETIMEDOUT).into());
    }
    // It must be read: closing a socket with something unread takes our answer away.
    proves_host(&client)?;
    Ok(socket::send(client.as_fd(), &text, &[])?)
}

/// The listener is of type SEQPACKET, which makes no difference to accept(2).
fn accept(listen: &UnixListener) -> Result<OwnedFd, SysError> {
    listen.accept().map(|(client, _)| client.into()).call(|| "accept4()".to_owned())
}

/// The connections and what they are given. Dropping it gives up the mount.
struct Doors {
    listen: UnixListener,
    gifts: Gifts,
    users: Vec<OwnedFd>,
    /// Who has not greeted yet, and until when it may. Nobody waits for one of them alone.
    strangers: Vec<(OwnedFd, Instant)>,
    /// Whether a user has said [`LEAVE`].
    leaving: bool,
}

/// What every user is given.
struct Gifts {
    note: String,
    user_namespace: OwnedFd,
    mount_namespace: OwnedFd,
    binary: Option<OwnedFd>,
}

impl Doors {
    /// Takes who came and drops who went, as [`wait_for`] tells. Returns whether anybody did either.
    fn serve(&mut self, ready: &[bool], server: i32) -> bool {
        let Some((client, others)) = ready.split_first() else { return false };
        let mut others = others.iter().copied();
        let mut has_spoken = || others.next().unwrap_or(false);
        // Whatever a user says after its greeting is its end.
        self.users.retain(|user| {
            let spoken = has_spoken();
            self.leaving |= spoken && says_leave(user);
            !spoken
        });
        let now = Instant::now();
        for (stranger, until) in std::mem::take(&mut self.strangers) {
            // Who is refused sees the end of the stream; there is nobody else to tell.
            if has_spoken() {
                if self.welcome(&stranger, server).is_ok() {
                    self.users.push(stranger);
                }
            } else if now < until {
                self.strangers.push((stranger, until));
            }
        }
        if *client
            && let Ok(stranger) = accept(&self.listen)
            && self.users.len() + self.strangers.len() < USERS_MAX
        {
            self.strangers.push((stranger, now + GREETING_LIMIT));
        }
        ready.contains(&true)
    }

    fn welcome(&self, user: &OwnedFd, server: i32) -> Result<(), SysError> {
        proves_host(user)?;
        let Gifts { note, user_namespace, mount_namespace, binary } = &self.gifts;
        let welcome = Welcome { pids: vec![std::process::id() as i32, server], note: note.clone() };
        let welcome = serde_json::to_vec(&welcome).unwrap_or_default();
        let both = [user_namespace.as_fd(), mount_namespace.as_fd()];
        let fds: Vec<_> = both.into_iter().chain(binary.as_ref().map(AsFd::as_fd)).collect();
        socket::send(user.as_fd(), &welcome, &fds)
    }
}

/// Whether a user's last word is [`LEAVE`].
fn says_leave(user: &OwnedFd) -> bool {
    let mut word = [0; LEAVE.len()];
    socket::receive(user.as_fd(), &mut word).is_ok_and(|(length, _)| &word[..length] == LEAVE)
}

/// Whether a peer that has greeted is ours: its uid, and a descriptor of its own user namespace that is also ours.
///
/// A process in a container with our run directory bound in has our uid, but no way to open our user namespace: the one
/// it is in is another, and `/proc` refuses it those of processes outside. Asking the peer for the descriptor, rather
/// than reading `/proc/PID/ns/user`, also works for a monitor that is not dumpable, and cannot be raced by pid reuse.
fn proves_host(user: &OwnedFd) -> Result<(), SysError> {
    let (_, uid) = socket::peer(user.as_fd())?;
    if uid != nix::unistd::geteuid().as_raw() {
        return Err(SysError::new(format!("client of uid {uid}"), Errno::EPERM));
    }
    let mut greeting = [0; 16];
    let (_, fds) = socket::receive(user.as_fd(), &mut greeting)?;
    let theirs = fds.first().ok_or_else(|| SysError::new("greeting without a namespace", Errno::EPERM))?;
    if namespace::identity(theirs)? == namespace::identity(namespace::open_own("user")?)? {
        Ok(())
    } else {
        Err(SysError::new("client in another user namespace", Errno::EPERM))
    }
}
