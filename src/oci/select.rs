//! From what a tag points to, to the one manifest that suits a platform.
//!
//! Indexes may nest, and their entries need not say what they run on. So the choice is a search: entries with a
//! fitting platform first (best first), then nested indexes that say nothing, and only if none of these fits, entries
//! without a platform, by reading their configurations. The content comes from a callback, so that this stays pure.

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::document::{Descriptor, Document, DocumentError, Index, Manifest};
use crate::media;
use crate::platform::Platform;

use base::{Explain, Kind};

/// How deep indexes may nest; the outermost is the first.
pub const DEPTH_MAX: usize = 4;
/// How many documents one search may read: a bound on what a hostile index can make us fetch.
pub const READS_MAX: usize = 32;

/// Finds the manifest for a platform.
///
/// A tag that points to a single manifest gives that one, whatever it runs on: the caller compares the platform of
/// its configuration and warns. `read` must return the bytes of a manifest, an index or a configuration; they are
/// checked against the descriptor's digest here.
pub fn select_manifest<E>(
    document: Document,
    wanted: &Platform,
    mut read: impl FnMut(&Descriptor) -> Result<Vec<u8>, E>,
) -> Result<Manifest, SelectError<E>> {
    let index = match document {
        Document::Manifest(manifest) => return Ok(manifest),
        Document::Index(index) => index,
    };
    let reading = Reading { read: &mut read, reads_left: READS_MAX };
    let mut search = Search { wanted, reading, offered: Vec::new() };
    match search.labelled(&index, 1)? {
        Some(manifest) => Ok(manifest),
        None => match search.unlabelled(&index)? {
            Some(manifest) => Ok(manifest),
            None => Err(SelectError::NoPlatform { wanted: wanted.clone(), offered: search.offered }),
        },
    }
}

/// Finds the manifest with this digest, whatever it runs on: the document itself, or what an index leads to. `read` is as for
/// [`select_manifest`].
pub fn find_manifest<E>(
    document: Document,
    digest: &Digest,
    mut read: impl FnMut(&Descriptor) -> Result<Vec<u8>, E>,
) -> Result<Option<Manifest>, SelectError<E>> {
    let mut reading = Reading { read: &mut read, reads_left: READS_MAX };
    match document {
        Document::Manifest(manifest) => Ok(Some(manifest).filter(|manifest| manifest.digest == *digest)),
        Document::Index(index) => reading.by_digest(&index, digest, 1),
    }
}

/// Reads documents, checked, and not too many.
struct Reading<'a, R> {
    read: &'a mut R,
    reads_left: usize,
}

impl<E, R: FnMut(&Descriptor) -> Result<Vec<u8>, E>> Reading<'_, R> {
    fn by_digest(&mut self, index: &Index, digest: &Digest, depth: usize) -> Result<Option<Manifest>, SelectError<E>> {
        let itself = index.entries.iter().filter(|entry| entry.digest == *digest);
        let nested = index.entries.iter().filter(|entry| media::is_index(&entry.media_type));
        for entry in itself.chain(nested) {
            match self.document(entry)? {
                Document::Manifest(manifest) => return Ok(Some(manifest)),
                Document::Index(_) if depth == DEPTH_MAX => return Err(SelectError::TooDeep),
                Document::Index(inner) => {
                    if let Some(manifest) = self.by_digest(&inner, digest, depth + 1)? {
                        return Ok(Some(manifest));
                    }
                }
            }
        }
        Ok(None)
    }

    fn document(&mut self, entry: &Descriptor) -> Result<Document, SelectError<E>> {
        let raw = self.content(entry)?;
        Ok(Document::read(raw, Some(&entry.media_type))?)
    }

    fn content(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, SelectError<E>> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or(SelectError::TooMany)?;
        let raw = (self.read)(descriptor).map_err(SelectError::Read)?;
        let found = Digest::of(&raw);
        let wanted = descriptor.digest;
        if found == wanted { Ok(raw) } else { Err(DocumentError::Mismatch { wanted, found }.into()) }
    }
}

struct Search<'a, R> {
    wanted: &'a Platform,
    reading: Reading<'a, R>,
    /// The platforms that were seen and do not fit, for the error.
    offered: Vec<Platform>,
}

impl<E, R: FnMut(&Descriptor) -> Result<Vec<u8>, E>> Search<'_, R> {
    /// Searches the entries that say what they run on, best first, then the nested indexes that do not.
    fn labelled(&mut self, index: &Index, depth: usize) -> Result<Option<Manifest>, SelectError<E>> {
        let runs = self.wanted.runs();
        let mut fitting: Vec<(usize, &Descriptor)> = Vec::new();
        for entry in &index.entries {
            let Some(platform) = &entry.platform else { continue };
            match runs.iter().position(|candidate| candidate == platform) {
                Some(rank) => fitting.push((rank, entry)),
                None if self.offered.contains(platform) => {}
                None => self.offered.push(platform.clone()),
            }
        }
        // Stable: of equals the first in the index wins.
        fitting.sort_by_key(|(rank, _)| *rank);
        let nested = index.entries.iter().filter(|e| e.platform.is_none() && media::is_index(&e.media_type));
        for entry in fitting.into_iter().map(|(_, entry)| entry).chain(nested) {
            match self.reading.document(entry)? {
                Document::Manifest(manifest) => return Ok(Some(manifest)),
                Document::Index(_) if depth == DEPTH_MAX => return Err(SelectError::TooDeep),
                Document::Index(inner) => {
                    if let Some(manifest) = self.labelled(&inner, depth + 1)? {
                        return Ok(Some(manifest));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Searches the manifests of the outermost index that do not say what they run on.
    fn unlabelled(&mut self, index: &Index) -> Result<Option<Manifest>, SelectError<E>> {
        let mut best: Option<(usize, Manifest)> = None;
        for entry in index.entries.iter().filter(|e| e.platform.is_none() && media::is_manifest(&e.media_type)) {
            let Document::Manifest(manifest) = self.reading.document(entry)? else { continue };
            if manifest.require_image().is_err() {
                continue;
            }
            let raw = self.reading.content(&manifest.config)?;
            let platform = ImageConfig::read_for(&manifest, raw)?.platform;
            match self.wanted.rank(&platform) {
                Some(rank) if best.as_ref().is_none_or(|(best, _)| rank < *best) => best = Some((rank, manifest)),
                Some(_) => {}
                None => self.offered.push(platform),
            }
        }
        Ok(best.map(|(_, manifest)| manifest))
    }
}

/// Why no manifest was found.
#[derive(Debug, thiserror::Error)]
pub enum SelectError<E> {
    /// Nothing in the index runs on the wanted platform.
    #[error("no matching manifest for {wanted} in the manifest list entries")]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What the index has.
        offered: Vec<Platform>,
    },
    /// Indexes nest deeper than [`DEPTH_MAX`].
    #[error("the image's indexes nest deeper than {DEPTH_MAX}")]
    TooDeep,
    /// The search read [`READS_MAX`] documents without an end.
    #[error("the image's index has more than {READS_MAX} entries to try")]
    TooMany,
    /// A document on the way cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The content could not be read.
    #[error(transparent)]
    Read(E),
}

impl<E: Explain> Explain for SelectError<E> {
    fn kind(&self) -> Kind {
        match self {
            SelectError::NoPlatform { .. } => Kind::NotFound,
            SelectError::TooDeep | SelectError::TooMany => Kind::Remote,
            SelectError::Document(error) => error.kind(),
            SelectError::Read(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            SelectError::NoPlatform { offered, .. } if !offered.is_empty() => {
                let list: Vec<String> = offered.iter().map(ToString::to_string).collect();
                Some(format!("the image exists for {}", list.join(", ")))
            }
            SelectError::Document(error) => error.hint(),
            SelectError::Read(error) => error.hint(),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use super::*;

    /// Content by digest, filled while documents are made.
    #[derive(Default)]
    struct Blobs(HashMap<Digest, Vec<u8>>);

    impl Blobs {
        fn add(&mut self, media_type: &str, text: String, platform: Option<&str>) -> String {
            let raw = text.into_bytes();
            let (digest, size) = (Digest::of(&raw), raw.len());
            self.0.insert(digest, raw);
            let platform = platform.map(|platform| {
                let platform: Platform = platform.parse().unwrap();
                let variant = platform.variant().map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
                format!(
                    r#","platform":{{"os":"{}","architecture":"{}"{variant}}}"#,
                    platform.os(),
                    platform.architecture()
                )
            });
            let platform = platform.unwrap_or_default();
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}{platform}}}"#)
        }

        /// An image for `runs_on`, whose entry says `label`.
        fn image(&mut self, runs_on: &str, label: Option<&str>) -> String {
            let (os, architecture) = runs_on.split_once('/').unwrap();
            let config = format!(
                r#"{{"os":"{os}","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            );
            let config = self.add(media::OCI_CONFIG, config, None);
            let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
            self.add(media::OCI_MANIFEST, manifest, label)
        }

        fn index(&mut self, entries: &[String], label: Option<&str>) -> String {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            self.add(media::OCI_INDEX, text, label)
        }

        /// Selects and returns what the chosen image's configuration says it runs on.
        fn select(&self, index: &str, wanted: &str) -> Result<String, SelectError<Infallible>> {
            let json: serde_json::Value = serde_json::from_str(index).unwrap();
            let digest: Digest = json["digest"].as_str().unwrap().parse().unwrap();
            let document = Document::read(self.0[&digest].clone(), None).unwrap();
            let read = |descriptor: &Descriptor| Ok(self.0[&descriptor.digest].clone());
            let manifest = select_manifest(document, &wanted.parse().unwrap(), read)?;
            Ok(ImageConfig::read(self.0[&manifest.config.digest].clone()).unwrap().platform.to_string())
        }
    }

    #[test]
    fn the_best_variant_wins_wherever_it_stands() {
        let mut blobs = Blobs::default();
        let entries = [
            blobs.image("linux/386", Some("linux/386")),
            blobs.image("linux/amd64", Some("linux/amd64")),
            blobs.image("linux/s390x", Some("linux/s390x")),
        ];
        let index = blobs.index(&entries, None);
        assert_eq!(blobs.select(&index, "linux/amd64/v3").unwrap(), "linux/amd64");
        assert_eq!(blobs.select(&index, "linux/386").unwrap(), "linux/386");
        let error = blobs.select(&index, "linux/arm64").unwrap_err();
        assert_eq!(error.to_string(), "no matching manifest for linux/arm64 in the manifest list entries");
        assert!(matches!(error, SelectError::NoPlatform { offered, .. } if offered.len() == 3));
    }

    #[test]
    fn entries_without_a_platform_come_last_and_are_looked_into() {
        let mut blobs = Blobs::default();
        let bare_arm = blobs.image("linux/arm64", None);
        let bare_amd = blobs.image("linux/amd64", None);
        let only_bare = blobs.index(&[bare_arm.clone(), bare_amd], None);
        assert_eq!(blobs.select(&only_bare, "linux/amd64").unwrap(), "linux/amd64");
        let labelled = blobs.image("linux/s390x", Some("linux/arm64"));
        let mixed = blobs.index(&[bare_arm, labelled], None);
        assert_eq!(blobs.select(&mixed, "linux/arm64").unwrap(), "linux/s390x", "the label is taken at its word");
    }

    #[test]
    fn indexes_nest_four_deep_and_no_deeper() {
        let mut blobs = Blobs::default();
        let mut inner = blobs.image("linux/amd64", Some("linux/amd64"));
        for depth in 1..=DEPTH_MAX + 1 {
            inner = blobs.index(&[inner], None);
            match blobs.select(&inner, "linux/amd64") {
                Ok(found) => assert!(found == "linux/amd64" && depth <= DEPTH_MAX),
                Err(error) => assert!(matches!(error, SelectError::TooDeep) && depth > DEPTH_MAX),
            }
        }
    }

    #[test]
    fn a_manifest_is_found_by_its_digest_whatever_it_runs_on() {
        let mut blobs = Blobs::default();
        let digest_of = |entry: &str| {
            let json: serde_json::Value = serde_json::from_str(entry).unwrap();
            json["digest"].as_str().unwrap().parse::<Digest>().unwrap()
        };
        let [first, second, other] =
            ["amd64", "arm64", "386"].map(|name| blobs.image(&format!("linux/{name}"), Some("linux/amd64")));
        let inner = blobs.index(std::slice::from_ref(&second), Some("linux/s390x"));
        let outer = blobs.index(&[first.clone(), inner], None);
        let find = |document: &str, digest: &str| {
            let document = Document::read(blobs.0[&digest_of(document)].clone(), None).unwrap();
            let read = |descriptor: &Descriptor| Ok::<_, Infallible>(blobs.0[&descriptor.digest].clone());
            find_manifest(document, &digest_of(digest), read).unwrap().map(|manifest| manifest.digest)
        };
        for (document, digest) in [(&outer, &first), (&outer, &second), (&first, &first)] {
            assert_eq!(find(document, digest), Some(digest_of(digest)));
        }
        for document in [&outer, &first] {
            assert_eq!(find(document, &other), None);
        }
    }

    #[test]
    fn a_wide_hostile_index_ends() {
        let mut blobs = Blobs::default();
        let empty = blobs.index(&[], None);
        let wide = blobs.index(&vec![empty; 100], None);
        assert!(matches!(blobs.select(&wide, "linux/amd64"), Err(SelectError::TooMany)));
    }

    #[test]
    fn content_of_another_digest_is_refused() {
        let mut blobs = Blobs::default();
        let image = blobs.image("linux/amd64", Some("linux/amd64"));
        let index = blobs.index(&[image], None);
        let json: serde_json::Value = serde_json::from_str(&index).unwrap();
        let digest: Digest = json["digest"].as_str().unwrap().parse().unwrap();
        let document = Document::read(blobs.0[&digest].clone(), None).unwrap();
        let lie = |_: &Descriptor| Ok::<_, Infallible>(b"{}".to_vec());
        let result = select_manifest(document, &"linux/amd64".parse().unwrap(), lie);
        assert!(matches!(result, Err(SelectError::Document(DocumentError::Mismatch { .. }))));
    }
}
