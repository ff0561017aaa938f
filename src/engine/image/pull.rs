//! Fetching an image: resolve, then every layer downloaded and applied at the same time, then one merged index, then
//! the name.
//!
//! A layer's stream goes through [`Tee`] into the store's ingest and into `layer::apply` at once. Its digest is known
//! at the end only; until then nothing leads to what was applied, and a wrong one is thrown away with the error.
//! A killed pull leaves partial blobs that the next one resumes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base::units::human_size;
use base::{Context, Kind, Report};
use oci::document::DOCUMENT_MAX;
use oci::{
    Descriptor, DiffId, Digest, Document, ImageConfig, ImageName, Manifest, Platform, Reference, find_manifest,
    select_manifest,
};
use registry::{BlobReader, RegistriesConf, Registry};
use store::{Durability, ImageRecord, Ingest, Store, StoreError};
use trust::Locked;

use crate::image::assemble::keep_replaced;
use crate::image::load::why_none;
use crate::image::lock::LockFile;
use crate::image::policy::{self, Wanted};
use crate::image::progress::{Event, Listener, Teller};
use crate::image::{cache, intact, is_layer_intact, list, make_store, offline, pinned};
use crate::system::limits;
use crate::{Engine, events, registries, workers};

/// How many layers of an image are worked on at once.
const STREAMS: usize = 3;

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// As the user wrote it.
    pub text: String,
    name: ImageName,
    platform: Option<Platform>,
    lock: Option<LockFile>,
}

impl PullRequest {
    /// Checks the words; does no I/O.
    pub fn new(text: &str, platform: Option<&str>) -> Result<Self, Report> {
        let name = text.parse().step(|| "invalid reference format".to_owned())?;
        let platform = platform.map(str::parse).transpose()?;
        Ok(PullRequest { text: text.to_owned(), name, platform, lock: None })
    }

    /// The same for the image to which the name is locked by a file.
    #[must_use]
    pub fn locked_by(self, file: LockFile) -> Self {
        PullRequest { lock: Some(file), ..self }
    }

    /// The same for another name.
    fn for_reference(&self, reference: Reference) -> Self {
        PullRequest { text: reference.to_string(), name: ImageName::Reference(reference), ..self.clone() }
    }

    /// The file by which the name is locked, if any.
    pub(crate) fn lock(&self) -> Option<&LockFile> {
        self.lock.as_ref()
    }

    /// The platform that is asked for.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// Whether this is the machine's own root, which is not fetched.
    pub fn is_host(&self) -> bool {
        self.name == ImageName::Host
    }

    /// The name as Docker's users write it, with its tag.
    pub fn familiar(&self) -> String {
        match &self.name {
            ImageName::Reference(reference) => reference.clone().or_latest().familiar(),
            other => other.to_string(),
        }
    }

    /// Says which of several references it is.
    pub(crate) fn is(&self, reference: &Reference) -> String {
        format!("{} is {reference}", self.text)
    }

    /// Says why it is not one of several references.
    pub(crate) fn is_not(&self, reference: &Reference, report: &Report) -> String {
        format!("{} is not {reference}: {}", self.text, report.lines().join(": "))
    }

    /// What is to be fetched: one reference, or several of which the first that exists counts.
    pub(crate) fn references(&self, conf: &RegistriesConf) -> Result<Vec<Reference>, Report> {
        match &self.name {
            ImageName::Reference(_) => {
                let found: Vec<Reference> =
                    conf.candidates(&self.text)?.into_iter().map(Reference::or_latest).collect();
                if conf.is_enforcing() && found.len() > 1 {
                    let names: Vec<String> = found.iter().map(Reference::to_string).collect();
                    let why = format!("short name {} may be {}", self.text, names.join(" or "));
                    return Err(Report::new(Kind::Usage, why)
                        .with_hint("write the whole name, or set short-name-mode in registries.conf to permissive"));
                }
                Ok(found)
            }
            ImageName::Id(id) if self.lock.is_some() => {
                Err(Report::new(Kind::Usage, format!("--locked is for names on registries, and {id} is an id")))
            }
            ImageName::Host => Err(Report::new(Kind::Usage, "host: is this machine itself; there is nothing to fetch")),
            ImageName::Id(id) => Err(Report::new(Kind::NotFound, format!("No such image: {id}"))
                .with_hint("images are fetched by name, not by id")),
        }
    }
}

/// The outcome of a pull.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The complete reference.
    pub reference: Reference,
    /// What the registry calls it.
    pub digest: Digest,
    /// Whether the name stands for something else than before.
    pub new: bool,
}

/// Fetches an image and sets its name. A short name that may stand for several images is the first that can be fetched.
pub fn pull(engine: &Engine, request: &PullRequest, listener: Listener<'_>) -> Result<Pulled, Report> {
    let conf = registries::conf(engine)?;
    let mut references = request.references(&conf)?;
    if engine.options().credential.is_some() && references.len() > 1 {
        let names: Vec<String> = references.iter().map(Reference::to_string).collect();
        let why = format!("--creds is for one registry, and {} may be {}", request.text, names.join(" or "));
        return Err(Report::new(Kind::Usage, why).with_hint("write the whole name"));
    }
    let locked = match request.lock() {
        None => None,
        Some(file) => {
            let wanted = request.platform().cloned().unwrap_or_else(Platform::host);
            let (reference, locked) = file.find(&references, &wanted)?;
            references = vec![reference];
            Some(ByLock { file, locked })
        }
    };
    let store = make_store(engine)?;
    if engine.options().offline {
        let pulled = offline::pull(engine, &store, &references, request)?;
        if let (Some(by), Some(record)) = (&locked, store.image(&pulled.reference)?) {
            by.file.require(by.locked, &record.manifest, request, "the same without --offline")?;
        }
        return Ok(pulled);
    }
    let policy = policy::in_force(engine)?;
    let registry = registries::client(engine, conf)?;
    let note = |text: String| listener(&Event::Note { text: &text });
    let mut failure = None;
    for reference in &references {
        let failed = AtomicBool::new(false);
        let pull = Pull { store: &store, registry: &registry, reference, locked: locked.as_ref(), listener, failed };
        let wanted = policy.as_ref().map(|policy| policy.before(reference)).transpose();
        let pulled = wanted.map_err(Failure::Refused).and_then(|wanted| pull.run(request.platform(), wanted.as_ref()));
        registry.notes().into_iter().for_each(|line| note(format!("note: {line}")));
        match pulled {
            Ok(pulled) => {
                if references.len() > 1 {
                    note(format!("note: {}", request.is(reference)));
                }
                events::of_image(engine, &reference.familiar(), "pull", &reference.familiar_name());
                // The image is here all the same.
                if let Err(report) = cache::trim(engine, &store) {
                    engine.notice(&format!("the store cannot be brought below --cache-max: {report}"));
                }
                return Ok(pulled);
            }
            Err(Failure::Other(report)) if matches!(report.kind(), Kind::NotFound | Kind::Denied | Kind::Remote) => {
                if references.len() > 1 {
                    note(format!("note: {}", request.is_not(reference, &report)));
                }
                failure = Some(report);
            }
            Err(Failure::Other(report)) => {
                failure = Some(limits::explain(store.root().path(), report));
                break;
            }
            Err(Failure::Refused(report)) => {
                failure = Some(report);
                break;
            }
        }
    }
    let failure = failure.unwrap_or_else(|| Report::new(Kind::Internal, "a name that stands for nothing"));
    Err(failure.with_step(format!("cannot pull {}", request.familiar())))
}

/// A request for each tag that the repository of a name has on its registry, and the repository. A short name that may stand for
/// several is the first of which tags can be listed.
pub fn all_tags(engine: &Engine, request: &PullRequest) -> Result<(Reference, Vec<PullRequest>), Report> {
    let has_more = |name: &ImageName| match name {
        ImageName::Reference(reference) => reference.tag().is_some() || reference.digest().is_some(),
        _ => false,
    };
    if has_more(&request.name) {
        return Err(Report::new(Kind::Usage, "tag can't be used with --all-tags/-a"));
    }
    let conf = registries::conf(engine)?;
    let references = request.references(&conf)?;
    engine.require_network(&[]).step(|| format!("cannot list the tags of {}", request.text))?;
    let registry = registries::client(engine, conf)?;
    let mut failure = None;
    for reference in references {
        match registry.tags(&reference) {
            Ok(tags) => {
                registries::tell_notes(engine, &registry);
                return Ok((reference, tags.into_iter().map(|tag| request.for_reference(tag)).collect()));
            }
            Err(error) => failure = Some(Report::from(error)),
        }
    }
    registries::tell_notes(engine, &registry);
    let failure = failure.unwrap_or_else(|| Report::new(Kind::Internal, "a name that stands for nothing"));
    Err(failure.with_step(format!("cannot list the tags of {}", request.text)))
}

/// Why nothing was fetched by one of the names that are meant.
enum Failure {
    /// The policy does not allow the image. It is the one that is meant, so that no other is looked for.
    Refused(Report),
    /// Anything else.
    Other(Report),
}

impl<E: Into<Report>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(error.into())
    }
}

/// What a name is locked to, and by which file.
struct ByLock<'a> {
    file: &'a LockFile,
    locked: &'a Locked,
}

struct Pull<'a> {
    store: &'a Store,
    registry: &'a Registry,
    reference: &'a Reference,
    locked: Option<&'a ByLock<'a>>,
    listener: Listener<'a>,
    /// Set by the first worker that fails, so that the others stop early.
    failed: AtomicBool,
}

impl Pull<'_> {
    /// `signatures` are those that the image must have.
    fn run(&self, platform: Option<&Platform>, signatures: Option<&Wanted<'_>>) -> Result<Pulled, Failure> {
        // Before the first look at what is there.
        let mut lease = self.store.lease()?;
        let before = pinned(&mut lease, || Ok(self.store.image(self.reference)?.into_iter().collect()))?.pop();
        (self.listener)(&Event::Resolving { reference: self.reference });
        let wanted = match self.locked {
            Some(by) => by.locked.platform.clone(),
            None => platform.cloned().unwrap_or_else(Platform::host),
        };
        let permit = |index: Option<Digest>, manifest: Digest| {
            let digests: Vec<Digest> = index.into_iter().chain([manifest]).collect();
            signatures.map_or(Ok(()), |signatures| signatures.check(self.registry, &digests)).map_err(Failure::Refused)
        };
        if let Some(record) = &before
            && let Some(config) = intact(self.store, record)?
            && (self.locked.is_some() || self.is_for(record, &config, &wanted)?)
            && self.is_current(record)?
        {
            permit(Some(record.digest).filter(|digest| *digest != record.manifest), record.manifest)?;
            return Ok(Pulled { reference: self.reference.clone(), digest: record.digest, new: false });
        }
        let document = match self.locked {
            Some(by) => self.registry.document(&self.reference.at(by.locked.digest()))?,
            None => self.registry.document(self.reference)?,
        };
        let (digest, media_type, raw_document) =
            (document.digest(), document.media_type().to_owned(), document.raw().to_vec());
        let locked = self.locked.map(|by| by.locked);
        let (manifest, config) = select(document, &wanted, locked, |descriptor| self.content(descriptor))?;
        if wanted.rank(&config.platform).is_none() {
            let text =
                format!("the image's platform ({}) does not match the one asked for ({wanted})", config.platform);
            (self.listener)(&Event::Warning { text: &text });
        }
        let chain = config.chain_id().map(|chain| chain.0);
        let index = Some(digest).filter(|digest| *digest != manifest.digest);
        permit(index, manifest.digest)?;
        let layers = config.diff_ids.iter().map(|layer| layer.0);
        lease.pin(&layers.chain(chain).chain(index).chain([manifest.digest, config.digest]).collect::<Vec<_>>())?;
        self.tell_scarcity(&manifest, &config)?;
        self.layers(&manifest, &config)?;
        let chain =
            if config.diff_ids.is_empty() { None } else { Some(layer::merge_chain(self.store, &config.diff_ids)?) };
        let blobs = self.store.blobs();
        // An index too: it leads to the images for other platforms that are here, and is what a push sends.
        blobs.put(&digest, &raw_document, Durability::Later)?;
        blobs.put(&manifest.digest, &manifest.raw, Durability::Later)?;
        blobs.put(&config.digest, &config.raw, Durability::Later)?;
        self.store.sync()?;
        let record = ImageRecord {
            reference: self.reference.clone(),
            digest,
            media_type,
            manifest: manifest.digest,
            config: config.digest,
            chain,
            updated_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            made_here: false,
            source: Some(self.reference.clone()),
            summary: Some(list::summary_of(&manifest, &config)),
        };
        let names = self.store.lock_names()?;
        // One in a store that is only read stays there.
        if !self.store.is_below(self.reference)? {
            keep_replaced(self.store, &names, self.reference, &record.config)?;
        }
        names.put(&record)?;
        let new = before.is_none_or(|before| before.config != record.config);
        Ok(Pulled { reference: self.reference.clone(), digest, new })
    }

    /// Whether the image is the one for a platform: the digest of a list is that of the images for all of them, and the last one
    /// asked for may be here.
    fn is_for(&self, record: &ImageRecord, config: &ImageConfig, wanted: &Platform) -> Result<bool, Report> {
        let read = |digest: &Digest| self.store.blobs().read(digest, DOCUMENT_MAX);
        let document = Document::read(read(&record.digest)?, Some(&record.media_type))?;
        // What the choice needs and is not here is to be fetched.
        let chosen = select_manifest(document, wanted, |descriptor| read(&descriptor.digest));
        let is_chosen = chosen.is_ok_and(|manifest| manifest.digest == record.manifest);
        Ok(is_chosen && wanted.rank(&config.platform).is_some())
    }

    /// A document that a manifest or an index names: fetched unless it is here.
    fn content(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Report> {
        if self.store.blobs().claim(&descriptor.digest, descriptor.size)? {
            let raw = self.store.blobs().read(&descriptor.digest, DOCUMENT_MAX)?;
            if Digest::of(&raw) == descriptor.digest {
                return Ok(raw);
            }
        }
        Ok(self.registry.content(self.reference, descriptor)?)
    }

    /// Whether the registry still means what we have. A digest means the same for ever.
    fn is_current(&self, record: &ImageRecord) -> Result<bool, Report> {
        if let Some(by) = self.locked {
            return Ok(by.locked.manifest == record.manifest);
        }
        if self.reference.digest() == Some(record.digest) {
            return Ok(true);
        }
        Ok(self.registry.resolve(self.reference)?.is_some_and(|resolved| resolved.digest == record.digest))
    }

    /// Says so when what is to come is surely more than the file system or the user's quota has left, or inodes are few.
    fn tell_scarcity(&self, manifest: &Manifest, config: &ImageConfig) -> Result<(), Report> {
        let mut wanted_bytes = 0_u64;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            if !self.store.layers().has(&diff_id.0)? {
                // As the manifest says, which may be anything.
                wanted_bytes = wanted_bytes.saturating_add(layer.size);
            }
        }
        let limits = limits::of(self.store.root().path())?;
        if wanted_bytes > 0 && (limits.forbids(wanted_bytes) || limits.has_few_inodes()) {
            let text = format!("{} are to be fetched, and the store has {limits}", human_size(wanted_bytes));
            (self.listener)(&Event::Warning { text: &text });
        }
        Ok(())
    }

    /// Brings all layers into the store, some at once, in their order.
    fn layers(&self, manifest: &Manifest, config: &ImageConfig) -> Result<(), Report> {
        let jobs: Vec<(&Descriptor, DiffId)> = manifest.layers.iter().zip(config.diff_ids.iter().copied()).collect();
        let contents: BTreeMap<Digest, u64> = manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
        (self.listener)(&Event::Planned { contents: &Vec::from_iter(contents) });
        workers::each(&jobs, STREAMS, &self.failed, |(descriptor, diff_id)| {
            self.layer(descriptor, *diff_id).step(|| format!("layer {}", descriptor.digest))
        })
    }

    fn layer(&self, descriptor: &Descriptor, diff_id: DiffId) -> Result<(), Report> {
        let layer = descriptor.digest;
        if is_layer_intact(self.store, descriptor, diff_id)? {
            (self.listener)(&Event::Exists { content: layer });
            return Ok(());
        }
        let limits = layer::Limits::default();
        let waiting = |waiting: store::Waiting| {
            let (done_bytes, size_bytes) = (waiting.done_bytes, Some(waiting.size_bytes));
            (self.listener)(&Event::Moving { content: Some(layer), done_bytes, size_bytes });
            if self.failed.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut again = false;
        loop {
            let Some(ingest) = self.store.ingest(&layer, descriptor.size, waiting)? else {
                // Another command brought the blob; its index may be missing if it was killed in between.
                let file = self.store.blobs().open(&layer)?;
                let file = file.ok_or(StoreError::Missing { digest: layer })?;
                layer::apply(file, Some(diff_id), self.store, Durability::Later, &limits)?;
                break;
            };
            match self.fetch(descriptor, diff_id, ingest, &limits)? {
                None => break,
                Some(mismatch) if again => return Err(mismatch.into()),
                Some(_) => {
                    let text =
                        format!("note: the parts of {} do not fit together: it is fetched once more", layer.short());
                    (self.listener)(&Event::Note { text: &text });
                    again = true;
                }
            }
        }
        (self.listener)(&Event::Moved { content: Some(layer) });
        Ok(())
    }

    /// Fetches a layer or the rest of it, and applies it. `Some`: it came in several parts, some servers or caches get such
    /// wrong, and they are not the layer; they have been thrown away.
    fn fetch(
        &self,
        descriptor: &Descriptor,
        diff_id: DiffId,
        ingest: Ingest<'_>,
        limits: &layer::Limits,
    ) -> Result<Option<StoreError>, Report> {
        let offset = ingest.offset();
        let source = self.registry.blob(self.reference, descriptor, offset)?;
        let earlier = ingest.reader()?.take(offset);
        let mut teller = Teller::new(self.listener, Some(descriptor.digest), Some(descriptor.size));
        teller.tell(offset);
        let mut tee = Tee { earlier, source, ingest, pull: self, teller, failure: None };
        let applied = layer::apply(&mut tee, Some(diff_id), self.store, Durability::Later, limits);
        // Also after a failure: whether the bytes are the right ones tells what failed.
        let drained = match tee.failure {
            None => io::copy(&mut tee, &mut io::sink()).map(drop),
            Some(_) => Ok(()),
        };
        if let Some(report) = tee.failure {
            return Err(report);
        }
        drained.map_err(|error| Report::of(Kind::Remote, error))?;
        match tee.ingest.commit(Durability::Later) {
            Err(mismatch @ StoreError::Mismatch { .. }) if tee.source.is_resumed() => return Ok(Some(mismatch)),
            committed => committed?,
        }
        applied?;
        Ok(None)
    }
}

/// The manifest of the image for a platform, or of the locked one, and its configuration, of what a reference points to. `read` is
/// as for [`select_manifest`].
pub(crate) fn select(
    document: Document,
    wanted: &Platform,
    locked: Option<&Locked>,
    read: impl Fn(&Descriptor) -> Result<Vec<u8>, Report>,
) -> Result<(Manifest, ImageConfig), Report> {
    let manifest = match locked {
        Some(Locked { index, manifest, .. }) => {
            find_manifest(document, manifest, &read).map_err(why_none)?.ok_or_else(|| {
                let index = index.map(|index| format!(" in the index {index}")).unwrap_or_default();
                Report::new(Kind::Conflict, format!("there is no manifest {manifest}{index}, as the lock says"))
            })?
        }
        None => select_manifest(document, wanted, &read).map_err(why_none)?,
    };
    manifest.require_image()?;
    let raw = read(&manifest.config)?;
    let config = ImageConfig::read_for(&manifest, raw)?;
    Ok((manifest, config))
}

/// A layer's stream on its way to `apply`, written to the store as it passes.
struct Tee<'a> {
    /// What an earlier pull left.
    earlier: io::Take<std::fs::File>,
    source: BlobReader<'a>,
    ingest: Ingest<'a>,
    pull: &'a Pull<'a>,
    teller: Teller<'a>,
    /// The true error behind the one that the reader was given.
    failure: Option<Report>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.earlier.read(buffer)?;
        if length > 0 {
            return Ok(length);
        }
        if self.pull.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer failed"));
        }
        let read = match self.source.read(buffer) {
            Ok(0) => return Ok(0),
            Ok(length) => self.ingest.append(&buffer[..length]).map(|()| length).map_err(Report::from),
            Err(error) => Err(Report::from(registry::RegistryError::from_io(error))),
        };
        let length = read.map_err(|report| {
            let text = report.to_string();
            self.failure = Some(report);
            io::Error::other(text)
        })?;
        self.teller.tell(self.ingest.offset());
        Ok(length)
    }
}
