//! Whether an image may be brought in: the policy that is in force, and the signatures that it wants.
//!
//! A pull asks twice: before the registry is asked for anything (what is refused in any case is not looked for), and, when
//! the digests are known, before any layer is fetched. Nothing is kept of the answer: each pull asks again, and images that are here are run
//! as they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::errno::Errno;
use oci::{Descriptor, Digest, Document, Entry, Reference};
use registry::{Registry, RegistryError};
use trust::signature::{self, BUNDLE, SIGNATURE_MAX, SIGNATURES_MAX, SIMPLE_SIGNING};
use trust::{Chosen, Identity, KeySource, Policy, PublicKey, Requirement, Signature, SignatureError};

use crate::Engine;
use crate::file::{self, failed};

/// The most that is told of why one signature is not what is wanted, in characters.
const REASON_MAX: usize = 200;
/// Of how many signatures that is told.
const REASONS_MAX: usize = 5;

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
    // A file that cannot be looked at, and a link that leads nowhere, are in force too: reading them is an error.
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let there = |path: &&PathBuf| !fs::symlink_metadata(path).as_ref().is_err_and(missing);
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
    signature: Result<Signature, Reason>,
}

/// Why a signature is not what is wanted.
#[derive(Clone)]
struct Reason {
    text: String,
    hint: Option<&'static str>,
}

impl Reason {
    /// The text may be of any length, as what nobody has vouched for is quoted in it.
    fn new(text: &str, hint: Option<&'static str>) -> Self {
        let end = text.char_indices().nth(REASON_MAX).map_or(text.len(), |(end, _)| end);
        let rest = if end < text.len() { "…" } else { "" };
        Reason { text: format!("{}{rest}", &text[..end]), hint }
    }
}

impl From<SignatureError> for Reason {
    fn from(error: SignatureError) -> Self {
        Reason::new(&error.to_string(), error.hint())
    }
}

/// The policy that is in force.
pub(crate) fn in_force(engine: &Engine) -> Result<Option<InForce>, Report> {
    let Some(file) = policy_file(engine) else { return Ok(None) };
    let policy = Policy::parse(&read(file)?).step(|| format!("reading the policy {}", file.display()))?;
    Ok(Some(InForce { file: file.to_owned(), policy }))
}

/// Refuses an image in a file or a stream that the policy does not allow; signatures are not looked for there. `place` is
/// where the open file lies, `None` for a pipe.
pub(crate) fn permit_file(
    engine: &Engine,
    transport: &str,
    place: Option<&Path>,
    names: &[String],
) -> Result<(), Report> {
    let Some(in_force) = in_force(engine)? else { return Ok(()) };
    let shown = place.map_or_else(|| "the image".to_owned(), |place| format!("{transport}:{}", place.display()));
    let mut names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    if names.is_empty() {
        names.push(None);
    }
    for name in names {
        let chosen = in_force.policy.for_file(transport, place, name);
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
        let (mut found, mut cut) = (Vec::new(), false);
        for digest in digests {
            let mut search = Search { registry, reference: self.reference, digest, found: Vec::new(), cut: false };
            for look in [Search::simple, Search::bundles] {
                if missing.is_empty() {
                    return Ok(());
                }
                let before = search.found.len();
                look(&mut search)
                    .step(|| format!("looking for signatures of {digest}"))
                    .map_err(|report| missing[0].refuse(report))?;
                let more = search.found[before..].iter();
                missing
                    .retain(|wanted| !more.clone().any(|one| wanted.failure(self.reference, digests, one).is_none()));
            }
            found.extend(search.found);
            cut |= search.cut;
        }
        match missing.first() {
            None => Ok(()),
            Some(wanted) => Err(wanted.refuse(wanted.why(self.reference, digests, &found, cut))),
        }
    }
}

impl WantedSignature {
    /// Why a signature is not what is wanted; `None` where it is.
    fn failure(&self, reference: &Reference, digests: &[Digest], found: &Found) -> Option<Reason> {
        match &found.signature {
            Err(reason) => Some(reason.clone()),
            Ok(signature) => signature.check(&self.keys, &self.identity, reference, digests).err().map(Reason::from),
        }
    }

    /// Why none of the signatures is; `cut`: there are more of them.
    fn why(&self, reference: &Reference, digests: &[Digest], found: &[Found], cut: bool) -> Report {
        let failure = |one| Some((one, self.failure(reference, digests, one)?));
        let failures: Vec<(&Found, Reason)> = found.iter().filter_map(failure).collect();
        if failures.is_empty() {
            return Report::new(Kind::Denied, "the image has no signature")
                .with_hint("`cosign sign --key KEY NAME@DIGEST` by whoever publishes it makes one");
        }
        let told = failures.iter().take(REASONS_MAX);
        let mut texts: Vec<String> = told.map(|(one, reason)| format!("{}: {}", one.place, reason.text)).collect();
        if failures.len() > REASONS_MAX {
            texts.push(format!("and {} more", failures.len() - REASONS_MAX));
        }
        if cut {
            texts.push(format!("{SIGNATURES_MAX} of one digest are looked at, and there are others"));
        }
        let report = Report::new(Kind::Denied, texts.join("; "));
        match failures.iter().find_map(|(_, reason)| reason.hint) {
            Some(hint) => report.with_hint(hint),
            None => report,
        }
    }
}

/// The signatures of a digest, as they are found.
struct Search<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    digest: &'a Digest,
    found: Vec<Found>,
    /// Whether there are more than are looked at.
    cut: bool,
}

impl Search<'_> {
    /// The signatures under the tag that is made of the digest.
    fn simple(&mut self) -> Result<(), Report> {
        let at = self.reference.tagged(&format!("sha256-{}.sig", self.digest.hex()));
        match self.registry.document_beside(self.reference, &at) {
            Err(RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. }) => Ok(()),
            read => self.take(&at, read, SIMPLE_SIGNING, Signature::simple),
        }
    }

    /// The bundles that refer to the digest.
    fn bundles(&mut self) -> Result<(), Report> {
        for referrer in self.registry.referrers(self.reference, self.digest, Some(BUNDLE))? {
            if self.is_full() {
                break;
            }
            let at = self.reference.at(referrer.digest);
            self.take(&at, self.registry.document(&at), BUNDLE, |_, bundle| Signature::bundle(&bundle))?;
        }
        Ok(())
    }

    /// Takes what the layers of this type of a manifest are.
    fn take(
        &mut self,
        at: &Reference,
        read: Result<Document, RegistryError>,
        media_type: &str,
        parse: fn(&Entry, Vec<u8>) -> Result<Signature, SignatureError>,
    ) -> Result<(), Report> {
        let place = format!("manifest {}", at.selector());
        let layers = own(read)?.and_then(|document| Ok(signature::layers(document.raw())?));
        let layers =
            layers.map(|all| all.into_iter().filter(|layer| layer.media_type == media_type).collect::<Vec<_>>());
        let reason = match layers {
            Ok(layers) if !layers.is_empty() => {
                for layer in layers {
                    if self.is_full() {
                        break;
                    }
                    let content = content(self.registry, at, &layer)?;
                    let signature = content.and_then(|content| Ok(parse(&layer, content)?));
                    self.found.push(Found { place: format!("signature {}", layer.digest), signature });
                }
                return Ok(());
            }
            Ok(_) => Reason::new(&format!("it has no layer of the type {media_type}"), None),
            Err(reason) => reason,
        };
        self.found.push(Found { place, signature: Err(reason) });
        Ok(())
    }

    /// Whether no more are looked at, asked where there is one more.
    fn is_full(&mut self) -> bool {
        self.cut = self.found.len() >= SIGNATURES_MAX;
        self.cut
    }
}

/// Sorts out what is wrong with one object alone: others beside it may be good. After any other failure nobody knows what
/// there is.
fn own<T>(read: Result<T, RegistryError>) -> Result<Result<T, Reason>, RegistryError> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(
            error @ (RegistryError::ManifestUnknown { .. }
            | RegistryError::NameUnknown { .. }
            | RegistryError::BlobUnknown { .. }
            | RegistryError::TooLong { .. }
            | RegistryError::Document(_)),
        ) => Ok(Err(Reason::new(&error.to_string(), None))),
        Err(error) => Err(error),
    }
}

fn content(
    registry: &Registry,
    reference: &Reference,
    layer: &Entry,
) -> Result<Result<Vec<u8>, Reason>, RegistryError> {
    if layer.size > SIGNATURE_MAX {
        let text = format!("it has {} bytes, more than the {SIGNATURE_MAX} that are read", layer.size);
        return Ok(Err(Reason::new(&text, None)));
    }
    let Entry { media_type, digest, size, .. } = layer.clone();
    own(registry.content(reference, &Descriptor { media_type, digest, size, platform: None, urls: Vec::new() }))
}
