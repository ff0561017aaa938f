//! Containers that go with the command that makes them unless it starts them: those of `run --rm`.
//!
//! `hosts/<machine>/unstarted/<id>` is locked by that command from before the container's record is written until its start
//! has ended, one way or the other. A command that was killed in between leaves the file with a free lock. Then lists do
//! not show the container, and the next command that makes or looks for one removes it.

use std::fs::{self, File};
use std::path::PathBuf;

use base::{ContainerId, Report};
use sys::lock::{exclusive, is_free};

use crate::Engine;
use crate::container::remove;
use crate::file::failed;
use crate::paths::make_dir;

/// A container that nobody has started yet.
#[derive(Debug)]
pub struct Unstarted {
    path: PathBuf,
    _file: File,
}

impl Unstarted {
    /// To be called before the container's record is written.
    pub(crate) fn hold(engine: &Engine, id: &ContainerId) -> Result<Self, Report> {
        let directory = engine.paths().unstarted();
        make_dir(&directory)?;
        let path = directory.join(id.as_str());
        let file = File::create_new(&path).map_err(|error| failed("making", &path, error))?;
        exclusive(&file, &path)?;
        Ok(Unstarted { path, _file: file })
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        // A file that stays is taken away by the next command: its container runs, or is gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// The containers whose makers were killed before they had started them.
pub(crate) fn abandoned(engine: &Engine) -> Vec<ContainerId> {
    let Ok(entries) = fs::read_dir(engine.paths().unstarted()) else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_abandoned = |id: &ContainerId| {
        let path = engine.paths().unstarted().join(id.as_str());
        File::open(&path).is_ok_and(|file| is_free(&file, &path).unwrap_or(false))
    };
    ids.filter(is_abandoned).collect()
}

/// Removes them. What resists is tried again by the next command.
pub(crate) fn sweep(engine: &Engine) {
    for id in abandoned(engine) {
        if remove::unless_active(engine, &id).is_ok() {
            let _ = fs::remove_file(engine.paths().unstarted().join(id.as_str()));
        }
    }
}
