//! The server of a view: the process of the role `fs` that answers the kernel.
//!
//! [`crate::fs_role`] starts it, and starts a successor on the same connection if it is killed. It has nothing but what
//! it serves: no door to clients, no namespace, no capability. Before its first request it confines itself
//! ([`crate::sandbox`]); after it has told its keeper what was agreed on with the kernel, it only serves, until the mount is
//! gone.
//!
//! What a successor needs beside the connection: for an image nothing, since node ids are those of the index; for an
//! overlay the log ([`Overlay::resume`]); for the host the journal of node ids ([`crate::host_journal`]) and the list of what is
//! shown empty ([`crate::host_closed`]).

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse::{Agreed, Features, Filesystem, Session};
use index::Index;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use overlayfs::{Overlay, Policy};
use store::{Shelf, StoreError};
use sys::error::Call;
use sys::role::Inherited;
use sys::{SysError, process};

use crate::fs_role::{FsRoleError, View, Word};
use crate::host_closed::{self, Closed};
use crate::object_dir::{CachedObjects, ObjectDirs};
use crate::reads::{Reads, Recorder};
use crate::sandbox::{self, Needs};
use crate::view_chain::ChainView;
use crate::view_host::HostView;

/// How long a new server waits for the end of the one before it, which may still have to sync.
const UPPER_WAIT: Duration = Duration::from_secs(10);

/// The stack of the thread that reads ahead.
const AHEAD_STACK: usize = 128 << 10;

/// What the keeper gives to a server.
pub(crate) struct Given<'a> {
    /// The connection to the kernel; the keeper has it too.
    pub device: BorrowedFd<'a>,
    /// The memory of a view of the host; of an image, where to note what is read.
    pub journal: BorrowedFd<'a>,
    /// What a predecessor on this connection has agreed on with the kernel, if there was one.
    pub resumed: Option<Agreed>,
    /// What is known to be read of an image.
    pub reads: &'a Reads,
    /// Where to say [`Word::Ready`].
    pub keeper: BorrowedFd<'a>,
    /// Takes the place of standard error.
    pub null: BorrowedFd<'a>,
}

/// Serves until the mount is gone. An error before [`Word::Ready`] was said is for the caller to say.
pub(crate) fn serve(view: View, inherited: &mut Inherited, given: &Given<'_>) -> Result<(), FsRoleError> {
    match view {
        View::Chain { ids } => {
            let index = Index::open(inherited.fd("index")?).map_err(FsRoleError::Index)?;
            let (contents, posix_acl) = (objects(inherited)?, index.has_acls());
            tell_confinement(sandbox::files(&readable(&contents), None));
            let journal = given.journal.try_clone_to_owned().call(|| "dup(journal)".to_owned())?;
            let recorder = Recorder::new(journal, given.reads.clone());
            let view = ChainView::new(index, contents, ids, recorder).map_err(|_| FsRoleError::NotAChain)?;
            // Without one there is no list to be asked for at the first permission check of every file.
            let features = Features { posix_acl, ..Features::immutable(threads()) };
            given.run(Needs::Image, view, &features, |view| given.read_ahead(view))
        }
        View::Overlay { ids, volatile, shifted, size_bytes } => {
            let overlay = Arc::new(open_overlay(inherited, volatile, size_bytes, given.resumed.is_some())?);
            let view = overlayfs::View::new(Arc::clone(&overlay));
            let view = view.showing(move |uid, gid| (ids.show_uid(uid), ids.show_gid(gid)));
            let view = if (ids.uids, ids.gids) == (1, 1) { view.telling_owners() } else { view };
            let features = overlayfs::View::features(threads(), false, shifted);
            given.run(Needs::ImageAndUpper, view, &features, |_| ())?;
            // The session's own reference went with it.
            if let Some(overlay) = Arc::into_inner(overlay) {
                overlay.close().call(|| "syncing the writable snapshot".to_owned())?;
            }
            Ok(())
        }
        View::Host(config) => {
            let features = Features { cache_symlinks: false, auto_inval_data: true, ..Features::immutable(threads()) };
            let journal = given.journal.try_clone_to_owned().call(|| "dup(journal)".to_owned())?;
            let closed = Closed::open(inherited.fd(host_closed::NAME)?.into(), given.resumed.is_some())?;
            let view = HostView::open(&config, journal, closed)?;
            tell_confinement(sandbox::files(&[&view.root()], None));
            given.run(Needs::Host, view, &features, |_| ())
        }
    }
}

impl Given<'_> {
    /// Asks for what is known to be read, beside the first requests. A successor has no start to hurry.
    fn read_ahead(&self, view: Arc<ChainView<ObjectDirs>>) {
        let reads = self.reads.clone();
        if self.resumed.is_none() && reads != Reads::default() {
            let thread = std::thread::Builder::new().name("ahead".to_owned()).stack_size(AHEAD_STACK);
            // Without a thread (RLIMIT_NPROC) each read waits for the disk itself.
            drop(thread.spawn(move || view.read_ahead(&reads)));
        }
    }

    /// Serves; `ready` is called when the keeper has been told so.
    fn run<F: Filesystem>(
        &self,
        needs: Needs,
        view: F,
        features: &Features,
        ready: impl FnOnce(Arc<F>),
    ) -> Result<(), FsRoleError> {
        let device = self.device.try_clone_to_owned().call(|| "dup(/dev/fuse)".to_owned())?;
        // Whoever reads the standard error of the command that started us waits for its end, and we outlive that command.
        process::place(self.null, 2)?;
        // That of what was opened, and of the keeper.
        sys::memory::release_code();
        sandbox::filter(needs)?;
        let view = Arc::new(view);
        let session = match self.resumed {
            Some(agreed) => Session::resume(device, Arc::clone(&view), features, agreed)?,
            None => Session::open(device, Arc::clone(&view), features)?,
        };
        Word::Ready(session.agreed().0).say(self.keeper)?;
        ready(view);
        session.serve()?;
        Ok(())
    }
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
pub(crate) fn objects(inherited: &mut Inherited) -> Result<ObjectDirs, SysError> {
    let (own, trash) = (inherited.fd("objects")?, inherited.fd("trash")?);
    let below = (0..).map_while(|number| inherited.optional_fd(&below_name(number))).collect();
    Ok(ObjectDirs { own, trash, below })
}

/// Opens the upper, which nobody else may have open: the lock is held as long as this process lives.
fn open_overlay(
    inherited: &mut Inherited,
    volatile: bool,
    size_bytes: Option<u64>,
    resumed: bool,
) -> Result<Overlay, FsRoleError> {
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
    let open = if resumed { Overlay::resume } else { Overlay::open };
    let overlay = open(upper, Arc::new(index), contents.clone(), policy)?;
    tell_confinement(sandbox::files(&readable(contents.dirs()), Some(&upper_again)));
    let recovery = overlay.recovery();
    if recovery.unsynced {
        return Err(FsRoleError::Unsynced);
    }
    tell(&recovery);
    Ok(match size_bytes {
        Some(bytes) => overlay.limited(bytes),
        None => overlay,
    })
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

/// Two at least (a lone reader is slow), four at most (more only fight over the queue).
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4))
}
