//! The repair, in an order in which nothing that is whole is lost and a kill at any step leaves a store that the next
//! repair mends:
//!
//! 1. stacks of layers that are damaged or missing, so that `run` and `pull` see until the end that the image is not whole;
//! 2. damaged stacks, then damaged indexes of layers and those that lack an object, so that nothing leads to a content
//!    that is about to go;
//! 3. damaged objects and blobs;
//! 4. layers again, from blobs that are whole; their stack is made again by the next start;
//! 5. damaged names and lists of images.
//!
//! Each damaged file is looked at once more just before it goes, as another command may have replaced it. What cannot be read,
//! or only by a newer engine, stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

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
    pub contents: BTreeMap<(Family, Digest), String>,
    /// By the position of the name or list in [`Needs::unreadable`].
    pub names: BTreeMap<usize, String>,
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
        for ((_, digest), wrong) in damage.iter().filter(|((of, _), _)| *of == family) {
            let keep =
                |file: &File| look(store, family, digest, file, damage).err().is_none_or(|wrong| !wrong.is_damage());
            let done = match wrong.spared() {
                None if store.shelf(family).remove_damaged(digest, keep)? => Some("removed".to_owned()),
                spared => spared,
            };
            mended.contents.extend(done.map(|done| ((family, *digest), done)));
        }
    }
    for (diff_id, blob) in blobs_of_layers(store, needs) {
        let key = (Family::Layers, diff_id.0);
        if store.layers().has(&diff_id.0)? {
            continue;
        }
        let Some(file) = store.blobs().open(&blob)? else { continue };
        match layer::apply(file, Some(diff_id), store, Durability::Now, &layer::Limits::default()) {
            Ok(_) => mended.contents.insert(key, "made again from its blob".to_owned()),
            Err(error) => {
                let why = Report::from(error).lines().join(": ");
                mended.contents.insert(key, format!("removed; it cannot be made again: {why}"))
            }
        };
    }
    for (number, name) in needs.unreadable.iter().enumerate() {
        let store_name = name.store.as_deref();
        let done = match name.wrong.spared() {
            None if name.is_list => store.remove_damaged_list(store_name, &name.file)?.then(|| "removed".to_owned()),
            None => store.remove_damaged_name(store_name, &name.file)?.then(|| "removed".to_owned()),
            spared => spared,
        };
        mended.names.extend(done.map(|done| (number, done)));
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
