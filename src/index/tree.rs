//! The tree while it is being made: nodes on the heap, changed in place, written out by [`crate::write`].
//!
//! Both the builder of a layer and the merge of a chain work on it. A node is known by its place in one vector; a node
//! that lost its last name stays there unreachable and is simply not written. Names and contents are borrowed from the
//! maps of the layers where they come from one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use oci::Digest;

use crate::name::Name;
use crate::path::{self, NAME_MAX};
use crate::read::{DeviceNumber, Kind, Time};

/// The deepest directory, counted from the root.
pub const DEPTH_MAX: u32 = 1024;
/// How many symlinks one path may lead through, as in the kernel's path walk.
pub const LINKS_MAX: u32 = 40;

/// How many names of symlinks' targets all paths together may lead through. A path costs its archive a byte for each of its
/// own names, but a symlink on it costs nothing more, however often it is followed.
pub const STEPS_MAX: u32 = 1 << 24;
/// How much memory a tree may take, in bytes: 12 million files with short names, or fewer with more to say. Writing it out
/// takes about as much again.
pub const TREE_BYTES_MAX: u64 = 3 << 30;

/// What a node takes in memory, and what a name in a directory does beside its bytes: sizes of the types here and of the
/// nodes of a B-tree that is half full.
const NODE_BYTES: u64 = 128;
const NAME_BYTES: u64 = 96;
const DIRECTORY_BYTES: u64 = 512;

/// A node's place in the vector.
pub(crate) type Id = u32;
pub(crate) const ROOT: Id = 0;

/// Why the tree cannot take an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A path leads through more than [`LINKS_MAX`] symlinks, most often in a circle.
    #[error("its path leads through more than {LINKS_MAX} symbolic links")]
    TooManyLinks,
    /// Deeper than [`DEPTH_MAX`].
    #[error("it lies more than {DEPTH_MAX} directories deep")]
    TooDeep,
    /// A symlink on the path has a target with a name that is too long.
    #[error("its path leads through a symbolic link with a name of more than {NAME_MAX} bytes")]
    NameTooLong,
    /// More nodes than an index can number.
    #[error("there are more than 2^32 entries")]
    TooMany,
    /// More than [`STEPS_MAX`].
    #[error("the paths of all entries lead through more than {STEPS_MAX} names of symbolic links")]
    TooManySteps,
    /// More than [`TREE_BYTES_MAX`], or what the caller allows instead.
    #[error("the names, attributes and small files of all entries take more than {limit} bytes of memory")]
    TooLarge {
        /// How many bytes they may take.
        limit: u64,
    },
}

/// What every node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Number of a set in [`XattrSets`].
    pub xattrs: u32,
}

/// What a directory gets that is only known from the paths below it: the same in every run.
pub(crate) const IMPLIED: Attributes =
    Attributes { permissions: 0o755, uid: 0, gid: 0, mtime: Time { seconds: 0, nanoseconds: 0 }, xattrs: 0 };

pub(crate) struct TreeNode<'a> {
    pub attributes: Attributes,
    pub implied: bool,
    pub body: Body<'a>,
}

pub(crate) enum Body<'a> {
    /// There are few of them, and they would make every node larger.
    Directory(Box<Directory<'a>>),
    Regular {
        size: u64,
        content: FileContent<'a>,
    },
    Symlink(Cow<'a, [u8]>),
    Device(Kind, DeviceNumber),
    Fifo,
    Socket,
    LinkByPath(Cow<'a, [u8]>),
}

#[derive(Default)]
pub(crate) struct Directory<'a> {
    pub parent: Id,
    pub depth: u32,
    pub opaque: bool,
    pub children: BTreeMap<Name<'a>, Child>,
}

/// One name: what it is, what it hides, or both.
#[derive(Clone, Copy, Default)]
pub(crate) struct Child {
    pub node: Option<Id>,
    pub whiteout: bool,
}

pub(crate) enum FileContent<'a> {
    Empty,
    Inline(Cow<'a, [u8]>),
    /// At `offset` in the object of this number in [`Tree::objects`].
    Object {
        object: u32,
        offset: u64,
    },
    /// At `offset` in the pack of the layer being built, which has no name yet.
    Packed {
        offset: u64,
    },
}

impl Body<'_> {
    /// Memory that it takes beside the node.
    fn bytes(&self) -> u64 {
        match self {
            Body::Directory(_) => DIRECTORY_BYTES,
            Body::Symlink(text) | Body::LinkByPath(text) | Body::Regular { content: FileContent::Inline(text), .. } => {
                owned(text)
            }
            _ => 0,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Body::Directory(_) => Kind::Directory,
            Body::Regular { .. } => Kind::Regular,
            Body::Symlink(_) => Kind::Symlink,
            Body::Device(kind, _) => *kind,
            Body::Fifo => Kind::Fifo,
            Body::Socket => Kind::Socket,
            Body::LinkByPath(_) => Kind::LinkByPath,
        }
    }
}

pub(crate) struct Tree<'a> {
    pub nodes: Vec<TreeNode<'a>>,
    pub xattrs: XattrSets<'a>,
    pub objects: Objects,
    /// Nodes that others stand for by now; never one of them for another.
    pub aliases: HashMap<Id, Id>,
    /// Names of symlinks' targets that were followed.
    steps: u32,
    /// Memory that all of it takes, what is unreachable included.
    bytes: u64,
    bytes_max: u64,
}

/// Where the walk along a path came to its end.
pub(crate) struct Stop {
    pub directory: Id,
    pub name: Vec<u8>,
    /// Whether this is the last name of the path, and not one that should have been a directory's.
    pub last: bool,
}

/// Bytes of its own that a text takes.
#[allow(clippy::ptr_arg, reason = "what is borrowed takes none")]
fn owned(text: &Cow<'_, [u8]>) -> u64 {
    match text {
        Cow::Borrowed(_) => 0,
        Cow::Owned(bytes) => bytes.capacity() as u64,
    }
}

impl<'a> Tree<'a> {
    /// A root directory that nobody has described yet, of a tree that may take this much memory.
    pub fn new(bytes_max: u64) -> Self {
        let root = TreeNode { attributes: IMPLIED, implied: true, body: Body::Directory(Box::default()) };
        Tree {
            nodes: vec![root],
            xattrs: XattrSets::default(),
            objects: Objects::default(),
            aliases: HashMap::new(),
            steps: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Counts memory that is about to be taken.
    pub fn charge(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max { Err(TreeError::TooLarge { limit: self.bytes_max }) } else { Ok(()) }
    }

    pub fn node(&self, id: Id) -> &TreeNode<'a> {
        &self.nodes[id as usize]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut TreeNode<'a> {
        &mut self.nodes[id as usize]
    }

    pub fn directory(&self, id: Id) -> Option<&Directory<'a>> {
        match &self.node(id).body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The directory behind an id that is known to be one.
    pub fn directory_mut(&mut self, id: Id) -> &mut Directory<'a> {
        match &mut self.node_mut(id).body {
            Body::Directory(directory) => directory,
            _ => {
                unreachable!("ids of directories come from `walk` and `add_directory` alone, and a body never changes")
            }
        }
    }

    pub fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        let node = self.directory(directory)?.children.get(name)?.node?;
        Some(self.aliases.get(&node).copied().unwrap_or(node))
    }

    /// The number of a set of extended attributes.
    pub fn xattrs(&mut self, set: Cow<'a, [u8]>) -> Result<u32, TreeError> {
        if let Some(number) = self.xattrs.number(&set) {
            return Ok(number);
        }
        self.charge(NAME_BYTES + owned(&set))?;
        Ok(self.xattrs.add(set))
    }

    pub fn add(&mut self, node: TreeNode<'a>) -> Result<Id, TreeError> {
        let id = Id::try_from(self.nodes.len()).ok().filter(|id| *id < Id::MAX).ok_or(TreeError::TooMany)?;
        self.charge(NODE_BYTES + node.body.bytes())?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Puts a node under a name, in place of what was there; a whiteout beside it stays.
    pub fn link(&mut self, directory: Id, name: Name<'a>, node: Id) -> Result<(), TreeError> {
        self.name(directory, name)?.node = Some(node);
        Ok(())
    }

    /// A name in a directory, made when it is not there.
    pub fn name(&mut self, directory: Id, name: Name<'a>) -> Result<&mut Child, TreeError> {
        self.charge(NAME_BYTES + name.bytes())?;
        Ok(self.directory_mut(directory).children.entry(name).or_default())
    }

    /// Makes an empty directory in place of what was there.
    pub fn add_directory(
        &mut self,
        parent: Id,
        name: Name<'a>,
        attributes: Attributes,
        implied: bool,
    ) -> Result<Id, TreeError> {
        let depth = self.directory_mut(parent).depth + 1;
        if depth > DEPTH_MAX {
            return Err(TreeError::TooDeep);
        }
        let body = Body::Directory(Box::new(Directory { parent, depth, ..Directory::default() }));
        let id = self.add(TreeNode { attributes, implied, body })?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Follows names from a directory to a directory. Symlinks are followed as in a chroot: absolute targets start at
    /// the root of the tree and `..` stays in it. `create` makes directories of what is missing or is something else;
    /// without it both give `None`.
    pub fn walk(&mut self, from: Id, names: &[&[u8]], create: bool) -> Result<Option<Id>, TreeError> {
        Ok(self.walk_to(from, names, create)?.ok())
    }

    /// As [`Tree::walk`], with the place of the name that is missing or is something else.
    fn walk_to(&mut self, from: Id, names: &[&[u8]], create: bool) -> Result<Result<Id, Stop>, TreeError> {
        let mut rest: Vec<Cow<'_, [u8]>> = names.iter().rev().map(|name| Cow::Borrowed(*name)).collect();
        let mut here = from;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    here = self.directory_mut(here).parent;
                    continue;
                }
                _ if name.len() > NAME_MAX => return Err(TreeError::NameTooLong),
                _ => {}
            }
            let child = self.child(here, &name);
            match child.map(|child| &self.node(child).body) {
                Some(Body::Directory(_)) => here = child.unwrap_or(here),
                Some(Body::Symlink(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(TreeError::TooManyLinks);
                    }
                    if target.first() == Some(&b'/') {
                        here = ROOT;
                    }
                    let before = rest.len();
                    rest.extend(target.split(|byte| *byte == b'/').rev().map(|name| Cow::Owned(name.to_vec())));
                    self.steps += (rest.len() - before) as u32;
                    if self.steps > STEPS_MAX {
                        return Err(TreeError::TooManySteps);
                    }
                }
                _ if create => here = self.add_directory(here, Name::copy(&name), IMPLIED, true)?,
                _ => return Ok(Err(Stop { directory: here, name: name.into_owned(), last: false })),
            }
        }
        Ok(Ok(here))
    }

    /// Where a path leads without following a symlink in its last name, or where it cannot be followed any more.
    pub fn look(&mut self, names: &[&[u8]]) -> Result<Stop, TreeError> {
        let (last, parents) = names.split_last().map_or((&b""[..], names), |(last, parents)| (*last, parents));
        Ok(match self.walk_to(ROOT, parents, false)? {
            Ok(directory) => Stop { directory, name: last.to_vec(), last: true },
            Err(stop) => stop,
        })
    }

    /// The node of a path, without following a symlink in its last name; `None` for the root and for what is missing.
    pub fn find(&mut self, names: &[&[u8]]) -> Result<Option<Id>, TreeError> {
        let Some((last, parents)) = names.split_last() else { return Ok(None) };
        let directory = self.walk(ROOT, parents, false)?;
        Ok(directory.and_then(|directory| self.child(directory, last)))
    }
}

/// Objects with their lengths, each once.
#[derive(Default)]
pub(crate) struct Objects {
    known: Vec<(Digest, u64)>,
    numbers: HashMap<Digest, u32>,
}

impl Objects {
    pub fn intern(&mut self, digest: Digest, size: u64) -> u32 {
        *self.numbers.entry(digest).or_insert_with(|| {
            self.known.push((digest, size));
            self.known.len() as u32 - 1
        })
    }

    pub fn get(&self, number: u32) -> (Digest, u64) {
        self.known[number as usize]
    }
}

/// Sets of extended attributes in the form of the file, each kept once. Number 0 is the empty set.
#[derive(Default)]
pub(crate) struct XattrSets<'a>(HashMap<Cow<'a, [u8]>, u32>);

impl<'a> XattrSets<'a> {
    fn number(&self, set: &[u8]) -> Option<u32> {
        self.0.get(set).copied()
    }

    fn add(&mut self, set: Cow<'a, [u8]>) -> u32 {
        let number = self.0.len() as u32 + 1;
        self.0.insert(set, number);
        number
    }

    /// All sets by number, the empty one first.
    pub fn by_number(&self) -> Vec<&[u8]> {
        let mut sets = vec![&b""[..]; self.0.len() + 1];
        for (set, number) in &self.0 {
            sets[*number as usize] = set;
        }
        sets
    }
}

/// A set in the form of the file. Names are at most `NAME_MAX`, values at most 64 KiB long: the builder has checked.
pub(crate) fn encode_xattrs(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut set = (attributes.len() as u32).to_le_bytes().to_vec();
    for (name, value) in attributes {
        set.extend((name.len() as u16).to_le_bytes());
        set.extend([0; 2]);
        set.extend((value.len() as u32).to_le_bytes());
        set.extend(name);
        set.extend(value);
    }
    set
}

/// For messages: a path as text.
pub(crate) fn shown(names: &[&[u8]]) -> String {
    format!("/{}", String::from_utf8_lossy(&path::join(names)))
}
