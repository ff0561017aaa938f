//! Lists of images in the making (`manifest create`): one small file for each, put in place by rename.
//!
//! A list is changed under the lock `lists/lock`, which is held for reading and writing one file. The manifests that a list
//! names are blobs of the store, and the sweep keeps them and what they name.

use oci::{Entry, Reference};
use serde::{Deserialize, Serialize};
use sys::lock;

use crate::dir::is_temporary;
use crate::error::StoreError;
use crate::new_file::Durability;
use crate::refs::file_name;
use crate::{Dir, Result, Store};

/// The version of a list's file.
const FORMAT: u32 = 1;
/// The longest list that is read, in bytes.
const LIST_MAX: u64 = 4 << 20;
const DIRECTORY: &str = "lists";
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
}

impl Store {
    /// The list of this name, if there is one.
    pub fn list(&self, reference: &Reference) -> Result<Option<ListRecord>> {
        match self.lists_dir(false)? {
            Some(dir) => read(&dir, &file_name(reference)),
            None => Ok(None),
        }
    }

    /// All lists, in no order.
    pub fn lists(&self) -> Result<Vec<ListRecord>> {
        let Some(dir) = self.lists_dir(false)? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for name in dir.names()?.iter().filter(|name| !is_temporary(name) && *name != LOCK) {
            records.extend(read(&dir, name)?);
        }
        Ok(records)
    }

    /// Changes the list of this name. `change` is given what is there and answers what is to be there.
    pub fn change_list<E: From<StoreError>>(
        &self,
        reference: &Reference,
        change: impl FnOnce(Option<ListRecord>) -> std::result::Result<Option<ListRecord>, E>,
    ) -> std::result::Result<(), E> {
        let dir =
            self.lists_dir(true)?.ok_or_else(|| StoreError::Absent { path: self.root().path().join(DIRECTORY) })?;
        let gate = dir.open_writable(LOCK)?;
        lock::exclusive(&gate, &dir.path().join(LOCK)).map_err(StoreError::from)?;
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
    pub(crate) fn lists_dir(&self, create: bool) -> Result<Option<Dir>> {
        match self.root().subdir(DIRECTORY, create) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.errno() == Some(sys::Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read(dir: &Dir, name: &str) -> Result<Option<ListRecord>> {
    let Some(text) = dir.read(name, LIST_MAX)? else { return Ok(None) };
    let corrupt = |cause| StoreError::Corrupt { path: dir.path().join(name), cause };
    let record: ListRecord = serde_json::from_slice(&text).map_err(|cause| corrupt(cause.into()))?;
    match record.format {
        FORMAT => Ok(Some(record)),
        newer => Err(corrupt(format!("it has the format {newer}, and this version reads {FORMAT}").into())),
    }
}
