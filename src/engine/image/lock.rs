//! `images.lock`: writing it, holding it against registries, and pulls and runs by it.
//!
//! A locked pull asks for a digest, never for a tag, and what it brings gets the name with the tag. A locked run takes an
//! image that is here only if it is the locked one.

use std::fmt;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use oci::{Digest, Platform, Reference};
use registry::{RegistriesConf, Registry};
use trust::{Lock, Locked};

use crate::image::pull::select;
use crate::image::{PullRequest, find_record, open_store};
use crate::{Engine, file, registries};

/// A file of locked images.
#[derive(Clone, Debug)]
pub struct LockFile {
    path: PathBuf,
    lock: Lock,
}

/// What a name stands for now, and what it was locked to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the registry has.
    pub found: Locked,
    /// What the file had; `None` if nothing.
    pub before: Option<Locked>,
}

impl Outcome {
    /// Whether the registry has something else than the file.
    pub fn is_change(&self) -> bool {
        self.before.as_ref() != Some(&self.found)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Locked { name, platform, .. } = &self.found;
        write!(f, "{name} ({platform})")?;
        match &self.before {
            None => write!(f, "\n  locked: nothing")?,
            // A new index may lead to the same image, and the same image may be there without its index.
            Some(before) => write!(f, "\n  locked: {}", digests(before))?,
        }
        write!(f, "\n  found:  {}", digests(&self.found))
    }
}

fn digests(image: &Locked) -> String {
    let index = image.index.map(|index| format!(" in index {index}")).unwrap_or_default();
    format!("{}{index}", image.manifest)
}

impl LockFile {
    /// The file, which must be there.
    pub fn read(path: &Path) -> Result<Self, Report> {
        LockFile::read_if_there(path)?.ok_or_else(|| {
            Report::new(Kind::NotFound, format!("there is no file of locked images {}", path.display()))
                .with_hint("`sublet lock IMAGE…` makes images.lock")
        })
    }

    fn read_if_there(path: &Path) -> Result<Option<Self>, Report> {
        let Some(text) = file::read(path)? else { return Ok(None) };
        let lock = Lock::parse(&text).step(|| format!("reading {}", path.display()))?;
        Ok(Some(LockFile { path: path.to_owned(), lock }))
    }

    /// The first of these names that is locked for the platform, and to what.
    pub(crate) fn find(&self, names: &[Reference], wanted: &Platform) -> Result<(Reference, &Locked), Report> {
        let found = names.iter().find_map(|name| Some((name.clone(), self.lock.find(name, wanted)?)));
        found.ok_or_else(|| {
            let names: Vec<String> = names.iter().map(Reference::to_string).collect();
            let text = format!("{} for {wanted} is not locked by {}", names.join(" or "), self.path.display());
            Report::new(Kind::NotFound, text).with_hint(self.update(names.first().map_or("IMAGE", String::as_str)))
        })
    }

    /// Refuses another image than the locked one.
    pub(crate) fn require(&self, locked: &Locked, found: &Digest) -> Result<(), Report> {
        let Locked { name, platform, manifest, .. } = locked;
        if manifest == found {
            return Ok(());
        }
        let file = self.path.display();
        let text = format!("{name} ({platform}) is not what {file} locks\n  locked: {manifest}\n  found:  {found}");
        let hint =
            format!("`sublet pull --locked={file} {name}` brings the locked one; {}", self.update(&name.to_string()));
        Err(Report::new(Kind::Conflict, text).with_hint(hint))
    }

    fn update(&self, name: &str) -> String {
        format!("`sublet lock -f {} {name}` locks what the registry has now", self.path.display())
    }

    /// What is locked, as requests.
    fn requests(&self) -> Result<Vec<PullRequest>, Report> {
        let request = |image: &Locked| PullRequest::new(&image.name.to_string(), Some(&image.platform.to_string()));
        self.lock.images().iter().map(request).collect()
    }
}

/// Locks what these names stand for now (without any, all that is locked), and says what each was before.
pub fn lock(engine: &Engine, path: &Path, requests: &[PullRequest]) -> Result<Vec<Outcome>, Report> {
    let file = LockFile::read_if_there(path)?;
    let file = file.unwrap_or_else(|| LockFile { path: path.to_owned(), lock: Lock::default() });
    let outcomes = look_up(engine, &file, requests)?;
    let mut lock = file.lock;
    for outcome in &outcomes {
        lock.set(outcome.found.clone());
    }
    let whole = std::path::absolute(path).map_err(|error| file::failed("finding", path, error))?;
    file::replace(&whole, lock.text().as_bytes(), true)?;
    Ok(outcomes)
}

/// Holds what is locked, all of it or these names, against the registries. Changes nothing.
pub fn check(engine: &Engine, path: &Path, requests: &[PullRequest]) -> Result<Vec<Outcome>, Report> {
    look_up(engine, &LockFile::read(path)?, requests)
}

fn look_up(engine: &Engine, file: &LockFile, requests: &[PullRequest]) -> Result<Vec<Outcome>, Report> {
    let all = if requests.is_empty() { file.requests()? } else { Vec::new() };
    let conf = registries::conf(engine)?;
    let registry = registries::client(engine, conf.clone())?;
    let look = |request: &PullRequest| {
        let found = resolve(&registry, &conf, request).step(|| format!("cannot lock {}", request.familiar()))?;
        let same = |image: &&Locked| image.name == found.name && image.platform == found.platform;
        let before = file.lock.images().iter().find(same).cloned();
        Ok(Outcome { found, before })
    };
    let outcomes = requests.iter().chain(&all).map(look).collect();
    registries::tell_notes(engine, &registry);
    outcomes
}

/// What a request means on its registry now: the first of its names that is there.
fn resolve(registry: &Registry, conf: &RegistriesConf, request: &PullRequest) -> Result<Locked, Report> {
    let wanted = request.platform().cloned().unwrap_or_else(Platform::host);
    let mut failure = None;
    for name in request.references(conf)? {
        match registry.document(&name) {
            Ok(document) => {
                let index = document.digest();
                let (manifest, config) = select(registry, &name, document, &wanted)?;
                return Ok(Locked {
                    name,
                    platform: config.platform,
                    index: Some(index).filter(|index| *index != manifest.digest),
                    manifest: manifest.digest,
                    size: manifest.raw.len() as u64,
                });
            }
            Err(error) => failure = Some(Report::from(error)),
        }
    }
    Err(failure.unwrap_or_else(|| Report::new(Kind::Internal, "a name that stands for nothing")))
}

/// The name by which exactly the locked image is found that a request means, once it is here; refused where another one is.
/// `None` without a lock.
pub fn pin(engine: &Engine, request: &PullRequest) -> Result<Option<String>, Report> {
    let Some(file) = request.lock() else { return Ok(None) };
    let names = request.references(&registries::conf(engine)?)?;
    let wanted = request.platform().cloned().unwrap_or_else(Platform::host);
    let (name, locked) = file.find(&names, &wanted)?;
    let missing = || Report::new(Kind::NotFound, format!("No such image: {}", name.familiar()));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let record = find_record(engine, &store, &name.to_string())?.ok_or_else(missing)?;
    file.require(locked, &record.manifest)?;
    let tag = name.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    Ok(Some(format!("{}{tag}@{}", name.familiar_name(), locked.manifest)))
}
