//! What containers of all machines and stores stand on, and the sweep of the rest.

use std::collections::HashSet;
use std::io;

use base::{ContainerId, Report};
use layer::LayerError;
use oci::{ChainId, DiffId, Digest};
use store::{Store, Swept};

use crate::container::lookup;
use crate::container::record::{self, Found};
use crate::container::state::condition;
use crate::container::tree;
use crate::file::failed;
use crate::{Engine, Options, Paths};

/// A container of any machine and store that uses this data directory.
pub(crate) struct User {
    /// Who it is.
    pub id: ContainerId,
    /// The image it stands on.
    pub image: Digest,
    /// The layers of the image; none in a record of an earlier version of the program.
    pub layers: Vec<DiffId>,
    /// Their stack.
    pub chain: Option<ChainId>,
    /// Where its files lie.
    pub engine: Engine,
}

/// The containers that stand on images. One whose record cannot be read cannot be started: it needs nothing.
pub(crate) fn users(engine: &Engine) -> Result<Vec<User>, Report> {
    let data = engine.paths().data();
    let places = engine.paths().everywhere().map_err(|error| failed("reading directories below", data, error))?;
    let mut users = Vec::new();
    for paths in places {
        let engine = Engine::open(paths, Options::default());
        for id in lookup::ids(&engine)? {
            let Found::Record(record) = record::look(&engine, &id)? else { continue };
            if let Some(image) = record.image.id {
                let layers = record.image.layers.into_iter().map(DiffId).collect();
                users.push(User { id, image, layers, chain: record.image.chain, engine: engine.clone() });
            }
        }
    }
    Ok(users)
}

/// The images on which containers of this store stand.
pub(crate) fn used(engine: &Engine) -> Result<HashSet<Digest>, Report> {
    let here = |user: &User| user.engine.paths().store_name() == engine.paths().store_name();
    Ok(users(engine)?.into_iter().filter(here).map(|user| user.image).collect())
}

impl User {
    /// Whether it runs. On another machine its record alone can tell, and a machine that went down cannot correct that.
    pub fn is_active(&self, here: &Paths) -> Result<bool, Report> {
        if self.engine.paths().elsewhere(here).is_none() {
            return Ok(condition(&self.engine, &self.id)?.life.is_active());
        }
        let state = monitor::record::read_state(&self.engine.paths().container(&self.id))?;
        Ok(state.is_some_and(|state| state.status.is_active()))
    }

    /// What it needs of the store.
    pub fn needs(&self) -> Vec<Digest> {
        let layers = self.layers.iter().map(|layer| layer.0);
        [self.image].into_iter().chain(layers).chain(self.chain.map(|chain| chain.0)).collect()
    }
}

/// What containers, of whatever machine and store, need.
fn roots(engine: &Engine) -> io::Result<Vec<Digest>> {
    let users = users(engine).map_err(|report| io::Error::other(report.to_string()))?;
    Ok(users.into_iter().flat_map(|user| user.needs()).collect())
}

/// The objects of a layer; none of one that is gone since it was looked for.
pub(crate) fn objects_of(store: &Store, layer: DiffId) -> io::Result<Vec<Digest>> {
    match layer::open_layer(store, layer) {
        Ok(index) => Ok(index.objects().map(|(digest, _)| digest).collect()),
        Err(LayerError::MissingLayer { .. }) => Ok(Vec::new()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Deletes images written out for the storage driver `tree` on which no container stands, whatever names they have; how many
/// bytes.
pub(crate) fn unused_trees(engine: &Engine) -> u64 {
    tree::sweep(engine, &|| Ok(users(engine)?.into_iter().filter_map(|user| user.chain).collect()))
}

/// Deletes what no name and no container leads to any more, but for `kept` and what that leads to.
pub(crate) fn sweep(engine: &Engine, store: &Store, kept: &[Digest]) -> Result<Swept, Report> {
    let chains = || {
        let names = store.all_names()?.into_iter().map(|name| Ok(name.record?.chain));
        let named: Vec<Option<ChainId>> = names.collect::<Result<_, Report>>()?;
        let used = users(engine)?.into_iter().map(|user| user.chain);
        Ok(named.into_iter().chain(used).flatten().collect())
    };
    tree::sweep(engine, &chains);
    let mut roots = || Ok(roots(engine)?.into_iter().chain(kept.iter().copied()).collect());
    Ok(store.gc(&mut roots, &mut |layer| objects_of(store, layer))?)
}
