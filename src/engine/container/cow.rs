//! What a container wrote to volumes that keep it from their source (`cow`): shown, brought into the source, or dropped.
//!
//! Each such volume has a writable layer below the container's snapshot, `cow/<number>`, which goes with the container.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use base::{ContainerId, Context, Kind, Report};
use snapshot::cow::{self, DirectoryLower, Lost};
use snapshot::native::Truth;
use snapshot::{Meta, native, owner_client};

use crate::Engine;
use crate::container::diff::Change;
use crate::container::lock::lock;
use crate::container::record::{Record, load};
use crate::container::rootfs::{outer_namespace, read_map};
use crate::container::snapshot::{change, cow_directory, remove_layer};
use crate::container::state::condition;
use crate::container::{lookup, spec};

/// One volume of a container whose writes are kept from its source.
struct Layer {
    record: Record,
    number: usize,
    /// Of the layer; there is none before the first start.
    dir: PathBuf,
}

impl Layer {
    /// The volume that `CONTAINER[:DESTINATION]` names.
    fn find(engine: &Engine, text: &str) -> Result<(ContainerId, Layer), Report> {
        let (name, destination) = text.split_once(':').map_or((text, None), |(name, place)| (name, Some(place)));
        let id = lookup::find(engine, name)?;
        let record = load(engine, &id)?;
        let destination = destination.map(|place| place.trim_end_matches('/'));
        let layers = record.host.volumes.iter().enumerate().filter(|(_, volume)| volume.cow);
        let wanted = layers.filter(|(_, volume)| destination.is_none_or(|place| place == volume.destination));
        let found: Vec<(usize, String)> = wanted.map(|(number, one)| (number, one.destination.clone())).collect();
        let number = match found.as_slice() {
            [(number, _)] => *number,
            [] => {
                let text = match destination {
                    Some(place) => format!("container {name} has no volume at {place} whose writes it keeps"),
                    None => format!("container {name} has no volume whose writes it keeps"),
                };
                return Err(Report::new(Kind::NotFound, text).with_hint("-v SOURCE:DESTINATION:cow makes one"));
            }
            several => {
                let places: Vec<String> = several.iter().map(|(_, place)| format!("{name}:{place}")).collect();
                let text = format!("container {name} has several volumes whose writes it keeps");
                return Err(Report::new(Kind::Usage, text).with_hint(format!("name one: {}", places.join(", "))));
            }
        };
        let dir = cow_directory(engine, &record, number);
        Ok((id, Layer { record, number, dir }))
    }

    fn meta(&self) -> Result<Option<Meta>, Report> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        Ok(snapshot::meta(parent, &self.number.to_string())?)
    }

    fn source(&self, engine: &Engine) -> Result<PathBuf, Report> {
        spec::source(engine, &self.record.host.volumes[self.number])
    }

    /// What differs from the source, by the paths in the container.
    fn changes(&self, engine: &Engine, runs: bool) -> Result<Vec<Change>, Report> {
        let Some(meta) = self.meta()? else { return Ok(Vec::new()) };
        let outer = read_map(outer_namespace(engine)?.as_fd())?;
        let maps = (&outer.uids[..], &outer.gids[..]);
        // Binds of real root are shifted.
        let of_source = (!nix::unistd::geteuid().is_root()).then_some(maps);
        let lower = DirectoryLower::open(&self.source(engine)?, of_source, (&meta.uid_map, &meta.gid_map))?;
        let truth = Truth::read(&self.dir, &meta, runs.then_some(maps))?;
        let upper = self.dir.join("upper");
        let found = native::changes(&upper, &lower, &truth, &|_| false)?;
        let destination = &self.record.host.volumes[self.number].destination;
        let inside = |found: Change| Change { path: format!("{destination}{}", found.path), ..found };
        Ok(found.iter().map(|one| inside(change(one))).collect())
    }
}

/// What a container has changed in the volume that `CONTAINER[:DESTINATION]` names, by path in the container.
pub fn diff(engine: &Engine, text: &str) -> Result<Vec<Change>, Report> {
    let (id, layer) = Layer::find(engine, text)?;
    let runs = condition(engine, &id)?.may_hold_foreign_files();
    layer.changes(engine, runs)
}

/// Brings it into the source and begins anew. The container must not run.
pub fn apply(engine: &Engine, text: &str) -> Result<Vec<Change>, Report> {
    let (id, layer) = Layer::find(engine, text)?;
    if let Some(name) = layer.record.host.volumes[layer.number].source.name() {
        // Its other containers, and the true owners of its files, are not known here.
        let text = format!("what is kept from volume {name} can be seen and dropped, not applied to it");
        return Err(Report::new(Kind::Unsupported, text)
            .with_hint("copy it from a running container: sublet exec CONTAINER tar -C DESTINATION -c ."));
    }
    at_rest(engine, &id, &layer, || {
        let changes = layer.changes(engine, false)?;
        let source = layer.source(engine)?;
        let lost = cow::apply(&layer.dir, &source).step(|| format!("applying to {}", source.display()))?;
        tell(engine, &source, lost);
        Ok(changes)
    })
}

/// Forgets it. The container must not run.
pub fn drop(engine: &Engine, text: &str) -> Result<(), Report> {
    let (id, layer) = Layer::find(engine, text)?;
    at_rest(engine, &id, &layer, || Ok(()))
}

/// Does something with a layer that nobody uses, which goes then.
fn at_rest<T: Default>(
    engine: &Engine,
    id: &ContainerId,
    layer: &Layer,
    act: impl FnOnce() -> Result<T, Report>,
) -> Result<T, Report> {
    let locked = lock(engine, id)?;
    if locked.condition.life.is_active() {
        let text = format!("container {} is running", id.short());
        return Err(Report::new(Kind::Conflict, text).with_hint("stop it first"));
    }
    if layer.meta()?.is_none() {
        return Ok(T::default());
    }
    if locked.condition.pids.is_some() {
        // Its monitor has not given the files back yet, and waits for the lock.
        owner_client::reclaim(outer_namespace(engine)?.as_fd(), &layer.dir)?;
    }
    let done = act()?;
    sys::step();
    let (parent, key) = (layer.dir.parent().unwrap_or(&layer.dir), layer.number.to_string());
    remove_layer(engine, parent, &key)?;
    Ok(done)
}

fn tell(engine: &Engine, source: &Path, lost: Lost) {
    let Lost { owners, left_out, acls, capabilities } = lost;
    for (count, what) in [
        (owners, "files belonged to other users of the container; they are yours now"),
        (left_out, "devices and sockets were left out"),
        (acls, "files and directories lost their ACLs, and what these gave to a group"),
        (capabilities, "programs lost their capabilities"),
    ] {
        if count > 0 {
            engine.notice(&format!("{}: {count} {what}", source.display()));
        }
    }
}
