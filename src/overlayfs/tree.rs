//! The merged tree in memory: upper nodes over the chain, changed only by records.
//!
//! [`Tree::apply`] is the one way to change it, for an operation that was just logged as for replay, so that replay of a
//! prefix of the log is the state after that prefix by construction. It checks what it needs not to panic on a damaged
//! log and answers [`Inconsistent`]; whether an operation is *allowed* is decided before its record is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use index::Node as LowerNode;
use nix::errno::Errno;

use crate::acl::{self, Acl};
use crate::attr::{Attr, ROOT, Result, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Time, UPPER_BASE};
use crate::lower::{Lower, damaged};
use crate::node::{Body, Data, Directory, Node, Xattrs};
use crate::record::{Inode, Record};

/// The attribute that file capabilities live in.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Serials of directories are below: that many names nobody makes, and cookies and counts stay within 64 bits.
const SERIAL_MAX: u64 = 1 << 56;

/// A record that does not fit the tree: a damaged log that passed its checksum, or our own mistake.
#[derive(Debug)]
pub(crate) struct Inconsistent;

impl From<Errno> for Inconsistent {
    fn from(_: Errno) -> Self {
        Inconsistent
    }
}

type Applied<T> = std::result::Result<T, Inconsistent>;

/// The whole tree. Protected by the overlay's lock.
pub(crate) struct Tree {
    pub lower: Arc<Lower>,
    pub nodes: HashMap<u64, Node>,
    /// The number of the next new inode.
    pub next_ino: u64,
}

/// The merged view of one directory.
pub(crate) struct DirView<'a> {
    pub over: Option<&'a Directory>,
    pub lower: Option<LowerNode>,
    pub parent: u64,
}

impl Tree {
    pub(crate) fn new(lower: Arc<Lower>) -> Self {
        Tree { lower, nodes: HashMap::new(), next_ino: UPPER_BASE }
    }

    pub(crate) fn attr(&self, ino: u64) -> Result<Attr> {
        match self.nodes.get(&ino) {
            Some(node) => Ok(node.attr(ino)),
            None => self.lower.attr(self.lower.node(ino).ok_or(Errno::ENOENT)?),
        }
    }

    pub(crate) fn dir(&self, ino: u64) -> Result<DirView<'_>> {
        if let Some(node) = self.nodes.get(&ino) {
            let dir = node.dir().ok_or(Errno::ENOTDIR)?;
            return Ok(DirView { over: Some(dir), lower: dir.lower.map(LowerNode), parent: dir.parent });
        }
        let lower = self.lower.node(ino).ok_or(Errno::ENOENT)?;
        Ok(DirView { over: None, lower: Some(lower), parent: self.lower.parent(lower)? })
    }

    pub(crate) fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        let view = self.dir(dir)?;
        if let Some(slot) = view.over.and_then(|over| over.slot(name)) {
            return Ok(slot.child);
        }
        let Some(lower) = view.lower else { return Ok(None) };
        Ok(self.lower.lookup(lower, name)?.map(LowerNode::ino))
    }

    /// Number of names that a directory shows.
    pub(crate) fn visible(&self, dir: u64) -> Result<u32> {
        let view = self.dir(dir)?;
        let lower = view.lower.map_or(Ok(0), |lower| self.lower.names(lower))?;
        Ok(view.over.map_or(lower, |over| over.visible(lower)))
    }

    /// No tree has more directories than this: whoever has seen more of them walks in a circle, which only a damaged log
    /// can have made.
    pub(crate) fn directories_max(&self) -> usize {
        self.nodes.len() + self.lower.index().inode_count() as usize
    }

    /// Whether `dir` is `ancestor` or below it.
    pub(crate) fn is_below(&self, mut dir: u64, ancestor: u64) -> Result<bool> {
        for _ in 0..=self.directories_max() {
            if dir == ancestor {
                return Ok(true);
            }
            if dir == ROOT {
                return Ok(false);
            }
            dir = self.dir(dir)?.parent;
        }
        Err(Errno::ELOOP)
    }

    /// Where a file's contents are; `EINVAL` for anything but a regular file.
    pub(crate) fn data(&self, ino: u64) -> Result<Data> {
        match self.nodes.get(&ino) {
            Some(Node { body: Body::File(data), .. }) => Ok(*data),
            Some(node) if node.is_dir() => Err(Errno::EISDIR),
            Some(_) => Err(Errno::EINVAL),
            None => match self.attr(ino)?.mode & S_IFMT {
                S_IFREG => Ok(Data::Lower),
                S_IFDIR => Err(Errno::EISDIR),
                _ => Err(Errno::EINVAL),
            },
        }
    }

    /// The value of an extended attribute.
    pub(crate) fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<&[u8]>> {
        match self.nodes.get(&ino) {
            Some(Node { xattrs: Some(own), .. }) => Ok(own.get(name).map(|value| &value[..])),
            Some(_) if ino >= UPPER_BASE => Ok(None),
            _ => self.lower.xattr(self.lower.node(ino).ok_or(Errno::ENOENT)?, name),
        }
    }

    /// All extended attributes.
    pub(crate) fn xattrs(&self, ino: u64) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        match self.nodes.get(&ino).map(|node| &node.xattrs) {
            Some(Some(own)) => Ok(own.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()),
            Some(None) if ino >= UPPER_BASE => Ok(BTreeMap::new()),
            _ => self.lower.xattrs(self.lower.node(ino).ok_or(Errno::ENOENT)?),
        }
    }

    /// The node of an inode that is about to change, made from the lower one at its first change.
    pub(crate) fn node_mut(&mut self, ino: u64) -> Result<&mut Node> {
        if !self.nodes.contains_key(&ino) {
            let node = self.lower_node(ino)?;
            self.nodes.insert(ino, node);
        }
        self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn lower_node(&self, ino: u64) -> Result<Node> {
        let lower = self.lower.node(ino).ok_or(Errno::ENOENT)?;
        let attr = self.lower.attr(lower)?;
        let body = match attr.mode & S_IFMT {
            S_IFREG => Body::File(Data::Lower),
            S_IFDIR => Body::Directory(Box::new(Directory::new(Some(lower.0), self.lower.parent(lower)?))),
            S_IFLNK => {
                let target = self.lower.index().symlink_target(lower).map_err(damaged)?;
                Body::Link(target.unwrap_or_default().into())
            }
            _ => Body::Special,
        };
        Ok(Node {
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            rdev: attr.rdev,
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            xattrs: None,
            body,
            lookups: AtomicU64::new(0),
        })
    }

    /// The attributes of an inode as a map of its own.
    pub(crate) fn xattrs_mut(&mut self, ino: u64) -> Result<&mut Xattrs> {
        if self.node_mut(ino)?.xattrs.is_none() {
            let mut copy = Xattrs::new();
            if let Some(lower) = self.lower.node(ino) {
                for attribute in self.lower.index().xattrs(lower).map_err(damaged)? {
                    let (name, value) = attribute.map_err(damaged)?;
                    copy.insert(name.into(), value.into());
                }
            }
            self.node_mut(ino)?.xattrs = Some(copy);
        }
        self.node_mut(ino)?.xattrs.as_mut().ok_or(Errno::EIO)
    }

    fn lower_has(&self, dir: u64, name: &[u8]) -> Result<bool> {
        match self.dir(dir)?.lower {
            Some(lower) => Ok(self.lower.lookup(lower, name)?.is_some()),
            None => Ok(false),
        }
    }

    fn dir_mut(&mut self, ino: u64) -> Applied<&mut Directory> {
        self.node_mut(ino)?.dir_mut().ok_or(Inconsistent)
    }

    fn put(&mut self, dir: u64, name: &[u8], child: u64) -> Applied<()> {
        let shadows = self.lower_has(dir, name)?;
        self.dir_mut(dir)?.insert(name, child, shadows);
        Ok(())
    }

    fn take(&mut self, dir: u64, name: &[u8]) -> Applied<()> {
        let shadows = self.lower_has(dir, name)?;
        self.dir_mut(dir)?.remove(name, shadows);
        Ok(())
    }

    /// Stamps a directory whose names changed, and counts subdirectories that came or went.
    fn changed(&mut self, dir: u64, at: Time, subdirs: i32) -> Applied<()> {
        let node = self.node_mut(dir)?;
        node.mtime = at;
        node.ctime = at;
        node.nlink = node.nlink.saturating_add_signed(subdirs);
        Ok(())
    }

    /// Takes one name from an inode. Returns its number when that was the last.
    fn dropped(&mut self, ino: u64, at: Time) -> Applied<Option<u64>> {
        let node = self.node_mut(ino)?;
        node.ctime = at;
        node.nlink = if node.is_dir() { 0 } else { node.nlink.saturating_sub(1) };
        Ok((node.nlink == 0).then_some(ino))
    }

    /// Applies one record. Returns the inode that lost its last name by it, if one did.
    pub(crate) fn apply(&mut self, record: &Record) -> Applied<Option<u64>> {
        match record {
            Record::Begin { next_ino, .. } => self.next_ino = self.next_ino.max(*next_ino),
            Record::Done { .. } => {}
            Record::Create { parent, name, ino, at, .. } => {
                let mut node = created(record, *parent).ok_or(Inconsistent)?;
                node.xattrs = self.inherited(*parent, &node)?;
                if name.is_empty() {
                    node.nlink = if node.is_dir() { return Err(Inconsistent) } else { 0 };
                } else {
                    self.changed(*parent, *at, i32::from(node.is_dir()))?;
                    self.put(*parent, name, *ino)?;
                }
                self.add(*ino, node)?;
            }
            Record::Link { ino, parent, name, at } => {
                let node = self.node_mut(*ino)?;
                // A directory has one name, else the tree could be none.
                node.nlink = node.nlink.checked_add(1).filter(|_| !node.is_dir()).ok_or(Inconsistent)?;
                node.ctime = *at;
                self.put(*parent, name, *ino)?;
                self.changed(*parent, *at, 0)?;
            }
            Record::Unlink { parent, name, at } => {
                let ino = self.lookup(*parent, name)?.ok_or(Inconsistent)?;
                let is_dir = self.node_mut(ino)?.is_dir();
                self.take(*parent, name)?;
                self.changed(*parent, *at, -i32::from(is_dir))?;
                return self.dropped(ino, *at);
            }
            Record::Rename { .. } => return self.rename(record),
            Record::Attributes { ino, mode, uid, gid, atime, mtime, ctime, drop_caps } => {
                self.set_mode(*ino, *mode)?;
                let node = self.node_mut(*ino)?;
                (node.uid, node.gid) = (*uid, *gid);
                (node.atime, node.mtime, node.ctime) = (*atime, *mtime, *ctime);
                if *drop_caps {
                    self.xattrs_mut(*ino)?.remove(CAPABILITY);
                }
            }
            Record::Xattr { ino, name, value, at } => {
                let mut value = value.as_deref();
                if name == acl::ACCESS
                    && let Some(mut acl) = value.and_then(Acl::parse)
                {
                    let node = self.node_mut(*ino)?;
                    node.mode = acl.mode(node.mode);
                    value = value.filter(|_| acl.says_more());
                }
                let xattrs = self.xattrs_mut(*ino)?;
                match value {
                    Some(value) => xattrs.insert(name.as_slice().into(), value.into()),
                    None => xattrs.remove(name.as_slice()),
                };
                self.node_mut(*ino)?.ctime = *at;
            }
            Record::Data { ino } => self.set_data(*ino, Data::Upper)?,
            Record::Emptied { ino, at } => {
                self.set_data(*ino, Data::Empty)?;
                let node = self.node_mut(*ino)?;
                (node.size, node.blocks, node.mtime, node.ctime) = (0, 0, *at, *at);
            }
            Record::Inode(inode) => self.restore(inode)?,
            Record::Slot { serial, .. } if *serial >= SERIAL_MAX => return Err(Inconsistent),
            Record::Slot { dir, name, ino, serial } => {
                let shadows = self.lower_has(*dir, name)?;
                self.dir_mut(*dir)?.place(name, (*ino != 0).then_some(*ino), *serial, shadows);
            }
        }
        Ok(None)
    }

    /// The attributes that something new gets from the default ACL of its directory.
    fn inherited(&self, parent: u64, node: &Node) -> Applied<Option<Xattrs>> {
        let default = if matches!(node.body, Body::Link(_)) { None } else { self.xattr(parent, acl::DEFAULT)? };
        let Some((default, acl)) = default.and_then(|value| Some((value, Acl::parse(value)?))) else { return Ok(None) };
        let mut xattrs = Xattrs::new();
        let (acl, _) = acl.inherit(node.mode);
        if acl.says_more() {
            xattrs.insert(acl::ACCESS.into(), acl.bytes());
        }
        if node.is_dir() {
            xattrs.insert(acl::DEFAULT.into(), default.into());
        }
        Ok(Some(xattrs))
    }

    /// Sets the permission bits, and those of an access ACL with them.
    fn set_mode(&mut self, ino: u64, mode: u32) -> Applied<()> {
        let node = self.node_mut(ino)?;
        let old = node.mode;
        node.mode = old & S_IFMT | mode & !S_IFMT;
        if old & !S_IFMT != mode & !S_IFMT
            && let Some(mut acl) = self.xattr(ino, acl::ACCESS)?.and_then(Acl::parse)
        {
            acl.follow(mode);
            self.xattrs_mut(ino)?.insert(acl::ACCESS.into(), acl.bytes());
        }
        Ok(())
    }

    fn set_data(&mut self, ino: u64, data: Data) -> Applied<()> {
        match &mut self.node_mut(ino)?.body {
            Body::File(place) => *place = data,
            _ => return Err(Inconsistent),
        }
        Ok(())
    }

    /// Adds a new inode with the next number or a later one.
    fn add(&mut self, ino: u64, node: Node) -> Applied<()> {
        if ino < self.next_ino {
            return Err(Inconsistent);
        }
        self.next_ino = ino.checked_add(1).ok_or(Inconsistent)?;
        self.nodes.insert(ino, node);
        Ok(())
    }

    fn rename(&mut self, record: &Record) -> Applied<Option<u64>> {
        let Record::Rename { parent, name, to, to_name, exchange, whiteout, at } = record else {
            return Err(Inconsistent);
        };
        let moved = self.lookup(*parent, name)?.ok_or(Inconsistent)?;
        let target = self.lookup(*to, to_name)?;
        let moved_dirs = i32::from(self.node_mut(moved)?.is_dir());
        let target_dirs = target.map_or(Ok(0), |ino| self.node_mut(ino).map(|node| i32::from(node.is_dir())))?;
        self.put(*to, to_name, moved)?;
        self.moved(moved, *to, *at)?;
        let mut orphan = None;
        match target {
            Some(other) if *exchange => {
                self.put(*parent, name, other)?;
                self.moved(other, *parent, *at)?;
                self.changed(*parent, *at, target_dirs - moved_dirs)?;
            }
            Some(other) => {
                self.take(*parent, name)?;
                self.changed(*parent, *at, -moved_dirs)?;
                orphan = self.dropped(other, *at)?;
            }
            None => {
                self.take(*parent, name)?;
                self.changed(*parent, *at, -moved_dirs)?;
            }
        }
        self.changed(*to, *at, moved_dirs - target_dirs)?;
        if *whiteout != 0 {
            self.put(*parent, name, *whiteout)?;
            self.add(*whiteout, new_node(S_IFCHR, 0, 0, 0, *at, Body::Special))?;
        }
        Ok(orphan)
    }

    fn moved(&mut self, ino: u64, parent: u64, at: Time) -> Applied<()> {
        let node = self.node_mut(ino)?;
        node.ctime = at;
        if let Some(dir) = node.dir_mut() {
            dir.parent = parent;
        }
        Ok(())
    }

    fn restore(&mut self, inode: &Inode) -> Applied<()> {
        let body = match inode.mode & S_IFMT {
            S_IFREG => Body::File(match inode.data {
                0 => Data::Empty,
                1 if inode.ino < UPPER_BASE => Data::Lower,
                2 => Data::Upper,
                _ => return Err(Inconsistent),
            }),
            S_IFDIR => {
                let lower = self.lower.node(inode.ino).map(|node| node.0);
                let mut dir = Directory::new(lower, inode.parent);
                dir.next_serial = Some(inode.next_serial).filter(|serial| *serial < SERIAL_MAX).ok_or(Inconsistent)?;
                Body::Directory(Box::new(dir))
            }
            S_IFLNK => Body::Link(inode.target.as_slice().into()),
            _ => Body::Special,
        };
        let mut node = new_node(inode.mode, inode.uid, inode.gid, inode.rdev, inode.mtime, body);
        (node.nlink, node.atime, node.ctime) = (inode.nlink, inode.atime, inode.ctime);
        node.size = match &node.body {
            Body::File(Data::Lower) => self.lower.attr(self.lower.node(inode.ino).ok_or(Inconsistent)?)?.size,
            Body::Link(target) => target.len() as u64,
            _ => 0,
        };
        node.blocks = node.size.div_ceil(512);
        let own = inode.xattrs.as_ref();
        node.xattrs = own.map(|own| own.iter().map(|(name, value)| (name[..].into(), value[..].into())).collect());
        if inode.ino < UPPER_BASE && self.lower.node(inode.ino).is_none() {
            return Err(Inconsistent);
        }
        self.nodes.insert(inode.ino, node);
        Ok(())
    }
}

/// The node that a `Create` record makes.
fn created(record: &Record, parent_ino: u64) -> Option<Node> {
    let Record::Create { mode, uid, gid, rdev, target, at, .. } = record else { return None };
    let body = match mode & S_IFMT {
        S_IFREG => Body::File(Data::Empty),
        S_IFDIR => Body::Directory(Box::new(Directory::new(None, parent_ino))),
        S_IFLNK => Body::Link(target.as_slice().into()),
        _ => Body::Special,
    };
    let mut node = new_node(*mode, *uid, *gid, *rdev, *at, body);
    node.size = target.len() as u64;
    Some(node)
}

fn new_node(mode: u32, uid: u32, gid: u32, rdev: u32, at: Time, body: Body) -> Node {
    Node {
        mode,
        uid,
        gid,
        nlink: if mode & S_IFMT == S_IFDIR { 2 } else { 1 },
        rdev,
        size: 0,
        blocks: 0,
        atime: at,
        mtime: at,
        ctime: at,
        xattrs: None,
        body,
        lookups: AtomicU64::new(0),
    }
}
