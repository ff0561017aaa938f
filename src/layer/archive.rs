//! A strict reader of tar archives: one entry after the other from a stream, nothing looked at twice.
//!
//! Where archives can be read in two ways it takes the one of Go's archive/tar, in which images are written and which
//! other engines read, and refuses what that refuses. Three rules keep an entry from hiding in another one's data: an
//! extended header belongs to the next file, also over GNU long names between; its size replaces the header's before
//! anything is skipped; and links, directories and devices have no data whatever size they claim. A global header means
//! nothing, as to all users of that package (containerd, containers/storage, Moby), and for it too it is an entry: what stood
//! before it belongs to no file.

use std::io::BufRead;

use index::{DeviceNumber, Time};

use crate::block::{BLOCK, Block, Fault, text};
use crate::error::{LayerError, Result};
use crate::pax::{self, Pax, decimal};
use crate::sparse::{self, SparseMap};

/// The most bytes that extended headers, long names and sparse maps of one entry may have together.
pub(crate) const HEADERS_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    Regular,
    /// A second name of this path.
    HardLink(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One file of the archive, without its content.
#[derive(Clone, Debug)]
pub struct Header {
    /// As it stands in the archive: it may be absolute, have `..`, or end in a slash.
    pub path: Vec<u8>,
    /// What the entry is.
    pub kind: Type,
    /// Owner, mode, time, attributes.
    pub metadata: index::Metadata,
    /// Length of the content, holes included.
    pub size: u64,
}

/// A piece of a file's content.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// That many zeros.
    Hole(u64),
}

/// An archive that is read.
#[derive(Debug)]
pub struct Archive<R> {
    stream: R,
    offset: u64,
    /// Of the current entry: segments that are left, where the file stands, its length.
    segments: std::vec::IntoIter<(u64, u64)>,
    segment_left: u64,
    position: u64,
    size: u64,
    /// Zeros up to the next block, after the data.
    padding: u64,
}

/// What stood before the header of a file.
#[derive(Default)]
struct Before {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> Archive<R> {
    /// Nothing is read yet.
    pub fn new(stream: R) -> Self {
        Archive {
            stream,
            offset: 0,
            segments: Vec::new().into_iter(),
            segment_left: 0,
            position: 0,
            size: 0,
            padding: 0,
        }
    }

    /// The next file; what was not read of the last one is skipped. `None` at the end of the archive.
    pub fn next_file(&mut self) -> Result<Option<Header>> {
        while self.piece(|_| Ok(()))? {}
        let mut before = Before::default();
        let (mut bytes, mut needs_file) = (0, false);
        loop {
            let Some(block) = self.header_block()? else {
                return if needs_file { Err(self.malformed("it ends after an extended header")) } else { Ok(None) };
            };
            match block.type_flag() {
                b'x' => {
                    let data = self.extension(&block, &mut bytes)?;
                    before.pax.add(&data).map_err(|fault| self.malformed(fault))?;
                }
                b'g' => {
                    let data = self.extension(&block, &mut bytes)?;
                    pax::check(&data).map_err(|fault| self.malformed(fault))?;
                    before = Before::default();
                }
                b'L' => before.long_name = Some(text(&self.extension(&block, &mut bytes)?).to_vec()),
                b'K' => before.long_link = Some(text(&self.extension(&block, &mut bytes)?).to_vec()),
                _ => return self.file(&block, before).map(Some),
            }
            needs_file = block.type_flag() != b'g';
        }
    }

    /// Hands over the next piece of the current file; `false` when there is none left.
    pub fn piece(&mut self, take: impl FnOnce(Piece<'_>) -> Result<()>) -> Result<bool> {
        while self.segment_left == 0 {
            let (start, length) = match self.segments.next() {
                Some(segment) => segment,
                None if self.position < self.size => (self.size, 0),
                None => {
                    let padding = std::mem::take(&mut self.padding);
                    self.skip(padding)?;
                    return Ok(false);
                }
            };
            let hole = start - self.position;
            self.position = start;
            self.segment_left = length;
            if hole > 0 {
                take(Piece::Hole(hole))?;
                return Ok(true);
            }
        }
        let bytes = self.stream.fill_buf().map_err(|source| LayerError::Read { source })?;
        if bytes.is_empty() {
            return Err(LayerError::Truncated { offset: self.offset });
        }
        let length = usize::try_from(self.segment_left).unwrap_or(usize::MAX).min(bytes.len());
        take(Piece::Bytes(&bytes[..length]))?;
        self.stream.consume(length);
        self.offset += length as u64;
        self.segment_left -= length as u64;
        self.position += length as u64;
        Ok(true)
    }

    /// Where the content of the current file begins in the stream, before any of it was read; `None` if it is not there in
    /// one piece.
    pub fn content_offset(&self) -> Option<u64> {
        (self.segments.as_slice() == [(0, self.size)]).then_some(self.offset)
    }

    /// The rest of the stream after the end of the archive, which counts for its digest.
    pub fn drain(mut self) -> Result<()> {
        loop {
            let length = self.stream.fill_buf().map_err(|source| LayerError::Read { source })?.len();
            if length == 0 {
                return Ok(());
            }
            self.stream.consume(length);
        }
    }

    fn malformed(&self, what: Fault) -> LayerError {
        LayerError::Malformed { offset: self.offset, what }
    }

    /// The next block that is a header; `None` at two blocks of zeros and at the end of the stream.
    fn header_block(&mut self) -> Result<Option<Block>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if !Block::is_zero(&block) {
            return Block::checked(&block).map(Some).map_err(|fault| self.malformed(fault));
        }
        match self.block()? {
            Some(second) if !Block::is_zero(&second) => Err(self.malformed("a single block of zeros is not an end")),
            _ => Ok(None),
        }
    }

    /// The next block; `None` when the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let read = self.read(&mut block)?;
        match read {
            BLOCK => Ok(Some(block)),
            0 => Ok(None),
            _ => Err(LayerError::Truncated { offset: self.offset }),
        }
    }

    /// Fills the buffer as far as the stream goes.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let bytes = self.stream.fill_buf().map_err(|source| LayerError::Read { source })?;
            if bytes.is_empty() {
                break;
            }
            let length = bytes.len().min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&bytes[..length]);
            self.stream.consume(length);
            self.offset += length as u64;
            filled += length;
        }
        Ok(filled)
    }

    fn skip(&mut self, mut left: u64) -> Result<()> {
        while left > 0 {
            let available = self.stream.fill_buf().map_err(|source| LayerError::Read { source })?.len();
            if available == 0 {
                return Err(LayerError::Truncated { offset: self.offset });
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.stream.consume(length);
            self.offset += length as u64;
            left -= length as u64;
        }
        Ok(())
    }

    /// The data of an extended header or long name; `bytes` counts how much there was of them.
    fn extension(&mut self, block: &Block, bytes: &mut u64) -> Result<Vec<u8>> {
        let size = block.size().map_err(|fault| self.malformed(fault))?;
        // An empty one counts as well: a million of them are a header chain, too.
        *bytes = bytes.saturating_add(size).saturating_add(BLOCK as u64);
        if *bytes > HEADERS_MAX {
            return Err(LayerError::Limit { what: "bytes in the headers of one entry", limit: HEADERS_MAX });
        }
        let mut data = vec![0; size as usize];
        if self.read(&mut data)? < data.len() {
            return Err(LayerError::Truncated { offset: self.offset });
        }
        self.skip(padding_of(size))?;
        Ok(data)
    }

    fn file(&mut self, block: &Block, before: Before) -> Result<Header> {
        let pax = before.pax;
        let fault = |fault| LayerError::Malformed { offset: self.offset, what: fault };
        let pax_name = pax.sparse.name.clone().or_else(|| pax.path.clone());
        let path = pax_name.or(before.long_name).unwrap_or_else(|| block.name());
        let link = || pax.link_path.clone().or(before.long_link).unwrap_or_else(|| block.link_name().to_vec());
        let kind = match block.type_flag() {
            // Before POSIX a directory was a file whose name ends in a slash.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Type::Directory,
            b'0' | 0 | b'7' | b'S' => Type::Regular,
            b'1' => Type::HardLink(link()),
            b'2' => Type::Symlink(link()),
            b'3' => Type::CharDevice(device(block).map_err(fault)?),
            b'4' => Type::BlockDevice(device(block).map_err(fault)?),
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            _ => return Err(self.malformed("an entry has an unknown type")),
        };
        let old_directory = kind == Type::Directory && block.type_flag() != b'5';
        let stored = match pax.size {
            _ if kind != Type::Regular && !old_directory => 0,
            Some(size) => size,
            None => block.size().map_err(fault)?,
        };
        let metadata = index::Metadata {
            permissions: block.permissions().map_err(fault)?,
            uid: owner(pax.uid, block.uid()).map_err(fault)?,
            gid: owner(pax.gid, block.gid()).map_err(fault)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time { seconds: block.mtime().map_err(fault)?, nanoseconds: 0 },
            },
            xattrs: pax.xattrs.clone(),
        };
        let size = self.begin_content(block, &pax, stored)?;
        Ok(Header { path, size: if kind == Type::Regular { size } else { 0 }, kind, metadata })
    }

    /// Prepares the reading of the content; its length with holes.
    fn begin_content(&mut self, block: &Block, pax: &Pax, stored: u64) -> Result<u64> {
        // Rounding up must not overflow later.
        if stored > i64::MAX as u64 {
            return Err(self.malformed("a size is out of range"));
        }
        self.padding = padding_of(stored);
        self.position = 0;
        let map = self.sparse_map(block, pax, stored)?;
        let (size, segments) = match map {
            Some(map) => (map.real_size, map.segments),
            None => (stored, vec![(0, stored)]),
        };
        self.size = size;
        self.segments = segments.into_iter();
        Ok(size)
    }

    fn sparse_map(&mut self, block: &Block, pax: &Pax, stored: u64) -> Result<Option<SparseMap>> {
        let sparse = &pax.sparse;
        let map = if block.type_flag() == b'S' {
            let (mut segments, real_size, mut more) = sparse::old_gnu(block).map_err(|fault| self.malformed(fault))?;
            let mut blocks = 0;
            while more {
                blocks += BLOCK as u64;
                if blocks > HEADERS_MAX {
                    return Err(LayerError::Limit { what: "bytes in the sparse map of one entry", limit: HEADERS_MAX });
                }
                let extension = self.block()?.ok_or(LayerError::Truncated { offset: self.offset })?;
                sparse::add_table(&extension[..504], &mut segments).map_err(|fault| self.malformed(fault))?;
                more = extension[504] != 0;
            }
            SparseMap::new(real_size, segments, stored)
        } else if !matches!(block.type_flag(), b'0' | 0 | b'7') {
            return Ok(None);
        } else if (sparse.major, sparse.minor) == (Some(1), Some(0)) {
            let real_size = sparse.real_size.ok_or_else(|| self.malformed("a sparse file has no length"))?;
            let (pairs, used) = self.map_in_data(stored)?;
            SparseMap::of_pairs(real_size, &pairs, stored - used)
        } else if sparse.has_map {
            let real_size = sparse.real_size.ok_or_else(|| self.malformed("a sparse file has no length"))?;
            SparseMap::of_pairs(real_size, &sparse.map, stored)
        } else {
            return Ok(None);
        };
        map.map(Some).map_err(|fault| self.malformed(fault))
    }

    /// The map of version 1.0, decimal lines at the start of the data, and the bytes it took.
    fn map_in_data(&mut self, stored: u64) -> Result<(Vec<u64>, u64)> {
        let mut lines: Vec<u8> = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut used = 0;
        while wanted.is_none_or(|wanted: u64| (numbers.len() as u64) < wanted) {
            used += BLOCK as u64;
            if used > HEADERS_MAX {
                return Err(LayerError::Limit { what: "bytes in the sparse map of one entry", limit: HEADERS_MAX });
            }
            if used > stored {
                return Err(self.malformed("a sparse map is longer than its file"));
            }
            let block = self.block()?.ok_or(LayerError::Truncated { offset: self.offset })?;
            lines.extend(block);
            // What is left of the block before is less than one number.
            if lines.len() > 2 * BLOCK {
                return Err(self.malformed("a sparse map is not made of lines"));
            }
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                if wanted.is_some_and(|wanted| numbers.len() as u64 == wanted) {
                    break;
                }
                let line: Vec<u8> = lines.drain(..=end).collect();
                let number = decimal(&line[..end]).map_err(|fault| self.malformed(fault))?;
                match wanted {
                    None => wanted = Some(number.saturating_mul(2)),
                    Some(_) => numbers.push(number),
                }
            }
        }
        Ok((numbers, used))
    }
}

fn padding_of(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn device(block: &Block) -> std::result::Result<DeviceNumber, Fault> {
    let (major, minor) = block.device()?;
    Ok(DeviceNumber { major, minor })
}

/// An owner; 2^32 - 1 is `chown`'s "leave it" and nobody's.
fn owner(pax: Option<u64>, header: std::result::Result<i64, Fault>) -> std::result::Result<u32, Fault> {
    let id = match pax {
        Some(id) => Some(id),
        None => u64::try_from(header?).ok(),
    };
    id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX).ok_or("an owner is out of range")
}
