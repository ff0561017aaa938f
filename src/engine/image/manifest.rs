//! Lists of images for several platforms (`manifest`): made and changed here, pushed as an index.
//!
//! A list is a file of the store until it is pushed ([`store::ListRecord`]). When an image is added its manifest comes into
//! the store; its layers do not: at the push the registry takes them from its repository that has them already, and those of another
//! registry are fetched then.

use std::collections::BTreeMap;

use base::{Context, Kind, Report};
use oci::{Digest, Document, Entries, Entry, EntryPlatform, ImageConfig, Manifest, Reference, entries, media};
use registry::Registry;
use store::{Durability, ListRecord, ListedImage, Store};

use crate::image::origin::Known;
use crate::image::progress::Listener;
use crate::image::push::{Plan, Sender};
use crate::image::{DOCUMENT_MAX, find_record, make_store, open_store};
use crate::{Engine, registries};

/// What an entry is to say of its image, where it is to say something else than the image itself.
#[derive(Clone, Debug, Default)]
pub struct Annotation {
    /// The architecture.
    pub architecture: Option<String>,
    /// The operating system.
    pub os: Option<String>,
    /// Its version.
    pub os_version: Option<String>,
    /// What it must have.
    pub os_features: Vec<String>,
    /// The variant of the architecture.
    pub variant: Option<String>,
    /// Whatever its maker wants to say.
    pub annotations: BTreeMap<String, String>,
}

impl Annotation {
    fn apply(&self, entry: &mut Entry) {
        let platform = entry.platform.get_or_insert_default();
        let set = |to: &mut String, from: &Option<String>| {
            if let Some(from) = from {
                from.clone_into(to);
            }
        };
        set(&mut platform.architecture, &self.architecture);
        set(&mut platform.os, &self.os);
        platform.os_version = self.os_version.clone().or_else(|| platform.os_version.take());
        platform.variant = self.variant.clone().or_else(|| platform.variant.take());
        if !self.os_features.is_empty() {
            platform.os_features = Some(self.os_features.clone());
        }
        if !self.annotations.is_empty() {
            entry.annotations.get_or_insert_default().extend(self.annotations.clone());
        }
    }
}

/// A name of a list or an image as a user writes it.
fn name(text: &str) -> Result<Reference, Report> {
    text.parse::<Reference>().map(Reference::or_latest).step(|| "invalid reference format".to_owned())
}

fn no_list(reference: &Reference) -> Report {
    Report::new(Kind::NotFound, format!("No such manifest: {}", reference.familiar()))
}

/// Makes a list of these images; an existing one is extended only with `amend`. The answer is the list's whole name.
pub fn create(engine: &Engine, list: &str, images: &[String], all: bool, amend: bool) -> Result<Reference, Report> {
    let list = name(list)?;
    let store = make_store(engine)?;
    // Before the registry is asked, which takes its time.
    let refuse = |there: bool| {
        if there && !amend {
            return Err(Report::new(
                Kind::Conflict,
                "refusing to amend an existing manifest list with no --amend flag",
            ));
        }
        Ok(())
    };
    refuse(store.list(&list)?.is_some())?;
    let _lease = store.lease()?;
    let found = find_all(engine, &store, images, all)?;
    store.change_list(&list, |old| {
        refuse(old.is_some())?;
        let mut record = old.unwrap_or_else(|| ListRecord::new(list.clone()));
        for image in found {
            put(&mut record, image);
        }
        Ok::<_, Report>(Some(record))
    })?;
    Ok(list)
}

/// Adds an image to a list. The answer is the list's whole name.
pub fn add(engine: &Engine, list: &str, image: &str, all: bool, annotation: &Annotation) -> Result<Reference, Report> {
    let list = name(list)?;
    let store = open_store(engine)?.ok_or_else(|| no_list(&list))?;
    if store.list(&list)?.is_none() {
        return Err(no_list(&list));
    }
    let _lease = store.lease()?;
    let mut found = find_all(engine, &store, &[image.to_owned()], all)?;
    for image in &mut found {
        annotation.apply(&mut image.entry);
    }
    store.change_list(&list, |old| {
        let mut record = old.ok_or_else(|| no_list(&list))?;
        for image in found {
            put(&mut record, image);
        }
        Ok::<_, Report>(Some(record))
    })?;
    Ok(list)
}

/// Puts an image into a list, in place of what the same source gave before.
fn put(record: &mut ListRecord, image: ListedImage) {
    let same = |old: &&mut ListedImage| old.source == image.source || old.entry.digest == image.entry.digest;
    match record.images.iter_mut().find(same) {
        Some(old) => *old = image,
        None => record.images.push(image),
    }
}

/// Changes what a list says of one of its images, which is named as it was added, or by its digest.
pub fn annotate(engine: &Engine, list: &str, image: &str, annotation: &Annotation) -> Result<(), Report> {
    let list = name(list)?;
    let store = open_store(engine)?.ok_or_else(|| no_list(&list))?;
    let digest = image.parse::<Digest>().ok();
    let wanted = if digest.is_some() { None } else { Some(name(image)?) };
    store.change_list(&list, |old| {
        let mut record = old.ok_or_else(|| no_list(&list))?;
        let is_it = |listed: &&mut ListedImage| {
            Some(listed.entry.digest) == digest
                || wanted.as_ref().is_some_and(|wanted| {
                    listed.source == *wanted
                        || (wanted.digest() == Some(listed.entry.digest) && listed.source.name() == wanted.name())
                })
        };
        let missing =
            || Report::new(Kind::NotFound, format!("manifest for image {image} does not exist in {}", list.familiar()));
        annotation.apply(&mut record.images.iter_mut().find(is_it).ok_or_else(missing)?.entry);
        Ok::<_, Report>(Some(record))
    })
}

/// Removes a list.
pub fn remove(engine: &Engine, list: &str) -> Result<(), Report> {
    let list = name(list)?;
    let store = open_store(engine)?.ok_or_else(|| no_list(&list))?;
    if store.list(&list)?.is_none() {
        return Err(no_list(&list));
    }
    store.change_list(&list, |_| Ok::<_, Report>(None))
}

/// The bytes of the index that a list would be pushed as, or of what a registry has under this name.
pub fn inspect(engine: &Engine, text: &str) -> Result<Vec<u8>, Report> {
    let reference = name(text)?;
    if let Some(store) = open_store(engine)?
        && let Some(record) = store.list(&reference)?
    {
        return Ok(index_of(&record).0);
    }
    let registry = registries::client_in_parts(engine, None)?;
    let found = registry.document(&reference);
    registries::tell_notes(engine, &registry);
    Ok(found.map_err(|error| no_manifest(error, &reference))?.raw().to_vec())
}

fn no_manifest(error: registry::RegistryError, reference: &Reference) -> Report {
    let report = Report::from(error);
    if report.kind() == Kind::NotFound {
        return Report::new(Kind::NotFound, format!("no such manifest: {}", reference.familiar()));
    }
    report
}

/// The index of a list and its media type: Docker's own where all of its images are, and it says nothing that Docker's
/// does not know.
fn index_of(record: &ListRecord) -> (Vec<u8>, &'static str) {
    let list: Vec<Entry> = record.images.iter().map(|image| image.entry.clone()).collect();
    let is_dockers = |entry: &Entry| entry.media_type == media::DOCKER_MANIFEST && entry.annotations.is_none();
    let dockers = !list.is_empty() && list.iter().all(is_dockers);
    let media_type = if dockers { media::DOCKER_LIST } else { media::OCI_INDEX };
    (entries::write(media_type, &list), media_type)
}

/// Sends a list, and its images where the repository does not have them; to another name if there is one. The answer is
/// the index's digest.
pub fn push(engine: &Engine, list: &str, destination: Option<&str>, listener: Listener<'_>) -> Result<Digest, Report> {
    let list = name(list)?;
    let target = destination.map_or_else(|| Ok(list.clone()), name)?;
    let store = open_store(engine)?.ok_or_else(|| no_list(&list))?;
    let mut lease = store.lease()?;
    let record = store.list(&list)?.ok_or_else(|| no_list(&list))?;
    lease.pin(&record.leads_to().collect::<Vec<_>>())?;
    let (raw, media_type) = index_of(&record);
    let registry = registries::client_in_parts(engine, None)?;
    let beside = registries::client_beside(engine)?;
    let index = Document::read(raw, Some(media_type))?;
    let sender = Sender { store: &store, registry: &registry, beside: &beside, target: &target, listener };
    let each = |image: &ListedImage| send(&sender, image).step(|| format!("image {}", image.source.familiar()));
    let sent = record.images.iter().try_for_each(each);
    let done = sent.and_then(|()| sender.tag(&index).step(|| format!("cannot push {}", target.familiar())));
    for registry in [&registry, &beside] {
        registries::tell_notes(engine, registry);
    }
    done.map(|()| index.digest())
}

/// Sends one image of a list unless the repository has it.
fn send(sender: &Sender<'_>, image: &ListedImage) -> Result<(), Report> {
    let (target, source) = (sender.target, &image.source);
    if sender.registry.has_document(target, &image.entry.digest)? {
        return Ok(());
    }
    let raw = sender.store.blobs().read(&image.entry.digest, DOCUMENT_MAX)?;
    let Document::Manifest(manifest) = Document::read(raw, Some(&image.entry.media_type))? else {
        return Err(Report::new(Kind::Unsupported, "an index within a list is not supported"));
    };
    let mut plan = Plan::default();
    plan.manifest(manifest);
    let mountable = source.host() == target.host() && source.repository() != target.repository();
    let known = Known { mount: mountable.then(|| source.clone()), origins: vec![source.clone()] };
    sender.send(&plan, &|_| known.clone())
}

/// Finds images, at their registry where one may be asked or here, and brings their manifests into the store.
fn find_all(engine: &Engine, store: &Store, images: &[String], all: bool) -> Result<Vec<ListedImage>, Report> {
    if engine.options().offline {
        return find_each(engine, store, images, |_| engine.require_network(&[]).map(|()| Vec::new()));
    }
    let registry = registries::client_in_parts(engine, None)?;
    let found = find_each(engine, store, images, |source| at_registry(store, &registry, source, all));
    registries::tell_notes(engine, &registry);
    found
}

fn find_each(
    engine: &Engine,
    store: &Store,
    images: &[String],
    ask: impl Fn(&Reference) -> Result<Vec<ListedImage>, Report>,
) -> Result<Vec<ListedImage>, Report> {
    let mut found = Vec::new();
    for text in images {
        let source = name(text)?;
        let listed = match ask(&source) {
            Ok(listed) => listed,
            // An image that was never pushed is here alone. What the registry has is newer than what is here.
            Err(report) => match here(engine, store, text)? {
                Some(listed) => {
                    engine.notice(&format!("{text} is taken as it is here: {report}"));
                    vec![listed]
                }
                None => return Err(report.with_step(format!("cannot add {text}"))),
            },
        };
        found.extend(listed);
    }
    Ok(found)
}

fn at_registry(store: &Store, registry: &Registry, source: &Reference, all: bool) -> Result<Vec<ListedImage>, Report> {
    let document = registry.document(source).map_err(|error| no_manifest(error, source))?;
    let index = match document {
        Document::Manifest(manifest) => {
            let raw = registry.content(source, &manifest.config)?;
            return Ok(vec![listed(store, source.clone(), &manifest, raw)?]);
        }
        Document::Index(index) if all => index,
        Document::Index(_) => {
            return Err(Report::new(Kind::Usage, format!("{} is a list of images itself", source.familiar()))
                .with_hint("--all adds all of its images; one of them can be named by its digest"));
        }
    };
    let said = Entries::read(&index.raw)?.list;
    let mut images = Vec::new();
    for descriptor in index.entries.iter().filter(|entry| media::is_manifest(&entry.media_type)) {
        let raw = registry.content(source, descriptor)?;
        let Document::Manifest(manifest) = Document::read(raw, Some(&descriptor.media_type))? else { continue };
        let config = registry.content(source, &manifest.config)?;
        let mut image = listed(store, source.at(descriptor.digest), &manifest, config)?;
        // What the list said of its image, it says again.
        if let Some(entry) = said.iter().find(|entry| entry.digest == descriptor.digest) {
            let platform = entry.platform.clone().or(image.entry.platform);
            image.entry = Entry { platform, ..entry.clone() };
        }
        images.push(image);
    }
    Ok(images)
}

fn here(engine: &Engine, store: &Store, text: &str) -> Result<Option<ListedImage>, Report> {
    let Some(record) = find_record(engine, store, text)? else { return Ok(None) };
    let blobs = store.blobs();
    let Document::Manifest(manifest) = Document::read(blobs.read(&record.manifest, DOCUMENT_MAX)?, None)? else {
        return Ok(None);
    };
    let config = blobs.read(&record.config, DOCUMENT_MAX)?;
    listed(store, record.reference, &manifest, config).map(Some)
}

/// What a list keeps of an image. Its manifest and configuration come into the store.
fn listed(store: &Store, source: Reference, manifest: &Manifest, config: Vec<u8>) -> Result<ListedImage, Report> {
    manifest.require_image()?;
    let config = ImageConfig::read_for(manifest, config)?;
    for (digest, raw) in [(&manifest.digest, &manifest.raw), (&config.digest, &config.raw)] {
        store.blobs().put(digest, raw, Durability::Now)?;
    }
    let entry = Entry {
        media_type: manifest.media_type.clone(),
        artifact_type: None,
        digest: manifest.digest,
        size: manifest.raw.len() as u64,
        platform: Some(EntryPlatform::of(&config)),
        annotations: None,
    };
    Ok(ListedImage { source, entry })
}
