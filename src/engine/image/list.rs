//! What `images` asks: every name and its image in short.

use std::time::SystemTime;

use base::time::parse_rfc3339;
use base::{Kind, Report};
use oci::{Digest, Reference};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::{ImageRecord, Store, in_halves};

use crate::Engine;
use crate::image::{DOCUMENT_MAX, open_store};

/// One name of an image.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// The name.
    pub reference: Reference,
    /// Whether that is no name, but merely what an image without one is kept under.
    pub unnamed: bool,
    /// What its registry calls it.
    pub digest: Digest,
    /// The image's id.
    pub id: Digest,
    /// When the image was built, if it says.
    pub created: Option<SystemTime>,
    /// Bytes of its layers' content.
    pub size_bytes: u64,
}

/// All names, newest image first.
pub fn list(engine: &Engine) -> Result<Vec<ImageSummary>, Report> {
    let Some(store) = open_store(engine)? else { return Ok(Vec::new()) };
    let mut list = Vec::new();
    let records = store.images()?;
    for (record, summary) in records.iter().zip(in_halves(&records, |record| summary(&store, record))) {
        match summary {
            Ok(summary) => list.push(summary),
            // The others are as good as they were.
            Err(report) => engine.notice(&format!("image {} cannot be shown: {report}", record.reference)),
        }
    }
    list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.reference.cmp(&b.reference)));
    Ok(list)
}

/// What is shown of a configuration. Whole documents would take half of the time of a long list.
#[derive(Deserialize)]
struct Config {
    created: Option<String>,
}

/// What is shown of a manifest.
#[derive(Deserialize)]
struct Layers {
    layers: Option<Vec<Layer>>,
}

#[derive(Deserialize)]
struct Layer {
    size: u64,
}

fn read<T: DeserializeOwned>(store: &Store, digest: &Digest) -> Result<T, Report> {
    let raw = store.blobs().read(digest, DOCUMENT_MAX)?;
    serde_json::from_slice(&raw).map_err(|error| Report::of(Kind::Unsupported, error).with_step(digest.to_string()))
}

fn summary(store: &Store, record: &ImageRecord) -> Result<ImageSummary, Report> {
    let config: Config = read(store, &record.config)?;
    Ok(ImageSummary {
        created: config.created.as_deref().and_then(|text| parse_rfc3339(text).ok()),
        size_bytes: size(store, record)?,
        id: record.config,
        digest: record.digest,
        unnamed: record.is_unnamed(),
        reference: record.reference.clone(),
    })
}

/// The bytes of the image's layers as they were transferred.
pub(crate) fn size(store: &Store, record: &ImageRecord) -> Result<u64, Report> {
    let manifest: Layers = read(store, &record.manifest)?;
    Ok(manifest.layers.iter().flatten().fold(0, |bytes: u64, layer| bytes.saturating_add(layer.size)))
}
