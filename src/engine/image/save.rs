//! Images into files, in the four forms that other engines read.
//!
//! `docker-archive` is at once an OCI layout and Docker's archive, as Docker writes it since version 25: every reader finds
//! its own `manifest.json` or `index.json`, and the blobs are there once. `oci-archive` and `oci-dir` are the layout alone,
//! `docker-dir` is the form of `dir:`, for one image. Blobs go out as they came in, and so do manifests. Where a layer's blob
//! is not here it is made anew, and with it the manifest, and a line says so.
//!
//! Equal images in equal order give equal archives: no time, no owner, entries in a fixed order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use base::{Context, Kind, Report};
use index::Metadata;
use layer::{TarContent, TarEntry, TarWriter};
use oci::packed::{CONTAINERD_NAME, REF_NAME};
use oci::{Descriptor, Digest, Document, Entry, ImageConfig, ImageName, Manifest, Platform, Reference, entries, media};
use serde_json::{Map, Value, json};
use store::{ImageRecord, Lease, Store, StoreError};

use crate::Engine;
use crate::file::failed;
use crate::image::progress::{Event, Listener, Teller, Told};
use crate::image::pull::select;
use crate::image::{DOCUMENT_MAX, assemble, find_record, is_by_name, load_config, make_store, pinned};

/// The form of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFormat {
    /// One archive for Docker and for everybody else.
    DockerArchive,
    /// An archive of an OCI layout.
    OciArchive,
    /// An OCI layout.
    OciDir,
    /// One manifest and its blobs side by side.
    DockerDir,
}

impl SaveFormat {
    /// The form of this name, as Podman spells it.
    pub fn from_name(name: &str) -> Option<SaveFormat> {
        Some(match name {
            "docker-archive" => SaveFormat::DockerArchive,
            "oci-archive" => SaveFormat::OciArchive,
            "oci-dir" => SaveFormat::OciDir,
            "docker-dir" => SaveFormat::DockerDir,
            _ => return None,
        })
    }

    /// Whether it is a directory.
    pub fn is_directory(self) -> bool {
        matches!(self, SaveFormat::OciDir | SaveFormat::DockerDir)
    }
}

/// What is to be written.
#[derive(Clone, Debug)]
pub struct SaveRequest {
    /// The images.
    pub names: Vec<String>,
    /// Which of the images of an index; `None`: the one that its name stands for here.
    pub platform: Option<Platform>,
    /// In which form.
    pub format: SaveFormat,
}

/// An image to write, all of whose blobs are in the store.
struct Saved {
    names: Vec<Reference>,
    manifest: Manifest,
    config: ImageConfig,
}

/// Writes images as one archive.
pub fn save_archive(
    engine: &Engine,
    request: &SaveRequest,
    out: &mut dyn Write,
    listener: Listener<'_>,
) -> Result<(), Report> {
    let (store, images, _lease) = prepare(engine, request)?;
    archive(&store, &images, request.format, out, listener).step(|| "cannot save".to_owned())
}

/// Writes images into a directory, which is made, or is empty.
pub fn save_directory(
    engine: &Engine,
    request: &SaveRequest,
    path: &Path,
    listener: Listener<'_>,
) -> Result<(), Report> {
    let (store, images, _lease) = prepare(engine, request)?;
    fs::create_dir_all(path).map_err(|error| failed("making directory", path, error))?;
    let mut entries = fs::read_dir(path).map_err(|error| failed("reading", path, error))?;
    if entries.next().is_some() {
        return Err(Report::new(Kind::Conflict, format!("{} is not empty", path.display())));
    }
    match (request.format, &images[..]) {
        (SaveFormat::DockerDir, [image]) => directory(&store, image, path, listener),
        (SaveFormat::DockerDir, _) => Err(Report::new(Kind::Usage, "the format docker-dir holds one image only")),
        _ => layout_directory(&store, &images, path, listener),
    }
    .step(|| format!("cannot save to {}", path.display()))
}

/// Finds the images and makes sure that all of them is here.
fn prepare(engine: &Engine, request: &SaveRequest) -> Result<(Arc<Store>, Vec<Saved>, Lease), Report> {
    let store = make_store(engine)?;
    let mut lease = store.lease()?;
    let mut images: Vec<Saved> = Vec::new();
    let mut found = Vec::new();
    pinned(&mut lease, || {
        found = records(engine, &store, &request.names)?;
        Ok(found.iter().map(|(_, record)| record.clone()).collect())
    })?;
    for (text, record) in found {
        let name = name_of(text, &record);
        let record = match &request.platform {
            Some(wanted) => for_platform(&store, record, wanted).step(|| format!("cannot save image {text}"))?,
            None => record,
        };
        if let Some(known) = images.iter_mut().find(|image| image.config.digest == record.config) {
            known.names.extend(name.filter(|name| !known.names.contains(name)));
            continue;
        }
        let mut image = whole(engine, &store, &mut lease, &record).step(|| format!("cannot save image {text}"))?;
        image.names.extend(name);
        images.push(image);
    }
    Ok((store, images, lease))
}

/// The same name for the image of this platform, which the index that it stands for must have, and the store.
fn for_platform(store: &Store, record: ImageRecord, wanted: &Platform) -> Result<ImageRecord, Report> {
    let refuse = |why: String| {
        let hint = format!("`sublet pull --platform {wanted} {}` brings it", record.familiar());
        Report::new(Kind::NotFound, why).with_hint(hint)
    };
    let name = record.familiar();
    let read = |descriptor: &Descriptor| {
        if !store.blobs().has(&descriptor.digest)? {
            return Err(refuse(format!("image {name} is not here for the platform {wanted}")));
        }
        Ok(store.blobs().read(&descriptor.digest, DOCUMENT_MAX)?)
    };
    let document = if store.blobs().has(&record.digest)? {
        Document::read(store.blobs().read(&record.digest, DOCUMENT_MAX)?, Some(&record.media_type))?
    } else {
        Document::read(store.blobs().read(&record.manifest, DOCUMENT_MAX)?, None)?
    };
    let (manifest, config) = select(document, wanted, None, read)?;
    if wanted.rank(&config.platform).is_none() {
        return Err(refuse(format!("image {name} was found but does not provide the specified platform ({wanted})")));
    }
    let chain = config.chain_id();
    Ok(ImageRecord { manifest: manifest.digest, config: config.digest, chain, summary: None, ..record })
}

/// What texts stand for; a name without tag or digest stands for all tags that its repository has here, as Docker saves them.
fn records<'a>(engine: &Engine, store: &Store, names: &'a [String]) -> Result<Vec<(&'a str, ImageRecord)>, Report> {
    let mut found = Vec::new();
    for text in names {
        let record = find_record(engine, store, text)?;
        let repository = match (&record, text.parse::<ImageName>()) {
            (Some(record), _) if name_of(text, record).is_none() => None,
            (_, Ok(ImageName::Reference(reference))) if reference.tag().is_none() && reference.digest().is_none() => {
                Some(record.as_ref().map_or_else(|| reference.name(), |record| record.reference.name()))
            }
            _ => None,
        };
        let before = found.len();
        if let Some(repository) = repository {
            let tags = store.images()?.into_iter().filter(|record| record.reference.name() == repository);
            found.extend(tags.filter(|record| record.reference.tag().is_some()).map(|record| (&text[..], record)));
        }
        if found.len() == before {
            let record = record.ok_or_else(|| Report::new(Kind::NotFound, format!("No such image: {text}")))?;
            found.push((text, record));
        }
    }
    Ok(found)
}

/// The name that goes with an image: the one it was asked for by. By its id it goes without.
fn name_of(text: &str, record: &ImageRecord) -> Option<Reference> {
    (is_by_name(text, record) && !record.is_unnamed() && record.reference.tag().is_some())
        .then(|| record.reference.clone())
}

fn whole(engine: &Engine, store: &Store, lease: &mut Lease, record: &ImageRecord) -> Result<Saved, Report> {
    let config = load_config(store, &record.config)?;
    let manifest = assemble::manifest_of(store, record)?;
    let docker = manifest.as_ref().is_some_and(|manifest| assemble::is_docker(&manifest.media_type));
    let layers = assemble::whole_layers(store, &config, manifest.as_ref(), docker)?;
    match manifest {
        Some(manifest) if !layers.changed => Ok(Saved { names: Vec::new(), manifest, config }),
        _ => {
            let raw = if layers.diff_ids == config.diff_ids {
                config.raw
            } else {
                let mut json: Map<String, Value> =
                    serde_json::from_slice(&config.raw).map_err(|error| Report::of(Kind::Internal, error))?;
                let diff_ids: Vec<String> = layers.diff_ids.iter().map(|layer| layer.0.to_string()).collect();
                json.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
                assemble::without_empty_times(&mut json);
                serde_json::to_vec(&json).map_err(|error| Report::of(Kind::Internal, error))?
            };
            let made = assemble::assemble(store, lease, raw, &layers.descriptors, docker)?;
            let name = &record.reference;
            engine.notice(&format!(
                "blobs of layers of {name} are not kept here and were made anew: its digest is {} in what is saved",
                made.record.manifest
            ));
            let manifest = assemble::manifest_of(store, &made.record)?
                .ok_or(StoreError::Missing { digest: made.record.manifest })?;
            Ok(Saved { names: Vec::new(), manifest, config: made.config })
        }
    }
}

/// All blobs of images with their sizes, each once, in their order.
fn blobs(images: &[Saved]) -> BTreeMap<Digest, u64> {
    let mut found = BTreeMap::new();
    for image in images {
        found.insert(image.manifest.digest, image.manifest.raw.len() as u64);
        found.insert(image.config.digest, image.config.raw.len() as u64);
        found.extend(image.manifest.layers.iter().map(|layer| (layer.digest, layer.size)));
    }
    found
}

fn open_blob(store: &Store, digest: &Digest, size: u64) -> Result<File, Report> {
    let file = store.blobs().open(digest)?.ok_or(StoreError::Missing { digest: *digest })?;
    let found = file.metadata().map_or(0, |metadata| metadata.len());
    if found != size {
        return Err(StoreError::Size { digest: *digest, wanted_bytes: size, found_bytes: found }.into());
    }
    Ok(file)
}

/// `blobs/sha256/<hex>`.
fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// `index.json`: an entry for each name of each image.
fn index_text(images: &[Saved], docker: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for image in images {
        let entry = |annotations| Entry {
            media_type: image.manifest.media_type.clone(),
            artifact_type: None,
            digest: image.manifest.digest,
            size: image.manifest.raw.len() as u64,
            platform: None,
            annotations,
        };
        for name in &image.names {
            // Docker puts the tag there, Podman and skopeo the whole name.
            let reference = if docker { name.selector() } else { name.to_string() };
            let names = [(CONTAINERD_NAME, name.to_string()), (REF_NAME, reference)];
            list.push(entry(Some(names.map(|(key, text)| (key.to_owned(), text)).into())));
        }
        if image.names.is_empty() {
            list.push(entry(None));
        }
    }
    entries::write(media::OCI_INDEX, &list)
}

/// Docker's `manifest.json`.
fn docker_text(images: &[Saved]) -> Result<Vec<u8>, Report> {
    let entry = |image: &Saved| {
        let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
        let layers: Vec<String> = image.manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
        let names: Value = if names.is_empty() { Value::Null } else { names.into() };
        json!({ "Config": blob_path(&image.config.digest), "RepoTags": names, "Layers": layers })
    };
    serde_json::to_vec(&images.iter().map(entry).collect::<Vec<_>>()).map_err(|error| Report::of(Kind::Internal, error))
}

fn archive(
    store: &Store,
    images: &[Saved],
    format: SaveFormat,
    out: &mut dyn Write,
    listener: Listener<'_>,
) -> Result<(), Report> {
    let docker = format == SaveFormat::DockerArchive;
    let blobs = blobs(images);
    let size_bytes = blobs.values().copied().fold(0, u64::saturating_add);
    let mut out = Told::new(out, Teller::new(listener, None, Some(size_bytes)));
    let mut to = TarWriter::new(&mut out, None).without_holes();
    let of_file = Metadata { permissions: 0o644, ..Metadata::default() };
    let of_directory = Metadata { permissions: 0o755, ..Metadata::default() };
    for path in [&b"blobs"[..], b"blobs/sha256"] {
        to.entry(path, &of_directory, &TarEntry::Directory)?;
    }
    for (digest, size) in blobs {
        let file = open_blob(store, &digest, size)?;
        let content = TarContent::File { file: &file, offset: 0, size };
        to.file(blob_path(&digest).as_bytes(), &of_file, &content)?;
    }
    to.file(b"index.json", &of_file, &TarContent::Bytes(&index_text(images, docker)))?;
    if docker {
        to.file(b"manifest.json", &of_file, &TarContent::Bytes(&docker_text(images)?))?;
    }
    to.file(b"oci-layout", &of_file, &TarContent::Bytes(OCI_LAYOUT))?;
    to.finish()?;
    out.flush().map_err(|error| Report::of(Kind::Internal, error)).step(|| "writing the archive".to_owned())?;
    out.moved();
    Ok(())
}

/// Copies blobs into a directory under names that `name` makes of their digests.
fn copy_blobs(
    store: &Store,
    blobs: &BTreeMap<Digest, u64>,
    to: impl Fn(&Digest) -> std::path::PathBuf,
    listener: Listener<'_>,
) -> Result<(), Report> {
    listener(&Event::Planned { contents: &Vec::from_iter(blobs.clone()) });
    for (digest, size) in blobs {
        let path = to(digest);
        let from = open_blob(store, digest, *size)?;
        let mut from = Told::new(from, Teller::new(listener, Some(*digest), Some(*size)));
        File::create_new(&path)
            .and_then(|mut file| std::io::copy(&mut from, &mut file))
            .map_err(|error| failed("writing", &path, error))?;
        from.moved();
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), Report> {
    fs::write(path, content).map_err(|error| failed("writing", path, error))
}

fn layout_directory(store: &Store, images: &[Saved], path: &Path, listener: Listener<'_>) -> Result<(), Report> {
    let below = path.join("blobs/sha256");
    fs::create_dir_all(&below).map_err(|error| failed("making directory", &below, error))?;
    copy_blobs(store, &blobs(images), |digest| below.join(digest.hex()), listener)?;
    write(&path.join("index.json"), &index_text(images, false))?;
    // Last: it is what makes a directory a layout.
    write(&path.join("oci-layout"), OCI_LAYOUT)
}

fn directory(store: &Store, image: &Saved, path: &Path, listener: Listener<'_>) -> Result<(), Report> {
    let mut blobs = blobs(std::slice::from_ref(image));
    blobs.remove(&image.manifest.digest);
    copy_blobs(store, &blobs, |digest| path.join(digest.hex()), listener)?;
    write(&path.join("manifest.json"), &image.manifest.raw)?;
    write(&path.join("version"), b"Directory Transport Version: 1.1\n")
}
