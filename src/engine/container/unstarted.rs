//! Containers that go with the command that makes them unless it starts them: those of `run --rm`.
//!
//! `hosts/<machine>/unstarted/<id>` is locked by that command from before the container's record is written until its start
//! has ended, one way or the other. A command that was killed in between leaves the file with a free lock. Then lists do
//! not show the container, and the next command that makes or looks for one removes it, with the lock in its hands: who has
//! just made the file has no lock yet either, and must not lose the container that it makes next.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use base::{ContainerId, Report};
use sys::lock::{exclusive, is_free, try_exclusive};

use crate::Engine;
use crate::container::remove;
use crate::file::{failed, is_at};
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
        loop {
            let file = File::create_new(&path).map_err(|error| failed("making", &path, error))?;
            exclusive(&file, &path)?;
            // A sweep may have taken it away since it was made.
            if is_at(&file, &path) {
                return Ok(Unstarted { path, _file: file });
            }
        }
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
        let path = engine.paths().unstarted().join(id.as_str());
        if let Ok(file) = File::options().write(true).open(&path) {
            sweep_opened(engine, &id, &file, &path);
        }
    }
}

fn sweep_opened(engine: &Engine, id: &ContainerId, file: &File, path: &Path) {
    // Its maker may have locked it since it was found, or another sweep have removed it.
    let is_ours = try_exclusive(file, path).unwrap_or(false) && is_at(file, path);
    if is_ours && remove::unless_active(engine, id).is_ok() {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;
    use crate::{Options, Paths};

    #[test]
    fn a_sweep_that_comes_late_leaves_what_is_being_made() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path().join("data"), root.path().join("run"), "machine".to_owned());
        let engine = Engine::open(paths, Options::default());
        let id = ContainerId::from_random([7; 32]);
        let path = engine.paths().unstarted().join(id.as_str());
        make_dir(path.parent().unwrap()).unwrap();
        // A sweep has found it while it had no lock yet, and comes to it when the container is there.
        drop(File::create_new(&path).unwrap());
        let late = File::options().write(true).open(&path).unwrap();
        assert_eq!(abandoned(&engine), std::slice::from_ref(&id));
        let maker = File::options().write(true).open(&path).unwrap();
        exclusive(&maker, &path).unwrap();
        let container = engine.paths().container(&id);
        make_dir(&container).unwrap();
        fs::write(container.join("config.json"), "").unwrap();
        sweep_opened(&engine, &id, &late, &path);
        assert!(path.exists() && container.exists(), "while it is being made");
        // The maker was killed.
        drop(maker);
        sweep(&engine);
        assert!(!path.exists() && !container.exists(), "once nobody makes it");
        // One that is made and let go of leaves nothing.
        let held = Unstarted::hold(&engine, &id).unwrap();
        assert!(path.exists() && abandoned(&engine).is_empty());
        drop(held);
        assert!(!path.exists());
    }
}
