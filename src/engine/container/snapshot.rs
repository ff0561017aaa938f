//! The writable state of a container's root file system, kept by crate `snapshot`.

use std::os::fd::AsFd;
use std::path::PathBuf;

use base::{Context, Kind, Report};
use runtime::outer::OuterMap;
use snapshot::ids::MappedIds;
use snapshot::native::{self, NativeError};
use snapshot::owner_client;
use snapshot::view_host::HostViewConfig;
use store::Store;
use sys::namespace::Extent;

use crate::Engine;
use crate::container::diff::{Change, ChangeKind};
use crate::container::record::Record;
use crate::container::rootfs::{Base, outer_namespace};

/// Mount points that init makes where an image lacks them, and the files of `/etc` that are bound into each container.
const OURS: [&str; 12] = [
    "/dev",
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
    "/sys/fs",
];

/// Makes the directories that take a container's changes; `owner` as for [`native::prepare`].
pub(crate) fn prepare(engine: &Engine, record: &Record, owner: Option<(u32, u32)>, base: &Base) -> Result<(), Report> {
    native::prepare(&engine.paths().snapshots(), record.id.as_str(), owner)
        .step(|| "preparing the container's own directory".to_owned())?;
    owner_client::restore(base.connection.user_namespace.as_fd(), &directory(engine, record))
        .step(|| "giving the container's files their owners again".to_owned())
}

/// The host's ids of the container's root where the caller itself has no id in the outer namespace, as real root has
/// none: what is to be the container's must be given to them.
pub(crate) fn foreign_root(outer: &OuterMap, uid_map: &[Extent], gid_map: &[Extent]) -> Option<(u32, u32)> {
    let caller = nix::unistd::geteuid().as_raw();
    let mapped = outer.uids.iter().any(|extent| caller >= extent.outside && caller - extent.outside < extent.size);
    (!mapped).then(|| (host_id(outside(uid_map), &outer.uids), host_id(outside(gid_map), &outer.gids)))
}

/// The directory of a container's snapshot.
pub(crate) fn directory(engine: &Engine, record: &Record) -> PathBuf {
    engine.paths().snapshots().join(record.id.as_str())
}

/// The outer id of a container's root.
fn outside(map: &[Extent]) -> u32 {
    map.iter().find(|extent| extent.inside == 0).map_or(0, |extent| extent.outside)
}

/// The host's id of an outer one.
fn host_id(id: u32, outer: &[Extent]) -> u32 {
    let extent = outer.iter().find(|extent| id >= extent.inside && id - extent.inside < extent.size);
    extent.map_or(id, |extent| extent.outside + (id - extent.inside))
}

/// Deletes what a container has written. Only when files of other ids resist is the outer user namespace needed.
pub(crate) fn remove(engine: &Engine, record: &Record) -> Result<(), Report> {
    let (snaps, key) = (engine.paths().snapshots(), record.id.as_str());
    let removed = match native::remove(&snaps, key, None) {
        Err(NativeError::NeedsOuter { .. }) => {
            let outer = outer_namespace(engine)?;
            native::remove(&snaps, key, Some(outer.as_fd()))
        }
        result => result,
    };
    removed.step(|| "removing the container's own directory".to_owned())
}

/// What a container has changed, by path; without the mount points and files of `/etc` that every container gets.
pub(crate) fn changes(engine: &Engine, record: &Record) -> Result<Vec<Change>, Report> {
    let upper = native::places(&engine.paths().snapshots(), record.id.as_str()).upper;
    if !upper.exists() {
        return Ok(Vec::new());
    }
    let found = if record.image.is_host() {
        let all = MappedIds { uids: u32::MAX, gids: u32::MAX };
        let config = HostViewConfig::new(all, record.host.host_home, &[engine.paths().data(), engine.paths().run()]);
        native::changes(&upper, &native::HostLower::open(&config)?)?
    } else {
        let store = Store::open(&engine.paths().store(), false)?;
        let chain = record.image.chain.ok_or_else(|| Report::new(Kind::Internal, "an image without a chain"))?;
        let file = store.chains().open(&chain.0)?;
        let file = file.ok_or_else(|| Report::new(Kind::NotFound, "the image's index is not in the store"))?;
        let index = index::Index::open(file).map_err(|error| Report::of(Kind::Internal, error))?;
        native::changes(&upper, &index)?
    };
    let ours = |path: &str| OURS.contains(&path);
    let change = |change: native::Change| {
        let path = format!("/{}", change.path.to_string_lossy().trim_start_matches('/'));
        let kind = match change.kind {
            native::ChangeKind::Added => ChangeKind::Added,
            native::ChangeKind::Changed => ChangeKind::Changed,
            native::ChangeKind::Deleted => ChangeKind::Deleted,
        };
        (!ours(&path)).then_some(Change { path, kind })
    };
    Ok(found.into_iter().filter_map(change).collect())
}
