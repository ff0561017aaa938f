//! Whether an image may be brought in: the policy that is in force, and the signatures that it wants.
//!
//! A pull asks twice: before the registry is asked for anything (what is refused in any case is not looked for), and, when
//! the digests are known, before any layer is fetched. Nothing is kept of the answer: each pull asks again, and images that are here are run
//! as they are.

use std::fs;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::errno::Errno;
use oci::{Descriptor, Digest, Document, Entry, Reference};
use registry::{Registry, RegistryError};
use trust::signature::{self, BUNDLE, SIGNATURE_MAX, SIGNATURES_MAX, SIMPLE_SIGNING};
use trust::{Chosen, Identity, KeySource, Policy, PublicKey, Requirement, Signature, SignatureError};

use crate::Engine;
use crate::file::{self, failed};

/// Where the policy is.
#[derive(Clone, Debug, Default)]
pub struct PolicyPlaces {
    /// The file that was named, and so must exist.
    pub named: Option<PathBuf>,
    /// Else the first of these that exists. Without any, every image is accepted.
    pub usual: Vec<PathBuf>,
}

/// The file of the policy that is in force; `None` when every image is accepted.
pub fn policy_file(engine: &Engine) -> Option<&Path> {
    let places = &engine.options().policy;
    // A file that cannot be looked at is in force too: reading it is an error.
    let there = |path: &&PathBuf| path.try_exists().unwrap_or(true);
    places.named.as_ref().or_else(|| places.usual.iter().find(there)).map(PathBuf::as_path)
}

/// A policy and its file.
pub(crate) struct InForce {
    file: PathBuf,
    policy: Policy,
}

/// The signatures that an image must have; none where it is accepted as it is.
pub(crate) struct Wanted<'a> {
    reference: &'a Reference,
    requirements: Vec<WantedSignature>,
}

/// A requirement with its keys.
struct WantedSignature {
    keys: Vec<PublicKey>,
    identity: Identity,
    /// What failed, where it is not met.
    steps: [String; 2],
}

/// A signature and where it was found.
struct Found {
    place: String,
    signature: Result<Signature, SignatureError>,
}

/// The policy that is in force.
pub(crate) fn in_force(engine: &Engine) -> Result<Option<InForce>, Report> {
    let Some(file) = policy_file(engine) else { return Ok(None) };
    let policy = Policy::parse(&read(file)?).step(|| format!("reading the policy {}", file.display()))?;
    Ok(Some(InForce { file: file.to_owned(), policy }))
}

/// Refuses an image in a file or a stream that the policy does not allow; signatures are not looked for there.
pub(crate) fn permit_file(
    engine: &Engine,
    transport: &str,
    path: Option<&Path>,
    names: &[String],
) -> Result<(), Report> {
    let Some(in_force) = in_force(engine)? else { return Ok(()) };
    // It has been opened: what has no path then is a pipe.
    let path = path.and_then(|path| fs::canonicalize(path).ok());
    let shown = path.as_ref().map_or_else(|| "the image".to_owned(), |path| format!("{transport}:{}", path.display()));
    let mut names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    if names.is_empty() {
        names.push(None);
    }
    for name in names {
        let chosen = in_force.policy.for_file(transport, path.as_deref(), name);
        if let Some(wanted) = in_force.wanted(&chosen, &shown)?.into_iter().next() {
            let report = Report::new(Kind::Denied, "signatures of images in files are not looked for");
            let hint = format!("pull it from a registry, or accept it in transports.{transport}");
            return Err(wanted.refuse(report.with_hint(hint)));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Report> {
    file::read(path)?.ok_or_else(|| failed("reading", path, Errno::ENOENT.into()))
}

impl InForce {
    /// What is wanted of an image on a registry; an error where no image is allowed by this name.
    pub fn before<'a>(&self, reference: &'a Reference) -> Result<Wanted<'a>, Report> {
        let chosen = self.policy.for_reference(reference);
        Ok(Wanted { reference, requirements: self.wanted(&chosen, &reference.to_string())? })
    }

    fn wanted(&self, chosen: &Chosen<'_>, image: &str) -> Result<Vec<WantedSignature>, Report> {
        let mut signatures = Vec::new();
        for requirement in chosen.requirements {
            let steps = |what: &str| {
                let file = self.file.display();
                [format!("{what}, by {}", chosen.scope), format!("{image} is not allowed by the policy {file}")]
            };
            let refuse = |what: &str, kind: Kind, why: &str, hint: &str| {
                let [inner, outer] = steps(what);
                Err(Report::new(kind, why).with_hint(hint).with_step(inner).with_step(outer))
            };
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => {
                    let hint = format!("give it a scope of its own in {}, if it is to be trusted", self.file.display());
                    return refuse("reject", Kind::Denied, "no image is allowed there", &hint);
                }
                Requirement::Unsupported { what } => {
                    let hint = "use sigstoreSigned with a key (keyPath) for this scope";
                    return refuse(what, Kind::Unsupported, "this requirement cannot be checked here", hint);
                }
                Requirement::Signed(signed) => {
                    let steps = steps(&format!("sigstoreSigned for {}", signed.identity));
                    let keys = signed.keys.iter().map(key).collect::<Result<_, _>>();
                    let keys = keys.map_err(|report: Report| with_steps(report, &steps))?;
                    signatures.push(WantedSignature { keys, identity: signed.identity.clone(), steps });
                }
            }
        }
        Ok(signatures)
    }
}

fn key(source: &KeySource) -> Result<PublicKey, Report> {
    match source {
        KeySource::Path(path) => {
            PublicKey::from_pem(&read(path)?).step(|| format!("reading the key {}", path.display()))
        }
        KeySource::Data(data) => PublicKey::from_pem(data).step(|| "reading the key in the policy".to_owned()),
    }
}

fn with_steps(report: Report, [inner, outer]: &[String; 2]) -> Report {
    report.with_step(inner).with_step(outer)
}

impl WantedSignature {
    fn refuse(&self, report: Report) -> Report {
        with_steps(report, &self.steps)
    }
}

impl Wanted<'_> {
    /// Refuses the image with these digests (its manifest's, and that of an index which leads to it, if any) unless the registry
    /// has all the signatures that are wanted. No more is fetched than is needed to know.
    pub fn check(&self, registry: &Registry, digests: &[Digest]) -> Result<(), Report> {
        let mut missing: Vec<&WantedSignature> = self.requirements.iter().collect();
        let mut found = Vec::new();
        for digest in digests {
            for look in [simple, bundles] {
                if missing.is_empty() {
                    return Ok(());
                }
                let room = SIGNATURES_MAX - found.len();
                let more = look(registry, self.reference, digest, room)
                    .step(|| format!("looking for signatures of {digest}"))
                    .map_err(|report| missing[0].refuse(report))?;
                missing.retain(|wanted| !more.iter().any(|one| wanted.failure(self.reference, digests, one).is_none()));
                found.extend(more);
            }
        }
        match missing.first() {
            None => Ok(()),
            Some(wanted) => Err(wanted.refuse(wanted.why(self.reference, digests, &found))),
        }
    }
}

impl WantedSignature {
    /// Why a signature is not what is wanted; `None` where it is.
    fn failure(
        &self,
        reference: &Reference,
        digests: &[Digest],
        found: &Found,
    ) -> Option<(String, Option<&'static str>)> {
        let told = |error: &SignatureError| (format!("{}: {error}", found.place), error.hint());
        match &found.signature {
            Err(error) => Some(told(error)),
            Ok(signature) => signature.check(&self.keys, &self.identity, reference, digests).err().as_ref().map(told),
        }
    }

    /// Why none of the signatures is.
    fn why(&self, reference: &Reference, digests: &[Digest], found: &[Found]) -> Report {
        let failures: Vec<_> = found.iter().filter_map(|one| self.failure(reference, digests, one)).collect();
        if failures.is_empty() {
            return Report::new(Kind::Denied, "the image has no signature")
                .with_hint("`cosign sign --key KEY NAME@DIGEST` by whoever publishes it makes one");
        }
        let texts: Vec<&str> = failures.iter().map(|(text, _)| text.as_str()).collect();
        let report = Report::new(Kind::Denied, texts.join("; "));
        match failures.iter().find_map(|(_, hint)| *hint) {
            Some(hint) => report.with_hint(hint),
            None => report,
        }
    }
}

/// The signatures under the tag that is made of the digest.
fn simple(registry: &Registry, reference: &Reference, digest: &Digest, room: usize) -> Result<Vec<Found>, Report> {
    let at = reference.tagged(&format!("sha256-{}.sig", digest.hex()));
    let document = match registry.document(&at) {
        Ok(document) => document,
        Err(RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for layer in layers(&document, SIMPLE_SIGNING)?.into_iter().take(room) {
        let payload = content(registry, &at, &layer)?;
        found.push(Found {
            place: format!("signature {}", layer.digest),
            signature: Signature::simple(&layer, payload),
        });
    }
    Ok(found)
}

/// The bundles that refer to the digest.
fn bundles(registry: &Registry, reference: &Reference, digest: &Digest, room: usize) -> Result<Vec<Found>, Report> {
    let mut found = Vec::new();
    for referrer in registry.referrers(reference, digest, Some(BUNDLE))?.into_iter().take(room) {
        let at = reference.at(referrer.digest);
        for layer in layers(&registry.document(&at)?, BUNDLE)?.into_iter().take(room - found.len()) {
            let bundle = content(registry, &at, &layer)?;
            found.push(Found { place: format!("bundle {}", layer.digest), signature: Signature::bundle(&bundle) });
        }
    }
    Ok(found)
}

/// The layers of this kind of a manifest.
fn layers(document: &Document, media_type: &str) -> Result<Vec<Entry>, Report> {
    let layers = signature::layers(document.raw()).map_err(|error| Report::of(Kind::Remote, error))?;
    Ok(layers.into_iter().filter(|layer| layer.media_type == media_type).collect())
}

fn content(registry: &Registry, reference: &Reference, layer: &Entry) -> Result<Vec<u8>, Report> {
    if layer.size > SIGNATURE_MAX {
        let (digest, size) = (layer.digest, layer.size);
        let text = format!("signature {digest} has {size} bytes, more than the {SIGNATURE_MAX} that are read");
        return Err(Report::new(Kind::Remote, text));
    }
    let Entry { media_type, digest, size, .. } = layer.clone();
    Ok(registry.content(reference, &Descriptor { media_type, digest, size, platform: None, urls: Vec::new() })?)
}
