//! The repair, in an order in which nothing that is whole is lost and a kill at any step leaves a store that the next
//! repair mends:
//!
//! 1. stacks of layers that are damaged or missing, so that `run` and `pull` see until the end that the image is not whole;
//! 2. damaged stacks, then damaged indexes of layers and those that lack an object, so that nothing leads to a content
//!    that is about to go;
//! 3. damaged objects and blobs;
//! 4. layers again, from blobs that are whole; their stack is made again by the next start;
//! 5. names and lists of images that cannot be read.
//!
//! Each damaged file is looked at once more when it is out of its place, as another command may have replaced it.

use std::collections::{BTreeMap, BTreeSet};

use base::Report;
use oci::{ChainId, DiffId, Digest};
use store::{Durability, Family, Store};

use super::damage::{Damage, look};
use super::{Needs, is_there};
use crate::image::offline::documents;

/// What the repair did.
#[derive(Debug, Default)]
pub(super) struct Mended {
    /// By content.
    pub done: BTreeMap<(Family, Digest), String>,
    /// Whether names and lists that cannot be read were removed.
    pub names_removed: bool,
}

/// Repairs. The caller holds a lease.
pub(super) fn mend(store: &Store, damage: &Damage, needs: &Needs) -> Result<Mended, Report> {
    let mut mended = Mended::default();
    for (chain, layers) in stacks(store, needs) {
        for layer in layers {
            if !is_there(store, damage, Family::Layers, &layer.0)? {
                store.chains().remove(&chain.0)?;
                break;
            }
        }
    }
    for family in Family::ALL {
        for (_, digest) in damage.keys().filter(|(damaged, _)| *damaged == family) {
            let is_whole = |file| look(store, family, digest, file, damage).is_none();
            if store.shelf(family).remove_damaged(digest, is_whole)? {
                mended.done.insert((family, *digest), "removed".to_owned());
            }
        }
    }
    for (diff_id, blob) in blobs_of_layers(store, needs) {
        let key = (Family::Layers, diff_id.0);
        if store.layers().has(&diff_id.0)? {
            continue;
        }
        let Some(file) = store.blobs().open(&blob)? else { continue };
        match layer::apply(file, Some(diff_id), store, Durability::Now, &layer::Limits::default()) {
            Ok(_) => mended.done.insert(key, "made again from its blob".to_owned()),
            Err(error) => {
                let why = Report::from(error).lines().join(": ");
                mended.done.insert(key, format!("removed; it cannot be made again: {why}"))
            }
        };
    }
    for name in &needs.unreadable {
        let store_name = name.store.as_deref();
        mended.names_removed |= if name.is_list {
            store.remove_list(store_name, &name.file)?
        } else {
            store.remove_name(store_name, &name.file)?
        };
    }
    Ok(mended)
}

/// The layers that images need, with the blobs of which they can be made.
fn blobs_of_layers(store: &Store, needs: &Needs) -> BTreeMap<DiffId, Digest> {
    let mut blobs = BTreeMap::new();
    for (_, record) in &needs.names {
        // What cannot be read was removed before: then this image needs a pull.
        if let Ok(Some((manifest, config))) = documents(store, record) {
            blobs.extend(config.diff_ids.into_iter().zip(manifest.layers.into_iter().map(|layer| layer.digest)));
        }
    }
    blobs
}

/// The stacks that images and containers need.
fn stacks(store: &Store, needs: &Needs) -> BTreeSet<(ChainId, Vec<DiffId>)> {
    let mut stacks = BTreeSet::new();
    for (_, record) in &needs.names {
        if let (Some(chain), Ok(Some((_, config)))) = (record.chain, documents(store, record)) {
            stacks.insert((chain, config.diff_ids));
        }
    }
    for user in &needs.users {
        stacks.extend(user.chain.map(|chain| (chain, user.layers.clone())));
    }
    stacks
}
