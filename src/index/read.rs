//! Reading an index: every call looks at a few records of the mapped file and allocates nothing.
//!
//! **The file may be hostile.** Opening checks the header and that the sections lie inside the file, in constant time;
//! every later access checks its own record, offset and length and answers [`Damaged`] instead of a wrong slice. The
//! other choice, to check all of it at open, would touch every page (14 MB for 100,000 files) in each process and at
//! each start of a container, to learn what the access has to be safe against anyway. [`Index::verify`] does that full
//! check, with the checksum, for those who make an index or take one from a store that is not theirs.
//! What single accesses cannot see is the shape of the whole: only `verify` proves that the directories form a tree.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::os::fd::AsFd;

use oci::Digest;
use sys::mmap::Map;

use crate::error::{Damaged, OpenError};
use crate::format::{self, Section, at, dirent_flag, index_flag, inode_flag, u16_at, u32_at, u64_at};

/// The number of an inode in its index; the root directory is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

impl Node {
    /// The root directory.
    pub const ROOT: Node = Node(0);

    /// The `st_ino` (and FUSE node id) of this inode in the view of a chain: its number plus one, so the root has 1.
    pub fn ino(self) -> u64 {
        u64::from(self.0) + 1
    }

    /// The inode with this `st_ino`; `None` for 0 and for numbers that no index can have.
    pub fn from_ino(ino: u64) -> Option<Node> {
        u32::try_from(ino.checked_sub(1)?).ok().filter(|number| *number != format::NO_INODE).map(Node)
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Only in layers: a hard link to a path of a lower layer, resolved by the merge.
    LinkByPath,
    /// Only in layers: a dirent that merely hides; it has no inode.
    Whiteout,
}

impl Kind {
    /// The `S_IFMT` bits of `st_mode`; 0 for the kinds that only layers have.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::Whiteout => 0,
            kind => u32::from(kind.type_byte()) << 12,
        }
    }

    /// As in the type byte of a dirent, which is `d_type` of `getdents(2)`; 0 for a link by path.
    pub(crate) fn type_byte(self) -> u8 {
        match self {
            Kind::LinkByPath => 0,
            Kind::Fifo => 1,
            Kind::CharDevice => 2,
            Kind::Directory => 4,
            Kind::BlockDevice => 6,
            Kind::Regular => 8,
            Kind::Symlink => 10,
            Kind::Socket => 12,
            Kind::Whiteout => format::TYPE_WHITEOUT,
        }
    }

    fn from_type_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::LinkByPath,
            1 => Kind::Fifo,
            2 => Kind::CharDevice,
            4 => Kind::Directory,
            6 => Kind::BlockDevice,
            8 => Kind::Regular,
            10 => Kind::Symlink,
            12 => Kind::Socket,
            format::TYPE_WHITEOUT => Kind::Whiteout,
            _ => return None,
        })
    }
}

/// A point in time as seconds and nanoseconds since 1970; the seconds may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds on top, below 10^9.
    pub nanoseconds: u32,
}

/// The number of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What `stat` tells about an inode. Owners are those of the image, whatever the reader's id map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits, without the type.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; for a directory 2 and its subdirectories.
    pub nlink: u32,
    /// Length of a file or of a symlink's target, else 0.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// For devices.
    pub rdev: DeviceNumber,
    /// Only in layers: nothing but its path was given, the metadata are made up.
    pub implied: bool,
    /// Only in layers: hides all that lower layers have in this directory.
    pub opaque: bool,
    flags: u16,
    xattrs: u32,
    data: u64,
    count: u32,
    parent: u32,
}

impl Inode {
    /// `st_mode`: type and permissions.
    pub fn mode(&self) -> u32 {
        self.kind.mode_bits() | u32::from(self.permissions)
    }

    /// Whether there are extended attributes at all.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs != 0
    }
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// Raw bytes, 1 to 255 of them, without `/` and NUL.
    pub name: &'a [u8],
    /// The inode; not a number of one when the kind is [`Kind::Whiteout`].
    pub node: Node,
    /// What the inode is, known without a look at it.
    pub kind: Kind,
    /// Only in layers: hides the lower layers' entry of this name.
    pub whiteout: bool,
}

/// Where the bytes of a regular file are; how many there are says [`Inode::size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// There are none.
    Empty,
    /// Here.
    Inline(&'a [u8]),
    /// In an object of the store: a large file is one by itself, small files of a layer share one (a *pack*).
    Object {
        /// Its number in this index, dense from 0: a key for caches.
        number: u32,
        /// Its name in the store.
        digest: Digest,
        /// The first byte in it; 0 for a file that is the whole object.
        offset: u64,
    },
}

enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
}

/// The inode tree of a layer or of a merged chain of layers, read from a mapped file.
pub struct Index {
    bytes: Bytes,
    header: [u8; format::HEADER],
    sections: [Range<usize>; 6],
}

impl Index {
    /// Maps an index file. It must be complete and never be written again (see [`sys::mmap`]).
    pub fn open(file: impl AsFd) -> Result<Index, OpenError> {
        let map = Map::of(file).map_err(|source| OpenError::Map { source })?;
        let (header, sections) = check_header(&map)?;
        Ok(Index { bytes: Bytes::Mapped(map), header, sections })
    }

    /// Takes the bytes of an index file.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Index, OpenError> {
        let (header, sections) = check_header(&bytes)?;
        Ok(Index { bytes: Bytes::Owned(bytes), header, sections })
    }

    /// Gives the memory of inodes and dirents back for now, where the file is mapped.
    pub fn let_go(&self) {
        if let Bytes::Mapped(map) = &self.bytes {
            for section in [Section::Inodes, Section::Dirents] {
                map.let_go(self.sections[section as usize].clone());
            }
        }
    }

    /// The file as it is.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The diff ID of the layer or the chain ID of the chain.
    pub fn id(&self) -> Digest {
        format::digest_at(&self.header, at::ID)
    }

    /// Whether this is a merged chain: then no dirent is a whiteout and no inode implied, opaque or a link by path.
    pub fn is_chain(&self) -> bool {
        self.flags() & index_flag::CHAIN != 0
    }

    /// Whether any inode has extended attributes; when not, `getxattr` can be refused for good.
    pub fn has_xattrs(&self) -> bool {
        self.flags() & index_flag::XATTRS != 0
    }

    /// Whether any inode has a POSIX ACL.
    pub fn has_acls(&self) -> bool {
        self.flags() & index_flag::ACLS != 0
    }

    /// Whether any inode has file capabilities.
    pub fn has_capabilities(&self) -> bool {
        self.flags() & index_flag::CAPABILITIES != 0
    }

    /// The sum of the sizes of all regular files, each inode once.
    pub fn content_bytes(&self) -> u64 {
        u64_at(&self.header, at::CONTENT_BYTES)
    }

    /// Lowest and highest uid of any inode.
    pub fn uids(&self) -> (u32, u32) {
        (u32_at(&self.header, at::IDS), u32_at(&self.header, at::IDS + 4))
    }

    /// Lowest and highest gid of any inode.
    pub fn gids(&self) -> (u32, u32) {
        (u32_at(&self.header, at::IDS + 8), u32_at(&self.header, at::IDS + 12))
    }

    /// How many inodes there are; their numbers are dense from 0.
    pub fn inode_count(&self) -> u32 {
        (self.section(Section::Inodes).len() / format::INODE) as u32
    }

    /// How many dirents all directories have together.
    pub fn dirent_count(&self) -> u32 {
        (self.section(Section::Dirents).len() / format::DIRENT) as u32
    }

    /// The objects that the tree needs, packs among them, with their sizes, sorted by digest.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = (Digest, u64)> + '_ {
        let (records, _) = self.section(Section::Objects).as_chunks::<{ format::OBJECT }>();
        records.iter().map(|record| (format::digest_at(record, 0), u64_at(record, 32)))
    }

    /// One of the objects by its number, with its size.
    pub fn object(&self, number: u32) -> Result<(Digest, u64), Damaged> {
        let record: Option<&[u8; format::OBJECT]> = self.record(Section::Objects, number);
        let record = record.ok_or(Damaged::new("object", u64::from(number)))?;
        Ok((format::digest_at(record, 0), u64_at(record, 32)))
    }

    /// The root directory.
    pub fn root(&self) -> Node {
        Node::ROOT
    }

    /// The metadata of an inode.
    pub fn inode(&self, node: Node) -> Result<Inode, Damaged> {
        let damaged = Damaged::new("inode", u64::from(node.0));
        let record: &[u8; format::INODE] = self.record(Section::Inodes, node.0).ok_or(damaged)?;
        let mode = u16_at(record, 0);
        let flags = u16_at(record, 2);
        let kind = Kind::from_type_byte((mode >> 12) as u8).filter(|kind| *kind != Kind::Whiteout).ok_or(damaged)?;
        let nanoseconds = u32_at(record, 32);
        if nanoseconds >= 1_000_000_000 {
            return Err(damaged);
        }
        let data = u64_at(record, 40);
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Ok(Inode {
            kind,
            permissions: mode & 0o7777,
            uid: u32_at(record, 8),
            gid: u32_at(record, 12),
            nlink: u32_at(record, 4),
            size: u64_at(record, 16),
            mtime: Time { seconds: u64_at(record, 24) as i64, nanoseconds },
            rdev: if device {
                DeviceNumber { major: (data >> 32) as u32, minor: data as u32 }
            } else {
                DeviceNumber::default()
            },
            implied: flags & inode_flag::IMPLIED != 0,
            opaque: flags & inode_flag::OPAQUE != 0,
            flags,
            xattrs: u32_at(record, 36),
            data,
            count: u32_at(record, 48),
            parent: u32_at(record, 52),
        })
    }

    /// Finds a name in a directory by binary search; `None` also for anything but a directory.
    pub fn lookup(&self, directory: Node, name: &[u8]) -> Result<Option<Dirent<'_>>, Damaged> {
        self.dirents(directory)?.find(name)
    }

    /// The entries of a directory by position; none for anything but a directory.
    pub fn dirents(&self, directory: Node) -> Result<Dirents<'_>, Damaged> {
        let inode = self.inode(directory)?;
        if inode.kind != Kind::Directory {
            return Ok(Dirents { index: self, first: 0, count: 0 });
        }
        let damaged = Damaged::new("directory", u64::from(directory.0));
        let first = u32::try_from(inode.data).map_err(|_| damaged)?;
        match first.checked_add(inode.count) {
            Some(end) if end <= self.dirent_count() => Ok(Dirents { index: self, first, count: inode.count }),
            _ => Err(damaged),
        }
    }

    /// The directory that holds this directory; the root's is the root. `None` for anything but a directory, which
    /// may have many.
    pub fn parent(&self, directory: Node) -> Result<Option<Node>, Damaged> {
        let inode = self.inode(directory)?;
        Ok((inode.kind == Kind::Directory).then_some(Node(inode.parent)))
    }

    /// The extended attributes of an inode.
    pub fn xattrs(&self, node: Node) -> Result<Xattrs<'_>, Damaged> {
        let inode = self.inode(node)?;
        if inode.xattrs == 0 {
            return Ok(Xattrs { set: &[], rest: &[], left: 0, at: 0 });
        }
        let at = u64::from(inode.xattrs);
        let damaged = Damaged::new("xattr set", at);
        let set = self.section(Section::Xattrs).get(inode.xattrs as usize..).ok_or(damaged)?;
        let (count, rest) = set.split_first_chunk::<4>().ok_or(damaged)?;
        Ok(Xattrs { set, rest, left: u32::from_le_bytes(*count), at })
    }

    /// The target of a symlink; `None` for anything else.
    pub fn symlink_target(&self, node: Node) -> Result<Option<&[u8]>, Damaged> {
        let inode = self.inode(node)?;
        if inode.kind != Kind::Symlink {
            return Ok(None);
        }
        self.long_string(&inode).map(Some)
    }

    /// The path, from the root of the lower layers, whose file a link by path shares; `None` for anything else.
    pub fn link_target(&self, node: Node) -> Result<Option<&[u8]>, Damaged> {
        let inode = self.inode(node)?;
        if inode.kind != Kind::LinkByPath {
            return Ok(None);
        }
        self.long_string(&inode).map(Some)
    }

    /// Where the bytes of a regular file are; [`Content::Empty`] for anything else.
    pub fn content(&self, node: Node) -> Result<Content<'_>, Damaged> {
        let inode = self.inode(node)?;
        self.content_of(&inode).ok_or(Damaged::new("content of inode", u64::from(node.0)))
    }

    fn content_of(&self, inode: &Inode) -> Option<Content<'_>> {
        if inode.kind != Kind::Regular {
            return Some(Content::Empty);
        }
        Some(match inode.flags & inode_flag::CONTENT {
            inode_flag::INLINE => Content::Inline(self.slice(Section::Inline, inode.data, inode.size)?),
            inode_flag::OBJECT => {
                let record: &[u8; format::OBJECT] = self.record(Section::Objects, inode.count)?;
                let end = inode.data.checked_add(inode.size)?;
                (end <= u64_at(record, 32)).then_some(())?;
                Content::Object { number: inode.count, digest: format::digest_at(record, 0), offset: inode.data }
            }
            _ => (inode.size == 0).then_some(Content::Empty)?,
        })
    }

    fn long_string(&self, inode: &Inode) -> Result<&[u8], Damaged> {
        self.slice(Section::Strings, inode.data, inode.size).ok_or(Damaged::new("string", inode.data))
    }

    fn flags(&self) -> u32 {
        u32_at(&self.header, at::FLAGS)
    }

    pub(crate) fn section(&self, section: Section) -> &[u8] {
        let range = self.sections[section as usize].clone();
        self.as_bytes().get(range).unwrap_or_default()
    }

    fn record<const N: usize>(&self, section: Section, number: u32) -> Option<&[u8; N]> {
        let start = (number as usize).checked_mul(N)?;
        self.section(section).get(start..)?.first_chunk()
    }

    fn slice(&self, section: Section, offset: u64, length: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.section(section).get(start..end)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index({}, {} inodes)", self.id(), self.inode_count())
    }
}

/// Checks the header; gives a copy of it and the place of each section.
fn check_header(file: &[u8]) -> Result<([u8; format::HEADER], [Range<usize>; 6]), OpenError> {
    if !file.starts_with(&format::MAGIC) {
        return Err(OpenError::NotAnIndex);
    }
    let header: &[u8; format::HEADER] =
        file.first_chunk().ok_or(Damaged::new("header of length", file.len() as u64))?;
    let found = u32_at(header, at::VERSION);
    if found != format::VERSION {
        return Err(OpenError::Version { found });
    }
    let algorithm = u32_at(header, at::ALGORITHM);
    if algorithm != format::SHA256 {
        return Err(Damaged::new("digest algorithm", u64::from(algorithm)).into());
    }
    let mut sections: [Range<usize>; 6] = Default::default();
    for (range, (number, (_, record))) in sections.iter_mut().zip(format::SECTIONS.iter().enumerate()) {
        let damaged = Damaged::new("section", number as u64);
        let place = at::SECTIONS + number * 16;
        let start = usize::try_from(u64_at(header, place)).map_err(|_| damaged)?;
        let length = usize::try_from(u64_at(header, place + 8)).map_err(|_| damaged)?;
        let end = start.checked_add(length).ok_or(damaged)?;
        let records = length / record;
        if start < format::HEADER || !start.is_multiple_of(8) || end > file.len() || !length.is_multiple_of(*record) {
            return Err(damaged.into());
        }
        if *record > 1 && records >= format::NO_INODE as usize {
            return Err(damaged.into());
        }
        *range = start..end;
    }
    if sections[Section::Inodes as usize].is_empty() {
        return Err(Damaged::new("root inode", 0).into());
    }
    Ok((*header, sections))
}

/// The entries of one directory, sorted by the raw bytes of their names. A position never changes its meaning, so it
/// can serve as the cookie of `readdir`.
#[derive(Clone, Copy)]
pub struct Dirents<'a> {
    index: &'a Index,
    first: u32,
    count: u32,
}

impl<'a> Dirents<'a> {
    /// How many there are.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entry at this position; `None` past the end.
    pub fn get(&self, position: u32) -> Result<Option<Dirent<'a>>, Damaged> {
        if position >= self.count {
            return Ok(None);
        }
        let number = self.first + position;
        let damaged = Damaged::new("dirent", u64::from(number));
        let record = self.raw(position).ok_or(damaged)?;
        let name = self.name(record).filter(|name| !name.is_empty()).ok_or(damaged)?;
        let kind = Kind::from_type_byte(record[14]).ok_or(damaged)?;
        let node = Node(u32_at(record, 4));
        if kind != Kind::Whiteout && node.0 >= self.index.inode_count() {
            return Err(damaged);
        }
        Ok(Some(Dirent { name, node, kind, whiteout: record[15] & dirent_flag::WHITEOUT != 0 }))
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Dirent<'a>, Damaged>> + use<'a> {
        let dirents = *self;
        (0..self.count).filter_map(move |position| dirents.get(position).transpose())
    }

    /// The entry of this name, by binary search: log2 n looks, most of them at the dirents alone.
    pub fn find(&self, name: &[u8]) -> Result<Option<Dirent<'a>>, Damaged> {
        let prefix = format::prefix(name);
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let damaged = Damaged::new("dirent", u64::from(self.first + middle));
            let record = self.raw(middle).ok_or(damaged)?;
            let order = match u32_at(record, 8).cmp(&prefix) {
                Ordering::Equal => self.name(record).ok_or(damaged)?.cmp(name),
                different => different,
            };
            match order {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return self.get(middle),
            }
        }
        Ok(None)
    }

    /// Whether the prefix in the dirent is that of its name; binary search relies on it.
    pub(crate) fn prefix_holds(&self, position: u32) -> bool {
        let record = self.raw(position);
        record.is_some_and(|record| self.name(record).map(format::prefix) == Some(u32_at(record, 8)))
    }

    fn raw(&self, position: u32) -> Option<&'a [u8; format::DIRENT]> {
        self.index.record(Section::Dirents, self.first + position)
    }

    fn name(&self, record: &[u8; format::DIRENT]) -> Option<&'a [u8]> {
        self.index.slice(Section::Strings, u64::from(u32_at(record, 0)), u64::from(u16_at(record, 12)))
    }
}

/// The extended attributes of one inode, sorted by name.
#[derive(Clone)]
pub struct Xattrs<'a> {
    /// From the count of this set to the end of the section.
    set: &'a [u8],
    rest: &'a [u8],
    left: u32,
    at: u64,
}

impl<'a> Xattrs<'a> {
    /// The value of this attribute.
    pub fn get(self, name: &[u8]) -> Result<Option<&'a [u8]>, Damaged> {
        for attribute in self {
            let (found, value) = attribute?;
            if found == name {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The whole set as it stands in the file; `None` for the empty one.
    pub(crate) fn into_bytes(self) -> Result<Option<&'a [u8]>, Damaged> {
        let mut after = self.clone();
        for attribute in &mut after {
            attribute?;
        }
        let length = self.set.len() - after.rest.len();
        Ok(self.set.get(..length).filter(|set| !set.is_empty()))
    }

    fn split(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (lengths, rest) = self.rest.split_first_chunk::<8>()?;
        let (name, rest) = rest.split_at_checked(usize::from(u16_at(lengths, 0)))?;
        let (value, rest) = rest.split_at_checked(u32_at(lengths, 4) as usize)?;
        self.rest = rest;
        Some((name, value))
    }
}

impl<'a> Iterator for Xattrs<'a> {
    /// Name and value.
    type Item = Result<(&'a [u8], &'a [u8]), Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let attribute = self.split();
        if attribute.is_none() {
            self.left = 0;
        }
        Some(attribute.ok_or(Damaged::new("xattr set", self.at)))
    }
}
