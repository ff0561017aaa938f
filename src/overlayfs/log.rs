//! The append-only metadata log, its replay, and group commit.
//!
//! File `log.<n>`: records of `length u32, CRC32C u32, sequence u64, unique u64, op u8, payload`, little endian. `length`
//! counts what follows the checksum, the checksum covers the length and what follows it. Sequences grow by one from
//! record to record, so that a stale tail behind an overwritten failed append is never taken for a record.
//! A record is in the page cache before its operation is answered: a dying process loses nothing. [`Group`] makes it
//! durable: one `fdatasync` serves everybody who waits.
//! Behind its end the log has room on the disk, of which the last is for removals: else nothing could be removed from a disk
//! that is full to its last block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::record::Record;

/// How much room behind its end the log asks the disk for, and how much of that is for removals alone.
const AHEAD: u64 = 32 << 10;
const FOR_REMOVALS: u64 = 4 << 10;
/// Bytes before the operation's number: length, checksum, sequence, unique.
const HEAD: usize = 24;
/// Longest record: a name list of a whole inode with the kernel's limits on attributes stays far below.
const RECORD_MAX: usize = 16 << 20;

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected, one byte at a time: records are some 60 bytes.
const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[&[u8]]) -> u32 {
    !bytes.iter().flat_map(|part| part.iter()).fold(!0, |crc, byte| (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)])
}

/// The open end of a log. Protected by the tree's lock.
pub(crate) struct Log {
    file: Arc<File>,
    end: u64,
    /// Up to where there is room on the disk; `None` where the file system keeps none.
    room: Option<u64>,
    sequence: u64,
    buffer: Vec<u8>,
    /// Called after each record has reached the file: where the tests copy the disk as a crash would leave it.
    #[cfg(test)]
    pub(crate) after_append: Option<Box<dyn FnMut() + Send + Sync>>,
}

impl Log {
    /// Continues `file` behind `end`, the last good record being `sequence`.
    pub(crate) fn new(file: File, end: u64, sequence: u64) -> Log {
        Log {
            file: Arc::new(file),
            end,
            room: Some(end),
            sequence,
            buffer: Vec::new(),
            #[cfg(test)]
            after_append: None,
        }
    }

    /// Writes one record. After a failure (disk full) the log is as before: the next record overwrites the remains.
    pub(crate) fn append(&mut self, unique: u64, record: &Record) -> io::Result<()> {
        let sequence = self.sequence + 1;
        frame(&mut self.buffer, sequence, unique, record);
        let end = self.end + self.buffer.len() as u64;
        self.make_room(end, record.takes_the_last())?;
        self.file.write_all_at(&self.buffer, self.end)?;
        self.end = end;
        self.sequence = sequence;
        #[cfg(test)]
        if let Some(after) = &mut self.after_append {
            after();
        }
        Ok(())
    }

    /// Has the disk keep room for a record up to `end` and for removals behind it. On a full disk only one that may take the
    /// last of it goes on.
    fn make_room(&mut self, end: u64, takes_the_last: bool) -> io::Result<()> {
        let Some(room) = self.room.filter(|room| end + FOR_REMOVALS > *room) else { return Ok(()) };
        let length = end + AHEAD - room;
        match fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, room.cast_signed(), length.cast_signed()) {
            Ok(()) => self.room = Some(room + length),
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT)) if !takes_the_last => return Err(errno.into()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.room = None,
            // There may be room nevertheless.
            Err(_) => {}
        }
        Ok(())
    }

    /// Size of the log in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.end
    }

    /// The number of the last record.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What to sync, for use outside the lock.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// Replaces `out` by one framed record.
pub(crate) fn frame(out: &mut Vec<u8>, sequence: u64, unique: u64, record: &Record) {
    out.clear();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&unique.to_le_bytes());
    record.encode(out);
    let length = ((out.len() - 8) as u32).to_le_bytes();
    let crc = crc32c(&[&length, &out[8..]]);
    out[..4].copy_from_slice(&length);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// One good record found by [`Replay`].
pub(crate) struct Replayed {
    pub sequence: u64,
    pub unique: u64,
    pub record: Record,
}

/// Reads good records until the first bad one.
pub(crate) struct Replay<'a> {
    bytes: &'a [u8],
    /// Length of the good part.
    pub end: usize,
    sequence: Option<u64>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Replay { bytes, end: 0, sequence: None }
    }
}

impl Iterator for Replay<'_> {
    type Item = Replayed;

    fn next(&mut self) -> Option<Replayed> {
        let rest = self.bytes.get(self.end..)?;
        let word = |at: usize| rest.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (length, crc) = (word(0)? as usize, word(4)?);
        if !(HEAD - 8 + 1..=RECORD_MAX).contains(&length) {
            return None;
        }
        let body = rest.get(8..8 + length)?;
        let sequence = body.get(..8)?.try_into().ok().map(u64::from_le_bytes)?;
        if crc != crc32c(&[&rest[..4], body]) || self.sequence.is_some_and(|last| Some(sequence) != last.checked_add(1))
        {
            return None;
        }
        let unique = body.get(8..16)?.try_into().ok().map(u64::from_le_bytes)?;
        let record = Record::decode(&body[HEAD - 8..])?;
        self.end += 8 + length;
        self.sequence = Some(sequence);
        Some(Replayed { sequence, unique, record })
    }
}

/// Group commit: whoever comes while a sync runs waits for the next one, which one of the waiters does for all.
#[derive(Default)]
pub(crate) struct Group {
    state: Mutex<Synced>,
    done: Condvar,
}

#[derive(Default)]
struct Synced {
    upto: u64,
    running: bool,
}

impl Group {
    /// Returns when record `sequence` is durable. `current` tells the log's file and last sequence at the moment of
    /// asking (it takes the tree's lock, and no lock of this type is held then).
    pub(crate) fn wait(&self, sequence: u64, current: impl Fn() -> (Arc<File>, u64)) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.upto < sequence {
            if state.running {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            drop(state);
            let (file, upto) = current();
            let result = file.sync_data();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            self.done.notify_all();
            result?;
            state.upto = state.upto.max(upto);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]
    use super::*;

    #[test]
    fn checksum_is_castagnolis() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
    }

    #[test]
    fn replay_stops_at_every_cut_and_every_flipped_bit() {
        let mut log = Log::new(tempfile::tempfile().unwrap(), 0, 41);
        let mut ends = vec![0];
        for ino in 0..4 {
            log.append(7, &Record::Data { ino }).unwrap();
            ends.push(log.size() as usize);
        }
        let mut bytes = vec![0; log.size() as usize];
        log.file().read_exact_at(&mut bytes, 0).unwrap();
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end > 0 && **end <= cut).count();
            assert_eq!(Replay::new(&bytes[..cut]).count(), whole);
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let whole = ends.iter().filter(|end| **end > 0 && **end * 8 <= bit).count();
            assert_eq!(Replay::new(&damaged).count(), whole, "bit {bit}");
        }
    }

    #[test]
    fn a_stale_record_behind_a_good_one_is_not_replayed() {
        let mut bytes = Vec::new();
        let mut record = Vec::new();
        for sequence in [1, 2, 2] {
            frame(&mut record, sequence, 0, &Record::Data { ino: 1 });
            bytes.extend_from_slice(&record);
        }
        assert_eq!(Replay::new(&bytes).count(), 2);
    }
}
