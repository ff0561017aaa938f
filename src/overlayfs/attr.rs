//! The plain values of the tree engine: what `stat(2)` shows, what `setattr` changes, who asks.

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

/// Type bits of a mode (`S_IFMT` and its values, `inode(7)`).
pub const S_IFMT: u32 = 0o170_000;
/// Directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// Character device.
pub const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
pub(crate) const S_IXGRP: u32 = 0o0010;

/// The inode number of the root directory.
pub const ROOT: u64 = 1;
/// Numbers from here on belong to inodes made in the upper; below it, number `i + 1` is inode `i` of the chain index.
pub const UPPER_BASE: u64 = 1 << 40;
/// Longest name in bytes.
pub const NAME_MAX: usize = 255;

/// The result of an operation: an errno as `stat(2)` and friends document it.
pub type Result<T> = std::result::Result<T, Errno>;

/// Seconds since the epoch (may be negative) and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 ..= 999,999,999.
    pub nanos: u32,
}

impl Time {
    /// The clock that file systems stamp with (coarse: the same tick as the kernel stamps our data files with).
    pub(crate) fn now() -> Time {
        clock_gettime(ClockId::CLOCK_REALTIME_COARSE)
            .map(|at| Time { seconds: at.tv_sec(), nanos: at.tv_nsec() as u32 })
            .unwrap_or_default()
    }
}

/// What `stat(2)` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names; for directories 2 plus the number of subdirectories.
    pub nlink: u32,
    /// Owner as recorded: the container's ids.
    pub uid: u32,
    /// Group as recorded.
    pub gid: u32,
    /// Device number in the kernel's 32-bit encoding (12 bits of major, 20 of minor).
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Last access as far as anybody set it; reads do not move it.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The number of the request on its connection, kept in the log; 0 when there is no connection.
    pub unique: u64,
    /// It was sent before and not answered: if the log has it, it is done and only to be answered.
    pub resent: bool,
    /// Owner of what is created.
    pub uid: u32,
    /// Group of what is created, unless the directory hands its own down.
    pub gid: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the change itself.
    Now,
    /// This time.
    At(Time),
}

/// Whatever is `Some` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits; type bits are ignored.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// With a new size: set-id bits and file capabilities must go.
    pub kill_privileges: bool,
}

/// What to create: any type of inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Make<'a> {
    /// Type and permission bits.
    pub mode: u32,
    /// Bits that are taken from it, unless the directory has a default ACL, which then says what is allowed.
    pub umask: u32,
    /// Device number for devices, encoded as in [`Attr::rdev`].
    pub rdev: u32,
    /// Target of a symbolic link, empty otherwise.
    pub target: &'a [u8],
}

/// The mode of a file that is not a directory after a change by which it loses its privileges, as the kernel does it
/// (`setattr_should_drop_suidgid`): the set-group-id bit without group execution means something else and stays.
pub(crate) fn without_privileges(mode: u32) -> u32 {
    let group = if mode & S_IXGRP != 0 { S_ISGID } else { 0 };
    mode & !(S_ISUID | group)
}

/// Packs a device number as [`Attr::rdev`] holds it (`new_encode_dev` of the kernel).
pub fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}
