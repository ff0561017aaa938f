//! The kernel's side of the protocol, as bytes: numbers of operations and flags, and how structures are read and written.
//!
//! Source: `include/uapi/linux/fuse.h`, protocol 7.45 (Linux 6.18). All fields are in the machine's byte order. A structure
//! is read field by field from a slice that may end anywhere, so no layout of ours has to match the kernel's.

use std::time::Duration;

use nix::errno::Errno;

use crate::filesystem::Result;
use crate::op::{Attr, Entry, StatFs, Time};

/// The version that is spoken; the kernel speaks the lower of both minors.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 45;
/// Linux 4.18, the first kernel with FUSE mounts in user namespaces.
pub(crate) const MINOR_MIN: u32 = 27;

/// `fuse_in_header` and `fuse_out_header`.
pub(crate) const IN_HEADER: usize = 40;
pub(crate) const OUT_HEADER: usize = 16;
/// `fuse_entry_out`, and what stands before a name in a directory: `fuse_dirent`.
pub(crate) const ENTRY: usize = 128;
pub(crate) const DIRENT: usize = 24;

/// Set in the number of a request that was sent once before (7.40).
pub(crate) const UNIQUE_RESEND: u64 = 1 << 63;
/// The notification that has requests without an answer sent again (7.40).
pub(crate) const NOTIFY_RESEND: i32 = 7;

pub(crate) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// Flags of `INIT`.
pub(crate) mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// `SETATTR`: which fields are meant.
pub(crate) mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `WRITE`: comes from the page cache; takes set-id bits.
pub(crate) const WRITE_CACHE: u32 = 1 << 0;
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `SETXATTR`: an ACL takes the set-group-id bit.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `FSYNC`: contents only.
pub(crate) const FSYNC_FDATASYNC: u32 = 1 << 0;

/// What is left of a structure that is read from its front. A field that is not there is `EIO`: the request is none that
/// this kernel could have sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Errno::EIO)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.bytes(N)?.try_into().map_err(|_| Errno::EIO)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Leaves out `count` bytes.
    pub(crate) fn skip(&mut self, count: usize) -> Result<()> {
        self.bytes(count).map(drop)
    }

    /// A string and its NUL byte.
    pub(crate) fn string(&mut self) -> Result<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::EIO)?;
        let string = self.bytes(end)?;
        self.skip(1)?;
        Ok(string)
    }

    /// A name in a directory: neither empty nor with a slash.
    pub(crate) fn name(&mut self) -> Result<&'a [u8]> {
        let name = self.string()?;
        if name.is_empty() || name.contains(&b'/') { Err(Errno::EIO) } else { Ok(name) }
    }
}

/// Writes a structure front to back into a buffer that is large enough for it.
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    filled: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Writer { buffer, filled: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Writes `count` zeroes.
    pub(crate) fn zeroes(&mut self, count: usize) -> &mut Self {
        self.buffer[self.filled..self.filled + count].fill(0);
        self.filled += count;
        self
    }

    /// What was written.
    pub(crate) fn done(self) -> &'a [u8] {
        &self.buffer[..self.filled]
    }

    pub(crate) fn room(&self) -> usize {
        self.buffer.len() - self.filled
    }

    /// `fuse_attr`.
    fn attr(&mut self, attr: &Attr) -> &mut Self {
        let Attr { node, size, blocks, atime, mtime, ctime, mode, nlink, uid, gid, rdev, block_size } = attr;
        self.u64(node.0).u64(*size).u64(*blocks);
        self.u64(atime.seconds as u64).u64(mtime.seconds as u64).u64(ctime.seconds as u64);
        self.u32(nanos(*atime)).u32(nanos(*mtime)).u32(nanos(*ctime));
        self.u32(*mode).u32(*nlink).u32(*uid).u32(*gid).u32(*rdev).u32(*block_size).u32(0)
    }

    /// `fuse_entry_out`.
    pub(crate) fn entry(&mut self, entry: &Entry) -> &mut Self {
        let Entry { attr, generation, entry_ttl, attr_ttl } = entry;
        self.u64(attr.node.0).u64(*generation).u64(entry_ttl.as_secs()).u64(attr_ttl.as_secs());
        self.u32(entry_ttl.subsec_nanos()).u32(attr_ttl.subsec_nanos()).attr(attr)
    }

    /// `fuse_attr_out`.
    pub(crate) fn attr_out(&mut self, attr: &Attr, ttl: Duration) -> &mut Self {
        self.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).attr(attr)
    }

    /// `fuse_statfs_out`.
    pub(crate) fn statfs(&mut self, stat: &StatFs) -> &mut Self {
        self.u64(stat.blocks).u64(stat.blocks_free).u64(stat.blocks_available).u64(stat.files).u64(stat.files_free);
        self.u32(stat.block_size).u32(stat.name_max).u32(stat.fragment_size).zeroes(28)
    }

    /// `fuse_dirent` with its name, up to the next multiple of eight.
    pub(crate) fn dirent(&mut self, node: u64, cookie: u64, mode: u32, name: &[u8]) -> &mut Self {
        self.u64(node).u64(cookie).u32(name.len() as u32).u32(mode >> 12 & 15);
        self.bytes(name).zeroes(name.len().next_multiple_of(8) - name.len())
    }
}

/// The kernel takes no more than this for a part of a second.
fn nanos(time: Time) -> u32 {
    time.nanos.min(999_999_999)
}
