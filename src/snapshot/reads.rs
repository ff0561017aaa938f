//! The list of reads of an image: which parts of its objects were read by those who had it, so that the next server of a
//! view brings them into the page cache in few large reads, before a container asks for them one by one.
//!
//! Theory of operation
//! - *Parts* are blocks of [`BLOCK_BYTES`] of an object, which is named by its number in the chain's index.
//! - *Recording*: the server notes each block at its first `READ` by appending it to a memory file ([`Recorder`]). It can write
//!   nothing else. The keeper, who is not confined to reading, puts the list beside the chain's index ([`ListFile`]): when
//!   the first start has had [`START`], and when the last user has gone.
//! - *Bounds*: a list has at most [`BLOCKS_MAX`] blocks. The first that are read stay, later ones are added while there is
//!   room, so it converges; one that is as it was is not written.
//! - *Trust*: a list is advice. One that is damaged counts as none; what it names beyond the objects of the index is passed
//!   over. It is never synced. It goes with the index ([`store::list_of_reads`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use oci::Digest;
use store::{Dir, Durability};
use sys::role::Inherited;

/// The granularity of a list.
pub const BLOCK_BYTES: u64 = 32 << 10;
/// The most blocks of a list: 64 MiB of contents.
pub const BLOCKS_MAX: usize = 2048;
/// How long after the start of the first user what is read still belongs to it, where it goes on for longer.
pub(crate) const START: Duration = Duration::from_secs(10);

const MAGIC: [u8; 8] = *b"SUBLETRD";
const VERSION: u32 = 1;
/// Magic, version and number of runs; the sha256 of these and of the runs is behind it.
const HEAD_BYTES: usize = 16;
const SUM_BYTES: usize = 32;
const RUN_BYTES: usize = 12;
/// The length of the longest list.
const LIST_MAX: usize = HEAD_BYTES + SUM_BYTES + RUN_BYTES * BLOCKS_MAX;
/// A block in the memory file: two numbers.
const NOTE_BYTES: usize = 8;
/// How much of the memory file is looked at at once: it holds a list, and what successors of killed servers note again.
const NOTES_MAX: u64 = 4 * (NOTE_BYTES * BLOCKS_MAX) as u64;

/// Blocks that were read: the number of the object in the chain's index, and the number of the block in the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads(BTreeSet<(u32, u32)>);

/// Blocks of one object in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the object in the chain's index.
    pub object: u32,
    /// The first block.
    pub first: u32,
    /// How many there are, at least one.
    pub count: u32,
}

impl Run {
    /// Where it begins in the object, in bytes.
    pub fn offset(&self) -> u64 {
        u64::from(self.first) * BLOCK_BYTES
    }

    /// How many bytes it has; the object may end before.
    pub fn length(&self) -> u64 {
        u64::from(self.count) * BLOCK_BYTES
    }
}

impl Reads {
    /// Reads the content of a list; `None` for what is not one of this version, is damaged, or has more than a list may have.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let (sum, runs) = rest.split_at_checked(SUM_BYTES)?;
        let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let count = usize::try_from(number(12)?).ok()?;
        if head[..8] != MAGIC || number(8)? != VERSION || count > BLOCKS_MAX || runs.len() != count * RUN_BYTES {
            return None;
        }
        if sum != checksum(head, runs).as_bytes() {
            return None;
        }
        let mut reads = Reads::default();
        for run in runs.chunks_exact(RUN_BYTES) {
            let mut numbers = run.chunks_exact(4).map(|part| part.try_into().map_or(0, u32::from_le_bytes));
            let (object, first, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
            let end = first.checked_add(count)?;
            if count as usize > BLOCKS_MAX - reads.0.len() {
                return None;
            }
            for block in first..end {
                reads.add(object, block);
            }
        }
        Some(reads)
    }

    /// The content of the list.
    pub fn encode(&self) -> Vec<u8> {
        let mut runs = Vec::new();
        let mut count: u32 = 0;
        for run in self.runs() {
            count += 1;
            runs.extend([run.object, run.first, run.count].into_iter().flat_map(u32::to_le_bytes));
        }
        let head = [&MAGIC[..], &VERSION.to_le_bytes(), &count.to_le_bytes()].concat();
        [&head[..], checksum(&head, &runs).as_bytes(), &runs].concat()
    }

    /// Adds a block; `false` if it was there, or there is no room for more.
    pub fn add(&mut self, object: u32, block: u32) -> bool {
        !self.is_full() && self.0.insert((object, block))
    }

    /// Whether there is no room for more.
    pub fn is_full(&self) -> bool {
        self.0.len() >= BLOCKS_MAX
    }

    /// The blocks, those in a row together, sorted.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (object, block) in self.0.iter().copied() {
            match runs.last_mut() {
                Some(run) if run.object == object && run.first + run.count == block => run.count += 1,
                _ => runs.push(Run { object, first: block, count: 1 }),
            }
        }
        runs
    }
}

fn checksum(head: &[u8], runs: &[u8]) -> Digest {
    Digest::of(&[head, runs].concat())
}

/// What a server notes. One lock, held for a look at the set and never over a system call.
pub(crate) struct Recorder {
    journal: File,
    seen: Mutex<Reads>,
    is_full: AtomicBool,
}

impl Recorder {
    /// Notes in `journal` what is not in `known`.
    pub fn new(journal: OwnedFd, known: Reads) -> Self {
        Recorder { journal: journal.into(), is_full: AtomicBool::new(known.is_full()), seen: Mutex::new(known) }
    }

    /// Bytes of an object are read, one at least.
    pub fn note(&self, object: u32, offset: u64, length: u64) {
        // It only spares the lock: who sees it late finds the set full.
        if self.is_full.load(Ordering::Relaxed) {
            return;
        }
        let last = offset.saturating_add(length.saturating_sub(1)) / BLOCK_BYTES;
        let (Ok(first), Ok(last)) = (u32::try_from(offset / BLOCK_BYTES), u32::try_from(last)) else { return };
        let mut notes = Vec::new();
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            for block in first..=last {
                if seen.add(object, block) {
                    notes.extend([object, block].into_iter().flat_map(u32::to_le_bytes));
                }
            }
            self.is_full.store(seen.is_full(), Ordering::Relaxed);
        }
        if !notes.is_empty() {
            // What cannot be noted (no memory) is not brought in next time, no more.
            let _ = (&self.journal).write(&notes);
        }
    }
}

/// The list of a chain in its place, as the keeper has it.
pub(crate) struct ListFile {
    chains: Dir,
    name: String,
    /// That of the chain: when it has lost its name, the image is gone.
    index: File,
    reads: Reads,
    /// How much of the memory file was taken.
    taken: u64,
}

impl ListFile {
    /// The list of the chain that is to be served; `None` where the starter has given no place for it.
    pub fn open(inherited: &mut Inherited) -> Option<Self> {
        let chains = inherited.optional_fd("chains")?;
        let index = inherited.optional_fd("chain")?;
        let id = index::Index::open(&index).ok()?.id();
        let (chains, name) = (Dir::of(chains, PathBuf::from("chains")), store::list_of_reads(&id));
        // One that cannot be read is as one that is not there: it is made anew.
        let found = chains.read(&name, LIST_MAX as u64).ok().flatten();
        let reads = found.and_then(|bytes| Reads::parse(&bytes)).unwrap_or_default();
        Some(ListFile { chains, name, index: index.into(), reads, taken: 0 })
    }

    /// What is known to be read.
    pub fn reads(&self) -> &Reads {
        &self.reads
    }

    /// Takes what servers have noted since, and writes the list if that is more than it has.
    pub fn take(&mut self, journal: &File) {
        let length = journal.metadata().map_or(0, |metadata| metadata.len()).saturating_sub(self.taken).min(NOTES_MAX);
        let mut notes = vec![0; length as usize / NOTE_BYTES * NOTE_BYTES];
        if notes.is_empty() || journal.read_exact_at(&mut notes, self.taken).is_err() {
            return;
        }
        self.taken += notes.len() as u64;
        let mut is_more = false;
        for note in notes.chunks_exact(NOTE_BYTES) {
            let mut numbers = note.chunks_exact(4).map(|part| part.try_into().map_or(0, u32::from_le_bytes));
            if let (Some(object), Some(block)) = (numbers.next(), numbers.next()) {
                is_more |= self.reads.add(object, block);
            }
        }
        if is_more && self.has_index() {
            // A store that takes no more is no reason to fail: the next start reads as this one did.
            let _ = self.chains.replace(&self.name, &self.reads.encode(), Durability::Later);
            if !self.has_index() {
                // The image has gone meanwhile. If not even that can be done, the next sweep does it.
                let _ = self.chains.unlink(&self.name);
            }
        }
    }

    fn has_index(&self) -> bool {
        self.index.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use super::*;

    fn some() -> Reads {
        let mut reads = Reads::default();
        for (object, block) in [(7, 3), (7, 1), (7, 2), (0, u32::MAX - 1), (9, 0), (7, 5), (8, 6)] {
            assert!(reads.add(object, block));
        }
        reads
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_in_runs() {
        let reads = some();
        let runs = [(0, u32::MAX - 1, 1), (7, 1, 3), (7, 5, 1), (8, 6, 1), (9, 0, 1)];
        assert_eq!(reads.runs(), runs.map(|(object, first, count)| Run { object, first, count }));
        assert_eq!(Reads::parse(&reads.encode()), Some(reads));
        assert_eq!(Reads::parse(&Reads::default().encode()), Some(Reads::default()));
    }

    #[test]
    fn what_is_cut_or_changed_is_none() {
        let whole = some().encode();
        for length in 0..whole.len() {
            assert_eq!(Reads::parse(&whole[..length]), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert_eq!(Reads::parse(&changed), None, "byte {at}");
        }
        assert_eq!(Reads::parse(&[&whole[..], &[0]].concat()), None);
    }

    /// With a right checksum, as a hostile store has it.
    #[test]
    fn a_list_is_bounded() {
        let made = |runs: &[[u32; 3]]| {
            let runs: Vec<u8> = runs.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
            let count = (runs.len() / RUN_BYTES) as u32;
            let head = [&MAGIC[..], &VERSION.to_le_bytes(), &count.to_le_bytes()].concat();
            [&head[..], checksum(&head, &runs).as_bytes(), &runs].concat()
        };
        let max = BLOCKS_MAX as u32;
        assert!(Reads::parse(&made(&[[1, 0, max]])).unwrap().is_full());
        assert_eq!(Reads::parse(&made(&[[1, 0, max + 1]])), None);
        assert_eq!(Reads::parse(&made(&[[1, 0, max], [2, 0, 1]])), None);
        assert_eq!(Reads::parse(&made(&[[1, 0, u32::MAX]])), None);
        assert_eq!(Reads::parse(&made(&[[1, u32::MAX, 2]])), None);
        assert_eq!(Reads::parse(&made(&vec![[1, 0, 1]; BLOCKS_MAX + 1])), None);
        let full = Reads::parse(&made(&(0..max).map(|block| [1, 2 * block, 1]).collect::<Vec<_>>())).unwrap();
        assert_eq!(full.encode().len(), LIST_MAX);
        assert!(!full.clone().add(0, 0));
    }

    #[test]
    fn each_block_is_noted_once() {
        let fd = nix::sys::memfd::memfd_create(c"notes", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let notes = File::from(fd.try_clone().unwrap());
        let mut known = Reads::default();
        known.add(1, 0);
        let recorder = Recorder::new(fd, known);
        for _ in 0..2 {
            recorder.note(1, 10, BLOCK_BYTES);
            recorder.note(2, 2 * BLOCK_BYTES, 1);
            recorder.note(2, u64::MAX - 5, 5);
        }
        let mut found = vec![0; notes.metadata().unwrap().len() as usize];
        notes.read_exact_at(&mut found, 0).unwrap();
        let expected: Vec<u8> = [1, 1, 2, 2].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(found, expected);
    }
}
