//! A store that somebody else keeps, such as one of a whole site on a network file system: its names are seen, its contents
//! are used in place, and nothing is ever written there, no lock and no time either.
//!
//! What is in it is trusted as far as its keeper is: root, the caller, or a user that the caller names, and nobody else
//! may write there. Its sweeps do not know of us: what a container needs and its keeper removes is gone.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag, fstat};
use sys::Call;

use crate::dir::Dir;
use crate::error::StoreError;
use crate::refs::if_there;
use crate::shelf::Family;
use crate::{Result, check_format};

/// A store that is only read.
#[derive(Debug)]
pub struct Additional {
    pub(crate) refs: Dir,
    pub(crate) shelves: Vec<(Family, Below)>,
}

/// The directory of one kind of content, which was judged. Those in it, over which large kinds are spread, are judged when
/// something in them is looked for: each would cost a request where a network is in between.
#[derive(Debug)]
pub(crate) struct Below {
    dir: Dir,
    owners: Arc<[u32]>,
}

impl Below {
    /// Looks for a content of this path ([`Family::path_of`]).
    pub fn look<T>(&self, path: &str, in_dir: impl FnOnce(&Dir, &str) -> Result<Option<T>>) -> Result<Option<T>> {
        let Some((spread, name)) = path.split_once('/') else { return in_dir(&self.dir, path) };
        let Some(dir) = if_there(self.dir.subdir(spread, false))? else { return Ok(None) };
        trust(&dir, &self.owners)?;
        in_dir(&dir, name)
    }

    /// The directory, for who looks in it without us: all in it is judged first.
    pub fn whole(&self) -> Result<&Dir> {
        trust_all(&self.dir, &self.owners).map(|()| &self.dir)
    }
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
        let all_owners: Arc<[u32]> = owners.into();
        for family in Family::ALL {
            let dir = sub(&root, family.as_str())?;
            let dir = if family == Family::Blobs { sub(&dir, "sha256")? } else { dir };
            shelves.push((family, Below { dir, owners: Arc::clone(&all_owners) }));
        }
        Ok(Additional { refs: sub(&root, "refs")?, shelves })
    }
}

/// Who is told what is passed over: what lies damaged among names, or was left so in stores that are only read by their keepers,
/// is no reason to do without the rest.
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
