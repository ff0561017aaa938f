//! Removing volumes that no container has.

use base::{Kind, Report};

use crate::Engine;
use crate::system::du;
use crate::system::filter::PruneFilter;
use crate::volume::list::{links, list};
use crate::volume::remove::remove;

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The names of the volumes.
    pub deleted: Vec<String>,
    /// Bytes on the disk.
    pub freed_bytes: u64,
}

/// Removes the anonymous volumes, or with `all` every volume, that no container has and that match the filter. One that is
/// taken meanwhile is passed over.
pub fn prune(engine: &Engine, all: bool, filter: &PruneFilter) -> Result<Pruned, Report> {
    let links = links(engine)?;
    let mut pruned = Pruned::default();
    for volume in list(engine)? {
        let wanted = (all || volume.is_anonymous()) && !links.contains_key(&volume.name);
        if !wanted || !filter.matches(volume.created(), &volume.labels) {
            continue;
        }
        let bytes = du::of(&engine.paths().volumes().join(&volume.name))?.bytes;
        match remove(engine, &volume.name, false) {
            Err(report) if matches!(report.kind(), Kind::NotFound | Kind::Conflict) => continue,
            removed => removed?,
        }
        pruned.freed_bytes += bytes;
        pruned.deleted.push(volume.name);
    }
    Ok(pruned)
}
