//! The tree while it is being made: nodes on the heap, changed in place, written out by [`crate::write`].
//!
//! Both the builder of a layer and the merge of a chain work on it. A node is known by its place in one vector; a node
//! that lost its last name stays there unreachable and is simply not written. Names and contents are borrowed from the
//! maps of the layers where they come from one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use oci::Digest;

use crate::path::{self, NAME_MAX};
use crate::read::{DeviceNumber, Kind, Time};

/// The deepest directory, counted from the root.
pub const DEPTH_MAX: u32 = 1024;
/// How many symlinks one path may lead through, as in the kernel's path walk.
pub const LINKS_MAX: u32 = 40;

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
    Directory(Directory<'a>),
    Regular { size: u64, content: FileContent<'a> },
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
    pub children: BTreeMap<Cow<'a, [u8]>, Child>,
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
}

impl<'a> Tree<'a> {
    /// A root directory that nobody has described yet.
    pub fn new() -> Self {
        let root = TreeNode { attributes: IMPLIED, implied: true, body: Body::Directory(Directory::default()) };
        Tree { nodes: vec![root], xattrs: XattrSets::default(), objects: Objects::default() }
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
        self.directory(directory)?.children.get(name)?.node
    }

    pub fn add(&mut self, node: TreeNode<'a>) -> Result<Id, TreeError> {
        let id = Id::try_from(self.nodes.len()).ok().filter(|id| *id < Id::MAX).ok_or(TreeError::TooMany)?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Puts a node under a name, in place of what was there; a whiteout beside it stays.
    pub fn link(&mut self, directory: Id, name: Cow<'a, [u8]>, node: Id) {
        self.directory_mut(directory).children.entry(name).or_default().node = Some(node);
    }

    /// Makes an empty directory in place of what was there.
    pub fn add_directory(
        &mut self,
        parent: Id,
        name: Cow<'a, [u8]>,
        attributes: Attributes,
        implied: bool,
    ) -> Result<Id, TreeError> {
        let depth = self.directory_mut(parent).depth + 1;
        if depth > DEPTH_MAX {
            return Err(TreeError::TooDeep);
        }
        let body = Body::Directory(Directory { parent, depth, ..Directory::default() });
        let id = self.add(TreeNode { attributes, implied, body })?;
        self.link(parent, name, id);
        Ok(id)
    }

    /// Follows names from a directory to a directory. Symlinks are followed as in a chroot: absolute targets start at
    /// the root of the tree and `..` stays in it. `create` makes directories of what is missing or is something else;
    /// without it both give `None`.
    pub fn walk(&mut self, from: Id, names: &[&[u8]], create: bool) -> Result<Option<Id>, TreeError> {
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
                    rest.extend(target.split(|byte| *byte == b'/').rev().map(|name| Cow::Owned(name.to_vec())));
                }
                _ if create => here = self.add_directory(here, Cow::Owned(name.into_owned()), IMPLIED, true)?,
                _ => return Ok(None),
            }
        }
        Ok(Some(here))
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
pub(crate) struct XattrSets<'a> {
    sets: Vec<Cow<'a, [u8]>>,
    numbers: HashMap<Cow<'a, [u8]>, u32>,
}

impl<'a> XattrSets<'a> {
    pub fn intern(&mut self, set: Cow<'a, [u8]>) -> u32 {
        if let Some(number) = self.numbers.get(&set) {
            return *number;
        }
        self.sets.push(set.clone());
        let number = self.sets.len() as u32;
        self.numbers.insert(set, number);
        number
    }

    /// `None` for the empty set.
    pub fn get(&self, number: u32) -> Option<&[u8]> {
        self.sets.get((number as usize).checked_sub(1)?).map(AsRef::as_ref)
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
