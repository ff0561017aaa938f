//! The last requests that were done, so that one which comes again is answered and not done twice.
//!
//! A server that is killed may have logged a change and not answered it. Its successor on the same connection gets that
//! request once more, under the same number. Changes with absolute values (contents, sizes, attributes) may be done again;
//! those of names and extended attributes may not: a second `unlink` would find nothing. Their numbers are in the log, where
//! [`Record::Begin`] says that another connection begins, which counts anew.

use std::collections::VecDeque;

use crate::record::Record;

/// Each thread of a server has at most one request that is logged and not answered. But between the two it may have to wait
/// for a processor while the others do many.
const REMEMBERED: usize = 8192;

/// A request and the inode that it is answered with (0 where that is none). Protected by the tree's lock.
#[derive(Debug)]
pub(crate) struct Done(VecDeque<(u64, u64)>);

impl Default for Done {
    fn default() -> Self {
        Done(VecDeque::with_capacity(REMEMBERED))
    }
}

impl Done {
    /// Takes a record as it was logged. Number 0 is nobody's.
    pub(crate) fn take(&mut self, unique: u64, record: &Record) {
        let ino = match record {
            Record::Begin { .. } => return self.0.clear(),
            Record::Create { ino, .. } | Record::Link { ino, .. } | Record::Done { ino } => *ino,
            Record::Unlink { .. } | Record::Rename { .. } | Record::Xattr { .. } => 0,
            _ => return,
        };
        if unique != 0 {
            if self.0.len() == REMEMBERED {
                self.0.pop_front();
            }
            self.0.push_back((unique, ino));
        }
    }

    /// The inode that request `unique` is answered with, if it was done.
    pub(crate) fn get(&self, unique: u64) -> Option<u64> {
        self.0.iter().find(|(done, _)| *done == unique).map(|(_, ino)| *ino)
    }

    /// All of them, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }
}
