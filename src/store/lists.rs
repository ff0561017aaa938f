//! Lists of images in the making (`manifest create`): one small file for each, put in place by rename.
//!
//! A list is changed under the file `lock` beside it, which is held for reading and writing one file. The manifests that a list
//! names are blobs of the store, and the sweep keeps them and what they name.

use std::fs::File;

use oci::{Digest, Entry, Reference};
use serde::{Deserialize, Serialize};
use sys::lock;

use crate::error::StoreError;
use crate::new_file::Durability;
use crate::refs::{Named, file_name, files_in, if_there, remove_if_damaged};
use crate::{Dir, LISTS, NAMED_LISTS, Result, Store};

/// The version of a list's file.
const FORMAT: u32 = 1;
/// The longest list that is read, in bytes.
const LIST_MAX: u64 = 4 << 20;
const LOCK: &str = "lock";

/// A list of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    format: u32,
    /// The name under which it is to be pushed.
    pub reference: Reference,
    /// Its images, in the order in which they were added.
    pub images: Vec<ListedImage>,
}

/// One image of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedImage {
    /// How it was named when it was added, completed: where its layers can be had from.
    pub source: Reference,
    /// What the index is to say of it.
    pub entry: Entry,
}

impl ListRecord {
    /// A list without images.
    pub fn new(reference: Reference) -> Self {
        ListRecord { format: FORMAT, reference: reference.or_latest(), images: Vec::new() }
    }

    /// What the list leads to directly.
    pub fn leads_to(&self) -> impl Iterator<Item = Digest> {
        self.images.iter().map(|image| image.entry.digest)
    }
}

impl Store {
    /// The list of this name, if there is one.
    pub fn list(&self, reference: &Reference) -> Result<Option<ListRecord>> {
        match self.lists_dir(false)? {
            Some(dir) => read(&dir, &file_name(reference)),
            None => Ok(None),
        }
    }

    /// The lists of all stores that share this content, those that cannot be read too.
    pub fn all_lists(&self) -> Result<Vec<Named<ListRecord>>> {
        files_in(self.list_dirs()?, |dir, name| if name == LOCK { Ok(None) } else { read(dir, name) })
    }

    /// Removes a file of [`Store::all_lists`] that is damaged; `false` if it is gone, or is not damaged any more.
    pub fn remove_damaged_list(&self, store: Option<&str>, file: &str) -> Result<bool> {
        let dirs = self.list_dirs()?;
        let Some((_, dir)) = dirs.iter().find(|(of, _)| of.as_deref() == store) else { return Ok(false) };
        let _gate = gate(dir)?;
        remove_if_damaged(dir, file, read)
    }

    /// Changes the list of this name. `change` is given what is there and answers what is to be there.
    pub fn change_list<E: From<StoreError>>(
        &self,
        reference: &Reference,
        change: impl FnOnce(Option<ListRecord>) -> std::result::Result<Option<ListRecord>, E>,
    ) -> std::result::Result<(), E> {
        let dir = self.lists_dir(true)?.ok_or_else(|| StoreError::Absent { path: self.root.path().join(LISTS) })?;
        let _gate = gate(&dir)?;
        let name = file_name(reference);
        match change(read(&dir, &name)?)? {
            Some(record) => {
                let text = serde_json::to_vec(&record)
                    .map_err(|cause| StoreError::Corrupt { path: dir.path().join(&name), cause: cause.into() })?;
                dir.replace(&name, &text, Durability::Now)?;
            }
            None => drop(dir.unlink(&name)?),
        }
        Ok(())
    }

    /// The directory of lists; a store that never had one has none.
    fn lists_dir(&self, create: bool) -> Result<Option<Dir>> {
        if_there(match &self.name {
            None => self.root.subdir(LISTS, create),
            Some(name) => self.root.subdir(NAMED_LISTS, create).and_then(|above| above.subdir(name, create)),
        })
    }

    /// The directories of lists of all stores that share this content.
    pub(crate) fn list_dirs(&self) -> Result<Vec<(Option<String>, Dir)>> {
        let own = if_there(self.root.subdir(LISTS, false))?;
        let mut dirs: Vec<_> = own.map(|dir| (None, dir)).into_iter().collect();
        dirs.extend(self.dirs_of_stores(NAMED_LISTS)?);
        Ok(dirs)
    }
}

/// Nobody else changes the lists of a directory while this is held.
fn gate(dir: &Dir) -> Result<File> {
    let gate = dir.open_writable(LOCK)?;
    lock::exclusive(&gate, &dir.path().join(LOCK))?;
    Ok(gate)
}

fn read(dir: &Dir, name: &str) -> Result<Option<ListRecord>> {
    let Some(text) = dir.read(name, LIST_MAX)? else { return Ok(None) };
    let corrupt = |cause| StoreError::Corrupt { path: dir.path().join(name), cause };
    let record: ListRecord = serde_json::from_slice(&text).map_err(|cause| corrupt(cause.into()))?;
    match record.format {
        FORMAT => Ok(Some(record)),
        0 => Err(corrupt("there is no format 0".into())),
        format => Err(StoreError::Newer { path: dir.path().join(name), format, known: FORMAT }),
    }
}
