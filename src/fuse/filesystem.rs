//! What a file system answers.

use std::time::Duration;

use nix::errno::Errno;

use crate::op::{
    Attr, Caller, CopyRange, Entry, Fallocate, MakeDir, MakeNode, Name, NodeId, Rename, SetAttr, SetXattr, StatFs,
    Whence, Write,
};

/// The answer to one request.
pub type Result<T> = std::result::Result<T, Errno>;

/// Takes the names of a directory until the reply is full.
pub trait DirSink {
    /// Adds one name with its inode number and mode (only the type bits matter). `false`: it did not fit, stop.
    fn add(&mut self, name: Name<'_>, node: NodeId, mode: u32) -> bool;
}

/// Takes the names of a directory together with their attributes until the reply is full.
pub trait EntrySink {
    /// Adds one name with its inode. `false`: it did not fit, stop; nothing was counted. `true`: as after a
    /// successful lookup, one lookup of the entry's node was counted, except for `.` and `..`, which count none.
    fn add(&mut self, name: Name<'_>, entry: &Entry) -> bool;
}

/// A file system over node ids. Called from several threads at once; handlers may block.
///
/// The kernel checks permissions itself (`default_permissions`), serializes changes of one directory, and asks only
/// about nodes that it was told of and has not forgotten. It need not be believed: a wrong node id or offset is an
/// error, never a panic. Every default refuses with `ENOSYS`, after which the kernel does without the operation for
/// the life of the connection where it can, or with `EROFS`.
pub trait Filesystem: Send + Sync + 'static {
    /// Resolves `name` in `parent`. Absent names: [`Entry::absent`] to have that cached, or `Err(ENOENT)`.
    fn lookup(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<Entry>;

    /// The kernel dropped `count` of the lookups of `node`; at zero the node id is free. Never answered.
    fn forget(&self, _node: NodeId, _count: u64) {}

    /// The attributes of `node` and how long they hold.
    fn getattr(&self, caller: &Caller, node: NodeId) -> Result<(Attr, Duration)>;

    /// Changes attributes; returns all of them as they are afterwards.
    fn setattr(&self, _caller: &Caller, _node: NodeId, _change: &SetAttr) -> Result<(Attr, Duration)> {
        Err(Errno::EROFS)
    }

    /// The target of a symbolic link, from `buffer` or from memory of our own.
    fn readlink<'a>(&'a self, caller: &Caller, node: NodeId, buffer: &'a mut [u8]) -> Result<&'a [u8]>;

    /// Creates a file, device, fifo or socket.
    fn mknod(&self, _caller: &Caller, _parent: NodeId, _name: &[u8], _node: &MakeNode) -> Result<Entry> {
        Err(Errno::EROFS)
    }

    /// Makes a regular file without a name in the file system of `parent` (`O_TMPFILE`). It lives until it is forgotten,
    /// unless [`Filesystem::link`] gives it a name. `ENOSYS`: there are no such files here.
    fn tmpfile(&self, _caller: &Caller, _parent: NodeId, _node: &MakeNode) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    /// Creates a directory.
    fn mkdir(&self, _caller: &Caller, _parent: NodeId, _name: &[u8], _dir: &MakeDir) -> Result<Entry> {
        Err(Errno::EROFS)
    }

    /// Removes a name of something that is not a directory.
    fn unlink(&self, _caller: &Caller, _parent: NodeId, _name: &[u8]) -> Result<()> {
        Err(Errno::EROFS)
    }

    /// Removes an empty directory.
    fn rmdir(&self, _caller: &Caller, _parent: NodeId, _name: &[u8]) -> Result<()> {
        Err(Errno::EROFS)
    }

    /// Creates a symbolic link.
    fn symlink(&self, _caller: &Caller, _parent: NodeId, _name: &[u8], _target: &[u8]) -> Result<Entry> {
        Err(Errno::EROFS)
    }

    /// Renames, replaces or exchanges names.
    fn rename(&self, _caller: &Caller, _rename: &Rename<'_>) -> Result<()> {
        Err(Errno::EROFS)
    }

    /// Gives `node` another name. The entry's node is `node`.
    fn link(&self, _caller: &Caller, _node: NodeId, _new_parent: NodeId, _new_name: &[u8]) -> Result<Entry> {
        Err(Errno::EROFS)
    }

    /// Up to `buffer.len()` bytes from `offset`; fewer only at the end of the file. The bytes may stand in `buffer` or
    /// in memory of our own (a mapped index), from which the reply is written without a copy.
    fn read<'a>(&'a self, caller: &Caller, node: NodeId, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]>;

    /// Writes the data; returns how much, less than all where there is no room for more.
    fn write(&self, _caller: &Caller, _write: &Write<'_>) -> Result<u32> {
        Err(Errno::EROFS)
    }

    /// The size and room of the file system.
    fn statfs(&self, caller: &Caller, node: NodeId) -> Result<StatFs>;

    /// The value of an extended attribute, in `buffer` (64 KiB, the kernel's limit) or from memory of our own; the
    /// wire does the size protocol. `ENODATA` when it is absent.
    fn getxattr<'a>(
        &'a self,
        _caller: &Caller,
        _node: NodeId,
        _name: &[u8],
        _buffer: &'a mut [u8],
    ) -> Result<&'a [u8]> {
        Err(Errno::ENOSYS)
    }

    /// Appends each attribute's name and a NUL byte.
    fn listxattr(&self, _caller: &Caller, _node: NodeId, _names: &mut Vec<u8>) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Sets an extended attribute.
    fn setxattr(&self, _caller: &Caller, _node: NodeId, _xattr: &SetXattr<'_>) -> Result<()> {
        Err(Errno::EROFS)
    }

    /// Removes an extended attribute.
    fn removexattr(&self, _caller: &Caller, _node: NodeId, _name: &[u8]) -> Result<()> {
        Err(Errno::EROFS)
    }

    /// The names of a directory after `cookie` (0: from the start), `.` and `..` included.
    fn readdir(&self, caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn DirSink) -> Result<()>;

    /// As [`Filesystem::readdir`], with each name looked up. The same names under the same cookies.
    fn readdirplus(&self, caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn EntrySink) -> Result<()>;

    /// Makes a file's contents (and, unless `data_only`, its attributes) durable.
    fn fsync(&self, _caller: &Caller, _node: NodeId, _data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Makes a directory's names durable.
    fn fsyncdir(&self, _caller: &Caller, _dir: NodeId, _data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Allocates, punches or zeroes a range.
    fn fallocate(&self, _caller: &Caller, _range: &Fallocate) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Finds data or a hole; `ENXIO` beyond the end. `ENOSYS`: the kernel takes the file as one piece of data.
    fn lseek(&self, _caller: &Caller, _node: NodeId, _offset: u64, _whence: Whence) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    /// Copies between two files without the data passing through the kernel's client side; returns the count.
    fn copy_file_range(&self, _caller: &Caller, _copy: &CopyRange) -> Result<u64> {
        Err(Errno::ENOSYS)
    }
}
