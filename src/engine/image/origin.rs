//! Where a blob is to be had beside the store, and bringing one again that was evicted (`--cache-max`) or removed.

use std::collections::HashMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use base::Report;
use oci::{Descriptor, Digest, ImageConfig, Manifest, Reference};
use registry::{Registry, RegistryError};
use store::{Durability, ImageRecord, Store, StoreError};

use crate::image::{DOCUMENT_MAX, assemble};

/// How many bytes are read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What the images that are here tell of a blob.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// A repository of the target's registry that it may be mounted from.
    pub mount: Option<Reference>,
    /// Where images that have it were fetched.
    pub origins: Vec<Reference>,
}

/// Where an image was fetched, if it was.
pub(super) fn origin(record: &ImageRecord) -> Option<&Reference> {
    // A record of an earlier version says its own name alone.
    let named = (!record.made_here && !record.is_unnamed()).then_some(&record.reference);
    record.source.as_ref().or(named)
}

/// What is known of the layers of images. Of several repositories to mount a layer from, it is one in the target's own namespace:
/// there our rights are the most likely to reach.
pub(super) fn known(store: &Store, images: &[ImageRecord], target: &Reference) -> HashMap<Digest, Known> {
    let namespace = |reference: &Reference| reference.repository().split('/').next().unwrap_or_default().to_owned();
    let home = namespace(target);
    let mut found: HashMap<Digest, Known> = HashMap::new();
    for record in images {
        // What cannot be read is no source; the push itself does not need it.
        let Ok(Some(manifest)) = assemble::manifest_of(store, record) else { continue };
        for layer in manifest.layers {
            let known = found.entry(layer.digest).or_default();
            let from = &record.reference;
            let mountable = from.host() == target.host() && from.repository() != target.repository();
            if mountable && (known.mount.is_none() || namespace(from) == home) {
                known.mount = Some(from.clone());
            }
            known.origins.extend(origin(record).filter(|origin| !known.origins.contains(origin)).cloned());
        }
    }
    found
}

/// Those layers of a manifest that were applied here, whose blobs therefore were.
pub(super) fn applied(store: &Store, manifest: &Manifest) -> Result<Vec<Digest>, Report> {
    let raw = match store.blobs().read(&manifest.config.digest, DOCUMENT_MAX) {
        Err(StoreError::Missing { .. }) => return Ok(Vec::new()),
        raw => raw?,
    };
    // What is no image, as artifacts beside images, was not.
    let Ok(config) = ImageConfig::read_for(manifest, raw) else { return Ok(Vec::new()) };
    let mut applied = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        if store.layers().has(&diff_id.0)? {
            applied.push(layer.digest);
        }
    }
    Ok(applied)
}

/// Fetches a blob into the store. The caller holds a lease.
pub(super) fn fetch(
    store: &Store,
    registry: &Registry,
    from: &Reference,
    blob: &Descriptor,
    cancelled: &AtomicBool,
) -> Result<(), Report> {
    let is_cancelled = || cancelled.load(Ordering::Relaxed);
    let waiting = |_| if is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let mut again = false;
    loop {
        let Some(mut ingest) = store.ingest(&blob.digest, blob.size, waiting)? else { return Ok(()) };
        let mut source = registry.blob(from, blob, ingest.offset())?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if is_cancelled() {
                return Err(RegistryError::Cancelled.into());
            }
            match source.read(&mut buffer).map_err(RegistryError::from_io)? {
                0 => break,
                count => ingest.append(&buffer[..count])?,
            }
        }
        match ingest.commit(Durability::Later) {
            // Parts that do not fit together, as some caches get them wrong: once more as a whole.
            Err(StoreError::Mismatch { .. }) if source.is_resumed() && !again => again = true,
            committed => return Ok(committed?),
        }
    }
}
