//! Removing containers that do not run.

use std::time::SystemTime;

use base::{ContainerId, Kind, Report};

use crate::Engine;
use crate::container::list::list;
use crate::container::remove::With;
use crate::container::{remove, unstarted};
use crate::image::sweep::unused_trees;
use crate::system::du::{self, Usage};
use crate::system::filter::PruneFilter;

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The containers.
    pub deleted: Vec<ContainerId>,
    /// Bytes on the disk.
    pub freed_bytes: u64,
}

/// Removes the containers that do not run and match the filter, and without a filter what was written out of images that no
/// container has any more. One that is started or removed meanwhile is passed over.
pub fn prune(engine: &Engine, filter: &PruneFilter) -> Result<Pruned, Report> {
    unstarted::sweep(engine);
    let (containers, broken) = list(engine, SystemTime::now())?;
    for report in broken {
        engine.notice(&report.to_string());
    }
    let mut pruned = Pruned::default();
    let going = containers.into_iter().filter(|one| !one.life.is_active());
    for container in going.filter(|one| filter.matches(Some(one.created), &one.labels)) {
        let freed_bytes = usage(engine, &container.id)?.bytes;
        match remove::remove(engine, &container.id, With::default()) {
            Err(report) if matches!(report.kind(), Kind::NotFound | Kind::Conflict) => continue,
            removed => removed?,
        }
        pruned.freed_bytes += freed_bytes;
        pruned.deleted.push(container.id);
    }
    if filter.is_empty() {
        pruned.freed_bytes += unused_trees(engine);
    }
    Ok(pruned)
}

/// What a container takes on the disk: its records, its log and what it wrote.
pub(crate) fn usage(engine: &Engine, id: &ContainerId) -> Result<Usage, Report> {
    let mut usage = du::of(&engine.paths().container(id))?;
    usage += du::of(&engine.paths().snapshots().join(id.as_str()))?;
    Ok(usage)
}
