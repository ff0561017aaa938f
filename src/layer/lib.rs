//! Layers as registries hand them out, made into what the store keeps: contents and indexes.
//!
//! [`apply()`] takes the stream of one layer and publishes its index; layers do not depend on each other, so any number
//! can be applied at once and in any order. [`merge_chain`] stacks them. [`create()`] is the other way: what writes an
//! archive ([`TarWriter`], [`write_tree`]) becomes a blob and an index. This crate knows neither registries nor
//! containers; it makes no mount and needs no privilege, because owners, devices and modes are only written down.

mod apply;
mod archive;
mod block;
mod chain;
mod compress;
mod content;
mod create;
mod decompress;
mod error;
mod limits;
mod locate;
mod pax;
mod pipeline;
mod sparse;
mod tar_writer;
mod tree_writer;
mod whiteout;
mod window;

pub use apply::{Applied, apply, check};
pub use archive::{Archive, Header, Piece, Type};
pub use chain::{claim_layer, merge_chain, open_layer};
pub use compress::Compression;
pub use create::{Created, create, take};
pub use decompress::{archive as unpacked, copy_plain, is_plain};
pub use error::{LayerError, Result};
pub use limits::Limits;
pub use locate::{Located, Place, locate};
pub use tar_writer::{TarContent, TarEntry, TarWriter};
pub use tree_writer::{Objects, write_tree};
