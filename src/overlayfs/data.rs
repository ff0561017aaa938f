//! Contents: reading, writing, copy-up and everything else that touches data files.
//!
//! A change of contents holds the inode's [`crate::busy`] guard from its first look to its end. Size and modification
//! time of a file with upper data are those of its data file; after each change they are taken over from it, so that
//! replay, which asks the data file too, shows the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek64};

use crate::attr::{Attr, Request, Result, S_IFMT, S_IFREG, Time, without_privileges};
use crate::lower::Source;
use crate::node::Data;
use crate::overlay::{Overlay, errno_of, take_stat};
use crate::quota::{self, Room};
use crate::record::Record;
use crate::tree::CAPABILITY;

/// Piece of a copy by read and write.
const COPY_CHUNK: usize = 1 << 20;

fn unlocked<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| errno_of(&error))
}

fn timespec(at: Time) -> TimeSpec {
    TimeSpec::new(at.seconds, i64::from(at.nanos))
}

/// Reads at `offset` until `buffer` is full or the file ends.
fn read_full<'b>(file: &File, offset: u64, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno_of(&error)),
        }
    }
    Ok(&buffer[..done])
}

/// Writes at `offset` until all is written or there is no room for more; an error only where there was none at all.
fn write_some(file: &File, offset: u64, bytes: &[u8]) -> Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(count) if count > 0 => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(errno_of(&error)),
            _ => break,
        }
    }
    Ok(done)
}

impl Overlay {
    /// Up to `buffer.len()` bytes from `offset`, fewer only at the end of the file; in `buffer` or in the mapped index.
    pub fn read_data<'a>(&'a self, ino: u64, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let data = self.read().tree.data(ino)?;
        match data {
            Data::Empty => Ok(&[]),
            Data::Upper => read_full(&*self.files.get(ino)?, offset, buffer),
            Data::Lower => {
                let (source, size) = self.lower_source(ino)?;
                let left = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
                match source {
                    Source::Memory(bytes) => Ok(bytes.get(offset as usize..).map_or(&[], |rest| &rest[..left])),
                    Source::File { file, offset: start } => {
                        let at = start.checked_add(offset).ok_or(Errno::EIO)?;
                        read_full(&file, at, &mut buffer[..left])
                    }
                }
            }
        }
    }

    fn lower_source(&self, ino: u64) -> Result<(Source<'_>, u64)> {
        let lower = self.lower.node(ino).ok_or(Errno::EIO)?;
        Ok((self.lower.source(lower)?, self.lower.attr(lower)?.size))
    }

    /// Writes `bytes` at `offset`; how many of them, as `pwrite(2)`: fewer where the disk became full on the way.
    /// `kill_privileges`: set-id bits and file capabilities must go.
    pub fn write_data(
        &self,
        request: &Request,
        ino: u64,
        offset: u64,
        bytes: &[u8],
        kill_privileges: bool,
    ) -> Result<usize> {
        let _writing = self.busy.enter(ino);
        let file = self.upper_file(request, ino, u64::MAX)?;
        if kill_privileges {
            self.kill_privileges(request, ino)?;
        }
        let room = self.room(&file, || quota::most_of_write(&file, offset, bytes.len() as u64))?;
        let written = write_some(&file, offset, bytes);
        settle(room, &file)?;
        self.refresh(ino, &fstat(&*file)?);
        written
    }

    /// Takes set-id bits and the file capability from a regular file.
    pub(crate) fn kill_privileges(&self, request: &Request, ino: u64) -> Result<()> {
        let mut state = self.write();
        let old = state.tree.attr(ino)?;
        if old.mode & S_IFMT != S_IFREG {
            return Ok(());
        }
        let mode = without_privileges(old.mode);
        let drop_caps = state.tree.xattr(ino, CAPABILITY)?.is_some();
        if mode == old.mode && !drop_caps {
            return Ok(());
        }
        let Attr { uid, gid, atime, mtime, .. } = old;
        let record =
            Record::Attributes { ino, mode: mode & !S_IFMT, uid, gid, atime, mtime, ctime: Time::now(), drop_caps };
        self.commit(&mut state, request, &record).map(drop)
    }

    /// The data file of an inode that is about to change, made or copied up when there is none. At most `limit` bytes
    /// are copied. The caller holds the inode's guard.
    fn upper_file(&self, request: &Request, ino: u64, limit: u64) -> Result<Arc<File>> {
        let data = self.read().tree.data(ino)?;
        match data {
            Data::Upper => self.files.get(ino),
            Data::Empty => {
                let mut state = self.write();
                let file = self.files.create(ino)?;
                self.commit(&mut state, request, &Record::Data { ino })?;
                Ok(file)
            }
            Data::Lower => self.copy_up(request, ino, limit),
        }
    }

    /// Copies the lower contents into a file beside, which becomes the data file once it is complete.
    fn copy_up(&self, request: &Request, ino: u64, limit: u64) -> Result<Arc<File>> {
        let (source, size) = self.lower_source(ino)?;
        let attr = self.attr(ino)?;
        let file = self.files.grow(ino)?;
        let room = self.room(&file, || Ok(size.min(limit)));
        let copied = room.and_then(|room| {
            copy_contents(&file, &source, size, limit)?;
            settle(room, &file)?;
            futimens(&*file, &timespec(attr.atime), &timespec(attr.mtime))
        });
        if let Err(errno) = copied {
            self.files.abandon(ino);
            return Err(errno);
        }
        let mut state = self.write();
        self.files.grown(ino, &file)?;
        self.commit(&mut state, request, &Record::Data { ino })?;
        let stat = fstat(&*file)?;
        if let Some(node) = state.tree.nodes.get_mut(&ino) {
            take_stat(node, &stat);
        }
        Ok(file)
    }

    /// Sets the size. Cutting to nothing copies nothing. The caller holds the inode's guard.
    pub(crate) fn truncate(&self, request: &Request, ino: u64, size: u64) -> Result<()> {
        if i64::try_from(size).is_err() {
            return Err(Errno::EFBIG);
        }
        let data = self.read().tree.data(ino)?;
        if size == 0 && data != Data::Upper {
            let mut state = self.write();
            return self.commit(&mut state, request, &Record::Emptied { ino, at: Time::now() }).map(drop);
        }
        let file = self.upper_file(request, ino, size)?;
        let room = self.room(&file, || Ok(0))?;
        unlocked(file.set_len(size))?;
        settle(room, &file)?;
        self.refresh(ino, &fstat(&*file)?);
        Ok(())
    }

    /// `fallocate(2)`; `mode` holds its `FALLOC_FL_*` bits. Like a write it takes set-id bits and file capabilities, as
    /// does [`Overlay::copy_range`]: these requests do not say whether to, and the kernel leaves it to us.
    pub fn allocate(&self, request: &Request, ino: u64, mode: i32, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
        let _writing = self.busy.enter(ino);
        let file = self.upper_file(request, ino, u64::MAX)?;
        self.kill_privileges(request, ino)?;
        // What only takes away needs no room.
        let frees = flags.intersects(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_COLLAPSE_RANGE);
        let most = if frees { 0 } else { length.unsigned_abs() };
        let room = self.room(&file, || Ok(most))?;
        let allocated = fallocate(&*file, flags, offset, length);
        settle(room, &file)?;
        // Where it has failed on the way, the file may be longer nevertheless.
        self.refresh(ino, &fstat(&*file)?);
        allocated
    }

    /// The next byte of data (or of a hole) at or after `offset`.
    pub fn seek(&self, ino: u64, offset: u64, hole: bool) -> Result<u64> {
        let size = self.attr(ino)?.size;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let data = self.read().tree.data(ino)?;
        let (file, start) = match data {
            Data::Empty => return Err(Errno::ENXIO),
            Data::Upper => (self.files.get(ino)?, 0),
            Data::Lower => match self.lower_source(ino)?.0 {
                Source::File { file, offset } => (file, offset),
                Source::Memory(_) => return Ok(if hole { size } else { offset }),
            },
        };
        let at = i64::try_from(start.saturating_add(offset)).map_err(|_| Errno::ENXIO)?;
        let found = lseek64(&*file, at, if hole { Whence::SeekHole } else { Whence::SeekData })? as u64;
        match (found.saturating_sub(start), hole) {
            (found, true) => Ok(found.min(size)),
            (found, false) if found < size => Ok(found),
            (_, false) => Err(Errno::ENXIO),
        }
    }

    /// Copies up to `length` bytes between two files inside the kernel below, by reflink where it can. `EXDEV` when
    /// that is not possible: the caller copies through the page cache then.
    pub fn copy_range(
        &self,
        request: &Request,
        (source, from): (u64, u64),
        (target, to): (u64, u64),
        length: u64,
    ) -> Result<u64> {
        let size = self.attr(source)?.size;
        let length = length.min(size.saturating_sub(from));
        if length == 0 {
            return Ok(0);
        }
        let _writing = self.busy.enter(target);
        let data = self.read().tree.data(source)?;
        let (file, start) = match data {
            Data::Upper => (self.files.get(source)?, 0),
            Data::Empty => return Ok(0),
            Data::Lower => match self.lower_source(source)?.0 {
                Source::File { file, offset } => (file, offset),
                Source::Memory(_) => return Err(Errno::EXDEV),
            },
        };
        let out = self.upper_file(request, target, u64::MAX)?;
        let mut read_at = i64::try_from(start.saturating_add(from)).map_err(|_| Errno::EINVAL)?;
        let mut write_at = i64::try_from(to).map_err(|_| Errno::EFBIG)?;
        self.kill_privileges(request, target)?;
        let room = self.room(&out, || quota::most_of_write(&out, to, length))?;
        let count = copy_file_range(&*file, Some(&mut read_at), &*out, Some(&mut write_at), length as usize)
            .map_err(|errno| if errno == Errno::EINVAL { errno } else { Errno::EXDEV })?;
        settle(room, &out)?;
        self.refresh(target, &fstat(&*out)?);
        Ok(count as u64)
    }

    /// Room for a change of a data file, under the quota.
    fn room<'q>(&'q self, file: &File, most: impl FnOnce() -> Result<u64>) -> Result<Option<Room<'q>>> {
        if self.files.quota.usage().is_none() {
            return Ok(None);
        }
        self.files.quota.room(file, most()?)
    }

    /// Sets the times of a data file. The caller holds the inode's guard.
    pub(crate) fn stamp(&self, ino: u64, atime: Time, mtime: Time) -> Result<()> {
        futimens(&*self.files.get(ino)?, &timespec(atime), &timespec(mtime))
    }
}

fn settle(room: Option<Room<'_>>, file: &File) -> Result<()> {
    room.map_or(Ok(()), |room| room.settle(file))
}

/// Copies `size` bytes of a lower file, cut to `limit`: by sharing blocks, else extent by extent so that holes stay
/// holes, inside the kernel or, between file systems that cannot, by read and write.
fn copy_contents(target: &File, source: &Source<'_>, size: u64, limit: u64) -> Result<()> {
    let wanted = size.min(limit);
    let (file, start) = match source {
        Source::Memory(bytes) => {
            let part = bytes.get(..wanted as usize).ok_or(Errno::EIO)?;
            return unlocked(target.write_all_at(part, 0));
        }
        Source::File { file, offset } => (file, *offset),
    };
    if start == 0 && wanted == size && sys::file::clone_contents(target, &**file).is_ok() {
        return unlocked(target.set_len(size));
    }
    unlocked(target.set_len(wanted))?;
    let end = start.checked_add(wanted).ok_or(Errno::EIO)?;
    let mut at = start;
    while at < end {
        let Some((data, hole)) = extent(file, at, end) else { break };
        copy_extent(target, file, (data, hole), start)?;
        at = hole;
    }
    Ok(())
}

/// The next extent with data in `at..end`; all of it where the file system cannot tell.
fn extent(file: &File, at: u64, end: u64) -> Option<(u64, u64)> {
    let data = match lseek64(file, at as i64, Whence::SeekData) {
        Ok(data) => data as u64,
        Err(Errno::ENXIO) => return None,
        Err(_unsupported) => return Some((at, end)),
    };
    let hole = lseek64(file, data as i64, Whence::SeekHole).map_or(end, |hole| hole as u64);
    (data < end).then(|| (data, hole.clamp(data + 1, end)))
}

fn copy_extent(target: &File, file: &File, (mut at, end): (u64, u64), start: u64) -> Result<()> {
    while at < end {
        let (mut from, mut to) = (at as i64, (at - start) as i64);
        match copy_file_range(file, Some(&mut from), target, Some(&mut to), (end - at) as usize) {
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => at += count as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    let mut buffer = vec![0; COPY_CHUNK.min((end - at) as usize)];
    while at < end {
        let piece = buffer.len().min((end - at) as usize);
        let read = read_full(file, at, &mut buffer[..piece])?;
        if read.is_empty() {
            return Err(Errno::EIO);
        }
        unlocked(target.write_all_at(read, at - start))?;
        at += read.len() as u64;
    }
    Ok(())
}
