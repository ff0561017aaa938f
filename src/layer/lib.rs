//! Layers as registries hand them out, made into what the store keeps: contents and indexes.
//!
//! [`apply()`] takes the stream of one layer and publishes its index; layers do not depend on each other, so any number
//! can be applied at once and in any order. [`merge_chain`] stacks them. This crate knows neither registries nor
//! containers; it makes no mount and needs no privilege, because owners, devices and modes are only written down.

mod apply;
mod archive;
mod block;
mod chain;
mod content;
mod decompress;
mod error;
mod limits;
mod pax;
mod pipeline;
mod sparse;
mod whiteout;

pub use apply::{Applied, apply, check};
pub use chain::{merge_chain, open_layer};
pub use error::{LayerError, Result};
pub use limits::Limits;
