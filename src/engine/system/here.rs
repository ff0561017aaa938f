//! The stores of this machine in the data directory, for what concerns all of them.

use base::{ContainerId, Report};

use crate::Engine;
use crate::container::lookup;
use crate::file::failed;

/// One engine for each store that this machine has used.
pub(crate) fn stores(engine: &Engine) -> Result<Vec<Engine>, Report> {
    let paths = engine.paths();
    let all = paths.everywhere().map_err(|error| failed("reading directories below", paths.data(), error))?;
    let here = all.into_iter().filter(|other| other.elsewhere(paths).is_none());
    Ok(here.map(|paths| Engine::open(paths, engine.options().clone())).collect())
}

/// The containers of all of them.
pub(crate) fn containers(engine: &Engine) -> Result<Vec<(Engine, ContainerId)>, Report> {
    let mut all = Vec::new();
    for store in stores(engine)? {
        all.extend(lookup::ids(&store)?.into_iter().map(|id| (store.clone(), id)));
    }
    Ok(all)
}
