//! A volume's way into a container and back: filled at its first use, its owners put back at a start, its files given back
//! to the caller when the last container that has it has ended.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};

use base::{ContainerId, Context, Report};
use snapshot::owner_client::{is_logged, reclaim_volume, restore_volume};
use sys::namespace::IdMap;

use crate::Engine;
use crate::container::record::Record;
use crate::container::remove::remove_file;
use crate::container::rootfs::outer_namespace;
use crate::container::tree;
use crate::file::failed;
use crate::held::{Held, Hold};
use crate::paths::Paths;
use crate::volume::seed::{self, Seeding};
use crate::volume::{directory, hold, missing, read, users};

/// Makes a container's volumes ready for its start, until whose end nobody may give them back: the answer is to be kept so
/// long. Where this fails [`leave`] is to follow. The caller has one thread.
pub(crate) fn enter(
    engine: &Engine,
    record: &Record,
    outer: BorrowedFd<'_>,
    maps: (&IdMap, &IdMap),
) -> Result<Vec<Held>, Report> {
    let seeding = Seeding::new(engine, record, maps);
    let names = record.volume_names();
    let entered = names.iter().map(|name| enter_one(engine, name, &seeding, outer).step(|| format!("volume {name}")));
    entered.collect()
}

/// Gives the files of a container's volumes, and of its image's tree, back whose start has failed before there was a monitor
/// to do it. The first failure is the one to tell; the next command that looks at them tries again.
pub(crate) fn leave(engine: &Engine, record: &Record) {
    let _ = tree::give_back(engine, &record.id, None);
    for name in record.volume_names() {
        let _ = give_back(engine, &name, None);
    }
}

fn enter_one(engine: &Engine, name: &str, seeding: &Seeding<'_>, outer: BorrowedFd<'_>) -> Result<Held, Report> {
    let gone = || missing(name);
    let mut held = hold(engine, name, Hold::Shared)?.ok_or_else(gone)?;
    let volume = read(engine, name)?.ok_or_else(gone)?;
    if volume.options.contains_key("device") {
        return Ok(held);
    }
    let dir = directory(engine, name);
    let used = dir.join("used");
    if is_logged(&dir) || seed::is_half_done(&dir) || seeding.is_wanted(name, &dir)? {
        // Given up first: two that wait for each other's would wait for ever.
        drop(held);
        held = hold(engine, name, Hold::Exclusive)?.ok_or_else(gone)?;
        seed::finish(&dir)?;
        // Who has it already must not see it fill.
        if seeding.is_wanted(name, &dir)? && !users(engine, name)?.iter().any(|(_, active)| *active) {
            seeding.seed(name, &dir)?;
        }
        // Before its files may become others'.
        File::create(&used).map_err(|error| failed("making", &used, error))?;
        restore_volume(outer, &dir).step(|| "giving its files their owners again".to_owned())?;
        held.take(Hold::Shared)?;
    }
    File::create(&used).map_err(|error| failed("making", &used, error))?;
    Ok(held)
}

/// Gives the files of volumes and trees back whose containers have ended, for a monitor and its outer user namespace.
pub fn after_exit(order: &str, outer: BorrowedFd<'_>) -> Result<(), Report> {
    let (paths, names, in_tree): (Paths, Vec<String>, Option<ContainerId>) =
        serde_json::from_str(order).map_err(|error| Report::of(base::Kind::Internal, error))?;
    let engine = Engine::open(paths, crate::Options::default());
    let given = names.iter().map(|name| give_back(&engine, name, Some(outer)).step(|| format!("volume {name}")));
    let tree = in_tree.map(|id| tree::give_back(&engine, &id, Some(outer)).step(|| "the image's tree".to_owned()));
    let given = given.chain(tree);
    given.collect::<Vec<_>>().into_iter().collect()
}

/// What [`after_exit`] needs; `None` where a container has no volume that stays, and its image no tree.
pub(crate) fn order(engine: &Engine, record: &Record, has_tree: bool) -> Result<Option<String>, Report> {
    let mut names = record.volume_names();
    if record.host.auto_remove {
        // Those go with it.
        let goes = |name: &String| {
            record.host.volumes.iter().any(|volume| volume.anonymous && volume.source.name() == Some(name))
        };
        names.retain(|name| !goes(name));
    }
    if names.is_empty() && !has_tree {
        return Ok(None);
    }
    let order = serde_json::to_string(&(engine.paths(), names, has_tree.then_some(&record.id)));
    order.map(Some).map_err(|error| Report::of(base::Kind::Internal, error))
}

/// Gives the files of a volume back to the caller unless a container that has it runs, or nothing is to be given back.
/// Without `outer`, for a command, the outer user namespace is looked for, and nobody waits: who is at work on the volume does it
/// at the end. The caller has one thread.
pub(crate) fn give_back(engine: &Engine, name: &str, outer: Option<BorrowedFd<'_>>) -> Result<(), Report> {
    let dir = directory(engine, name);
    let used = dir.join("used");
    let is_used = || fs::symlink_metadata(&used).is_ok();
    if !is_used() {
        return Ok(());
    }
    let how = if outer.is_some() { Hold::Exclusive } else { Hold::ExclusiveIfFree };
    let Some(_held) = hold(engine, name, how)? else { return Ok(()) };
    if !is_used() || users(engine, name)?.iter().any(|(_, active)| *active) {
        return Ok(());
    }
    match outer {
        Some(outer) => reclaim_volume(outer, &dir)?,
        None => reclaim_volume(outer_namespace(engine)?.as_fd(), &dir)?,
    }
    remove_file(&used)
}
