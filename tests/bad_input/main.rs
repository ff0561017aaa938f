//! What must fail, with one clear error, the right exit code, and nothing left that the next command does not repair.

#[path = "../support/mod.rs"]
mod support;

mod machine;
mod remote;
mod signals;
