//! Snapshots: how an image and the changes of one container become a root file system.
//!
//! A *view* is a read-only file system over something that exists (the merged index of an image chain, the host's own
//! root); one process of the role `fs` serves it to all containers of the user. A *snapshot* is the writable state of
//! one container above a view. Which kernel feature joins the two is a driver's affair.
//!
//! This crate knows neither containers nor networks; it returns a plan, and the container's own init mounts it.

mod archive;
mod changes;
pub mod copied;
pub mod cow;
mod directory;
mod fd_cache;
pub mod fs_client;
mod fs_mount;
pub mod fs_role;
mod fs_server;
pub mod host_closed;
mod host_journal;
mod host_mounts;
pub mod ids;
mod lower;
pub mod native;
mod object_dir;
pub mod own;
pub mod owner_client;
mod owner_log;
pub mod owner_role;
mod probe;
pub mod reads;
mod sandbox;
pub mod seed;
mod tree_walk;
pub mod view_chain;
pub mod view_host;

pub use archive::{write_native, write_own};
pub use changes::{Change, ChangeKind, ChangesError, Ours};
pub use directory::{Driver, Meta, SnapshotError, meta, remove};
pub use object_dir::ObjectDirs;
pub use probe::{Place, overlay_works, probe};
pub use sandbox::confinement;
pub use tree_walk::remove_contents;
