//! The lists of images that archives and directories begin with: Docker's `manifest.json` and `index.json` of an OCI layout
//! (image-layout.md of the image-spec).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::document::{DOCUMENT_MAX, DocumentError, ENTRIES_MAX};
use crate::media;

/// What containerd calls an image in a layout: its whole name.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What the image-spec calls it: a tag, or a whole name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image of Docker's archive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerEntry {
    /// The path of its configuration.
    pub config: String,
    /// Its names.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub repo_tags: Vec<String>,
    /// The paths of its layers, lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<String>,
}

/// A manifest or an index in a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutEntry {
    /// Which of the two.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its name, if it has one.
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct Layout {
    manifests: Option<Vec<RawEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(from)?.unwrap_or_default())
}

fn parsed<T: DeserializeOwned>(text: &[u8]) -> Result<T, DocumentError> {
    if text.len() as u64 > DOCUMENT_MAX {
        return Err(DocumentError::TooLarge { size_bytes: text.len() as u64 });
    }
    serde_json::from_slice(text).map_err(|cause| DocumentError::Json { cause })
}

fn limited<T>(entries: Vec<T>) -> Result<Vec<T>, DocumentError> {
    let count = entries.len();
    if count > ENTRIES_MAX {
        return Err(DocumentError::TooMany { what: "images", count, max: ENTRIES_MAX });
    }
    Ok(entries)
}

/// The images of Docker's `manifest.json`; `None` when it is not a list but one manifest, as the transport `dir:` has it.
pub fn docker_entries(text: &[u8]) -> Result<Option<Vec<DockerEntry>>, DocumentError> {
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return Ok(None);
    }
    parsed(text).and_then(limited).map(Some)
}

/// The manifests and indexes of `index.json`; what is neither is left out.
pub fn layout_entries(text: &[u8]) -> Result<Vec<LayoutEntry>, DocumentError> {
    let layout: Layout = parsed(text)?;
    let entries = limited(layout.manifests.unwrap_or_default())?.into_iter();
    let known = entries.filter(|entry| media::is_manifest(&entry.media_type) || media::is_index(&entry.media_type));
    let entry = |raw: RawEntry| {
        let digest = raw.digest.parse().map_err(|cause| DocumentError::Digest { cause })?;
        let annotations = raw.annotations.unwrap_or_default();
        let mut names = [CONTAINERD_NAME, REF_NAME].into_iter().filter_map(|key| annotations.get(key));
        let name = names.find(|name| !name.is_empty()).cloned();
        Ok(LayoutEntry { media_type: raw.media_type, digest, size: raw.size, name })
    };
    known.map(entry).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused document is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn dockers_list_and_a_single_manifest_are_told_apart() {
        let list = br#" [{"Config":"c.json","RepoTags":["a:1","x/y"],"Layers":["l/layer.tar"]},{"Config":"d","RepoTags":null}]"#;
        let found = docker_entries(list).unwrap().unwrap();
        assert_eq!((found.len(), found[0].repo_tags.len(), found[1].layers.len()), (2, 2, 0));
        assert_eq!(docker_entries(b"{}").unwrap(), None);
        for text in [&b"[1]"[..], b"[{}]", b"[{\"Config\":1}]", b"["] {
            assert!(docker_entries(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_layouts_entries_have_names() {
        let digest = Digest::of(b"x");
        let entry =
            |media: &str, rest: &str| format!(r#"{{"mediaType":"{media}","digest":"{digest}","size":1{rest}}}"#);
        let both = format!(r#","annotations":{{"{REF_NAME}":"1","{CONTAINERD_NAME}":"docker.io/library/a:1"}}"#);
        let one = format!(r#","annotations":{{"{REF_NAME}":"b:2"}}"#);
        let entries = [
            entry(media::OCI_MANIFEST, &both),
            entry(media::DOCKER_LIST, &one),
            entry(media::OCI_INDEX, r#","annotations":null"#),
            entry("text/plain", ""),
        ];
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let names: Vec<_> = layout_entries(text.as_bytes()).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, [Some("docker.io/library/a:1".to_owned()), Some("b:2".to_owned()), None]);
        assert!(layout_entries(b"{\"manifests\":null}").unwrap().is_empty());
        assert!(layout_entries(entry(media::OCI_INDEX, "").replace("sha256", "../..").as_bytes()).unwrap().is_empty());
        let traversal = text.replace(&digest.hex(), "../../etc/passwd");
        assert!(layout_entries(traversal.as_bytes()).is_err());
    }
}
