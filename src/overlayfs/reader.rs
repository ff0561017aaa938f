//! Reading an upper without changing anything in it, beside its server or without one: what `commit` and `diff` need.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use index::Index;
use nix::errno::Errno;

use crate::attr::{Attr, Result};
use crate::diff::{Difference, contents, root_differs};
use crate::error::OpenError;
use crate::files::Files;
use crate::lower::{Contents, Lower, Source, damaged};
use crate::node::{Body, Data};
use crate::overlay::{io, read_only};
use crate::tree::Tree;

/// The merged tree as it was when the log was read. Contents are those of the moment they are read in.
pub struct Reader {
    tree: Tree,
    files: Files,
    lower: Arc<Lower>,
}

/// Where the bytes of a regular file are; how many there are says [`Attr::size`].
pub enum ReadData<'a> {
    /// Here; of a file without content there are none.
    Memory(&'a [u8]),
    /// In a file, from an offset on.
    File(Arc<File>, u64),
}

impl Reader {
    /// Reads the upper in `dir`, which may be open elsewhere.
    pub fn open(dir: OwnedFd, chain: Arc<Index>, contents: Arc<dyn Contents>) -> std::result::Result<Self, OpenError> {
        let again = io(dir.try_clone().map_err(|error| crate::overlay::errno_of(&error)), ".")?;
        let lower = Arc::new(Lower::new(chain, contents));
        Ok(Reader { tree: read_only(again, &lower)?, files: Files::new(dir), lower })
    }

    /// Every path with a node of its own but the root, sorted, parents first; without those that `left_out` names, and what
    /// is below them. A directory that `by_looks` names is in it when something in it is, or when more than its time is
    /// another one.
    pub fn changed(
        &self,
        left_out: &dyn Fn(&[u8]) -> bool,
        by_looks: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<Difference>> {
        contents(&self.tree, left_out, by_looks)
    }

    /// Whether mode, owner or attributes of the root are not the chain's.
    pub fn root_differs(&self) -> Result<bool> {
        root_differs(&self.tree)
    }

    /// What `stat(2)` would show, with owners as they are recorded.
    pub fn attr(&self, ino: u64) -> Result<Attr> {
        self.tree.attr(ino)
    }

    /// All extended attributes.
    pub fn xattrs(&self, ino: u64) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        self.tree.xattrs(ino)
    }

    /// The target of a symbolic link.
    pub fn target(&self, ino: u64) -> Result<&[u8]> {
        match self.tree.nodes.get(&ino).map(|node| &node.body) {
            Some(Body::Link(target)) => Ok(target),
            Some(_) => Err(Errno::EINVAL),
            None => {
                let lower = self.lower.node(ino).ok_or(Errno::ENOENT)?;
                self.lower.index().symlink_target(lower).map_err(damaged)?.ok_or(Errno::EINVAL)
            }
        }
    }

    /// The content of a regular file.
    pub fn data(&self, ino: u64) -> Result<ReadData<'_>> {
        match self.tree.data(ino)? {
            Data::Empty => Ok(ReadData::Memory(&[])),
            Data::Upper => Ok(ReadData::File(self.files.get(ino)?, 0)),
            Data::Lower => match self.lower.source(self.lower.node(ino).ok_or(Errno::ENOENT)?)? {
                Source::Memory(bytes) => Ok(ReadData::Memory(bytes)),
                Source::File { file, offset } => Ok(ReadData::File(file, offset)),
            },
        }
    }
}
