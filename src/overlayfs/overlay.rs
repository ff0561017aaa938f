//! The overlay itself: opening and replay, locks, how a change is made.
//!
//! Locks, in the order they are taken:
//! 1. [`Busy`]: one writer an inode, held over copy-up, write and truncation. A copy-up of gigabytes holds nothing else.
//! 2. `state`: the tree and the end of the log, for reading by every lookup, for writing by every change: check, append
//!    the record (one `pwrite` to the page cache), apply it. Under it the only other system calls are the creation of an
//!    empty data file and the rename of a grown copy. A compaction of the log holds it for its whole length.
//! 3. the descriptors' lock inside [`Files`] and the one inside [`Group`]: leaves, held for a few instructions.
//!
//! Data files are unlinked after the lock is released.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use index::Index;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, mkdirat};
use nix::sys::statvfs::{Statvfs, fstatvfs};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sys::error::Call;

use crate::attr::{Attr, Request, Result, Time, UPPER_BASE};
use crate::busy::Busy;
use crate::compact::COMPACT_ABOVE;
use crate::done::Done;
use crate::error::OpenError;
use crate::files::Files;
use crate::log::{Group, Log, Replay};
use crate::lower::{Contents, Lower};
use crate::node::{Body, Data, Node};
use crate::quota::{self, Quota};
use crate::record::{OLDEST, Record, VERSION};
use crate::tree::Tree;

/// Marks an upper that is in use without syncs; holds the boot id of the host.
const MARKER: &str = "volatile";

/// What is promised after a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What was synced is there.
    Durable,
    /// Nothing is ever synced. After a crash of the host [`Recovery::unsynced`] says that the upper cannot be trusted.
    Volatile,
}

/// What replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records replayed.
    pub records: u64,
    /// Bytes behind the last good record, cut off.
    pub cut_bytes: u64,
    /// Files whose data file is missing although the log says there is one; they are empty now.
    pub lost_files: u64,
    /// The host went down while this upper was used under [`Policy::Volatile`].
    pub unsynced: bool,
}

/// A writable tree over an image chain.
pub struct Overlay {
    pub(crate) lower: Arc<Lower>,
    pub(crate) files: Files,
    pub(crate) busy: Busy,
    pub(crate) policy: Policy,
    state: RwLock<State>,
    group: Group,
    /// Lookups held by the kernel for lower inodes; untouched pages of it cost nothing.
    lookups: Vec<AtomicU32>,
    /// A predecessor was killed: of what there was then the kernel may hold any number of lookups.
    resumed: bool,
    recovery: Recovery,
}

/// What the overlay's lock protects.
pub(crate) struct State {
    pub tree: Tree,
    pub log: Log,
    pub done: Done,
    /// The number in the log's name.
    pub number: u64,
    /// Size of the log at which it is compacted next.
    pub compact_at: u64,
}

pub(crate) fn io<T>(result: Result<T>, name: &str) -> std::result::Result<T, OpenError> {
    result.call(|| format!("open(upper {name:?})")).map_err(|source| OpenError::Io { name: name.to_owned(), source })
}

impl Overlay {
    /// Opens (or starts) the upper in `dir` over a chain, for a new connection. The caller holds the upper's lock.
    pub fn open(
        dir: OwnedFd,
        chain: Arc<Index>,
        contents: Arc<dyn Contents>,
        policy: Policy,
    ) -> std::result::Result<Overlay, OpenError> {
        Overlay::start(dir, chain, contents, policy, false)
    }

    /// As [`Overlay::open`], for the connection of a process that had it open and was killed: what the kernel knows stays,
    /// names or none, and what it asks again is answered from the log.
    pub fn resume(
        dir: OwnedFd,
        chain: Arc<Index>,
        contents: Arc<dyn Contents>,
        policy: Policy,
    ) -> std::result::Result<Overlay, OpenError> {
        Overlay::start(dir, chain, contents, policy, true)
    }

    fn start(
        dir: OwnedFd,
        chain: Arc<Index>,
        contents: Arc<dyn Contents>,
        policy: Policy,
        resumed: bool,
    ) -> std::result::Result<Overlay, OpenError> {
        for name in ["up", "tmp"] {
            match mkdirat(&dir, name, Mode::from_bits_truncate(0o700)) {
                Err(Errno::EEXIST) => {}
                made => io(made, name)?,
            }
        }
        io(clear(&dir, "tmp"), "tmp")?;
        let inodes = chain.inode_count();
        let lower = Arc::new(Lower::new(chain, contents));
        let files = Files::new(dir);
        let (mut state, mut recovery) = replay(&files, &lower, resumed)?;
        recovery.lost_files = settle(&files, &mut state.tree, resumed);
        recovery.unsynced = io(mark(files.dir(), policy), MARKER)?;
        let lookups = (0..inodes).map(|_| AtomicU32::new(0)).collect();
        let (busy, group) = (Busy::default(), Group::default());
        Ok(Overlay { lower, files, busy, policy, state: RwLock::new(state), group, lookups, resumed, recovery })
    }

    /// Lets data files take at most this many bytes on the disk.
    #[must_use]
    pub fn limited(mut self, bytes: u64) -> Overlay {
        let files: Vec<u64> = {
            let state = self.read();
            let with_data = state.tree.nodes.iter().filter(|(_, node)| node.has_upper_data());
            with_data.map(|(ino, _)| *ino).collect()
        };
        let used = files.into_iter().filter_map(|ino| self.files.stat(ino).ok()).map(|stat| quota::bytes(&stat)).sum();
        self.files.quota = Quota::new(bytes, used);
        self
    }

    /// What replay found at open.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Syncs everything that the policy promises and takes the mark of a volatile upper away.
    pub fn close(self) -> Result<()> {
        self.sync()?;
        match unlinkat(self.files.dir(), MARKER, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => removed,
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs and applies one change. Returns an inode that nothing holds any more, for [`Self::remove_data`].
    pub(crate) fn commit(&self, state: &mut State, request: &Request, record: &Record) -> Result<Option<u64>> {
        state.log.append(request.unique, record).map_err(|error| errno_of(&error))?;
        state.done.take(request.unique, record);
        let orphan = state.tree.apply(record).map_err(|_| Errno::EIO)?;
        let gone = orphan.filter(|ino| self.held(state, *ino) == 0).filter(|ino| drop_node(&mut state.tree, *ino));
        if state.log.size() > state.compact_at {
            state.compact(&self.files, self.policy);
        }
        Ok(gone)
    }

    /// The inode that a request is answered with which was done before (0 where it is answered with none).
    pub(crate) fn was_done(state: &State, request: &Request) -> Option<u64> {
        if request.resent { state.done.get(request.unique) } else { None }
    }

    /// Removes the data file of an inode that [`Self::commit`] or [`Self::forget`] dropped. Without the lock.
    pub(crate) fn remove_data(&self, gone: Option<u64>) {
        if let Some(ino) = gone {
            self.files.remove(ino);
        }
    }

    /// Lookups that the kernel holds on an inode.
    fn held(&self, state: &State, ino: u64) -> u64 {
        if ino >= UPPER_BASE {
            return state.tree.nodes.get(&ino).map_or(0, |node| node.lookups.load(Ordering::Relaxed));
        }
        self.lower_count(ino).map_or(0, |count| u64::from(count.load(Ordering::Relaxed)) + u64::from(self.resumed))
    }

    fn lower_count(&self, ino: u64) -> Option<&AtomicU32> {
        self.lookups.get(usize::try_from(ino.checked_sub(1)?).ok()?)
    }

    /// Attributes of an inode.
    pub fn attr(&self, ino: u64) -> Result<Attr> {
        self.read().tree.attr(ino)
    }

    /// Resolves a name; `None` when it does not exist.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Attr>> {
        let state = self.read();
        state.tree.lookup(parent, name)?.map(|ino| state.tree.attr(ino)).transpose()
    }

    /// As [`Self::lookup`], counting one lookup that [`Self::forget`] gives back: an inode without names lives as long
    /// as one is held.
    pub fn lookup_held(&self, parent: u64, name: &[u8]) -> Result<Option<Attr>> {
        let state = self.read();
        let Some(ino) = state.tree.lookup(parent, name)? else { return Ok(None) };
        let attr = state.tree.attr(ino)?;
        self.hold(&state, ino);
        Ok(Some(attr))
    }

    /// Counts one lookup of an inode. A count that reaches its limit stays there, and so does the inode.
    pub(crate) fn hold(&self, state: &State, ino: u64) {
        if ino >= UPPER_BASE {
            if let Some(node) = state.tree.nodes.get(&ino) {
                node.lookups.fetch_add(1, Ordering::Relaxed);
            }
        } else if let Some(count) = self.lower_count(ino) {
            let more = |value: u32| Some(value.saturating_add(1));
            let _always_some = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    /// Gives back `count` lookups of an inode.
    pub fn forget(&self, ino: u64, count: u64) {
        let orphan = {
            let state = self.read();
            let less = |value: u64| Some(value.saturating_sub(count));
            let less32 =
                |value: u32| (value < u32::MAX).then(|| value.saturating_sub(count.min(u64::from(u32::MAX)) as u32));
            let node = state.tree.nodes.get(&ino);
            if ino >= UPPER_BASE {
                let Some(node) = node else { return };
                let _always_some = node.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            } else if let Some(held) = self.lower_count(ino) {
                let _saturated_stays = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less32);
            }
            node.is_some_and(|node| node.nlink == 0) && self.held(&state, ino) == 0
        };
        if orphan {
            let mut state = self.write();
            let gone = (self.held(&state, ino) == 0 && drop_node(&mut state.tree, ino)).then_some(ino);
            drop(state);
            self.remove_data(gone);
        }
    }

    /// Makes the contents of a file and everything logged before durable. Nothing under [`Policy::Volatile`].
    pub fn fsync(&self, ino: u64) -> Result<()> {
        if self.policy == Policy::Volatile {
            return Ok(());
        }
        let (upper, sequence) = {
            let state = self.read();
            (state.tree.nodes.get(&ino).is_some_and(Node::has_upper_data), state.log.sequence())
        };
        if upper {
            self.files.get(ino)?.sync_data().map_err(|error| errno_of(&error))?;
        }
        let current = || {
            let state = self.read();
            (state.log.file(), state.log.sequence())
        };
        self.group.wait(sequence, current).map_err(|error| errno_of(&error))
    }

    /// Makes everything durable. Nothing under [`Policy::Volatile`].
    fn sync(&self) -> Result<()> {
        if self.policy == Policy::Volatile { Ok(()) } else { nix::unistd::syncfs(self.files.dir()) }
    }

    /// The file system that the upper lies on.
    pub fn statfs(&self) -> Result<Statvfs> {
        fstatvfs(self.files.dir())
    }

    /// The most that data files may take and what they take now, in bytes, where there is a limit.
    pub fn usage(&self) -> Option<(u64, u64)> {
        self.files.quota.usage()
    }

    /// Takes size and times of a data file over into its node, after its contents changed.
    pub(crate) fn refresh(&self, ino: u64, stat: &FileStat) {
        if let Some(node) = self.write().tree.nodes.get_mut(&ino) {
            take_stat(node, stat);
        }
    }

    #[cfg(test)]
    pub(crate) fn after_append(&self, hook: Box<dyn FnMut() + Send + Sync>) {
        self.write().log.after_append = Some(hook);
    }
}

pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A data file's own size and times are the truth about its inode; the inode's change time may be later.
pub(crate) fn take_stat(node: &mut Node, stat: &FileStat) {
    node.size = stat.st_size.max(0) as u64;
    node.blocks = stat.st_blocks.max(0) as u64;
    node.mtime = Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
    node.ctime = node.ctime.max(Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 });
}

/// Drops a node without names. Returns whether there was one with a data file.
fn drop_node(tree: &mut Tree, ino: u64) -> bool {
    match tree.nodes.get(&ino) {
        Some(node) if node.nlink == 0 => {
            let upper = node.has_upper_data();
            tree.nodes.remove(&ino);
            upper
        }
        _ => false,
    }
}

/// Removes all files of a directory inside the upper.
fn clear(dir: &OwnedFd, name: &str) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut inside = Dir::openat(dir, name, flags, Mode::empty())?;
    let names: Vec<_> =
        inside.iter().filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned())).collect();
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        unlinkat(inside.as_fd(), name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

/// The highest `log.<n>` there is.
fn newest_log(dir: &OwnedFd) -> Result<Option<u64>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut inside = Dir::openat(dir, ".", flags, Mode::empty())?;
    let number = |name: &std::ffi::CStr| name.to_str().ok()?.strip_prefix("log.")?.parse().ok();
    let mut newest = None;
    for entry in inside.iter() {
        newest = newest.max(number(entry?.file_name()));
    }
    Ok(newest)
}

/// What a log says up to its first bad record.
struct Said {
    tree: Tree,
    done: Done,
    /// Sequence of the last good record.
    last: u64,
    records: u64,
    /// Where the good part ends, and the whole.
    end: u64,
    length: u64,
}

fn read_log(file: &mut File, number: u64, lower: &Arc<Lower>) -> std::result::Result<Said, OpenError> {
    let mut bytes = Vec::new();
    io(file.read_to_end(&mut bytes).map_err(|error| errno_of(&error)), &format!("log.{number}"))?;
    let tree = Tree::new(Arc::clone(lower));
    let mut said = Said { tree, done: Done::default(), last: 0, records: 0, end: 0, length: bytes.len() as u64 };
    let mut records = Replay::new(&bytes);
    for replayed in records.by_ref() {
        if let Record::Begin { version, lower_inodes, .. } = replayed.record {
            check_begin(number, version, lower_inodes, lower.index().inode_count())?;
        }
        let sequence = replayed.sequence;
        said.tree.apply(&replayed.record).map_err(|_| OpenError::Inconsistent { number, sequence })?;
        said.done.take(replayed.unique, &replayed.record);
        said.records += 1;
        said.last = sequence;
    }
    said.end = records.end as u64;
    Ok(said)
}

/// Reads the newest log up to its first bad record, cuts the rest off, and goes on behind it.
fn replay(files: &Files, lower: &Arc<Lower>, resumed: bool) -> std::result::Result<(State, Recovery), OpenError> {
    let number = io(newest_log(files.dir()), ".")?.unwrap_or(1);
    let name = format!("log.{number}");
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let mut file = File::from(io(openat(files.dir(), name.as_str(), flags, Mode::from_bits_truncate(0o600)), &name)?);
    let Said { tree, mut done, last, records, end, length } = read_log(&mut file, number, lower)?;
    io(file.set_len(end).map_err(|error| errno_of(&error)), &name)?;
    let mut log = Log::new(file, end, last);
    if !resumed || end == 0 {
        let lower_inodes = lower.index().inode_count();
        let begin = Record::Begin { version: VERSION, lower_inodes, next_ino: tree.next_ino };
        io(log.append(0, &begin).map_err(|error| errno_of(&error)), &name)?;
        done.take(0, &begin);
    }
    let recovery = Recovery { records, cut_bytes: length - end, ..Recovery::default() };
    Ok((State { tree, log, done, number, compact_at: COMPACT_ABOVE }, recovery))
}

/// The tree of an upper that somebody else may have open; nothing in it is changed.
pub(crate) fn read_only(dir: OwnedFd, lower: &Arc<Lower>) -> std::result::Result<Tree, OpenError> {
    let files = Files::new(dir);
    let Some(number) = io(newest_log(files.dir()), ".")? else { return Ok(Tree::new(Arc::clone(lower))) };
    let name = format!("log.{number}");
    let file = io(openat(files.dir(), name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()), &name)?;
    let mut tree = read_log(&mut File::from(file), number, lower)?.tree;
    ask_data_files(&files, &mut tree);
    Ok(tree)
}

fn check_begin(number: u64, found: u32, stands_on: u32, given: u32) -> std::result::Result<(), OpenError> {
    if !(OLDEST..=VERSION).contains(&found) {
        return Err(OpenError::Version { number, found });
    }
    if stands_on != given {
        return Err(OpenError::OtherChain { number, found: stands_on, given });
    }
    Ok(())
}

/// How often the kernel may have looked something up before its server was killed: never forgotten.
const UNKNOWN: u64 = 1 << 62;

/// After replay: drops inodes that nobody holds any more, and asks the data files for sizes and times. Returns how many
/// data files are missing.
fn settle(files: &Files, tree: &mut Tree, resumed: bool) -> u64 {
    if resumed {
        // Of what has no name the predecessor has removed the data when the kernel forgot it, and the log does not say so.
        // The rest stays until another connection begins, as nobody knows what the kernel has forgotten.
        tree.nodes.retain(|ino, node| node.nlink > 0 || !node.has_upper_data() || files.stat(*ino).is_ok());
        tree.nodes.values().for_each(|node| node.lookups.store(UNKNOWN, Ordering::Relaxed));
        return ask_data_files(files, tree);
    }
    let orphans: Vec<u64> = tree.nodes.iter().filter(|(_, node)| node.nlink == 0).map(|(ino, _)| *ino).collect();
    for ino in orphans {
        if drop_node(tree, ino) {
            files.remove(ino);
        }
    }
    ask_data_files(files, tree)
}

fn ask_data_files(files: &Files, tree: &mut Tree) -> u64 {
    let mut lost = 0;
    for (ino, node) in &mut tree.nodes {
        if node.has_upper_data() {
            if let Ok(stat) = files.stat(*ino) {
                take_stat(node, &stat);
            } else {
                node.body = Body::File(Data::Empty);
                (node.size, node.blocks) = (0, 0);
                lost += 1;
            }
        }
    }
    lost
}

/// Leaves or checks the mark of a volatile upper. Returns whether one was left by a host that went down. It gets its name
/// when it is whole, and one that is true is not touched: a process killed in between must not look like that host.
fn mark(dir: &OwnedFd, policy: Policy) -> Result<bool> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").map_err(|error| errno_of(&error))?;
    match openat(dir, MARKER, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(file) => {
            let mut left = Vec::new();
            File::from(file).read_to_end(&mut left).map_err(|error| errno_of(&error))?;
            return Ok(left != boot);
        }
        Err(Errno::ENOENT) if policy == Policy::Durable => return Ok(false),
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, "tmp/volatile", flags, Mode::from_bits_truncate(0o600))?);
    std::os::unix::fs::FileExt::write_all_at(&file, &boot, 0).map_err(|error| errno_of(&error))?;
    file.sync_all().map_err(|error| errno_of(&error))?;
    renameat(dir, "tmp/volatile", dir, MARKER)?;
    Ok(false)
}
