//! The writable state of a container's root file system, kept by crate `snapshot`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base::{ContainerId, Context, Kind, Report};
use index::Index;
use layer::TarWriter;
use runtime::Rootfs;
use runtime::launch::Bind;
use runtime::outer::OuterMap;
use snapshot::fs_client::{forget, try_connect};
use snapshot::fs_role::object_fds;
use snapshot::ids::MappedIds;
use snapshot::native::{self, ChainLower, HostLower, RootLook, Truth};
use snapshot::owner_client::{ArchiveOrder, Archiving};
use snapshot::seed::Seed;
use snapshot::view_host::HostViewConfig;
use snapshot::{Driver, Meta, ObjectDirs, Ours, SnapshotError, copied, owner_client};
use sys::namespace::{Extent, IdMap};

use crate::Engine;
use crate::container::diff::{Change, ChangeKind};
use crate::container::record::Record;
use crate::container::rootfs::{self, Base, outer_namespace};
use crate::container::spec;
use crate::container::state::condition;
use crate::container::tree;
use crate::file::failed;
use crate::image::the_store;
use crate::system::limits;

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

/// A root file system that is ready to be mounted.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub rootfs: Rootfs,
    /// With the driver `tree`: to be kept until others see that the container runs.
    pub tree: Option<tree::Entered>,
}

/// Makes what takes a container's changes ready for a start, and what it stands on where nobody serves that; with the driver
/// `fuse` its server has done all. `owner` as for [`native::prepare`].
pub(crate) fn prepare(
    engine: &Engine,
    record: &Record,
    driver: Driver,
    maps: (&IdMap, &IdMap),
    owner: Option<(u32, u32)>,
    base: &Base,
) -> Result<Prepared, Report> {
    let volatile = record.host.auto_remove;
    let (snaps, key, directory) = (engine.paths().snapshots(), record.id.as_str(), directory(engine, record));
    let new = snapshot::meta(&snaps, key)?.is_none();
    let own = || "preparing the container's own directory".to_owned();
    if new && !driver.is_served() {
        tell_of_devices(engine, record, driver)?;
    }
    let rootfs = match driver {
        Driver::Fuse => return Ok(Prepared { rootfs: Rootfs::View, tree: None }),
        Driver::Overlay | Driver::Tree => {
            let root = if new && !record.image.is_host() { Some(root_look(engine, record, maps, base)?) } else { None };
            native::prepare(driver, (&snaps, key), maps, owner, root, volatile).step(own)?;
            if !new && (volatile || owner.is_some()) {
                renew_work(engine, &snaps, key, owner)?;
            }
            Rootfs::Overlay { lower: None, directory: directory.clone(), volatile }
        }
        Driver::Copy => {
            if new {
                let copied = copy(engine, record, maps, owner.is_some()).step(own);
                copied.map_err(|report| limits::explain(engine.paths().data(), report))?;
            }
            Rootfs::Copy { directory: directory.clone() }
        }
    };
    let outer = base.user_namespace.as_fd();
    let restore = if volatile { owner_client::restore_volatile } else { owner_client::restore };
    restore(outer, &directory).step(|| "giving the container's files their owners again".to_owned())?;
    if driver != Driver::Tree {
        return Ok(Prepared { rootfs, tree: None });
    }
    let tree = tree::enter(engine, record, maps, owner.is_some(), outer).step(|| "preparing the image".to_owned())?;
    let rootfs = Rootfs::Overlay { lower: Some(tree.path.clone()), directory, volatile };
    Ok(Prepared { rootfs, tree: Some(tree) })
}

/// Says what of an image a new container will lack.
fn tell_of_devices(engine: &Engine, record: &Record, driver: Driver) -> Result<(), Report> {
    match snapshot::seed::devices(&chain(engine, record)?)? {
        0 => Ok(()),
        count => engine.step_down(&format!(
            "rootfs: with the storage driver {} the container lacks {count} device nodes of its image, which nobody can make without \
             root (commit and export keep them)",
            driver.as_str()
        )),
    }
}

/// Copies the image for a container. `log_all` as [`Seed::log_all`].
fn copy(engine: &Engine, record: &Record, maps: (&IdMap, &IdMap), log_all: bool) -> Result<(), Report> {
    let (index, objects) = (chain(engine, record)?, ObjectDirs::of(the_store(engine)?.objects())?);
    let owner = shown_owner(maps);
    let how = Seed { owner: &owner, log_all, sync: !record.host.auto_remove };
    Ok(copied::prepare(&engine.paths().snapshots(), record.id.as_str(), maps, (&index, &objects), how)?)
}

/// The outer ids of an image's, as far as a container has them.
pub(crate) fn shown_owner<'a>(maps: (&'a IdMap, &'a IdMap)) -> impl Fn(u32, u32) -> (u32, u32) + 'a {
    let ids = MappedIds { uids: total(maps.0), gids: total(maps.1) };
    move |uid, gid| (outside(maps.0, ids.show_uid(uid)), outside(maps.1, ids.show_gid(gid)))
}

/// Gives a snapshot that was used before a new scratch. It needs one after a `volatile` mount, and where the caller is real root,
/// who has got the old one back and has no id in the container.
fn renew_work(engine: &Engine, snaps: &Path, key: &str, owner: Option<(u32, u32)>) -> Result<(), Report> {
    remove_layer(engine, &snaps.join(key), "work")?;
    Ok(native::make_work(snaps, key, owner)?)
}

/// Makes ready what binds of a container need beyond a mount. `maps` and `owner` as for [`prepare`].
pub(crate) fn prepare_binds(
    engine: &Engine,
    record: &Record,
    maps: (&IdMap, &IdMap),
    owner: Option<(u32, u32)>,
    base: &Base,
) -> Result<BTreeMap<PathBuf, Bind>, Report> {
    let mut binds = BTreeMap::new();
    for (number, volume) in record.host.volumes.iter().enumerate() {
        let layers = volume
            .cow
            .then(|| prepare_cow(engine, record, number, maps, owner, base))
            .transpose()
            .step(|| format!("preparing the writable layer of {}", volume.destination))?;
        let subpath = volume.subpath.as_ref().map(PathBuf::from);
        let bind = Bind { subpath, layers, chown: volume.chown, joined: false };
        if bind != Bind::default() {
            binds.insert(PathBuf::from(&volume.destination), bind);
        }
    }
    Ok(binds)
}

/// The directory that keeps what a container writes to a volume with `cow`.
pub(crate) fn cow_directory(engine: &Engine, record: &Record, number: usize) -> PathBuf {
    directory(engine, record).join("cow").join(number.to_string())
}

fn prepare_cow(
    engine: &Engine,
    record: &Record,
    number: usize,
    maps: (&IdMap, &IdMap),
    owner: Option<(u32, u32)>,
    base: &Base,
) -> Result<PathBuf, Report> {
    let directory = cow_directory(engine, record, number);
    let volume = &record.host.volumes[number];
    let source = spec::source(engine, volume)?;
    let metadata = std::fs::metadata(&source).map_err(|error| failed("looking at", &source, error))?;
    if !metadata.is_dir() {
        return Err(Report::new(Kind::Usage, format!("{} is no directory", source.display()))
            .with_hint("only writes to a directory can be kept from it (cow, O)"));
    }
    let ours = std::fs::canonicalize(engine.paths().data()).ok();
    let real = std::fs::canonicalize(&source).map_err(|error| failed("resolving", &source, error))?;
    if ours.is_some_and(|ours| ours.starts_with(&real)) {
        // overlayfs must not write into what it stands on.
        let text = format!("sublet's own data directory lies in {}", source.display());
        return Err(Report::new(Kind::Unsupported, text).with_hint("keep writes (cow) from a directory without it"));
    }
    let outer = |map: &[Extent], id: u32| Extent::to_inside(map, id).unwrap_or(0);
    // Binds of real root are shifted: there the numbers on the disk are the outer ones.
    let ids = match owner {
        Some(_) => (metadata.uid(), metadata.gid()),
        None => (outer(&base.map.uids, metadata.uid()), outer(&base.map.gids, metadata.gid())),
    };
    let root = RootLook {
        permissions: (metadata.mode() & 0o7777) as u16,
        owner: ids,
        mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
    };
    let parent = directory.parent().unwrap_or(&directory);
    let key = number.to_string();
    let new = snapshot::meta(parent, &key)?.is_none();
    native::prepare(Driver::Overlay, (parent, &key), maps, owner, Some(root), record.host.auto_remove)?;
    if !new && owner.is_some() {
        renew_work(engine, parent, &key, owner)?;
    }
    owner_client::restore(base.user_namespace.as_fd(), &directory)
        .step(|| "giving its files their owners again".to_owned())?;
    Ok(directory)
}

/// The native layers of a container, which hold files of other ids while it runs.
pub(crate) fn native_layers(engine: &Engine, record: &Record, driver: Driver) -> Vec<PathBuf> {
    let root = driver.is_native().then(|| directory(engine, record));
    let volumes = record.host.volumes.iter().enumerate().filter(|(_, volume)| volume.cow);
    root.into_iter().chain(volumes.map(|(number, _)| cow_directory(engine, record, number))).collect()
}

/// How the root directory of a container's image looks, as far as the container's ids go.
fn root_look(engine: &Engine, record: &Record, maps: (&IdMap, &IdMap), base: &Base) -> Result<RootLook, Report> {
    // The server of an earlier version of the program did not say.
    let look = base.root.map_or_else(|| rootfs::root_look(chain_file(engine, record)?), Ok)?;
    let (uid, gid) = look.owner;
    Ok(RootLook { owner: (outside(maps.0, uid), outside(maps.1, gid)), ..look })
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
pub(crate) fn outside(map: &[Extent], id: u32) -> u32 {
    Extent::to_outside(map, id).or_else(|| Extent::to_outside(map, 0)).unwrap_or(0)
}

/// The host's id of an outer one.
fn host_id(id: u32, outer: &[Extent]) -> u32 {
    Extent::to_outside(outer, id).unwrap_or(id)
}

/// Deletes a writable layer. Only when files of other ids resist is the outer user namespace needed.
pub(crate) fn remove_layer(engine: &Engine, parent: &Path, key: &str) -> Result<(), Report> {
    match snapshot::remove(parent, key, None) {
        Err(SnapshotError::NeedsOuter { .. }) => {
            Ok(snapshot::remove(parent, key, Some(outer_namespace(engine)?.as_fd()))?)
        }
        removed => Ok(removed?),
    }
}

/// Deletes what a container has written.
pub(crate) fn remove(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let places = rootfs::Places::of(engine);
    // Its server has files open while it waits for another start. One that does not answer has ended, or is waited for.
    if let Ok(Some(server)) = try_connect(&places.as_ref(), &rootfs::key_of_container(id)) {
        let _ = server.leave();
    }
    remove_layer(engine, &engine.paths().snapshots(), id.as_str())
        .step(|| "removing the container's own directory".to_owned())?;
    forget(&places.as_ref(), &rootfs::key_of_container(id))
        .step(|| "removing what is left of the container's file server".to_owned())
}

/// What a container has changed, by path; without the mount points and files of `/etc` that every container gets.
pub(crate) fn changes(engine: &Engine, record: &Record) -> Result<Vec<Change>, Report> {
    let (snaps, key) = (engine.paths().snapshots(), record.id.as_str());
    let Some(meta) = snapshot::meta(&snaps, key)? else { return Ok(Vec::new()) };
    let ours = ours();
    let left_out = |path: &[u8]| ours.has(path);
    let found = match meta.driver {
        Driver::Fuse => snapshot::own::changes(&snaps, key, chain(engine, record)?, &left_out)?,
        Driver::Overlay | Driver::Tree | Driver::Copy => native_changes(engine, record, &meta, &left_out)?,
    };
    Ok(ours.without_parents(found).iter().map(change).collect())
}

pub(crate) fn change(change: &snapshot::Change) -> Change {
    let path = change.path.to_string_lossy().into_owned();
    let kind = match change.kind {
        snapshot::ChangeKind::Added => ChangeKind::Added,
        snapshot::ChangeKind::Changed => ChangeKind::Changed,
        snapshot::ChangeKind::Deleted => ChangeKind::Deleted,
    };
    Change { path, kind }
}

/// What is the engine's in every container.
fn ours() -> Ours {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    Ours { paths: texts(&OURS), parents: texts(&OUR_PARENTS) }
}

/// A container's changes, ready to be written as the archive of a layer.
pub(crate) enum Archive {
    /// By the role `owner`, which may read what a container keeps from us, and waits while its monitor gives that back.
    ByOwner(Box<Archiving>),
    /// Of a native upper at rest.
    Native { upper: OwnedFd, dir: PathBuf, lower: Below, meta: Box<Meta>, map: OuterMap },
    /// Of our own overlay.
    Own { snaps: PathBuf, key: String, chain: Box<Index>, objects: ObjectDirs },
}

/// What a native upper stands on.
pub(crate) enum Below {
    Host(HostViewConfig),
    Chain(Box<Index>, MappedIds, ObjectDirs),
}

/// Opens a container's changes; `None` when it was never started. `closed` says that files of other ids may lie there. The
/// caller holds the container's lock and has one thread. No time in the archive will be later than `latest_s`.
pub(crate) fn open_archive(
    engine: &Engine,
    record: &Record,
    closed: bool,
    latest_s: Option<i64>,
) -> Result<Option<Archive>, Report> {
    let (snaps, key) = (engine.paths().snapshots(), record.id.as_str());
    let Some(meta) = snapshot::meta(&snaps, key)? else { return Ok(None) };
    if meta.driver == Driver::Fuse {
        let store = the_store(engine)?;
        let objects = ObjectDirs::of(store.objects())?;
        let chain = chain(engine, record)?;
        return Ok(Some(Archive::Own { snaps, key: key.to_owned(), chain: Box::new(chain), objects }));
    }
    let outer = outer_namespace(engine)?;
    let map = rootfs::read_map(outer.as_fd())?;
    let ids = MappedIds { uids: total(&meta.uid_map), gids: total(&meta.gid_map) };
    let host = record.image.is_host().then(|| rootfs::host_view(engine, record, ids));
    let dir = directory(engine, record);
    if closed {
        let index = if host.is_some() { None } else { Some(chain_file(engine, record)?) };
        let store = (meta.driver == Driver::Copy).then(|| the_store(engine)).transpose()?;
        let objects = store.as_ref().map(|store| object_fds(store.objects())).transpose()?.unwrap_or_default();
        let below = index.as_ref().map(|index| ("index", index.as_fd())).into_iter();
        let below: Vec<_> = below.chain(objects.iter().map(|(name, dir)| (name.as_str(), *dir))).collect();
        let order = ArchiveOrder { meta, ours: ours(), ids, host, latest_s };
        let archiving = owner_client::archive(outer.as_fd(), &dir, order, &below)?;
        return Ok(Some(Archive::ByOwner(Box::new(archiving))));
    }
    let lower = match host {
        Some(config) => Below::Host(config),
        None => Below::Chain(Box::new(chain(engine, record)?), ids, ObjectDirs::of(the_store(engine)?.objects())?),
    };
    let upper = sys::socket::open_directory(&native::places(&snaps, key).upper)?;
    Ok(Some(Archive::Native { upper, dir, lower, meta: Box::new(meta), map }))
}

impl Archive {
    /// Writes the archive to its end; how many sockets had to be left out.
    pub(crate) fn write(self, out: &mut dyn Write, latest_s: Option<i64>) -> Result<u64, Report> {
        let ours = ours();
        match self {
            Archive::ByOwner(mut archiving) => {
                let copied = std::io::copy(archiving.archive(), out);
                let finished = archiving.finish();
                // What cannot be written here the role only sees as a pipe that nobody reads. What it says is why an archive
                // that was read to its end ended early.
                copied.map_err(|error| Report::of(Kind::Internal, error))?;
                Ok(finished?)
            }
            Archive::Native { upper, dir, lower, meta, map } => {
                let mut to = TarWriter::new(out, latest_s);
                let truth = Truth::read(&dir, &meta, Some((&map.uids, &map.gids)))?;
                let upper = upper.as_fd();
                let sockets = match &lower {
                    Below::Host(config) => {
                        snapshot::write_native(upper, &HostLower::open(config)?, &truth, &ours, &mut to)?
                    }
                    Below::Chain(index, ids, objects) => {
                        let lower = ChainLower { index, ids: *ids, objects: Some(objects) };
                        snapshot::write_native(upper, &lower, &truth, &ours, &mut to)?
                    }
                };
                to.finish()?;
                Ok(sockets)
            }
            Archive::Own { snaps, key, chain, objects } => {
                let mut to = TarWriter::new(out, latest_s);
                let sockets = snapshot::write_own(&snaps, &key, *chain, objects, &ours, &mut to)?;
                to.finish()?;
                Ok(sockets)
            }
        }
    }
}

fn native_changes(
    engine: &Engine,
    record: &Record,
    meta: &Meta,
    left_out: &dyn Fn(&[u8]) -> bool,
) -> Result<Vec<snapshot::Change>, Report> {
    let (dir, ids) = (directory(engine, record), MappedIds { uids: total(&meta.uid_map), gids: total(&meta.gid_map) });
    // Then it may have files whose owners are the host's, and directories that are closed to the caller.
    if condition(engine, &record.id)?.may_hold_foreign_files() {
        let host = record.image.is_host().then(|| rootfs::host_view(engine, record, ids));
        let index = if host.is_some() { None } else { Some(chain_file(engine, record)?) };
        let below: Vec<_> = index.as_ref().map(|index| ("index", index.as_fd())).into_iter().collect();
        let order = ArchiveOrder { meta: meta.clone(), ours: ours(), ids, host, latest_s: None };
        return Ok(owner_client::changes(outer_namespace(engine)?.as_fd(), &dir, order, &below)?);
    }
    let truth = Truth::read(&dir, meta, None)?;
    let upper = native::places(&engine.paths().snapshots(), record.id.as_str()).upper;
    if record.image.is_host() {
        let config = rootfs::host_view(engine, record, ids);
        Ok(native::changes(&upper, &HostLower::open(&config)?, &truth, left_out)?)
    } else {
        let index = chain(engine, record)?;
        Ok(native::changes(&upper, &ChainLower { index: &index, ids, objects: None }, &truth, left_out)?)
    }
}

/// How many ids a map has; a snapshot of an earlier version of the program has no map, and then all are taken as they are.
fn total(map: &[Extent]) -> u32 {
    if map.is_empty() { u32::MAX } else { map.iter().map(|extent| extent.size).sum() }
}

/// The merged index of a container's image.
pub(crate) fn chain(engine: &Engine, record: &Record) -> Result<Index, Report> {
    Index::open(chain_file(engine, record)?).map_err(|error| Report::of(Kind::Internal, error))
}

fn chain_file(engine: &Engine, record: &Record) -> Result<File, Report> {
    let store = the_store(engine)?;
    rootfs::chain_index(&store, record)
}
