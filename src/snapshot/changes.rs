//! What a native upper changes in the tree below it: the answer of `diff`.
//!
//! A whiteout is a character device 0:0, or an empty file marked `user.overlay.whiteout`; a directory marked
//! `user.overlay.opaque` hides what the tree below has there (Documentation/filesystems/overlayfs.rst). Directories are
//! in the answer when they are in the upper, as in Docker's, since a copied-up parent cannot be told from a changed one.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base::{Explain, Kind};
use index::{Index, Node};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat};
use sys::SysError;
use sys::error::Call;
use sys::xattr;

use crate::host_mounts::{HostMounts, Mounted};
use crate::tree_walk::{At, Visitor, walk};
use crate::view_host::HostViewConfig;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The tree below does not have it.
    Added,
    /// It stands before what the tree below has.
    Changed,
    /// Only the tree below has it. What is below a deleted directory is not listed.
    Deleted,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// From the container's root, with leading slash.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// Why the changes are not known.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// A system call failed. `EACCES` on an upper that was not reclaimed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The index of the image is damaged.
    #[error("index of the image")]
    Index(#[source] index::Damaged),
}

impl Explain for ChangesError {
    fn kind(&self) -> Kind {
        match self {
            ChangesError::Sys(error) => error.kind(),
            ChangesError::Index(_) => Kind::Internal,
        }
    }
}

type Result<T> = std::result::Result<T, ChangesError>;

/// What the tree below has under a name.
#[derive(Debug)]
pub enum LowerEntry<D> {
    /// Nothing.
    Absent,
    /// A directory.
    Directory(D),
    /// Anything else.
    Other,
}

/// A read-only tree that an upper stands on. Links are never followed.
pub trait Lower {
    /// A directory of it.
    type Dir;
    /// Its root.
    fn root(&self) -> Result<Self::Dir>;
    /// What is under a name.
    fn entry(&self, dir: &Self::Dir, name: &[u8]) -> Result<LowerEntry<Self::Dir>>;
    /// All names in a directory.
    fn names(&self, dir: &Self::Dir) -> Result<Vec<Vec<u8>>>;
}

/// The merged index of an image chain.
impl Lower for Index {
    type Dir = Node;

    fn root(&self) -> Result<Node> {
        Ok(Index::root(self))
    }

    fn entry(&self, dir: &Node, name: &[u8]) -> Result<LowerEntry<Node>> {
        let found = self.lookup(*dir, name).map_err(ChangesError::Index)?;
        Ok(found.map_or(LowerEntry::Absent, |dirent| match dirent.kind {
            index::Kind::Directory => LowerEntry::Directory(dirent.node),
            _ => LowerEntry::Other,
        }))
    }

    fn names(&self, dir: &Node) -> Result<Vec<Vec<u8>>> {
        let dirents = self.dirents(*dir).map_err(ChangesError::Index)?;
        dirents.iter().map(|dirent| dirent.map(|dirent| dirent.name.to_vec()).map_err(ChangesError::Index)).collect()
    }
}

/// The host's root directory as a `host:` view shows it.
pub struct HostLower<'a> {
    config: &'a HostViewConfig,
    mounts: HostMounts,
}

/// A directory of the host; without a descriptor it is shown as an empty one.
#[derive(Debug)]
pub struct HostDir {
    opened: Option<OwnedFd>,
    path: Vec<u8>,
}

impl<'a> HostLower<'a> {
    /// The host as the view of this configuration shows it now.
    pub fn open(config: &'a HostViewConfig) -> Result<Self> {
        Ok(HostLower { config, mounts: HostMounts::read()? })
    }
}

const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_DIRECTORY);

impl Lower for HostLower<'_> {
    type Dir = HostDir;

    fn root(&self) -> Result<HostDir> {
        let root = open("/", LOOK, Mode::empty()).call(|| "open(\"/\")".to_owned())?;
        Ok(HostDir { opened: Some(root), path: Vec::new() })
    }

    fn entry(&self, dir: &HostDir, name: &[u8]) -> Result<LowerEntry<HostDir>> {
        let Some(opened) = &dir.opened else { return Ok(LowerEntry::Absent) };
        let path = if dir.path.is_empty() { name.to_vec() } else { [&dir.path, &b"/"[..], name].concat() };
        let mounted = self.mounts.at(&path);
        if mounted == Some(Mounted::Untouchable) {
            return Ok(LowerEntry::Directory(HostDir { opened: None, path }));
        }
        let words = |call: &str| format!("{call}(host, {:?})", String::from_utf8_lossy(&path));
        let stat = match fstatat(opened, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            // A directory that the user may not search is shown empty.
            Err(Errno::ENOENT | Errno::EACCES) => return Ok(LowerEntry::Absent),
            stat => stat.call(|| words("fstatat"))?,
        };
        if stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFDIR {
            return Ok(LowerEntry::Other);
        }
        let opened = if self.config.hides(&path, &dir.path) || mounted.is_some_and(|what| what != Mounted::Shown) {
            None
        } else {
            Some(openat(opened, OsStr::from_bytes(name), LOOK, Mode::empty()).call(|| words("open"))?)
        };
        Ok(LowerEntry::Directory(HostDir { opened, path }))
    }

    fn names(&self, dir: &HostDir) -> Result<Vec<Vec<u8>>> {
        let Some(opened) = &dir.opened else { return Ok(Vec::new()) };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let words = || format!("open(host, {:?})", String::from_utf8_lossy(&dir.path));
        let mut listing = match nix::dir::Dir::openat(opened, c".", flags, Mode::empty()) {
            Err(Errno::EACCES) => return Ok(Vec::new()),
            listing => listing.call(words)?,
        };
        let mut names = Vec::new();
        for entry in listing.iter() {
            let name = entry.call(words)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// What the tree `upper` changes in `lower`, sorted by path; the root directory itself is never in it.
///
/// What a container's start leaves behind is in it too: mount points that the image lacks, and empty files for
/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
pub fn changes<L: Lower>(upper: &Path, lower: &L) -> Result<Vec<Change>> {
    let root = open(upper, LOOK, Mode::empty()).call(|| format!("open({upper:?})"))?;
    let top = Level { below: Some(lower.root()?), opaque: false };
    let mut comparison = Comparison { lower, levels: vec![top], found: Vec::new(), failure: None };
    let walked = walk(root.as_fd(), &mut comparison);
    if let Some(failure) = comparison.failure {
        return Err(failure);
    }
    walked?;
    comparison.found.sort();
    Ok(comparison.found)
}

/// A directory of the upper that the walk is in.
struct Level<D> {
    /// The same directory below.
    below: Option<D>,
    /// It, or one above it, hides what is below.
    opaque: bool,
}

struct Comparison<'a, L: Lower> {
    lower: &'a L,
    levels: Vec<Level<L::Dir>>,
    found: Vec<Change>,
    /// A failure of the tree below; the walk then ends with a call's error that is not shown.
    failure: Option<ChangesError>,
}

impl<L: Lower> Comparison<'_, L> {
    fn add(&mut self, path: &[u8], kind: ChangeKind) {
        let path = PathBuf::from(OsString::from_vec([b"/", path].concat()));
        self.found.push(Change { path, kind });
    }

    fn compare(&mut self, at: &At<'_>) -> Result<()> {
        let Level { below, opaque } = self.levels.last().unwrap_or(&Level { below: None, opaque: false });
        let opaque = *opaque;
        let found = match below {
            Some(below) => self.lower.entry(below, at.name.to_bytes())?,
            None => LowerEntry::Absent,
        };
        if is_whiteout(at)? {
            if !matches!(found, LowerEntry::Absent) {
                self.add(at.path, ChangeKind::Deleted);
            }
            return Ok(());
        }
        let kind = if matches!(found, LowerEntry::Absent) { ChangeKind::Added } else { ChangeKind::Changed };
        self.add(at.path, kind);
        if at.is_directory() {
            let below = if let LowerEntry::Directory(below) = found { Some(below) } else { None };
            let opaque = opaque || is_opaque(at)?;
            if let Some(below) = below.as_ref().filter(|_| opaque) {
                self.add_hidden(at, below)?;
            }
            self.levels.push(Level { below, opaque });
        }
        Ok(())
    }

    /// Everything that an opaque directory hides and has nothing for.
    fn add_hidden(&mut self, at: &At<'_>, below: &L::Dir) -> Result<()> {
        let dir = at.open_path()?;
        for name in self.lower.names(below)? {
            match fstatat(&dir, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(_) => {}
                Err(Errno::ENOENT) => self.add(&[at.path, b"/", &name].concat(), ChangeKind::Deleted),
                Err(errno) => Err(errno).call(|| at.words("fstatat"))?,
            }
        }
        Ok(())
    }
}

impl<L: Lower> Visitor for Comparison<'_, L> {
    fn enter(&mut self, at: &At<'_>) -> sys::error::Result<bool> {
        match self.compare(at) {
            Ok(()) => Ok(true),
            Err(ChangesError::Sys(error)) => Err(error),
            Err(failure) => {
                self.failure = Some(failure);
                Err(SysError::new(at.words("compare"), Errno::EUCLEAN))
            }
        }
    }

    fn leave(&mut self, _at: &At<'_>) -> sys::error::Result<()> {
        self.levels.pop();
        Ok(())
    }
}

fn is_whiteout(at: &At<'_>) -> sys::error::Result<bool> {
    match at.file_type() {
        nix::libc::S_IFCHR => Ok(at.stat.st_rdev == 0),
        nix::libc::S_IFREG if at.stat.st_size == 0 => Ok(attribute(at, c"user.overlay.whiteout")?.is_some()),
        _ => Ok(false),
    }
}

fn is_opaque(at: &At<'_>) -> sys::error::Result<bool> {
    Ok(attribute(at, c"user.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

fn attribute(at: &At<'_>, name: &std::ffi::CStr) -> sys::error::Result<Option<Vec<u8>>> {
    match xattr::get(at.open_path()?, name) {
        Err(error) if error.errno() == Errno::EOPNOTSUPP => Ok(None),
        result => result,
    }
}
