//! Where the contents of a layer's files go: into the index, into the layer's pack, or into objects of their own.

use std::io::{BufWriter, Seek, SeekFrom, Write};

use index::Entry;
use oci::{Digest, Hasher};
use store::{Durability, NewFile, Store};

use crate::error::{LayerError, Result};
use crate::limits::Limits;

/// Contents up to this size are collected in memory and hashed before anything is written, so that a content which the
/// store has costs no write.
const MEMORY_BYTES: u64 = 4 << 20;
/// How many bytes of a layer's contents are kept in its index, which is in memory while it is made.
const INLINE_BYTES: u64 = 2 << 20;
/// Zeros to hash holes with.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Takes the contents of one layer.
pub(crate) struct Contents<'s> {
    store: &'s Store,
    limits: Limits,
    pack: Option<Pack>,
    buffer: Vec<u8>,
    /// Bytes that are in the index so far.
    inline_bytes: u64,
}

struct Pack {
    file: BufWriter<NewFile>,
    hasher: Hasher,
}

/// The content of one file on its way.
pub(crate) enum Writing {
    /// Collected in [`Contents::buffer`].
    Memory,
    File {
        file: Box<NewFile>,
        hasher: Hasher,
        ends_in_hole: bool,
    },
}

impl<'s> Contents<'s> {
    pub fn new(store: &'s Store, limits: Limits) -> Self {
        Contents { store, limits, pack: None, buffer: Vec::new(), inline_bytes: 0 }
    }

    /// Begins a content of this size.
    pub fn begin(&mut self, size: u64) -> Result<Writing> {
        self.buffer.clear();
        if size <= MEMORY_BYTES {
            return Ok(Writing::Memory);
        }
        let file = Box::new(self.store.objects().create()?);
        Ok(Writing::File { file, hasher: Hasher::new(), ends_in_hole: false })
    }

    pub fn bytes(&mut self, writing: &mut Writing, bytes: &[u8]) -> Result<()> {
        match writing {
            Writing::Memory => self.buffer.extend_from_slice(bytes),
            Writing::File { file, hasher, ends_in_hole } => {
                hasher.update(bytes);
                file.write_all(bytes).map_err(object_error)?;
                *ends_in_hole = false;
            }
        }
        Ok(())
    }

    /// A run of zeros, which stays a hole in an object.
    pub fn hole(&mut self, writing: &mut Writing, length: u64) -> Result<()> {
        match writing {
            Writing::Memory => self.buffer.resize(self.buffer.len() + length as usize, 0),
            Writing::File { file, hasher, ends_in_hole } => {
                let mut left = length;
                while left > 0 {
                    let run = left.min(ZEROS.len() as u64);
                    hasher.update(&ZEROS[..run as usize]);
                    left -= run;
                }
                let step = i64::try_from(length).unwrap_or(i64::MAX);
                file.file().seek(SeekFrom::Current(step)).map_err(object_error)?;
                *ends_in_hole = true;
            }
        }
        Ok(())
    }

    /// Ends a content; says where it is.
    pub fn end(&mut self, writing: Writing) -> Result<Entry> {
        let size = self.buffer.len() as u64;
        match writing {
            Writing::Memory if size == 0 => Ok(Entry::EmptyFile),
            Writing::Memory if size <= self.limits.inline_bytes && self.inline_bytes + size <= INLINE_BYTES => {
                self.inline_bytes += size;
                Ok(Entry::InlineFile(self.buffer.clone()))
            }
            Writing::Memory if size <= self.limits.pack_bytes => self.pack(),
            Writing::Memory => {
                let digest = Digest::of(&self.buffer);
                self.store.objects().put(&digest, &self.buffer, Durability::Later)?;
                Ok(Entry::ObjectFile { digest, size })
            }
            Writing::File { file, hasher, ends_in_hole } => {
                let size = hasher.size();
                if ends_in_hole {
                    file.file().set_len(size).map_err(object_error)?;
                }
                let digest = hasher.finish();
                self.store.objects().publish(*file, &digest, Durability::Later)?;
                Ok(Entry::ObjectFile { digest, size })
            }
        }
    }

    /// Appends the collected content to the pack.
    fn pack(&mut self) -> Result<Entry> {
        if self.pack.is_none() {
            let file = BufWriter::with_capacity(1 << 20, self.store.objects().create()?);
            self.pack = Some(Pack { file, hasher: Hasher::new() });
        }
        let Some(pack) = &mut self.pack else { unreachable!("it was made above") };
        let offset = pack.hasher.size();
        pack.hasher.update(&self.buffer);
        pack.file.write_all(&self.buffer).map_err(pack_error)?;
        Ok(Entry::PackedFile { offset, size: self.buffer.len() as u64 })
    }

    /// Publishes the pack; `None` if nothing is in it.
    pub fn finish(self) -> Result<Option<(Digest, u64)>> {
        let Some(pack) = self.pack else { return Ok(None) };
        let file = pack.file.into_inner().map_err(|error| pack_error(error.into_error()))?;
        let size = pack.hasher.size();
        let digest = pack.hasher.finish();
        self.store.objects().publish(file, &digest, Durability::Later)?;
        Ok(Some((digest, size)))
    }
}

fn object_error(source: std::io::Error) -> LayerError {
    LayerError::Write { what: "an object", source }
}

fn pack_error(source: std::io::Error) -> LayerError {
    LayerError::Write { what: "the pack", source }
}
