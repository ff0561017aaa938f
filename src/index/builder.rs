//! Building the index of one layer out of entries by path, in the order of an archive.
//!
//! The rules, where archives are not clear by themselves:
//! - The last entry of a path wins. A directory again merges: its metadata change, its entries stay. Anything else
//!   replaces, a directory with all that is below it.
//! - Parents that the archive does not name are implied: the merge takes what lower layers have there, be it a
//!   directory or a symlink to one. A symlink of the same layer on the way is followed inside the layer; a parent that
//!   is a file becomes a directory.
//! - A whiteout hides the lower layers' entry whatever its place in the archive: one of the same name may stand beside.
//! - A hard link to a path of the same layer is a second name of that inode, also when the path comes later. Any other
//!   path is left to the merge. The link's own metadata are the caller's to tell: there is one inode, and it has what
//!   [`TreeBuilder::describe`] said of it last.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Seek, Write};

use base::{Explain, Kind as ErrorKind};
use oci::{DiffId, Digest};

use crate::name::Name;
use crate::path::{self, NAME_MAX, PATH_MAX, PathError};
use crate::read::{DeviceNumber, Kind, Time};
use crate::tree::{self, Attributes, Body, FileContent, Id, ROOT, Tree, TreeError, TreeNode};
use crate::write::{WriteError, write};

/// The longest value of an extended attribute (`XATTR_SIZE_MAX` of Linux).
pub const XATTR_VALUE_MAX: usize = 65_536;

/// What an archive tells about an entry beside its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-id and sticky bits; other bits are ignored.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A regular file without content.
    EmptyFile,
    /// A regular file with its content.
    InlineFile(Vec<u8>),
    /// A regular file whose content is an object.
    ObjectFile {
        /// The object.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// A regular file whose content is a part of the pack of this layer.
    PackedFile {
        /// The first byte in it.
        offset: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Why an entry cannot be part of a layer.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The path is no place in a tree.
    #[error("the path {} is refused: {reason}", String::from_utf8_lossy(path))]
    Path {
        /// As the archive has it.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: PathError,
    },
    /// The place cannot be reached or made.
    #[error("the entry {path} is refused: {reason}")]
    Place {
        /// Where.
        path: String,
        /// Why.
        reason: TreeError,
    },
    /// The root is something else than a directory, is hidden, or is a link.
    #[error("an entry for the root is not a directory")]
    Root,
    /// A symlink without target, with one longer than `PATH_MAX`, or with a zero byte in it.
    #[error("the symbolic link {path} has an empty, overlong or malformed target")]
    Target {
        /// Where.
        path: String,
    },
    /// A hard link to a directory.
    #[error("{path} is a hard link to the directory {target}")]
    LinkToDirectory {
        /// The link.
        path: String,
        /// What it links to.
        target: String,
    },
    /// An extended attribute whose name or value is too long, or with a malformed name.
    #[error("{path} has an extended attribute with an unusable name or more than {XATTR_VALUE_MAX} bytes")]
    Xattr {
        /// Where.
        path: String,
    },
}

impl Explain for BuildError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Remote
    }
}

/// A layer being built.
pub struct TreeBuilder {
    tree: Tree<'static>,
    /// Hard links whose target was not there when they came: the placeholders, which know it.
    pending: Vec<Id>,
}

/// What a hard link leads to.
enum Target {
    /// A file, which may be a link that leads on to nothing in this layer.
    File(Id),
    /// A link that must be settled first.
    Link(Id),
    /// Nothing that is here.
    Nothing,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        TreeBuilder::bounded(tree::TREE_BYTES_MAX)
    }
}

impl TreeBuilder {
    /// A layer without entries.
    pub fn new() -> Self {
        TreeBuilder::default()
    }

    /// A layer without entries that may take only so many bytes of memory.
    pub fn bounded(bytes_max: u64) -> Self {
        TreeBuilder { tree: Tree::new(bytes_max), pending: Vec::new() }
    }

    /// Adds an entry.
    pub fn insert(&mut self, path: &[u8], metadata: &Metadata, entry: Entry) -> Result<(), BuildError> {
        let names = checked(path)?;
        let attributes = self.attributes(&names, metadata)?;
        if matches!(entry, Entry::Directory) {
            return self.insert_directory(&names, attributes);
        }
        let (name, directory) = self.place(&names)?;
        let body = self.body(&names, entry)?;
        let node = self.add(&names, TreeNode { attributes, implied: false, body })?;
        self.link(&names, directory, name, node)
    }

    /// Adds a second name, `path`, for what is at `target`.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), BuildError> {
        let names = checked(path)?;
        let targets = checked(target)?;
        let (name, directory) = self.place(&names)?;
        let found = self.tree.find(&targets).map_err(|reason| place_error(&names, reason))?;
        let to_directory = || BuildError::LinkToDirectory { path: tree::shown(&names), target: tree::shown(&targets) };
        let node = match found {
            _ if targets.is_empty() => return Err(to_directory()),
            Some(node) if self.tree.directory(node).is_some() => return Err(to_directory()),
            Some(node) => node,
            None => {
                let body = Body::LinkByPath(Cow::Owned(path::join(&targets)));
                let placeholder = self.add(&names, TreeNode { attributes: tree::IMPLIED, implied: true, body })?;
                self.pending.push(placeholder);
                placeholder
            }
        };
        self.link(&names, directory, name, node)
    }

    /// Gives the file at `path` another owner, mode, time and, if there are any, attributes. What is not there stays as it
    /// is; so does the mode of a symlink. A link to a lower layer only keeps them for whoever writes the layer again.
    pub fn describe(&mut self, path: &[u8], metadata: &Metadata) -> Result<(), BuildError> {
        let names = checked(path)?;
        let new = self.attributes(&names, metadata)?;
        let Some(id) = self.tree.find(&names).map_err(|reason| place_error(&names, reason))? else { return Ok(()) };
        let node = self.tree.node_mut(id);
        let old = node.attributes;
        let permissions = if matches!(node.body, Body::Symlink(_)) { old.permissions } else { new.permissions };
        let xattrs = if metadata.xattrs.is_empty() { old.xattrs } else { new.xattrs };
        node.attributes = Attributes { permissions, xattrs, ..new };
        Ok(())
    }

    /// Hides what lower layers have at this path.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), BuildError> {
        let names = checked(path)?;
        let (name, directory) = self.place(&names)?;
        let child = self.tree.name(directory, Name::copy(name)).map_err(|reason| place_error(&names, reason))?;
        child.whiteout = true;
        Ok(())
    }

    /// Hides all that lower layers have in this directory.
    pub fn opaque(&mut self, path: &[u8]) -> Result<(), BuildError> {
        let names = checked(path)?;
        let directory = self.walk(&names)?;
        self.tree.directory_mut(directory).opaque = true;
        Ok(())
    }

    /// The bytes of the index file that [`TreeBuilder::write_to`] writes.
    pub fn write(self, id: DiffId, pack: Option<(Digest, u64)>) -> Result<Vec<u8>, WriteError> {
        let mut bytes = io::Cursor::new(Vec::new());
        self.write_to(id, pack, &mut bytes)?;
        Ok(bytes.into_inner())
    }

    /// Writes the index file of the layer with this diff ID, whose pack is this object of this length (`None` if nothing
    /// is packed), to the beginning of an empty file. Equal trees give equal bytes.
    pub fn write_to(
        mut self,
        id: DiffId,
        pack: Option<(Digest, u64)>,
        to: impl Write + Seek,
    ) -> Result<(), WriteError> {
        self.settle_links();
        for node in &mut self.tree.nodes {
            if let Body::Regular { size, content: content @ FileContent::Packed { .. } } = &mut node.body
                && let FileContent::Packed { offset } = *content
            {
                let (digest, length) = pack.ok_or(WriteError::NoPack)?;
                offset.checked_add(*size).filter(|end| *end <= length).ok_or(WriteError::NoPack)?;
                *content = FileContent::Object { object: self.tree.objects.intern(digest, length), offset };
            }
        }
        write(&self.tree, id.0, false, to)
    }

    fn insert_directory(&mut self, names: &[&[u8]], attributes: Attributes) -> Result<(), BuildError> {
        let directory = match names.split_last() {
            None => ROOT,
            Some((name, parents)) => {
                let parent = self.walk(parents)?;
                match self.tree.child(parent, name).filter(|child| self.tree.directory(*child).is_some()) {
                    Some(directory) => directory,
                    None => self
                        .tree
                        .add_directory(parent, Name::copy(name), attributes, false)
                        .map_err(|reason| place_error(names, reason))?,
                }
            }
        };
        let node = self.tree.node_mut(directory);
        node.attributes = attributes;
        node.implied = false;
        Ok(())
    }

    /// Second names of paths that came later become names of those inodes, and so do all names that share them.
    ///
    /// A link may lead to another one, or through one that turns out to be a symlink. So each waits on a stack for the one
    /// that it needs, and is looked at again when that is settled: twice as often as there are links, all in all. Links that
    /// need each other stay as they are.
    fn settle_links(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut open: HashSet<Id> = pending.iter().copied().collect();
        // Of those that wait, the place on the stack.
        let mut places: HashMap<Id, usize> = HashMap::new();
        for start in pending {
            let mut stack = if open.contains(&start) { vec![start] } else { Vec::new() };
            while let Some(link) = stack.last().copied() {
                places.insert(link, stack.len() - 1);
                match self.target_of(link, &open) {
                    Target::Link(next) => match places.get(&next).copied() {
                        None => stack.push(next),
                        // A circle.
                        Some(place) => stack.drain(place..).for_each(|link| {
                            open.remove(&link);
                            places.remove(&link);
                        }),
                    },
                    target => {
                        if let Target::File(file) = target {
                            self.tree.aliases.insert(link, file);
                        }
                        open.remove(&link);
                        places.remove(&link);
                        stack.pop();
                    }
                }
            }
        }
        let aliases = std::mem::take(&mut self.tree.aliases);
        for node in &mut self.tree.nodes {
            let Body::Directory(directory) = &mut node.body else { continue };
            for child in directory.children.values_mut() {
                child.node = child.node.map(|node| aliases.get(&node).copied().unwrap_or(node));
            }
        }
    }

    /// What a link leads to, where these are not settled yet.
    fn target_of(&mut self, link: Id, open: &HashSet<Id>) -> Target {
        let Body::LinkByPath(target) = &self.tree.node(link).body else { return Target::Nothing };
        let target = target.clone();
        let names: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
        let Ok(stop) = self.tree.look(&names) else { return Target::Nothing };
        match self.tree.child(stop.directory, &stop.name) {
            Some(found) if found != link && open.contains(&found) => Target::Link(found),
            Some(found) if stop.last && found != link && self.tree.directory(found).is_none() => Target::File(found),
            _ => Target::Nothing,
        }
    }

    fn link(&mut self, names: &[&[u8]], directory: Id, name: &[u8], node: Id) -> Result<(), BuildError> {
        let linked = self.tree.link(directory, Name::copy(name), node);
        linked.map_err(|reason| place_error(names, reason))
    }

    /// The last name and its directory, which is made when it is missing.
    fn place<'n>(&mut self, names: &[&'n [u8]]) -> Result<(&'n [u8], Id), BuildError> {
        let (name, parents) = names.split_last().ok_or(BuildError::Root)?;
        Ok((name, self.walk(parents)?))
    }

    fn walk(&mut self, names: &[&[u8]]) -> Result<Id, BuildError> {
        let directory = self.tree.walk(ROOT, names, true).map_err(|reason| place_error(names, reason))?;
        Ok(directory.unwrap_or(ROOT))
    }

    fn add(&mut self, names: &[&[u8]], node: TreeNode<'static>) -> Result<Id, BuildError> {
        self.tree.add(node).map_err(|reason| place_error(names, reason))
    }

    fn body(&mut self, names: &[&[u8]], entry: Entry) -> Result<Body<'static>, BuildError> {
        Ok(match entry {
            Entry::Directory => unreachable!("directories are inserted by `insert_directory`"),
            Entry::EmptyFile => Body::Regular { size: 0, content: FileContent::Empty },
            Entry::InlineFile(bytes) if bytes.is_empty() => Body::Regular { size: 0, content: FileContent::Empty },
            Entry::InlineFile(bytes) => {
                Body::Regular { size: bytes.len() as u64, content: FileContent::Inline(Cow::Owned(bytes)) }
            }
            Entry::ObjectFile { digest, size } => {
                let object = self.tree.objects.intern(digest, size);
                Body::Regular { size, content: FileContent::Object { object, offset: 0 } }
            }
            Entry::PackedFile { offset, size } => Body::Regular { size, content: FileContent::Packed { offset } },
            Entry::Symlink(target) => {
                if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
                    return Err(BuildError::Target { path: tree::shown(names) });
                }
                Body::Symlink(Cow::Owned(target))
            }
            Entry::CharDevice(number) => Body::Device(Kind::CharDevice, number),
            Entry::BlockDevice(number) => Body::Device(Kind::BlockDevice, number),
            Entry::Fifo => Body::Fifo,
            Entry::Socket => Body::Socket,
        })
    }

    fn attributes(&mut self, names: &[&[u8]], metadata: &Metadata) -> Result<Attributes, BuildError> {
        let usable = |name: &[u8], value: &[u8]| {
            !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0) && value.len() <= XATTR_VALUE_MAX
        };
        if !metadata.xattrs.iter().all(|(name, value)| usable(name, value)) {
            return Err(BuildError::Xattr { path: tree::shown(names) });
        }
        let xattrs = if metadata.xattrs.is_empty() {
            0
        } else {
            let set = Cow::Owned(tree::encode_xattrs(&metadata.xattrs));
            self.tree.xattrs(set).map_err(|reason| place_error(names, reason))?
        };
        let Metadata { permissions, uid, gid, mtime, .. } = *metadata;
        Ok(Attributes { permissions: permissions & 0o7777, uid, gid, mtime, xattrs })
    }
}

fn checked(path: &[u8]) -> Result<Vec<&[u8]>, BuildError> {
    path::names(path).map_err(|reason| BuildError::Path { path: path.to_vec(), reason })
}

fn place_error(names: &[&[u8]], reason: TreeError) -> BuildError {
    BuildError::Place { path: tree::shown(names), reason }
}
