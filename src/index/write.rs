//! Writing a tree as an index file.
//!
//! Inodes are numbered breadth first, the entries of a directory one after the other in the order of their names: what
//! `readdirplus` shows together lies together, and equal trees give equal bytes whatever order they were made in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::{Explain, Kind as ErrorKind};
use oci::Digest;

use crate::format::{self, Section, at, dirent_flag, index_flag, inode_flag};
use crate::read::Kind;
use crate::tree::{Body, Child, FileContent, Id, ROOT, Tree, TreeNode};

/// Why a tree cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A section outgrew its offsets or numbers of 32 bits.
    #[error("the tree has too many {what} for an index")]
    TooLarge {
        /// What there are too many of.
        what: &'static str,
    },
    /// A file lies in a pack that was not given, or past its end.
    #[error("a packed file lies outside of the pack")]
    NoPack,
}

impl Explain for WriteError {
    fn kind(&self) -> ErrorKind {
        match self {
            WriteError::TooLarge { .. } => ErrorKind::Unsupported,
            WriteError::NoPack => ErrorKind::Internal,
        }
    }
}

fn number(value: usize, what: &'static str) -> Result<u32, WriteError> {
    u32::try_from(value).ok().filter(|value| *value < format::NO_INODE).ok_or(WriteError::TooLarge { what })
}

/// The index file of a layer (`chain` false: with whiteouts and what else only layers have) or of a chain.
pub(crate) fn write(tree: &Tree<'_>, id: Digest, chain: bool) -> Result<Vec<u8>, WriteError> {
    let mut writer = Writer::new(tree, chain);
    writer.number_nodes()?;
    writer.collect_tables()?;
    for id in std::mem::take(&mut writer.order) {
        writer.inode(id)?;
    }
    Ok(writer.file(id))
}

struct Writer<'t> {
    tree: &'t Tree<'t>,
    chain: bool,
    /// Reachable nodes by number.
    order: Vec<Id>,
    /// The number and count of names of each node.
    numbers: Vec<u32>,
    names: Vec<u32>,
    /// First dirent of each directory, by number.
    first_dirents: HashMap<Id, u32>,
    object_numbers: HashMap<u32, u32>,
    xattr_offsets: HashMap<u32, u32>,
    strings: Interner<'t>,
    inline: Interner<'t>,
    sections: [Vec<u8>; 6],
    flags: u32,
    content_bytes: u64,
    /// Lowest uid, highest uid, lowest gid, highest gid.
    ids: [u32; 4],
}

impl<'t> Writer<'t> {
    fn new(tree: &'t Tree<'t>, chain: bool) -> Self {
        Writer {
            tree,
            chain,
            order: Vec::new(),
            numbers: vec![format::NO_INODE; tree.nodes.len()],
            names: vec![0; tree.nodes.len()],
            first_dirents: HashMap::new(),
            object_numbers: HashMap::new(),
            xattr_offsets: HashMap::new(),
            strings: Interner::default(),
            inline: Interner::default(),
            sections: Default::default(),
            flags: if chain { index_flag::CHAIN } else { 0 },
            content_bytes: 0,
            ids: [u32::MAX, 0, u32::MAX, 0],
        }
    }

    /// Numbers all reachable nodes, counts their names and writes the dirents.
    fn number_nodes(&mut self) -> Result<(), WriteError> {
        self.numbers[ROOT as usize] = 0;
        self.order.push(ROOT);
        let mut next = 0;
        let mut dirents = 0;
        while let Some(&id) = self.order.get(next) {
            next += 1;
            let tree = self.tree;
            let Some(directory) = tree.directory(id) else { continue };
            self.first_dirents.insert(id, number(dirents, "directory entries")?);
            for (name, child) in &directory.children {
                self.dirent(name, *child)?;
                dirents += 1;
            }
        }
        Ok(())
    }

    fn dirent(&mut self, name: &'t [u8], child: Child) -> Result<(), WriteError> {
        let (inode, kind) = match child.node {
            Some(node) => {
                self.names[node as usize] += 1;
                let known = &mut self.numbers[node as usize];
                if *known == format::NO_INODE {
                    *known = number(self.order.len(), "inodes")?;
                    self.order.push(node);
                }
                (*known, self.tree.node(node).body.kind())
            }
            None => (format::NO_INODE, Kind::Whiteout),
        };
        let flags = if child.whiteout { dirent_flag::WHITEOUT } else { 0 };
        let offset = u32::try_from(self.strings.intern(name)).map_err(|_| WriteError::TooLarge { what: "names" })?;
        let dirents = &mut self.sections[Section::Dirents as usize];
        dirents.extend(offset.to_le_bytes());
        dirents.extend(inode.to_le_bytes());
        dirents.extend(format::prefix(name).to_le_bytes());
        dirents.extend((name.len() as u16).to_le_bytes());
        dirents.extend([kind.type_byte(), flags]);
        Ok(())
    }

    /// The tables of objects and attribute sets of what is reachable.
    fn collect_tables(&mut self) -> Result<(), WriteError> {
        let tree = self.tree;
        let sets = tree.xattrs.by_number();
        let mut objects = BTreeSet::new();
        let mut xattrs = BTreeSet::new();
        for id in &self.order {
            let node = tree.node(*id);
            let number = node.attributes.xattrs;
            if number > 0 {
                xattrs.insert((sets[number as usize], number));
            }
            if let Body::Regular { content: FileContent::Object { object, .. }, .. } = node.body {
                objects.insert((tree.objects.get(object), object));
            }
        }
        for (place, ((digest, size), object)) in objects.into_iter().enumerate() {
            self.object_numbers.insert(object, number(place, "objects")?);
            let section = &mut self.sections[Section::Objects as usize];
            section.extend(digest.as_bytes());
            section.extend(size.to_le_bytes());
        }
        self.sections[Section::Xattrs as usize].extend([0; 8]);
        for (set, place) in xattrs {
            let section = &mut self.sections[Section::Xattrs as usize];
            self.xattr_offsets.insert(place, number(section.len(), "extended attributes")?);
            section.extend(set);
            self.flags |= attribute_flags(set);
        }
        Ok(())
    }

    fn inode(&mut self, id: Id) -> Result<(), WriteError> {
        let tree = self.tree;
        let node = tree.node(id);
        let (content_flags, size, data, count) = self.body(id, node)?;
        let mut flags = content_flags;
        if !self.chain && node.implied {
            flags |= inode_flag::IMPLIED;
        }
        let parent = match &node.body {
            Body::Directory(directory) => {
                if !self.chain && directory.opaque {
                    flags |= inode_flag::OPAQUE;
                }
                self.numbers[directory.parent as usize]
            }
            _ => 0,
        };
        let attributes = node.attributes;
        let [low_uid, high_uid, low_gid, high_gid] = self.ids;
        let (uid, gid) = (attributes.uid, attributes.gid);
        self.ids = [low_uid.min(uid), high_uid.max(uid), low_gid.min(gid), high_gid.max(gid)];
        let mode = u16::from(node.body.kind().type_byte()) << 12 | attributes.permissions;
        let nlink = match &node.body {
            Body::Directory(directory) => 2 + self.subdirectories(&directory.children),
            _ => self.names[id as usize],
        };
        let xattrs = self.xattr_offsets.get(&attributes.xattrs).copied().unwrap_or(0);
        let record = &mut self.sections[Section::Inodes as usize];
        record.extend(mode.to_le_bytes());
        record.extend(flags.to_le_bytes());
        record.extend(nlink.to_le_bytes());
        record.extend(uid.to_le_bytes());
        record.extend(gid.to_le_bytes());
        record.extend(size.to_le_bytes());
        record.extend(attributes.mtime.seconds.to_le_bytes());
        record.extend(attributes.mtime.nanoseconds.to_le_bytes());
        record.extend(xattrs.to_le_bytes());
        record.extend(data.to_le_bytes());
        record.extend(count.to_le_bytes());
        record.extend(parent.to_le_bytes());
        record.extend([0; 8]);
        Ok(())
    }

    fn subdirectories<K>(&self, children: &BTreeMap<K, Child>) -> u32 {
        let nodes = children.values().filter_map(|child| child.node);
        nodes.filter(|node| self.tree.directory(*node).is_some()).count() as u32
    }

    /// The fields flags, size, data and count.
    fn body(&mut self, id: Id, node: &'t TreeNode<'t>) -> Result<(u16, u64, u64, u32), WriteError> {
        Ok(match &node.body {
            Body::Directory(directory) => {
                let first = self.first_dirents.get(&id).copied().unwrap_or_default();
                (0, 0, u64::from(first), number(directory.children.len(), "directory entries")?)
            }
            Body::Regular { size, content } => {
                self.content_bytes = self.content_bytes.saturating_add(*size);
                let (flag, data, count) = match content {
                    FileContent::Empty => (0, 0, 0),
                    FileContent::Inline(bytes) => (inode_flag::INLINE, self.inline.intern(bytes), 0),
                    FileContent::Object { object, offset } => {
                        (inode_flag::OBJECT, *offset, self.object_numbers[object])
                    }
                    FileContent::Packed { .. } => return Err(WriteError::NoPack),
                };
                (flag, *size, data, count)
            }
            Body::Symlink(target) | Body::LinkByPath(target) => {
                (0, target.len() as u64, self.strings.intern(target), 0)
            }
            Body::Device(_, device) => {
                self.flags |= index_flag::DEVICES;
                (0, 0, u64::from(device.major) << 32 | u64::from(device.minor), 0)
            }
            Body::Fifo | Body::Socket => (0, 0, 0, 0),
        })
    }

    /// Header and sections in one piece.
    fn file(mut self, id: Digest) -> Vec<u8> {
        self.sections[Section::Strings as usize] = self.strings.bytes;
        self.sections[Section::Inline as usize] = self.inline.bytes;
        let length: usize = self.sections.iter().map(|section| section.len().next_multiple_of(8)).sum();
        let mut file = Vec::with_capacity(format::HEADER + length);
        file.resize(format::HEADER, 0);
        file[..8].copy_from_slice(&format::MAGIC);
        let mut put = |place: usize, bytes: &[u8]| file[place..place + bytes.len()].copy_from_slice(bytes);
        put(at::VERSION, &format::VERSION.to_le_bytes());
        put(at::FLAGS, &self.flags.to_le_bytes());
        put(at::ALGORITHM, &format::SHA256.to_le_bytes());
        put(at::CONTENT_BYTES, &self.content_bytes.to_le_bytes());
        for (place, id) in self.ids.iter().enumerate() {
            put(at::IDS + place * 4, &id.to_le_bytes());
        }
        put(at::ID, id.as_bytes());
        let mut offset = format::HEADER;
        for (place, section) in self.sections.iter().enumerate() {
            put(at::SECTIONS + place * 16, &(offset as u64).to_le_bytes());
            put(at::SECTIONS + place * 16 + 8, &(section.len() as u64).to_le_bytes());
            offset += section.len().next_multiple_of(8);
        }
        for section in &self.sections {
            file.extend(section);
            file.resize(file.len().next_multiple_of(8), 0);
        }
        let checksum = format::checksum(&file);
        file[at::CHECKSUM..at::AFTER_CHECKSUM].copy_from_slice(checksum.as_bytes());
        file
    }
}

/// What the header says about an attribute set.
fn attribute_flags(set: &[u8]) -> u32 {
    let has = |name: &[u8]| set.windows(name.len()).any(|window| window == name);
    let mut flags = index_flag::XATTRS;
    if has(b"system.posix_acl_") {
        flags |= index_flag::ACLS;
    }
    if has(b"security.capability") {
        flags |= index_flag::CAPABILITIES;
    }
    flags
}

/// Byte strings one after the other, equal ones once.
#[derive(Default)]
struct Interner<'t> {
    bytes: Vec<u8>,
    offsets: HashMap<&'t [u8], u64>,
}

impl<'t> Interner<'t> {
    fn intern(&mut self, string: &'t [u8]) -> u64 {
        *self.offsets.entry(string).or_insert_with(|| {
            let offset = self.bytes.len() as u64;
            self.bytes.extend(string);
            offset
        })
    }
}
