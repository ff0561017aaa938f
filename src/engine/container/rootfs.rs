//! Where a container's root file system comes from: the outer user namespace, the fs role that serves its image, and
//! the directories that take its changes.
//!
//! There is one outer user namespace a user and host, since a view mounted in one is of no use in another. It is found
//! through any process that keeps it open (the fs role of this image, of another one, a monitor), and made only when
//! none of them lives; `outer.lock` is held from the search until an fs role keeps the new one.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::{ContainerId, Context, Kind, Ladder, Report};
use index::Index;
use monitor::client::dial;
use monitor::protocol::{self, FRAME_MAX, Frame, Received};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use oci::DiffId;
use runtime::outer::{self, Caller, Outer, OuterMap};
use serde::{Deserialize, Serialize};
use snapshot::Driver;
use snapshot::fs_client::{FsConnection, FsPlaces, FsSpec, connect_or_spawn, try_connect};
use snapshot::fs_role::{CONTAINER_LINGER_MS, FsConfig, LINGER_MS, View, object_fds};
use snapshot::host_closed;
use snapshot::ids::MappedIds;
use snapshot::native::RootLook;
use snapshot::view_host::HostViewConfig;
use store::Store;
use sys::Call;
use sys::lock::exclusive;
use sys::namespace::{Extent, IdMap, parse_map};

use crate::Engine;
use crate::container::record::{Record, UserNamespace};
use crate::container::spec::passwd_home;
use crate::container::{fit, joined};
use crate::file::{failed, read_json, replace_json};
use crate::image::the_store;
use crate::paths::make_dir;

/// How long a monitor may take to hand out the outer user namespace; it takes microseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The outer user namespace, and the served view that belongs to it.
#[derive(Debug)]
pub(crate) struct Base {
    /// The outer user namespace.
    pub user_namespace: OwnedFd,
    /// The view; `None` for drivers without one.
    pub view: Option<ServedView>,
    /// What the outer user namespace maps.
    pub map: OuterMap,
    /// How the root directory of the image's view looks, in the image's ids.
    pub root: Option<RootLook>,
    /// Which rung of the ids ladder, when the namespace was made now.
    pub ladder: Option<Ladder>,
}

/// What an fs role has handed out.
#[derive(Debug)]
pub(crate) struct ServedView {
    /// The connection that keeps it alive.
    pub socket: OwnedFd,
    /// Its processes.
    pub pids: Vec<i32>,
    /// The mount namespace whose root is the view.
    pub mount_namespace: OwnedFd,
    /// The binary on a mount that nobody can write to, where that could be made.
    pub binary: Option<OwnedFd>,
}

impl Base {
    fn of(connection: FsConnection, map: OuterMap, root: Option<RootLook>, ladder: Option<Ladder>) -> Base {
        let FsConnection { socket, pids, user_namespace, mount_namespace, binary, .. } = connection;
        let view = Some(ServedView { socket, pids, mount_namespace, binary });
        Base { user_namespace, view, map, root, ladder }
    }
}

/// What a server keeps for those who connect to it. One of an earlier version of the program has no `root`.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    map: OuterMap,
    root: Option<RootLook>,
}

/// Where the fs roles of this machine are found.
#[derive(Debug)]
pub(crate) struct Places {
    run: PathBuf,
    locks: PathBuf,
}

impl Places {
    pub(crate) fn of(engine: &Engine) -> Self {
        Places { run: engine.paths().run().join("fs"), locks: engine.paths().machine() }
    }

    pub(crate) fn as_ref(&self) -> FsPlaces<'_> {
        FsPlaces { run: &self.run, locks: &self.locks }
    }
}

/// Finds what a container's root file system needs beside its own directory, and starts it when it is not there: the outer
/// user namespace, and the fs role that serves it or the view below it.
pub(crate) fn connect(engine: &Engine, record: &Record, driver: Driver) -> Result<Base, Report> {
    let places = Places::of(engine);
    let places = places.as_ref();
    let key = key(engine, record, driver)?;
    if let Some(connection) = key.as_deref().map(|key| try_connect(&places, key)).transpose()?.flatten() {
        let note: Note = serde_json::from_str(&connection.note).map_err(|error| Report::of(Kind::Internal, error))?;
        return Ok(Base::of(connection, note.map, note.root, None));
    }
    make_dir(places.locks)?;
    let path = places.locks.join("outer.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| failed("opening", &path, error))?;
    exclusive(&file, &path)?;
    let (namespace, map, ladder) = if let Some(namespace) = find_outer(engine, &places) {
        let map = read_map(namespace.as_fd())?;
        (namespace, map, None)
    } else {
        let made = make_outer(engine)?;
        (made.namespace, made.map, Some(made.ladder))
    };
    // Two that are made at once without a server have the same maps, and share nothing that would be of one alone.
    let Some(key) = key else { return Ok(Base { user_namespace: namespace, view: None, map, root: None, ladder }) };
    let serving = Serving { engine, record, driver, places, key: &key, user_namespace: namespace.as_fd(), map: &map };
    let (connection, root) = serving.start()?;
    Ok(Base::of(connection, map, root, ladder))
}

/// The view of a container that runs, for a further start of it. The server that one container has alone takes no other user
/// any more when its first one has been gone for a while.
pub(crate) fn view_again(
    engine: &Engine,
    record: &Record,
    driver: Driver,
    outer: BorrowedFd<'_>,
) -> Result<Option<ServedView>, Report> {
    let Some(key) = key(engine, record, driver)? else { return Ok(None) };
    let places = Places::of(engine);
    let places = places.as_ref();
    let map = read_map(outer)?;
    let connection = if driver == Driver::Fuse {
        let gone = || Report::new(Kind::Conflict, "the server of its files takes no other monitor");
        try_connect(&places, &key)?.ok_or_else(gone)?
    } else {
        Serving { engine, record, driver, places, key: &key, user_namespace: outer, map: &map }.start()?.0
    };
    Ok(Base::of(connection, map, None, None).view)
}

/// The name of a server: what it shows decides. `None` for a driver that has none.
pub(crate) fn key(engine: &Engine, record: &Record, driver: Driver) -> Result<Option<String>, Report> {
    if record.image.is_host() {
        let hidden = private(engine, record);
        let words: Vec<&[u8]> = hidden.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let kind = if record.host.host_home { "host-home" } else { "host" };
        return Ok(Some(format!("{kind}-{}", &oci::Digest::of(&words.join(&0)).hex()[..16])));
    }
    match (&record.image.chain, driver) {
        (Some(chain), Driver::Overlay) => Ok(Some(chain.0.hex())),
        (Some(_), Driver::Fuse) => Ok(Some(key_of_container(&record.id))),
        (Some(_), Driver::Tree | Driver::Copy) => Ok(None),
        (None, _) => Err(Report::new(Kind::Unsupported, format!("image {} has no layers", record.image.reference))),
    }
}

/// What a view of the host hides beside the places that are hidden everywhere, by real paths: our own directories, and
/// the caller's home unless it was asked for. A home that belongs to somebody else (`/bin` for some users of services) is
/// no home.
fn private(engine: &Engine, record: &Record) -> Vec<PathBuf> {
    let mut paths = vec![engine.paths().data().to_owned(), engine.paths().run().to_owned()];
    if !record.host.host_home {
        let uid = nix::unistd::geteuid().as_raw();
        let homes = engine.options().home.clone().into_iter().chain(passwd_home());
        paths.extend(homes.filter(|home| fs::metadata(home).is_ok_and(|metadata| metadata.uid() == uid)));
    }
    paths.into_iter().map(|path| fs::canonicalize(&path).unwrap_or(path)).collect()
}

/// The view of the host that a container gets.
pub(crate) fn host_view(engine: &Engine, record: &Record, ids: MappedIds) -> HostViewConfig {
    let hidden = private(engine, record);
    let hidden: Vec<&Path> = hidden.iter().map(PathBuf::as_path).collect();
    HostViewConfig::new(ids, record.host.host_home, &hidden)
}

/// Where the server of a view of the host lists the directories that it shows empty.
fn closed_list(places: &FsPlaces<'_>, key: &str) -> PathBuf {
    places.run.join(key).join(host_closed::NAME)
}

/// The directories of the host that are empty in a container of `host:` since the caller may not read them, as far as a
/// program has looked into them.
pub(crate) fn closed_directories(engine: &Engine, record: &Record) -> Option<Vec<String>> {
    let key = if record.image.is_host() { key(engine, record, Driver::Overlay).ok().flatten() } else { None }?;
    Some(host_closed::read(&closed_list(&Places::of(engine).as_ref(), &key)))
}

/// The name of the server that one container has with the driver `fuse`.
pub(crate) fn key_of_container(id: &ContainerId) -> String {
    format!("c-{id}")
}

/// What is needed to start a server.
struct Serving<'a> {
    engine: &'a Engine,
    record: &'a Record,
    driver: Driver,
    places: FsPlaces<'a>,
    key: &'a str,
    user_namespace: BorrowedFd<'a>,
    map: &'a OuterMap,
}

impl Serving<'_> {
    /// The connection to it, and how the root directory of an image looks that it serves.
    fn start(&self) -> Result<(FsConnection, Option<RootLook>), Report> {
        let Serving { engine, record, map, .. } = self;
        let ids = MappedIds { uids: map.uid_count(), gids: map.gid_count() };
        if record.image.is_host() {
            let view = View::Host(host_view(engine, record, ids));
            let path = closed_list(&self.places, self.key);
            make_dir(&self.places.run.join(self.key))?;
            let closed = File::options().read(true).append(true).create(true).open(&path);
            let closed = closed.map_err(|error| failed("opening", &path, error))?;
            return Ok((self.spawn(view, LINGER_MS, None, &[(host_closed::NAME, closed.as_fd())])?, None));
        }
        let store = the_store(engine)?;
        let index = chain_index(&store, record)?;
        let objects = object_fds(store.objects())?;
        let mut fds = vec![("index", index.as_fd())];
        fds.extend(objects.iter().map(|(name, dir)| (name.as_str(), *dir)));
        if self.driver == Driver::Fuse {
            return Ok((self.start_own(fds)?, None));
        }
        fds.extend([("chain", index.as_fd()), ("chains", store.chains().dir().as_fd())]);
        let root = index.try_clone().map_err(|error| Report::of(Kind::Internal, error)).and_then(root_look)?;
        Ok((self.spawn(View::Chain { ids }, LINGER_MS, Some(root), &fds)?, Some(root)))
    }

    /// The server of one container's own overlay.
    fn start_own(&self, content: Vec<(&str, BorrowedFd<'_>)>) -> Result<FsConnection, Report> {
        let (uid_map, gid_map) = container_maps(self.engine, self.record, self.map)?;
        let (snaps, key) = (self.engine.paths().snapshots(), self.record.id.as_str());
        let upper = snapshot::own::prepare(&snaps, key, (&uid_map, &gid_map), self.record.host.auto_remove)
            .step(|| "preparing the container's own directory".to_owned())?;
        let total = |map: &IdMap| map.iter().map(|extent| extent.size).sum();
        let moved = |map: &IdMap| map.iter().any(|extent| extent.inside != extent.outside);
        let view = View::Overlay {
            ids: MappedIds { uids: total(&uid_map), gids: total(&gid_map) },
            volatile: self.record.host.auto_remove,
            shifted: moved(&uid_map) || moved(&gid_map),
            size_bytes: self.record.host.size_bytes,
        };
        let fds = content.into_iter().chain([("upper", upper.as_fd())]);
        self.spawn(view, CONTAINER_LINGER_MS, None, &fds.collect::<Vec<_>>())
    }

    fn spawn(
        &self,
        view: View,
        linger_ms: u64,
        root: Option<RootLook>,
        fds: &[(&str, BorrowedFd<'_>)],
    ) -> Result<FsConnection, Report> {
        let note = Note { map: self.map.clone(), root };
        let note = serde_json::to_string(&note).map_err(|error| Report::of(Kind::Internal, error))?;
        let config = FsConfig { view, linger_ms, note };
        let spec = FsSpec { key: self.key, config: &config, user_namespace: self.user_namespace, fds };
        connect_or_spawn(&self.places, &spec).step(|| format!("serving the view of {}", self.record.image.reference))
    }
}

/// The merged index of a container's image. It is a cache that is never synced: one that is not there, or that a power
/// loss has cut short, is made again from those of the layers.
pub(crate) fn chain_index(store: &Store, record: &Record) -> Result<File, Report> {
    let origin = &record.image;
    let again = || format!("`sublet pull {}` brings the image again", origin.reference);
    let chain = origin.chain.ok_or_else(|| Report::new(Kind::Internal, "an image without a chain"))?;
    let _lease = store.lease()?;
    // It is mapped for as long as the container runs, and who keeps another store may cut it short at any time (SIGBUS).
    store.chains().bring_here(&chain.0)?;
    // Records of an earlier version of the program have no layers.
    if !origin.layers.is_empty() {
        let layers: Vec<DiffId> = origin.layers.iter().copied().map(DiffId).collect();
        layer::merge_chain(store, &layers).map_err(|error| Report::from(error).with_hint(again()))?;
    }
    store.chains().open(&chain.0)?.ok_or_else(|| {
        let text = format!("the index of image {} is not in the store", origin.reference);
        Report::new(Kind::NotFound, text).with_hint(again())
    })
}

/// How the root directory looks in a merged index, its owner in the image's ids.
pub(crate) fn root_look(index: File) -> Result<RootLook, Report> {
    let index = Index::open(index).map_err(|error| Report::of(Kind::Internal, error))?;
    let inode = index.inode(index.root())?;
    let mtime = (inode.mtime.seconds, inode.mtime.nanoseconds);
    Ok(RootLook { permissions: inode.permissions, owner: (inode.uid, inode.gid), mtime })
}

/// The container's ids in terms of the outer ones; those of the container of which it has a namespace.
pub(crate) fn container_maps(engine: &Engine, record: &Record, map: &OuterMap) -> Result<(IdMap, IdMap), Report> {
    let record = &joined::owner_of_ids(engine, record)?;
    let keep = |uid: u32, gid: u32| (OuterMap::keep_id(&map.uids, uid), OuterMap::keep_id(&map.gids, gid));
    let single = |id: u32| vec![Extent { inside: id, outside: 0, size: 1 }];
    Ok(match record.host.userns {
        UserNamespace::Default => match fit::user(engine, record, map)? {
            Some((uid, gid)) => keep(uid, gid),
            None => (OuterMap::identity(&map.uids), OuterMap::identity(&map.gids)),
        },
        UserNamespace::Host => (OuterMap::identity(&map.uids), OuterMap::identity(&map.gids)),
        UserNamespace::KeepAs { uid, gid } => {
            if nix::unistd::geteuid().is_root() {
                return Err(Report::new(Kind::Usage, "--userns=keep-id is for users other than root"));
            }
            keep(uid, gid)
        }
        UserNamespace::Single => (single(0), single(0)),
        UserNamespace::KeepId => {
            let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            if uid == 0 {
                return Err(Report::new(Kind::Usage, "--userns=keep-id is for users other than root"));
            }
            keep(uid, gid)
        }
    })
}

/// The outer user namespace of any process that keeps one.
pub(crate) fn find_outer(engine: &Engine, places: &FsPlaces<'_>) -> Option<OwnedFd> {
    let names =
        |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    // What does not answer keeps nothing.
    let from_fs = names(places.run.to_owned()).find_map(|key| {
        let connection = try_connect(places, key.to_str()?).ok().flatten()?;
        Some(connection.user_namespace)
    });
    from_fs.or_else(|| {
        let containers = engine.paths().run_containers();
        names(containers.clone()).find_map(|id| ask_monitor(&containers.join(id), ANSWER_LIMIT))
    })
}

/// Asks one monitor, which has a limit of time: a stopped one must not stop every start, which waits for us.
fn ask_monitor(run_dir: &Path, limit: Duration) -> Option<OwnedFd> {
    let until = Instant::now() + limit;
    let socket = dial(run_dir).ok()?;
    protocol::send(socket.as_fd(), &Frame::AskOuter, &[]).ok()?;
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).ok()?;
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], left) {
            Ok(1..) => {}
            Err(Errno::EINTR) => continue,
            _ => return None,
        }
        match protocol::receive(socket.as_fd(), &mut buffer).ok()? {
            Received::Frame(Frame::Outer, mut namespace) => return namespace.pop(),
            Received::End => return None,
            _ => {}
        }
    }
}

/// The outer user namespace, found or made, for work on what a container left.
pub(crate) fn outer_namespace(engine: &Engine) -> Result<OwnedFd, Report> {
    if let Some(outer) = &engine.outer {
        return Ok(outer.try_clone().call(|| "fcntl(outer user namespace, F_DUPFD_CLOEXEC)".to_owned())?);
    }
    match find_outer(engine, &Places::of(engine).as_ref()) {
        Some(namespace) => Ok(namespace),
        None => Ok(make_outer(engine)?.namespace),
    }
}

/// What [`Outer::block`] was, so that root's containers keep their ids.
#[derive(Debug, Serialize, Deserialize)]
struct RootIds {
    format: u32,
    block: u32,
}

/// Makes an outer user namespace; a block of ids that root takes is recorded before anything uses it.
fn make_outer(engine: &Engine) -> Result<Outer, Report> {
    let path = engine.paths().root_ids();
    let recorded = read_json::<RootIds>(&path)?.map(|ids| ids.block);
    let made = outer::make(&Caller::current(recorded))?;
    if let Some(block) = made.block.filter(|block| recorded != Some(*block)) {
        replace_json(&path, &RootIds { format: 1, block }, true)?;
    }
    Ok(made)
}

/// What a namespace maps, read by a child that joins it: there, `/proc/self` shows the map as it was written.
pub(crate) fn read_map(namespace: BorrowedFd<'_>) -> Result<OuterMap, Report> {
    let (ours, theirs) = sys::socket::pair()?;
    let child = sys::process::fork(sys::process::Flags::empty(), None, || {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        if setns(namespace, CloneFlags::CLONE_NEWUSER).is_err() {
            return 1;
        }
        let text = [read("uid_map"), read("gid_map"), read("setgroups")].join("\0");
        i32::from(sys::socket::send(theirs.as_fd(), text.as_bytes(), &[]).is_err())
    })?;
    drop(theirs);
    let mut buffer = vec![0; 64 << 10];
    let received = sys::socket::receive(ours.as_fd(), &mut buffer);
    sys::process::reap(child.pidfd.as_fd(), true)?;
    let (length, _) = received?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut parts = text.split('\0');
    let mut next = || parts.next().unwrap_or_default();
    let mut map = || parse_map(next()).filter(|map| !map.is_empty());
    let (Some(uids), Some(gids)) = (map(), map()) else {
        return Err(Report::new(Kind::Internal, "the outer user namespace has no map"));
    };
    Ok(OuterMap { uids, gids, setgroups: next().trim() == "allow" })
}

/// Makes the container's runtime directory.
pub(crate) fn run_dir(engine: &Engine, record: &Record) -> Result<PathBuf, Report> {
    let run_dir = engine.paths().run_container(&record.id);
    fs::create_dir_all(&run_dir).call(|| format!("mkdir({run_dir:?})"))?;
    Ok(run_dir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, SockFlag, bind, listen};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_monitor_that_does_not_answer_is_given_up() {
        let run = tempfile::tempdir().unwrap();
        let directory = sys::socket::open_directory(run.path()).unwrap();
        let silent = sys::socket::seqpacket(SockFlag::empty()).unwrap();
        bind(silent.as_raw_fd(), &sys::socket::address_in(directory.as_fd(), "sock").unwrap()).unwrap();
        listen(&silent, Backlog::MAXCONN).unwrap();
        assert!(ask_monitor(run.path(), Duration::from_millis(50)).is_none());
    }
}
