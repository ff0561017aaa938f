//! Where the files of an archive lie in it, for archives that hold images and are read in no order.

use std::collections::HashMap;
use std::io::BufRead;

use index::BuildError;
use index::path;

use crate::archive::{Archive, Type};
use crate::error::{LayerError, Result};

/// The most entries that an archive of images may have.
const ENTRIES_MAX: u64 = 100_000;

/// The most bytes that all of their paths and targets may have.
const PATHS_MAX: u64 = 64 << 20;

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This many bytes from this one on.
    Content {
        /// The first byte in the archive.
        offset: u64,
        /// How many.
        size: u64,
    },
    /// A link to another path of the archive, from its root.
    Link(Vec<u8>),
}

/// All files by path, without leading slash or dots. What is neither a file nor a link is not among them.
pub type Located = HashMap<Vec<u8>, Place>;

/// Looks through an archive to its end. Of two entries of a path the last one counts; a link out of the archive is refused.
pub fn locate(reader: impl BufRead) -> Result<Located> {
    let mut archive = Archive::new(reader);
    let mut found = Located::new();
    let (mut entries, mut path_bytes) = (0, 0);
    while let Some(header) = archive.next_file()? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(LayerError::Limit { what: "entries", limit: ENTRIES_MAX });
        }
        let path = normal(&header.path)?;
        let target_bytes = match &header.kind {
            Type::HardLink(target) | Type::Symlink(target) => target.len(),
            _ => 0,
        };
        path_bytes += (header.path.len() + target_bytes) as u64;
        if path_bytes > PATHS_MAX {
            return Err(LayerError::Limit { what: "bytes in paths", limit: PATHS_MAX });
        }
        let place = match header.kind {
            Type::Regular => archive.content_offset().map(|offset| Place::Content { offset, size: header.size }),
            // A hard link's target counts from the root, a symbolic link's from its directory.
            Type::HardLink(target) => Some(Place::Link(normal(&target)?)),
            Type::Symlink(target) => Some(Place::Link(beside(&path, &target)?)),
            _ => None,
        };
        match place {
            Some(place) => drop(found.insert(path, place)),
            None => drop(found.remove(&path)),
        }
    }
    Ok(found)
}

fn normal(text: &[u8]) -> Result<Vec<u8>> {
    let names = path::names(text).map_err(|reason| BuildError::Path { path: text.to_vec(), reason })?;
    Ok(names.join(&b'/'))
}

fn beside(path: &[u8], target: &[u8]) -> Result<Vec<u8>> {
    if target.starts_with(b"/") {
        return normal(target);
    }
    let directory = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &path[..slash]);
    normal(&[directory, b"/", target].concat())
}
