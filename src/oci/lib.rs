//! Images as data: digests, names, platforms, manifests, indexes and image configurations.
//!
//! This crate does no I/O and knows no other part but `base`: bytes come in, checked values go out. All input is
//! taken for hostile: each reader has a limit, keeps the raw bytes (a digest is over bytes, never over what we would
//! write) and refuses what is ambiguous instead of guessing.

pub mod config;
pub mod digest;
pub mod document;
pub mod entries;
pub mod health;
pub mod media;
pub mod packed;
pub mod pattern;
pub mod platform;
pub mod reference;
pub mod select;

pub use config::{DockerConfig, ImageConfig};
pub use digest::{ChainId, DiffId, Digest, Hasher};
pub use document::{Descriptor, Document, DocumentError, Index, Manifest};
pub use entries::{Entries, Entry, EntryPlatform};
pub use health::HealthCheck;
pub use pattern::{Pattern, PatternError};
pub use platform::Platform;
pub use reference::{ImageName, Reference, ReferenceError};
pub use select::{SelectError, find_manifest, select_manifest};
