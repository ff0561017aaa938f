//! The time below which nothing that a leaseholder makes may seem to be: the clock can be set back under its feet.
//!
//! A sweep recognises what is new by its time of modification, held against the beginning of leases ([`gc`](crate::gc)).
//! With a clock that went back after the lease was taken, all that is published then would seem older than the lease. So
//! the holder remembers when its lease began, and what comes out older is given that time.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use sys::Call;

use crate::Result;

/// The beginning of the youngest lease of this process; seconds since 1970, 0 without one.
#[derive(Debug, Default)]
pub(crate) struct Floor(AtomicI64);

impl Floor {
    /// A lease began.
    pub fn raise(&self, seconds: i64) {
        self.0.fetch_max(seconds, Ordering::Relaxed);
    }

    /// In seconds since 1970.
    pub fn seconds(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Now, or the floor where that is later.
    pub fn now(&self) -> SystemTime {
        let floor = SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds().max(0).cast_unsigned());
        SystemTime::now().max(floor)
    }

    /// Gives a file that is about to be published the floor's time if its own is older.
    pub fn lift(&self, file: &File, words: impl Fn(&str) -> String) -> Result<()> {
        if file.metadata().call(|| words("fstat"))?.mtime() < self.seconds() {
            file.set_modified(self.now()).call(|| words("futimens"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a store that fails fails the test")]
mod tests {
    use std::ops::ControlFlow;
    use std::os::unix::fs::FileExt;

    use oci::Digest;

    use super::*;
    use crate::{Durability, Store, Swept};

    fn sweep(store: &Store) -> Swept {
        store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(Vec::new())).unwrap()
    }

    #[test]
    fn a_clock_that_is_set_back_takes_nothing_from_a_leaseholder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let (store, other) = (Store::open(&root, true).unwrap(), Store::open(&root, false).unwrap());
        let contents: [&[u8]; 4] = [b"claimed", b"object", b"blob", b"of another"];
        let [claimed, object, blob, foreign] = contents.map(Digest::of);
        store.blobs().put(&claimed, contents[0], Durability::Later).unwrap();
        let lease = store.lease().unwrap();
        // As if the clock had gone back by an hour since the lease was taken.
        let ahead_s = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 + 3600;
        let file = std::fs::read_dir(root.join("leases")).unwrap().next().unwrap().unwrap().path();
        File::options().write(true).open(file).unwrap().write_all_at(&ahead_s.to_le_bytes(), 16).unwrap();
        store.floor.raise(ahead_s);
        assert!(store.blobs().claim(&claimed, 7).unwrap());
        store.objects().put(&object, contents[1], Durability::Later).unwrap();
        let mut ingest = store.ingest(&blob, 4, |_| ControlFlow::Break(())).unwrap().unwrap();
        ingest.append(contents[2]).unwrap();
        ingest.commit(Durability::Later).unwrap();
        other.objects().put(&foreign, contents[3], Durability::Later).unwrap();
        let swept = sweep(&other);
        assert_eq!((swept.objects, &*swept.blobs), (1, &[][..]), "what has no lease is as old as it looks");
        for (shelf, digest) in [(store.blobs(), claimed), (store.objects(), object), (store.blobs(), blob)] {
            assert!(shelf.has(&digest).unwrap());
        }
        drop(lease);
        assert_eq!((sweep(&other).blobs.len(), store.objects().list().unwrap().len()), (2, 0));
    }
}
