//! How a container's first process, and every process executed in it later, is made.
//!
//! The crate knows the OCI runtime specification and the kernel; it knows no images, no store and no network. It is
//! used by the monitor, which starts the role *stage* ([`stage`]) and reads the [`channel`].
//!
//! ```text
//! monitor ──exec──▶ stage: joins the outer user namespace, becomes its root
//!                     │ clone3(PARENT | INTO_CGROUP | NEWUSER NEWNS NEWPID NEWIPC NEWUTS NEWCGROUP [NEWNET])
//!                     ├──────────▶ init (child of the monitor): opens what needs the caller's identity, waits
//!                     │ writes init's id maps, clones the image's FUSE view, shifts it, sends it; ends
//!                     │              init: becomes root of the inner namespace, TAP, root file system, mounts,
//!                     │                    devices, pivot, limits, user, seccomp; READY; waits for GO
//!                     ▼                    becomes the payload by exec; the end of its channel says so
//! ```
//! Steps run in the order in which [`init`] lists them; each failure names its step. Nothing is attached where the
//! container could reach it before its attributes are set.

pub mod bundle;
pub mod capabilities;
pub mod channel;
pub mod exec;
pub mod hooks;
pub mod init;
pub mod launch;
pub mod notify;
pub mod outer;
pub mod own_binary;
pub mod probe;
mod root_ids;
pub mod seccomp;
pub mod signals;
pub mod stage;
pub mod visit;

pub use launch::{Launch, Rootfs};
