//! Removing images that nothing needs: those without a name, or all on which no container stands.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base::Report;
use base::time::parse_rfc3339;
use oci::document::DOCUMENT_MAX;
use oci::{Digest, Document, ImageConfig, Reference};
use store::{ImageRecord, Store};

use crate::Engine;
use crate::container::unstarted;
use crate::image::sweep::{User, objects_of, sweep, unused_trees, used, users};
use crate::image::{load_config, open_store};
use crate::system::filter::PruneFilter;

/// What is to be removed.
#[derive(Clone, Debug, Default)]
pub struct PruneRequest {
    /// Images with a name too, if no container stands on them.
    pub all: bool,
    /// Only those that match.
    pub filter: PruneFilter,
}

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Names.
    pub untagged: Vec<Reference>,
    /// Manifests, configurations and layers.
    pub deleted: Vec<Digest>,
    /// Bytes on the disk.
    pub freed_bytes: u64,
}

/// Removes images that nothing needs, and without a filter what was written out of those that stay where no container has it.
pub fn prune(engine: &Engine, request: &PruneRequest) -> Result<Pruned, Report> {
    unstarted::sweep(engine);
    let Some(store) = open_store(engine)? else { return Ok(Pruned::default()) };
    let mut pruned = Pruned::default();
    // No name goes where the sweep is to fail.
    store.named_content()?;
    let mut going = store.images()?;
    let used = used(engine)?;
    going.retain(|record| (request.all || record.is_unnamed()) && !used.contains(&record.config));
    for record in going {
        // What cannot be read is of no use, and of no known age or label.
        let matches = load_config(&store, &record.config).map_or(request.filter.is_empty(), |config| {
            let (created, labels) = facts(&config);
            request.filter.matches(created, &labels)
        });
        if matches && remove_unchanged(&store, &record)? && !record.is_unnamed() {
            pruned.untagged.push(record.reference);
        }
    }
    let (mut kept, mut tree_bytes) = (Vec::new(), 0);
    if request.filter.is_empty() {
        tree_bytes = unused_trees(engine);
    } else {
        kept = other_nameless(engine, &store, &request.filter)?;
    }
    let swept = sweep(engine, &store, &kept)?;
    Ok(Pruned { deleted: swept.blobs, freed_bytes: swept.freed_bytes + tree_bytes, ..pruned })
}

/// Removes a name unless it was set or removed since it was listed; `false` if it was, or lies in a store that is only read.
fn remove_unchanged(store: &Store, record: &ImageRecord) -> Result<bool, Report> {
    let names = store.lock_names()?;
    Ok(store.image(&record.reference)?.as_ref() == Some(record) && names.remove(&record.reference)?)
}

/// Manifests that no name and no container leads to, and that the filter is not about.
fn other_nameless(engine: &Engine, store: &Store, filter: &PruneFilter) -> Result<Vec<Digest>, Report> {
    let mut named: Vec<Digest> = users(engine)?.iter().flat_map(User::needs).collect();
    named.extend(store.named_content()?);
    let named = store.reach(named, &mut |layer| objects_of(store, layer))?;
    let mut kept = Vec::new();
    for blob in store.blobs().contents()?.iter().filter(|blob| !named.contains(&blob.digest)) {
        if blob.size_bytes > DOCUMENT_MAX {
            continue;
        }
        let Ok(Document::Manifest(manifest)) = Document::read(store.blobs().read(&blob.digest, DOCUMENT_MAX)?, None)
        else {
            continue;
        };
        let Ok(config) = store.blobs().read(&manifest.config.digest, DOCUMENT_MAX) else { continue };
        let Ok(config) = ImageConfig::read(config) else { continue };
        let (created, labels) = facts(&config);
        if !filter.matches(created, &labels) {
            kept.push(blob.digest);
        }
    }
    Ok(kept)
}

fn facts(config: &ImageConfig) -> (Option<SystemTime>, BTreeMap<String, String>) {
    let created = config.spec.created().as_deref().and_then(|text| parse_rfc3339(text).ok());
    let labels = config.spec.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
    (created, labels.into_iter().collect())
}
