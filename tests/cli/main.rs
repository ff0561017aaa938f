//! The command line as Docker's users know it: output, exit codes, options, the life of a container.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod attach;
mod completion;
mod copy;
mod devices;
mod events;
mod exit_codes;
mod health;
mod isolation;
mod lifecycle;
mod limits;
mod listing;
mod locks;
mod logs;
mod options;
mod policies;
mod starting;
mod system;
mod terminal;
