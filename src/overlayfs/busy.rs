//! One writer an inode, without memory for inodes that nobody writes.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// The inodes whose contents are being changed right now.
#[derive(Default)]
pub(crate) struct Busy {
    inodes: Mutex<HashSet<u64>>,
    left: Condvar,
}

/// Whoever holds this is the only one to change the contents of its inode.
pub(crate) struct Writing<'a> {
    busy: &'a Busy,
    ino: u64,
}

impl Busy {
    /// Waits until nobody else changes `ino`. Taken before the tree's lock, one at a time.
    pub(crate) fn enter(&self, ino: u64) -> Writing<'_> {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        while !inodes.insert(ino) {
            inodes = self.left.wait(inodes).unwrap_or_else(PoisonError::into_inner);
        }
        Writing { busy: self, ino }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.busy.inodes.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ino);
        self.busy.left.notify_all();
    }
}
