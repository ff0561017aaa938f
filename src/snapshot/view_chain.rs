//! The view of an image: a merged chain index and the files that hold its contents, served read-only.
//!
//! Theory of operation
//! - Node id and `st_ino` are the index's inode number plus one. The index is the state: nothing is counted, nothing is
//!   allocated for a lookup, forgetting does nothing.
//! - Nothing ever changes, so the kernel may keep every answer, negative ones too, for good.
//! - A directory entry's cookie is its position in the index plus 3 (1 and 2 stand after `.` and `..`).
//! - Contents come from the map (inline) or from an object file (a large content alone, or a range of the pack that holds
//!   a layer's small ones), through a bounded cache of open descriptors.
//! - Owners are shown as far as the outer user namespace can express them ([`MappedIds`]).
//! - What is read of an object is noted, and [`ChainView::read_ahead`] asks for what was noted before ([`crate::reads`]).
//! - The index may be hostile: what is damaged answers `EIO` and is never a panic.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fuse::op::{Attr, Caller, Entry, FOREVER, Name, NodeId, StatFs, Time, encode_dev};
use fuse::{DirSink, EntrySink, Filesystem};
use index::{Content, Index, Inode, Kind, Node};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use oci::Digest;

use crate::fd_cache::FdCache;
use crate::ids::MappedIds;
use crate::reads::{Reads, Recorder};

/// At most this many objects are open at once.
pub(crate) const OPEN_FILES: usize = 1024;
/// Contents up to this are shown as no blocks of their own; above, in units of 512 bytes.
const BLOCK: u64 = 512;

/// Opens the files that hold contents.
pub trait ContentFiles: Send + Sync + 'static {
    /// The file whose bytes have this digest.
    fn object(&self, digest: &Digest) -> Result<OwnedFd, Errno>;
}

/// The view; see the module's documentation.
pub struct ChainView<C> {
    index: Index,
    contents: C,
    ids: MappedIds,
    files: FdCache,
    recorder: Recorder,
}

/// How much is asked for ahead at once: of a larger request the kernel may pass over what goes beyond its read-ahead window
/// (mm/readahead.c, `force_page_cache_ra`), which is 128 KiB if nobody has changed it.
const AHEAD_BYTES: u64 = 128 << 10;

type Result<T, E = Errno> = std::result::Result<T, E>;

impl<C: ContentFiles> ChainView<C> {
    /// A view of `index`, which must be a chain's (`EINVAL` otherwise: a layer still has whiteouts in it).
    pub(crate) fn new(index: Index, contents: C, ids: MappedIds, recorder: Recorder) -> Result<Self> {
        if !index.is_chain() {
            return Err(Errno::EINVAL);
        }
        Ok(ChainView { index, contents, ids, files: FdCache::new(OPEN_FILES), recorder })
    }

    /// The index that this view shows.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Has the kernel read what `reads` names into its page cache, and does not wait for it. What the index does not have is
    /// passed over; what cannot be opened or read is told to whoever reads it.
    pub(crate) fn read_ahead(&self, reads: &Reads) {
        for run in reads.runs() {
            let Ok((digest, size)) = self.index.object(run.object) else { continue };
            let Some(left) = size.checked_sub(run.offset()).filter(|left| *left > 0) else { continue };
            let length = run.length().min(left);
            let Ok(file) = self.files.get(u64::from(run.object), || self.contents.object(&digest)) else { continue };
            for at in (0..length).step_by(AHEAD_BYTES as usize) {
                let part = AHEAD_BYTES.min(length - at);
                // The largest offset is the number of a block times its size, far below the end of i64.
                let (offset, part) = ((run.offset() + at) as i64, part as i64);
                let _ = posix_fadvise(&*file, offset, part, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            }
        }
    }

    fn attr(&self, node: Node, inode: &Inode) -> Attr {
        let changed = Time { seconds: inode.mtime.seconds, nanos: inode.mtime.nanoseconds };
        Attr {
            node: NodeId(node.ino()),
            mode: inode.mode(),
            nlink: inode.nlink,
            uid: self.ids.show_uid(inode.uid),
            gid: self.ids.show_gid(inode.gid),
            rdev: encode_dev(inode.rdev.major, inode.rdev.minor),
            size: if inode.kind == Kind::Directory { 4096 } else { inode.size },
            blocks: match inode.kind {
                Kind::Directory => 8,
                // What a file system with blocks of 4 KiB would show, so that `du` is not a surprise.
                Kind::Regular => inode.size.div_ceil(4096).saturating_mul(4096 / BLOCK),
                _ => 0,
            },
            block_size: 4096,
            atime: changed,
            mtime: changed,
            ctime: changed,
        }
    }

    fn entry(&self, node: Node) -> Result<Entry> {
        let inode = self.index.inode(node).map_err(damaged)?;
        Ok(Entry::new(self.attr(node, &inode), FOREVER))
    }

    /// Hands out the names of a directory with cookies after `cookie` until `add` says that there is no more room.
    fn list(&self, dir: NodeId, cookie: u64, mut add: impl FnMut(Name<'_>, Node, Kind) -> Result<bool>) -> Result<()> {
        let node = known(dir)?;
        let dirents = self.index.dirents(node).map_err(damaged)?;
        let parent = self.index.parent(node).map_err(damaged)?.ok_or(Errno::ENOTDIR)?;
        for (position, (name, node)) in [(&b"."[..], node), (b"..", parent)].into_iter().enumerate() {
            let next_cookie = position as u64 + 1;
            if next_cookie > cookie && !add(Name { name, next_cookie }, node, Kind::Directory)? {
                return Ok(());
            }
        }
        let Ok(first) = u32::try_from(cookie.saturating_sub(2)) else { return Ok(()) };
        for position in first.. {
            let Some(dirent) = dirents.get(position).map_err(damaged)? else { break };
            let next_cookie = u64::from(position) + 3;
            if !add(Name { name: dirent.name, next_cookie }, dirent.node, dirent.kind)? {
                break;
            }
        }
        Ok(())
    }
}

fn known(node: NodeId) -> Result<Node> {
    Node::from_ino(node.0).ok_or(Errno::ESTALE)
}

/// Damage is reported once, by whoever verifies the store; a reader gets what a bad disk gives.
fn damaged(_where: index::Damaged) -> Errno {
    Errno::EIO
}

/// Reads until the buffer is full or the file ends; a file cut short answers `EIO`, never silently less.
fn read_exact(file: &File, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset.checked_add(filled as u64).and_then(|at| i64::try_from(at).ok()).ok_or(Errno::EIO)?;
        match nix::sys::uio::pread(file, &mut buffer[filled..], at) {
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

impl<C: ContentFiles> Filesystem for ChainView<C> {
    fn lookup(&self, _caller: &Caller, parent: NodeId, name: &[u8]) -> Result<Entry> {
        match self.index.lookup(known(parent)?, name).map_err(damaged)? {
            Some(dirent) => self.entry(dirent.node),
            None => Ok(Entry::absent(FOREVER)),
        }
    }

    fn getattr(&self, _caller: &Caller, node: NodeId) -> Result<(Attr, Duration)> {
        Ok((self.entry(known(node)?)?.attr, FOREVER))
    }

    fn readlink<'a>(&'a self, _caller: &Caller, node: NodeId, _buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        self.index.symlink_target(known(node)?).map_err(damaged)?.ok_or(Errno::EINVAL)
    }

    fn read<'a>(&'a self, _caller: &Caller, node: NodeId, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let node = known(node)?;
        let size = self.index.inode(node).map_err(damaged)?.size;
        let length = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(&[]);
        }
        match self.index.content(node).map_err(damaged)? {
            Content::Empty => Err(Errno::EIO),
            Content::Inline(bytes) => bytes.get(offset as usize..offset as usize + length).ok_or(Errno::EIO),
            Content::Object { number, digest, offset: start } => {
                let file = self.files.get(u64::from(number), || self.contents.object(&digest))?;
                let at = start.checked_add(offset).ok_or(Errno::EIO)?;
                read_exact(&file, at, &mut buffer[..length])?;
                self.recorder.note(number, at, length as u64);
                Ok(&buffer[..length])
            }
        }
    }

    fn statfs(&self, _caller: &Caller, _node: NodeId) -> Result<StatFs> {
        Ok(StatFs {
            blocks: self.index.content_bytes().div_ceil(4096),
            blocks_free: 0,
            blocks_available: 0,
            files: u64::from(self.index.inode_count()),
            files_free: 0,
            block_size: 4096,
            name_max: 255,
            fragment_size: 4096,
        })
    }

    fn getxattr<'a>(&'a self, _caller: &Caller, node: NodeId, name: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        if !self.index.has_xattrs() {
            // For good: the kernel never asks again on this connection.
            return Err(Errno::ENOSYS);
        }
        let set = self.index.xattrs(known(node)?).map_err(damaged)?;
        let value = set.get(name).map_err(damaged)?.ok_or(Errno::ENODATA)?;
        if !overlayfs::acl::is_one(name) {
            return Ok(value);
        }
        let shown = buffer.get_mut(..value.len()).ok_or(Errno::ERANGE)?;
        shown.copy_from_slice(value);
        overlayfs::acl::show(shown, |uid, gid| (self.ids.show_uid(uid), self.ids.show_gid(gid)));
        Ok(shown)
    }

    fn listxattr(&self, _caller: &Caller, node: NodeId, names: &mut Vec<u8>) -> Result<()> {
        // Also where there are none: ENOSYS would become EOPNOTSUPP, of which tar warns at each file.
        for attribute in self.index.xattrs(known(node)?).map_err(damaged)? {
            names.extend_from_slice(attribute.map_err(damaged)?.0);
            names.push(0);
        }
        Ok(())
    }

    fn readdir(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
        self.list(dir, cookie, |name, node, kind| Ok(sink.add(name, NodeId(node.ino()), kind.mode_bits())))
    }

    fn readdirplus(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn EntrySink) -> Result<()> {
        self.list(dir, cookie, |name, node, _kind| Ok(sink.add(name, &self.entry(node)?)))
    }
}
