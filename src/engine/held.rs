//! Directories that containers share: volumes, and trees of images. Their lock is held for a moment, never for a container's life.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use base::Report;

use crate::file::{failed, is_at};

/// A directory that nobody removes meanwhile, or that nobody else uses.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    path: PathBuf,
}

/// Whose lock it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
    /// Nobody waits: who has it is at work on the directory.
    ExclusiveIfFree,
}

impl Held {
    /// Takes the lock of a directory; `None` where there is no such directory, or it is not free.
    pub(crate) fn of(dir: &Path, how: Hold) -> Result<Option<Held>, Report> {
        let path = dir.join("lock");
        loop {
            let file = match File::options().create(true).truncate(false).read(true).write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file.map_err(|error| failed("opening", &path, error))?,
            };
            let held = Held { file, path: path.clone() };
            if !held.take(how)? {
                return Ok(None);
            }
            // It may have been removed, and another one made, while we waited.
            if held.is_current() {
                return Ok(Some(held));
            }
        }
    }

    /// Makes it this kind of lock; `false` where it is not free.
    pub(crate) fn take(&self, how: Hold) -> Result<bool, Report> {
        match how {
            Hold::Shared => sys::lock::shared(&self.file, &self.path)?,
            Hold::Exclusive => sys::lock::exclusive(&self.file, &self.path)?,
            Hold::ExclusiveIfFree => return Ok(sys::lock::try_exclusive(&self.file, &self.path)?),
        }
        Ok(true)
    }

    fn is_current(&self) -> bool {
        is_at(&self.file, &self.path)
    }
}
