//! The sweep: removes content that no name, container or lease leads to.
//!
//! First everything is marked, and what is not marked is renamed into `trash/`. Then everything is marked again until no
//! index is in its place that is not marked; what has been found in use is renamed back, and the rest is deleted: indexes
//! first, and where one of them was claimed meanwhile, contents only after one more mark. No command waits meanwhile.
//!
//! Why nothing in use is lost: a command that publishes holds a lease from before it first looks whether content is
//! there until the content has a name. In each mark leases are read before names and roots; so if its lease is not
//! seen, its names are. If its lease is seen, all that it published or claimed since the lease began is recognised by
//! its time ([`floor`](crate::floor) sees to that when the clock is set back), and the rest by its pins. If it came after
//! the mark, it found content either in place, and touched it, which the next mark sees; or in the trash, and renamed it
//! back, which the deletion then misses; or gone, and made it again. A reader that comes too late for a file's place looks
//! in the trash as well.
//!
//! Who claims an index claims what it names without touching that. So an object is deleted only when no index that names it
//! can be claimed any more: of those in their place each is marked, with its objects, by the last mark; those in the trash
//! are deleted first, and what was claimed of them until then is marked with its objects. So that each is in one of the two
//! lists, the trash is listed first. An index that is published after
//! the last mark is of a command that has claimed each of its objects, and its lease was seen, or it came after the mark.
//!
//! On a full disk even the trash may take no more names. Then what it has taken goes first, and the rest in further rounds; before
//! the first of these interrupted downloads go, however young they are.
//!
//! An eviction ([`Store::evict`]) is the same for content that is in use and can be had again: it is spared where a lease
//! pins it or is older than its last use, or somebody has used it since it was chosen.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;

use oci::document::DOCUMENT_MAX;
use oci::{ChainId, DiffId, Digest, Document, ImageConfig};
use sys::lock;

use crate::dir::is_temporary;
use crate::error::StoreError;
use crate::shelf::{Family, Shelf, Stored};
use crate::{Dir, Result, Store};

/// The lock of the one sweep that runs.
pub(crate) const LOCK: &str = "gc.lock";
/// How long an interrupted download is kept for its next try.
const INGEST_KEPT: Duration = Duration::from_hours(168);
/// How old a temporary file must be before its lock says whether it is dead: between the making of one and its lock is
/// a moment.
const TEMPORARY_KEPT_S: i64 = 60;
/// How often a sweep marks before it leaves the rest to the next one: a mark more is needed each time that images come and
/// go during one.
const ROUNDS_MAX: u32 = 100;
/// How many threads delete.
const DELETERS: usize = 8;
/// How many contents are worth a thread.
const DELETER_LEAST: usize = 16;
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

/// A store in which every index that is in its place is marked.
struct Settled {
    marked: Marked,
    /// Indexes in their place that only a living command's lease keeps.
    claimed: Vec<Digest>,
    /// What lay in the trash before that was found out, in the order of [`Family::ALL`].
    trash: [Vec<Digest>; 4],
}

/// What an eviction removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// How many contents.
    pub count: u64,
    /// The bytes that they took on the disk.
    pub freed_bytes: u64,
}

/// Names what is in use without a name.
pub type Roots<'a> = &'a mut dyn FnMut() -> io::Result<Vec<Digest>>;
/// Names the objects of a layer whose index is there.
pub type ObjectsOf<'a> = &'a mut dyn FnMut(DiffId) -> io::Result<Vec<Digest>>;

impl Store {
    /// Sweeps. `roots` names content that is in use without a name (that of containers), and is asked for each mark;
    /// `objects_of` names the objects of a layer whose index is there. An error of either ends the sweep with nothing
    /// deleted that was in use.
    pub fn gc(&self, roots: Roots<'_>, objects_of: ObjectsOf<'_>) -> Result<Swept> {
        let _gate = match self.gate() {
            Err(StoreError::Full { .. }) if self.drop_old_partials(Duration::ZERO)? > 0 => self.gate()?,
            gate => gate?,
        };
        let mut swept = Swept { freed_bytes: self.drop_old_partials(INGEST_KEPT)?, ..Swept::default() };
        self.drop_temporary_files()?;
        loop {
            let before_bytes = swept.freed_bytes;
            let Err(failure) = self.sweep(roots, objects_of, &mut swept) else {
                swept.freed_bytes += self.chains.drop_lists_alone()?;
                return Ok(swept);
            };
            // A full disk must not keep from being emptied: interrupted downloads go too, and each round makes room for the next.
            if matches!(failure, StoreError::Full { .. }) {
                swept.freed_bytes += self.drop_old_partials(Duration::ZERO)?;
            }
            if !matches!(failure, StoreError::Full { .. }) || swept.freed_bytes == before_bytes {
                return Err(failure);
            }
        }
    }

    /// One round. [`StoreError::Full`] where the trash took only a part of what is to go; that part has gone then.
    fn sweep(&self, roots: Roots<'_>, objects_of: ObjectsOf<'_>, swept: &mut Swept) -> Result<()> {
        let full = match self.discard_unmarked(&self.mark(&[], roots, objects_of)?)? {
            // Nothing that an index names goes while it is in its place.
            Some((Family::Chains | Family::Layers, full)) => {
                let [chains, layers, ..] = self.trash()?;
                let marked = self.mark(&[], roots, objects_of)?;
                delete(&marked, [(&self.chains, chains), (&self.layers, layers)], swept)?;
                return Err(full);
            }
            Some((_, full)) => Some(full),
            None => None,
        };
        if !self.trash()?.iter().all(Vec::is_empty)
            && let Some(settled) = self.settle(roots, objects_of)?
        {
            self.empty(settled, roots, objects_of, swept)?;
        }
        full.map_or(Ok(()), Err)
    }

    /// Puts what is not marked into the trash, as much of it as goes there: a directory needs space for names as well. At what
    /// kind the disk was full, if it was.
    fn discard_unmarked(&self, marked: &Marked) -> Result<Option<(Family, StoreError)>> {
        // Indexes go before what they name, and come back after it.
        for family in Family::ALL {
            let shelf = self.shelf(family);
            for digest in shelf.list()? {
                if marked.keeps(shelf, &digest)? {
                    continue;
                }
                match shelf.discard(&digest) {
                    Err(full @ StoreError::Full { .. }) => return Ok(Some((family, full))),
                    discarded => discarded?,
                }
            }
        }
        Ok(None)
    }

    /// Deletes what lies in the trash and is not in use, and brings the rest back.
    fn empty(&self, settled: Settled, roots: Roots<'_>, objects_of: ObjectsOf<'_>, swept: &mut Swept) -> Result<()> {
        let Settled { marked, claimed, trash: [chains, layers, objects, blobs] } = settled;
        let indexes = [(&self.layers, layers), (&self.chains, chains)];
        let contents = [(&self.objects, objects), (&self.blobs, blobs)];
        for (shelf, discarded) in contents.iter().chain(&indexes) {
            for digest in discarded {
                if marked.keeps(shelf, digest)? {
                    shelf.rescue(digest)?;
                }
            }
        }
        let late = delete(&marked, indexes.into_iter().rev(), swept)?;
        let marked = if late.is_empty() {
            marked
        } else {
            self.mark(&late.into_iter().chain(claimed).collect::<Vec<_>>(), roots, objects_of)?
        };
        delete(&marked, contents, swept)?;
        Ok(())
    }

    /// Marks until every index that is in its place is marked; those that are not go into the trash, but for those that a
    /// living command has claimed. `None` when there is no end of them: the next sweep goes on.
    fn settle(&self, roots: Roots<'_>, objects_of: ObjectsOf<'_>) -> Result<Option<Settled>> {
        let mut claimed = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let marked = self.mark(&claimed, roots, objects_of)?;
            // Before the indexes in their place are listed: one that goes from here to there meanwhile is in one of the two
            // lists at least. In neither, its objects would be deleted below it.
            let trash = self.trash()?;
            let mut settled = true;
            for shelf in [&self.chains, &self.layers] {
                for digest in shelf.list()?.into_iter().filter(|digest| !marked.digests.contains(digest)) {
                    settled = false;
                    if marked.keeps(shelf, &digest)? {
                        claimed.push(digest);
                    } else {
                        shelf.discard(&digest)?;
                    }
                }
            }
            if settled {
                return Ok(Some(Settled { marked, claimed, trash }));
            }
        }
        Ok(None)
    }

    /// Brings back all that lies in the trash.
    pub fn bring_back(&self) -> Result<()> {
        // Indexes after what they name.
        for (family, discarded) in Family::ALL.into_iter().zip(self.trash()?).rev() {
            for digest in discarded {
                self.shelf(family).rescue(&digest)?;
            }
        }
        Ok(())
    }

    /// What lies in the trash, in the order of [`Family::ALL`].
    fn trash(&self) -> Result<[Vec<Digest>; 4]> {
        let [chains, layers, objects, blobs] = Family::ALL.map(|family| self.shelf(family).discarded());
        Ok([chains?, layers?, objects?, blobs?])
    }

    /// Removes content that is in use and can be fetched or made again. What a living command works with stays, as does what
    /// was used since it was looked at: its user may have ended, and what the choice rested on no longer holds.
    pub fn evict(&self, victims: &[(Family, Stored)]) -> Result<Evicted> {
        let _gate = self.gate()?;
        let spares = |leased: &Marked, shelf: &Shelf, victim: &Stored| {
            Ok::<_, StoreError>(
                leased.keeps(shelf, &victim.digest)? || shelf.used(&victim.digest)? != Some(victim.used),
            )
        };
        let leased = self.leased()?;
        let mut gone = Vec::new();
        for (family, victim) in victims {
            let shelf = self.shelf(*family);
            if !spares(&leased, shelf, victim)? {
                shelf.discard(&victim.digest)?;
                gone.push((shelf, victim));
            }
        }
        let leased = self.leased()?;
        let mut evicted = Evicted::default();
        for (shelf, victim) in gone {
            let digest = &victim.digest;
            if spares(&leased, shelf, victim)? {
                shelf.rescue(digest)?;
            } else if let Some(freed_bytes) = shelf.destroy(digest)? {
                evicted.count += 1;
                evicted.freed_bytes += freed_bytes;
            }
        }
        Ok(evicted)
    }

    /// Waits until no other sweep runs; none begins while the answer is held.
    fn gate(&self) -> Result<File> {
        let gate = self.root.open_writable(LOCK)?;
        lock::exclusive(&gate, &self.root.path().join(LOCK))?;
        Ok(gate)
    }

    /// What leases alone keep.
    fn leased(&self) -> Result<Marked> {
        let held = self.held()?;
        let since = held.iter().map(|lease| lease.began).min();
        Ok(Marked { digests: held.into_iter().flat_map(|lease| lease.pins).collect(), since })
    }

    /// Finds all that is in use, and what `claimed` leads to. The order matters: leases, then roots and names.
    fn mark(&self, claimed: &[Digest], roots: Roots<'_>, objects_of: ObjectsOf<'_>) -> Result<Marked> {
        let Marked { digests: pins, since } = self.leased()?;
        let mut to_visit: Vec<Digest> = pins.into_iter().chain(claimed.iter().copied()).collect();
        to_visit.extend(roots().map_err(|cause| damaged("containers", &self.root, cause))?);
        to_visit.extend(self.named_content()?);
        Ok(Marked { digests: self.reach(to_visit, objects_of)?, since })
    }

    /// Everything that these contents lead to, themselves included, whether it is there or not.
    pub fn reach(&self, mut to_visit: Vec<Digest>, objects_of: ObjectsOf<'_>) -> Result<HashSet<Digest>> {
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
        Ok(digests)
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
        for dir in self.dirs_of_temporary_files()? {
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

/// What became of a content in the trash.
enum Outcome {
    /// It is back in its place. `late`: it was not marked, but somebody has claimed it since.
    Kept {
        late: bool,
    },
    Deleted {
        freed_bytes: u64,
    },
}

fn delete_unless_kept(marked: &Marked, shelf: &Shelf, digest: &Digest) -> Result<Outcome> {
    if marked.keeps(shelf, digest)? {
        shelf.rescue(digest)?;
        return Ok(Outcome::Kept { late: !marked.digests.contains(digest) });
    }
    let freed_bytes = shelf.destroy(digest)?;
    Ok(freed_bytes.map_or(Outcome::Kept { late: true }, |freed_bytes| Outcome::Deleted { freed_bytes }))
}

/// Does the work for each content, on several threads where there are many: each removal may wait for a server, or for a disk
/// that is told of the freed blocks one file after the other.
fn each<T: Send>(digests: &[Digest], work: impl Fn(&Digest) -> Result<T> + Sync) -> Result<Vec<T>> {
    let part = digests.len().div_ceil(DELETERS).max(DELETER_LEAST);
    if digests.len() <= part {
        return digests.iter().map(work).collect();
    }
    let work = &work;
    let parts: Result<Vec<Vec<T>>> = thread::scope(|scope| {
        let do_part = move |part: &[Digest]| part.iter().map(work).collect::<Result<Vec<T>>>();
        let spawned: Vec<_> = digests
            .chunks(part)
            .map(|part| (part, thread::Builder::new().spawn_scoped(scope, move || do_part(part))))
            .collect();
        let ended = spawned.into_iter().map(|(part, spawned)| match spawned {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // The user has no thread left (RLIMIT_NPROC): slower, and done all the same.
            Err(_) => do_part(part),
        });
        ended.collect()
    });
    Ok(parts?.into_iter().flatten().collect())
}

/// Deletes from the trash what is not in use; the answer is what was not marked and stays all the same, as somebody has
/// claimed it since.
fn delete<'a>(
    marked: &Marked,
    discarded: impl IntoIterator<Item = (&'a Shelf, Vec<Digest>)>,
    swept: &mut Swept,
) -> Result<Vec<Digest>> {
    let mut claimed = Vec::new();
    for (shelf, digests) in discarded {
        let outcomes = each(&digests, |digest| delete_unless_kept(marked, shelf, digest))?;
        for (digest, outcome) in digests.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Kept { late: true } => claimed.push(digest),
                Outcome::Kept { late: false } => {}
                Outcome::Deleted { freed_bytes } => {
                    swept.freed_bytes += freed_bytes;
                    swept.count(shelf.family(), digest);
                }
            }
        }
    }
    Ok(claimed)
}

impl Swept {
    fn count(&mut self, family: Family, digest: Digest) {
        match family {
            Family::Chains => {}
            Family::Layers => self.layers.push(DiffId(digest)),
            Family::Objects => self.objects += 1,
            Family::Blobs => self.blobs.push(digest),
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a store that fails fails the test")]
mod tests {
    use super::*;
    use crate::Durability;

    /// In this moment no index is looked for in its place any more, and none has been deleted yet.
    #[test]
    fn an_index_that_comes_back_before_the_trash_is_emptied_keeps_its_objects() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let (store, other) = (Store::open(&root, true).unwrap(), Store::open(&root, false).unwrap());
        let [index, object] = [b"index", b"bytes"].map(|content| Digest::of(content));
        store.layers().put(&index, b"index", Durability::Later).unwrap();
        store.objects().put(&object, b"bytes", Durability::Later).unwrap();
        store.layers().discard(&index).unwrap();
        store.objects().discard(&object).unwrap();
        let (mut no_roots, mut objects) = (|| Ok(Vec::new()), |_| Ok(vec![object]));
        let settled = store.settle(&mut no_roots, &mut objects).unwrap().unwrap();
        let _lease = other.lease().unwrap();
        assert!(other.layers().claim(&index, 5).unwrap());
        store.empty(settled, &mut no_roots, &mut objects, &mut Swept::default()).unwrap();
        assert!(other.layers().has(&index).unwrap() && other.objects().has(&object).unwrap());
    }

    #[test]
    fn a_list_of_reads_counts_and_goes_with_its_chain() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), true).unwrap();
        let [kept, gone, alone] = [b"kept!", b"gone!", b"alone"].map(|content| Digest::of(content));
        for (chain, content) in [(kept, b"kept!"), (gone, b"gone!")] {
            store.chains().put(&chain, content, Durability::Later).unwrap();
        }
        let bare = store.chains().stored(&kept).unwrap().unwrap();
        for chain in [kept, gone, alone] {
            store.chains().dir().replace(&crate::list_of_reads(&chain), &[7; 9000], Durability::Later).unwrap();
        }
        let with_list = store.chains().stored(&kept).unwrap().unwrap();
        assert!(with_list.disk_bytes >= bare.disk_bytes + 9000 && with_list.size_bytes == bare.size_bytes);
        let swept = store.gc(&mut || Ok(vec![kept]), &mut |_| Ok(Vec::new())).unwrap();
        let mut left = store.chains().dir().names().unwrap();
        left.sort();
        assert_eq!(left, [format!("{}.idx", kept.hex()), crate::list_of_reads(&kept)]);
        assert!(swept.freed_bytes >= 18_000);
    }

    /// More than one thread's part.
    #[test]
    fn many_objects_go_at_once_and_each_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), true).unwrap();
        let contents: Vec<[u8; 4]> = (0..500_u32).map(u32::to_le_bytes).collect();
        for content in &contents {
            store.objects().put(&Digest::of(content), content, Durability::Later).unwrap();
        }
        let kept = Digest::of(&contents[7]);
        let swept = store.gc(&mut || Ok(vec![kept]), &mut |_| Ok(Vec::new())).unwrap();
        assert_eq!((swept.objects, store.objects().list().unwrap()), (499, vec![kept]));
        assert!(store.trash().unwrap().iter().all(Vec::is_empty));
    }
}
