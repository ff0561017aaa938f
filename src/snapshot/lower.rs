//! The read-only trees that an upper stands on, as a comparison sees them: an image by its index, and the host.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use fuse::op::encode_dev;
use index::{Content, Index, Node};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat, fstatat};
use sys::error::Call;

use crate::changes::{Attributes, CAPABILITY, ChangesError, Compared, LOOK, Result, capability_of, of_image};
use crate::host_mounts::{HostMounts, Mounted};
use crate::ids::MappedIds;
use crate::object_dir::ObjectDirs;
use crate::view_chain::ContentFiles;
use crate::view_host::{HostViewConfig, made_up};

/// What the tree below has under a name.
#[derive(Debug)]
pub struct LowerEntry<D> {
    /// How it looks.
    pub compared: Compared,
    /// When it is a directory.
    pub directory: Option<D>,
}

/// Owner and group of a file, as far as they are known.
pub type TrueOwner = (Option<u32>, Option<u32>);

/// A read-only tree that an upper stands on. Links are never followed.
pub trait Lower {
    /// A directory of it.
    type Dir;
    /// Its root.
    fn root(&self) -> Result<Self::Dir>;
    /// What is under a name.
    fn entry(&self, dir: &Self::Dir, name: &[u8]) -> Result<Option<LowerEntry<Self::Dir>>>;
    /// All that an archive says of a directory, with the owner that is shown.
    fn metadata(&self, dir: &Self::Dir) -> Result<index::Metadata>;
    /// All names in a directory.
    fn names(&self, dir: &Self::Dir) -> Result<Vec<Vec<u8>>>;
    /// The owner and group that are shown as these at a path, without leading slash, each if it is known.
    fn true_owner(&self, path: &[u8], shown: (u32, u32)) -> Result<TrueOwner>;
    /// The extended attributes of what is under a name. Only asked where the upper began as a copy of this tree.
    fn attributes(&self, dir: &Self::Dir, name: &[u8]) -> Result<Attributes> {
        let _ = (dir, name);
        Ok(Attributes::new())
    }
    /// Whether a file (no directory) that looks like the one under this name has its contents too; it is in the open directory
    /// `copied`. Only asked as [`Lower::attributes`] is.
    fn has_copy(&self, dir: &Self::Dir, name: &[u8], copied: BorrowedFd<'_>) -> Result<bool> {
        let _ = (dir, name, copied);
        Ok(false)
    }
}

/// The merged index of an image chain, as a view shows it.
pub struct ChainLower<'a> {
    /// The index.
    pub index: &'a Index,
    /// Owners that the view can show.
    pub ids: MappedIds,
    /// The contents of its files, for who compares a copy of it.
    pub objects: Option<&'a ObjectDirs>,
}

impl ChainLower<'_> {
    /// The attributes of an entry that belong to an image.
    fn xattrs(&self, node: Node) -> Result<Attributes> {
        let mut xattrs = Attributes::new();
        for attribute in self.index.xattrs(node).map_err(ChangesError::Index)? {
            let (name, value) = attribute.map_err(ChangesError::Index)?;
            if of_image(name) {
                xattrs.insert(name.to_vec(), value.to_vec());
            }
        }
        Ok(xattrs)
    }

    /// Whether a file of the right size has the content of a file of the index.
    fn has_content(&self, node: Node, file: File) -> Result<bool> {
        let call = || "read(a copy of the image)".to_owned();
        match self.index.content(node).map_err(ChangesError::Index)? {
            Content::Empty => Ok(true),
            Content::Inline(bytes) => Ok(is_equal(bytes, file).call(call)?),
            Content::Object { digest, offset, .. } => {
                let size = self.index.inode(node).map_err(ChangesError::Index)?.size;
                let Some(objects) = self.objects else { return Ok(false) };
                let mut object = File::from(objects.object(&digest).call(|| format!("open(object {digest})"))?);
                object.seek(SeekFrom::Start(offset)).call(|| format!("lseek(object {digest})"))?;
                Ok(is_equal(object.take(size), file).call(call)?)
            }
        }
    }
}

/// Whether two streams of one length have the same bytes.
fn is_equal(mut one: impl Read, mut other: impl Read) -> std::io::Result<bool> {
    let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = match one.read(&mut ours) {
            Ok(0) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            length => length?,
        };
        match other.read_exact(&mut theirs[..length]) {
            // It has become shorter meanwhile.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if ours[..length] != theirs[..length] {
            return Ok(false);
        }
    }
}

impl Lower for ChainLower<'_> {
    type Dir = Node;

    fn root(&self) -> Result<Node> {
        Ok(self.index.root())
    }

    fn entry(&self, dir: &Node, name: &[u8]) -> Result<Option<LowerEntry<Node>>> {
        let Some(dirent) = self.index.lookup(*dir, name).map_err(ChangesError::Index)? else { return Ok(None) };
        let inode = self.index.inode(dirent.node).map_err(ChangesError::Index)?;
        let xattrs = self.index.xattrs(dirent.node).map_err(ChangesError::Index)?;
        let compared = Compared {
            mode: inode.mode(),
            uid: self.ids.show_uid(inode.uid),
            gid: self.ids.show_gid(inode.gid),
            rdev: encode_dev(inode.rdev.major, inode.rdev.minor),
            size: inode.size,
            mtime: (inode.mtime.seconds, inode.mtime.nanoseconds),
            capability: xattrs.get(CAPABILITY).map_err(ChangesError::Index)?.map(capability_of),
        };
        let directory = (dirent.kind == index::Kind::Directory).then_some(dirent.node);
        Ok(Some(LowerEntry { compared, directory }))
    }

    fn metadata(&self, dir: &Node) -> Result<index::Metadata> {
        let inode = self.index.inode(*dir).map_err(ChangesError::Index)?;
        Ok(index::Metadata {
            permissions: inode.permissions,
            uid: self.ids.show_uid(inode.uid),
            gid: self.ids.show_gid(inode.gid),
            mtime: inode.mtime,
            xattrs: self.xattrs(*dir)?,
        })
    }

    fn names(&self, dir: &Node) -> Result<Vec<Vec<u8>>> {
        let dirents = self.index.dirents(*dir).map_err(ChangesError::Index)?;
        dirents.iter().map(|dirent| dirent.map(|dirent| dirent.name.to_vec()).map_err(ChangesError::Index)).collect()
    }

    fn true_owner(&self, path: &[u8], shown: (u32, u32)) -> Result<TrueOwner> {
        let mut node = self.index.root();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match self.index.lookup(node, name).map_err(ChangesError::Index)? {
                Some(dirent) => node = dirent.node,
                None => return Ok((None, None)),
            }
        }
        let inode = self.index.inode(node).map_err(ChangesError::Index)?;
        let uid = (self.ids.show_uid(inode.uid) == shown.0).then_some(inode.uid);
        let gid = (self.ids.show_gid(inode.gid) == shown.1).then_some(inode.gid);
        Ok((uid, gid))
    }

    fn attributes(&self, dir: &Node, name: &[u8]) -> Result<Attributes> {
        let found = self.index.lookup(*dir, name).map_err(ChangesError::Index)?;
        found.map_or_else(|| Ok(Attributes::new()), |dirent| self.xattrs(dirent.node))
    }

    fn has_copy(&self, dir: &Node, name: &[u8], copied: BorrowedFd<'_>) -> Result<bool> {
        let Some(dirent) = self.index.lookup(*dir, name).map_err(ChangesError::Index)? else { return Ok(false) };
        let (name, words) = (OsStr::from_bytes(name), |call: &str| format!("{call}(copy, {name:?})"));
        match dirent.kind {
            index::Kind::Regular => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = openat(copied, name, flags, Mode::empty()).call(|| words("open"))?;
                self.has_content(dirent.node, File::from(file))
            }
            index::Kind::Symlink => {
                let target = readlinkat(copied, name).call(|| words("readlinkat"))?;
                let was = self.index.symlink_target(dirent.node).map_err(ChangesError::Index)?;
                Ok(was == Some(&target.into_vec()[..]))
            }
            _ => Ok(true),
        }
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

impl Lower for HostLower<'_> {
    type Dir = HostDir;

    fn root(&self) -> Result<HostDir> {
        let root = open("/", LOOK, Mode::empty()).call(|| "open(\"/\")".to_owned())?;
        Ok(HostDir { opened: Some(root), path: Vec::new() })
    }

    fn entry(&self, dir: &HostDir, name: &[u8]) -> Result<Option<LowerEntry<HostDir>>> {
        let Some(opened) = &dir.opened else { return Ok(None) };
        let path = if dir.path.is_empty() { name.to_vec() } else { [&dir.path, &b"/"[..], name].concat() };
        let words = |call: &str| format!("{call}(host, {:?})", String::from_utf8_lossy(&path));
        let mounted = self.mounts.at(&path);
        if mounted == Some(Mounted::Untouchable) {
            let stat = fstat(opened).call(|| words("fstat of the parent of"))?;
            let compared = Compared::of_stat(&made_up(&path, stat));
            return Ok(Some(LowerEntry { compared, directory: Some(HostDir { opened: None, path }) }));
        }
        let stat = match fstatat(opened, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            // A directory that the user may not search is shown empty.
            Err(Errno::ENOENT | Errno::EACCES) => return Ok(None),
            stat => stat.call(|| words("fstatat"))?,
        };
        let (uid, gid) = (self.config.ids.show_uid(stat.st_uid), self.config.ids.show_gid(stat.st_gid));
        // The view has no extended attributes.
        let compared = Compared { uid, gid, ..Compared::of_stat(&stat) };
        if stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFDIR {
            return Ok(Some(LowerEntry { compared, directory: None }));
        }
        let opened = if self.config.hides(&path, &dir.path) || mounted.is_some_and(|what| what != Mounted::Shown) {
            None
        } else {
            Some(openat(opened, OsStr::from_bytes(name), LOOK, Mode::empty()).call(|| words("open"))?)
        };
        Ok(Some(LowerEntry { compared, directory: Some(HostDir { opened, path }) }))
    }

    fn metadata(&self, dir: &HostDir) -> Result<index::Metadata> {
        let words = || format!("fstat(host, {:?})", String::from_utf8_lossy(&dir.path));
        let Some(opened) = &dir.opened else { return Ok(index::Metadata::default()) };
        let stat = fstat(opened).call(words)?;
        Ok(index::Metadata {
            permissions: (stat.st_mode & 0o7777) as u16,
            uid: self.config.ids.show_uid(stat.st_uid),
            gid: self.config.ids.show_gid(stat.st_gid),
            mtime: index::Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            xattrs: Attributes::new(),
        })
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

    fn true_owner(&self, _path: &[u8], _shown: (u32, u32)) -> Result<TrueOwner> {
        // What is not mapped is not known by another name.
        Ok((None, None))
    }
}
