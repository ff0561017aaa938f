//! Writing a tree as an index file.
//!
//! Inodes are numbered breadth first, the entries of a directory one after the other in the order of their names: what
//! `readdirplus` shows together lies together, and equal trees give equal bytes whatever order they were made in.
//!
//! An index can be larger than the tree that it is made of, so it is never whole in memory. The tree is walked twice: first
//! all offsets, and with them the header, are found out; then the records are made one after the other on their way to
//! the file, and the checksum, which is over all of them, is put in its place at the end.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Seek, SeekFrom, Write};

use base::{Explain, Kind as ErrorKind};
use oci::Digest;

use crate::format::{self, at, dirent_flag, index_flag, inode_flag};
use crate::read::Kind;
use crate::tree::{Attributes, Body, Child, FileContent, Id, ROOT, Tree, TreeNode};

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
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
    /// The file does not take the bytes.
    #[error("cannot write the index")]
    Output {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for WriteError {
    fn from(source: io::Error) -> Self {
        WriteError::Output { source }
    }
}

impl Explain for WriteError {
    fn kind(&self) -> ErrorKind {
        match self {
            WriteError::TooLarge { .. } => ErrorKind::Unsupported,
            WriteError::NoPack | WriteError::Output { .. } => ErrorKind::Internal,
        }
    }
}

fn number(value: usize, what: &'static str) -> Result<u32, WriteError> {
    u32::try_from(value).ok().filter(|value| *value < format::NO_INODE).ok_or(WriteError::TooLarge { what })
}

/// Writes the index file of a layer (`chain` false: with whiteouts and what else only layers have) or of a chain.
pub(crate) fn write(tree: &Tree<'_>, id: Digest, chain: bool, to: impl Write + Seek) -> Result<(), WriteError> {
    let mut writer = Writer::new(tree, chain);
    writer.number_nodes()?;
    writer.collect_tables()?;
    writer.strings = Interner::of(writer.names_and_targets(), writer.dirent_count);
    writer.inline = Interner::of(writer.inline_contents(), 0);
    let mut out = Output::begin(to, &writer.header(id))?;
    for id in &writer.order {
        out.put(&writer.inode(*id)?)?;
    }
    out.end_section()?;
    for id in &writer.order {
        let Some(directory) = tree.directory(*id) else { continue };
        for (name, child) in &directory.children {
            out.put(&writer.dirent(name, *child)?)?;
        }
    }
    out.end_section()?;
    for (digest, size) in &writer.objects {
        out.put(digest.as_bytes())?;
        out.put(&size.to_le_bytes())?;
    }
    out.end_section()?;
    out.put(&writer.xattrs)?;
    out.end_section()?;
    out.put_each(&writer.strings, writer.names_and_targets())?;
    out.put_each(&writer.inline, writer.inline_contents())?;
    Ok(out.end()?)
}

/// The file on its way: bytes are collected, hashed and written.
struct Output<W> {
    to: W,
    pending: Vec<u8>,
    /// Of all bytes but the checksum's own.
    hasher: format::Checksum,
    /// How many bytes came since the header.
    position: u64,
}

impl<W: Write + Seek> Output<W> {
    /// How much is collected before it is written.
    const PENDING: usize = 64 << 10;

    fn begin(mut to: W, header: &[u8; format::HEADER]) -> io::Result<Self> {
        to.write_all(header)?;
        let hasher = format::Checksum::of_header(header);
        Ok(Output { to, pending: Vec::with_capacity(Self::PENDING), hasher, position: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        if self.pending.len() + bytes.len() > Self::PENDING {
            self.flush()?;
        }
        if bytes.len() > Self::PENDING {
            self.hasher.update(bytes);
            return self.to.write_all(bytes);
        }
        self.pending.extend(bytes);
        Ok(())
    }

    /// A section of strings, each where it was interned.
    fn put_each<'t>(&mut self, interner: &Interner<'t>, strings: impl Iterator<Item = &'t [u8]>) -> io::Result<()> {
        let mut offset = 0;
        for string in strings {
            // One that came before has a lower offset.
            if interner.offset(string) == offset {
                self.put(string)?;
                offset += string.len() as u64;
            }
        }
        self.end_section()
    }

    /// Fills up to where the next section may begin.
    fn end_section(&mut self) -> io::Result<()> {
        let gap = self.position.next_multiple_of(8) - self.position;
        self.put(&[0; 8][..gap as usize])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.pending);
        self.to.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.to.seek(SeekFrom::Start(at::CHECKSUM as u64))?;
        self.to.write_all(self.hasher.finish().as_bytes())
    }
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
    dirent_count: usize,
    object_numbers: HashMap<u32, u32>,
    objects: Vec<(Digest, u64)>,
    xattr_offsets: HashMap<u32, u32>,
    xattrs: Vec<u8>,
    strings: Interner<'t>,
    inline: Interner<'t>,
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
            dirent_count: 0,
            object_numbers: HashMap::new(),
            objects: Vec::new(),
            xattr_offsets: HashMap::new(),
            xattrs: Vec::new(),
            strings: Interner::default(),
            inline: Interner::default(),
            flags: if chain { index_flag::CHAIN } else { 0 },
            content_bytes: 0,
            ids: [u32::MAX, 0, u32::MAX, 0],
        }
    }

    /// Numbers all reachable nodes and counts their names.
    fn number_nodes(&mut self) -> Result<(), WriteError> {
        self.numbers[ROOT as usize] = 0;
        self.order.push(ROOT);
        let mut next = 0;
        while let Some(&id) = self.order.get(next) {
            next += 1;
            let tree = self.tree;
            let Some(directory) = tree.directory(id) else { continue };
            self.first_dirents.insert(id, number(self.dirent_count, "directory entries")?);
            for node in directory.children.values().filter_map(|child| child.node) {
                self.number_node(node)?;
            }
            self.dirent_count += directory.children.len();
        }
        Ok(())
    }

    /// Counts a name of a node, which gets its number by the first one.
    fn number_node(&mut self, node: Id) -> Result<(), WriteError> {
        self.names[node as usize] += 1;
        let known = &mut self.numbers[node as usize];
        if *known == format::NO_INODE {
            *known = number(self.order.len(), "inodes")?;
            self.order.push(node);
        }
        Ok(())
    }

    fn dirent(&self, name: &[u8], child: Child) -> Result<[u8; format::DIRENT], WriteError> {
        let (inode, kind) = match child.node {
            Some(node) => (self.numbers[node as usize], self.tree.node(node).body.kind()),
            None => (format::NO_INODE, Kind::Whiteout),
        };
        let flags = if child.whiteout { dirent_flag::WHITEOUT } else { 0 };
        let offset = u32::try_from(self.strings.offset(name)).map_err(|_| WriteError::TooLarge { what: "names" })?;
        let mut record = Record::default();
        record.put(&offset.to_le_bytes());
        record.put(&inode.to_le_bytes());
        record.put(&format::prefix(name).to_le_bytes());
        record.put(&(name.len() as u16).to_le_bytes());
        record.put(&[kind.type_byte(), flags]);
        Ok(record.bytes)
    }

    /// All names, and then all targets of links.
    fn names_and_targets(&self) -> impl Iterator<Item = &'t [u8]> {
        let tree = self.tree;
        let directories = self.order.iter().filter_map(|id| tree.directory(*id));
        let names = directories.flat_map(|directory| directory.children.keys().map(|name| &**name));
        names.chain(self.order.iter().filter_map(|id| match &tree.node(*id).body {
            Body::Symlink(target) | Body::LinkByPath(target) => Some(&**target),
            _ => None,
        }))
    }

    fn inline_contents(&self) -> impl Iterator<Item = &'t [u8]> {
        let tree = self.tree;
        self.order.iter().filter_map(|id| match &tree.node(*id).body {
            Body::Regular { content: FileContent::Inline(bytes), .. } => Some(&**bytes),
            _ => None,
        })
    }

    /// The tables of objects and attribute sets of what is reachable, and what else the header tells.
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
            let Attributes { uid, gid, .. } = node.attributes;
            let [low_uid, high_uid, low_gid, high_gid] = self.ids;
            self.ids = [low_uid.min(uid), high_uid.max(uid), low_gid.min(gid), high_gid.max(gid)];
            match &node.body {
                Body::Regular { size, content } => {
                    self.content_bytes = self.content_bytes.saturating_add(*size);
                    if let FileContent::Object { object, .. } = content {
                        objects.insert((tree.objects.get(*object), *object));
                    }
                }
                Body::Device(..) => self.flags |= index_flag::DEVICES,
                _ => {}
            }
        }
        for (place, ((digest, size), object)) in objects.into_iter().enumerate() {
            self.object_numbers.insert(object, number(place, "objects")?);
            self.objects.push((digest, size));
        }
        self.xattrs.extend([0; 8]);
        for (set, place) in xattrs {
            self.xattr_offsets.insert(place, number(self.xattrs.len(), "extended attributes")?);
            self.xattrs.extend(set);
            self.flags |= attribute_flags(set);
        }
        Ok(())
    }

    fn inode(&self, id: Id) -> Result<[u8; format::INODE], WriteError> {
        let node = self.tree.node(id);
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
        let mode = u16::from(node.body.kind().type_byte()) << 12 | attributes.permissions;
        let nlink = match &node.body {
            Body::Directory(directory) => 2 + self.subdirectories(&directory.children),
            _ => self.names[id as usize],
        };
        let xattrs = self.xattr_offsets.get(&attributes.xattrs).copied().unwrap_or(0);
        let mut record = Record::default();
        record.put(&mode.to_le_bytes());
        record.put(&flags.to_le_bytes());
        record.put(&nlink.to_le_bytes());
        record.put(&attributes.uid.to_le_bytes());
        record.put(&attributes.gid.to_le_bytes());
        record.put(&size.to_le_bytes());
        record.put(&attributes.mtime.seconds.to_le_bytes());
        record.put(&attributes.mtime.nanoseconds.to_le_bytes());
        record.put(&xattrs.to_le_bytes());
        record.put(&data.to_le_bytes());
        record.put(&count.to_le_bytes());
        record.put(&parent.to_le_bytes());
        Ok(record.bytes)
    }

    fn subdirectories<K>(&self, children: &BTreeMap<K, Child>) -> u32 {
        let nodes = children.values().filter_map(|child| child.node);
        nodes.filter(|node| self.tree.directory(*node).is_some()).count() as u32
    }

    /// The fields flags, size, data and count.
    fn body(&self, id: Id, node: &TreeNode<'_>) -> Result<(u16, u64, u64, u32), WriteError> {
        Ok(match &node.body {
            Body::Directory(directory) => {
                let first = self.first_dirents.get(&id).copied().unwrap_or_default();
                (0, 0, u64::from(first), number(directory.children.len(), "directory entries")?)
            }
            Body::Regular { size, content } => {
                let (flag, data, count) = match content {
                    FileContent::Empty => (0, 0, 0),
                    FileContent::Inline(bytes) => (inode_flag::INLINE, self.inline.offset(bytes), 0),
                    FileContent::Object { object, offset } => {
                        (inode_flag::OBJECT, *offset, self.object_numbers[object])
                    }
                    FileContent::Packed { .. } => return Err(WriteError::NoPack),
                };
                (flag, *size, data, count)
            }
            Body::Symlink(target) | Body::LinkByPath(target) => {
                (0, target.len() as u64, self.strings.offset(target), 0)
            }
            Body::Device(_, device) => (0, 0, u64::from(device.major) << 32 | u64::from(device.minor), 0),
            Body::Fifo | Body::Socket => (0, 0, 0, 0),
        })
    }

    /// The length of each section, in the order of the file.
    fn lengths(&self) -> [u64; 6] {
        let records = |count: usize, bytes: usize| count as u64 * bytes as u64;
        [
            records(self.order.len(), format::INODE),
            records(self.dirent_count, format::DIRENT),
            records(self.objects.len(), format::OBJECT),
            self.xattrs.len() as u64,
            self.strings.bytes,
            self.inline.bytes,
        ]
    }

    /// The header, without the checksum.
    fn header(&self, id: Digest) -> [u8; format::HEADER] {
        let mut header = [0; format::HEADER];
        let mut put = |place: usize, bytes: &[u8]| header[place..place + bytes.len()].copy_from_slice(bytes);
        put(0, &format::MAGIC);
        put(at::VERSION, &format::VERSION.to_le_bytes());
        put(at::FLAGS, &self.flags.to_le_bytes());
        put(at::ALGORITHM, &format::SHA256.to_le_bytes());
        put(at::CONTENT_BYTES, &self.content_bytes.to_le_bytes());
        for (place, id) in self.ids.iter().enumerate() {
            put(at::IDS + place * 4, &id.to_le_bytes());
        }
        put(at::ID, id.as_bytes());
        let mut offset = format::HEADER as u64;
        for (place, length) in self.lengths().into_iter().enumerate() {
            put(at::SECTIONS + place * 16, &offset.to_le_bytes());
            put(at::SECTIONS + place * 16 + 8, &length.to_le_bytes());
            offset += length.next_multiple_of(8);
        }
        header
    }
}

/// A record being filled from its beginning; what is left stays zero.
struct Record<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for Record<N> {
    fn default() -> Self {
        Record { bytes: [0; N], filled: 0 }
    }
}

impl<const N: usize> Record<N> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.filled..self.filled + field.len()].copy_from_slice(field);
        self.filled += field.len();
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

/// Where byte strings are that come one after the other, equal ones once.
#[derive(Default)]
struct Interner<'t> {
    offsets: HashMap<&'t [u8], u64>,
    /// The length of all.
    bytes: u64,
}

impl<'t> Interner<'t> {
    /// Of so many strings at most, so that the table never is there twice while it grows.
    fn of(strings: impl Iterator<Item = &'t [u8]>, at_most: usize) -> Self {
        let mut interner = Interner { offsets: HashMap::with_capacity(at_most), bytes: 0 };
        for string in strings {
            if let Entry::Vacant(vacant) = interner.offsets.entry(string) {
                vacant.insert(interner.bytes);
                interner.bytes += string.len() as u64;
            }
        }
        interner
    }

    /// Where a string is that was among them.
    fn offset(&self, string: &[u8]) -> u64 {
        self.offsets[string]
    }
}
