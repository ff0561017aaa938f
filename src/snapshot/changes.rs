//! What a native upper changes in the tree below it: the answer of `diff`, by Docker's rules, and the work list of `commit`.
//!
//! A whiteout is a character device 0:0, or an empty file marked `user.overlay.whiteout`; a directory marked
//! `user.overlay.opaque` hides what the tree below has there (Documentation/filesystems/overlayfs.rst).
//!
//! Docker's rules (`ChangesDirs` of its archive package): a path is changed when its mode, owner, device number or
//! capability differ, or, unless it is a directory, its size or time of modification. A directory is in the answer too when
//! something in it is. So what was merely copied up is not in it. Of a deleted directory only its own path is listed.
//!
//! A layer has all that is in the upper, as Podman's and Docker's have: overlayfs copies a file up because it is being
//! changed, and no look at it tells every change (an attribute, an ACL, a content of the same length and time).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base::owner::{self, Owner};
use base::{Explain, Kind};
use fuse::op::encode_dev;
use index::path::PATH_MAX;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, major, minor};
use serde::{Deserialize, Serialize};
use sys::SysError;
use sys::error::Call;
use sys::namespace::Extent;
use sys::xattr;

use crate::directory::{Driver, Meta, open_dir};
use crate::lower::{Lower, LowerEntry};
use crate::owner_log::{self, Owners};
use crate::tree_walk::{At, Visitor, walk};

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The tree below does not have it.
    Added,
    /// It differs from what the tree below has, or something in it does.
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

impl Change {
    pub(crate) fn new(path: Vec<u8>, kind: ChangeKind) -> Change {
        Change { path: PathBuf::from(OsString::from_vec(path)), kind }
    }

    /// Its kind and its path, ended by a zero byte.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let kind = match self.kind {
            ChangeKind::Added => b'A',
            ChangeKind::Changed => b'C',
            ChangeKind::Deleted => b'D',
        };
        [&[kind], self.path.as_os_str().as_bytes(), b"\0"].concat()
    }

    /// A list of them; `None` where it is none.
    pub(crate) fn list_of(bytes: &[u8]) -> Option<Vec<Change>> {
        let one = |bytes: &[u8]| {
            let (kind, path) = bytes.strip_suffix(b"\0")?.split_first()?;
            let kind = match kind {
                b'A' => ChangeKind::Added,
                b'C' => ChangeKind::Changed,
                b'D' => ChangeKind::Deleted,
                _ => return None,
            };
            Some(Change::new(path.to_vec(), kind))
        };
        bytes.split_inclusive(|byte| *byte == 0).map(one).collect()
    }
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
    /// The log of our own overlay cannot be read.
    #[error("reading the writable snapshot")]
    Upper(#[from] overlayfs::OpenError),
    /// The archive of them cannot be written.
    #[error(transparent)]
    Archive(#[from] layer::LayerError),
}

impl Explain for ChangesError {
    fn kind(&self) -> Kind {
        match self {
            ChangesError::Sys(error) => error.kind(),
            ChangesError::Index(_) => Kind::Internal,
            ChangesError::Upper(error) => error.kind(),
            ChangesError::Archive(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ChangesError::Sys(error) if error.errno() == Errno::EACCES => {
                Some("a directory of another id is closed to you while the container runs: stop it first".to_owned())
            }
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, ChangesError>;

/// Extended attributes that belong to an image.
pub type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// Paths that are in every container and are the engine's, not changes of the container's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    /// Mount points and files of our own, with leading slash.
    pub paths: Vec<String>,
    /// Directories that are made for them where an image lacks them.
    pub parents: Vec<String>,
}

impl Ours {
    /// Whether a path, and what is below it, is left out.
    pub fn has(&self, path: &[u8]) -> bool {
        self.paths.iter().any(|ours| ours.as_bytes() == path)
    }

    /// Whether a directory is written in by every start: the root, and those for what is ours.
    pub fn is_parent(&self, path: &[u8]) -> bool {
        path == b"/" || self.parents.iter().any(|parent| parent.as_bytes() == path)
    }

    /// A directory that was only made to hold what is ours is no change; with something else in it, it was there before.
    pub fn without_parents(&self, mut changes: Vec<Change>) -> Vec<Change> {
        for parent in &self.parents {
            let parent = Path::new(parent);
            let holds = changes.iter().any(|change| change.path != parent && change.path.starts_with(parent));
            if let Some(at) =
                changes.iter().position(|change| change.path == parent && change.kind == ChangeKind::Added)
            {
                if holds {
                    changes[at].kind = ChangeKind::Changed;
                } else {
                    changes.remove(at);
                }
            }
        }
        changes
    }
}

/// What is compared, in the container's ids.
#[derive(Clone, Debug)]
pub struct Compared {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    /// Without the id that the kernel adds to it in a user namespace.
    pub(crate) capability: Option<Vec<u8>>,
}

impl Compared {
    pub(crate) fn of_stat(stat: &FileStat) -> Compared {
        Compared {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: encode_dev(major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32),
            size: stat.st_size.unsigned_abs(),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            capability: None,
        }
    }

    /// The same with the owner that a view shows.
    pub(crate) fn of_stat_as(stat: &FileStat, (uid, gid): (u32, u32)) -> Compared {
        Compared { uid, gid, ..Compared::of_stat(stat) }
    }

    fn differs(&self, other: &Compared) -> bool {
        // A file system without nanoseconds shows none.
        let same_time =
            self.mtime.0 == other.mtime.0 && (self.mtime.1 == other.mtime.1 || self.mtime.1 == 0 || other.mtime.1 == 0);
        let directory = self.mode & nix::libc::S_IFMT == nix::libc::S_IFDIR;
        (self.mode, self.uid, self.gid, self.rdev) != (other.mode, other.uid, other.gid, other.rdev)
            || self.capability != other.capability
            || !directory && (!same_time || self.size != other.size)
    }
}

/// `struct vfs_cap_data` without its version and, in version 3, its user namespace's root.
pub(crate) fn capability_of(value: &[u8]) -> Vec<u8> {
    [value.get(..1).unwrap_or_default(), value.get(4..20).unwrap_or_default()].concat()
}

pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Whether an extended attribute belongs to an image: the user's own, ACLs and the file capability. Labels of security
/// modules are the host's.
pub(crate) fn of_image(name: &[u8]) -> bool {
    owner_log::ATTRIBUTES.iter().any(|known| known.to_bytes() == name)
        || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name != owner::BESIDE.to_bytes()
}

/// Who an id is that no map has: `overflowuid` of the kernel.
const NOBODY: u32 = 65_534;

/// A directory as a place.
pub(crate) const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_DIRECTORY);

/// A file capability as an image has it: version 2, without the user namespace that the kernel wrote into version 3.
pub(crate) fn capability_of_image(value: &[u8]) -> Vec<u8> {
    const REVISION_3: u8 = 3;
    let mut value = value.to_vec();
    if value.len() == 24 && value[3] == REVISION_3 {
        value.truncate(20);
        value[3] = 2;
    }
    value
}

/// Whether both say the same but for the time.
fn alike(one: &index::Metadata, other: &index::Metadata) -> bool {
    *one == index::Metadata { mtime: one.mtime, ..other.clone() }
}

/// What the owners in an upper mean.
///
/// At rest the log says what they were; while the container runs they are the host's ids, which the outer user
/// namespace's map turns into outer ones. Those the container's own map turns into the container's.
pub struct Truth<'a> {
    log: Owners,
    meta: &'a Meta,
    outer: Option<(&'a [Extent], &'a [Extent])>,
    lacks: Lacks,
}

/// Which attributes of an image the file system of its copy cannot hold. No container can have changed them, so what the image
/// says of an unchanged file, and of any directory, holds. Nothing of the sort for other drivers: overlayfs tells it by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lacks {
    user: bool,
    capability: bool,
    acls: bool,
}

impl Lacks {
    /// Those of the file system that a directory lies on.
    fn of(dir: BorrowedFd<'_>) -> Result<Lacks> {
        let lacks = |name: &std::ffi::CStr| match xattr::get(dir, name) {
            Err(error) if error.errno() == Errno::EOPNOTSUPP => Ok(true),
            found => found.map(|_| false),
        };
        let [capability, acls, _] = owner_log::ATTRIBUTES;
        Ok(Lacks { user: lacks(c"user.sublet")?, capability: lacks(capability)?, acls: lacks(acls)? })
    }

    fn has(self, name: &[u8]) -> bool {
        if name == CAPABILITY {
            self.capability
        } else if name.starts_with(b"user.") {
            self.user
        } else {
            self.acls
        }
    }
}

impl<'a> Truth<'a> {
    /// Of the snapshot in `dir`. `outer`: users and groups of the outer user namespace, needed only while a container
    /// runs: then files may have other owners than the caller.
    pub fn read(dir: &Path, meta: &'a Meta, outer: Option<(&'a [Extent], &'a [Extent])>) -> Result<Self> {
        Truth::of(open_dir(dir)?.as_fd(), meta, outer)
    }

    /// [`Truth::read`] from the open directory.
    pub(crate) fn of(dir: BorrowedFd<'_>, meta: &'a Meta, outer: Option<(&'a [Extent], &'a [Extent])>) -> Result<Self> {
        let log = owner_log::read(dir)?.unwrap_or_default();
        let lacks = if meta.driver == Driver::Copy { Lacks::of(dir)? } else { Lacks::default() };
        Ok(Truth { log, meta, outer, lacks })
    }

    /// Whether some attributes of an image are known from it alone.
    pub(crate) fn lacks_attributes(&self) -> bool {
        self.lacks != Lacks::default()
    }

    /// Gives a directory, or a file that is as in the image, what only the image can tell of it.
    pub(crate) fn complete(&self, xattrs: &mut Attributes, of_image: Attributes) {
        xattrs.extend(of_image.into_iter().filter(|(name, _)| self.lacks.has(name)));
    }

    /// All that an archive says of an entry of the upper.
    pub(crate) fn metadata(&self, at: &At<'_>) -> Result<index::Metadata> {
        let compared = self.compared(at)?;
        let known = |id: u32| if id == u32::MAX { NOBODY } else { id };
        let (seconds, nanoseconds) = compared.mtime;
        Ok(index::Metadata {
            permissions: (compared.mode & 0o7777) as u16,
            uid: known(compared.uid),
            gid: known(compared.gid),
            mtime: index::Time { seconds, nanoseconds },
            xattrs: self.xattrs(at)?,
        })
    }

    /// The attributes that belong to an image.
    fn xattrs(&self, at: &At<'_>) -> Result<Attributes> {
        let mut found = BTreeMap::new();
        if !matches!(at.file_type(), nix::libc::S_IFREG | nix::libc::S_IFDIR) {
            return Ok(found);
        }
        let entry = at.open_path()?;
        let names = match xattr::list(&entry) {
            Err(error) if error.errno() == Errno::EOPNOTSUPP => Vec::new(),
            names => names?,
        };
        let told = self.log.get(at.path);
        for name in &names {
            let bytes = name.to_bytes();
            let logged = owner_log::ATTRIBUTES.contains(&name.as_c_str());
            if of_image(bytes) && (!logged || told.is_none()) {
                found.extend(xattr::get(&entry, name)?.map(|value| (bytes.to_vec(), value)));
            }
        }
        for (number, value) in told.iter().flat_map(|told| &told.attributes) {
            found.extend(
                owner_log::ATTRIBUTES.get(usize::from(*number)).map(|name| (name.to_bytes().to_vec(), value.clone())),
            );
        }
        // The log has ids of the outer namespace; what is read now is the host's.
        let from_host = told.is_none();
        for (name, value) in &mut found {
            if name == CAPABILITY {
                *value = capability_of_image(value);
            } else if name.starts_with(b"system.posix_acl_") {
                self.map_acl(value, from_host);
            }
        }
        // The log of a copy that has not been started yet has them all.
        found.retain(|name, _| !self.lacks.has(name));
        Ok(found)
    }

    /// Turns the ids of an ACL, as `getxattr` gives it (`struct posix_acl_xattr_entry`), into the container's.
    fn map_acl(&self, acl: &mut [u8], from_host: bool) {
        let outer = self.outer.unwrap_or_default();
        let own = |host: &[Extent], own: &[Extent], id: u32| {
            let id = if from_host { Extent::to_inside(host, id).unwrap_or(NOBODY) } else { id };
            Extent::to_inside(own, id).unwrap_or(id)
        };
        overlayfs::acl::show(acl, |uid, gid| {
            (own(outer.0, &self.meta.uid_map, uid), own(outer.1, &self.meta.gid_map, gid))
        });
    }

    fn compared(&self, at: &At<'_>) -> Result<Compared> {
        let mut found = Compared::of_stat(at.stat);
        let capability = |at: &At<'_>| match at.file_type() {
            nix::libc::S_IFREG => attribute(at, c"security.capability"),
            _ => Ok(None),
        };
        if let Some(told) = self.log.get(at.path) {
            (found.mode, found.uid, found.gid) = (told.mode, told.uid, told.gid);
            let told = told.attributes.iter().find(|(number, _)| *number == 0);
            found.capability = told.map(|(_, value)| capability_of(value));
        } else {
            let caller = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            let outer = self.outer.unwrap_or_default();
            found.uid =
                Extent::to_inside(outer.0, found.uid).unwrap_or(if found.uid == caller.0 { 0 } else { u32::MAX });
            found.gid =
                Extent::to_inside(outer.1, found.gid).unwrap_or(if found.gid == caller.1 { 0 } else { u32::MAX });
            found.capability = capability(at)?.map(|value| capability_of(&value));
        }
        if self.lacks.capability {
            found.capability = None;
        }
        found.uid = Extent::to_inside(&self.meta.uid_map, found.uid).unwrap_or(found.uid);
        found.gid = Extent::to_inside(&self.meta.gid_map, found.gid).unwrap_or(found.gid);
        let given = self.given_owner(at)?;
        (found.uid, found.gid) = (given.uid.unwrap_or(found.uid), given.gid.unwrap_or(found.gid));
        Ok(found)
    }

    /// The owner that a program in a container with one id gave to a file. Where there are more ids, the kernel keeps
    /// owners, and an attribute that says something else is anybody's.
    pub(crate) fn given_owner(&self, at: &At<'_>) -> Result<Owner> {
        let one_id = |map: &[Extent]| matches!(map, [Extent { size: 1, .. }]);
        let attributes = matches!(at.file_type(), nix::libc::S_IFREG | nix::libc::S_IFDIR);
        if !attributes || !one_id(&self.meta.uid_map) || !one_id(&self.meta.gid_map) {
            return Ok(Owner::default());
        }
        Ok(attribute(at, owner::BESIDE)?.as_deref().and_then(Owner::of).unwrap_or_default())
    }
}

/// What the tree `upper` changes in `lower`, sorted by path; the root directory itself is never in it, and nothing that
/// `left_out` says (a path with leading slash), or that is below it.
pub fn changes<L: Lower>(
    upper: &Path,
    lower: &L,
    truth: &Truth<'_>,
    left_out: &dyn Fn(&[u8]) -> bool,
) -> Result<Vec<Change>> {
    let root = open(upper, LOOK, Mode::empty()).call(|| format!("open({upper:?})"))?;
    changes_in(root.as_fd(), lower, truth, left_out)
}

/// [`changes`] of an open upper.
pub(crate) fn changes_in<L: Lower>(
    upper: BorrowedFd<'_>,
    lower: &L,
    truth: &Truth<'_>,
    left_out: &dyn Fn(&[u8]) -> bool,
) -> Result<Vec<Change>> {
    compared(upper, lower, truth, left_out, None)
}

/// All that a layer of an open upper has, sorted by path, but for what is ours. The root directory, and others in which
/// every start may write, are in it when something in them is, or when more than their time is another one.
pub(crate) fn contents<L: Lower>(
    upper: BorrowedFd<'_>,
    lower: &L,
    truth: &Truth<'_>,
    ours: &Ours,
) -> Result<Vec<Change>> {
    let found = ours.without_parents(compared(upper, lower, truth, &|path| ours.has(path), Some(ours))?);
    let root = root_metadata(upper, lower, truth)?;
    Ok(with_root(found, !alike(&root, &lower.metadata(&lower.root()?)?)))
}

/// The root directory goes with everything that is in it, and alone when it differs.
pub(crate) fn with_root(mut found: Vec<Change>, differs: bool) -> Vec<Change> {
    if differs || !found.is_empty() {
        found.insert(0, Change::new(b"/".to_vec(), ChangeKind::Changed));
    }
    found
}

/// All that an archive says of the root directory of an upper. Its attributes are the image's where it has none: it was
/// not copied up like others.
pub(crate) fn root_metadata<L: Lower>(upper: BorrowedFd<'_>, lower: &L, truth: &Truth<'_>) -> Result<index::Metadata> {
    let stat = fstat(upper).call(|| "fstat(upper)".to_owned())?;
    let mut metadata = truth.metadata(&At { parent: upper, name: c".", path: b".", stat: &stat })?;
    let of_image = lower.metadata(&lower.root()?)?.xattrs;
    if metadata.xattrs.is_empty() {
        metadata.xattrs = of_image;
    } else {
        truth.complete(&mut metadata.xattrs, of_image);
    }
    Ok(metadata)
}

/// What differs or, for a layer (`layer`), is there.
fn compared<L: Lower>(
    upper: BorrowedFd<'_>,
    lower: &L,
    truth: &Truth<'_>,
    left_out: &dyn Fn(&[u8]) -> bool,
    layer: Option<&Ours>,
) -> Result<Vec<Change>> {
    let whole = truth.meta.driver == Driver::Copy;
    let top = Level { path: Vec::new(), below: Some(lower.root()?), opaque: whole, listed: true };
    let levels = vec![top];
    let mut comparison = Comparison { lower, truth, left_out, layer, levels, whole, found: Vec::new(), failure: None };
    if whole {
        let hidden = comparison.hidden(upper, &lower.root()?)?;
        comparison.add_hidden(b"", hidden);
    }
    let walked = walk(upper, &mut comparison);
    if let Some(failure) = comparison.failure {
        return Err(failure);
    }
    walked?;
    comparison.found.sort();
    Ok(comparison.found)
}

/// A directory of the upper that the walk is in.
struct Level<D> {
    /// With leading slash; empty for the root.
    path: Vec<u8>,
    /// The same directory below.
    below: Option<D>,
    /// It, or one above it, hides what is below.
    opaque: bool,
    /// It is in the answer.
    listed: bool,
}

struct Comparison<'a, L: Lower> {
    lower: &'a L,
    truth: &'a Truth<'a>,
    left_out: &'a dyn Fn(&[u8]) -> bool,
    /// For a layer: what is ours.
    layer: Option<&'a Ours>,
    /// From the root to the directory that the walk is in; never empty.
    levels: Vec<Level<L::Dir>>,
    /// The upper began as a copy of all that is below: what is not in it is gone, and no file of it is a mark of overlayfs.
    whole: bool,
    found: Vec<Change>,
    /// A failure of the tree below; the walk then ends with a call's error that is not shown.
    failure: Option<ChangesError>,
}

impl<L: Lower> Comparison<'_, L> {
    /// Lists a path and the directories that it is in.
    fn add(&mut self, path: Vec<u8>, kind: ChangeKind) {
        for level in self.levels.iter_mut().rev().take_while(|level| !level.listed) {
            level.listed = true;
            self.found.push(Change::new(level.path.clone(), ChangeKind::Changed));
        }
        self.found.push(Change::new(path, kind));
    }

    /// Whether the walk goes into it.
    fn compare(&mut self, at: &At<'_>) -> Result<bool> {
        if at.path.len() >= PATH_MAX {
            return self.is_too_deep(at).map(|()| false);
        }
        let path = [b"/", at.path].concat();
        if (self.left_out)(&path) {
            return Ok(false);
        }
        let level = self.levels.last();
        let opaque = level.is_some_and(|level| level.opaque);
        let found = match level.and_then(|level| level.below.as_ref()) {
            Some(below) => self.lower.entry(below, at.name.to_bytes())?,
            None => None,
        };
        if !self.whole && is_whiteout(at)? {
            if found.is_some() {
                self.add(path, ChangeKind::Deleted);
            }
            return Ok(false);
        }
        let kind = match &found {
            None => Some(ChangeKind::Added),
            Some(found) => self.is_change(at, &path, found)?.then_some(ChangeKind::Changed),
        };
        if let Some(kind) = kind {
            self.add(path.clone(), kind);
        }
        if !at.is_directory() {
            return Ok(false);
        }
        let below = found.and_then(|found| found.directory);
        let opaque = opaque || is_opaque(at)?;
        let hidden = match below.as_ref().filter(|_| opaque) {
            Some(below) => self.hidden(at.open_path()?.as_fd(), below)?,
            None => Vec::new(),
        };
        self.levels.push(Level { path: path.clone(), below, opaque, listed: kind.is_some() });
        self.add_hidden(&path, hidden);
        Ok(true)
    }

    /// What no path leads to: a list goes without, as all paths of a deep tree together would have no bound, and a layer cannot
    /// have it.
    fn is_too_deep(&self, at: &At<'_>) -> Result<()> {
        if self.layer.is_none() {
            return Ok(());
        }
        let top = at.path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let call = format!("archive of a path of more than {PATH_MAX} bytes, below /{}", String::from_utf8_lossy(top));
        Err(SysError::new(call, Errno::ENAMETOOLONG).into())
    }

    fn add_hidden(&mut self, path: &[u8], hidden: Vec<Vec<u8>>) {
        for name in hidden {
            let path = [path, &b"/"[..], &name].concat();
            if !(self.left_out)(&path) {
                self.add(path, ChangeKind::Deleted);
            }
        }
    }

    /// Whether what is in the upper counts beside what the tree below has.
    fn is_change(&self, at: &At<'_>, path: &[u8], found: &LowerEntry<L::Dir>) -> Result<bool> {
        match (self.layer, &found.directory) {
            (None, _) => self.differs(at, found),
            (Some(ours), Some(below)) if at.is_directory() && (self.whole || ours.is_parent(path)) => {
                let (mut metadata, of_image) = (self.truth.metadata(at)?, self.lower.metadata(below)?);
                self.truth.complete(&mut metadata.xattrs, of_image.xattrs.clone());
                Ok(!alike(&metadata, &of_image))
            }
            (Some(_), None) if self.whole && !self.differs(at, found)? => {
                let Some(below) = self.levels.last().and_then(|level| level.below.as_ref()) else { return Ok(true) };
                let (name, mut xattrs) = (at.name.to_bytes(), self.truth.metadata(at)?.xattrs);
                let of_image = self.lower.attributes(below, name)?;
                self.truth.complete(&mut xattrs, of_image.clone());
                Ok(xattrs != of_image || !self.lower.has_copy(below, name, at.parent)?)
            }
            (Some(_), _) => Ok(true),
        }
    }

    /// By the rules of `diff`.
    fn differs(&self, at: &At<'_>, found: &LowerEntry<L::Dir>) -> Result<bool> {
        let mut below = found.compared.clone();
        if self.truth.lacks.capability {
            below.capability = None;
        }
        Ok(self.truth.compared(at)?.differs(&below))
    }

    /// What an opaque directory hides and has nothing for.
    fn hidden(&self, dir: BorrowedFd<'_>, below: &L::Dir) -> Result<Vec<Vec<u8>>> {
        let mut hidden = Vec::new();
        for name in self.lower.names(below)? {
            match fstatat(dir, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(_) => {}
                Err(Errno::ENOENT) if self.whole && self.is_not_copied(below, &name)? => {}
                Err(Errno::ENOENT) => hidden.push(name),
                Err(errno) => Err(errno).call(|| format!("fstatat({:?})", String::from_utf8_lossy(&name)))?,
            }
        }
        Ok(hidden)
    }

    /// Whether a copy never has it: nodes of devices, which nobody can make without root, and sockets.
    fn is_not_copied(&self, below: &L::Dir, name: &[u8]) -> Result<bool> {
        let kind = self.lower.entry(below, name)?.map_or(0, |entry| entry.compared.mode & nix::libc::S_IFMT);
        Ok(matches!(kind, nix::libc::S_IFCHR | nix::libc::S_IFBLK | nix::libc::S_IFSOCK))
    }
}

impl<L: Lower> Visitor for Comparison<'_, L> {
    fn enter(&mut self, at: &At<'_>) -> sys::error::Result<bool> {
        match self.compare(at) {
            Ok(goes_in) => Ok(goes_in),
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

pub(crate) fn is_whiteout(at: &At<'_>) -> sys::error::Result<bool> {
    match at.file_type() {
        nix::libc::S_IFCHR => Ok(at.stat.st_rdev == 0),
        nix::libc::S_IFREG if at.stat.st_size == 0 => Ok(attribute(at, c"user.overlay.whiteout")?.is_some()),
        _ => Ok(false),
    }
}

pub(crate) fn is_opaque(at: &At<'_>) -> sys::error::Result<bool> {
    Ok(attribute(at, c"user.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

fn attribute(at: &At<'_>, name: &std::ffi::CStr) -> sys::error::Result<Option<Vec<u8>>> {
    match xattr::get(at.open_path()?, name) {
        Err(error) if error.errno() == Errno::EOPNOTSUPP => Ok(None),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_made_for_our_files_is_no_change() {
        let ours = Ours { paths: vec!["/etc/hosts".to_owned()], parents: vec!["/etc".to_owned()] };
        let change = |kind, path: &str| Change { path: path.into(), kind };
        let (added, changed) = (ChangeKind::Added, ChangeKind::Changed);
        assert_eq!(ours.without_parents(vec![change(added, "/etc"), change(added, "/x")]), [change(added, "/x")]);
        let filled = vec![change(added, "/etc"), change(added, "/etc/x")];
        assert_eq!(ours.without_parents(filled), [change(changed, "/etc"), change(added, "/etc/x")]);
        let theirs = vec![change(changed, "/etc")];
        assert_eq!(ours.without_parents(theirs.clone()), theirs);
    }

    #[test]
    fn a_list_comes_back_as_it_was_and_a_cut_one_is_none() {
        let change = |kind, path: &[u8]| Change::new(path.to_vec(), kind);
        let list = [
            change(ChangeKind::Added, b"/a\n"),
            change(ChangeKind::Changed, b"/\xff"),
            change(ChangeKind::Deleted, b"/d"),
        ];
        let bytes: Vec<u8> = list.iter().flat_map(Change::to_bytes).collect();
        assert_eq!(Change::list_of(&bytes).as_deref(), Some(&list[..]));
        assert_eq!((Change::list_of(b""), Change::list_of(&bytes[..bytes.len() - 1])), (Some(Vec::new()), None));
        assert_eq!(Change::list_of(b"X/a\0"), None);
    }

    #[test]
    fn a_capability_of_a_user_namespace_becomes_an_images() {
        let of_namespace = [&[1, 0, 0, 3][..], &[7; 16], &[1, 0, 0, 0]].concat();
        let of_image = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        assert_eq!(capability_of_image(&of_namespace), of_image);
        assert_eq!(capability_of_image(&of_image), of_image);
    }
}
