//! Attempts to get out, one file a class of the escapes that other engines and runtimes had.
//!
//! That an attack finds nothing proves something only if it would find the hole. So each of them also runs once where the
//! defence is missing: outside of any container, in one that asks for less, or against the same step done as those did it
//! who had the hole; there it must succeed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../oci/bundle.rs"]
#[allow(dead_code, reason = "a part of the helpers is used here")]
mod bundle;

mod attack;
mod binary;
mod descriptors;
mod keyring;
mod monitor;
mod paths;
mod procfs;
mod races;
mod rights;
mod terminal;
