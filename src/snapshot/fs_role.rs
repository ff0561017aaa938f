//! The role `fs`: serves one view to all containers of the user that have it as their root.
//!
//! Theory of operation
//! - *Where it runs*: as the calling user, in the host's namespaces, with no capability, under no_new_privs, not dumpable,
//!   and from its first request on with a filter of system calls and Landlock ([`crate::sandbox`]). Its mount lives in a
//!   mount namespace inside the outer user namespace, made by a child ([`crate::fs_mount`]); the server only keeps
//!   descriptors of both. So reading as "the calling user" is the same thing as root and as a plain user, and a server
//!   that is taken over holds nothing but what it serves.
//! - *Users*: whoever needs the view connects to the socket, proves that it is no container ([`proves_host`]) and gets
//!   the outer user namespace, the mount namespace and a read-only clone of our own binary. Each open connection is one
//!   user; nothing is ever sent again.
//! - *End*: when the last connection has been closed for `linger_ms`, the server closes its listener and its mount
//!   namespace, and serves on until the kernel says `ENODEV`, that is until the last clone of the mount is gone (a
//!   container whose monitor was killed still has one). A client that connected in that instant sees the end of the
//!   stream and starts a new server. A killed server leaves nothing but a socket file that nobody listens on.
//! - One thread runs this loop, the wire's threads serve requests; they share nothing but the end.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Explain, Failure, Kind, Report};
use fuse::{Features, Filesystem, Served, Session, SessionError};
use index::Index;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use overlayfs::{Overlay, Policy};
use serde::{Deserialize, Serialize};
use store::{Shelf, StoreError};
use sys::error::Call;
use sys::role::Inherited;
use sys::{SysError, namespace, process, socket};

use crate::fs_mount::{self, FuseMount};
use crate::ids::MappedIds;
use crate::object_dir::{CachedObjects, ObjectDirs};
use crate::sandbox::{self, Needs};
use crate::view_chain::ChainView;
use crate::view_host::{HostView, HostViewConfig};

/// `argv[0]` of the role.
pub const ARGV0: &str = "sublet-fs";
/// How long a server of a view stays without users, so that one `run --rm` after another finds it warm.
pub const LINGER_MS: u64 = 30_000;
/// The same for the server of one container: long enough for its first user to connect.
pub const CONTAINER_LINGER_MS: u64 = 1_000;
/// How long a new server waits for the end of the one before it, which may still have to sync.
const UPPER_WAIT: Duration = Duration::from_secs(10);
/// More users than this are refused; each is one descriptor.
const USERS_MAX: usize = 4096;

/// What the role is told. Descriptors: `userns` (the outer user namespace), `listen` (a listening SEQPACKET socket);
/// for a chain `index` and the [`object_fds`], for an overlay `upper` too (a directory that stays the driver's own).
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
    /// The server's process.
    pub pid: i32,
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

/// Leaves whoever started us (who need not wait for us), then serves.
fn start() -> Result<ExitCode, FsRoleError> {
    let mut inherited = Inherited::take()?;
    let mut code = ExitCode::SUCCESS;
    // The first process ends at once: its parent reaps it and the server is nobody's child.
    process::fork(process::Flags::empty(), None, || {
        let listen = inherited.fd("listen");
        let result = listen.map_err(FsRoleError::from).and_then(|listen| {
            // Before nothing but the view's own files can be opened.
            let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                .call(|| "open(/dev/null)".to_owned())?;
            let ready = prepare(&mut inherited);
            run(UnixListener::from(listen), ready, null.as_fd())
        });
        if let Err(error) = result {
            eprintln!("error: {}", Report::from(error));
            code = ExitCode::FAILURE;
        }
        i32::from(code == ExitCode::FAILURE)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What shakes hands with the kernel once the loop runs, and serves until the mount is gone.
type Serve = Box<dyn FnOnce(OwnedFd) -> Result<Served, SessionError> + Send>;

/// A mounted view that is not served yet.
struct Ready {
    user_namespace: OwnedFd,
    mount: FuseMount,
    serve: Serve,
    needs: Needs,
    /// To be closed when it is not served any more.
    overlay: Option<Arc<Overlay>>,
    linger: Duration,
    note: String,
}

fn prepare(inherited: &mut Inherited) -> Result<Ready, FsRoleError> {
    let config: FsConfig = serde_json::from_slice(&inherited.config).map_err(FsRoleError::Config)?;
    let user_namespace = inherited.fd("userns")?;
    raise_open_files()?;
    let mount = fs_mount::mount(user_namespace.as_fd(), !matches!(config.view, View::Overlay { .. }))?;
    sandbox::enter()?;
    let mut overlay = None;
    let (needs, serve) = match config.view {
        View::Chain { ids } => {
            let index = Index::open(inherited.fd("index")?).map_err(FsRoleError::Index)?;
            let (contents, posix_acl) = (objects(inherited)?, index.has_acls());
            tell_confinement(sandbox::files(&readable(&contents), None));
            let view = ChainView::new(index, contents, ids).map_err(|_| FsRoleError::NotAChain)?;
            // Without one there is no list to be asked for at the first permission check of every file.
            let features = Features { posix_acl, ..Features::immutable(threads()) };
            (Needs::Image, serving(view, features))
        }
        View::Overlay { ids, volatile, shifted } => {
            let opened = Arc::new(open_overlay(inherited, volatile)?);
            overlay = Some(Arc::clone(&opened));
            let view = overlayfs::View::new(opened).showing(move |uid, gid| (ids.show_uid(uid), ids.show_gid(gid)));
            (Needs::ImageAndUpper, serving(view, overlayfs::View::features(threads(), false, shifted)))
        }
        View::Host(config) => {
            let features = Features { cache_symlinks: false, auto_inval_data: true, ..Features::immutable(threads()) };
            let view = HostView::open(&config)?;
            tell_confinement(sandbox::files(&[&view.root()], None));
            (Needs::Host, serving(view, features))
        }
    };
    let linger = Duration::from_millis(config.linger_ms);
    Ok(Ready { user_namespace, mount, serve, needs, overlay, linger, note: config.note })
}

/// The descriptors by which a server reaches the contents of files, by their names: `objects` and `trash` of the user's
/// store, and `objects-1` and so on of those that are only read.
pub fn object_fds(objects: &Shelf) -> Result<Vec<(String, BorrowedFd<'_>)>, StoreError> {
    let below = objects.below()?.into_iter().enumerate().map(|(number, dir)| (below_name(number), dir.as_fd()));
    let own = [("objects".to_owned(), objects.dir().as_fd()), ("trash".to_owned(), objects.trash().as_fd())];
    Ok(own.into_iter().chain(below).collect())
}

fn below_name(number: usize) -> String {
    format!("objects-{}", number + 1)
}

fn readable(dirs: &ObjectDirs) -> Vec<&dyn AsFd> {
    dirs.all().map(|dir| dir as &dyn AsFd).collect()
}

/// Takes what [`object_fds`] names.
fn objects(inherited: &mut Inherited) -> Result<ObjectDirs, SysError> {
    let (own, trash) = (inherited.fd("objects")?, inherited.fd("trash")?);
    let below = (0..).map_while(|number| inherited.optional_fd(&below_name(number))).collect();
    Ok(ObjectDirs { own, trash, below })
}

/// Opens the upper, which nobody else may have open: the lock is held as long as this process lives.
fn open_overlay(inherited: &mut Inherited, volatile: bool) -> Result<Overlay, FsRoleError> {
    let index = Index::open(inherited.fd("index")?).map_err(FsRoleError::Index)?;
    if !index.is_chain() {
        return Err(FsRoleError::NotAChain);
    }
    let (objects, upper) = (objects(inherited)?, inherited.fd("upper")?);
    // Never closed, so that it is held until the process ends.
    std::mem::forget(lock_upper(&upper)?);
    let policy = if volatile { Policy::Volatile } else { Policy::Durable };
    let upper_again = upper.try_clone().call(|| "dup(upper)".to_owned())?;
    let contents = Arc::new(CachedObjects::new(objects));
    let overlay = Overlay::open(upper, Arc::new(index), contents.clone(), policy)?;
    tell_confinement(sandbox::files(&readable(contents.dirs()), Some(&upper_again)));
    let recovery = overlay.recovery();
    if recovery.unsynced {
        return Err(FsRoleError::Unsynced);
    }
    tell(&recovery);
    Ok(overlay)
}

/// Tells that only the filter confines this server, if so. Once for each server: who wants nothing less looks at
/// [`sandbox::confinement`] at every start.
fn tell_confinement(failure: Option<String>) {
    if let Some(line) = sandbox::ladder(failure).step_down() {
        // Nobody has to listen.
        let _ = writeln!(std::io::stderr(), "warning: {line}");
    }
}

/// Tells what a crash has cost; standard error still is that of the command that started us, and may be gone.
fn tell(recovery: &overlayfs::Recovery) {
    let mut stderr = std::io::stderr();
    if recovery.cut_bytes > 0 {
        let _ = writeln!(
            stderr,
            "warning: the last {} bytes of the log of the container's changes are damaged and were cut off: changes from \
             just before a crash may be lost",
            recovery.cut_bytes
        );
    }
    if recovery.lost_files > 0 {
        let _ = writeln!(
            stderr,
            "warning: the contents of {} files of the container were lost in a crash: they are empty now",
            recovery.lost_files
        );
    }
}

/// Waits for the end of a server that still has it; `EAGAIN` when that does not come.
fn lock_upper(upper: &OwnedFd) -> Result<OwnedFd, SysError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(upper, c"lock", flags, Mode::from_bits_truncate(0o600)).call(|| "open(upper/lock)".to_owned())?;
    let began = Instant::now();
    while !sys::lock::try_exclusive(&file, Path::new("upper/lock"))? {
        if began.elapsed() >= UPPER_WAIT {
            return Err(SysError::new("lock(upper/lock), which another server has", Errno::EAGAIN));
        }
        // Waiting in the kernel has no limit, and nothing else tells of its end.
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

fn serving(view: impl Filesystem, features: Features) -> Serve {
    Box::new(move |device| Session::open(device, Arc::new(view), &features)?.serve())
}

/// Two at least (a lone reader is slow), four at most (more only fight over the queue).
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4))
}

/// Raises the soft limit of open files to the hard one.
fn raise_open_files() -> Result<(), SysError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).call(|| "getrlimit(NOFILE)".to_owned())?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).call(|| format!("setrlimit(NOFILE, {hard})"))
}

/// Serves until the mount is gone; tells the waiting client if it cannot even begin.
fn run(listen: UnixListener, ready: Result<Ready, FsRoleError>, null: BorrowedFd<'_>) -> Result<(), FsRoleError> {
    let Ready { user_namespace, mount, serve, needs, overlay, linger, note } = match ready {
        Ok(ready) => ready,
        Err(error) => {
            refuse_first(&listen, &Report::from(error));
            return Ok(());
        }
    };
    // Whoever reads the standard error of the command that started us waits for its end, and we outlive that command.
    process::place(null, 2)?;
    let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).call(|| "eventfd()".to_owned())?);
    sandbox::filter(needs)?;
    let FuseMount { device, mount_namespace, binary } = mount;
    let signal = Arc::clone(&ended);
    let server = std::thread::spawn(move || {
        let result = serve(device);
        // The counter cannot overflow with one write.
        let _written = signal.write(1);
        result
    });
    let welcome = serde_json::to_vec(&Welcome { pid: std::process::id() as i32, note }).unwrap_or_default();
    let users = Users { listen, welcome, user_namespace, mount_namespace, binary };
    users.serve(&ended, linger)?;
    let served = match server.join() {
        Ok(result) => Ok(result.map(drop)?),
        Err(_panic) => Err(SysError::new("FUSE server thread: panic", Errno::EIO).into()),
    };
    // The server's own reference went with its thread.
    if let Some(overlay) = overlay.and_then(Arc::into_inner) {
        overlay.close().call(|| "syncing the writable snapshot".to_owned())?;
    }
    served
}

/// The client that started us learns why there will be no view.
fn refuse_first(listen: &UnixListener, report: &Report) {
    let text = serde_json::to_vec(&Failure::from(report)).unwrap_or_default();
    let sent = accept(listen).and_then(|client| {
        // Its greeting must be read: closing a socket with something unread takes our answer away.
        proves_host(&client)?;
        socket::send(client.as_fd(), &text, &[])
    });
    if sent.is_err() {
        eprintln!("error: {report}");
    }
}

/// The listener is of type SEQPACKET, which makes no difference to accept(2).
fn accept(listen: &UnixListener) -> Result<OwnedFd, SysError> {
    listen.accept().map(|(client, _)| client.into()).call(|| "accept4()".to_owned())
}

/// The connections and what they are given.
struct Users {
    listen: UnixListener,
    welcome: Vec<u8>,
    user_namespace: OwnedFd,
    mount_namespace: OwnedFd,
    binary: Option<OwnedFd>,
}

impl Users {
    /// Counts users until there have been none for `linger`, or until the server has ended. Dropping `self` on return
    /// gives up the mount.
    fn serve(self, ended: &EventFd, linger: Duration) -> Result<(), SysError> {
        let mut users: Vec<OwnedFd> = Vec::new();
        let mut idle_since = Instant::now();
        loop {
            let wait = if users.is_empty() { Some(linger.saturating_sub(idle_since.elapsed())) } else { None };
            if wait.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            let timeout = wait.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX)
            });
            let mut fds = vec![
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listen.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(users.iter().map(|user| PollFd::new(user.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => continue,
                result => result.call(|| "poll(users)".to_owned())?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready[0] {
                return Ok(());
            }
            // A user never speaks after its greeting: whatever comes is the end.
            let mut gone = ready[2..].iter();
            users.retain(|_| !gone.next().copied().unwrap_or(false));
            if ready[1] {
                match accept(&self.listen).and_then(|user| self.welcome(&user).map(|()| user)) {
                    Ok(user) if users.len() < USERS_MAX => users.push(user),
                    Ok(_too_many) => {}
                    // It sees the end of the stream; there is nobody else to tell.
                    Err(_refused) => {}
                }
            }
            if users.is_empty() && ready.iter().skip(1).any(|ready| *ready) {
                idle_since = Instant::now();
            }
        }
    }

    fn welcome(&self, user: &OwnedFd) -> Result<(), SysError> {
        proves_host(user)?;
        let both = [self.user_namespace.as_fd(), self.mount_namespace.as_fd()];
        let fds: Vec<_> = both.into_iter().chain(self.binary.as_ref().map(AsFd::as_fd)).collect();
        socket::send(user.as_fd(), &self.welcome, &fds)
    }
}

/// Whether a peer is ours: its uid, and a descriptor of its own user namespace that is also ours.
///
/// A process in a container with our run directory bound in has our uid, but no way to open our user namespace: the one
/// it is in is another, and `/proc` refuses it those of processes outside. Asking the peer for the descriptor, rather
/// than reading `/proc/PID/ns/user`, also works for a monitor that is not dumpable, and cannot be raced by pid reuse.
fn proves_host(user: &OwnedFd) -> Result<(), SysError> {
    let (_, uid) = socket::peer(user.as_fd())?;
    if uid != nix::unistd::geteuid().as_raw() {
        return Err(SysError::new(format!("client of uid {uid}"), Errno::EPERM));
    }
    let mut ready = [PollFd::new(user.as_fd(), PollFlags::POLLIN)];
    // The greeting follows the connect at once; a client that is slower than this is none of ours.
    if poll(&mut ready, PollTimeout::from(1000_u16)).call(|| "poll(greeting)".to_owned())? == 0 {
        return Err(SysError::new("greeting of a client", Errno::ETIMEDOUT));
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
