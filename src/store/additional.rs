//! A store that somebody else keeps, such as one of a whole site on a network file system: its names are seen, its contents
//! are used in place, and nothing is ever written there, no lock and no time either.
//!
//! What is in it is trusted as far as its keeper is: root, the caller, or a user that the caller names, and nobody else
//! may write there. Its sweeps do not know of us: what a container needs and its keeper removes is gone.

use std::fmt;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag, fstat};
use sys::Call;

use crate::dir::Dir;
use crate::error::StoreError;
use crate::shelf::Family;
use crate::{Result, check_format};

/// A store that is only read.
#[derive(Debug)]
pub struct Additional {
    pub(crate) refs: Dir,
    pub(crate) shelves: Vec<(Family, Dir)>,
}

impl Additional {
    /// Opens a store that belongs to one of these users.
    pub fn open(path: &Path, owners: &[u32]) -> Result<Self> {
        let root = Dir::open(path)?;
        trust(&root, owners)?;
        check_format(&root, false)?;
        let sub = |parent: &Dir, name: &str| {
            let dir = parent.subdir(name, false)?;
            trust(&dir, owners)?;
            Ok::<_, StoreError>(dir)
        };
        let mut shelves = Vec::new();
        for family in Family::ALL {
            let dir = sub(&root, family.as_str())?;
            let dir = if family == Family::Blobs { sub(&dir, "sha256")? } else { dir };
            if family.fans_out() {
                trust_all(&dir, owners)?;
            }
            shelves.push((family, dir));
        }
        Ok(Additional { refs: sub(&root, "refs")?, shelves })
    }
}

/// Who is told what is passed over in stores that are only read: what their keepers have left there is not for us to mend,
/// and no reason to do without the rest.
#[derive(Default)]
pub(crate) struct PassOver(pub Option<Box<dyn Fn(StoreError) + Send + Sync>>);

impl PassOver {
    /// What was found there; `None` for what cannot be read, which is told.
    pub fn readable<T>(&self, found: Result<T>) -> Option<T> {
        let tell = |error| {
            if let Some(tell) = &self.0 {
                tell(error);
            }
        };
        found.map_err(tell).ok()
    }
}

impl fmt::Debug for PassOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassOver")
    }
}

/// Refuses a directory that somebody else could have put something into.
fn trust(dir: &Dir, owners: &[u32]) -> Result<()> {
    let stat = fstat(dir).call(|| format!("fstat({})", dir.path().display()))?;
    trust_stat(&stat, dir.path(), owners)
}

/// The same of those in it, on the way to the contents: only who may write in `dir`, and so is trusted, can put others there.
fn trust_all(dir: &Dir, owners: &[u32]) -> Result<()> {
    for name in dir.names()? {
        if let Some(stat) = dir.stat(&name)?.filter(|stat| !is_file(stat)) {
            trust_stat(&stat, &dir.path().join(&name), owners)?;
        }
    }
    Ok(())
}

fn is_file(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

fn trust_stat(stat: &FileStat, path: &Path, owners: &[u32]) -> Result<()> {
    if owners.contains(&stat.st_uid) && stat.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(StoreError::Untrusted { path: path.to_owned(), owner: stat.st_uid, mode: stat.st_mode & 0o7777 })
}
