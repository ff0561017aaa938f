//! Everything that nothing needs, in one go.

use base::Report;

use crate::Engine;
use crate::container;
use crate::image::{self, PruneRequest, open_store};
use crate::volume;

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Containers that did not run.
    pub containers: container::prune::Pruned,
    /// Volumes.
    pub volumes: volume::prune::Pruned,
    /// Images.
    pub images: image::Pruned,
    /// Bytes of downloads that were interrupted.
    pub partial_bytes: u64,
}

impl Pruned {
    /// All bytes.
    pub fn freed_bytes(&self) -> u64 {
        self.containers.freed_bytes + self.volumes.freed_bytes + self.images.freed_bytes + self.partial_bytes
    }
}

/// Removes containers that do not run, with `volumes` anonymous volumes that none has, then images on which none stands, and
/// without a filter interrupted downloads.
pub fn prune(engine: &Engine, request: &PruneRequest, volumes: bool) -> Result<Pruned, Report> {
    let mut pruned = Pruned {
        containers: container::prune::prune(engine, &request.filter)?,
        volumes: if volumes {
            volume::prune::prune(engine, false, &request.filter)?
        } else {
            volume::prune::Pruned::default()
        },
        images: image::prune(engine, request)?,
        partial_bytes: 0,
    };
    if let Some(store) = open_store(engine)?.filter(|_| request.filter.is_empty()) {
        for partial in store.partials()? {
            pruned.partial_bytes += store.drop_partial(&partial.digest)?.unwrap_or(0);
        }
    }
    Ok(pruned)
}
