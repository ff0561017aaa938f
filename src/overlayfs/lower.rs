//! The read-only chain below: the index for everything but contents, and the caller's descriptors for those.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use index::{Content, Damaged, Index, Kind, Node as LowerNode};
use nix::errno::Errno;

use crate::attr::{Attr, Result, Time, UPPER_BASE, encode_dev};

/// Opens what the index names outside itself. Called often and from several threads: it caches its descriptors.
pub trait Contents: Send + Sync + 'static {
    /// The file that holds this content ([`Content::Object`], from its first byte), open for reading.
    fn open(&self, index: &Index, content: &Content<'_>) -> Result<Arc<File>>;
}

/// Where the bytes of a lower file are.
pub(crate) enum Source<'a> {
    /// In memory; empty files too.
    Memory(&'a [u8]),
    /// In a file from `offset` on.
    File { file: Arc<File>, offset: u64 },
}

/// The chain and its contents. Never changes.
pub(crate) struct Lower {
    index: Arc<Index>,
    contents: Arc<dyn Contents>,
}

/// A damaged index is an I/O error to whoever asks; `store check` is where it is explained.
pub(crate) fn damaged(_damage: Damaged) -> Errno {
    Errno::EIO
}

fn time(at: index::Time) -> Time {
    Time { seconds: at.seconds, nanos: at.nanoseconds }
}

impl Lower {
    pub(crate) fn new(index: Arc<Index>, contents: Arc<dyn Contents>) -> Self {
        Lower { index, contents }
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// The index inode with this number; `None` for numbers of the upper and numbers nobody has.
    pub(crate) fn node(&self, ino: u64) -> Option<LowerNode> {
        if ino >= UPPER_BASE {
            return None;
        }
        LowerNode::from_ino(ino).filter(|node| node.0 < self.index.inode_count())
    }

    pub(crate) fn attr(&self, node: LowerNode) -> Result<Attr> {
        let inode = self.index.inode(node).map_err(damaged)?;
        let at = time(inode.mtime);
        let rdev = encode_dev(inode.rdev.major, inode.rdev.minor);
        Ok(Attr {
            ino: node.ino(),
            mode: inode.mode(),
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev,
            size: inode.size,
            blocks: if inode.kind == Kind::Regular { inode.size.div_ceil(512) } else { 0 },
            atime: at,
            mtime: at,
            ctime: at,
        })
    }

    pub(crate) fn lookup(&self, dir: LowerNode, name: &[u8]) -> Result<Option<LowerNode>> {
        Ok(self.index.lookup(dir, name).map_err(damaged)?.map(|entry| entry.node))
    }

    /// Number of names in a directory.
    pub(crate) fn names(&self, dir: LowerNode) -> Result<u32> {
        Ok(self.index.dirents(dir).map_err(damaged)?.len())
    }

    pub(crate) fn parent(&self, dir: LowerNode) -> Result<u64> {
        self.index.parent(dir).map_err(damaged)?.map(LowerNode::ino).ok_or(Errno::ENOTDIR)
    }

    pub(crate) fn source(&self, node: LowerNode) -> Result<Source<'_>> {
        let content = self.index.content(node).map_err(damaged)?;
        Ok(match content {
            Content::Empty => Source::Memory(&[]),
            Content::Inline(bytes) => Source::Memory(bytes),
            Content::Object { offset, .. } => Source::File { file: self.contents.open(&self.index, &content)?, offset },
        })
    }

    /// The value of an extended attribute.
    pub(crate) fn xattr(&self, node: LowerNode, name: &[u8]) -> Result<Option<&[u8]>> {
        self.index.xattrs(node).and_then(|xattrs| xattrs.get(name)).map_err(damaged)
    }

    /// All extended attributes.
    pub(crate) fn xattrs(&self, node: LowerNode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let pair = |attribute: std::result::Result<(&[u8], &[u8]), Damaged>| {
            attribute.map(|(name, value)| (name.to_vec(), value.to_vec())).map_err(damaged)
        };
        self.index.xattrs(node).map_err(damaged)?.map(pair).collect()
    }
}
