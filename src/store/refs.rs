//! Names of images: one small file for each reference, put in place by rename.
//!
//! Who reads them takes no lock. Who changes them holds `refs.lock` ([`Store::lock_names`]) from the look on which the change
//! rests until it is made: of two commands that each take one of an image's two names, one must see that it takes the last.

use std::collections::HashMap;
use std::fs::File;

use oci::{ChainId, Digest, Reference};
use serde::{Deserialize, Serialize};
use sys::lock;

use crate::dir::{Dir, is_temporary};
use crate::error::StoreError;
use crate::halves::in_halves;
use crate::new_file::Durability;
use crate::{NAMED, NAMES_LOCK, Result, Store};

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
    /// Whether the image was made or loaded here: no registry is known that has its layers.
    #[serde(default)]
    pub made_here: bool,
    /// The name by which the image was fetched, whatever names it has got since; none if it was made or loaded here, and in a
    /// record of an earlier version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Reference>,
    /// What lists show of it; none in a record of an earlier version of the program, for which documents are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// What lists show of an image, as its configuration and its manifest say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When it was built, by RFC 3339, if it says.
    pub created: Option<String>,
    /// Bytes of its layers as they were transferred.
    pub size_bytes: u64,
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

    /// The name as Docker's users write it; the image's short id where it has none.
    pub fn familiar(&self) -> String {
        if self.is_unnamed() { self.config.hex()[..12].to_owned() } else { self.reference.familiar() }
    }

    /// What the name leads to directly.
    pub fn leads_to(&self) -> Vec<Digest> {
        let chain = self.chain.map(|chain| chain.0);
        [self.digest, self.manifest, self.config].into_iter().chain(chain).collect()
    }
}

/// A file of a name or a list, in this store or another one that shares the content.
#[derive(Debug)]
pub struct Named<T> {
    /// The further store that has it; `None` for the one without a name.
    pub store: Option<String>,
    /// The file.
    pub file: String,
    /// What it holds.
    pub record: Result<T>,
}

impl Store {
    /// What a reference stands for, if anything.
    pub fn image(&self, reference: &Reference) -> Result<Option<ImageRecord>> {
        let name = file_name(reference);
        let own = read_record(&self.refs, &name)?;
        Ok(own.or_else(|| self.refs_below.iter().find_map(|dir| self.record_below(dir, &name))))
    }

    /// All names, in their order. One that cannot be read is passed over and told; what removes content asks
    /// [`Store::named_content`], for which it is an error.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        let mut found = HashMap::new();
        let names = names_in(&self.refs)?;
        let records = in_halves(&names, |name| read_record(&self.refs, name));
        for (name, record) in names.into_iter().zip(records) {
            // One that is gone since it was listed is no image.
            found.extend(self.pass_over.readable(record).flatten().map(|record| (name, record)));
        }
        for dir in &self.refs_below {
            for name in self.pass_over.readable(names_in(dir)).unwrap_or_default() {
                // The same name in a store below stands for nothing.
                if !found.contains_key(&name) {
                    found.extend(self.record_below(dir, &name).map(|record| (name, record)));
                }
            }
        }
        let mut records: Vec<ImageRecord> = found.into_values().collect();
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    fn record_below(&self, dir: &Dir, name: &str) -> Option<ImageRecord> {
        self.pass_over.readable(read_record(dir, name)).flatten()
    }

    /// Waits until nobody else changes names, of whatever store that shares this content; nobody does while the answer is
    /// held. Hold it for looks at names and for the change alone.
    pub fn lock_names(&self) -> Result<LockedNames<'_>> {
        let gate = self.root.open_writable(NAMES_LOCK)?;
        lock::exclusive(&gate, &self.root.path().join(NAMES_LOCK))?;
        Ok(LockedNames { store: self, _gate: gate })
    }

    /// Whether a name is only in a store that is only read.
    pub fn is_below(&self, reference: &Reference) -> Result<bool> {
        Ok(self.refs.stat(&file_name(reference))?.is_none() && self.image(reference)?.is_some())
    }

    /// The names of all stores that share this content, those that cannot be read too.
    pub fn all_names(&self) -> Result<Vec<Named<ImageRecord>>> {
        files_in(self.name_dirs()?, read_record)
    }

    /// Removes a file of [`Store::all_names`] that is damaged; `false` if it is gone, or is not damaged any more.
    pub fn remove_damaged_name(&self, store: Option<&str>, file: &str) -> Result<bool> {
        let _locked = self.lock_names()?;
        let dirs = self.name_dirs()?;
        let dir = dirs.iter().find(|(of, _)| of.as_deref() == store);
        dir.map_or(Ok(false), |(_, dir)| remove_if_damaged(dir, file, read_record))
    }

    /// The directories of names of all stores that share this content.
    pub(crate) fn name_dirs(&self) -> Result<Vec<(Option<String>, Dir)>> {
        let mut dirs = vec![(None, self.root.subdir("refs", false)?)];
        dirs.extend(self.dirs_of_stores(NAMED)?);
        Ok(dirs)
    }

    /// The directories below one that has one for each further store; none where that is not there.
    pub(crate) fn dirs_of_stores(&self, above: &str) -> Result<Vec<(Option<String>, Dir)>> {
        let Some(above) = if_there(self.root.subdir(above, false))? else { return Ok(Vec::new()) };
        let mut dirs = Vec::new();
        for store in above.names()? {
            let dir = above.subdir(&store, false)?;
            dirs.push((Some(store), dir));
        }
        Ok(dirs)
    }

    /// What the names and lists of all stores that share this content lead to directly.
    pub fn named_content(&self) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for name in self.all_names()? {
            digests.extend(name.record?.leads_to());
        }
        for list in self.all_lists()? {
            digests.extend(list.record?.leads_to());
        }
        Ok(digests)
    }
}

/// The names of a store, which nobody else changes meanwhile.
#[derive(Debug)]
pub struct LockedNames<'a> {
    store: &'a Store,
    _gate: File,
}

impl LockedNames<'_> {
    /// Sets a name: after [`Store::sync`], under the lease that covers the content.
    pub fn put(&self, record: &ImageRecord) -> Result<()> {
        let refs = &self.store.refs;
        let mut record = record.clone();
        record.reference = record.reference.or_latest();
        let name = file_name(&record.reference);
        let text = serde_json::to_vec(&record)
            .map_err(|cause| StoreError::Corrupt { path: refs.path().join(&name), cause: cause.into() })?;
        refs.replace(&name, &text, Durability::Now)
    }

    /// Removes a name; `false` if it was none. The content goes with the next sweep.
    pub fn remove(&self, reference: &Reference) -> Result<bool> {
        self.store.refs.unlink(&file_name(reference))
    }
}

/// `None` for a directory that is not there.
pub(crate) fn if_there(dir: Result<Dir>) -> Result<Option<Dir>> {
    match dir {
        Err(error) if error.errno() == Some(sys::Errno::ENOENT) => Ok(None),
        dir => dir.map(Some),
    }
}

/// The files of a directory, in no order.
fn names_in(dir: &Dir) -> Result<Vec<String>> {
    Ok(dir.names()?.into_iter().filter(|name| !is_temporary(name)).collect())
}

/// The files of directories with the stores that they are of, in their order. One that is gone since it was listed is left
/// out.
pub(crate) fn files_in<T>(
    dirs: Vec<(Option<String>, Dir)>,
    read: impl Fn(&Dir, &str) -> Result<Option<T>>,
) -> Result<Vec<Named<T>>> {
    let mut files = Vec::new();
    for (store, dir) in dirs {
        for file in names_in(&dir)? {
            let record = read(&dir, &file).transpose();
            files.extend(record.map(|record| Named { store: store.clone(), file, record }));
        }
    }
    files.sort_by(|a, b| (&a.store, &a.file).cmp(&(&b.store, &b.file)));
    Ok(files)
}

/// Looks at a file once more and removes it if it is damaged.
pub(crate) fn remove_if_damaged<T>(
    dir: &Dir,
    file: &str,
    read: impl Fn(&Dir, &str) -> Result<Option<T>>,
) -> Result<bool> {
    match read(dir, file) {
        Err(error) if error.is_damage() => dir.unlink(file),
        _ => Ok(false),
    }
}

fn read_record(dir: &Dir, name: &str) -> Result<Option<ImageRecord>> {
    let Some(text) = dir.read(name, RECORD_MAX)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|cause| StoreError::Corrupt { path: dir.path().join(name), cause: cause.into() })
}

/// The file of a reference. A digest beside a tag decides, so the tag does not count. What would be too long for a
/// file's name is named by its digest; the record says the reference in any case.
pub(crate) fn file_name(reference: &Reference) -> String {
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
