//! The layout of an index file: what every byte means.
//!
//! Little endian throughout, sections aligned to eight bytes, no pointers: offsets count from the start of their
//! section. A change of any of this raises [`VERSION`]; a reader refuses what it does not know.
//!
//! ```text
//! header   256 B  magic 8 | version 4 | flags 4 | object digest algorithm 4 | 0 4 | content bytes 8
//!                 | lowest uid 4 | highest uid 4 | lowest gid 4 | highest gid 4
//!                 | offset 8 and length 8 of the six sections | 0 16 | id 32 | sha256 of all other bytes 32 | 0 32
//! inodes   64 B   mode 2 | flags 2 | nlink 4 | uid 4 | gid 4 | size 8 | mtime s 8 | mtime ns 4 | xattrs 4
//!                 | data 8 | count 4 | parent 4 | 0 8
//! dirents  16 B   name offset 4 | inode 4 | first four bytes of the name 4 | name length 2 | type 1 | flags 1
//! objects  40 B   sha256 32 | size 8                    sorted by digest, each once
//! xattrs   var    a set: count 4, then for each name, sorted: name length 2 | 0 2 | value length 4 | name | value
//! strings  var    names and link targets
//! inline   var    contents of small files
//! ```
//!
//! The fields `data` and `count` of an inode depend on its type:
//!
//! | type | data | count |
//! |---|---|---|
//! | directory | number of its first dirent | how many dirents |
//! | regular, inline | offset in `inline` | 0 |
//! | regular, object | offset in the object | number in `objects` |
//! | symlink, link by path | offset in `strings`; the length is `size` | 0 |
//! | device | major in the high, minor in the low 32 bits | 0 |

use oci::Digest;
use sha2::{Digest as _, Sha256};

/// The first eight bytes of every index.
pub const MAGIC: [u8; 8] = *b"SUBLETIX";
/// The only version there is.
pub const VERSION: u32 = 1;
/// The digest algorithm of the object table: sha256.
pub const SHA256: u32 = 1;
/// Length of the header.
pub const HEADER: usize = 256;
/// Length of an inode record.
pub const INODE: usize = 64;
/// Length of a dirent record.
pub const DIRENT: usize = 16;
/// Length of an object record.
pub const OBJECT: usize = 40;

/// Header flags: what a reader may skip asking for, because no inode has it.
pub mod index_flag {
    /// The index of a merged chain, not of one layer.
    pub const CHAIN: u32 = 1;
    /// Some inode has extended attributes.
    pub const XATTRS: u32 = 2;
    /// Some inode has `system.posix_acl_*`.
    pub const ACLS: u32 = 4;
    /// Some inode has `security.capability`.
    pub const CAPABILITIES: u32 = 8;
    /// Some inode is a device.
    pub const DEVICES: u32 = 16;
}

/// Inode flags.
pub mod inode_flag {
    /// Only implied by the path of another entry: its metadata are not the layer's.
    pub const IMPLIED: u16 = 1;
    /// Nothing of lower layers shows through this directory.
    pub const OPAQUE: u16 = 2;
    /// The bits that say where a regular file's content is; none of them: it is empty.
    pub const CONTENT: u16 = 0x30;
    /// In the section `inline`.
    pub const INLINE: u16 = 0x10;
    /// In an object, alone or among others.
    pub const OBJECT: u16 = 0x20;
}

/// Dirent flags.
pub mod dirent_flag {
    /// Hides the lower layers' entry of this name; the layer may have one of its own beside.
    pub const WHITEOUT: u8 = 1;
}

/// The type byte of a dirent without inode (`DT_WHT`).
pub const TYPE_WHITEOUT: u8 = 14;
/// The inode number of a dirent without inode.
pub const NO_INODE: u32 = u32::MAX;

/// The sections in the order of the header's table and of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Inode records.
    Inodes,
    /// Dirent records, directory after directory.
    Dirents,
    /// Object records.
    Objects,
    /// Sets of extended attributes; the first eight bytes are unused so that offset 0 can mean "none".
    Xattrs,
    /// Names and link targets.
    Strings,
    /// Contents of small files.
    Inline,
}

/// All sections, and the length of one record in each.
pub const SECTIONS: [(Section, usize); 6] = [
    (Section::Inodes, INODE),
    (Section::Dirents, DIRENT),
    (Section::Objects, OBJECT),
    (Section::Xattrs, 1),
    (Section::Strings, 1),
    (Section::Inline, 1),
];

/// Where the header's fields are.
pub mod at {
    /// Version.
    pub const VERSION: usize = 8;
    /// Flags.
    pub const FLAGS: usize = 12;
    /// Digest algorithm.
    pub const ALGORITHM: usize = 16;
    /// Sum of the sizes of all regular files.
    pub const CONTENT_BYTES: usize = 24;
    /// Lowest uid, highest uid, lowest gid, highest gid.
    pub const IDS: usize = 32;
    /// Table of sections.
    pub const SECTIONS: usize = 48;
    /// Diff ID or chain ID.
    pub const ID: usize = 160;
    /// Checksum.
    pub const CHECKSUM: usize = 192;
    /// First byte after the checksum.
    pub const AFTER_CHECKSUM: usize = 224;
}

/// The sha256 of all bytes of a file but the field that holds it. The caller has checked the length of the header.
pub fn checksum(file: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(&file[..at::CHECKSUM]);
    hash.update(&file[at::AFTER_CHECKSUM..]);
    Digest::from_bytes(hash.finalize().into())
}

/// The same of a file that is being written.
pub(crate) struct Checksum(Sha256);

impl Checksum {
    /// Begins with the header, whose field may hold anything.
    pub fn of_header(header: &[u8; HEADER]) -> Self {
        let hash = Sha256::new().chain_update(&header[..at::CHECKSUM]);
        Checksum(hash.chain_update(&header[at::AFTER_CHECKSUM..]))
    }

    /// Goes on with what follows the header.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all of it.
    pub fn finish(self) -> Digest {
        Digest::from_bytes(self.0.finalize().into())
    }
}

/// The first four bytes of a name as a number that sorts as they do; shorter names are filled with zeros.
pub fn prefix(name: &[u8]) -> u32 {
    let mut first = [0; 4];
    let length = name.len().min(4);
    first[..length].copy_from_slice(&name[..length]);
    u32::from_be_bytes(first)
}

/// Two bytes of a record at a constant place.
pub fn u16_at<const N: usize>(record: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}

/// Four bytes of a record at a constant place.
pub fn u32_at<const N: usize>(record: &[u8; N], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&record[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// Eight bytes of a record at a constant place.
pub fn u64_at<const N: usize>(record: &[u8; N], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Thirty-two bytes of a record at a constant place.
pub fn digest_at<const N: usize>(record: &[u8; N], at: usize) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&record[at..at + 32]);
    Digest::from_bytes(bytes)
}
