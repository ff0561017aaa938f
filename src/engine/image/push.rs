//! Sending images to a registry: blobs first, some at once, then manifests, then the index, then the name.
//!
//! What is sent are the bytes that are here: an image that was pulled has the same digest where it is pushed to. A blob is
//! read only when the registry neither has it nor can take it from another of its repositories. One that was evicted is
//! fetched again then from where its image came from.
//!
//! An index goes with all of its images or not at all: a registry refuses one that names what it does not have. It goes
//! when each of its images is here or at the registry; else the one image goes under the name, and a line says so.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::sync::OnceLock;

use base::{Context, Kind, Report};
use oci::{Descriptor, Digest, Document, Entries, Entry, Manifest, Platform, Reference, media, select_manifest};
use registry::{Blob, Mount, Registry, Session};
use store::{ImageRecord, Lease, Store, StoreError};

use crate::image::origin::{self, Known, known};
use crate::image::progress::{Event, Listener, Teller};
use crate::image::{DOCUMENT_MAX, find_pinned, open_store, pinned};
use crate::{Engine, events, registries, workers};

/// How many blobs are on their way at once.
const STREAMS: usize = 3;
/// How deep indexes may nest.
const DEPTH_MAX: usize = oci::select::DEPTH_MAX;

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Which image, where it goes to another name than its own.
    image: Option<String>,
    reference: Reference,
    all_tags: bool,
    platform: Option<Platform>,
    part_bytes: Option<u64>,
    /// Whether the name had no tag and stands for `latest`.
    pub tag_was_added: bool,
}

impl PushRequest {
    /// Checks the words; does no I/O. `part_bytes` makes blobs go in parts of this size.
    pub fn new(text: &str, all_tags: bool, platform: Option<&str>, part_bytes: Option<u64>) -> Result<Self, Report> {
        let reference: Reference = text.parse().step(|| "invalid reference format".to_owned())?;
        if reference.digest().is_some() {
            return Err(Report::new(Kind::Usage, "cannot push a digest reference"));
        }
        if all_tags && reference.tag().is_some() {
            return Err(Report::new(Kind::Usage, "tag can't be used with --all-tags/-a"));
        }
        if part_bytes == Some(0) {
            return Err(Report::new(Kind::Usage, "a part of a layer must have a byte at least"));
        }
        let tag_was_added = reference.tag().is_none() && !all_tags;
        let platform = platform.map(str::parse).transpose()?;
        Ok(PushRequest { image: None, reference, all_tags, platform, part_bytes, tag_was_added })
    }

    /// The same for this image, which may have any name or none.
    #[must_use]
    pub fn of_image(self, image: String) -> Self {
        PushRequest { image: Some(image), ..self }
    }

    /// The name without a tag, in full.
    pub fn repository(&self) -> String {
        self.reference.name()
    }

    /// The complete name; with all tags the repository's.
    pub fn name(&self) -> String {
        if self.all_tags { self.reference.name() } else { self.reference.clone().or_latest().to_string() }
    }
}

/// Sends an image, or all of its repository's; the digest of what the name, or each name, stands for then.
pub fn push(engine: &Engine, request: &PushRequest, listener: Listener<'_>) -> Result<Vec<Digest>, Report> {
    let missing = || {
        let name = request.reference.familiar_name();
        let of_name = || format!("An image does not exist locally with the tag: {name}");
        let of_image = |image| format!("No such image: {image}");
        Report::new(Kind::NotFound, request.image.as_ref().map_or_else(of_name, of_image))
    };
    let store = open_store(engine)?.ok_or_else(missing)?;
    let mut lease = store.lease()?;
    let records = match &request.image {
        Some(image) => vec![find_pinned(engine, &store, image, &mut lease)?.ok_or_else(missing)?],
        None => own(&store, &mut lease, request)?.ok_or_else(missing)?,
    };
    let registry = registries::client_in_parts(engine, request.part_bytes)?;
    let beside = registries::client_beside(engine)?;
    let (images, layers) = (store.images()?, OnceLock::new());
    let destination = request.reference.clone().or_latest();
    let each = |record: &ImageRecord| {
        let target = if request.image.is_some() { &destination } else { &record.reference };
        let sender = Sender { store: &store, registry: &registry, beside: &beside, target, listener };
        let find = |blob: &Digest| {
            let layers = layers.get_or_init(|| known(&store, &images, target));
            let mut found = layers.get(blob).cloned().unwrap_or_default();
            // Its other images, for other platforms, have no records.
            found.origins.extend(origin::origin(record).filter(|from| !found.origins.contains(from)).cloned());
            found
        };
        let sent = sender.image(record, request.platform.as_ref(), &find);
        let digest = sent.step(|| format!("cannot push {}", target.familiar()))?;
        events::of_image(engine, &target.familiar(), "push", &target.familiar_name());
        Ok(digest)
    };
    let done = records.iter().map(each).collect();
    for registry in [&registry, &beside] {
        registries::tell_notes(engine, registry);
    }
    done
}

/// The images that have the name that they go to, or all of its repository, pinned; `None` where the repository has none.
fn own(store: &Store, lease: &mut Lease, request: &PushRequest) -> Result<Option<Vec<ImageRecord>>, Report> {
    let repository = &request.reference;
    let same = |record: &ImageRecord| record.reference.name() == repository.name() && record.reference.tag().is_some();
    let mut records = pinned(lease, || Ok(store.images()?.into_iter().filter(same).collect()))?;
    if records.is_empty() {
        return Ok(None);
    }
    if !request.all_tags {
        let wanted = repository.clone().or_latest();
        records.retain(|record| record.reference.tag() == wanted.tag());
        if records.is_empty() {
            return Err(Report::new(Kind::NotFound, format!("tag does not exist: {}", wanted.familiar())));
        }
    }
    Ok(Some(records))
}

fn document(store: &Store, digest: &Digest) -> Result<Document, Report> {
    Ok(Document::read(store.blobs().read(digest, DOCUMENT_MAX)?, None)?)
}

/// What is known of a blob.
pub(super) type Find<'a> = &'a (dyn Fn(&Digest) -> Known + Sync);

/// Sends documents and what they name to one repository.
pub(super) struct Sender<'a> {
    pub store: &'a Store,
    pub registry: &'a Registry,
    /// A client of other registries, which the command's options are not about.
    pub beside: &'a Registry,
    /// The repository, and the tag for what is sent last.
    pub target: &'a Reference,
    pub listener: Listener<'a>,
}

/// Documents in the order in which a registry takes them.
#[derive(Default)]
pub(super) struct Plan {
    documents: Vec<Document>,
    blobs: Vec<Descriptor>,
    seen: HashSet<Digest>,
}

impl Plan {
    /// Adds the blobs that a manifest names.
    fn blobs_of(&mut self, manifest: &Manifest) {
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if self.seen.insert(blob.digest) {
                self.blobs.push(blob.clone());
            }
        }
    }

    /// Adds a manifest with its blobs.
    pub fn manifest(&mut self, manifest: Manifest) {
        self.blobs_of(&manifest);
        if self.seen.insert(manifest.digest) {
            self.documents.push(Document::Manifest(manifest));
        }
    }
}

impl Sender<'_> {
    fn image(&self, record: &ImageRecord, platform: Option<&Platform>, find: Find<'_>) -> Result<Digest, Report> {
        let mut plan = Plan::default();
        let raw = self.store.blobs().read(&record.digest, DOCUMENT_MAX).map_err(Report::from);
        let found = raw.and_then(|raw| Ok(Document::read(raw, Some(&record.media_type))?));
        let last = match (found, platform) {
            (Ok(Document::Index(index)), None) => {
                if self.with_index(&mut plan, &index.raw, 1, find)? {
                    Document::Index(index)
                } else {
                    let text = format!(
                        "{} stands for several images of which not all are here: only the one for {} is pushed, under a \
                         digest of its own",
                        record.reference.familiar(),
                        self.platform_of(record)?
                    );
                    (self.listener)(&Event::Warning { text: &text });
                    plan = Plan::default();
                    document(self.store, &record.manifest)?
                }
            }
            (Ok(found), Some(wanted)) => self.choose(found, wanted)?,
            (Ok(found), None) => found,
            // A store of an earlier version of ours did not keep indexes.
            (Err(_), Some(wanted)) => self.choose(document(self.store, &record.manifest)?, wanted)?,
            (Err(_), None) => document(self.store, &record.manifest)?,
        };
        if let Document::Manifest(manifest) = &last {
            manifest.require_image()?;
            plan.blobs_of(manifest);
        }
        self.send(&plan, find)?;
        self.tag(&last)?;
        Ok(last.digest())
    }

    fn platform_of(&self, record: &ImageRecord) -> Result<Platform, Report> {
        let raw = self.store.blobs().read(&record.config, DOCUMENT_MAX)?;
        Ok(oci::ImageConfig::read(raw)?.platform)
    }

    /// The image for a platform, which must be here.
    fn choose(&self, found: Document, wanted: &Platform) -> Result<Document, Report> {
        let manifest =
            select_manifest(found, wanted, |descriptor| self.store.blobs().read(&descriptor.digest, DOCUMENT_MAX));
        let manifest = manifest.step(|| format!("looking for the image for {wanted}"))?;
        let raw = self.store.blobs().read(&manifest.config.digest, DOCUMENT_MAX)?;
        let platform = oci::ImageConfig::read_for(&manifest, raw)?.platform;
        if wanted.rank(&platform).is_none() {
            let message = format!("the image is for {platform}, not for {wanted}");
            return Err(Report::new(Kind::NotFound, message));
        }
        Ok(Document::Manifest(manifest))
    }

    /// Plans all that an index names; `false` when something of it is neither here nor at the registry.
    fn with_index(&self, plan: &mut Plan, raw: &[u8], depth: usize, find: Find<'_>) -> Result<bool, Report> {
        let entries = Entries::read(raw)?;
        if entries.unreadable > 0 || depth > DEPTH_MAX {
            return Ok(false);
        }
        for entry in &entries.list {
            if !self.with_entry(plan, entry, depth, find)? && !self.registry.has_document(self.target, &entry.digest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Plans one entry; `false` when it is not here. A layer that was evicted counts as here where it can be had again.
    fn with_entry(&self, plan: &mut Plan, entry: &Entry, depth: usize, find: Find<'_>) -> Result<bool, Report> {
        if !self.store.blobs().has(&entry.digest)? {
            return Ok(false);
        }
        let raw = self.store.blobs().read(&entry.digest, DOCUMENT_MAX)?;
        match Document::read(raw, Some(&entry.media_type))? {
            Document::Manifest(manifest) => {
                let applied = origin::applied(self.store, &manifest)?;
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    let may_be_had = || applied.contains(&blob.digest) && !find(&blob.digest).origins.is_empty();
                    if !self.store.blobs().claim(&blob.digest, blob.size)? && !may_be_had() {
                        return Ok(false);
                    }
                }
                plan.manifest(manifest);
            }
            Document::Index(index) => {
                if !self.with_index(plan, &index.raw, depth + 1, find)? {
                    return Ok(false);
                }
                plan.documents.push(Document::Index(index));
            }
        }
        Ok(true)
    }

    /// Sends what is planned, in its order. The caller holds a lease.
    pub fn send(&self, plan: &Plan, find: Find<'_>) -> Result<(), Report> {
        let mut contents = Vec::new();
        for blob in &plan.blobs {
            // All of them now, so that nobody evicts one whose turn comes later.
            let is_here = self.store.blobs().claim(&blob.digest, blob.size)?;
            // One that is to be had elsewhere and is not here never moves.
            if !media::is_image_config(&blob.media_type) && (blob.urls.is_empty() || is_here) {
                contents.push((blob.digest, blob.size));
            }
        }
        (self.listener)(&Event::Planned { contents: &contents });
        // One that fails ends what the others wait for or send.
        workers::each(&plan.blobs, STREAMS, self.registry.cancelled(), |blob| {
            self.blob(blob, find).step(|| format!("blob {}", blob.digest))
        })?;
        for document in &plan.documents {
            let at = self.target.at(document.digest());
            self.registry.put_document(&at, document.raw(), document.media_type())?;
        }
        Ok(())
    }

    /// Sends the document that the target's tag is to stand for.
    pub fn tag(&self, last: &Document) -> Result<(), Report> {
        self.registry.put_document(self.target, last.raw(), last.media_type())?;
        let tag = self.target.tag().unwrap_or_default();
        (self.listener)(&Event::Tagged { tag, digest: last.digest(), size_bytes: last.raw().len() as u64 });
        Ok(())
    }

    /// Sends a blob unless the repository has it or can get it. Of layers is told; a configuration goes without a word.
    fn blob(&self, descriptor: &Descriptor, find: Find<'_>) -> Result<(), Report> {
        let (blob, target) = (descriptor.digest, self.target);
        let is_layer = !media::is_image_config(&descriptor.media_type);
        let tell: Listener<'_> = if is_layer { self.listener } else { &|_| {} };
        if self.registry.has_blob(target, &blob)? {
            tell(&Event::Exists { content: blob });
            return Ok(());
        }
        let mut session = None;
        let known = if is_layer { find(&blob) } else { Known::default() };
        if let Some(from) = &known.mount {
            match self.registry.mount_blob(target, &blob, from)? {
                Mount::Done => {
                    tell(&Event::Mounted { content: blob, from: from.repository() });
                    return Ok(());
                }
                Mount::Opened(opened) => session = Some(opened),
                Mount::Refused => {}
            }
        }
        let is_whole = self.store.blobs().size(&blob)? == Some(descriptor.size);
        if (is_whole || known.origins.is_empty())
            && let Some(file) = self.store.blobs().open(&blob)?
        {
            return self.upload(descriptor, &file, session, tell);
        }
        // A layer that is to be had elsewhere need not be at the registry.
        if !descriptor.urls.is_empty() {
            return Ok(());
        }
        self.bring(descriptor, &known.origins)?;
        let file = self.store.blobs().open(&blob)?.ok_or_else(|| missing(&blob))?;
        self.upload(descriptor, &file, session, tell)
    }

    /// Fetches a blob that is not here any more from the first of these repositories that gives it.
    fn bring(&self, blob: &Descriptor, origins: &[Reference]) -> Result<(), Report> {
        let mut failure = missing(&blob.digest);
        // The target's own repository has said that it has it not.
        for from in origins.iter().filter(|from| from.name() != self.target.name()) {
            let (layer, from_name) = (blob.digest.short(), from.familiar_name());
            let text = format!("note: the layer {layer} is not kept here: it is fetched again from {from_name}");
            (self.listener)(&Event::Note { text: &text });
            let registry = if from.host() == self.target.host() { self.registry } else { self.beside };
            match origin::fetch(self.store, registry, from, blob, self.registry.cancelled()) {
                Ok(()) => return Ok(()),
                Err(report) => failure = report.with_step(format!("fetching it again from {from_name}")),
            }
        }
        Err(failure)
    }

    fn upload(
        &self,
        descriptor: &Descriptor,
        file: &File,
        session: Option<Session>,
        listener: Listener<'_>,
    ) -> Result<(), Report> {
        let (blob, wanted_bytes) = (descriptor.digest, descriptor.size);
        let size_bytes = file.metadata().map_err(|error| Report::of(Kind::Internal, error))?.len();
        if size_bytes != wanted_bytes {
            return Err(StoreError::Size { digest: blob, wanted_bytes, found_bytes: size_bytes }.into());
        }
        let teller = RefCell::new(Teller::new(listener, Some(blob), Some(size_bytes)));
        let told = |done_bytes: u64| teller.borrow_mut().tell(done_bytes);
        told(0);
        self.registry.upload(self.target, &Blob { digest: blob, size: size_bytes, file }, session, &told)?;
        teller.borrow_mut().moved();
        Ok(())
    }
}

fn missing(blob: &Digest) -> Report {
    Report::new(Kind::NotFound, format!("the blob {blob} is not in the store, and the registry does not have it"))
        .with_hint("pull the image again from where it came from, then push it")
}
