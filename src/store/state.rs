//! What killed commands have left and no sweep has removed yet.

use sys::lock;

use crate::dir::is_temporary;
use crate::shelf::{Family, Shelf};
use crate::{Result, Store};

/// How many things there are that the next sweep removes, or puts back where they are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Files that were never published, whose writer is dead.
    pub temporary: usize,
    /// Leases of dead processes.
    pub leases: usize,
    /// Contents that a sweep had taken out of place when it was killed.
    pub trash: usize,
}

impl Store {
    /// Counts what is left behind; what a living command is at work on does not count.
    pub fn leftovers(&self) -> Result<Leftovers> {
        let leases = self.leases()?.iter().filter(|lease| !lease.living).count();
        let mut left = Leftovers { leases, ..Leftovers::default() };
        for dir in self.dirs_of_temporary_files()? {
            for name in dir.names()?.into_iter().filter(|name| is_temporary(name)) {
                let Some(file) = dir.open_file(&name)? else { continue };
                left.temporary += usize::from(lock::is_free(&file, &dir.path().join(&name))?);
            }
        }
        for family in Family::ALL {
            left.trash += self.shelf(family).discarded()?.len();
        }
        Ok(left)
    }

    /// Where files are written that have no final name yet.
    pub(crate) fn dirs_of_temporary_files(&self) -> Result<Vec<crate::Dir>> {
        let mut dirs = vec![self.root.try_clone()?, self.leases.try_clone()?];
        dirs.extend(self.name_dirs()?.into_iter().chain(self.list_dirs()?).map(|(_, dir)| dir));
        for shelf in Family::ALL.map(|family| self.shelf(family)).map(Shelf::dir) {
            dirs.push(shelf.try_clone()?);
        }
        Ok(dirs)
    }
}
