//! A container's whole root file system as one archive.
//!
//! Its changes become a layer, as for `commit` but without a name, and the archive is that of the image's layers with it on
//! top: what another engine would see that unpacks all of them. The next sweep takes the layer away.

use std::io::Write;

use base::{ContainerId, Context, Kind, Report};
use index::Index;
use layer::{Objects, TarWriter};
use oci::DiffId;

use crate::Engine;
use crate::container::commit::{CommitRequest, layer_of};
use crate::container::lock::lock;
use crate::container::record::load;
use crate::image::the_store;

/// Writes a container's root file system to `out`. With `epoch_s`, seconds since 1970, no file is younger.
pub fn export(engine: &Engine, id: &ContainerId, epoch_s: Option<i64>, out: &mut dyn Write) -> Result<(), Report> {
    exported(engine, id, epoch_s, out).step(|| format!("cannot export container {}", id.short()))
}

fn exported(engine: &Engine, id: &ContainerId, epoch_s: Option<i64>, out: &mut dyn Write) -> Result<(), Report> {
    let record = load(engine, id)?;
    if record.image.is_host() {
        return Err(Report::new(Kind::Unsupported, "its root file system is this machine's own")
            .with_hint("`sublet commit` makes an image of what it changed"));
    }
    let held = lock(engine, id)?;
    let store = the_store(engine)?;
    let _lease = store.lease()?;
    let request = CommitRequest { pause: true, epoch_s, ..CommitRequest::default() };
    let made = layer_of(engine, &store, &record, held, &request, &|_| {})?;
    if record.image.layers.is_empty() {
        return Err(Report::new(Kind::Unsupported, format!("image {} has no layers", record.image.reference)));
    }
    // Not the index that containers are started from, which has their mount points.
    let diff_ids = record.image.layers.iter().copied().map(DiffId).chain(made.map(|made| made.applied.diff_id));
    let layers = diff_ids.map(|layer| layer::open_layer(&store, layer)).collect::<Result<Vec<_>, _>>()?;
    let index = Index::from_bytes(index::merge(&layers.iter().collect::<Vec<_>>())?)?;
    let mut to = TarWriter::new(out, epoch_s);
    layer::write_tree(&index, &mut Objects::of(&store), &mut to)?;
    let out = to.finish()?;
    out.flush().map_err(|error| Report::of(Kind::Internal, error)).step(|| "writing the archive".to_owned())
}
