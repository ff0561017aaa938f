//! The writable state of a container's root file system, kept by crate `snapshot`.

use std::os::fd::AsFd;
use std::path::PathBuf;

use base::{ContainerId, Context, Kind, Report};
use runtime::Rootfs;
use runtime::outer::OuterMap;
use snapshot::fs_client::forget;
use snapshot::ids::MappedIds;
use snapshot::native::{self, ChainLower, HostLower, Truth};
use snapshot::{Driver, Meta, SnapshotError, owner_client};
use sys::namespace::{Extent, IdMap};

use crate::Engine;
use crate::container::diff::{Change, ChangeKind};
use crate::container::record::Record;
use crate::container::rootfs::{self, Base, outer_namespace};
use crate::container::state::condition;
use crate::image::make_store;

/// Mount points that init makes where an image lacks them, and the files of `/etc` that are bound into each container.
const OURS: [&str; 11] = [
    "/dev/console",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/proc",
    "/sys",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/.dockerenv",
];
/// Directories that are made for them where an image lacks them.
const OUR_PARENTS: [&str; 2] = ["/dev", "/etc"];

/// Makes what takes a container's changes ready for a start; with the driver `fuse` its server has done that. `owner` as
/// for [`native::prepare`].
pub(crate) fn prepare(
    engine: &Engine,
    record: &Record,
    driver: Driver,
    maps: (&IdMap, &IdMap),
    owner: Option<(u32, u32)>,
    base: &Base,
) -> Result<Rootfs, Report> {
    if driver == Driver::Fuse {
        return Ok(Rootfs::View);
    }
    let volatile = record.host.auto_remove;
    native::prepare(&engine.paths().snapshots(), record.id.as_str(), maps, owner, volatile)
        .step(|| "preparing the container's own directory".to_owned())?;
    let directory = directory(engine, record);
    owner_client::restore(base.connection.user_namespace.as_fd(), &directory)
        .step(|| "giving the container's files their owners again".to_owned())?;
    Ok(Rootfs::Overlay { directory, volatile })
}

/// The host's ids of the container's root where the caller itself has no id in the outer namespace, as real root has
/// none: what is to be the container's must be given to them.
pub(crate) fn foreign_root(outer: &OuterMap, uid_map: &[Extent], gid_map: &[Extent]) -> Option<(u32, u32)> {
    let caller = nix::unistd::geteuid().as_raw();
    let mapped = outer.uids.iter().any(|extent| caller >= extent.outside && caller - extent.outside < extent.size);
    (!mapped).then(|| host_ids(outer, (uid_map, gid_map), (0, 0)))
}

/// The host's ids of a user and a group of the container; those of its root stand for ids that it has not.
pub(crate) fn host_ids(outer: &OuterMap, maps: (&[Extent], &[Extent]), (uid, gid): (u32, u32)) -> (u32, u32) {
    (host_id(outside(maps.0, uid), &outer.uids), host_id(outside(maps.1, gid), &outer.gids))
}

/// The directory of a container's snapshot.
pub(crate) fn directory(engine: &Engine, record: &Record) -> PathBuf {
    engine.paths().snapshots().join(record.id.as_str())
}

/// The outer id of a container's, or of its root.
fn outside(map: &[Extent], id: u32) -> u32 {
    let find = |id: u32| map.iter().find(|extent| id >= extent.inside && id - extent.inside < extent.size);
    let extent = |id: u32| find(id).map(|extent| extent.outside + (id - extent.inside));
    extent(id).or_else(|| extent(0)).unwrap_or(0)
}

/// The host's id of an outer one.
fn host_id(id: u32, outer: &[Extent]) -> u32 {
    let extent = outer.iter().find(|extent| id >= extent.inside && id - extent.inside < extent.size);
    extent.map_or(id, |extent| extent.outside + (id - extent.inside))
}

/// Deletes what a container has written. Only when files of other ids resist is the outer user namespace needed.
pub(crate) fn remove(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let (snaps, key) = (engine.paths().snapshots(), id.as_str());
    let removed = match snapshot::remove(&snaps, key, None) {
        Err(SnapshotError::NeedsOuter { .. }) => {
            let outer = outer_namespace(engine)?;
            snapshot::remove(&snaps, key, Some(outer.as_fd()))
        }
        result => result,
    };
    removed.step(|| "removing the container's own directory".to_owned())?;
    let places = rootfs::Places::of(engine);
    forget(&places.as_ref(), &rootfs::key_of_container(id))
        .step(|| "removing what is left of the container's file server".to_owned())
}

/// What a container has changed, by path; without the mount points and files of `/etc` that every container gets.
pub(crate) fn changes(engine: &Engine, record: &Record) -> Result<Vec<Change>, Report> {
    let (snaps, key) = (engine.paths().snapshots(), record.id.as_str());
    let Some(meta) = snapshot::meta(&snaps, key)? else { return Ok(Vec::new()) };
    let left_out = |path: &[u8]| OURS.iter().any(|ours| ours.as_bytes() == path);
    let found = match meta.driver {
        Driver::Fuse => snapshot::own::changes(&snaps, key, chain(engine, record)?, &left_out)?,
        Driver::Overlay => native_changes(engine, record, &meta, &left_out)?,
    };
    let change = |change: snapshot::Change| {
        let path = change.path.to_string_lossy().into_owned();
        let kind = match change.kind {
            snapshot::ChangeKind::Added => ChangeKind::Added,
            snapshot::ChangeKind::Changed => ChangeKind::Changed,
            snapshot::ChangeKind::Deleted => ChangeKind::Deleted,
        };
        Change { path, kind }
    };
    Ok(without_our_parents(found.into_iter().map(change).collect()))
}

/// A directory that was only made to hold what is ours is no change; with something else in it, it was there before.
fn without_our_parents(mut changes: Vec<Change>) -> Vec<Change> {
    for parent in OUR_PARENTS {
        let below = format!("{parent}/");
        let holds = changes.iter().any(|change| change.path.starts_with(&below));
        if let Some(at) = changes.iter().position(|change| change.path == parent && change.kind == ChangeKind::Added) {
            if holds {
                changes[at].kind = ChangeKind::Changed;
            } else {
                changes.remove(at);
            }
        }
    }
    changes
}

fn native_changes(
    engine: &Engine,
    record: &Record,
    meta: &Meta,
    left_out: &dyn Fn(&[u8]) -> bool,
) -> Result<Vec<snapshot::Change>, Report> {
    // Only while it runs has it files whose owners are the host's.
    let outer = if condition(engine, &record.id)?.life.is_active() {
        Some(rootfs::read_map(outer_namespace(engine)?.as_fd())?)
    } else {
        None
    };
    let maps = outer.as_ref().map(|map| (&map.uids[..], &map.gids[..]));
    let truth = Truth::read(&directory(engine, record), meta, maps)?;
    let upper = native::places(&engine.paths().snapshots(), record.id.as_str()).upper;
    let ids = MappedIds { uids: total(&meta.uid_map), gids: total(&meta.gid_map) };
    if record.image.is_host() {
        let config = rootfs::host_view(engine, record, ids);
        Ok(native::changes(&upper, &HostLower::open(&config)?, &truth, left_out)?)
    } else {
        let index = chain(engine, record)?;
        Ok(native::changes(&upper, &ChainLower { index: &index, ids }, &truth, left_out)?)
    }
}

/// How many ids a map has; a snapshot of an earlier version of the program has no map, and then all are taken as they are.
fn total(map: &[Extent]) -> u32 {
    if map.is_empty() { u32::MAX } else { map.iter().map(|extent| extent.size).sum() }
}

/// The merged index of a container's image.
fn chain(engine: &Engine, record: &Record) -> Result<index::Index, Report> {
    let store = make_store(engine)?;
    index::Index::open(rootfs::chain_index(&store, record)?).map_err(|error| Report::of(Kind::Internal, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_made_for_our_files_is_no_change() {
        let change = |kind, path: &str| Change { path: path.to_owned(), kind };
        let (added, changed) = (ChangeKind::Added, ChangeKind::Changed);
        assert_eq!(without_our_parents(vec![change(added, "/etc"), change(added, "/x")]), [change(added, "/x")]);
        let filled = vec![change(added, "/etc"), change(added, "/etc/x")];
        assert_eq!(without_our_parents(filled), [change(changed, "/etc"), change(added, "/etc/x")]);
        let theirs = vec![change(changed, "/etc")];
        assert_eq!(without_our_parents(theirs.clone()), theirs);
    }
}
