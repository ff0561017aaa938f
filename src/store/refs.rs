//! Names of images: one small file for each reference, put in place by rename.

use std::collections::HashSet;

use oci::{ChainId, Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::dir::{Dir, is_temporary};
use crate::error::StoreError;
use crate::new_file::Durability;
use crate::{NAMED, Result, Store};

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

impl ImageRecord {
    /// What the name leads to directly.
    pub fn leads_to(&self) -> Vec<Digest> {
        let chain = self.chain.map(|chain| chain.0);
        [self.digest, self.manifest, self.config].into_iter().chain(chain).collect()
    }
}

/// A file of a name, in this store or another one that shares the content.
#[derive(Debug)]
pub struct Named {
    /// The further store that has it; `None` for the one without a name.
    pub store: Option<String>,
    /// The file.
    pub file: String,
    /// What it holds.
    pub record: Result<ImageRecord>,
}

impl Store {
    /// What a reference stands for, if anything.
    pub fn image(&self, reference: &Reference) -> Result<Option<ImageRecord>> {
        let name = file_name(reference);
        let mut dirs = [&self.refs].into_iter().chain(&self.refs_below);
        dirs.find_map(|dir| read_record(dir, &name).transpose()).transpose()
    }

    /// All names, in their order.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        let (mut records, mut seen) = (Vec::new(), HashSet::new());
        for dir in [&self.refs].into_iter().chain(&self.refs_below) {
            for name in dir.names()?.into_iter().filter(|name| !is_temporary(name)) {
                // One that is gone since it was listed is no image.
                let Some(record) = read_record(dir, &name)? else { continue };
                // The same name in a store below stands for nothing.
                if seen.insert(name) {
                    records.push(record);
                }
            }
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

    /// Whether a name is only in a store that is only read.
    pub fn is_below(&self, reference: &Reference) -> Result<bool> {
        Ok(self.refs.stat(&file_name(reference))?.is_none() && self.image(reference)?.is_some())
    }

    /// Removes a name; `false` if it was none. The content goes with the next sweep.
    pub fn remove_image(&self, reference: &Reference) -> Result<bool> {
        self.refs.unlink(&file_name(reference))
    }

    /// The names of all stores that share this content, those that cannot be read too.
    pub fn all_names(&self) -> Result<Vec<Named>> {
        let mut names = Vec::new();
        for (store, dir) in self.name_dirs()? {
            for file in dir.names()?.into_iter().filter(|name| !is_temporary(name)) {
                let record = read_record(&dir, &file).transpose();
                names.extend(record.map(|record| Named { store: store.clone(), file, record }));
            }
        }
        names.sort_by(|a, b| (&a.store, &a.file).cmp(&(&b.store, &b.file)));
        Ok(names)
    }

    /// Removes a file of [`Store::all_names`], whatever it holds; `false` if it is gone.
    pub fn remove_name(&self, store: Option<&str>, file: &str) -> Result<bool> {
        let dirs = self.name_dirs()?;
        let dir = dirs.iter().find(|(of, _)| of.as_deref() == store);
        dir.map_or(Ok(false), |(_, dir)| dir.unlink(file))
    }

    /// The directories of names of all stores that share this content.
    pub(crate) fn name_dirs(&self) -> Result<Vec<(Option<String>, Dir)>> {
        let mut dirs = vec![(None, self.root.subdir("refs", false)?)];
        let named = match self.root.subdir(NAMED, false) {
            Err(error) if error.errno() == Some(sys::Errno::ENOENT) => return Ok(dirs),
            other => other?,
        };
        for store in named.names()? {
            let dir = named.subdir(&store, false)?;
            dirs.push((Some(store), dir));
        }
        Ok(dirs)
    }
}

fn read_record(dir: &Dir, name: &str) -> Result<Option<ImageRecord>> {
    let Some(text) = dir.read(name, RECORD_MAX)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|cause| StoreError::Corrupt { path: dir.path().join(name), cause: cause.into() })
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
