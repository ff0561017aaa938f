//! The entries of an index with all that they say: what lists of images and lists of referrers are made of.
//!
//! [`Index`](crate::Index) is for choosing an image to run and leaves the rest out. Here nothing is left out: an index is
//! pushed only when each of its entries is there, referrers are told apart by what an entry says of itself, and an index
//! that we write must say again what was read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::document::{DOCUMENT_MAX, DocumentError, ENTRIES_MAX};
use crate::media;

/// One entry of an index (image-spec, "OCI Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What the content is.
    pub media_type: String,
    /// The kind of artifact, for manifests that are no images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The digest of the content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<EntryPlatform>,
    /// Whatever its maker wanted to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The platform of an entry in the words of its maker, which are kept; [`Platform`](crate::Platform) is its normal form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryPlatform {
    /// `amd64`, …
    pub architecture: String,
    /// `linux`, …
    pub os: String,
    /// The version of the operating system (Windows).
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// What the operating system must have (Windows).
    #[serde(rename = "os.features", default, skip_serializing_if = "Option::is_none")]
    pub os_features: Option<Vec<String>>,
    /// `v7`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl EntryPlatform {
    /// What an image's configuration says that it runs on.
    pub fn of(config: &ImageConfig) -> Self {
        EntryPlatform {
            architecture: config.spec.architecture().to_string(),
            os: config.spec.os().to_string(),
            os_version: config.spec.os_version().clone(),
            os_features: config.spec.os_features().clone().filter(|features| !features.is_empty()),
            variant: config.spec.variant().clone().filter(|variant| !variant.is_empty()),
        }
    }
}

/// The entries of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Those that can be read, in their order.
    pub list: Vec<Entry>,
    /// How many cannot, such as one with a digest of another algorithm than ours.
    pub unreadable: usize,
}

impl Entries {
    /// Reads an index.
    pub fn read(raw: &[u8]) -> Result<Self, DocumentError> {
        let mut entries = Entries::default();
        for value in members(raw)?.remove("manifests").map(list_of).transpose()?.unwrap_or_default() {
            match serde_json::from_value(value) {
                Ok(entry) => entries.list.push(entry),
                Err(_) => entries.unreadable += 1,
            }
        }
        Ok(entries)
    }
}

fn members(raw: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    if raw.len() as u64 > DOCUMENT_MAX {
        return Err(DocumentError::TooLarge { size_bytes: raw.len() as u64 });
    }
    serde_json::from_slice(raw).map_err(|cause| DocumentError::Json { cause })
}

/// The members of what says that it is an index, or has what makes one.
fn index_members(raw: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    let members = members(raw)?;
    let media_type = members.get("mediaType").and_then(Value::as_str);
    if media_type.map_or_else(|| members.contains_key("manifests"), media::is_index) {
        return Ok(members);
    }
    Err(DocumentError::Unknown { media_type: media_type.map(str::to_owned) })
}

fn list_of(value: Value) -> Result<Vec<Value>, DocumentError> {
    // Go writes an empty list as null.
    let list: Option<Vec<Value>> = serde_json::from_value(value).map_err(|cause| DocumentError::Json { cause })?;
    let list = list.unwrap_or_default();
    if list.len() > ENTRIES_MAX {
        return Err(DocumentError::TooMany { what: "entries", count: list.len(), max: ENTRIES_MAX });
    }
    Ok(list)
}

/// Writes an index of this media type.
pub fn write(media_type: &str, entries: &[Entry]) -> Vec<u8> {
    /// The members in the order in which other tools write them.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Written<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: &'a [Entry],
    }
    let written = Written { schema_version: 2, media_type, manifests: entries };
    // Strings, numbers and lists always are JSON.
    serde_json::to_vec(&written).unwrap_or_default()
}

/// The index of referrers with one more entry; `None` if it has that already. `raw` is the index that is there, if any;
/// what else it says stays.
pub fn with_referrer(raw: Option<&[u8]>, entry: &Entry) -> Result<Option<Vec<u8>>, DocumentError> {
    let mut index = match raw {
        Some(raw) => index_members(raw)?,
        None => Map::new(),
    };
    let mut list = index.remove("manifests").map(list_of).transpose()?.unwrap_or_default();
    let digest = entry.digest.to_string();
    if list.iter().any(|old| old.get("digest").and_then(Value::as_str) == Some(&digest)) {
        return Ok(None);
    }
    if list.len() >= ENTRIES_MAX {
        // What cannot be read again must not be written.
        return Err(DocumentError::TooMany { what: "entries", count: list.len() + 1, max: ENTRIES_MAX });
    }
    list.push(serde_json::to_value(entry).map_err(|cause| DocumentError::Json { cause })?);
    index.insert("schemaVersion".to_owned(), json!(2));
    index.entry("mediaType").or_insert_with(|| json!(media::OCI_INDEX));
    index.insert("manifests".to_owned(), Value::Array(list));
    serde_json::to_vec(&index).map(Some).map_err(|cause| DocumentError::Json { cause })
}

/// What a manifest or index refers to by its member `subject`, and the entry by which it is listed there.
pub fn referrer(raw: &[u8], media_type: &str) -> Result<Option<(Digest, Entry)>, DocumentError> {
    let document = members(raw)?;
    let Some(subject) = document.get("subject").filter(|subject| !subject.is_null()) else { return Ok(None) };
    let digest = subject.get("digest").and_then(Value::as_str).unwrap_or_default();
    let subject = digest.parse().map_err(|cause| DocumentError::Digest { cause })?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    // The specification: that of its configuration, where a manifest does not say itself.
    let config_type = || text(document.get("config").and_then(|config| config.get("mediaType")));
    let annotations = document.get("annotations").filter(|annotations| !annotations.is_null()).cloned();
    let entry = Entry {
        media_type: media_type.to_owned(),
        artifact_type: text(document.get("artifactType")).or_else(config_type),
        digest: Digest::of(raw),
        size: raw.len() as u64,
        platform: None,
        annotations: annotations
            .map(serde_json::from_value)
            .transpose()
            .map_err(|cause| DocumentError::Json { cause })?,
    };
    Ok(Some((subject, entry)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    fn entry(content: &[u8]) -> Entry {
        Entry {
            media_type: media::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            digest: Digest::of(content),
            size: content.len() as u64,
            platform: Some(EntryPlatform {
                architecture: "arm".to_owned(),
                os: "linux".to_owned(),
                variant: Some("v7".to_owned()),
                ..EntryPlatform::default()
            }),
            annotations: None,
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let list = vec![entry(b"a"), Entry { platform: None, ..entry(b"b") }];
        let raw = write(media::OCI_INDEX, &list);
        assert_eq!(Entries::read(&raw).unwrap(), Entries { list, unreadable: 0 });
        let text = String::from_utf8(raw).unwrap();
        let head =
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType""#;
        assert!(text.starts_with(head), "{text}");
        assert!(text.contains(r#""platform":{"architecture":"arm","os":"linux","variant":"v7"}"#), "{text}");
    }

    #[test]
    fn entries_that_are_no_images_are_there_and_unreadable_ones_are_counted() {
        let hex = Digest::of(b"a").hex();
        let text = format!(
            r#"{{"manifests":[
            {{"mediaType":"x","digest":"sha256:{hex}","size":1,"artifactType":"a/b","annotations":{{"k":"v"}},"new":1}},
            {{"mediaType":"x","digest":"sha512:{hex}{hex}","size":1}},{{"mediaType":"x","digest":"sha256:{hex}","size":-1}}, 7]}}"#
        );
        let entries = Entries::read(text.as_bytes()).unwrap();
        assert_eq!((entries.list.len(), entries.unreadable), (1, 3));
        assert_eq!(entries.list[0].artifact_type.as_deref(), Some("a/b"));
        assert_eq!(Entries::read(br#"{"manifests":null}"#).unwrap(), Entries::default());
        for bad in [&b"[]"[..], b"{", br#"{"manifests":{}}"#] {
            assert!(Entries::read(bad).is_err());
        }
        let many = format!(r#"{{"manifests":[{}0]}}"#, "0,".repeat(ENTRIES_MAX));
        assert!(matches!(Entries::read(many.as_bytes()), Err(DocumentError::TooMany { .. })));
    }

    #[test]
    fn a_referrer_is_listed_once_and_what_was_there_stays() {
        let subject = Digest::of(b"subject");
        let raw = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a/config"}},"subject":{{"digest":"{subject}"}},"annotations":{{"a":"b"}}}}"#
        );
        let (found, entry) = referrer(raw.as_bytes(), media::OCI_MANIFEST).unwrap().unwrap();
        assert_eq!((found, entry.artifact_type.as_deref()), (subject, Some("a/config")));
        assert_eq!(entry.annotations.as_ref().unwrap()["a"], "b");
        let first = with_referrer(None, &entry).unwrap().unwrap();
        assert_eq!(with_referrer(Some(&first), &entry).unwrap(), None);
        let old = br#"{"schemaVersion":2,"annotations":{"x":"y"},"manifests":[{"digest":"sha512:00","new":1}]}"#;
        let both: Value = serde_json::from_slice(&with_referrer(Some(old), &entry).unwrap().unwrap()).unwrap();
        assert_eq!(both["annotations"]["x"], "y");
        assert_eq!((both["manifests"][0]["new"].as_i64(), both["manifests"].as_array().unwrap().len()), (Some(1), 2));
        assert_eq!(referrer(b"{}", media::OCI_MANIFEST).unwrap(), None);
        for other in [format!(r#"{{"mediaType":"{}"}}"#, media::OCI_MANIFEST), "{}".to_owned()] {
            assert!(with_referrer(Some(other.as_bytes()), &entry).is_err(), "{other}");
        }
        let full = format!(r#"{{"manifests":[{}0]}}"#, "0,".repeat(ENTRIES_MAX - 1));
        assert!(matches!(with_referrer(Some(full.as_bytes()), &entry), Err(DocumentError::TooMany { .. })));
        assert!(referrer(br#"{"subject":{"digest":"x"}}"#, media::OCI_MANIFEST).is_err());
    }
}
