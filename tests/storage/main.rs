//! The container's own files: one contract for every storage driver, the choice of the driver, and what `diff` tells.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod choice;
mod contract;
mod diff;
mod file_systems;
mod killed;
mod one_id;
mod reads;
mod resume;
mod written;
