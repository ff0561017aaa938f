//! What `images` asks: every name and its image in short, and no more of each than is asked for. What is shown stands in the
//! records of names; documents are read for labels, and for records of an earlier version of the program.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base::time::{parse_rfc3339, rfc3339};
use base::{Kind, Report};
use oci::{Digest, ImageConfig, Manifest, Reference};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::{ImageRecord, Store, Summary, in_halves};

use crate::Engine;
use crate::image::filter::{ImageFilter, Sieve};
use crate::image::{DOCUMENT_MAX, open_store};

/// What is to be listed.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Which images.
    pub filter: ImageFilter,
    /// Whether their sizes too, each of which is a document more to read where the record does not say it.
    pub with_sizes: bool,
}

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
    /// Bytes of its layers' content, where they were asked for.
    pub size_bytes: Option<u64>,
}

/// All names that are asked for, newest image first.
pub fn list(engine: &Engine, request: &ListRequest) -> Result<Vec<ImageSummary>, Report> {
    let Some(store) = open_store(engine)? else { return Ok(Vec::new()) };
    let sieve = Sieve::of(&request.filter, engine, &store)?;
    let mut records = Vec::new();
    for record in store.images()? {
        if sieve.passes(&record)? {
            records.push(record);
        }
    }
    let mut list = Vec::new();
    let summaries = in_halves(&records, |record| summary(&store, record, &sieve, request.with_sizes));
    for (record, summary) in records.iter().zip(summaries) {
        match summary {
            Ok(summary) => list.extend(summary),
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

/// What labels a configuration has; read where a filter asks for them.
#[derive(Deserialize)]
struct Labelled {
    config: Option<Labels>,
}

#[derive(Deserialize)]
struct Labels {
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
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

/// What a record says of its image. The time is written anew: its text may be of any length in a configuration.
pub(super) fn summary_of(manifest: &Manifest, config: &ImageConfig) -> Summary {
    let layers = manifest.layers.iter().map(|layer| layer.size);
    Summary {
        created: moment(config.spec.created().as_deref()).map(rfc3339),
        size_bytes: layers.fold(0, u64::saturating_add),
    }
}

/// When an image was built, if it says.
pub(super) fn created_of(store: &Store, record: &ImageRecord) -> Result<Option<SystemTime>, Report> {
    match &record.summary {
        Some(summary) => Ok(moment(summary.created.as_deref())),
        None => Ok(moment(read::<Config>(store, &record.config)?.created.as_deref())),
    }
}

fn moment(text: Option<&str>) -> Option<SystemTime> {
    text.and_then(|text| parse_rfc3339(text).ok())
}

/// What is shown of an image; `None` if it is not meant.
fn summary(
    store: &Store,
    record: &ImageRecord,
    sieve: &Sieve<'_>,
    with_size: bool,
) -> Result<Option<ImageSummary>, Report> {
    let created = created_of(store, record)?;
    let labels = if sieve.wants_labels() {
        read::<Labelled>(store, &record.config)?.config.and_then(|config| config.labels).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    if !sieve.passes_created(created, &labels) {
        return Ok(None);
    }
    Ok(Some(ImageSummary {
        created,
        size_bytes: if with_size { Some(size(store, record)?) } else { None },
        id: record.config,
        digest: record.digest,
        unnamed: record.is_unnamed(),
        reference: record.reference.clone(),
    }))
}

/// The bytes of the image's layers as they were transferred.
pub(crate) fn size(store: &Store, record: &ImageRecord) -> Result<u64, Report> {
    if let Some(summary) = &record.summary {
        return Ok(summary.size_bytes);
    }
    let manifest: Layers = read(store, &record.manifest)?;
    Ok(manifest.layers.iter().flatten().fold(0, |bytes: u64, layer| bytes.saturating_add(layer.size)))
}
