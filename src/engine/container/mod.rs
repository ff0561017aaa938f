//! Containers: their records, their life, and what can be asked of them.
//!
//! ```text
//! hosts/<machine>/containers/<id>/config.json   what create was told, merged with the image; replaced whole   (record)
//!                                 state.json    where it is in its life; replaced whole                     (state)
//!                                 log           json-file lines, by the monitor                             (logs)
//!                                 devices.json  what its devices gave to its processes at the last start    (devices)
//!                                 monitor.json  what a successor of its monitor needs                   (take_over)
//!                                 lock          OFD lock of whoever changes the container                   (lock)
//! hosts/<machine>/names/<name>                  the id; its link is the reservation                         (names)
//! hosts/<machine>/unstarted/<id>                held by a `run --rm` until its container has been started   (unstarted)
//! ```
//! Readers take no lock. Who changes a container's state takes its lock; a name's file is locked only between its
//! reservation and the container's record. Lock order: unstarted, name, container, store.

pub mod attach;
pub mod commit;
pub mod copy;
pub mod cow;
pub mod create;
pub(crate) mod damage;
pub mod devices;
pub mod diff;
pub(crate) mod driver;
pub mod elsewhere;
pub mod exec;
pub mod export;
pub(crate) mod files;
pub(crate) mod fit;
pub mod health;
pub mod inspect;
pub(crate) mod isolation;
pub(crate) mod joined;
pub mod kill;
pub(crate) mod limits;
pub mod list;
pub mod lock;
pub(crate) mod log_driver;
pub mod logs;
pub mod lookup;
pub mod names;
pub(crate) mod network;
pub mod pause;
pub mod prune;
pub mod record;
pub mod remove;
pub mod rename;
pub mod restart;
pub(crate) mod rootfs;
pub mod size;
pub(crate) mod snapshot;
pub mod spec;
pub mod start;
pub mod state;
pub mod stats;
pub mod stop;
pub(crate) mod take_over;
pub mod top;
pub(crate) mod tree;
pub mod unstarted;
pub mod update;
pub mod wait;

pub use commit::{CommitRequest, commit};
pub use create::{CreateRequest, create, create_to_start};
pub use driver::DRIVERS;
pub use lookup::find;
pub use record::{Record, Settings};
pub use state::Life;
