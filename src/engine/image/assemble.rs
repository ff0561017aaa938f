//! Putting an image together out of layers that are in the store: manifest, merged index, name.
//!
//! The manifest is of the kind that the image below has, since Docker's and OCI's do not mix: Docker's for an image on
//! Docker's, else OCI's. What is written is a blob like one that was pulled, so that push, save and a pull by somebody else
//! see no difference.

use std::time::{SystemTime, UNIX_EPOCH};

use base::{Kind, Report};
use layer::{Compression, Created};
use oci::{Descriptor, DiffId, Digest, Document, ImageConfig, Manifest, Reference, media};
use serde::Serialize;
use serde_json::{Map, Value};
use store::{Durability, ImageRecord, Lease, LockedNames, Store};

use crate::image::{DOCUMENT_MAX, images_of, list};

/// An image without a name.
pub(crate) struct Assembled {
    pub record: ImageRecord,
    pub config: ImageConfig,
}

/// Whether a manifest is Docker's.
pub(crate) fn is_docker(media_type: &str) -> bool {
    media_type == media::DOCKER_MANIFEST
}

/// What a layer is called in a manifest of one kind or the other.
pub(crate) fn layer_type(docker: bool, compression: Compression) -> String {
    let (name, mark) = if docker { (media::DOCKER_LAYER, '.') } else { (media::OCI_LAYER, '+') };
    match compression {
        Compression::None => name.to_owned(),
        Compression::Gzip => format!("{name}{mark}gzip"),
        // Docker's kind has no word for it; everybody looks at the bytes.
        Compression::Zstd => format!("{name}{mark}zstd"),
    }
}

/// The descriptor of a layer that was just made.
pub(crate) fn descriptor(created: &Created, docker: bool) -> Descriptor {
    Descriptor {
        media_type: layer_type(docker, created.compression),
        digest: created.digest,
        size: created.size,
        platform: None,
        urls: Vec::new(),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestText<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: DescriptorText<'a>,
    layers: Vec<DescriptorText<'a>>,
}

/// A descriptor as documents spell it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorText<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
}

/// The bytes of a manifest.
fn manifest_text(config: &ImageConfig, layers: &[Descriptor], docker: bool) -> Result<Vec<u8>, Report> {
    let layers = layers.iter().map(|layer| DescriptorText {
        media_type: &layer.media_type,
        digest: layer.digest,
        size: layer.size,
    });
    let config = DescriptorText {
        media_type: if docker { media::DOCKER_CONFIG } else { media::OCI_CONFIG },
        digest: config.digest,
        size: config.raw.len() as u64,
    };
    let manifest = ManifestText {
        schema_version: 2,
        media_type: if docker { media::DOCKER_MANIFEST } else { media::OCI_MANIFEST },
        config,
        layers: layers.collect(),
    };
    serde_json::to_vec(&manifest).map_err(|error| Report::of(Kind::Internal, error))
}

/// Takes times that say nothing out of a configuration. Some tools write them so; Go's refuse to read them.
pub(crate) fn without_empty_times(config: &mut Map<String, Value>) {
    let without = |object: &mut Map<String, Value>| {
        if object.get("created").is_some_and(|created| created == "") {
            object.remove("created");
        }
    };
    without(config);
    let history = config.get_mut("history").and_then(Value::as_array_mut);
    history.into_iter().flatten().filter_map(Value::as_object_mut).for_each(without);
}

/// Makes an image of a configuration and its layers, lowest first, all of which are in the store. The caller holds the
/// lease, and gives the image a name with [`set_name`].
pub(crate) fn assemble(
    store: &Store,
    lease: &mut Lease,
    config: Vec<u8>,
    layers: &[Descriptor],
    docker: bool,
) -> Result<Assembled, Report> {
    let config = ImageConfig::read(config)?;
    let raw = manifest_text(&config, layers, docker)?;
    let manifest = match Document::read(raw, None)? {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => return Err(Report::new(Kind::Internal, "a manifest reads as an index")),
    };
    complete(store, lease, config, &manifest)
}

/// The same with the manifest as it is.
pub(crate) fn complete(
    store: &Store,
    lease: &mut Lease,
    config: ImageConfig,
    manifest: &Manifest,
) -> Result<Assembled, Report> {
    let layers = config.diff_ids.iter().map(|layer| layer.0);
    lease.pin(&layers.chain([manifest.digest, config.digest]).collect::<Vec<_>>())?;
    let chain = if config.diff_ids.is_empty() { None } else { Some(layer::merge_chain(store, &config.diff_ids)?) };
    store.blobs().put(&manifest.digest, &manifest.raw, Durability::Later)?;
    store.blobs().put(&config.digest, &config.raw, Durability::Later)?;
    let reference = ImageRecord::unnamed(manifest.digest)
        .ok_or_else(|| Report::new(Kind::Internal, "an image without a name cannot be kept"))?;
    let record = ImageRecord {
        reference,
        digest: manifest.digest,
        media_type: manifest.media_type.clone(),
        manifest: manifest.digest,
        config: config.digest,
        chain,
        updated_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        made_here: true,
        source: None,
        summary: Some(list::summary_of(manifest, &config)),
    };
    Ok(Assembled { record, config })
}

/// Gives an image a name, or keeps it without one, after all of it is on the disk.
pub(crate) fn set_name(store: &Store, image: &Assembled, name: Option<&Reference>) -> Result<(), Report> {
    store.sync()?;
    let names = store.lock_names()?;
    let Some(name) = name else {
        if store.images()?.iter().any(|other| other.manifest == image.record.manifest) {
            return Ok(());
        }
        return Ok(names.put(&image.record)?);
    };
    let record = ImageRecord { reference: name.clone().or_latest(), ..image.record.clone() };
    keep_replaced(store, &names, &record.reference, &record.config)?;
    names.put(&record)?;
    // Only now, so that at no moment nothing leads to it.
    names.remove(&image.record.reference)?;
    Ok(())
}

/// Keeps the image that a name stands for until now, if it is another one and this is its last name: it goes on without.
/// Called before the name moves, so there is no moment in which nothing leads to it.
pub(crate) fn keep_replaced(
    store: &Store,
    names: &LockedNames<'_>,
    name: &Reference,
    new: &Digest,
) -> Result<(), Report> {
    let Some(old) = store.image(name)?.filter(|old| old.config != *new) else { return Ok(()) };
    let count = images_of(store, &old.config)?.len();
    match ImageRecord::unnamed(old.manifest).filter(|_| count == 1) {
        Some(reference) => Ok(names.put(&ImageRecord { reference, ..old })?),
        None => Ok(()),
    }
}

/// The manifest of an image that is here, if its bytes are.
pub(crate) fn manifest_of(store: &Store, record: &ImageRecord) -> Result<Option<Manifest>, Report> {
    if !store.blobs().has(&record.manifest)? {
        return Ok(None);
    }
    match Document::read(store.blobs().read(&record.manifest, DOCUMENT_MAX)?, None)? {
        Document::Manifest(manifest) => Ok(Some(manifest)),
        Document::Index(_) => Ok(None),
    }
}

/// A layer made anew from its index, because its blob is not here.
pub(crate) fn rebuild(store: &Store, layer: DiffId, compression: Compression) -> Result<Created, Report> {
    let index = layer::open_layer(store, layer)?;
    let limits = layer::Limits::default();
    Ok(layer::create(store, compression, Durability::Later, &limits, |out| {
        let mut to = layer::TarWriter::new(out, None);
        layer::write_tree(&index, &mut layer::Objects::of(store), &mut to)?;
        to.finish().map(drop)
    })?)
}

/// Layers of an image with the bytes to hand out, and what the image's diff ids are with them.
pub(crate) struct Layers {
    pub descriptors: Vec<Descriptor>,
    pub diff_ids: Vec<DiffId>,
    /// Whether a layer is another one than the manifest's, because it had to be made anew.
    pub changed: bool,
}

/// Makes sure that the blobs of all layers are here. One that is not is made anew from its index; then its digest is another
/// one, and unless the archive happens to be the same, its diff ID too.
pub(crate) fn whole_layers(
    store: &Store,
    config: &ImageConfig,
    manifest: Option<&Manifest>,
    docker: bool,
) -> Result<Layers, Report> {
    let mut layers = Layers { descriptors: Vec::new(), diff_ids: Vec::new(), changed: manifest.is_none() };
    for (place, diff_id) in config.diff_ids.iter().enumerate() {
        let known = manifest.and_then(|manifest| manifest.layers.get(place));
        if let Some(known) = known
            && store.blobs().claim(&known.digest, known.size)?
        {
            layers.descriptors.push(known.clone());
            layers.diff_ids.push(*diff_id);
            continue;
        }
        let made = rebuild(store, *diff_id, Compression::Gzip)?;
        layers.changed = true;
        layers.diff_ids.push(made.applied.diff_id);
        layers.descriptors.push(descriptor(&made, docker));
    }
    Ok(layers)
}
