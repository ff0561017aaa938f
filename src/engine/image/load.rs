//! Images out of files: `load`, and the sources of `pull` and `run` that are no registry.
//!
//! Each layer passes through `layer::take`: its bytes become a blob as they are, its digest and diff ID are checked, and it
//! is applied. An image gets its name last, so a load that is ended leaves nothing that has one.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use layer::Limits;
use oci::document::DOCUMENT_MAX;
use oci::{DiffId, Digest, DocumentError, ImageConfig, Manifest, Platform, Reference, SelectError, select_manifest};
use store::{Durability, Lease, Store};

use crate::Engine;
use crate::events;
use crate::image::assemble::{self, Assembled};
use crate::image::make_store;
use crate::image::packed::{self, Blobs, Form, Packed};
use crate::image::policy::permit_file;
use crate::image::progress::{Event, Listener, Teller, Told};
use crate::image::source::{self, Part, Source};
use crate::system::limits;

/// An image that was brought in.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its names.
    pub names: Vec<Reference>,
    /// Its id.
    pub id: Digest,
}

/// Loads all images of a file or directory.
pub fn load_file(
    engine: &Engine,
    path: &Path,
    platform: Option<&Platform>,
    listener: Listener<'_>,
) -> Result<Vec<Loaded>, Report> {
    let store = make_store(engine)?;
    let all = || {
        let file = source::open(path)?;
        let place = source::place_of(&file)?;
        all(engine, &store, &Source::of(&store, file, path, listener)?, place.as_deref(), platform, listener)
    };
    let loaded = explained(&store, all).step(|| format!("cannot load {}", path.display()))?;
    Ok(loaded.into_iter().inspect(|one| tell(engine, one)).collect())
}

/// Loads all images of a stream.
pub fn load_stream(
    engine: &Engine,
    reader: impl Read + Send,
    platform: Option<&Platform>,
    listener: Listener<'_>,
) -> Result<Vec<Loaded>, Report> {
    let store = make_store(engine)?;
    let all = || all(engine, &store, &Source::stream(&store, reader, None, listener)?, None, platform, listener);
    let loaded = explained(&store, all).step(|| "cannot load the archive".to_owned())?;
    Ok(loaded.into_iter().inspect(|one| tell(engine, one)).collect())
}

/// Tells that an image was brought in.
fn tell(engine: &Engine, loaded: &Loaded) {
    let id = loaded.id.to_string();
    let name = loaded.names.first().map_or_else(|| id.clone(), Reference::familiar);
    events::of_image(engine, &id, "load", &name);
}

/// Tells of a failure what the store has left, where that is next to nothing.
fn explained<T>(store: &Store, work: impl FnOnce() -> Result<T, Report>) -> Result<T, Report> {
    work().map_err(|report| limits::explain(store.root().path(), report))
}

/// A place outside of registries that one image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// `docker-archive`, `oci`, `oci-archive` or `dir`.
    pub transport: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Which image in it, where there are several.
    pub image: Option<String>,
}

impl FileSource {
    /// What a text says, if it names such a place. `oci:x` and `dir:1.0` are names of images on a registry, so the rest must
    /// begin like a path: with `/`, `./`, `../` or `~/`.
    pub fn parse(text: &str, home: Option<&Path>) -> Option<FileSource> {
        let (word, rest) = text.split_once(':')?;
        let transport = ["docker-archive", "oci", "oci-archive", "dir"].into_iter().find(|known| *known == word)?;
        let is_path =
            ["/", "./", "../", "~/"].iter().any(|begin| rest.starts_with(begin)) || rest == "." || rest == "..";
        if !is_path {
            return None;
        }
        // A path in these transports has no colon; `dir:` has no second part.
        let (path, image) = match rest.split_once(':') {
            Some((path, image)) if transport != "dir" => {
                (path, Some(image.to_owned()).filter(|image| !image.is_empty()))
            }
            _ => (rest, None),
        };
        let path = match (path.strip_prefix("~/"), home) {
            (Some(below), Some(home)) => home.join(below),
            _ => PathBuf::from(path),
        };
        Some(FileSource { transport, path, image })
    }
}

/// Brings the one image that a source means.
pub fn load_one(
    engine: &Engine,
    from: &FileSource,
    platform: Option<&Platform>,
    listener: Listener<'_>,
) -> Result<Loaded, Report> {
    let store = make_store(engine)?;
    let loaded = explained(&store, || the_one(engine, &store, from, platform, listener))
        .step(|| format!("cannot load {}:{}", from.transport, from.path.display()))?;
    tell(engine, &loaded);
    Ok(loaded)
}

fn the_one(
    engine: &Engine,
    store: &Store,
    from: &FileSource,
    platform: Option<&Platform>,
    listener: Listener<'_>,
) -> Result<Loaded, Report> {
    let file = source::open(&from.path)?;
    let place = source::place_of(&file)?;
    let source = Source::of(store, file, &from.path, listener)?;
    let mut images = packed::images(&source)?;
    if let Some(wanted) = &from.image {
        images.retain(|image| image.is_called(wanted));
    }
    let [image] = &images[..] else {
        let count = images.len();
        let (kind, text) = match &from.image {
            Some(wanted) if count == 0 => (Kind::NotFound, format!("it has no image {wanted}")),
            _ => (Kind::Usage, format!("it has {count} images where one is meant")),
        };
        let hint = format!("{}:PATH:NAME names one", from.transport);
        return Err(Report::new(kind, text).with_hint(hint));
    };
    permit_file(engine, from.transport, place.as_deref(), &image.names)?;
    let loaded = Loading::new(engine, store, &source, platform, listener)?.one(image)?;
    loaded.ok_or_else(|| Report::new(Kind::Unsupported, "there is no image in it"))
}

fn all(
    engine: &Engine,
    store: &Store,
    source: &Source,
    place: Option<&Path>,
    platform: Option<&Platform>,
    listener: Listener<'_>,
) -> Result<Vec<Loaded>, Report> {
    let images = packed::images(source)?;
    // All or none of them.
    images.iter().try_for_each(|image| permit(engine, source, place, image))?;
    let mut loading = Loading::new(engine, store, source, platform, listener)?;
    let loaded = images.iter().filter_map(|image| loading.one(image).transpose());
    let loaded = loaded.collect::<Result<Vec<_>, _>>()?;
    if loaded.is_empty() { Err(Report::new(Kind::Unsupported, "there is no image in it")) } else { Ok(loaded) }
}

/// Refuses an image that the policy does not allow, by the transport that its form is where the user names none.
fn permit(engine: &Engine, source: &Source, place: Option<&Path>, image: &Packed) -> Result<(), Report> {
    let transport = match (&image.form, source) {
        (Form::Docker { .. }, _) => "docker-archive",
        (Form::Document(_), _) => "dir",
        (Form::Listed(_), Source::Directory(_)) => "oci",
        (Form::Listed(_), Source::Archive(..)) => "oci-archive",
    };
    permit_file(engine, transport, place, &image.names)
}

/// A load at work.
struct Loading<'a> {
    engine: &'a Engine,
    store: &'a Store,
    source: &'a Source,
    platform: Option<&'a Platform>,
    listener: Listener<'a>,
    /// The layers of Docker archives that were taken, by path and diff ID: their blobs' digests stand nowhere, and thousands
    /// of images may share one.
    taken: HashMap<(String, DiffId), layer::Created>,
    /// Keeps these for the images that are still to come.
    _lease: Lease,
}

impl<'a> Loading<'a> {
    fn new(
        engine: &'a Engine,
        store: &'a Store,
        source: &'a Source,
        platform: Option<&'a Platform>,
        listener: Listener<'a>,
    ) -> Result<Self, Report> {
        Ok(Loading { engine, store, source, platform, listener, taken: HashMap::new(), _lease: store.lease()? })
    }

    /// Brings one image in; `None` for what is no image, after a line that says so.
    fn one(&mut self, image: &Packed) -> Result<Option<Loaded>, Report> {
        let Loading { engine, store, source, .. } = *self;
        let mut lease = store.lease()?;
        let document = match &image.form {
            Form::Document(document) => (**document).clone(),
            Form::Listed(entries) => packed::document(source, entries)?,
            Form::Docker { config, layers } => {
                let assembled = self.by_paths(&mut lease, config, layers)?;
                return named(store, image, &assembled).map(Some);
            }
        };
        let wanted = self.platform.cloned().unwrap_or_else(Platform::host);
        let manifest = select_manifest(document, &wanted, |descriptor| {
            packed::blob(source, image.blobs(), &descriptor.digest, descriptor.size)
        });
        let manifest = manifest.map_err(why_none)?;
        if let Err(DocumentError::Artifact { media_type }) = manifest.require_image() {
            engine.notice(&format!("{} is left out: it is an artifact ({media_type}), not an image", image.shown()));
            return Ok(None);
        }
        let assembled = self.by_manifest(&mut lease, &manifest, image.blobs())?;
        named(store, image, &assembled).map(Some)
    }

    /// An image of Docker's archive: a manifest is made for it, of which the configuration and so the id stay as they are.
    fn by_paths(&mut self, lease: &mut Lease, config: &str, layers: &[String]) -> Result<Assembled, Report> {
        let raw = self.source.read(config, DOCUMENT_MAX)?.ok_or_else(|| missing(config))?;
        let parsed = ImageConfig::read(raw.clone()).step(|| format!("reading {config}"))?;
        if parsed.diff_ids.len() != layers.len() {
            let (layers, diff_ids) = (layers.len(), parsed.diff_ids.len());
            return Err(DocumentError::LayerCount { layers, diff_ids }.into());
        }
        // They are known by their diff IDs, since no digest is told.
        let layers: Vec<_> = layers.iter().zip(&parsed.diff_ids).collect();
        let mut contents = BTreeMap::new();
        for (path, diff_id) in &layers {
            if !self.taken.contains_key(&((*path).clone(), **diff_id)) {
                let part = self.source.part(path)?.ok_or_else(|| missing(path))?;
                contents.insert(diff_id.0, part.size());
            }
        }
        (self.listener)(&Event::Planned { contents: &Vec::from_iter(contents) });
        let made =
            layers.into_iter().map(|(path, diff_id)| self.take(path, *diff_id)).collect::<Result<Vec<_>, _>>()?;
        // Docker's manifests have no word for zstd.
        let docker = made.iter().all(|layer| layer.compression != layer::Compression::Zstd);
        let descriptors: Vec<_> = made.iter().map(|layer| assemble::descriptor(layer, docker)).collect();
        assemble::assemble(self.store, lease, raw, &descriptors, docker)
    }

    fn take(&mut self, path: &str, diff_id: DiffId) -> Result<layer::Created, Report> {
        let key = (path.to_owned(), diff_id);
        if let Some(taken) = self.taken.get(&key) {
            return Ok(*taken);
        }
        let part = self.source.part(path)?.ok_or_else(|| missing(path))?;
        let taken = self.bring(part, diff_id.0, None, diff_id).step(|| path.to_owned())?;
        self.taken.insert(key, taken);
        Ok(taken)
    }

    /// An image whose manifest is there.
    fn by_manifest(&self, lease: &mut Lease, manifest: &Manifest, blobs: Blobs) -> Result<Assembled, Report> {
        let Loading { store, source, .. } = *self;
        manifest.require_image()?;
        let raw = packed::blob(source, blobs, &manifest.config.digest, manifest.config.size)?;
        let config = ImageConfig::read_for(manifest, raw)?;
        let contents: BTreeMap<Digest, u64> = manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
        (self.listener)(&Event::Planned { contents: &Vec::from_iter(contents) });
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            if layer::claim_layer(store, *diff_id)? && store.blobs().claim(&layer.digest, layer.size)? {
                (self.listener)(&Event::Exists { content: layer.digest });
                continue;
            }
            let path = blobs.path(&layer.digest);
            let part = source.part(&path)?.ok_or_else(|| missing(&path))?;
            self.bring(part, layer.digest, Some(layer.digest), *diff_id).step(|| path.clone())?;
        }
        assemble::complete(store, lease, config, manifest)
    }

    /// Brings one layer in, known by `content` to who is told.
    fn bring(
        &self,
        part: Part,
        content: Digest,
        digest: Option<Digest>,
        diff_id: DiffId,
    ) -> Result<layer::Created, Report> {
        let size = part.size();
        let mut part = Told::new(part, Teller::new(self.listener, Some(content), Some(size)));
        let taken = layer::take(self.store, &mut part, digest, Some(diff_id), Durability::Later, &Limits::default())?;
        part.moved();
        Ok(taken)
    }
}

fn missing(path: &str) -> Report {
    Report::new(Kind::NotFound, format!("{path} is missing"))
}

/// Gives an image that is here its names.
fn named(store: &Store, image: &Packed, assembled: &Assembled) -> Result<Loaded, Report> {
    let names: Vec<Reference> = image.references().into_iter().map(Reference::or_latest).collect();
    if names.is_empty() {
        assemble::set_name(store, assembled, None)?;
    }
    for name in &names {
        assemble::set_name(store, assembled, Some(name))?;
    }
    Ok(Loaded { names, id: assembled.config.digest })
}

/// Why no manifest was found, where reading itself gives reports.
pub(crate) fn why_none(error: SelectError<Report>) -> Report {
    match error {
        SelectError::Read(report) => report,
        SelectError::NoPlatform { wanted, offered } => {
            SelectError::<DocumentError>::NoPlatform { wanted, offered }.into()
        }
        SelectError::TooDeep => SelectError::<DocumentError>::TooDeep.into(),
        SelectError::TooMany => SelectError::<DocumentError>::TooMany.into(),
        SelectError::Document(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_from_a_name() {
        let parse = |text| FileSource::parse(text, Some(Path::new("/home/me")));
        let source = |transport, path: &str, image: Option<&str>| {
            Some(FileSource { transport, path: path.into(), image: image.map(str::to_owned) })
        };
        for name in
            ["docker-archive", "busybox:1", "host:", "docker://oci:x", "oci:x", "dir:1.0", "docker.io/library/dir:1"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(parse("oci:./x"), source("oci", "./x", None));
        assert_eq!(parse("oci:/x:a/b:1"), source("oci", "/x", Some("a/b:1")));
        assert_eq!(parse("docker-archive:~/x.tar:a:1"), source("docker-archive", "/home/me/x.tar", Some("a:1")));
        assert_eq!(parse("dir:../a:b"), source("dir", "../a:b", None));
        assert_eq!(parse("oci-archive:/x:"), source("oci-archive", "/x", None));
    }
}
