//! The lists of images that archives and directories begin with: Docker's `manifest.json` and `index.json` of an OCI layout
//! (image-layout.md of the image-spec).

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::document::{DOCUMENT_MAX, DocumentError, ENTRIES_MAX};
use crate::entries::{Entries, Entry};
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

/// The manifests and indexes of `index.json`; what says that it is neither is left out, and what cannot be read is counted.
pub fn layout_entries(text: &[u8]) -> Result<Entries, DocumentError> {
    let mut entries = Entries::read(text)?;
    entries.list.retain(|entry| media::is_manifest(&entry.media_type) || media::is_index(&entry.media_type));
    Ok(entries)
}

/// The name of an entry of a layout, if it has one.
pub fn name_of(entry: &Entry) -> Option<&str> {
    let annotations = entry.annotations.as_ref()?;
    let mut names = [CONTAINERD_NAME, REF_NAME].into_iter().filter_map(|key| annotations.get(key));
    names.find(|name| !name.is_empty()).map(String::as_str)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused document is a failed test")]
mod tests {
    use super::*;
    use crate::digest::Digest;

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
        let found = layout_entries(text.as_bytes()).unwrap();
        let names: Vec<_> = found.list.iter().map(name_of).collect();
        assert_eq!(names, [Some("docker.io/library/a:1"), Some("b:2"), None]);
        assert_eq!(layout_entries(b"{\"manifests\":null}").unwrap(), Entries::default());
        let traversal = layout_entries(text.replace(&digest.hex(), "../../etc/passwd").as_bytes()).unwrap();
        assert_eq!((traversal.list.len(), traversal.unreadable), (0, 4));
    }
}
