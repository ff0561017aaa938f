//! What every crate may use and nothing else: the error chain with kinds and hints, identifiers, units and time.
//!
//! This crate makes no system calls, reads no environment and knows no other crate.

pub mod id;
pub mod ladder;
pub mod owner;
pub mod report;
pub mod time;
pub mod units;

pub use id::ContainerId;
pub use ladder::{Ladder, Trial};
pub use report::{Context, Explain, Failure, Kind, Report};
