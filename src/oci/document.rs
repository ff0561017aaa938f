//! Manifests and indexes as a registry hands them out: raw bytes with their digest, and what they say.
//!
//! A document says in `mediaType` what it is, or the server does, or its members show it; where these disagree, or a
//! document has the members of both kinds, it is refused: two engines that read the same bytes differently is how
//! signed content gets swapped (the distribution project's advisory on type confusion, CVE-2021-41190).

use oci_spec::image as spec;
use serde::de::DeserializeOwned;
use serde_json::Value;

use base::{Explain, Kind};

use crate::digest::{Digest, DigestError};
use crate::media;
use crate::platform::Platform;

/// The largest document that is read, in bytes; the limit that registries and engines agree on.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// The most layers an image may have. Peers stop at 127 for the sake of their kernel mounts; ours costs memory only.
pub const LAYERS_MAX: usize = 1024;
/// The most entries of an index.
pub const ENTRIES_MAX: usize = 4096;

/// A pointer to content: what it is, its digest and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What the content is said to be, without parameters.
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// Its size in bytes: a hard limit when reading.
    pub size: u64,
    /// For entries of an index: what the image runs on.
    pub platform: Option<Platform>,
    /// Further places to get it from (foreign layers).
    pub urls: Vec<String>,
}

/// What a tag or a digest points to.
#[derive(Clone, Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms.
    Index(Index),
}

/// The manifest of one image.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The bytes the digest is of; stored and pushed as they are.
    pub raw: Vec<u8>,
    /// The digest of `raw`.
    pub digest: Digest,
    /// One of the two names of a manifest.
    pub media_type: String,
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// An index, or Docker's list.
#[derive(Clone, Debug)]
pub struct Index {
    /// The bytes the digest is of; stored and pushed as they are.
    pub raw: Vec<u8>,
    /// The digest of `raw`.
    pub digest: Digest,
    /// One of the two names of an index.
    pub media_type: String,
    /// The entries that may be images, in order; attestations and artifacts are left out.
    pub entries: Vec<Descriptor>,
}

impl Document {
    /// Reads a document. `content_type` is what its source says it is: a server's header or a descriptor.
    pub fn read(raw: Vec<u8>, content_type: Option<&str>) -> Result<Self, DocumentError> {
        if raw.len() as u64 > DOCUMENT_MAX {
            return Err(DocumentError::TooLarge { size_bytes: raw.len() as u64 });
        }
        let digest = Digest::of(&raw);
        let json: Value = serde_json::from_slice(&raw).map_err(|cause| DocumentError::Json { cause })?;
        let media_type = media_type_of(&json, content_type)?;
        if media::is_index(&media_type) {
            let index: spec::ImageIndex = convert(json)?;
            let entries = index.manifests();
            limit("entries", entries.len(), ENTRIES_MAX)?;
            let entries: Result<_, _> = entries.iter().filter(|entry| may_be_image(entry)).map(descriptor).collect();
            Ok(Document::Index(Index { raw, digest, media_type, entries: entries? }))
        } else {
            let manifest: spec::ImageManifest = convert(json)?;
            limit("layers", manifest.layers().len(), LAYERS_MAX)?;
            let layers: Result<_, _> = manifest.layers().iter().map(descriptor).collect();
            let config = descriptor(manifest.config())?;
            Ok(Document::Manifest(Manifest { raw, digest, media_type, config, layers: layers? }))
        }
    }

    /// The digest of the raw bytes.
    pub fn digest(&self) -> Digest {
        match self {
            Document::Manifest(manifest) => manifest.digest,
            Document::Index(index) => index.digest,
        }
    }

    /// The raw bytes.
    pub fn raw(&self) -> &[u8] {
        match self {
            Document::Manifest(manifest) => &manifest.raw,
            Document::Index(index) => &index.raw,
        }
    }

    /// What the document is.
    pub fn media_type(&self) -> &str {
        match self {
            Document::Manifest(manifest) => &manifest.media_type,
            Document::Index(index) => &index.media_type,
        }
    }
}

impl Manifest {
    /// Refuses what is not an image that can be unpacked and run: artifacts and encrypted layers.
    pub fn require_image(&self) -> Result<(), DocumentError> {
        if !media::is_image_config(&self.config.media_type) {
            return Err(DocumentError::Artifact { media_type: self.config.media_type.clone() });
        }
        match self.layers.iter().find(|layer| media::is_encrypted(&layer.media_type)) {
            Some(layer) => Err(DocumentError::Encrypted { media_type: layer.media_type.clone() }),
            None => Ok(()),
        }
    }
}

/// What a document is, by its own word, its source's, or its members, in that order.
fn media_type_of(json: &Value, content_type: Option<&str>) -> Result<String, DocumentError> {
    let object = json.as_object().ok_or(DocumentError::Unknown { media_type: None })?;
    let has = |member: &str| object.get(member).is_some_and(|value| !value.is_null());
    let is_index = has("manifests");
    if is_index && (has("layers") || has("config")) {
        return Err(DocumentError::Ambiguous);
    }
    let own = object.get("mediaType").and_then(Value::as_str).filter(|word| !word.is_empty());
    // A server's `application/json` or `text/plain` says nothing.
    let known = |word: &&str| media::is_index(word) || media::is_manifest(word) || media::is_schema1(word);
    let given = content_type.map(media::essence).filter(known);
    if own.is_none() && has("fsLayers") || own.or(given).is_some_and(media::is_schema1) {
        return Err(DocumentError::Schema1);
    }
    let sniffed = if is_index { media::OCI_INDEX } else { media::OCI_MANIFEST };
    let media_type = own.or(given).unwrap_or(sniffed);
    if !known(&media_type) {
        return Err(DocumentError::Unknown { media_type: Some(media_type.to_owned()) });
    }
    let disagrees = own.is_some() && given.is_some_and(|given| media::is_index(given) != media::is_index(media_type));
    if disagrees || media::is_index(media_type) != is_index {
        return Err(DocumentError::Ambiguous);
    }
    Ok(media_type.to_owned())
}

/// Attestations and artifacts stand among the images of an index without being any.
fn may_be_image(entry: &spec::Descriptor) -> bool {
    let media_type = entry.media_type().as_ref();
    let attestation = entry
        .annotations()
        .as_ref()
        .and_then(|annotations| annotations.get("vnd.docker.reference.type"))
        .is_some_and(|kind| kind == "attestation-manifest");
    let unknown = entry.platform().as_ref().is_some_and(|platform| Platform::from(platform).is_unknown());
    (media::is_index(media_type) || media::is_manifest(media_type))
        && !attestation
        && !unknown
        && entry.artifact_type().is_none()
}

fn descriptor(from: &spec::Descriptor) -> Result<Descriptor, DocumentError> {
    let digest = from.digest().as_ref().parse().map_err(|cause| DocumentError::Digest { cause })?;
    Ok(Descriptor {
        media_type: media::essence(from.media_type().as_ref()).to_owned(),
        digest,
        size: from.size(),
        platform: from.platform().as_ref().map(Platform::from),
        urls: from.urls().clone().unwrap_or_default(),
    })
}

fn limit(what: &'static str, count: usize, max: usize) -> Result<(), DocumentError> {
    if count > max { Err(DocumentError::TooMany { what, count, max }) } else { Ok(()) }
}

/// Reads a typed document out of JSON in which an empty list may be `null` (Go writes a nil slice so).
pub(crate) fn convert<T: DeserializeOwned>(mut json: Value) -> Result<T, DocumentError> {
    fn empty(object: &mut Value, member: &str) {
        if let Some(value) = object.get_mut(member)
            && value.is_null()
        {
            *value = Value::Array(Vec::new());
        }
    }
    for member in ["layers", "manifests"] {
        empty(&mut json, member);
    }
    if let Some(rootfs) = json.get_mut("rootfs") {
        empty(rootfs, "diff_ids");
    }
    serde_json::from_value(json).map_err(|cause| DocumentError::Json { cause })
}

/// A document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than [`DOCUMENT_MAX`].
    #[error("the document has {size_bytes} bytes, more than the {DOCUMENT_MAX} that are read")]
    TooLarge {
        /// Its length.
        size_bytes: u64,
    },
    /// More layers or entries than are taken.
    #[error("the document has {count} {what}, more than the {max} that are taken")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Not JSON, or not of the right shape.
    #[error("the document is malformed")]
    Json {
        /// Where and why.
        #[source]
        cause: serde_json::Error,
    },
    /// A digest in it is malformed or of an algorithm other than sha256.
    #[error("the document names content that cannot be checked")]
    Digest {
        /// What is wrong.
        #[source]
        cause: DigestError,
    },
    /// Two of its words disagree about what it is.
    #[error(
        "the document is ambiguous: its media type and its members do not agree on whether it is a manifest or an index"
    )]
    Ambiguous,
    /// Neither a manifest nor an index.
    #[error("unsupported media type {}", media_type.as_deref().unwrap_or("(none)"))]
    Unknown {
        /// What it says it is.
        media_type: Option<String>,
    },
    /// Docker's manifests of before 2016.
    #[error("Docker image manifest version 1 is not supported")]
    Schema1,
    /// A manifest of something other than an image.
    #[error("unsupported media type {media_type}: this is an artifact, not an image")]
    Artifact {
        /// The type of its configuration.
        media_type: String,
    },
    /// An image whose layers need a key.
    #[error("encrypted layers are not supported ({media_type})")]
    Encrypted {
        /// The type of the first such layer.
        media_type: String,
    },
    /// The configuration names another number of layers than the manifest.
    #[error("the manifest has {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Layers of the configuration.
        diff_ids: usize,
    },
    /// Bytes of another digest than the descriptor's.
    #[error("the content has the digest {found}, wanted {wanted}")]
    Mismatch {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
}

impl Explain for DocumentError {
    fn kind(&self) -> Kind {
        match self {
            DocumentError::Unknown { .. }
            | DocumentError::Schema1
            | DocumentError::Artifact { .. }
            | DocumentError::Encrypted { .. }
            | DocumentError::Digest { cause: DigestError::Algorithm { .. } } => Kind::Unsupported,
            _ => Kind::Remote,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            DocumentError::Schema1 => Some("push the image again with a current engine".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn manifest(config_type: &str, layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{config_type}","digest":"sha256:{HEX}","size":7}},
            "layers":[{{"mediaType":"{layer_type}","digest":"sha256:{HEX}","size":9}}]}}"#,
            media::OCI_MANIFEST
        )
    }

    fn read(text: &str, content_type: Option<&str>) -> Result<Document, DocumentError> {
        Document::read(text.as_bytes().to_vec(), content_type)
    }

    #[test]
    fn a_manifest_keeps_its_bytes_and_digest() {
        let text = manifest(media::OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip");
        let Document::Manifest(manifest) = read(&text, Some(media::OCI_MANIFEST)).unwrap() else { panic!() };
        assert_eq!(manifest.raw, text.as_bytes());
        assert_eq!(manifest.digest, Digest::of(text.as_bytes()));
        assert_eq!((manifest.config.size, manifest.layers[0].size), (7, 9));
        manifest.require_image().unwrap();
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        for (config, layer, words) in [
            (media::OCI_EMPTY, "x", "artifact"),
            ("application/vnd.cncf.helm.config.v1+json", "x", "helm"),
            (media::OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ] {
            let Document::Manifest(manifest) = read(&manifest(config, layer), None).unwrap() else { panic!() };
            let error = manifest.require_image().unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.kind(), Kind::Unsupported);
        }
    }

    #[test]
    fn the_type_comes_from_the_body_then_the_source_then_the_members() {
        let bare_index = r#"{"schemaVersion":2,"manifests":null}"#;
        for (text, content_type, result) in [
            (r#"{"schemaVersion":2,"manifests":[]}"#, None, Some(media::OCI_INDEX)),
            (r#"{"schemaVersion":2,"manifests":[]}"#, Some("application/json"), Some(media::OCI_INDEX)),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                Some("application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8"),
                Some(media::DOCKER_LIST),
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
                Some(media::OCI_MANIFEST),
                None,
            ),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, None, None),
            (r#"{"schemaVersion":2,"manifests":[],"config":{}}"#, None, None),
            (r#"{"schemaVersion":2,"manifests":[]}"#, Some(media::OCI_MANIFEST), None),
            (bare_index, Some(media::OCI_MANIFEST), None),
            (r#"{"schemaVersion":2,"mediaType":"text/html"}"#, None, None),
            ("[]", None, None),
            ("", None, None),
        ] {
            let found = read(text, content_type).ok().map(|document| document.media_type().to_owned());
            assert_eq!(found.as_deref(), result, "{text} {content_type:?}");
        }
        let schema1 = r#"{"schemaVersion":1,"name":"x","fsLayers":[{"blobSum":"y"}]}"#;
        assert!(matches!(read(schema1, None), Err(DocumentError::Schema1)));
    }

    #[test]
    fn an_index_keeps_only_what_may_be_an_image() {
        let entry =
            |rest: &str| format!(r#"{{"mediaType":"{}","digest":"sha256:{HEX}","size":1{rest}}}"#, media::OCI_MANIFEST);
        let entries = [
            entry(r#","platform":{"os":"linux","architecture":"amd64"}"#),
            entry(r#","platform":{"os":"unknown","architecture":"unknown"}"#),
            entry(r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#),
            entry(r#","artifactType":"application/x""#),
            entry(""),
            // An algorithm that is not ours does not matter in an entry that is not an image.
            format!(r#"{{"mediaType":"text/plain","digest":"sha512:{HEX}{HEX}","size":1}}"#),
        ];
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let Document::Index(index) = read(&text, None).unwrap() else { panic!() };
        let platforms: Vec<_> = index.entries.iter().map(|e| e.platform.as_ref().map(ToString::to_string)).collect();
        assert_eq!(platforms, [Some("linux/amd64".to_owned()), None]);
    }

    #[test]
    fn limits_hold() {
        assert!(matches!(
            Document::read(vec![b' '; DOCUMENT_MAX as usize + 1], None),
            Err(DocumentError::TooLarge { .. })
        ));
        let layer = format!(r#"{{"mediaType":"x","digest":"sha256:{HEX}","size":1}}"#);
        let layers = vec![layer.as_str(); LAYERS_MAX + 1].join(",");
        let text = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layers}]}}"#);
        assert!(matches!(read(&text, None), Err(DocumentError::TooMany { what: "layers", .. })));
        let negative = manifest(media::OCI_CONFIG, "x").replace("\"size\":9", "\"size\":-9");
        assert!(matches!(read(&negative, None), Err(DocumentError::Json { .. })));
        let traversal = manifest(media::OCI_CONFIG, "x").replace(HEX, "../../etc/passwd");
        assert!(read(&traversal, None).is_err());
        let deep = "[".repeat(100_000);
        assert!(matches!(read(&deep, None), Err(DocumentError::Json { .. })));
    }
}
