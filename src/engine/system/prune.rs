//! Everything that nothing needs, in one go.

use std::time::Duration;

use base::Report;

use crate::Engine;
use crate::container;
use crate::image::{self, PruneRequest, open_store};
use crate::system::reset;
use crate::{network, volume};

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Containers that did not run.
    pub containers: container::prune::Pruned,
    /// The names of networks.
    pub networks: Vec<String>,
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

/// Removes without a filter interrupted downloads, which makes room for the rest, then containers that do not run, networks that none
/// has, with `volumes` anonymous volumes that none has, and images on which none stands.
pub fn prune(engine: &Engine, request: &PruneRequest, volumes: bool) -> Result<Pruned, Report> {
    reset::sweep(engine);
    let mut partial_bytes = 0;
    if let Some(store) = open_store(engine)?.filter(|_| request.filter.is_empty()) {
        partial_bytes = store.drop_old_partials(Duration::ZERO)?;
    }
    Ok(Pruned {
        partial_bytes,
        containers: container::prune::prune(engine, &request.filter)?,
        networks: network::remove::prune(engine, &request.filter)?,
        volumes: if volumes {
            volume::prune::prune(engine, false, &request.filter)?
        } else {
            volume::prune::Pruned::default()
        },
        images: image::prune(engine, request)?,
    })
}
