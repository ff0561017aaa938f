//! Images into files and out of them, images of containers, and what other tools make of both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod commit;
mod ended;
mod files;
mod import;
mod killed;
mod peers;
mod platforms;
mod progress;
mod registries;
