//! `images.lock`: writing it, holding it against registries, and pulls and runs by it.
//!
//! A locked pull asks for a digest, never for a tag, and what it brings gets the name with the tag. A locked run takes an
//! image that is here only if it is the locked one.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use oci::{Digest, Document, Platform, Reference};
use registry::{Registry, RegistryError};
use trust::{Lock, Locked};

use crate::image::policy::{self, InForce, Wanted};
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
            let platform = Some(wanted).filter(|wanted| **wanted != Platform::host());
            let update = self.update(names.first().map_or("IMAGE", String::as_str), platform);
            Report::new(Kind::NotFound, text).with_hint(update)
        })
    }

    /// Refuses another image than the locked one; `way` is how a request gets that.
    pub(crate) fn require(
        &self,
        locked: &Locked,
        found: &Digest,
        request: &PullRequest,
        way: &str,
    ) -> Result<(), Report> {
        let Locked { name, platform, manifest, .. } = locked;
        if manifest == found {
            return Ok(());
        }
        let file = self.path.display();
        let text = format!("{name} ({platform}) is not what {file} locks\n  locked: {manifest}\n  found:  {found}");
        let update = self.update(&name.to_string(), request.platform());
        Err(Report::new(Kind::Conflict, text).with_hint(format!("{way} brings the locked one; {update}")))
    }

    fn update(&self, name: &str, platform: Option<&Platform>) -> String {
        format!("`sublet lock -f {}{} {name}` locks what the registry has now", self.path.display(), option(platform))
    }

    /// What is locked, as requests.
    fn requests(&self) -> Result<Vec<PullRequest>, Report> {
        let request = |image: &Locked| PullRequest::new(&image.name.to_string(), Some(&image.platform.to_string()));
        self.lock.images().iter().map(request).collect()
    }
}

/// The option of a command for a platform.
fn option(platform: Option<&Platform>) -> String {
    platform.map(|platform| format!(" --platform {platform}")).unwrap_or_default()
}

/// Locks what these names stand for now (without any, all that is locked), and says what each was before.
pub fn lock(engine: &Engine, path: &Path, requests: &[PullRequest]) -> Result<Vec<Outcome>, Report> {
    let file = LockFile::read_if_there(path)?;
    let file = file.unwrap_or_else(|| LockFile { path: path.to_owned(), lock: Lock::default() });
    let outcomes = look_up(engine, &file, requests)?;
    let whole = std::path::absolute(path).map_err(|error| file::failed("finding", path, error))?;
    let _held = hold(whole.parent().unwrap_or(Path::new("/")))?;
    // As it is now: another command may have locked other images while the registries were asked.
    let mut lock = LockFile::read_if_there(path)?.map_or_else(Lock::default, |file| file.lock);
    for outcome in &outcomes {
        lock.set(outcome.found.clone());
    }
    file::replace(&whole, lock.text().as_bytes(), true)?;
    Ok(outcomes)
}

/// Waits until nobody else writes a file of locked images in this directory. `None` where directories have no locks, as over
/// NFS (flock(2)): there one of two commands that write in the same moment may lose.
fn hold(directory: &Path) -> Result<Option<Flock<File>>, Report> {
    let opened = File::open(directory).map_err(|error| file::failed("opening", directory, error))?;
    match Flock::lock(opened, FlockArg::LockExclusive) {
        Ok(held) => Ok(Some(held)),
        Err((_, Errno::EBADF | Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP)) => Ok(None),
        Err((_, errno)) => Err(file::failed("locking", directory, errno.into())),
    }
}

/// Holds what is locked, all of it or these names, against the registries. Changes nothing.
pub fn check(engine: &Engine, path: &Path, requests: &[PullRequest]) -> Result<Vec<Outcome>, Report> {
    look_up(engine, &LockFile::read(path)?, requests)
}

fn look_up(engine: &Engine, file: &LockFile, requests: &[PullRequest]) -> Result<Vec<Outcome>, Report> {
    let all = if requests.is_empty() { file.requests()? } else { Vec::new() };
    let (conf, policy) = (registries::conf(engine)?, policy::in_force(engine)?);
    let registry = registries::client(engine, conf.clone())?;
    let look = |request: &PullRequest| {
        let names = request.references(&conf)?;
        let found = resolve(engine, &registry, policy.as_ref(), request, &names);
        let found = found.step(|| format!("cannot lock {}", request.familiar()))?;
        let same = |image: &&Locked| image.name == found.name && image.platform == found.platform;
        let before = file.lock.images().iter().find(same).cloned();
        Ok(Outcome { found, before })
    };
    let outcomes = requests.iter().chain(&all).map(look).collect();
    registries::tell_notes(engine, &registry);
    outcomes
}

/// What a request means on its registry now: the first of its names that is there, if the policy allows it. Any other failure
/// than that a name is unknown ends the search: what is locked must not depend on who happened to answer.
fn resolve(
    engine: &Engine,
    registry: &Registry,
    policy: Option<&InForce>,
    request: &PullRequest,
    names: &[Reference],
) -> Result<Locked, Report> {
    let mut failure = None;
    for name in names {
        let signatures = policy.map(|policy| policy.before(name)).transpose()?;
        match registry.document(name) {
            Ok(document) => {
                if names.len() > 1 {
                    engine.notice(&request.is(name));
                }
                return locked(registry, name, document, request.platform(), signatures.as_ref());
            }
            Err(error @ (RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. })) => {
                let report = Report::from(error);
                if names.len() > 1 {
                    engine.notice(&request.is_not(name, &report));
                }
                failure = Some(report);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(failure.unwrap_or_else(|| Report::new(Kind::Internal, "a name that stands for nothing")))
}

/// The image for a platform, if it has the signatures that are wanted.
fn locked(
    registry: &Registry,
    name: &Reference,
    document: Document,
    platform: Option<&Platform>,
    signatures: Option<&Wanted<'_>>,
) -> Result<Locked, Report> {
    let wanted = platform.cloned().unwrap_or_else(Platform::host);
    let digest = document.digest();
    let entries = if let Document::Index(index) = &document { index.entries.clone() } else { Vec::new() };
    let (manifest, config) = select(document, &wanted, None, |descriptor| Ok(registry.content(name, descriptor)?))?;
    let index = Some(digest).filter(|digest| *digest != manifest.digest);
    if let Some(signatures) = signatures {
        signatures.check(registry, &index.into_iter().chain([manifest.digest]).collect::<Vec<_>>())?;
    }
    // What the image was chosen by: its configuration may say something else, and by that it would not be found again.
    let platform = platform.cloned().unwrap_or_else(|| {
        let chosen = entries.into_iter().filter(|entry| entry.digest == manifest.digest);
        let ranked = chosen.filter_map(|entry| Some((wanted.rank(entry.platform.as_ref()?)?, entry.platform?)));
        let of_entry = ranked.min_by_key(|(rank, _)| *rank).map(|(_, platform)| platform);
        let of_image = Some(config.platform).filter(|platform| wanted.rank(platform).is_some());
        of_entry.or(of_image).unwrap_or(wanted)
    });
    let size = manifest.raw.len() as u64;
    Ok(Locked { name: name.clone(), platform, index, manifest: manifest.digest, size })
}

/// The name that a request has in the file by which it is locked. `None` without a lock.
pub fn name(engine: &Engine, request: &PullRequest) -> Result<Option<Reference>, Report> {
    let Some(file) = request.lock() else { return Ok(None) };
    Ok(Some(find(engine, request, file)?.0))
}

fn find<'a>(engine: &Engine, request: &PullRequest, file: &'a LockFile) -> Result<(Reference, &'a Locked), Report> {
    let wanted = request.platform().cloned().unwrap_or_else(Platform::host);
    file.find(&request.references(&registries::conf(engine)?)?, &wanted)
}

/// The name by which exactly the locked image is found that a request means, once it is here; refused where another one is.
/// `None` without a lock.
pub fn pin(engine: &Engine, request: &PullRequest) -> Result<Option<String>, Report> {
    request.lock().map(|file| pin_by(engine, request, file)).transpose()
}

/// The names by which exactly the locked images are found, as [`pin`] has them, of these texts or, without any, of all that a file
/// locks for the platform.
pub fn pin_all(
    engine: &Engine,
    file: &LockFile,
    texts: &[String],
    platform: Option<&str>,
) -> Result<Vec<String>, Report> {
    let pin = |text: &str| pin_by(engine, &PullRequest::new(text, platform)?, file);
    if !texts.is_empty() {
        return texts.iter().map(|text| pin(text)).collect();
    }
    let wanted = platform.map(str::parse).transpose()?.unwrap_or_else(Platform::host);
    let names: BTreeSet<&Reference> = file
        .lock
        .images()
        .iter()
        .filter(|image| wanted.rank(&image.platform).is_some())
        .map(|image| &image.name)
        .collect();
    if names.is_empty() {
        let text = format!("{} locks nothing for {wanted}", file.path.display());
        return Err(Report::new(Kind::NotFound, text).with_hint("`sublet lock IMAGE…` locks images"));
    }
    names.into_iter().map(|name| pin(&name.to_string())).collect()
}

fn pin_by(engine: &Engine, request: &PullRequest, file: &LockFile) -> Result<String, Report> {
    let (name, locked) = find(engine, request, file)?;
    let way = format!("`sublet pull --locked={}{} {name}`", file.path.display(), option(request.platform()));
    let missing = || {
        let report = Report::new(Kind::NotFound, format!("No such image: {}", name.familiar()));
        report.with_hint(format!("{way} brings it"))
    };
    let store = open_store(engine)?.ok_or_else(missing)?;
    let record = find_record(engine, &store, &name.to_string())?.ok_or_else(missing)?;
    file.require(locked, &record.manifest, request, &way)?;
    let tag = name.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    Ok(format!("{}{tag}@{}", name.familiar_name(), locked.manifest))
}
