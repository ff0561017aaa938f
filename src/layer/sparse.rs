//! Where the bytes of a sparse file belong: the maps of GNU tar's four ways to write one.

use crate::block::{Block, Fault, number};

/// Offset and length of each.
pub(crate) type Segments = Vec<(u64, u64)>;

/// A file of which only some segments are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Length of the file with its holes.
    pub real_size: u64,
    /// Offset and length of each segment, in order.
    pub segments: Segments,
}

impl SparseMap {
    /// Checks that the segments lie inside the file one after the other and are as long as the stored data.
    pub fn new(real_size: u64, segments: Segments, stored: u64) -> Result<SparseMap, Fault> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, length) in &segments {
            if *offset < end {
                return Err("segments of a sparse file overlap");
            }
            end = offset.checked_add(*length).filter(|end| *end <= real_size).ok_or("a sparse file ends too early")?;
            sum += length;
        }
        if sum != stored {
            return Err("the stored part of a sparse file has not the length of its map");
        }
        Ok(SparseMap { real_size, segments })
    }

    /// From offsets and lengths in turn.
    pub fn of_pairs(real_size: u64, pairs: &[u64], stored: u64) -> Result<SparseMap, Fault> {
        let (pairs, rest) = pairs.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a sparse map has an offset without length");
        }
        SparseMap::new(real_size, pairs.iter().map(|[offset, length]| (*offset, *length)).collect(), stored)
    }
}

/// Adds the segments of a table in a header or extension block; an entry of zeros ends it.
pub(crate) fn add_table(table: &[u8], segments: &mut Segments) -> Result<(), Fault> {
    let field = |bytes| u64::try_from(number(bytes)?).map_err(|_| "a sparse map has a negative number");
    for entry in table.as_chunks::<24>().0 {
        if entry[0] == 0 {
            break;
        }
        segments.push((field(&entry[..12])?, field(&entry[12..])?));
    }
    Ok(())
}

/// The table in an old GNU header: the segments, the length of the file, and whether extension blocks follow.
pub(crate) fn old_gnu(header: &Block) -> Result<(Segments, u64, bool), Fault> {
    if !header.is_gnu() {
        return Err("a sparse file has a header of another format than GNU's");
    }
    let mut segments = Vec::new();
    add_table(&header.0[386..482], &mut segments)?;
    let real_size = u64::try_from(number(&header.0[483..495])?).map_err(|_| "a size is negative")?;
    Ok((segments, real_size, header.0[482] != 0))
}
