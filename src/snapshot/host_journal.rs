//! What the view of the host remembers of its nodes beside its process: a memory file that the keeper holds.
//!
//! A node id is drawn from device and inode number, but how the file is found again, by its parent and name, only the view
//! knows. A successor on the connection of a killed server reads it here. Every new node, every new name of one and every
//! new device is appended. When the journal has doubled, or most of it holds no more, what still holds is written into the other half of the (sparse)
//! file, and then its first eight bytes, which say which half counts, are changed.
//!
//! A record is a kind, numbers by kind, and [`END`], which says that all of it was written; the first without it ends the
//! half. Numbers are in the machine's byte order: nobody else reads them. A journal that could not be written (no memory)
//! is marked as broken, and then nobody can succeed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Where the halves begin: behind the page with the number of the one that counts, and out of reach of the first.
const HALVES: [u64; 2] = [4096, 1 << 40];
/// In place of that number.
const BROKEN: u64 = u64::MAX;
/// A journal below this is left as it is.
const COMPACT_ABOVE: u64 = 1 << 20;
/// The longest record, and how much is read at a time.
const RECORD_MAX: usize = 512;
const CHUNK: usize = 256 << 10;
const END: u8 = 0xa5;

/// One thing remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note<'a> {
    /// A device gets the next position.
    Device(u64),
    /// An inode gets a number of its own.
    Counted { id: u64, device: u64, ino: u64 },
    /// A node is found there.
    Node { id: u64, parent: u64, device: u64, ino: u64, hollow: bool, name: &'a [u8] },
}

impl<'a> Note<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, numbers: &[u64]| {
            out.push(kind);
            for number in numbers {
                out.extend_from_slice(&number.to_ne_bytes());
            }
        };
        match *self {
            Note::Device(device) => put(1, &[device]),
            Note::Counted { id, device, ino } => put(2, &[id, device, ino]),
            Note::Node { id, parent, device, ino, hollow, name } => {
                put(3 + u8::from(hollow), &[id, parent, device, ino, name.len() as u64]);
                out.extend_from_slice(name);
            }
        }
        out.push(END);
    }

    /// The first note and what follows it; `None` when it was not written to its end.
    fn decode(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (kind, mut rest) = bytes.split_first()?;
        let mut number = || -> Option<u64> {
            let (head, tail) = rest.split_at_checked(8)?;
            rest = tail;
            head.try_into().ok().map(u64::from_ne_bytes)
        };
        let note = match kind {
            1 => Note::Device(number()?),
            2 => Note::Counted { id: number()?, device: number()?, ino: number()? },
            3 | 4 => {
                let (id, parent, device, ino, length) = (number()?, number()?, number()?, number()?, number()?);
                let (name, tail) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                rest = tail;
                Note::Node { id, parent, device, ino, hollow: *kind == 4, name }
            }
            _ => return None,
        };
        let (end, rest) = rest.split_first()?;
        (*end == END).then_some((note, rest))
    }
}

/// The open end of the half that counts. Protected by the lock of the view's nodes.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    half: usize,
    end: u64,
    compact_at: u64,
    /// How many notes there are.
    notes: usize,
    buffer: Vec<u8>,
}

impl Journal {
    /// Reads what a predecessor has left, handing every note to `each`. `EIO` when that is not complete.
    pub(crate) fn open(file: OwnedFd, mut each: impl FnMut(Note<'_>)) -> Result<Journal, Errno> {
        let file = File::from(file);
        let mut number = [0; 8];
        // Of a new file there is nothing to read, which leaves the number of the first half.
        file.read_at(&mut number, 0).map_err(|_| Errno::EIO)?;
        let half = usize::try_from(u64::from_ne_bytes(number)).ok().filter(|half| *half < 2).ok_or(Errno::EIO)?;
        let mut journal = Journal { file, half, end: HALVES[half], compact_at: 0, notes: 0, buffer: vec![0; CHUNK] };
        loop {
            let read = journal.file.read_at(&mut journal.buffer, journal.end).map_err(|_| Errno::EIO)?;
            let mut rest = &journal.buffer[..read];
            while let Some((note, after)) = Note::decode(rest) {
                each(note);
                journal.notes += 1;
                rest = after;
            }
            journal.end += (read - rest.len()) as u64;
            // A record that only goes on in the next chunk is shorter than this.
            if read < CHUNK || rest.len() >= RECORD_MAX {
                break;
            }
        }
        journal.buffer = Vec::new();
        journal.compact_at = journal.due();
        Ok(journal)
    }

    /// At which end the journal has doubled.
    fn due(&self) -> u64 {
        let length = self.end - HALVES[self.half];
        HALVES[self.half] + COMPACT_ABOVE.max(2 * length)
    }

    /// Appends a note. Returns whether it is time to [`Journal::compact`].
    pub(crate) fn add(&mut self, note: &Note<'_>) -> bool {
        self.buffer.clear();
        note.encode(&mut self.buffer);
        self.notes += 1;
        match self.file.write_all_at(&self.buffer, self.end) {
            Ok(()) => self.end += self.buffer.len() as u64,
            Err(_no_memory) => self.broken(),
        }
        self.end > self.compact_at
    }

    /// Whether it is time to [`Journal::compact`] as only `live` notes still hold.
    pub(crate) fn is_sparse(&self, live: usize) -> bool {
        self.end - HALVES[self.half] > COMPACT_ABOVE && live < self.notes / 4
    }

    /// Writes all that holds anew. When that fails (no memory) the old half goes on, and the next try waits until it has doubled.
    pub(crate) fn compact<'n>(&mut self, notes: impl Iterator<Item = Note<'n>>) {
        let (old, old_end) = (self.half, self.end);
        self.notes = 0;
        (self.half, self.end) = (1 - old, HALVES[1 - old]);
        if self.write_all(notes) {
            self.clear(old);
        } else {
            self.clear(self.half);
            (self.half, self.end) = (old, old_end);
        }
        self.compact_at = self.due();
    }

    /// Writes notes at the end and has this half count. Returns whether that went well.
    fn write_all<'n>(&mut self, notes: impl Iterator<Item = Note<'n>>) -> bool {
        self.buffer.clear();
        for note in notes {
            note.encode(&mut self.buffer);
            self.notes += 1;
            if self.buffer.len() >= CHUNK && !self.flush() {
                return false;
            }
        }
        self.flush() && self.file.write_all_at(&(self.half as u64).to_ne_bytes(), 0).is_ok()
    }

    fn flush(&mut self) -> bool {
        let written = self.file.write_all_at(&self.buffer, self.end).is_ok();
        self.end += if written { self.buffer.len() as u64 } else { 0 };
        self.buffer.clear();
        written
    }

    /// Gives the room of a half back. Whatever was beyond an end would be taken for records.
    fn clear(&mut self, half: usize) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let length = if half == 0 { HALVES[1] - HALVES[0] } else { HALVES[1] };
        if fallocate(&self.file, flags, HALVES[half].cast_signed(), length.cast_signed()).is_err() {
            self.broken();
        }
    }

    fn broken(&mut self) {
        // The page with the number is there. If not even that works, a successor finds names that are not true and the
        // kernel is told that what it knows has gone.
        let _best_effort = self.file.write_all_at(&BROKEN.to_ne_bytes(), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use super::*;

    const NODE: Note<'static> = Note::Node { id: 9, parent: 1, device: 2, ino: 3, hollow: true, name: b"name" };

    fn read(file: &File) -> Result<(Journal, usize), Errno> {
        let mut notes = 0;
        Journal::open(file.try_clone().unwrap().into(), |_| notes += 1).map(|journal| (journal, notes))
    }

    #[test]
    fn what_was_noted_is_read_at_any_length() {
        let file = tempfile::tempfile().unwrap();
        let (mut journal, _) = read(&file).unwrap();
        for note in [Note::Device(7), Note::Counted { id: 1, device: 2, ino: 3 }, NODE] {
            journal.add(&note);
        }
        let mut notes = Vec::new();
        Journal::open(file.try_clone().unwrap().into(), |note| notes.push(format!("{note:?}"))).unwrap();
        assert_eq!(notes.len(), 3);
        assert_eq!(notes[2], format!("{NODE:?}"));
        for cut in HALVES[0]..journal.end {
            file.set_len(cut).unwrap();
            assert!(read(&file).unwrap().1 < 3);
        }
        let (mut journal, _) = read(&file).unwrap();
        for _ in 0..50_000 {
            journal.add(&NODE);
        }
        assert!(read(&file).unwrap().1 >= 50_000);
    }

    #[test]
    fn a_half_that_cannot_be_written_changes_nothing() {
        let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(nix::sys::memfd::memfd_create(c"test", flags).unwrap());
        let (mut journal, _) = read(&file).unwrap();
        for _ in 0..1000 {
            journal.add(&NODE);
        }
        // The first half keeps room; the other one would make the file longer.
        file.set_len(HALVES[0] + (1 << 20)).unwrap();
        let seal = nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_GROW);
        nix::fcntl::fcntl(&file, seal).unwrap();
        let end = journal.end;
        journal.compact(std::iter::repeat_n(NODE, 100));
        assert_eq!((journal.half, journal.end), (0, end));
        assert!(!journal.add(&NODE), "the next try waits");
        assert_eq!(read(&file).unwrap().1, 1001);
    }

    #[test]
    fn halves_take_turns() {
        // Unlike a file, one in memory may be as sparse as that.
        let file = File::from(nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::empty()).unwrap());
        let (mut journal, _) = read(&file).unwrap();
        for round in 0..4 {
            while !journal.add(&NODE) {}
            journal.compact([NODE, Note::Device(round)].into_iter());
            assert_eq!(read(&file).unwrap().1, 2);
        }
        while !journal.add(&NODE) {}
        let many = journal.notes;
        assert!(!journal.is_sparse(many / 2) && journal.is_sparse(many / 5));
        assert!(read(&file).unwrap().0.is_sparse(many / 5), "a successor knows too");
        journal.compact([NODE].into_iter());
        assert!(!journal.is_sparse(0), "a small one is left as it is");
        journal.broken();
        assert_eq!(read(&file).map(|(_, notes)| notes), Err(Errno::EIO));
    }
}
