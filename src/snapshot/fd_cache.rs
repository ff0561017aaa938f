//! A bounded cache of open files: since the kernel sends no `OPEN`, every read names only a node.
//!
//! One lock, held for a table look-up and never over a system call. Two readers that miss at once both open; one of
//! the descriptors is dropped, which costs nothing but the call. Eviction is second chance (a clock hand).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

/// Open files by key, at most `capacity` of them.
pub struct FdCache {
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Slot>,
    position: HashMap<u64, usize>,
    hand: usize,
}

struct Slot {
    key: u64,
    file: Arc<File>,
    used: bool,
}

impl FdCache {
    /// An empty cache for `capacity` (at least 1) descriptors.
    pub fn new(capacity: usize) -> Self {
        FdCache { capacity: capacity.max(1), inner: Mutex::default() }
    }

    /// The file of this key, opened by `open` when it is not here.
    pub fn get(&self, key: u64, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Arc<File>, Errno> {
        if let Some(file) = self.lock().touch(key) {
            return Ok(file);
        }
        let opened = Arc::new(File::from(open()?));
        let mut inner = self.lock();
        if let Some(file) = inner.touch(key) {
            return Ok(file);
        }
        inner.insert(self.capacity, key, Arc::clone(&opened));
        Ok(opened)
    }

    /// Forgets the file of this key.
    pub fn remove(&self, key: u64) {
        self.lock().remove(key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while this lock was held leaves at worst a stale descriptor, so the poison mark tells nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn touch(&mut self, key: u64) -> Option<Arc<File>> {
        let slot = self.slots.get_mut(*self.position.get(&key)?)?;
        slot.used = true;
        Some(Arc::clone(&slot.file))
    }

    fn insert(&mut self, capacity: usize, key: u64, file: Arc<File>) {
        let slot = Slot { key, file, used: false };
        if self.slots.len() < capacity {
            self.position.insert(key, self.slots.len());
            self.slots.push(slot);
            return;
        }
        let victim = loop {
            let at = self.hand;
            self.hand = (at + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[at].used) {
                break at;
            }
        };
        self.position.remove(&self.slots[victim].key);
        self.position.insert(key, victim);
        self.slots[victim] = slot;
    }

    fn remove(&mut self, key: u64) {
        let Some(at) = self.position.remove(&key) else { return };
        self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.position.insert(moved.key, at);
        }
        self.hand = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "A failed open of /dev/null is a failed test")]
mod tests {
    use super::*;

    fn null() -> Result<OwnedFd, Errno> {
        nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty())
    }

    #[test]
    fn keeps_what_is_used_and_drops_the_rest() {
        let cache = FdCache::new(3);
        for key in 0..3 {
            cache.get(key, null).unwrap();
        }
        cache.get(1, || panic!("1 is cached")).unwrap();
        for key in 10..12 {
            cache.get(key, null).unwrap();
        }
        cache.get(1, || panic!("1 was used, it stays")).unwrap();
        cache.remove(1);
        let mut opened = false;
        cache
            .get(1, || {
                opened = true;
                null()
            })
            .unwrap();
        assert!(opened);
    }

    #[test]
    fn a_failed_open_is_not_remembered() {
        let cache = FdCache::new(1);
        assert_eq!(cache.get(7, || Err(Errno::ENOENT)).map(drop), Err(Errno::ENOENT));
        assert!(cache.get(7, null).is_ok());
    }
}
