//! Leases: who is at work, since when, and on what.
//!
//! A lease is a file in `leases/` under a lock of its owner. It is dead when its lock can be taken, so a killed command
//! leaves none that lasts. The file begins with a header that says when it began, by the clock of the store's file
//! system (an NFS server's may differ from ours), and goes on with the 32 bytes of each pinned digest.

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use oci::Digest;
use sys::{Call, lock};

use crate::dir::{Dir, is_temporary, temporary_name};
use crate::new_file::NewFile;
use crate::{Result, Store};

const MAGIC: &[u8; 16] = b"sublet lease v1\n";
const HEADER: usize = 32;
/// A million pins; what is longer was not written by us.
const READ_MAX: u64 = 32 << 20;

/// Keeps a sweep away from what this process publishes, claims or pins, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lease {
    file: NewFile,
    dir: Dir,
    name: String,
}

/// A lease as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its name.
    pub name: String,
    /// The process that took it, on the machine that it ran on.
    pub pid: Option<u32>,
    /// When it began, in seconds since 1970.
    pub began_s: i64,
    /// What it pins.
    pub pins: Vec<Digest>,
    /// Whether its owner lives; the next sweep removes one whose owner is dead.
    pub living: bool,
}

/// What a living lease protects.
pub(crate) struct Held {
    /// When it began: seconds and nanoseconds.
    pub began: (i64, i64),
    /// What it pins.
    pub pins: Vec<Digest>,
}

impl Store {
    /// Takes a lease: before the first look at whether content is there, and until what was published has a name.
    pub fn lease(&self) -> Result<Lease> {
        let dir = self.leases.try_clone()?;
        let mut file = NewFile::create(&dir)?;
        // Where it has a temporary name, who looks whether it is locked has the lock for a moment.
        lock::exclusive(file.file(), dir.path())?;
        // Writing sets the time by the file system's clock; the header then says it.
        file.write_all(&[0; HEADER]).call(|| dir.words("write", "lease"))?;
        let began = file.file().metadata().call(|| dir.words("fstat", "lease"))?;
        self.floor.raise(began.mtime());
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(MAGIC);
        header[16..24].copy_from_slice(&began.mtime().to_le_bytes());
        header[24..].copy_from_slice(&began.mtime_nsec().to_le_bytes());
        file.file().write_all_at(&header, 0).call(|| dir.words("pwrite", "lease"))?;
        let name = temporary_name().replacen(".new", "lease", 1);
        file.link(&dir, &name)?;
        file.forget_name();
        Ok(Lease { file, dir, name })
    }

    /// All leases, the oldest first.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>> {
        let mut leases = Vec::new();
        for name in self.leases.names()?.into_iter().filter(|name| !is_temporary(name)) {
            let Some(mut file) = self.leases.open_file(&name)? else { continue };
            let living = !lock::is_free(&file, &self.leases.path().join(&name))?;
            let mut content = Vec::new();
            (&mut file).take(READ_MAX).read_to_end(&mut content).call(|| self.leases.words("read", &name))?;
            let Held { began, pins } = parse(&content);
            let pid = name.split('-').nth(1).and_then(|pid| pid.parse().ok());
            leases.push(LeaseInfo { name, pid, began_s: began.0, pins, living });
        }
        leases.sort_by(|a, b| a.began_s.cmp(&b.began_s).then_with(|| a.name.cmp(&b.name)));
        Ok(leases)
    }

    /// Removes a lease by its name, and with it the protection of what its owner works on; `false` if it is gone.
    pub fn remove_lease(&self, lease: &LeaseInfo) -> Result<bool> {
        self.leases.unlink(&lease.name)
    }

    /// The living leases. Dead ones are removed.
    pub(crate) fn held(&self) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for name in self.leases.names()?.into_iter().filter(|name| !is_temporary(name)) {
            let Some(mut file) = self.leases.open_file(&name)? else { continue };
            if lock::is_free(&file, &self.leases.path().join(&name))? {
                self.leases.unlink(&name)?;
                continue;
            }
            let mut content = Vec::new();
            (&mut file).take(READ_MAX).read_to_end(&mut content).call(|| self.leases.words("read", &name))?;
            held.push(parse(&content));
        }
        Ok(held)
    }
}

/// Reads a lease. One that cannot be read protects everything.
fn parse(content: &[u8]) -> Held {
    let number = |at: usize| content.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_le_bytes);
    let began = match (content.starts_with(MAGIC), number(16), number(24)) {
        (true, Some(seconds), Some(nanos)) => (seconds, nanos),
        _ => (0, 0),
    };
    let pins = content.get(HEADER..).unwrap_or_default().chunks_exact(32);
    let pins = pins.filter_map(|pin| pin.try_into().ok()).map(Digest::from_bytes).collect();
    Held { began, pins }
}

impl Lease {
    /// Keeps this content although no name leads to it, also what was there before the lease began.
    pub fn pin(&mut self, digests: &[Digest]) -> Result<()> {
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| *digest.as_bytes()).collect();
        Ok(self.file.write_all(&bytes).call(|| self.dir.words("write", &self.name))?)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The lock ends with the file; a name that stays is removed by the next sweep.
        let _ = self.dir.unlink(&self.name);
    }
}
