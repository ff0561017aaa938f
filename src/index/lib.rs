//! The inode tree of a layer and of a merged chain of layers, as one immutable file that many processes map.
//!
//! A *layer index* says what one layer adds, changes and hides. A *chain index* is the result of stacking layers: the
//! whole image, with no trace of how many layers it came from, so that a lookup costs the same for one layer and for
//! forty. Names, owners, modes, devices and extended attributes are data here; nothing of them is ever an attribute of
//! a file on the host.
//!
//! - [`Index`] reads either kind from a mapped file without heap per inode, and survives any bytes.
//! - [`TreeBuilder`] makes a layer index out of entries by path, in any order.
//! - [`merge()`] makes a chain index out of layer indexes.
//! - [`mod@format`] is the layout of the file.
//!
//! This crate knows neither tar nor the store: it takes and gives bytes and descriptors.

pub mod builder;
pub mod error;
pub mod format;
pub mod merge;
mod name;
pub mod path;
pub mod read;
mod tree;
mod verify;
mod write;

pub use builder::{BuildError, Entry, Metadata, TreeBuilder};
pub use error::{Damaged, OpenError};
pub use merge::{MergeError, Place, merge, merge_to};
pub use path::PathError;
pub use read::{Content, DeviceNumber, Dirent, Dirents, Index, Inode, Kind, Node, Time, Xattrs};
pub use tree::{DEPTH_MAX, LINKS_MAX, STEPS_MAX, TREE_BYTES_MAX, TreeError};
pub use write::WriteError;
