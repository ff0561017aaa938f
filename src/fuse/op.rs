//! The values that operations take and return: plain data in the kernel's terms.

use std::time::Duration;

/// Names an inode for the life of the connection; also its `st_ino`. The root is 1, 0 means "no such file".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(1);
}

/// How long the kernel may keep what it was told and never ask again: about eleven days.
pub const FOREVER: Duration = Duration::from_secs(1_000_000);

/// Who asks, as the mount's user namespace sees them. With id-mapped mounts the ids are valid only on creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The request's number on this connection; the same again when the kernel resends it.
    pub unique: u64,
    /// The kernel sends it once more, since whoever read it first did not answer. It may have been done.
    pub resent: bool,
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Thread id, 0 for requests that the kernel makes itself.
    pub pid: u32,
}

/// Seconds since the epoch (may be negative) and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 ..= 999,999,999.
    pub nanos: u32,
}

/// What `stat(2)` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Node id and inode number.
    pub node: NodeId,
    /// Type and permission bits (`S_IFMT | 07777`).
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner, in the mount's user namespace.
    pub uid: u32,
    /// Group, in the mount's user namespace.
    pub gid: u32,
    /// Device number of a character or block device, in the kernel's 32-bit encoding (see [`encode_dev`]).
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O in bytes.
    pub block_size: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

/// Packs a device number as the protocol wants it: 12 bits of major, 20 bits of minor (`new_encode_dev` of the kernel).
pub fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// What a name resolves to, and how long that holds. Handing one out counts one lookup of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode; node 0 says that the name does not exist, and that this may be cached.
    pub attr: Attr,
    /// Tells a reused node id from its predecessor.
    pub generation: u64,
    /// How long the kernel may believe the name.
    pub entry_ttl: Duration,
    /// How long the kernel may believe the attributes.
    pub attr_ttl: Duration,
}

impl Entry {
    /// A name that exists, with one time to live for name and attributes.
    pub fn new(attr: Attr, ttl: Duration) -> Self {
        Entry { attr, generation: 0, entry_ttl: ttl, attr_ttl: ttl }
    }

    /// A name that does not exist, to be remembered for `ttl`. Counts no lookup.
    pub fn absent(ttl: Duration) -> Self {
        let attr = Attr {
            node: NodeId(0),
            mode: 0o100_000,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
        };
        Entry { attr, generation: 0, entry_ttl: ttl, attr_ttl: ttl }
    }
}

/// A time to set: by the caller, or the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The current time.
    Now,
    /// This time.
    At(Time),
}

/// `SETATTR`: whatever is `Some` changes. Covers `chmod`, `chown`, `truncate`, `utimensat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits (type bits, if any, are to be ignored).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// Set-user-id, set-group-id (if group-executable) and `security.capability` must go, as they do by a change of the
    /// owner or of the size, unless the caller is exempt.
    pub kill_suid_gid: bool,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// New change time (only with the writeback cache).
    pub ctime: Option<Time>,
}

/// `MKNOD`: also every creation of a regular file, since `CREATE` is refused; and `TMPFILE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MakeNode {
    /// Type and permission bits; the umask is *not* applied when [`crate::Features::dont_mask`] was granted.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Device number for devices ([`encode_dev`]).
    pub rdev: u32,
}

/// `MKDIR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MakeDir {
    /// Permission bits; umask as in [`MakeNode`].
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
}

/// `RENAME2`, flags as in `renameat2(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rename<'a> {
    /// Directory of the old name.
    pub parent: NodeId,
    /// Old name.
    pub name: &'a [u8],
    /// Directory of the new name.
    pub new_parent: NodeId,
    /// New name.
    pub new_name: &'a [u8],
    /// `RENAME_NOREPLACE`.
    pub no_replace: bool,
    /// `RENAME_EXCHANGE`.
    pub exchange: bool,
    /// `RENAME_WHITEOUT`.
    pub whiteout: bool,
}

/// `WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// The file.
    pub node: NodeId,
    /// Where the data begins, in bytes.
    pub offset: u64,
    /// What to write.
    pub data: &'a [u8],
    /// Set-user-id, set-group-id (if group-executable) and `security.capability` must go.
    pub kill_suid_gid: bool,
    /// Comes from the page cache, not from the caller named in the request.
    pub from_cache: bool,
}

/// `SETXATTR`, flags as in `setxattr(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetXattr<'a> {
    /// Full name with its namespace prefix.
    pub name: &'a [u8],
    /// New value.
    pub value: &'a [u8],
    /// `XATTR_CREATE`: fail with `EEXIST` if it exists.
    pub create: bool,
    /// `XATTR_REPLACE`: fail with `ENODATA` if it does not exist.
    pub replace: bool,
    /// With an access ACL the set-group-id bit must go: the caller is not of the file's group.
    pub kill_sgid: bool,
}

/// `FALLOCATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallocate {
    /// The file.
    pub node: NodeId,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// `FALLOC_FL_*` bits of `fallocate(2)`.
    pub mode: i32,
}

/// `COPY_FILE_RANGE` inside this file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRange {
    /// Source file.
    pub source: NodeId,
    /// First byte to copy.
    pub source_offset: u64,
    /// Destination file.
    pub target: NodeId,
    /// Where it goes.
    pub target_offset: u64,
    /// Number of bytes wanted.
    pub length: u64,
}

/// `SEEK_DATA` or `SEEK_HOLE` of `lseek(2)`; the kernel answers the others itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Next byte of data at or after the offset.
    Data,
    /// Next hole at or after the offset.
    Hole,
}

/// What `statfs(2)` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Size in units of `fragment_size`.
    pub blocks: u64,
    /// Free units.
    pub blocks_free: u64,
    /// Free units for ordinary users.
    pub blocks_available: u64,
    /// Number of inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred size of I/O in bytes.
    pub block_size: u32,
    /// Longest name in bytes.
    pub name_max: u32,
    /// Unit of the block counts in bytes.
    pub fragment_size: u32,
}

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The name's bytes, neither empty nor with a slash.
    pub name: &'a [u8],
    /// Hand this to the next `readdir` to go on after this entry: a property of the entry, stable under change, never 0.
    pub next_cookie: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_the_kernel_packs_them() {
        for (major, minor, packed) in
            [(0, 0, 0), (1, 3, 0x103), (8, 255, 0x8ff), (259, 1_048_575, 0xfff1_03ff), (4095, 256, 0x1f_ff00)]
        {
            assert_eq!(encode_dev(major, minor), packed);
        }
    }
}
