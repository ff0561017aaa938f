//! The merged index of a stack of layers, made once and kept in the store as a cache.
//!
//! It is what containers see of an image, so it has the mount points that all of them need: made at a start they would each
//! be a few calls that change a file system, and as many when the writable layer is removed. An image's own
//! tree, for `export` or a bundle, is merged without them.

use index::{Index, MergeError, OpenError, Place, WriteError};
use oci::{ChainId, DiffId};
use store::{Durability, Store};

use crate::error::{LayerError, Result};

/// Where mounts of every container go, and the link by which programs find its mounts. A start makes what is not here.
///
/// A writable layer of our own overlay names files by their numbers in the merged index: a change here makes those of containers
/// whose index is merged anew unusable, which their next start refuses.
const PLACES: [Place; 8] = [
    Place::Directory("dev"),
    Place::Directory("etc"),
    Place::Directory("proc"),
    Place::Directory("sys"),
    Place::File("etc/hostname"),
    Place::File("etc/hosts"),
    Place::File("etc/resolv.conf"),
    Place::Symlink("etc/mtab", "/proc/mounts"),
];

/// Makes sure that the store has the merged index of these layers, lowest first, whose own indexes it must have. The
/// caller holds a lease.
///
/// It is never synced: a chain index can be made again from those of the layers. One that a power loss cut short is
/// replaced here, so a process that starts a container asks this first.
pub fn merge_chain(store: &Store, layers: &[DiffId]) -> Result<ChainId> {
    let chain = ChainId::of(layers).ok_or(MergeError::NoLayers)?;
    if is_whole(store, chain)? {
        return Ok(chain);
    }
    let indexes = layers.iter().map(|layer| open_layer(store, *layer)).collect::<Result<Vec<_>>>()?;
    // Over what is there: it was looked at and is not whole.
    let file = store.chains().create()?;
    index::merge_to(&indexes.iter().collect::<Vec<_>>(), &PLACES, file.file()).map_err(|error| match error {
        MergeError::Write(WriteError::Output { source }) => LayerError::Write { what: "the merged index", source },
        error => error.into(),
    })?;
    store.chains().replace(file, &chain.0, Durability::Later)?;
    Ok(chain)
}

/// Whether the index is there with all its sections and not another's.
fn is_whole(store: &Store, chain: ChainId) -> Result<bool> {
    let Some(file) = store.chains().open(&chain.0)? else { return Ok(false) };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let whole = Index::open(file).is_ok_and(|index| index.is_chain() && index.id() == chain.0);
    Ok(whole && store.chains().claim(&chain.0, size)?)
}

/// Whether the index of a layer is here with all that it names: it opens, and each of its objects has its size. No content is
/// read, so this finds what a power loss has cut short, and not what a bad disk has changed. From then on a sweep leaves it
/// alone for as long as a lease lives that began before. [`apply()`](crate::apply()) puts what is cut in order.
///
/// Indexes of a newer engine are errors: they are not for us to make again.
pub fn claim_layer(store: &Store, layer: DiffId) -> Result<bool> {
    let Some(size_bytes) = store.layers().size(&layer.0)? else { return Ok(false) };
    // First, so that no sweep takes away what is then looked at.
    if !store.layers().claim(&layer.0, size_bytes)? {
        return Ok(false);
    }
    let Some(index) = whole_layer(store, layer)? else { return Ok(false) };
    for (object, size_bytes) in index.objects() {
        if store.objects().size(&object)? != Some(size_bytes) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The index of a layer; `None` if it is not there or damaged.
pub(crate) fn whole_layer(store: &Store, layer: DiffId) -> Result<Option<Index>> {
    match open_layer(store, layer) {
        Err(LayerError::MissingLayer { .. }) => Ok(None),
        Err(LayerError::Open { source, .. }) if !matches!(source, OpenError::Version { .. }) => Ok(None),
        index => index.map(Some),
    }
}

/// Opens the index of a layer.
pub fn open_layer(store: &Store, layer: DiffId) -> Result<Index> {
    let file = store.layers().open(&layer.0)?.ok_or(LayerError::MissingLayer { layer })?;
    let index = Index::open(file).map_err(|source| LayerError::Open { layer, source })?;
    if index.id() != layer.0 || index.is_chain() {
        let source = index::Damaged { what: "id in byte", at: index::format::at::ID as u64 }.into();
        return Err(LayerError::Open { layer, source });
    }
    Ok(index)
}
