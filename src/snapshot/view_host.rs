//! The `host:` view: this machine's own root file system, read as the calling user, with short memory.
//!
//! Theory of operation
//! - Everything is reached from one `O_PATH` descriptor of `/` by `openat2` without following any link, so a rename or
//!   a link swapped in while we walk can lead nowhere else. A node keeps its parent and name, not a descriptor: the
//!   kernel may cache hundreds of thousands of nodes, descriptors are few. A node whose path now leads to another inode
//!   answers `ESTALE`, and the kernel looks the name up again.
//! - Node ids are derived from (device, inode number), so hard links are one node and numbers survive forgetting.
//!   Numbers that do not fit get one from a counter.
//! - Places on the *hidden* list (homes, `/proc`, `/run`, our own store, …) are shown as empty directories. Mount points
//!   are judged by [`HostMounts`]; one that may block is shown as an empty directory made up from nothing.
//! - What the user may not read: a file answers `EACCES` when it is read, a directory is shown empty and put on a list
//!   ([`crate::host_closed`]).
//! - What a successor has to know of the nodes is in a journal outside of the process ([`crate::host_journal`]).
//! - Names and attributes hold for one second; pages are dropped when size or modification time change.
//!
//! Locks: `nodes` before `mounts`; neither is held over a system call that can block, but `mounts` over reading
//! mountinfo. `closed` is taken with no other, and held over a short write.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use fuse::op::{Attr, Caller, Entry, Name, NodeId, StatFs, Time, encode_dev};
use fuse::{DirSink, EntrySink, Filesystem};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, major, minor};
use sys::error::Call;

use crate::fd_cache::FdCache;
use crate::host_closed::Closed;
use crate::host_journal::{Journal, Note};
use crate::host_mounts::{HostMounts, Mounted};
use crate::ids::MappedIds;

/// How long a name or an attribute of the living host is believed.
const TTL: Duration = Duration::from_secs(1);
/// Inode numbers below this go into a node id as they are, the device's number above them.
const INO_BITS: u32 = 40;
/// Node ids of inodes whose numbers are too large; below bit 60, which overlayfs' xino needs free.
const COUNTED: u64 = 1 << 59;
/// How often the kernel may have looked up what a predecessor knew: never forgotten.
const UNKNOWN: u64 = 1 << 62;
/// Directory listings remembered between two pages of the same listing.
const LISTINGS: usize = 16;

/// What a `host:` view hides and how it shows owners.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HostViewConfig {
    /// Owners the outer user namespace can express.
    pub ids: MappedIds,
    /// Paths from the root, without leading slash, shown as empty directories.
    pub empty: Vec<Vec<u8>>,
    /// Directories of which every entry is shown as an empty directory (`home`).
    pub empty_below: Vec<Vec<u8>>,
}

impl HostViewConfig {
    /// The places that are hidden everywhere: kernel and run-time trees, and homes unless they were asked for.
    ///
    /// `private` are further paths to hide, such as the user's own home (if elsewhere) and our store, absolute.
    pub fn new(ids: MappedIds, host_home: bool, private: &[&std::path::Path]) -> Self {
        let mut empty: Vec<Vec<u8>> =
            ["proc", "sys", "dev", "run", "tmp", "var/tmp", "var/run"].map(|path| path.as_bytes().to_vec()).into();
        let mut empty_below = Vec::new();
        if !host_home {
            empty.push(b"root".to_vec());
            empty_below.push(b"home".to_vec());
        }
        let relative = |path: &&std::path::Path| {
            let bytes = path.as_os_str().as_bytes();
            bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
        };
        empty.extend(private.iter().map(relative).filter(|path| !path.is_empty()));
        HostViewConfig { ids, empty, empty_below }
    }

    /// Whether the directory at `path`, below `parent`, is shown as an empty one.
    pub(crate) fn hides(&self, path: &[u8], parent: &[u8]) -> bool {
        self.empty.iter().any(|hidden| hidden == path) || self.empty_below.iter().any(|hidden| hidden == parent)
    }
}

/// The view; see the module's documentation.
pub struct HostView {
    root: OwnedFd,
    ids: MappedIds,
    empty: HashSet<Vec<u8>>,
    empty_below: HashSet<Vec<u8>>,
    mounts: RwLock<HostMounts>,
    nodes: Mutex<Nodes>,
    closed: Mutex<Closed>,
    files: FdCache,
}

/// Protected by `HostView::nodes`.
struct Nodes {
    by_id: HashMap<u64, Node>,
    devices: Vec<u64>,
    counted: HashMap<(u64, u64), u64>,
    listings: Vec<(u64, Arc<Listing>)>,
    journal: Journal,
}

struct Node {
    parent: u64,
    name: Box<[u8]>,
    device: u64,
    ino: u64,
    /// Lookups that the kernel holds.
    lookups: u64,
    /// Shown as an empty directory.
    hollow: bool,
}

impl Node {
    fn note(&self, id: u64) -> Note<'_> {
        let Node { parent, device, ino, hollow, .. } = *self;
        Note::Node { id, parent, device, ino, hollow, name: &self.name }
    }
}

/// The names of a directory in the order of their cookies.
type Listing = Vec<(u64, Box<[u8]>)>;

/// Where a node is and what it is.
struct Place {
    path: Vec<u8>,
    device: u64,
    ino: u64,
    hollow: bool,
}

type Result<T> = std::result::Result<T, Errno>;

impl HostView {
    /// Opens `/` of the calling process' mount namespace. `journal` is an empty memory file, or what a predecessor on the same
    /// connection has left in it; `closed` takes the list of what is shown empty.
    pub(crate) fn open(config: &HostViewConfig, journal: OwnedFd, closed: Closed) -> sys::error::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/", flags, Mode::empty()).call(|| "open(\"/\", O_PATH)".to_owned())?;
        let stat = fstat(&root).call(|| "fstat(\"/\")".to_owned())?;
        let (mut by_id, mut devices, mut counted) = (HashMap::new(), vec![stat.st_dev], HashMap::new());
        let journal = Journal::open(journal, |note| match note {
            Note::Device(device) => devices.push(device),
            Note::Counted { id, device, ino } => drop(counted.insert((device, ino), id)),
            Note::Node { id, parent, device, ino, hollow, name } => {
                by_id.insert(id, Node { parent, name: name.into(), device, ino, lookups: UNKNOWN, hollow });
            }
        });
        let journal = journal.call(|| "read(journal of the nodes)".to_owned())?;
        let root_node =
            Node { parent: 1, name: Box::default(), device: stat.st_dev, ino: stat.st_ino, lookups: 1, hollow: false };
        by_id.insert(NodeId::ROOT.0, root_node);
        let nodes = Nodes { by_id, devices, counted, listings: Vec::new(), journal };
        Ok(HostView {
            root,
            ids: config.ids,
            empty: config.empty.iter().cloned().collect(),
            empty_below: config.empty_below.iter().cloned().collect(),
            mounts: RwLock::new(HostMounts::read()?),
            nodes: Mutex::new(nodes),
            closed: Mutex::new(closed),
            files: FdCache::new(1024),
        })
    }

    /// The directory that is shown.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        // A panic inside leaves at worst a wrong lookup count, so the poison mark tells nothing.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, node: NodeId) -> Result<Place> {
        let nodes = self.lock();
        let found = nodes.by_id.get(&node.0).ok_or(Errno::ESTALE)?;
        let path = nodes.path(node.0)?;
        Ok(Place { path, device: found.device, ino: found.ino, hollow: found.hollow })
    }

    /// Opens a place without following links and checks that it still is the same inode.
    fn open_place(&self, place: &Place, flags: OFlag) -> Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let path: &[u8] = if place.path.is_empty() { b"." } else { &place.path };
        let fd = retry(|| openat2(&self.root, path, how))?;
        let stat = fstat(&fd)?;
        if (stat.st_dev, stat.st_ino) == (place.device, place.ino) { Ok(fd) } else { Err(Errno::ESTALE) }
    }

    /// What is mounted on a path, from a table that is read again when the kernel says that it changed.
    fn mounted(&self, path: &[u8]) -> Option<Mounted> {
        let table = self.mounts.read().unwrap_or_else(PoisonError::into_inner);
        if !table.changed() {
            return table.at(path);
        }
        drop(table);
        let mut table = self.mounts.write().unwrap_or_else(PoisonError::into_inner);
        // With an unreadable table the old one is the best knowledge there is.
        let _kept = table.load();
        table.at(path)
    }

    /// Whether the contents of a directory at this path are hidden.
    fn is_hollow(&self, path: &[u8], parent: &[u8], mounted: Option<Mounted>) -> bool {
        mounted.is_some_and(|what| what != Mounted::Shown)
            || self.empty.contains(path)
            || self.empty_below.contains(parent)
    }

    /// Resolves one name of an open directory without counting it.
    fn look(&self, dir: &OwnedFd, parent: &Place, name: &[u8]) -> Result<(FileStat, bool)> {
        let path = join(&parent.path, name);
        let mounted = self.mounted(&path);
        if mounted == Some(Mounted::Untouchable) {
            return Ok((made_up(&path, fstat(dir)?), true));
        }
        let stat = fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT)?;
        let is_dir = stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR;
        let hollow = self.is_hollow(&path, &parent.path, mounted);
        // A hidden thing that is no directory (a socket in a hidden place) is not there at all.
        if hollow && !is_dir && stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFLNK {
            Err(Errno::ENOENT)
        } else {
            Ok((stat, hollow && is_dir))
        }
    }

    fn entry(&self, nodes: &mut Nodes, parent: NodeId, name: &[u8], stat: &FileStat, hollow: bool) -> Entry {
        let id = nodes.id_of(stat.st_dev, stat.st_ino);
        nodes.remember(id, parent.0, name, stat, hollow);
        Entry::new(self.attr(NodeId(id), stat), TTL)
    }

    fn attr(&self, node: NodeId, stat: &FileStat) -> Attr {
        Attr {
            node,
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid: self.ids.show_uid(stat.st_uid),
            gid: self.ids.show_gid(stat.st_gid),
            rdev: encode_dev(major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32),
            size: stat.st_size.unsigned_abs(),
            blocks: stat.st_blocks.unsigned_abs(),
            block_size: stat.st_blksize.unsigned_abs() as u32,
            atime: Time { seconds: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            ctime: Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
        }
    }

    /// Opens a directory for listing; `None` when its contents are hidden or unreadable.
    fn open_dir(&self, place: &Place) -> Result<Option<OwnedFd>> {
        if place.hollow {
            return Ok(None);
        }
        match self.open_place(place, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::EACCES | Errno::EPERM) => {
                self.note_closed(place);
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    fn note_closed(&self, place: &Place) {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).add(&place.path);
    }

    /// One name of a listing; `None` when it is gone by now, or when the directory may be read but not searched.
    fn look_listed(&self, dir: &OwnedFd, parent: &Place, name: &[u8]) -> Option<(FileStat, bool)> {
        let found = self.look(dir, parent, name);
        if found == Err(Errno::EACCES) {
            self.note_closed(parent);
        }
        found.ok()
    }

    /// The names of a directory; a listing in progress goes on over the same snapshot while it is remembered.
    fn listing(&self, node: NodeId, dir: Option<&OwnedFd>, fresh: bool) -> Result<Arc<Listing>> {
        if !fresh {
            let nodes = self.lock();
            if let Some((_, listing)) = nodes.listings.iter().find(|(id, _)| *id == node.0) {
                return Ok(Arc::clone(listing));
            }
        }
        let listing = Arc::new(match dir {
            Some(dir) => list(dir)?,
            None => Vec::new(),
        });
        let mut nodes = self.lock();
        nodes.listings.retain(|(id, _)| *id != node.0);
        if nodes.listings.len() == LISTINGS {
            nodes.listings.remove(0);
        }
        nodes.listings.push((node.0, Arc::clone(&listing)));
        Ok(listing)
    }
}

impl Nodes {
    fn id_of(&mut self, device: u64, ino: u64) -> u64 {
        if self.by_id.get(&1).is_some_and(|root| (root.device, root.ino) == (device, ino)) {
            return 1;
        }
        let position = self.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            self.devices.push(device);
            let _later = self.journal.add(&Note::Device(device));
            self.devices.len() - 1
        });
        if ino < 1 << INO_BITS && position < 1 << 18 {
            return ((position as u64 + 1) << INO_BITS) | ino;
        }
        if let Some(id) = self.counted.get(&(device, ino)) {
            return *id;
        }
        let id = COUNTED + self.counted.len() as u64;
        self.counted.insert((device, ino), id);
        let _later = self.journal.add(&Note::Counted { id, device, ino });
        id
    }

    /// Makes a node, or gives it its newest name, which is the one most likely to be still there.
    fn remember(&mut self, id: u64, parent: u64, name: &[u8], stat: &FileStat, hollow: bool) {
        if let Some(node) = self.by_id.get_mut(&id) {
            let known = node.parent == parent && *node.name == *name && node.hollow == hollow;
            if known || id == NodeId::ROOT.0 {
                node.hollow = hollow;
                return;
            }
            (node.parent, node.name, node.hollow) = (parent, name.into(), hollow);
        } else {
            let (device, ino) = (stat.st_dev, stat.st_ino);
            self.by_id.insert(id, Node { parent, name: name.into(), device, ino, lookups: 0, hollow });
        }
        let note = Note::Node { id, parent, device: stat.st_dev, ino: stat.st_ino, hollow, name };
        if self.journal.add(&note) {
            self.compact();
        }
    }

    fn compact(&mut self) {
        // The first device is the root's, which every view finds by itself.
        let devices = self.devices.iter().skip(1).map(|device| Note::Device(*device));
        let counted = self.counted.iter().map(|((device, ino), id)| (*id, *device, *ino));
        let counted = counted.map(|(id, device, ino)| Note::Counted { id, device, ino });
        let nodes = self.by_id.iter().filter(|(id, _)| **id != NodeId::ROOT.0).map(|(id, node)| node.note(*id));
        self.journal.compact(devices.chain(counted).chain(nodes));
    }

    /// The path from the root, without leading slash.
    fn path(&self, id: u64) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = id;
        while at != 1 {
            let node = self.by_id.get(&at).ok_or(Errno::ESTALE)?;
            names.push(&*node.name);
            at = node.parent;
            if names.len() > 2048 {
                return Err(Errno::ELOOP);
            }
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }
}

/// What is shown for a mount point that must not be touched: an empty directory that root owns. Its number is drawn
/// from its path, under a device that no real file system has.
pub(crate) fn made_up(path: &[u8], like: FileStat) -> FileStat {
    let mut stat = like;
    stat.st_dev = u64::MAX;
    stat.st_ino = hash(path) & ((1 << INO_BITS) - 1);
    stat.st_mode = nix::libc::S_IFDIR | 0o755;
    stat.st_uid = 0;
    stat.st_gid = 0;
    stat.st_nlink = 2;
    stat
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, name].join(&b'/') }
}

/// `openat2` gives up with `EAGAIN` when something is renamed during the walk.
fn retry<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..64 {
        match call() {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
    Err(Errno::EAGAIN)
}

/// FNV-1a: only spreads names over cookies.
fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Reads all names; the cookie of a name is drawn from the name, so it holds over changes of the directory.
fn list(dir: &OwnedFd) -> Result<Listing> {
    let path = sys::path::proc_fd(dir.as_fd());
    let names = std::fs::read_dir(OsStr::from_bytes(path.as_bytes())).map_err(|error| io_errno(&error))?;
    let mut listing = Vec::new();
    for name in names {
        let name = name.map_err(|error| io_errno(&error))?.file_name().into_vec();
        // Bits 2 to 62: above the cookies of `.` and `..`, and positive as a file offset.
        listing.push(((hash(&name) >> 2) | 4, name.into_boxed_slice()));
    }
    listing.sort_unstable();
    // Two names with one hash: the second takes the next number.
    for at in 1..listing.len() {
        if listing[at].0 <= listing[at - 1].0 {
            listing[at].0 = listing[at - 1].0 + 1;
        }
    }
    Ok(listing)
}

fn io_errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Filesystem for HostView {
    fn lookup(&self, _caller: &Caller, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let place = self.place(parent)?;
        if place.hollow {
            return Ok(Entry::absent(TTL));
        }
        let dir = match self.open_place(&place, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Err(Errno::ESTALE),
            Err(errno) => return Err(errno),
        };
        match self.look(&dir, &place, name) {
            Ok((stat, hollow)) => {
                let mut nodes = self.lock();
                let entry = self.entry(&mut nodes, parent, name, &stat, hollow);
                nodes.count(entry.attr.node);
                Ok(entry)
            }
            Err(Errno::ENOENT) => Ok(Entry::absent(TTL)),
            Err(errno) => Err(errno),
        }
    }

    fn forget(&self, node: NodeId, count: u64) {
        if node == NodeId::ROOT {
            return;
        }
        let mut nodes = self.lock();
        let Some(found) = nodes.by_id.get_mut(&node.0) else { return };
        found.lookups = found.lookups.saturating_sub(count);
        if found.lookups == 0 {
            nodes.by_id.remove(&node.0);
            let live = nodes.by_id.len() + nodes.counted.len();
            if nodes.journal.is_sparse(live) {
                nodes.compact();
            }
            drop(nodes);
            self.files.remove(node.0);
        }
    }

    fn getattr(&self, _caller: &Caller, node: NodeId) -> Result<(Attr, Duration)> {
        let place = self.place(node)?;
        if place.device == u64::MAX {
            let stat = made_up(&place.path, fstat(&self.root)?);
            return Ok((self.attr(node, &stat), TTL));
        }
        let fd = self.open_place(&place, OFlag::O_PATH)?;
        Ok((self.attr(node, &fstat(&fd)?), TTL))
    }

    fn readlink<'a>(&'a self, _caller: &Caller, node: NodeId, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let fd = self.open_place(&self.place(node)?, OFlag::O_PATH)?;
        let target = nix::fcntl::readlinkat(&fd, "")?;
        let part = buffer.get_mut(..target.len()).ok_or(Errno::ENAMETOOLONG)?;
        part.copy_from_slice(target.as_bytes());
        Ok(part)
    }

    fn read<'a>(&'a self, _caller: &Caller, node: NodeId, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let file = self.files.get(node.0, || {
            // Not to block on a fifo that took the file's place: the inode is checked after the open.
            self.open_place(&self.place(node)?, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        })?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match nix::sys::uio::pread(&*file, &mut buffer[filled..], offset.saturating_add(filled as i64)) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(&buffer[..filled])
    }

    fn statfs(&self, _caller: &Caller, _node: NodeId) -> Result<StatFs> {
        let stat = nix::sys::statvfs::fstatvfs(&self.root)?;
        Ok(StatFs {
            blocks: stat.blocks(),
            blocks_free: stat.blocks_free(),
            blocks_available: stat.blocks_available(),
            files: stat.files(),
            files_free: stat.files_free(),
            block_size: stat.block_size() as u32,
            name_max: stat.name_max() as u32,
            fragment_size: stat.fragment_size() as u32,
        })
    }

    fn readdir(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
        let place = self.place(dir)?;
        let open = self.open_dir(&place)?;
        let listing = self.listing(dir, open.as_ref(), cookie == 0)?;
        for (position, name) in [&b"."[..], b".."].into_iter().enumerate().skip(cookie.min(2) as usize) {
            if !sink.add(Name { name, next_cookie: position as u64 + 1 }, dir, nix::libc::S_IFDIR) {
                return Ok(());
            }
        }
        let Some(open) = open else { return Ok(()) };
        let start = listing.partition_point(|(at, _)| *at <= cookie.max(2));
        for (at, name) in &listing[start..] {
            let Some((stat, _)) = self.look_listed(&open, &place, name) else { continue };
            let node = NodeId(self.lock().id_of(stat.st_dev, stat.st_ino));
            if !sink.add(Name { name, next_cookie: *at }, node, stat.st_mode) {
                break;
            }
        }
        Ok(())
    }

    fn readdirplus(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn EntrySink) -> Result<()> {
        let place = self.place(dir)?;
        let open = self.open_dir(&place)?;
        let listing = self.listing(dir, open.as_ref(), cookie == 0)?;
        let stat = match &open {
            Some(open) => fstat(open)?,
            None => made_up(&place.path, fstat(&self.root)?),
        };
        let own = Entry::new(self.attr(dir, &stat), TTL);
        for (position, name) in [&b"."[..], b".."].into_iter().enumerate().skip(cookie.min(2) as usize) {
            if !sink.add(Name { name, next_cookie: position as u64 + 1 }, &own) {
                return Ok(());
            }
        }
        let Some(open) = open else { return Ok(()) };
        let start = listing.partition_point(|(at, _)| *at <= cookie.max(2));
        for (at, name) in &listing[start..] {
            let Some((stat, hollow)) = self.look_listed(&open, &place, name) else { continue };
            let mut nodes = self.lock();
            let entry = self.entry(&mut nodes, dir, name, &stat, hollow);
            if !sink.add(Name { name, next_cookie: *at }, &entry) {
                nodes.drop_uncounted(entry.attr.node);
                break;
            }
            nodes.count(entry.attr.node);
        }
        Ok(())
    }
}

impl Nodes {
    fn count(&mut self, node: NodeId) {
        if let Some(found) = self.by_id.get_mut(&node.0) {
            found.lookups += 1;
        }
    }

    /// Removes a node that was made for a reply which had no room for it.
    fn drop_uncounted(&mut self, node: NodeId) {
        if self.by_id.get(&node.0).is_some_and(|found| found.lookups == 0) {
            self.by_id.remove(&node.0);
        }
    }
}
