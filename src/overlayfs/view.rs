//! Answers a FUSE mount with an [`Overlay`]: the engine's values in the protocol's terms, nothing more.

use std::sync::Arc;
use std::time::Duration;

use base::owner::{self, Owner};
use fuse::op::{
    CopyRange, FOREVER, Fallocate, MakeDir, MakeNode, Name, Rename, SetAttr, SetTime, SetXattr, StatFs, Time, Whence,
    Write,
};
use fuse::{Attr, Caller, DirSink, Entry, EntrySink, Features, Filesystem, NodeId};
use nix::errno::Errno;

use crate::acl;
use crate::attr::{self, Make, NAME_MAX, Request, Result, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::names::RenameHow;
use crate::overlay::Overlay;
use crate::xattr::SetXattrHow;

/// Longest ACL in bytes: what the kernel takes from a file system (`PAGE_SIZE`).
const ACL_MAX: usize = 4096;

/// How an owner (user, group) is shown.
type Show = Box<dyn Fn(u32, u32) -> (u32, u32) + Send + Sync>;

/// A mount's view of an overlay.
pub struct View {
    overlay: Arc<Overlay>,
    show: Show,
    tells_owners: bool,
}

impl View {
    /// Serves this overlay. Other users of it see every change at once; the mount, which caches without limit, sees
    /// only its own: whoever else uses the overlay meanwhile only reads.
    pub fn new(overlay: Arc<Overlay>) -> Self {
        View { overlay, show: Box::new(|uid, gid| (uid, gid)), tells_owners: false }
    }

    /// Shows owners through `show`: those that the mount's user namespace cannot express must become others. What the
    /// overlay records stays as it is until somebody changes the owner.
    #[must_use]
    pub fn showing(self, show: impl Fn(u32, u32) -> (u32, u32) + Send + Sync + 'static) -> Self {
        View { show: Box::new(show), ..self }
    }

    /// Takes the attribute [`base::owner::OURS`] for a change of owner, where the kernel knows one id only and so shows all files
    /// as that one's: whoever may set attributes may change owners then.
    #[must_use]
    pub fn telling_owners(self) -> Self {
        View { tells_owners: true, ..self }
    }

    /// What to ask of the kernel. `writeback`: gather writes in the page cache; better for big files written in small
    /// pieces, worse for many small files. `idmap`: the mount is to be id-mapped; then the kernel tells who asks only when
    /// something is created, which is when it matters.
    pub fn features(threads: usize, writeback: bool, idmap: bool) -> Features {
        Features {
            writeback_cache: writeback,
            idmap,
            posix_acl: true,
            // Ours to apply, since a default ACL takes its place.
            dont_mask: true,
            read_only: false,
            ..Features::immutable(threads)
        }
    }

    fn attr(&self, attr: &attr::Attr) -> Attr {
        let (uid, gid) = (self.show)(attr.uid, attr.gid);
        Attr { uid, gid, ..wire_attr(attr) }
    }

    fn entry(&self, attr: &attr::Attr) -> Entry {
        Entry::new(self.attr(attr), FOREVER)
    }
}

fn request(caller: &Caller) -> Request {
    Request { unique: caller.unique, resent: caller.resent, uid: caller.uid, gid: caller.gid }
}

fn time(at: attr::Time) -> Time {
    Time { seconds: at.seconds, nanos: at.nanos }
}

fn set_time(to: SetTime) -> attr::SetTime {
    match to {
        SetTime::Now => attr::SetTime::Now,
        SetTime::At(at) => attr::SetTime::At(attr::Time { seconds: at.seconds, nanos: at.nanos }),
    }
}

fn wire_attr(attr: &attr::Attr) -> Attr {
    Attr {
        node: NodeId(attr.ino),
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        size: attr.size,
        blocks: attr.blocks,
        block_size: 4096,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
    }
}

impl Filesystem for View {
    fn lookup(&self, _caller: &Caller, parent: NodeId, name: &[u8]) -> Result<Entry> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let found = self.overlay.lookup_held(parent.0, name)?;
        Ok(found.map_or_else(|| Entry::absent(FOREVER), |attr| self.entry(&attr)))
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.overlay.forget(node.0, count);
    }

    fn getattr(&self, _caller: &Caller, node: NodeId) -> Result<(Attr, Duration)> {
        Ok((self.attr(&self.overlay.attr(node.0)?), FOREVER))
    }

    fn setattr(&self, caller: &Caller, node: NodeId, change: &SetAttr) -> Result<(Attr, Duration)> {
        let change = attr::SetAttr {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime.map(set_time),
            mtime: change.mtime.map(set_time),
            kill_privileges: change.kill_suid_gid,
        };
        let attr = self.overlay.setattr(&request(caller), node.0, &change)?;
        Ok((self.attr(&attr), FOREVER))
    }

    fn readlink<'a>(&'a self, _caller: &Caller, node: NodeId, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        self.overlay.readlink(node.0, buffer)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &[u8], node: &MakeNode) -> Result<Entry> {
        let mode = if node.mode & S_IFMT == 0 { node.mode | S_IFREG } else { node.mode };
        if matches!(mode & S_IFMT, S_IFDIR | S_IFLNK) {
            return Err(Errno::EINVAL);
        }
        let make = Make { mode, umask: node.umask, rdev: node.rdev, target: &[] };
        self.overlay.create(&request(caller), parent.0, name, &make, true).map(|attr| self.entry(&attr))
    }

    fn tmpfile(&self, caller: &Caller, parent: NodeId, node: &MakeNode) -> Result<Entry> {
        let make = Make { mode: S_IFREG | node.mode & !S_IFMT, umask: node.umask, rdev: 0, target: &[] };
        self.overlay.create_unnamed(&request(caller), parent.0, &make, true).map(|attr| self.entry(&attr))
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], dir: &MakeDir) -> Result<Entry> {
        let make = Make { mode: S_IFDIR | dir.mode & !S_IFMT, umask: dir.umask, rdev: 0, target: &[] };
        self.overlay.create(&request(caller), parent.0, name, &make, true).map(|attr| self.entry(&attr))
    }

    fn unlink(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        self.overlay.unlink(&request(caller), parent.0, name)
    }

    fn rmdir(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        self.overlay.rmdir(&request(caller), parent.0, name)
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        let make = Make { mode: S_IFLNK | 0o777, umask: 0, rdev: 0, target };
        self.overlay.create(&request(caller), parent.0, name, &make, true).map(|attr| self.entry(&attr))
    }

    fn rename(&self, caller: &Caller, rename: &Rename<'_>) -> Result<()> {
        let how = RenameHow { no_replace: rename.no_replace, exchange: rename.exchange, whiteout: rename.whiteout };
        let (from, to) = ((rename.parent.0, rename.name), (rename.new_parent.0, rename.new_name));
        self.overlay.rename(&request(caller), from, to, how)
    }

    fn link(&self, caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        self.overlay.link(&request(caller), node.0, new_parent.0, new_name, true).map(|attr| self.entry(&attr))
    }

    fn read<'a>(&'a self, _caller: &Caller, node: NodeId, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        self.overlay.read_data(node.0, offset, buffer)
    }

    fn write(&self, caller: &Caller, write: &Write<'_>) -> Result<u32> {
        let kill = write.kill_suid_gid;
        let written = self.overlay.write_data(&request(caller), write.node.0, write.offset, write.data, kill)?;
        Ok(written as u32)
    }

    fn statfs(&self, _caller: &Caller, _node: NodeId) -> Result<StatFs> {
        let below = self.overlay.statfs()?;
        let (mut blocks, mut free, mut available) = (below.blocks(), below.blocks_free(), below.blocks_available());
        if let Some((limit, used)) = self.overlay.usage() {
            let unit = below.fragment_size().max(1);
            let left = limit.saturating_sub(used) / unit;
            (blocks, free, available) = (blocks.min(limit / unit), free.min(left), available.min(left));
        }
        Ok(StatFs {
            blocks,
            blocks_free: free,
            blocks_available: available,
            files: below.files(),
            files_free: below.files_free(),
            block_size: below.block_size() as u32,
            name_max: NAME_MAX as u32,
            fragment_size: below.fragment_size() as u32,
        })
    }

    fn getxattr<'a>(&'a self, _caller: &Caller, node: NodeId, name: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        if !acl::is_one(name) {
            return self.overlay.xattr(node.0, name, buffer);
        }
        // On the stack: it is small, and asked for at the first permission check of every file.
        let mut copy = [0; ACL_MAX];
        let value = self.overlay.xattr(node.0, name, &mut copy)?;
        let shown = buffer.get_mut(..value.len()).ok_or(Errno::ERANGE)?;
        shown.copy_from_slice(value);
        acl::show(shown, &self.show);
        Ok(shown)
    }

    fn listxattr(&self, _caller: &Caller, node: NodeId, names: &mut Vec<u8>) -> Result<()> {
        self.overlay.xattr_names(node.0, names)
    }

    fn setxattr(&self, caller: &Caller, node: NodeId, xattr: &SetXattr<'_>) -> Result<()> {
        if xattr.name == owner::OURS.to_bytes() {
            let owner = Owner::of(xattr.value).filter(|_| self.tells_owners).ok_or(Errno::EOPNOTSUPP)?;
            let change = attr::SetAttr { uid: owner.uid, gid: owner.gid, ..attr::SetAttr::default() };
            return self.overlay.setattr(&request(caller), node.0, &change).map(drop);
        }
        let how = SetXattrHow { create: xattr.create, replace: xattr.replace, kill_sgid: xattr.kill_sgid };
        self.overlay.set_xattr(&request(caller), node.0, xattr.name, xattr.value, how)
    }

    fn removexattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<()> {
        self.overlay.remove_xattr(&request(caller), node.0, name)
    }

    fn readdir(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
        self.overlay.list(dir.0, cookie, false, |listed| {
            let name = Name { name: listed.name, next_cookie: listed.cookie };
            sink.add(name, NodeId(listed.attr.ino), listed.attr.mode)
        })
    }

    fn readdirplus(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn EntrySink) -> Result<()> {
        self.overlay.list(dir.0, cookie, true, |listed| {
            sink.add(Name { name: listed.name, next_cookie: listed.cookie }, &self.entry(&listed.attr))
        })
    }

    fn fsync(&self, _caller: &Caller, node: NodeId, _data_only: bool) -> Result<()> {
        self.overlay.fsync(node.0)
    }

    fn fsyncdir(&self, _caller: &Caller, dir: NodeId, _data_only: bool) -> Result<()> {
        self.overlay.fsync(dir.0)
    }

    fn fallocate(&self, caller: &Caller, range: &Fallocate) -> Result<()> {
        self.overlay.allocate(&request(caller), range.node.0, range.mode, range.offset, range.length)
    }

    fn lseek(&self, _caller: &Caller, node: NodeId, offset: u64, whence: Whence) -> Result<u64> {
        self.overlay.seek(node.0, offset, whence == Whence::Hole)
    }

    fn copy_file_range(&self, caller: &Caller, copy: &CopyRange) -> Result<u64> {
        let (source, target) = ((copy.source.0, copy.source_offset), (copy.target.0, copy.target_offset));
        self.overlay.copy_range(&request(caller), source, target, copy.length)
    }
}
