//! The budget of the store: what can be fetched or made again goes, the oldest first, until the store is small enough.
//!
//! That is the blobs of layers whose indexes are here, merged indexes of stacks whose layers are here, and interrupted
//! downloads. What a name needs to run is never among it, nor are the layers of images that were made or loaded here: no
//! registry is known to have them, and a push sends them.

use std::collections::{HashMap, HashSet};

use base::units::human_size;
use base::{Kind, Report};
use store::{Family, Partial, Store, Stored};

use crate::Engine;
use crate::image::offline::documents;
use crate::image::sweep::sweep;
use crate::system::du;

/// Something that may go.
enum Victim {
    Content(Family, Stored),
    Partial(Partial),
}

/// Brings the store below the budget, where there is one.
pub(crate) fn trim(engine: &Engine, store: &Store) -> Result<(), Report> {
    let Some(max_bytes) = engine.options().cache_max_bytes else { return Ok(()) };
    let size = || Ok::<u64, Report>(du::of(store.root().path())?.bytes);
    if size()? <= max_bytes {
        return Ok(());
    }
    sweep(engine, store, &[])?;
    let excess_bytes = size()?.saturating_sub(max_bytes);
    let mut freed_bytes = 0;
    let mut going = Vec::new();
    for (_, victim) in victims(store)? {
        if freed_bytes >= excess_bytes {
            break;
        }
        match victim {
            Victim::Content(family, stored) => {
                freed_bytes += stored.disk_bytes;
                going.push((family, stored));
            }
            Victim::Partial(partial) => freed_bytes += store.drop_partial(&partial.digest)?.unwrap_or(0),
        }
    }
    store.evict(&going)?;
    let left_bytes = size()?;
    if left_bytes > max_bytes {
        let (left, max) = (human_size(left_bytes), human_size(max_bytes));
        engine.notice(&format!(
            "the store takes {left}, more than --cache-max {max}: images need the rest (image prune -a removes those \
             that no container needs)"
        ));
    }
    Ok(())
}

/// What may go, the oldest first: when it was last used, and what it is.
fn victims(store: &Store) -> Result<Vec<(i64, Victim)>, Report> {
    let (mut contents, mut kept) = (HashMap::new(), HashSet::new());
    for name in store.all_names()? {
        let record = name.record?;
        let (manifest, config) = match documents(store, &record) {
            Ok(Some(documents)) => documents,
            Ok(None) => continue,
            // Removed since it was listed.
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut whole = true;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            if record.made_here {
                kept.insert((Family::Blobs, layer.digest));
            }
            if !store.layers().has(&diff_id.0)? {
                whole = false;
            } else if let Some(stored) = store.blobs().stored(&layer.digest)? {
                contents.insert((Family::Blobs, layer.digest), stored);
            }
        }
        if let Some(chain) = record.chain.filter(|_| whole)
            && let Some(stored) = store.chains().stored(&chain.0)?
        {
            contents.insert((Family::Chains, chain.0), stored);
        }
    }
    let contents = contents
        .into_iter()
        .filter(|(content, _)| !kept.contains(content))
        .map(|((family, _), stored)| (stored.used.0, Victim::Content(family, stored)));
    let partials = store.partials()?.into_iter().filter(|partial| !partial.active);
    let partials = partials.map(|partial| (partial.modified_s, Victim::Partial(partial)));
    let mut victims: Vec<_> = contents.chain(partials).collect();
    victims.sort_by_key(|(used_s, ..)| *used_s);
    Ok(victims)
}
