//! Our own writable overlay: an image chain below, flat data files and one metadata log above.
//!
//! Theory of operation
//! - *Below* is one merged [`index::Index`]: names and attributes are read from its mapping, contents through
//!   [`Contents`]. It never changes, however many upper trees stand on it.
//! - *Above* is a directory in which the calling user owns every file: `up/ab/<ino>` holds the contents of inode
//!   `<ino>` (hexadecimal, `ab` its lowest byte), `log.<n>` holds every change of names and attributes. Owners, modes,
//!   devices, links and whiteouts are records, so `chown -R`, moving a lower directory, and hiding a lower name cost one
//!   small write each, and no privilege.
//! - *In memory* there are nodes only for inodes that were made or changed ([`tree`]), and overlay maps only for
//!   directories whose names changed. A lower inode that was merely looked at costs nothing but four bytes of lookup count.
//! - *Copy-up* of contents happens at the first write, truncation to more than nothing or allocation; a change of
//!   attributes never copies. An inode keeps its number for life, so hard links and mappings stay what they were.
//! - Each change is one log record, written before the operation is answered; a killed process loses nothing. Durable
//!   it becomes by `fsync` ([`Overlay::fsync`]), unless the policy is [`Policy::Volatile`].
//!
//! The engine ([`Overlay`]) knows no FUSE types: `commit`, `cp` and `diff` use it without a mount. [`View`] answers a
//! mount with it. The caller holds the lock that keeps a second process from opening the same upper.
//!
//! A successor on the connection of a server that was killed ([`Overlay::resume`]) finds every change in the log, answers
//! from it what it is asked once more ([`done`]), and has every file that was open and unlinked. It does not know how
//! often the kernel has looked up what there was: the data of such files goes only when the last server has ended.
//!
//! Left out, knowingly: a checkpoint is a compacted log (not yet a mapped index).

pub mod acl;
mod attr;
mod busy;
mod compact;
mod data;
mod diff;
mod done;
mod error;
mod files;
mod log;
mod lower;
mod names;
mod node;
mod overlay;
mod quota;
mod reader;
mod record;
mod tree;
mod view;
mod xattr;

#[cfg(test)]
mod model_test;

pub use attr::{
    Attr, Make, NAME_MAX, ROOT, Request, Result, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, SetAttr, SetTime, Time,
    UPPER_BASE, encode_dev,
};
pub use diff::{Change, Difference, diff};
pub use error::OpenError;
pub use lower::Contents;
pub use names::{Listed, RenameHow};
pub use overlay::{Overlay, Policy, Recovery};
pub use reader::{ReadData, Reader};
pub use view::View;
pub use xattr::SetXattrHow;
