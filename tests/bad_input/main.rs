//! What must fail, with one clear error, the right exit code, and nothing left that the next command does not repair.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod cdi;
mod machine;
mod remote;
mod signals;
