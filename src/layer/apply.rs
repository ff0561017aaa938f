//! One layer into the store: contents to objects, names to an index.
//!
//! Nothing is ever written at a path of the archive: its names become keys of the index, its contents go to files
//! named by their hash. The index gets its name last, after everything it speaks of was synced; before that a kill or
//! an error leaves only objects that nothing names, which the next sweep removes.

use std::io::{BufRead, Read};

use index::{Entry, Metadata, TreeBuilder, WriteError};
use oci::DiffId;
use store::{Durability, Store};

use crate::archive::{Archive, Header, Piece, Type};
use crate::chain::whole_layer;
use crate::content::Contents;
use crate::error::{LayerError, Result};
use crate::limits::Limits;
use crate::pipeline;
use crate::whiteout::{Name, classify, is_overlay_mark};

/// What applying a layer gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the uncompressed archive, under which the index is in the store.
    pub diff_id: DiffId,
    /// Length of the uncompressed archive in bytes.
    pub size: u64,
    /// How many entries it had.
    pub entries: u64,
}

/// Reads a layer to the end and publishes its index, contents first.
///
/// The caller holds a lease. `reader` gives the layer as the registry does; it must fail at its end instead of ending
/// when the compressed digest is wrong. With `expected` a layer of another diff ID is refused.
pub fn apply(
    reader: impl Read + Send,
    expected: Option<DiffId>,
    store: &Store,
    durability: Durability,
    limits: &Limits,
) -> Result<Applied> {
    let ((builder, pack, entries), diff_id, size) = pipeline::run(reader, limits, |stream| {
        let mut layer = Layer::new(store, limits);
        let mut archive = Archive::new(stream);
        while let Some(header) = archive.next_file()? {
            layer.entry(header, &mut archive)?;
        }
        archive.drain()?;
        let pack = layer.contents.finish()?;
        Ok((layer.builder, pack, layer.entries))
    })?;
    if let Some(expected) = expected.filter(|expected| *expected != diff_id) {
        return Err(LayerError::DiffId { expected, found: diff_id });
    }
    let file = store.layers().create()?;
    builder.write_to(diff_id, pack, file.file()).map_err(|error| match error {
        WriteError::Output { source } => LayerError::Write { what: "the index", source },
        error => error.into(),
    })?;
    if durability == Durability::Now {
        store.sync()?;
    }
    if store.layers().has(&diff_id.0)? && whole_layer(store, diff_id)?.is_none() {
        // It would stay if it had its size, and the layer be applied again at each pull.
        store.layers().replace(file, &diff_id.0, durability)?;
    } else {
        store.layers().publish(file, &diff_id.0, durability)?;
    }
    Ok(Applied { diff_id, size, entries })
}

/// Reads the archive of a layer as [`apply`] does, without keeping anything: for those who want to know whether it
/// would be accepted. Plain archives only.
pub fn check(reader: impl BufRead, limits: &Limits) -> Result<u64> {
    let mut archive = Archive::new(reader);
    let mut builder = TreeBuilder::bounded(limits.tree_bytes);
    let mut entries = 0;
    while let Some(header) = archive.next_file()? {
        count(&mut entries, limits)?;
        if let Some((path, metadata, entry)) = name_entry(&mut builder, header)? {
            let entry = entry.unwrap_or(Entry::EmptyFile);
            builder.insert(&path, &metadata, entry)?;
        }
        while archive.piece(|_| Ok(()))? {}
    }
    Ok(entries)
}

struct Layer<'s> {
    builder: TreeBuilder,
    contents: Contents<'s>,
    limits: &'s Limits,
    entries: u64,
    /// Bytes of the holes of all files.
    hole_bytes: u64,
}

impl<'s> Layer<'s> {
    fn new(store: &'s Store, limits: &'s Limits) -> Self {
        let contents = Contents::new(store, *limits);
        Layer { builder: TreeBuilder::bounded(limits.tree_bytes), contents, limits, entries: 0, hole_bytes: 0 }
    }

    fn entry(&mut self, header: Header, archive: &mut Archive<impl BufRead>) -> Result<()> {
        count(&mut self.entries, self.limits)?;
        let size = header.size;
        let Some((path, metadata, entry)) = name_entry(&mut self.builder, header)? else { return Ok(()) };
        let entry = match entry {
            Some(entry) => entry,
            None => self.content(size, archive)?,
        };
        Ok(self.builder.insert(&path, &metadata, entry)?)
    }

    fn content(&mut self, size: u64, archive: &mut Archive<impl BufRead>) -> Result<Entry> {
        let limit = self.limits.hole_bytes;
        let holes = &mut self.hole_bytes;
        let contents = &mut self.contents;
        let mut writing = contents.begin(size)?;
        while archive.piece(|piece| match piece {
            Piece::Bytes(bytes) => contents.bytes(&mut writing, bytes),
            Piece::Hole(length) => {
                // Holes cost no stream, so the limit of the stream does not hold them.
                *holes = holes.saturating_add(length);
                if *holes > limit {
                    return Err(LayerError::Limit { what: "bytes of holes in files", limit });
                }
                contents.hole(&mut writing, length)
            }
        })? {}
        contents.end(writing)
    }
}

fn count(entries: &mut u64, limits: &Limits) -> Result<()> {
    *entries += 1;
    if *entries > limits.entries {
        return Err(LayerError::Limit { what: "entries", limit: limits.entries });
    }
    Ok(())
}

/// Path, metadata and what it is; `None` for a regular file, whose content must be read first.
type ToInsert = (Vec<u8>, Metadata, Option<Entry>);

/// Does what an entry's name asks for; what is left to insert comes back.
fn name_entry(builder: &mut TreeBuilder, header: Header) -> Result<Option<ToInsert>> {
    let Header { path, kind, mut metadata, .. } = header;
    match classify(&path)? {
        Name::Ignored => return Ok(None),
        Name::Whiteout(hidden) => {
            builder.whiteout(&hidden)?;
            return Ok(None);
        }
        Name::Opaque(directory) => {
            builder.opaque(&directory)?;
            return Ok(None);
        }
        Name::Plain => {}
    }
    metadata.xattrs.retain(|name, _| !is_overlay_mark(name));
    let entry = match kind {
        Type::HardLink(target) => {
            builder.hard_link(&path, &target)?;
            // Docker, containerd and Podman apply the header of a link to the file that it names; most archives repeat
            // the same there.
            builder.describe(&path, &metadata)?;
            return Ok(None);
        }
        Type::Regular => None,
        Type::Symlink(target) => Some(Entry::Symlink(target)),
        Type::CharDevice(number) => Some(Entry::CharDevice(number)),
        Type::BlockDevice(number) => Some(Entry::BlockDevice(number)),
        Type::Directory => Some(Entry::Directory),
        Type::Fifo => Some(Entry::Fifo),
    };
    Ok(Some((path, metadata, entry)))
}
