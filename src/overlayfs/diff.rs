//! What differs from the chain: the answer to `diff`, by Docker's rules, and the work list of `commit`, which has all that
//! has a node of its own: not every change can be seen by looking at a file.
//!
//! Docker's rules (`ChangesDirs` of its archive package): a path is changed when its mode, owner, device number or
//! capability differ, or, unless it is a directory, its size or time of modification. A directory is in the answer too when
//! something in it is. Of a deleted directory only its own path is listed. Names are compared, not inodes: for `diff` a file
//! that was replaced by one that looks the same is no difference.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use index::path::PATH_MAX;
use index::{Content, Index, Kind, Node as LowerNode};
use nix::errno::Errno;

use crate::attr::{Attr, ROOT, Result, S_IFDIR, S_IFMT, Time};
use crate::error::OpenError;
use crate::lower::{Contents, Lower, damaged};
use crate::overlay::{Overlay, io, read_only};
use crate::tree::{CAPABILITY, Tree};

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Was in the chain and is not any more, with all below it.
    Deleted,
    /// Was not there.
    Added,
    /// Another file, or the same with other contents or attributes; a directory in which something differs.
    Changed,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From the root, with a leading slash.
    pub path: Vec<u8>,
    /// How it differs.
    pub change: Change,
    /// The inode to take contents and attributes from; 0 when deleted.
    pub ino: u64,
}

/// A directory that was or will be looked through.
struct Visited {
    /// Empty for the root.
    path: Vec<u8>,
    ino: u64,
    /// The directory of the chain at the same path.
    old: Option<LowerNode>,
    parent: usize,
    /// It is in the answer.
    listed: bool,
}

/// Says something of the path that it is given.
type OfPath<'a> = &'a dyn Fn(&[u8]) -> bool;

struct Walk<'a> {
    tree: &'a Tree,
    left_out: OfPath<'a>,
    /// For a layer: directories that count by their looks alone.
    layer: Option<OfPath<'a>>,
    dirs: Vec<Visited>,
    found: Vec<Difference>,
}

impl Overlay {
    /// Every path that differs from the chain, sorted, parents first; without those that `left_out` names, and what is
    /// below them. The tree stands still meanwhile.
    pub fn diff(&self, left_out: &dyn Fn(&[u8]) -> bool) -> Result<Vec<Difference>> {
        differences(&self.read().tree, left_out)
    }
}

/// As [`Overlay::diff`], read from the upper in `dir` without changing anything in it: it may be open elsewhere.
pub fn diff(
    dir: OwnedFd,
    chain: Arc<Index>,
    left_out: &dyn Fn(&[u8]) -> bool,
) -> std::result::Result<Vec<Difference>, OpenError> {
    struct Nothing;
    impl Contents for Nothing {
        fn open(&self, _index: &Index, _content: &Content<'_>) -> Result<Arc<File>> {
            Err(Errno::EIO)
        }
    }
    let lower = Arc::new(Lower::new(chain, Arc::new(Nothing)));
    io(differences(&read_only(dir, &lower)?, left_out), ".")
}

/// As [`Overlay::diff`], of a tree.
pub(crate) fn differences(tree: &Tree, left_out: &dyn Fn(&[u8]) -> bool) -> Result<Vec<Difference>> {
    listed(tree, left_out, None)
}

/// As [`crate::Reader::changed`], of a tree.
pub(crate) fn contents(tree: &Tree, left_out: OfPath<'_>, by_looks: OfPath<'_>) -> Result<Vec<Difference>> {
    listed(tree, left_out, Some(by_looks))
}

/// As [`crate::Reader::root_differs`], of a tree.
pub(crate) fn root_differs(tree: &Tree) -> Result<bool> {
    let old = tree.lower.node(ROOT).ok_or(Errno::ENOENT)?;
    Ok(!alike(tree, old, &tree.attr(ROOT)?)?)
}

/// Whether mode, owner and attributes are those of the chain.
fn alike(tree: &Tree, old: LowerNode, new: &Attr) -> Result<bool> {
    let was = tree.lower.attr(old)?;
    let looks = |attr: &Attr| (attr.mode, attr.uid, attr.gid);
    Ok(looks(&was) == looks(new) && tree.lower.xattrs(old)? == tree.xattrs(new.ino)?)
}

fn listed(tree: &Tree, left_out: OfPath<'_>, layer: Option<OfPath<'_>>) -> Result<Vec<Difference>> {
    let root = Visited { path: Vec::new(), ino: ROOT, old: tree.lower.node(ROOT), parent: 0, listed: true };
    let mut walk = Walk { tree, left_out, layer, dirs: vec![root], found: Vec::new() };
    let mut at = 0;
    while at < walk.dirs.len() {
        walk.directory(at)?;
        at += 1;
        if walk.dirs.len() > tree.directories_max() {
            return Err(Errno::ELOOP);
        }
    }
    walk.found.sort_by(|a, b| (&a.path, a.change).cmp(&(&b.path, b.change)));
    Ok(walk.found)
}

impl Walk<'_> {
    fn directory(&mut self, at: usize) -> Result<()> {
        let tree = self.tree;
        let Visited { ino, old, .. } = self.dirs[at];
        let view = tree.dir(ino)?;
        if let Some(lower) = view.lower {
            for entry in tree.lower.index().dirents(lower).map_err(damaged)?.iter() {
                let entry = entry.map_err(damaged)?;
                let child = match view.over.and_then(|over| over.slot(entry.name)) {
                    None => Some(entry.node.ino()),
                    Some(slot) => slot.child,
                };
                if let Some(child) = child {
                    self.name(at, entry.name, child)?;
                }
            }
        }
        for (_, name, child) in view.over.into_iter().flat_map(|over| over.children_from(0)) {
            let seen = view.over.and_then(|over| over.slot(name)).is_some_and(|slot| slot.shadows);
            if !seen {
                self.name(at, name, child)?;
            }
        }
        // Where the directory is still the chain's own and no name of it changed, all are there.
        if let Some(old) = old.filter(|_| view.over.is_some() || view.lower != old) {
            for entry in tree.lower.index().dirents(old).map_err(damaged)?.iter() {
                let entry = entry.map_err(damaged)?;
                if tree.lookup(ino, entry.name)?.is_none() {
                    self.list(at, entry.name, Change::Deleted, 0);
                }
            }
        }
        Ok(())
    }

    /// A name that there is now. What no path leads to is not in a list, as all paths of a deep tree together would have no
    /// bound, and cannot be in a layer.
    fn name(&mut self, at: usize, name: &[u8], child: u64) -> Result<()> {
        if self.dirs[at].path.len() + name.len() >= PATH_MAX {
            return if self.layer.is_some() { Err(Errno::ENAMETOOLONG) } else { Ok(()) };
        }
        let old = match self.dirs[at].old {
            Some(dir) => self.tree.lower.index().lookup(dir, name).map_err(damaged)?,
            None => None,
        };
        let attr = self.tree.attr(child)?;
        let change = match &old {
            None => Some(Change::Added),
            Some(old) => self.differs(&self.path(at, name), old.node, &attr)?.then_some(Change::Changed),
        };
        let listed = change.is_some_and(|change| self.list(at, name, change, child));
        let path = self.path(at, name);
        if attr.mode & S_IFMT == S_IFDIR && !(self.left_out)(&path) {
            let old = old.filter(|old| old.kind == Kind::Directory).map(|old| old.node);
            self.dirs.push(Visited { path, ino: child, old, parent: at, listed });
        }
        Ok(())
    }

    fn differs(&self, path: &[u8], old: LowerNode, new: &Attr) -> Result<bool> {
        if old.ino() == new.ino && !self.tree.nodes.contains_key(&new.ino) {
            return Ok(false);
        }
        if let Some(by_looks) = self.layer {
            return Ok(!by_looks(path) || !alike(self.tree, old, new)?);
        }
        let lower = &self.tree.lower;
        let was = lower.attr(old)?;
        let looks = |attr: &Attr| (attr.mode, attr.uid, attr.gid, attr.rdev);
        let directory = new.mode & S_IFMT == S_IFDIR;
        Ok(looks(&was) != looks(new)
            || lower.xattr(old, CAPABILITY)? != self.tree.xattr(new.ino, CAPABILITY)?
            || !directory && (was.size != new.size || !same_time(was.mtime, new.mtime)))
    }

    fn path(&self, at: usize, name: &[u8]) -> Vec<u8> {
        [&self.dirs[at].path, &b"/"[..], name].concat()
    }

    /// Lists a name and the directories that it is in, unless it is left out.
    fn list(&mut self, at: usize, name: &[u8], change: Change, ino: u64) -> bool {
        let path = self.path(at, name);
        if (self.left_out)(&path) {
            return false;
        }
        let mut above = at;
        while !self.dirs[above].listed {
            let dir = &mut self.dirs[above];
            dir.listed = true;
            self.found.push(Difference { path: dir.path.clone(), change: Change::Changed, ino: dir.ino });
            above = dir.parent;
        }
        self.found.push(Difference { path, change, ino });
        true
    }
}

/// A file system without nanoseconds shows none.
fn same_time(a: Time, b: Time) -> bool {
    a.seconds == b.seconds && (a.nanos == b.nanos || a.nanos == 0 || b.nanos == 0)
}
