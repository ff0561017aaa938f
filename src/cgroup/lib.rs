//! cgroup v2: a place for monitor and container, limits, freezing, killing, and what happened there.
//!
//! Two callers place containers. Our engine takes the best place it can have ([`Placement`], the tree below); another
//! engine that calls us as its OCI runtime names one ([`oci`]). Both end in a [`Container`], and both say limits as a
//! list of control files to write ([`Limits`] by options, [`Resources`] by the runtime specification).
//!
//! A process may only be moved inside a subtree whose common ancestor its mover can write, so the **monitor** is placed
//! first, at its birth where that can be ([`birthplace`]), and its children are born in the container's cgroup
//! (`CLONE_INTO_CGROUP`):
//! ```text
//! base/            delegated to the user: sublet.scope of the user's systemd, or a directory somebody gave
//!  ├─ m-<id>/      the monitor: never under the container's limits
//!  ├─ f-<pid>/     in the scope: a file server, which outlives the session that started it
//!  └─ c-<id>/      the container: limits, freezer, cgroup.kill, memory.events
//! ```
//! Rungs, best first ([`Placement::climb`]): `scope` (already below it, else by D-Bus, see [`scope`]), `directory`
//! (the topmost writable ancestor of our own cgroup), none. A group that gives controllers to its children holds no
//! processes itself, hence the leaves; and one that holds processes gives none, as no process could be born below it then.
//!
//! On hosts where version 1 holds the controllers the v2 tree still kills and freezes; limits are then refused when
//! asked for. Threads of control: none; everything is a file operation below a directory descriptor, and only the role
//! of [`scope`] speaks D-Bus, because its library starts threads.

mod container;
mod devices;
mod dir;
mod error;
mod limits;
pub mod oci;
mod oom;
mod placement;
mod resources;
pub mod scope;
mod setting;
pub mod stats;
mod tree;
mod unit;

pub use container::{Container, Frozen, is_frozen};
pub use error::CgroupError;
pub use limits::{DEFAULT_PIDS, IoRate, Limits, RateKind, quota_of_nano_cpus};
pub use oom::{OomState, OomWatch};
pub use placement::{Placement, Request, birthplace, container_name, lingers, probe};
pub use resources::Resources;
pub use setting::BlockDevice;
