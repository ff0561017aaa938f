//! Images: what is in the store under which names, and what brings it there and away.

pub(crate) mod assemble;
pub mod bundle;
mod cache;
pub(crate) mod change;
pub mod changes;
mod expand;
pub mod filter;
pub mod history;
pub mod import;
pub mod inspect;
pub mod list;
pub mod load;
pub mod lock;
pub mod manifest;
pub(crate) mod offline;
mod origin;
mod packed;
pub mod policy;
pub mod progress;
pub mod prune;
pub mod pull;
pub mod push;
pub mod remove;
pub mod save;
pub mod search;
mod source;
pub(crate) mod sweep;
pub mod tag;

use std::path::Path;
use std::sync::Arc;

use base::{Kind, Report};
use oci::document::DOCUMENT_MAX;
use oci::{Descriptor, DiffId, Digest, ImageConfig, ImageName, Platform, Reference};
use store::{Additional, ImageRecord, Lease, Store, StoreError};

use crate::{Engine, registries};

pub use inspect::inspect;
pub use list::{ListRequest, list};
pub use progress::{Event, Listener};
pub use prune::{PruneRequest, Pruned, prune};
pub use pull::{PullRequest, Pulled, pull};
pub use remove::remove;

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
pub(crate) fn open_store(engine: &Engine) -> Result<Option<Arc<Store>>, Report> {
    match open(engine, false) {
        Ok(store) => Ok(Some(store)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Refuses where one of the stores that are only read cannot be used: what lies there would be taken for lost.
pub(crate) fn require_additional(engine: &Engine) -> Result<(), Report> {
    for (path, opened) in open_additional(engine) {
        opened.map_err(|error| {
            Report::from(error)
                .with_step(format!("opening the additional store {}", path.display()))
                .with_hint("make it available (mount it), or leave it out of --additional-store if it is no more")
        })?;
    }
    Ok(())
}

/// The store, made if it is not there.
pub(crate) fn make_store(engine: &Engine) -> Result<Arc<Store>, Report> {
    Ok(open(engine, true)?)
}

/// The store, which must be there.
pub(crate) fn the_store(engine: &Engine) -> Result<Arc<Store>, Report> {
    Ok(open(engine, false)?)
}

/// Opened once for all requests: a start alone asks for it three times.
fn open(engine: &Engine, create: bool) -> store::Result<Arc<Store>> {
    if let Some(store) = engine.store.get() {
        return Ok(Arc::clone(store));
    }
    // Images of a store that is only read are there before the first pull.
    let create = create || !engine.options().additional_stores.is_empty();
    let store = Store::open(&engine.paths().store(), create)?;
    let store = match engine.paths().store_name() {
        Some(name) => store.named(name, create)?,
        None => store,
    };
    let notices = engine.notices.clone();
    let pass_over = move |error: StoreError| {
        let report = Report::from(error);
        let hint = report.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        notices.once(&format!("passed over: {}{hint}", report.lines().join(": ")));
    };
    let store = store.above(additional(engine)?, pass_over);
    Ok(Arc::clone(engine.store.get_or_init(|| Arc::new(store))))
}

/// The stores that are only read. One that is not there (a file system that is not mounted) is told and passed over.
fn additional(engine: &Engine) -> store::Result<Vec<Additional>> {
    let mut stores = Vec::new();
    for (path, opened) in open_additional(engine) {
        match opened {
            Err(error @ StoreError::Untrusted { .. }) => return Err(error),
            Err(error) => {
                let why = Report::from(error).lines().join(": ");
                engine.notices.once(&format!("additional store {} cannot be used: {why}", path.display()));
            }
            Ok(store) => stores.push(store),
        }
    }
    Ok(stores)
}

fn open_additional(engine: &Engine) -> impl Iterator<Item = (&Path, store::Result<Additional>)> {
    let user = nix::unistd::geteuid().as_raw();
    let owners: Vec<u32> = [0, user].into_iter().chain(engine.options().additional_store_owner).collect();
    let paths = engine.options().additional_stores.iter();
    paths.map(move |path| (path.as_path(), Additional::open(&path.join("store"), &owners)))
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

/// The image that a text names, under a lease that keeps all of it until a record that names it is written: a command
/// that removes its name meanwhile takes nothing away from who has found it.
pub(crate) fn find_to_use(engine: &Engine, text: &str) -> Result<(ImageConfig, Lease), Report> {
    let missing = || Report::new(Kind::NotFound, format!("No such image: {text}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let mut lease = store.lease()?;
    let record = find_pinned(engine, &store, text, &mut lease)?.ok_or_else(missing)?;
    let config = load_config(&store, &record.config)?;
    for layer in config.diff_ids.iter().map(|layer| layer.0) {
        let size_bytes = store.layers().size(&layer)?.unwrap_or(0);
        if !store.layers().claim(&layer, size_bytes)? {
            let text = format!("layer {layer} of image {text} is not in the store");
            let hint = format!("`sublet pull {}` brings it", record.reference.familiar());
            return Err(Report::new(Kind::NotFound, text).with_hint(hint));
        }
    }
    Ok((config, lease))
}

/// The record that a text names, with all that it leads to pinned.
pub(crate) fn find_pinned(
    engine: &Engine,
    store: &Store,
    text: &str,
    lease: &mut Lease,
) -> Result<Option<ImageRecord>, Report> {
    Ok(pinned(lease, || Ok(find_record(engine, store, text)?.into_iter().collect()))?.pop())
}

/// Records with all that they lead to pinned. They are looked for until they are the same after the pin as before: of those
/// that were removed in between, a sweep may have taken the content.
pub(crate) fn pinned(
    lease: &mut Lease,
    mut find: impl FnMut() -> Result<Vec<ImageRecord>, Report>,
) -> Result<Vec<ImageRecord>, Report> {
    let mut found = find()?;
    loop {
        lease.pin(&found.iter().flat_map(ImageRecord::leads_to).collect::<Vec<_>>())?;
        let again = find()?;
        if again == found {
            return Ok(found);
        }
        found = again;
    }
}

/// The platform of the image that a text names, if all of it is here that a container needs: what a repair or another command has
/// taken away is fetched again.
pub fn platform_of(engine: &Engine, text: &str) -> Result<Option<Platform>, Report> {
    let Some(store) = open_store(engine)? else { return Ok(None) };
    let Some(record) = find_record(engine, &store, text)? else { return Ok(None) };
    if !store.blobs().has(&record.manifest)? {
        return Ok(None);
    }
    let raw = match store.blobs().read(&record.config, DOCUMENT_MAX) {
        Err(StoreError::Missing { .. }) => return Ok(None),
        raw => raw?,
    };
    // Their stack can be made again; without one of them its objects would go with the next sweep.
    let config = ImageConfig::read(raw)?;
    for layer in config.diff_ids {
        if !store.layers().has(&layer.0)? {
            return Ok(None);
        }
    }
    Ok(Some(config.platform))
}

/// The configuration of an image of which all is here and nothing was cut short, as a power loss does to what was not synced.
/// Documents are hashed; of all else the sizes alone are looked at. Blobs of layers may be missing, and the stack of the layers
/// is made again where it must be. The caller holds a lease.
pub(crate) fn intact(store: &Store, record: &ImageRecord) -> Result<Option<ImageConfig>, Report> {
    for digest in [record.digest, record.manifest, record.config] {
        let raw = match store.blobs().read(&digest, DOCUMENT_MAX) {
            Err(StoreError::Missing { .. }) => return Ok(None),
            raw => raw?,
        };
        if Digest::of(&raw) != digest {
            return Ok(None);
        }
    }
    let Some((manifest, config)) = offline::documents(store, record)? else { return Ok(None) };
    for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        if !is_layer_intact(store, layer, *diff_id)? {
            return Ok(None);
        }
    }
    if !config.diff_ids.is_empty() {
        layer::merge_chain(store, &config.diff_ids)?;
    }
    Ok(Some(config))
}

/// Whether a layer need not be brought: its index is here with all that it names, and its blob is not cut short, if there is one.
pub(crate) fn is_layer_intact(store: &Store, layer: &Descriptor, diff_id: DiffId) -> Result<bool, Report> {
    let blob_bytes = store.blobs().size(&layer.digest)?;
    Ok(blob_bytes.is_none_or(|size_bytes| size_bytes == layer.size) && layer::claim_layer(store, diff_id)?)
}

pub(crate) fn find_record(engine: &Engine, store: &Store, text: &str) -> Result<Option<ImageRecord>, Report> {
    let name = text.parse::<ImageName>();
    // All names are read only where that one's own record is not there: a start comes by here again and again.
    if let Ok(ImageName::Reference(reference)) = &name
        && let Some(record) = store.image(reference)?
    {
        return Ok(Some(record));
    }
    let records = store.images()?;
    let by_id = |id: &Digest| records.iter().find(|record| record.config == *id).cloned();
    match name {
        Ok(ImageName::Host) => return Ok(None),
        Ok(ImageName::Id(id)) => return Ok(by_id(&id)),
        Ok(ImageName::Reference(reference)) => {
            if let Some(record) = by_digest(&records, &reference) {
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

/// Whether this text, by which [`find_record`] has found the record, is a name, and not an id or the beginning of it. A name that
/// is both is a name.
pub(crate) fn is_by_name(text: &str, record: &ImageRecord) -> bool {
    let Ok(ImageName::Reference(name)) = text.parse() else { return false };
    let own = &record.reference;
    let is_own = own.name() == name.name() && own.tag() == Some(name.tag().unwrap_or("latest"));
    is_own || !record.config.hex().starts_with(oci::reference::id_prefix(text).unwrap_or("-"))
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
        if let Some(record) = store.image(&candidate)?.or_else(|| by_digest(records, &candidate)) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// What a tag of the same repository brought under this digest; if the reference has a tag and that is one of them, that one.
fn by_digest(records: &[ImageRecord], reference: &Reference) -> Option<ImageRecord> {
    let digest = reference.digest()?;
    let same = |record: &&ImageRecord| {
        record.reference.name() == reference.name() && (record.digest == digest || record.manifest == digest)
    };
    let same: Vec<&ImageRecord> = records.iter().filter(same).collect();
    let of_tag = same.iter().find(|record| record.reference.tag() == reference.tag());
    of_tag.or(same.first()).copied().cloned()
}

pub(crate) fn load(store: &Store, record: &ImageRecord) -> Result<LocalImage, Report> {
    let config = load_config(store, &record.config)?;
    Ok(LocalImage { config, manifest: record.manifest, names: images_of(store, &record.config)? })
}

/// The configuration of the image with this id.
pub(crate) fn load_config(store: &Store, id: &Digest) -> Result<ImageConfig, Report> {
    Ok(ImageConfig::read(store.blobs().read(id, DOCUMENT_MAX)?)?)
}

/// Every name of the image with this id.
pub(crate) fn images_of(store: &Store, id: &Digest) -> Result<Vec<ImageRecord>, Report> {
    Ok(store.images()?.into_iter().filter(|record| record.config == *id).collect())
}
