//! The sweep: removes content that no name, container or lease leads to.
//!
//! Two phases. First everything is marked, and what is not marked is renamed into `trash/`. Then everything is marked
//! again, what has been found in use is renamed back, and the rest is deleted. No command waits meanwhile.
//!
//! Why nothing in use is lost: a command that publishes holds a lease from before it first looks whether content is
//! there until the content has a name. In each mark leases are read before names and roots; so if its lease is not
//! seen, its names are. If its lease is seen, all that it published or claimed since the lease began is recognised by
//! its time, and the rest by its pins. If it came after the mark, it found content either in place, and touched it,
//! which the second mark sees; or in the trash, and renamed it back, which the deletion then misses; or gone, and made
//! it again. A reader that comes too late for a file's place looks in the trash as well.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use oci::document::DOCUMENT_MAX;
use oci::{ChainId, DiffId, Digest, Document, ImageConfig};
use sys::lock;

use crate::dir::is_temporary;
use crate::error::StoreError;
use crate::shelf::Shelf;
use crate::{Dir, Result, Store};

/// How long an interrupted download is kept for its next try.
const INGEST_KEPT: Duration = Duration::from_hours(168);
/// How old a temporary file must be before its lock says whether it is dead: between the making of one and its lock is
/// a moment.
const TEMPORARY_KEPT_S: i64 = 60;
/// Steps of a file system's clock may be this coarse; what is as old as a lease by less counts as younger.
const CLOCK_STEP_S: i64 = 1;

/// What a sweep removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Manifests, configurations and layer blobs.
    pub blobs: Vec<Digest>,
    /// Indexes of layers.
    pub layers: Vec<DiffId>,
    /// The number of objects.
    pub objects: u64,
    /// The bytes that all of it took on the disk.
    pub freed_bytes: u64,
}

/// What is in use.
struct Marked {
    digests: HashSet<Digest>,
    /// When the oldest living lease began.
    since: Option<(i64, i64)>,
}

impl Store {
    /// Sweeps. `roots` names manifests and configurations that are in use without a name (those of containers), and is
    /// asked twice; `objects_of` names the objects of a layer whose index is there. An error of either ends the sweep
    /// with nothing deleted that was in use.
    pub fn gc(
        &self,
        roots: &mut dyn FnMut() -> io::Result<Vec<Digest>>,
        objects_of: &mut dyn FnMut(DiffId) -> io::Result<Vec<Digest>>,
    ) -> Result<Swept> {
        let gate = self.root.open_writable("gc.lock")?;
        lock::exclusive(&gate, &self.root.path().join("gc.lock"))?;
        // Indexes go before what they name, and come back after it.
        let families = [&self.chains, &self.layers, &self.objects, &self.blobs];
        let marked = self.mark(roots, objects_of)?;
        for shelf in families {
            for digest in shelf.list()? {
                if !marked.keeps(shelf, &digest)? {
                    shelf.discard(&digest)?;
                }
            }
        }
        let mut swept = Swept { freed_bytes: self.drop_old_ingests(INGEST_KEPT)?, ..Swept::default() };
        self.drop_temporary_files()?;
        let mut trash = Vec::new();
        for shelf in families {
            trash.push(shelf.discarded()?);
        }
        if trash.iter().all(Vec::is_empty) {
            return Ok(swept);
        }
        let marked = self.mark(roots, objects_of)?;
        for (shelf, discarded) in families.into_iter().zip(trash).rev() {
            for digest in discarded {
                if marked.keeps(shelf, &digest)? {
                    shelf.rescue(&digest)?;
                } else if let Some(freed_bytes) = shelf.destroy(&digest)? {
                    swept.freed_bytes += freed_bytes;
                    self.count(&mut swept, shelf, digest);
                }
            }
        }
        Ok(swept)
    }

    fn count(&self, swept: &mut Swept, shelf: &Shelf, digest: Digest) {
        if std::ptr::eq(shelf, &raw const self.blobs) {
            swept.blobs.push(digest);
        } else if std::ptr::eq(shelf, &raw const self.layers) {
            swept.layers.push(DiffId(digest));
        } else if std::ptr::eq(shelf, &raw const self.objects) {
            swept.objects += 1;
        }
    }

    /// Finds all that is in use. The order matters: leases, then roots and names.
    fn mark(
        &self,
        roots: &mut dyn FnMut() -> io::Result<Vec<Digest>>,
        objects_of: &mut dyn FnMut(DiffId) -> io::Result<Vec<Digest>>,
    ) -> Result<Marked> {
        let held = self.held()?;
        let since = held.iter().map(|lease| lease.began).min();
        let mut to_visit: Vec<Digest> = held.into_iter().flat_map(|lease| lease.pins).collect();
        to_visit.extend(roots().map_err(|cause| damaged("containers", &self.root, cause))?);
        for image in self.images()? {
            to_visit.extend([image.digest, image.manifest, image.config]);
            to_visit.extend(image.chain.map(|chain| chain.0));
        }
        for list in self.lists()? {
            to_visit.extend(list.images.iter().map(|image| image.entry.digest));
        }
        let mut digests = HashSet::new();
        while let Some(digest) = to_visit.pop() {
            if !digests.insert(digest) {
                continue;
            }
            to_visit.extend(self.blob_leads_to(&digest)?);
            if self.layers.has(&digest)? {
                let objects = objects_of(DiffId(digest));
                let words = self.layers.path_of(&digest);
                digests.extend(objects.map_err(|cause| damaged(&words, self.layers.dir(), cause))?);
            }
        }
        Ok(Marked { digests, since })
    }

    /// What the blob of this digest names, if it is here and is a document or a configuration.
    fn blob_leads_to(&self, digest: &Digest) -> Result<Vec<Digest>> {
        if self.blobs.size(digest)?.is_none_or(|size| size > DOCUMENT_MAX) {
            return Ok(Vec::new());
        }
        let raw = match self.blobs.read(digest, DOCUMENT_MAX) {
            Err(StoreError::Missing { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        // A layer is neither; a layer that reads as one was made to, and costs its maker disk space, nobody anything.
        Ok(match Document::read(raw.clone(), None) {
            Ok(Document::Index(index)) => index.entries.into_iter().map(|entry| entry.digest).collect(),
            Ok(Document::Manifest(manifest)) => {
                manifest.layers.into_iter().chain([manifest.config]).map(|descriptor| descriptor.digest).collect()
            }
            Err(_) => ImageConfig::read(raw).map_or_else(|_| Vec::new(), |config| stack_of(&config.diff_ids)),
        })
    }

    /// Removes what dead processes left of files that were being written.
    fn drop_temporary_files(&self) -> Result<()> {
        let lists = self.lists_dir(false)?;
        let mut dirs = vec![&self.root, &self.refs, &self.leases];
        dirs.extend(&lists);
        dirs.extend([&self.blobs, &self.objects, &self.layers, &self.chains].map(Shelf::dir));
        for dir in dirs {
            for name in dir.names()?.into_iter().filter(|name| is_temporary(name)) {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as i64);
                let old = dir.stat(&name)?.is_some_and(|stat| stat.st_mtime < now - TEMPORARY_KEPT_S);
                if !old {
                    continue;
                }
                let Some(file) = dir.open_file(&name)? else { continue };
                if lock::is_free(&file, &dir.path().join(&name))? {
                    dir.unlink(&name)?;
                }
            }
        }
        Ok(())
    }
}

impl Marked {
    fn keeps(&self, shelf: &Shelf, digest: &Digest) -> Result<bool> {
        if self.digests.contains(digest) {
            return Ok(true);
        }
        let Some((seconds, nanos)) = self.since else { return Ok(false) };
        let since = (seconds - CLOCK_STEP_S, nanos);
        Ok(shelf.used(digest)?.is_some_and(|used| used >= since))
    }
}

/// The diff ids of a stack and its chain id.
fn stack_of(diff_ids: &[DiffId]) -> Vec<Digest> {
    diff_ids.iter().map(|layer| layer.0).chain(ChainId::of(diff_ids).map(|chain| chain.0)).collect()
}

fn damaged(name: &str, dir: &Dir, cause: io::Error) -> StoreError {
    StoreError::Corrupt { path: dir.path().join(name), cause: cause.into() }
}
