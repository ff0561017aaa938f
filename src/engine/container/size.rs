//! How large containers are, for `ps --size` and `inspect --size`, in contents of files as Docker counts them: what that takes on
//! the disk is told by `system df`.

use std::fs;
use std::path::Path;

use base::{ContainerId, Report};
use oci::DiffId;
use snapshot::Driver;

use crate::Engine;
use crate::container::record::{Record, try_load};
use crate::container::snapshot::chain;
use crate::file::failed;
use crate::image::open_store;
use crate::system::du;

/// What a container has written and what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// What the files hold that its own layer has.
    pub written_bytes: u64,
    /// That, and the content of its image. Of `host:` nothing is counted.
    pub whole_bytes: u64,
}

/// The size of a container now; `None` if it is gone. A layer of the image that is not in the store any more counts nothing.
pub fn size(engine: &Engine, id: &ContainerId) -> Result<Option<Size>, Report> {
    let Some(record) = try_load(engine, id)? else { return Ok(None) };
    let written_bytes = written_bytes(engine, &record)?;
    let mut whole_bytes = written_bytes;
    if let Some(store) = open_store(engine)? {
        let layers = record.image.layers.iter().filter_map(|layer| layer::open_layer(&store, DiffId(*layer)).ok());
        whole_bytes += layers.map(|layer| layer.content_bytes()).sum::<u64>();
    }
    Ok(Some(Size { written_bytes, whole_bytes }))
}

/// What a directory holds that is closed to the caller while the container runs is not counted.
fn written_bytes(engine: &Engine, record: &Record) -> Result<u64, Report> {
    let (snaps, key) = (engine.paths().snapshots(), record.id.as_str());
    let Some(meta) = snapshot::meta(&snaps, key)? else { return Ok(0) };
    let upper = snaps.join(key).join("upper");
    let all_bytes = du::of(&upper)?.content_bytes;
    Ok(match meta.driver {
        Driver::Overlay | Driver::Tree => all_bytes,
        Driver::Fuse => all_bytes.saturating_sub(log_bytes(&upper)?),
        // Of what it has deleted of the image nothing is known without a look at each file.
        Driver::Copy => all_bytes.saturating_sub(chain(engine, record)?.content_bytes()),
    })
}

/// The logs that our own overlay keeps beside the contents of files.
fn log_bytes(upper: &Path) -> Result<u64, Report> {
    let step = |error| failed("looking at", upper, error);
    let mut bytes = 0;
    for entry in fs::read_dir(upper).map_err(step)? {
        let entry = entry.map_err(step)?;
        if entry.file_name().as_encoded_bytes().starts_with(b"log.") {
            // A log goes when the next one is whole.
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    Ok(bytes)
}
