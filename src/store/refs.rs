//! Names of images: one small file for each reference, put in place by rename.

use oci::{ChainId, Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::dir::is_temporary;
use crate::error::StoreError;
use crate::new_file::Durability;
use crate::{Result, Store};

/// The longest record that is read, in bytes.
const RECORD_MAX: u64 = 64 << 10;
/// The longest name of a file.
const NAME_MAX: usize = 255;

/// The repository of images that nobody has named: `.invalid` is no registry's (RFC 2606).
const UNNAMED: &str = "none.invalid/none";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The complete reference.
    pub reference: Reference,
    /// What the reference pointed to on its registry: an index or a manifest.
    pub digest: Digest,
    /// The media type of that.
    pub media_type: String,
    /// The manifest chosen for the platform; the same as `digest` where there is no index.
    pub manifest: Digest,
    /// The image's configuration: its id.
    pub config: Digest,
    /// The stack of its layers; `None` if it has none.
    pub chain: Option<ChainId>,
    /// When the name was set, in seconds since 1970.
    pub updated_s: u64,
}

impl ImageRecord {
    /// What an image is kept under that has no name: `None` only if the grammar of references forbade it.
    pub fn unnamed(manifest: Digest) -> Option<Reference> {
        UNNAMED.parse::<Reference>().ok().map(|reference| reference.at(manifest))
    }

    /// Whether this is an image without a name.
    pub fn is_unnamed(&self) -> bool {
        self.reference.name() == UNNAMED
    }
}

impl Store {
    /// What a reference stands for, if anything.
    pub fn image(&self, reference: &Reference) -> Result<Option<ImageRecord>> {
        self.read_record(&file_name(reference))
    }

    /// All names, in their order.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        let mut records = Vec::new();
        for name in self.refs.names()?.iter().filter(|name| !is_temporary(name)) {
            // One that is gone since it was listed is no image.
            records.extend(self.read_record(name)?);
        }
        records.sort_by(|a: &ImageRecord, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// Sets a name: after [`Store::sync`], under the lease that covers the content.
    pub fn put_image(&self, record: &ImageRecord) -> Result<()> {
        let mut record = record.clone();
        record.reference = record.reference.or_latest();
        let name = file_name(&record.reference);
        let text = serde_json::to_vec(&record)
            .map_err(|cause| StoreError::Corrupt { path: self.refs.path().join(&name), cause: cause.into() })?;
        self.refs.replace(&name, &text, Durability::Now)
    }

    /// Removes a name; `false` if it was none. The content goes with the next sweep.
    pub fn remove_image(&self, reference: &Reference) -> Result<bool> {
        self.refs.unlink(&file_name(reference))
    }

    fn read_record(&self, name: &str) -> Result<Option<ImageRecord>> {
        let Some(text) = self.refs.read(name, RECORD_MAX)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&text);
        parsed.map(Some).map_err(|cause| StoreError::Corrupt { path: self.refs.path().join(name), cause: cause.into() })
    }
}

/// The file of a reference. A digest beside a tag decides, so the tag does not count. What would be too long for a
/// file's name is named by its digest; the record says the reference in any case.
fn file_name(reference: &Reference) -> String {
    let normal = match reference.digest() {
        Some(digest) => reference.at(digest),
        None => reference.clone().or_latest(),
    };
    let name = normal.to_string().replace('/', "%2F");
    if name.len() <= NAME_MAX { name } else { format!("%{}", Digest::of(name.as_bytes()).hex()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn one_file_a_name() {
        for (text, name) in
            [("debian", "docker.io%2Flibrary%2Fdebian:latest"), ("localhost:5000/a/b:1", "localhost:5000%2Fa%2Fb:1")]
        {
            assert_eq!(file_name(&text.parse().unwrap()), name);
        }
        let digest = Digest::of(b"");
        let both: Reference = format!("a:1@{digest}").parse().unwrap();
        assert_eq!(file_name(&both), format!("docker.io%2Flibrary%2Fa@{digest}"));
        let long: Reference = format!("{}:1", "x".repeat(240)).parse().unwrap();
        assert_eq!(file_name(&long).len(), 65);
    }
}
