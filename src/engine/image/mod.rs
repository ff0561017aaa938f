//! Images: what is in the store under which names, and what brings it there and away.

pub mod inspect;
pub mod list;
pub mod manifest;
pub mod pull;
pub mod push;
pub mod remove;
pub mod search;
mod workers;

use base::{Kind, Report};
use oci::{Digest, ImageConfig, ImageName, Platform, Reference};
use store::{ImageRecord, Store, StoreError};

use crate::{Engine, registries};

pub use inspect::inspect;
pub use list::list;
pub use pull::{Event, PullRequest, Pulled, pull};
pub use remove::remove;

/// The largest configuration or manifest that is read.
const DOCUMENT_MAX: u64 = 4 << 20;

/// An image that is here.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// Its configuration; the digest of that is its id.
    pub config: ImageConfig,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Every name it has.
    pub names: Vec<ImageRecord>,
}

/// The store, as it is: `None` before the first pull.
pub(crate) fn open_store(engine: &Engine) -> Result<Option<Store>, Report> {
    match Store::open(&engine.paths().store(), false) {
        Ok(store) => Ok(Some(store)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_absent(error: &StoreError) -> bool {
    match error {
        StoreError::Absent { .. } => true,
        other => other.errno() == Some(sys::Errno::ENOENT),
    }
}

/// The image that a text names: a whole id, then a reference, then the unique beginning of an id, then a short name.
pub fn find(engine: &Engine, text: &str) -> Result<LocalImage, Report> {
    let missing = || Report::new(Kind::NotFound, format!("No such image: {text}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let record = find_record(engine, &store, text)?.ok_or_else(missing)?;
    load(&store, &record)
}

/// Whether a text names an image that is here, for the platform if one is asked for.
pub fn exists(engine: &Engine, text: &str, platform: Option<&Platform>) -> Result<bool, Report> {
    let Some(store) = open_store(engine)? else { return Ok(false) };
    match (find_record(engine, &store, text)?, platform) {
        (Some(record), Some(wanted)) => Ok(wanted.rank(&load(&store, &record)?.config.platform).is_some()),
        (found, _) => Ok(found.is_some()),
    }
}

pub(crate) fn find_record(engine: &Engine, store: &Store, text: &str) -> Result<Option<ImageRecord>, Report> {
    let records = store.images()?;
    let by_id = |id: &Digest| records.iter().find(|record| record.config == *id).cloned();
    match text.parse::<ImageName>() {
        Ok(ImageName::Host) => return Ok(None),
        Ok(ImageName::Id(id)) => return Ok(by_id(&id)),
        Ok(ImageName::Reference(reference)) => {
            if let Some(record) = by_reference(store, &records, &reference)? {
                return Ok(Some(record));
            }
        }
        // What is no reference may still begin an id: `sha256:12ab`.
        Err(error) if oci::reference::id_prefix(text).is_none() => return Err(error.into()),
        Err(_) => {}
    }
    let Some(prefix) = oci::reference::id_prefix(text) else { return by_short_name(engine, store, &records, text) };
    let mut matching: Vec<&ImageRecord> =
        records.iter().filter(|record| record.config.hex().starts_with(prefix)).collect();
    matching.dedup_by_key(|record| record.config);
    let first = matching.first().copied();
    if matching.iter().any(|record| Some(record.config) != first.map(|first| first.config)) {
        return Err(Report::new(Kind::Usage, format!("multiple images found with provided prefix: {text}")));
    }
    match first {
        Some(record) => Ok(Some(record.clone())),
        None => by_short_name(engine, store, &records, text),
    }
}

/// By what a short name stands for in `registries.conf`. Comes last, so that a command on an image that is here needs no
/// such file.
fn by_short_name(
    engine: &Engine,
    store: &Store,
    records: &[ImageRecord],
    text: &str,
) -> Result<Option<ImageRecord>, Report> {
    if records.is_empty() || Reference::names_host(text) {
        return Ok(None);
    }
    // What was no name without the file is none with it.
    for candidate in registries::conf(engine)?.candidates(text).unwrap_or_default() {
        if let Some(record) = by_reference(store, records, &candidate)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// By name; a digest also finds what a tag of the same repository brought.
fn by_reference(store: &Store, records: &[ImageRecord], reference: &Reference) -> Result<Option<ImageRecord>, Report> {
    if let Some(record) = store.image(reference)? {
        return Ok(Some(record));
    }
    let Some(digest) = reference.digest() else { return Ok(None) };
    let same = |record: &&ImageRecord| {
        record.reference.name() == reference.name() && (record.digest == digest || record.manifest == digest)
    };
    Ok(records.iter().find(same).cloned())
}

pub(crate) fn load(store: &Store, record: &ImageRecord) -> Result<LocalImage, Report> {
    let config = ImageConfig::read(store.blobs().read(&record.config, DOCUMENT_MAX)?)?;
    let names = store.images()?.into_iter().filter(|other| other.config == record.config).collect();
    Ok(LocalImage { config, manifest: record.manifest, names })
}
