//! What is done without any registry: layers from blobs that are here, and the names of those that are not.

use std::collections::HashMap;

use base::{Context, Kind, Report};
use oci::{Descriptor, DiffId, Digest, Document, ImageConfig, Manifest, Reference};
use store::{Durability, ImageRecord, Store, StoreError};

use crate::Engine;
use crate::image::{DOCUMENT_MAX, PullRequest, Pulled, load_config, pinned};

/// A pull that may ask nobody: an image that is here whole is up to date, else the digests are told that would be fetched.
/// `references` is what the request may mean; the first that is here counts.
pub(crate) fn pull(
    engine: &Engine,
    store: &Store,
    references: &[Reference],
    request: &PullRequest,
) -> Result<Pulled, Report> {
    let name = request.familiar();
    let step = || format!("cannot pull {name}");
    let mut lease = store.lease()?;
    let first = || references.iter().find_map(|reference| store.image(reference).transpose()).transpose();
    let found = pinned(&mut lease, || Ok(first()?.into_iter().collect()))?.pop();
    let Some(record) = found else {
        let missing: Vec<Digest> = references.iter().filter_map(Reference::digest).collect();
        engine.require_network(&missing).step(step)?;
        return Err(Report::new(Kind::NotFound, format!("No such image: {name}")));
    };
    let missing = remake(store, &record)?;
    if !missing.is_empty() {
        engine.require_network(&missing).step(step)?;
    }
    let found = load_config(store, &record.config)?.platform;
    if request.platform().is_some_and(|wanted| wanted.rank(&found).is_none()) {
        engine.require_network(&[]).step(|| format!("{name} is here for {found} only")).step(step)?;
    }
    Ok(Pulled { reference: record.reference, digest: record.digest, new: false })
}

/// Makes the indexes of layers that are missing or cut short and whose blobs are here; the answer is what is still missing. The caller
/// holds a lease.
pub(crate) fn remake(store: &Store, record: &ImageRecord) -> Result<Vec<Digest>, Report> {
    let Some((manifest, config)) = documents(store, record)? else { return absent(store, record) };
    let blobs: HashMap<DiffId, &Descriptor> = config.diff_ids.iter().copied().zip(&manifest.layers).collect();
    let mut missing = Vec::new();
    for (diff_id, layer) in blobs {
        if layer::claim_layer(store, diff_id)? {
            continue;
        }
        if store.blobs().size(&layer.digest)? != Some(layer.size) {
            missing.push(layer.digest);
            continue;
        }
        let file = store.blobs().open(&layer.digest)?.ok_or(StoreError::Missing { digest: layer.digest })?;
        layer::apply(file, Some(diff_id), store, Durability::Now, &layer::Limits::default())
            .step(|| format!("making the index of layer {} again", layer.digest))?;
    }
    Ok(missing)
}

/// The manifest and the configuration of an image; `None` where one of them is not here.
pub(crate) fn documents(store: &Store, record: &ImageRecord) -> Result<Option<(Manifest, ImageConfig)>, Report> {
    if !absent(store, record)?.is_empty() {
        return Ok(None);
    }
    let config = ImageConfig::read(store.blobs().read(&record.config, DOCUMENT_MAX)?)?;
    match Document::read(store.blobs().read(&record.manifest, DOCUMENT_MAX)?, None)? {
        Document::Manifest(manifest) => Ok(Some((manifest, config))),
        Document::Index(_) => Err(Report::new(Kind::Internal, format!("{} is no manifest", record.manifest))),
    }
}

/// Those of the manifest and the configuration that are not here.
fn absent(store: &Store, record: &ImageRecord) -> Result<Vec<Digest>, Report> {
    let mut absent = Vec::new();
    for digest in [record.manifest, record.config] {
        if !store.blobs().has(&digest)? {
            absent.push(digest);
        }
    }
    Ok(absent)
}
