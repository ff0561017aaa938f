//! Stacking layers: one tree out of many, with nothing left of how they were cut.
//!
//! Each layer is applied to the tree of those below it in three steps. First everything it hides goes: whiteouts and
//! opaque directories concern lower layers only, so they cannot touch what the layer itself brings, wherever they stood
//! in the archive. Then its entries are put in place. Hard links to paths outside the layer come last; their targets
//! were looked up before the first step as well, because a layer that moves a file may hide the old name.
//!
//! A directory that a layer only implies (`lib/x` without an entry `lib`) is whatever lower layers have there, also a
//! symlink to a directory (`lib -> usr/lib`), which is followed inside the tree. A directory with an entry of its own
//! replaces a symlink. Implied directories behind a symlink are filled after all others, so that the links they go
//! through are those of the finished layer.
//!
//! At the end come the places that every container needs and an image may lack ([`Place`]).

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Seek, Write};

use base::{Explain, Kind as ErrorKind};
use oci::{ChainId, DiffId};

use crate::error::Damaged;
use crate::name::Name;
use crate::read::{Content, Dirent, Index, Inode, Kind, Node};
use crate::tree::{self, Attributes, Body, FileContent, Id, ROOT, Tree, TreeError, TreeNode};
use crate::write::{WriteError, write};

/// Why layers cannot be stacked.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There are none.
    #[error("a chain needs at least one layer")]
    NoLayers,
    /// One of them is the index of a chain.
    #[error("{id} is the index of a chain, not of a layer")]
    NotALayer {
        /// Its chain ID.
        id: ChainId,
    },
    /// A layer's index contradicts itself.
    #[error("the index of layer {layer} cannot be read")]
    Damaged {
        /// Which.
        layer: DiffId,
        /// Where.
        #[source]
        source: Damaged,
    },
    /// An entry finds no place in the layers below.
    #[error("layer {layer} does not fit on those below it: {name}: {reason}")]
    Place {
        /// Which.
        layer: DiffId,
        /// The last name of the entry.
        name: String,
        /// Why.
        reason: TreeError,
    },
    /// A hard link to a file that no layer has.
    #[error("layer {layer} has a hard link {name} to {target}, which does not exist")]
    MissingTarget {
        /// Which.
        layer: DiffId,
        /// The last name of the link.
        name: String,
        /// What it should be a name of.
        target: String,
    },
    /// The result is too large.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Explain for MergeError {
    fn kind(&self) -> ErrorKind {
        match self {
            MergeError::NoLayers | MergeError::Place { .. } | MergeError::MissingTarget { .. } => ErrorKind::Remote,
            MergeError::NotALayer { .. } => ErrorKind::Usage,
            MergeError::Damaged { source, .. } => source.kind(),
            MergeError::Write(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            MergeError::Damaged { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// What a chain gets where its layers have nothing of the name. It belongs to root and has the root directory's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An empty directory, mode 0755.
    Directory(&'static str),
    /// An empty file, mode 0644.
    File(&'static str),
    /// A symbolic link from the first path to the second.
    Symlink(&'static str, &'static str),
}

/// The bytes of the chain index that [`merge_to`] writes, of these layers alone.
pub fn merge(layers: &[&Index]) -> Result<Vec<u8>, MergeError> {
    let mut bytes = io::Cursor::new(Vec::new());
    merge_to(layers, &[], &mut bytes)?;
    Ok(bytes.into_inner())
}

/// Writes the chain index of these layers, lowest first, to the beginning of an empty file. Its id is their chain ID.
/// `places` are paths relative to the root, each directory before what is in it.
pub fn merge_to(layers: &[&Index], places: &[Place], to: impl Write + Seek) -> Result<(), MergeError> {
    let ids: Vec<DiffId> = layers.iter().map(|layer| DiffId(layer.id())).collect();
    let chain = ChainId::of(&ids).ok_or(MergeError::NoLayers)?;
    let mut tree = Tree::new(tree::TREE_BYTES_MAX);
    for layer in layers {
        if layer.is_chain() {
            return Err(MergeError::NotALayer { id: ChainId(layer.id()) });
        }
        let mut stacking = Stacking { tree: &mut tree, layer, shared: HashMap::new(), links: Vec::new() };
        stacking.apply().map_err(|stop| stop.of(DiffId(layer.id())))?;
        // Its names and contents alone are looked at again.
        layer.let_go();
    }
    for place in places {
        // A tree that has reached its limit does without; who needs the place makes it.
        let _ = add_place(&mut tree, *place);
    }
    Ok(write(&tree, chain.0, true, to)?)
}

/// Makes one place, unless something is there, or what should hold it is no directory of the tree's own.
fn add_place(tree: &mut Tree<'_>, place: Place) -> Result<(), TreeError> {
    let (path, permissions, body) = match place {
        Place::Directory(path) => (path, 0o755, None),
        Place::File(path) => (path, 0o644, Some(Body::Regular { size: 0, content: FileContent::Empty })),
        Place::Symlink(path, target) => (path, 0o777, Some(Body::Symlink(Cow::Borrowed(target.as_bytes())))),
    };
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut parent = ROOT;
    for name in parents.split_terminator('/') {
        match tree.child(parent, name.as_bytes()).filter(|child| tree.directory(*child).is_some()) {
            Some(child) => parent = child,
            None => return Ok(()),
        }
    }
    let name = name.as_bytes();
    if tree.child(parent, name).is_some() {
        return Ok(());
    }
    let mtime = tree.node(ROOT).attributes.mtime;
    let attributes = Attributes { permissions, uid: 0, gid: 0, mtime, xattrs: 0 };
    let name = Name::copy(name);
    match body {
        None => tree.add_directory(parent, name, attributes, false).map(|_| ()),
        Some(body) => {
            let made = tree.add(TreeNode { attributes, implied: false, body })?;
            tree.link(parent, name, made)
        }
    }
}

/// Why one layer stopped; the layer's name is added outside.
enum Stop {
    Damaged(Damaged),
    Place { name: String, reason: TreeError },
    MissingTarget { name: String, target: String },
}

impl From<Damaged> for Stop {
    fn from(damaged: Damaged) -> Self {
        Stop::Damaged(damaged)
    }
}

impl Stop {
    fn of(self, layer: DiffId) -> MergeError {
        match self {
            Stop::Damaged(source) => MergeError::Damaged { layer, source },
            Stop::Place { name, reason } => MergeError::Place { layer, name, reason },
            Stop::MissingTarget { name, target } => MergeError::MissingTarget { layer, name, target },
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One layer on its way into the tree.
struct Stacking<'t, 'a> {
    tree: &'t mut Tree<'a>,
    layer: &'a Index,
    /// Inodes of the layer with several names that are in the tree already.
    shared: HashMap<Node, Id>,
    /// Links by path, to be made last.
    links: Vec<Link<'a>>,
}

struct Link<'a> {
    directory: Id,
    name: &'a [u8],
    node: Node,
    target: Vec<&'a [u8]>,
}

/// A directory of the layer and its place in the tree.
type Pair = (Node, Id);

impl<'a> Stacking<'_, 'a> {
    fn apply(&mut self) -> Result<(), Stop> {
        let before = self.link_targets()?;
        self.hide()?;
        self.place()?;
        self.make_links(&before)
    }

    /// What the layer's links by path mean in the tree before the layer.
    fn link_targets(&mut self) -> Result<HashMap<Node, Id>, Stop> {
        let mut targets = HashMap::new();
        for node in (0..self.layer.inode_count()).map(Node) {
            if let Some(target) = self.layer.link_target(node)?
                && let Some(found) = self.file_at(&split(target), target)?
            {
                targets.insert(node, found);
            }
        }
        Ok(targets)
    }

    /// Takes away what the layer hides.
    fn hide(&mut self) -> Result<(), Stop> {
        let mut visits = Visits::new(self.layer);
        let mut open: Vec<Pair> = vec![(Node::ROOT, ROOT)];
        while let Some((from, to)) = open.pop() {
            visits.enter(from)?;
            if self.layer.inode(from)?.opaque {
                self.tree.directory_mut(to).children.clear();
            }
            for dirent in self.layer.dirents(from)?.iter() {
                let dirent = dirent?;
                if dirent.whiteout {
                    self.tree.directory_mut(to).children.remove(dirent.name);
                } else if dirent.kind == Kind::Directory
                    && let Some(below) = self.existing_directory(to, &dirent)?
                {
                    open.push((dirent.node, below));
                }
            }
        }
        Ok(())
    }

    /// The directory of the tree that a directory of the layer continues.
    fn existing_directory(&mut self, parent: Id, dirent: &Dirent<'a>) -> Result<Option<Id>, Stop> {
        let Some(child) = self.tree.child(parent, dirent.name) else { return Ok(None) };
        match self.tree.node(child).body {
            Body::Directory(_) => Ok(Some(child)),
            Body::Symlink(_) if self.layer.inode(dirent.node)?.implied => self.walk(parent, dirent.name, false),
            _ => Ok(None),
        }
    }

    /// Puts all entries but links by path in place.
    fn place(&mut self) -> Result<(), Stop> {
        let mut visits = Visits::new(self.layer);
        let mut open: Vec<Pair> = vec![(Node::ROOT, ROOT)];
        let mut behind_symlinks: Vec<(Id, Dirent<'a>)> = Vec::new();
        let root = self.layer.inode(Node::ROOT)?;
        self.describe(ROOT, Node::ROOT, &root)?;
        loop {
            while let Some((from, to)) = open.pop() {
                visits.enter(from)?;
                for dirent in self.layer.dirents(from)?.iter() {
                    let dirent = dirent?;
                    match dirent.kind {
                        Kind::Whiteout => {}
                        Kind::LinkByPath => self.remember_link(to, &dirent)?,
                        Kind::Directory => match self.place_directory(to, &dirent)? {
                            Some(directory) => open.push((dirent.node, directory)),
                            None => behind_symlinks.push((to, dirent)),
                        },
                        _ => self.place_file(to, &dirent)?,
                    }
                }
            }
            if behind_symlinks.is_empty() {
                return Ok(());
            }
            for (parent, dirent) in std::mem::take(&mut behind_symlinks) {
                let directory = self.walk(parent, dirent.name, true)?;
                open.push((dirent.node, directory.unwrap_or(ROOT)));
            }
        }
    }

    /// The directory in the tree, made when there is none; `None` when it is implied and a symlink is in its place.
    fn place_directory(&mut self, parent: Id, dirent: &Dirent<'a>) -> Result<Option<Id>, Stop> {
        let inode = self.layer.inode(dirent.node)?;
        if let Some(child) = self.tree.child(parent, dirent.name) {
            match self.tree.node(child).body {
                Body::Directory(_) => {
                    self.describe(child, dirent.node, &inode)?;
                    return Ok(Some(child));
                }
                Body::Symlink(_) if inode.implied => return Ok(None),
                _ => {}
            }
        }
        let attributes = if inode.implied { tree::IMPLIED } else { self.attributes(dirent.node, &inode)? };
        let made = self.tree.add_directory(parent, Name::Borrowed(dirent.name), attributes, inode.implied);
        made.map(Some).map_err(|reason| Stop::Place { name: text(dirent.name), reason })
    }

    /// Gives a directory of the tree the metadata of the layer, if it has any.
    fn describe(&mut self, directory: Id, node: Node, inode: &Inode) -> Result<(), Stop> {
        if !inode.implied {
            self.tree.node_mut(directory).attributes = self.attributes(node, inode)?;
        }
        Ok(())
    }

    fn place_file(&mut self, parent: Id, dirent: &Dirent<'a>) -> Result<(), Stop> {
        let id = match self.shared.get(&dirent.node) {
            Some(id) => *id,
            None => self.copy(dirent)?,
        };
        let linked = self.tree.link(parent, Name::Borrowed(dirent.name), id);
        linked.map_err(|reason| Stop::Place { name: text(dirent.name), reason })
    }

    /// Copies an inode of the layer that is no directory into the tree.
    fn copy(&mut self, dirent: &Dirent<'a>) -> Result<Id, Stop> {
        let node = dirent.node;
        let inode = self.layer.inode(node)?;
        let damaged = Damaged::new("inode", u64::from(node.0));
        let body = match inode.kind {
            Kind::Regular => Body::Regular { size: inode.size, content: self.content(node)? },
            Kind::Symlink => Body::Symlink(Cow::Borrowed(self.layer.symlink_target(node)?.ok_or(damaged)?)),
            Kind::CharDevice | Kind::BlockDevice => Body::Device(inode.kind, inode.rdev),
            Kind::Fifo => Body::Fifo,
            Kind::Socket => Body::Socket,
            Kind::Directory | Kind::LinkByPath | Kind::Whiteout => return Err(damaged.into()),
        };
        let attributes = self.attributes(node, &inode)?;
        let added = self.tree.add(TreeNode { attributes, implied: false, body });
        let id = added.map_err(|reason| Stop::Place { name: text(dirent.name), reason })?;
        if inode.nlink > 1 {
            self.shared.insert(node, id);
        }
        Ok(id)
    }

    fn content(&mut self, node: Node) -> Result<FileContent<'a>, Stop> {
        Ok(match self.layer.content(node)? {
            Content::Empty => FileContent::Empty,
            Content::Inline(bytes) => FileContent::Inline(Cow::Borrowed(bytes)),
            Content::Object { number, digest, offset } => {
                let (_, size) = self.layer.object(number)?;
                FileContent::Object { object: self.tree.objects.intern(digest, size), offset }
            }
        })
    }

    fn attributes(&mut self, node: Node, inode: &Inode) -> Result<Attributes, Stop> {
        let xattrs = match self.layer.xattrs(node)?.into_bytes()? {
            Some(set) => {
                let number = self.tree.xattrs(Cow::Borrowed(set));
                number.map_err(|reason| Stop::Place { name: "its attributes".to_owned(), reason })?
            }
            None => 0,
        };
        let Inode { permissions, uid, gid, mtime, .. } = *inode;
        Ok(Attributes { permissions, uid, gid, mtime, xattrs })
    }

    fn remember_link(&mut self, directory: Id, dirent: &Dirent<'a>) -> Result<(), Stop> {
        let damaged = Damaged::new("inode", u64::from(dirent.node.0));
        let target = split(self.layer.link_target(dirent.node)?.ok_or(damaged)?);
        self.links.push(Link { directory, name: dirent.name, node: dirent.node, target });
        Ok(())
    }

    /// Makes the links by path. One whose way ends where another one is to be made waits for it on a stack.
    fn make_links(&mut self, before: &HashMap<Node, Id>) -> Result<(), Stop> {
        let links = std::mem::take(&mut self.links);
        let at: HashMap<(Id, &[u8]), usize> =
            links.iter().enumerate().map(|(number, link)| ((link.directory, link.name), number)).collect();
        // Those that are made or wait.
        let mut begun = vec![false; links.len()];
        for start in 0..links.len() {
            let mut stack = if std::mem::replace(&mut begun[start], true) { Vec::new() } else { vec![start] };
            while let Some(link) = stack.last().map(|number| &links[*number]) {
                let place = |reason| Stop::Place { name: text(link.name), reason };
                let stop = self.tree.look(&link.target).map_err(place)?;
                let now = self.tree.child(stop.directory, &stop.name);
                let now = now.filter(|found| stop.last && self.tree.directory(*found).is_none());
                if let Some(file) = now.or_else(|| before.get(&link.node).copied()) {
                    self.tree.link(link.directory, Name::Borrowed(link.name), file).map_err(place)?;
                    stack.pop();
                } else if let Some(next) = at.get(&(stop.directory, &stop.name[..])).filter(|next| !begun[**next]) {
                    begun[*next] = true;
                    stack.push(*next);
                } else {
                    return Err(Stop::MissingTarget { name: text(link.name), target: tree::shown(&link.target) });
                }
            }
        }
        Ok(())
    }

    /// What is at a path, unless it is a directory.
    fn file_at(&mut self, names: &[&[u8]], entry: &[u8]) -> Result<Option<Id>, Stop> {
        let found = self.tree.find(names).map_err(|reason| Stop::Place { name: text(entry), reason })?;
        Ok(found.filter(|found| self.tree.directory(*found).is_none()))
    }

    fn walk(&mut self, parent: Id, name: &[u8], create: bool) -> Result<Option<Id>, Stop> {
        self.tree.walk(parent, &[name], create).map_err(|reason| Stop::Place { name: text(name), reason })
    }
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').collect()
}

/// Refuses a damaged index whose directories do not form a tree: walking it might never end.
struct Visits(Vec<bool>);

impl Visits {
    fn new(layer: &Index) -> Self {
        Visits(vec![false; layer.inode_count() as usize])
    }

    fn enter(&mut self, directory: Node) -> Result<(), Damaged> {
        let seen = self.0.get_mut(directory.0 as usize).filter(|seen| !**seen);
        *seen.ok_or(Damaged::new("directory", u64::from(directory.0)))? = true;
        Ok(())
    }
}
