//! What a container wrote to a volume that keeps it from the source (`-v …:cow`): what it is, and its way into the source.
//!
//! The writable layer is one of a native upper ([`crate::native`]) above a directory of the host. Applying it is a walk that
//! may be killed and begun again at any place: the layer stays until all of it is in the source, and each step gives the
//! same when it is done twice. Files are made beside their place and renamed over it. Others may change the source meanwhile,
//! so every path is found by descriptor and never leaves it.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use sys::SysError;
use sys::error::{Call, Result};
use sys::namespace::Extent;
use sys::path::open_in;
use sys::xattr::{self, Existing};

use crate::changes::{Compared, is_opaque, is_whiteout};
use crate::directory::open_dir;
use crate::lower::{Lower, LowerEntry, TrueOwner};
use crate::owner_log::{self, ATTRIBUTES, Owners};
use crate::tree_walk::{At, Visitor, remove_contents, walk};

/// The file beside `upper` with the name that what is being made in the source has until it gets its own. The name is random,
/// so that the container cannot have a file of it, and kept, so that the next call removes what a killed one left.
const TEMPORARY: &CStr = c"temporary";
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory of the host as a container sees it through a bind mount.
pub struct DirectoryLower<'a> {
    root: OwnedFd,
    /// Users and groups of the outer user namespace in the host's ids; `None` where the mount shifts them.
    outer: Option<(&'a [Extent], &'a [Extent])>,
    /// The container's in those of the outer user namespace.
    own: (&'a [Extent], &'a [Extent]),
}

impl<'a> DirectoryLower<'a> {
    /// The directory at `path`, its owners seen through these maps.
    pub fn open(
        path: &Path,
        outer: Option<(&'a [Extent], &'a [Extent])>,
        own: (&'a [Extent], &'a [Extent]),
    ) -> Result<Self> {
        Ok(DirectoryLower { root: open_dir(path)?, outer, own })
    }

    fn owner(&self, stat: &FileStat) -> (u32, u32) {
        let shown = |outer: Option<&[Extent]>, own: &[Extent], id: u32| {
            let id = outer.map_or(Some(id), |outer| Extent::to_inside(outer, id));
            id.and_then(|id| Extent::to_inside(own, id)).unwrap_or(crate::ids::NOBODY)
        };
        let (uids, gids) = (self.outer.map(|maps| maps.0), self.outer.map(|maps| maps.1));
        (shown(uids, self.own.0, stat.st_uid), shown(gids, self.own.1, stat.st_gid))
    }
}

impl Lower for DirectoryLower<'_> {
    type Dir = OwnedFd;

    fn root(&self) -> crate::changes::Result<OwnedFd> {
        Ok(self.root.try_clone().call(|| "dup(source)".to_owned())?)
    }

    fn entry(&self, dir: &OwnedFd, name: &[u8]) -> crate::changes::Result<Option<LowerEntry<OwnedFd>>> {
        let name = OsStr::from_bytes(name);
        let words = |call: &str| format!("{call}(source, {name:?})");
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(None),
            stat => stat.call(|| words("fstatat"))?,
        };
        let directory = is_directory(&stat)
            .then(|| openat(dir, name, DIRECTORY.difference(OFlag::O_RDONLY) | OFlag::O_PATH, Mode::empty()))
            .transpose()
            .call(|| words("open"))?;
        Ok(Some(LowerEntry { compared: Compared::of_stat_as(&stat, self.owner(&stat)), directory }))
    }

    fn metadata(&self, dir: &OwnedFd) -> crate::changes::Result<index::Metadata> {
        let stat = fstat(dir).call(|| "fstat(source)".to_owned())?;
        let (uid, gid) = self.owner(&stat);
        Ok(index::Metadata { permissions: (stat.st_mode & 0o7777) as u16, uid, gid, ..index::Metadata::default() })
    }

    fn names(&self, dir: &OwnedFd) -> crate::changes::Result<Vec<Vec<u8>>> {
        let listing = nix::dir::Dir::openat(dir, c".", DIRECTORY, Mode::empty());
        let mut names = Vec::new();
        for entry in listing.call(|| "open(source)".to_owned())?.iter() {
            let name = entry.call(|| "readdir(source)".to_owned())?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn true_owner(&self, _path: &[u8], _shown: (u32, u32)) -> crate::changes::Result<TrueOwner> {
        Ok((None, None))
    }
}

/// What was applied otherwise than the container had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Files of users of the container that are the caller's now.
    pub owners: u64,
    /// Devices and sockets.
    pub left_out: u64,
    /// Files and directories without their ACLs, and with no more rights than they gave.
    pub acls: u64,
    /// Files without their capabilities.
    pub capabilities: u64,
}

/// Brings all that is in the layer `dir` (at rest) into the directory `source`. The layer stays as it is.
pub fn apply(dir: &Path, source: &Path) -> Result<Lost> {
    let layer = open_dir(dir)?;
    let log = owner_log::read(layer.as_fd())?.unwrap_or_default();
    let upper = open_dir(&dir.join("upper"))?;
    let source = open_dir(source)?;
    let (temporary, lost) = (temporary_name(layer.as_fd())?, Lost::default());
    let mut applying = Applying { source, temporary, log, links: HashMap::new(), late: Vec::new(), lost };
    let stat = fstat(&upper).call(|| "fstat(upper)".to_owned())?;
    applying.root(&At { parent: upper.as_fd(), name: c".", path: b".", stat: &stat })?;
    walk(upper.as_fd(), &mut applying)?;
    applying.finish()
}

fn temporary_name(layer: BorrowedFd<'_>) -> Result<String> {
    let call = || format!("open(layer/{TEMPORARY:?})");
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(layer, TEMPORARY, flags, Mode::S_IRUSR | Mode::S_IWUSR).call(call)?);
    let mut random = [0; 16];
    if file.read(&mut random).call(call)? < random.len() {
        random = sys::random()?;
        // A part of it that was written by a killed call has named nothing yet.
        std::os::unix::fs::FileExt::write_all_at(&file, &random, 0).call(call)?;
    }
    Ok(format!(".{:032x}", u128::from_le_bytes(random)))
}

struct Applying {
    source: OwnedFd,
    /// What is being made has this name.
    temporary: String,
    log: Owners,
    /// Where files with several names have been put, by their inodes in the layer.
    links: HashMap<u64, PathBuf>,
    /// Directories get their modes and times last: what is made in them needs the one and changes the other.
    late: Vec<(PathBuf, FileStat, u32)>,
    lost: Lost,
}

impl Visitor for Applying {
    fn enter(&mut self, at: &At<'_>) -> Result<bool> {
        let path = Path::new(OsStr::from_bytes(at.path));
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let to = open_in(self.source.as_fd(), parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        sys::step();
        if is_whiteout(at)? {
            remove(to.as_fd(), at)?;
            return Ok(false);
        }
        if at.is_directory() {
            self.directory(to.as_fd(), at, path)?;
            return Ok(true);
        }
        self.file(to.as_fd(), at, path)?;
        Ok(false)
    }
}

impl Applying {
    /// The source itself: its owner and mode, where the container has changed them.
    fn root(&mut self, at: &At<'_>) -> Result<()> {
        let stat = fstat(&self.source).call(|| "fstat(source)".to_owned())?;
        if (self.mode(at) ^ stat.st_mode) & 0o7777 != 0 {
            let source = self.source.try_clone().call(|| "dup(source)".to_owned())?;
            let mode = self.look_alike(&source, at, 0o700)?;
            self.late.push((PathBuf::from("."), *at.stat, mode));
        }
        let from = openat(at.parent, at.name, DIRECTORY, Mode::empty()).call(|| at.words("open"))?;
        copy_user_attributes(&from, &self.source)
    }

    fn directory(&mut self, to: BorrowedFd<'_>, at: &At<'_>, path: &Path) -> Result<()> {
        let there = look(to, at)?;
        if there.as_ref().is_some_and(|stat| !is_directory(stat)) {
            remove(to, at)?;
        }
        match mkdirat(to, at.name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).call(|| at.words("mkdirat")),
        }
        let dir = openat(to, at.name, DIRECTORY, Mode::empty()).call(|| at.words("open"))?;
        if is_opaque(at)? {
            remove_contents(dir.as_fd())?;
        }
        let from = openat(at.parent, at.name, DIRECTORY, Mode::empty()).call(|| at.words("open"))?;
        copy_user_attributes(&from, &dir)?;
        let mode = self.look_alike(&dir, at, 0o700)?;
        self.late.push((path.to_owned(), *at.stat, mode));
        Ok(())
    }

    /// Anything but a directory, made beside its place.
    fn file(&mut self, to: BorrowedFd<'_>, at: &At<'_>, path: &Path) -> Result<()> {
        if look(to, at)?.is_some_and(|stat| is_directory(&stat)) {
            remove(to, at)?;
        }
        match unlinkat(to, self.temporary.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).call(|| format!("unlinkat({:?})", self.temporary)),
        }
        let kind = SFlag::from_bits_truncate(at.stat.st_mode & SFlag::S_IFMT.bits());
        if let Some(first) = self.links.get(&at.stat.st_ino) {
            let first = open_in(self.source.as_fd(), first, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
            let link = sys::path::proc_fd(first.as_fd());
            linkat(nix::fcntl::AT_FDCWD, link.as_c_str(), to, self.temporary.as_str(), AtFlags::AT_SYMLINK_FOLLOW)
                .call(|| at.words("linkat"))?;
        } else {
            match kind {
                SFlag::S_IFREG => self.copy(to, at)?,
                SFlag::S_IFLNK => {
                    let target = readlinkat(at.parent, at.name).call(|| at.words("readlinkat"))?;
                    symlinkat(target.as_os_str(), to, self.temporary.as_str()).call(|| at.words("symlinkat"))?;
                    self.own_link(to, at)?;
                }
                SFlag::S_IFIFO => {
                    let mode = Mode::from_bits_truncate(self.mode(at));
                    mknodat(to, self.temporary.as_str(), kind, mode, 0).call(|| at.words("mknodat"))?;
                    self.own_link(to, at)?;
                }
                _ => {
                    self.lost.left_out += 1;
                    return Ok(());
                }
            }
            if at.stat.st_nlink > 1 && kind == SFlag::S_IFREG {
                self.links.insert(at.stat.st_ino, path.to_owned());
            }
        }
        sys::step();
        renameat(to, self.temporary.as_str(), to, at.name).call(|| at.words("renameat"))?;
        // Two names of one file: rename(2) does nothing then.
        let _ = unlinkat(to, self.temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        Ok(())
    }

    fn copy(&mut self, to: BorrowedFd<'_>, at: &At<'_>) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut from = File::from(openat(at.parent, at.name, flags, Mode::empty()).call(|| at.words("open"))?);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(to, self.temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(made.call(|| at.words("open(O_CREAT) for"))?);
        std::io::copy(&mut from, &mut file).call(|| at.words("copy"))?;
        copy_user_attributes(&from, &file)?;
        let file = OwnedFd::from(file);
        self.look_alike(&file, at, 0)?;
        let (accessed, changed) = times(at.stat);
        nix::sys::stat::futimens(&file, &accessed, &changed).call(|| at.words("futimens"))
    }

    /// The mode that the container's user sees.
    fn mode(&self, at: &At<'_>) -> u32 {
        self.log.get(at.path).map_or(at.stat.st_mode, |told| told.mode) & 0o7777
    }

    /// The owner in the source, where it is to be another than the caller: only root can make it so.
    fn owner(&mut self, at: &At<'_>) -> Option<(Uid, Gid)> {
        let told = self.log.get(at.path).filter(|told| (told.uid, told.gid) != (0, 0))?;
        if nix::unistd::geteuid().is_root() {
            return Some((Uid::from_raw(told.uid), Gid::from_raw(told.gid)));
        }
        self.lost.owners += 1;
        None
    }

    /// Gives a file its owner and mode, for now with these further permissions; the answer is the mode that it is to have.
    fn look_alike(&mut self, file: &OwnedFd, at: &At<'_>, further: u32) -> Result<u32> {
        let owner = self.owner(at);
        // Somebody else's program must not run as the caller.
        let lost = owner.is_none() && self.log.get(at.path).is_some_and(|told| (told.uid, told.gid) != (0, 0));
        let mode = self.mode(at) & if lost { 0o1777 } else { 0o7777 };
        let mode = mode & if self.lose_attributes(at)? { 0o7707 } else { 0o7777 };
        if let Some((uid, gid)) = owner {
            fchown(file, Some(uid), Some(gid)).call(|| at.words("fchown"))?;
        }
        fchmod(file, Mode::from_bits_truncate(mode | further)).call(|| at.words("fchmod"))?;
        Ok(mode)
    }

    /// Counts what is not applied; whether an ACL is among it, whose mask the group's permissions show.
    fn lose_attributes(&mut self, at: &At<'_>) -> Result<bool> {
        let entry = at.open_path()?;
        let told = self.log.get(at.path).map(|told| told.attributes.as_slice()).unwrap_or_default();
        let mut had = [false; ATTRIBUTES.len()];
        for (number, (had, name)) in had.iter_mut().zip(ATTRIBUTES).enumerate() {
            *had = told.iter().any(|(known, _)| usize::from(*known) == number)
                || xattr::get(&entry, name).or_else(|error| nothing_where_unsupported(&error))?.is_some();
        }
        let [capability, access, default] = had;
        self.lost.capabilities += u64::from(capability);
        self.lost.acls += u64::from(access || default);
        Ok(access)
    }

    fn own_link(&mut self, to: BorrowedFd<'_>, at: &At<'_>) -> Result<()> {
        if let Some((uid, gid)) = self.owner(at) {
            fchownat(to, self.temporary.as_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .call(|| at.words("fchownat"))?;
        }
        let (accessed, changed) = times(at.stat);
        utimensat(to, self.temporary.as_str(), &accessed, &changed, UtimensatFlags::NoFollowSymlink)
            .call(|| at.words("utimensat"))
    }

    fn finish(self) -> Result<Lost> {
        for (path, stat, mode) in self.late.iter().rev() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let dir = open_in(self.source.as_fd(), path, flags, Mode::empty())?;
            let (accessed, changed) = times(stat);
            let link = sys::path::proc_fd(dir.as_fd());
            fchmodat(
                nix::fcntl::AT_FDCWD,
                link.as_c_str(),
                Mode::from_bits_truncate(*mode),
                FchmodatFlags::FollowSymlink,
            )
            .call(|| format!("fchmodat({path:?})"))?;
            let flags = UtimensatFlags::FollowSymlink;
            utimensat(nix::fcntl::AT_FDCWD, link.as_c_str(), &accessed, &changed, flags)
                .call(|| format!("utimensat({path:?})"))?;
        }
        nix::unistd::syncfs(&self.source).call(|| "syncfs(source)".to_owned())?;
        Ok(self.lost)
    }
}

/// Those of users, which the container has set, but for overlayfs's own.
fn copy_user_attributes(from: impl AsFd, to: impl AsFd) -> Result<()> {
    for name in xattr::list(&from).or_else(|error| nothing_where_unsupported(&error))? {
        let wanted = name.to_bytes().starts_with(b"user.") && !name.to_bytes().starts_with(b"user.overlay.");
        if let Some(value) = if wanted { xattr::get(&from, &name)? } else { None } {
            xattr::set(&to, &name, &value, Existing::Any)?;
        }
    }
    Ok(())
}

fn nothing_where_unsupported<T: Default>(error: &SysError) -> Result<T> {
    match error.errno() {
        Errno::EOPNOTSUPP => Ok(T::default()),
        errno => Err(SysError::new("listxattr(layer)", errno)),
    }
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

/// What is at an entry's place.
fn look(to: BorrowedFd<'_>, at: &At<'_>) -> Result<Option<FileStat>> {
    match fstatat(to, at.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(None),
        stat => stat.map(Some).call(|| at.words("fstatat")),
    }
}

/// Removes what is at an entry's place, with all that is in it.
fn remove(to: BorrowedFd<'_>, at: &At<'_>) -> Result<()> {
    let Some(stat) = look(to, at)? else { return Ok(()) };
    let how = if is_directory(&stat) {
        let dir = openat(to, at.name, DIRECTORY, Mode::empty()).call(|| at.words("open"))?;
        remove_contents(dir.as_fd())?;
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    unlinkat(to, at.name, how).call(|| at.words("unlinkat"))
}
