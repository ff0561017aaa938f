//! Volumes, binds and file systems in memory: the commands, what containers see, and what lies on the disk afterwards.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod binds;
mod commands;
mod cow;
mod filled;
mod killed;
mod size;

use std::fs;
use std::path::PathBuf;

use support::Home;

/// The directory of what belongs to this machine.
fn machine(home: &Home) -> PathBuf {
    let hosts = home.store().join("hosts");
    let machine = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().file_name();
    hosts.join(machine)
}
