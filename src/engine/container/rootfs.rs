//! Where a container's root file system comes from: the outer user namespace, the fs role that serves its image, and
//! the directories that take its changes.
//!
//! There is one outer user namespace a user and host, since a view mounted in one is of no use in another. It is found
//! through any process that keeps it open (the fs role of this image, of another one, a monitor), and made only when
//! none of them lives; `outer.lock` is held from the search until an fs role keeps the new one.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use base::{Context, Kind, Ladder, Report};
use monitor::client::dial;
use monitor::protocol::{self, FRAME_MAX, Frame, Received};
use nix::sched::{CloneFlags, setns};
use runtime::outer::{self, Caller, Outer, OuterMap};
use serde::{Deserialize, Serialize};
use snapshot::fs_client::{FsConnection, FsPlaces, FsSpec, connect_or_spawn, try_connect};
use snapshot::fs_role::{FsConfig, LINGER_MS, View};
use snapshot::ids::MappedIds;
use snapshot::view_host::HostViewConfig;
use store::Store;
use sys::Call;
use sys::lock::exclusive;
use sys::namespace::{Extent, IdMap};

use crate::Engine;
use crate::container::record::Record;
use crate::file::{failed, read_json, replace_json};

/// A served view, and the namespace it belongs to.
#[derive(Debug)]
pub(crate) struct Base {
    /// The connection that keeps the fs role alive, and what it handed out.
    pub connection: FsConnection,
    /// What the outer user namespace maps.
    pub map: OuterMap,
    /// Which rung of the ids ladder, when the namespace was made now.
    pub ladder: Option<Ladder>,
}

/// Connects to the fs role of a container's image, starting it (and the outer user namespace) when needed.
pub(crate) fn connect(engine: &Engine, record: &Record) -> Result<Base, Report> {
    let (run, locks) = (engine.paths().run().join("fs"), engine.paths().host());
    let places = FsPlaces { run: &run, locks: &locks };
    let key = key(record)?;
    if let Some(connection) = try_connect(&places, &key)? {
        let map = read_map(connection.user_namespace.as_fd())?;
        return Ok(Base { connection, map, ladder: None });
    }
    let path = locks.join("outer.lock");
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
    let connection = serve(engine, record, &places, &key, namespace.as_fd(), &map)?;
    Ok(Base { connection, map, ladder })
}

/// The name of a view: what it shows decides.
fn key(record: &Record) -> Result<String, Report> {
    if record.image.is_host() {
        return Ok(if record.host.host_home { "host-home".to_owned() } else { "host".to_owned() });
    }
    match &record.image.chain {
        Some(chain) => Ok(chain.0.hex()),
        None => Err(Report::new(Kind::Unsupported, format!("image {} has no layers", record.image.reference))),
    }
}

fn serve(
    engine: &Engine,
    record: &Record,
    places: &FsPlaces<'_>,
    key: &str,
    user_namespace: BorrowedFd<'_>,
    map: &OuterMap,
) -> Result<FsConnection, Report> {
    let ids = MappedIds { uids: map.uid_count(), gids: map.gid_count() };
    let spec = |config: &FsConfig, fds: &[(&str, BorrowedFd<'_>)]| {
        let spec = FsSpec { key, config, user_namespace, fds, cgroup: None };
        connect_or_spawn(places, &spec).step(|| format!("serving the view of {}", record.image.reference))
    };
    if record.image.is_host() {
        let private = [engine.paths().data(), engine.paths().run()];
        let view = View::Host(HostViewConfig::new(ids, record.host.host_home, &private));
        return spec(&FsConfig { view, linger_ms: LINGER_MS }, &[]);
    }
    let store = Store::open(&engine.paths().store(), false)?;
    let chain = record.image.chain.ok_or_else(|| Report::new(Kind::Internal, "an image without a chain"))?;
    let index = store.chains().open(&chain.0)?.ok_or_else(|| {
        Report::new(Kind::NotFound, format!("the index of image {} is not in the store", record.image.reference))
            .with_hint(format!("`sublet pull {}` makes it anew", record.image.reference))
    })?;
    let objects = File::open(store.objects().dir().path())
        .map_err(|error| failed("opening", store.objects().dir().path(), error))?;
    let config = FsConfig { view: View::Chain { ids }, linger_ms: LINGER_MS };
    spec(&config, &[("index", index.as_fd()), ("objects", objects.as_fd())])
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
        let containers = engine.paths().run().join("c");
        names(containers.clone()).find_map(|id| ask_monitor(&containers.join(id)))
    })
}

fn ask_monitor(run_dir: &std::path::Path) -> Option<OwnedFd> {
    let socket = dial(run_dir).ok()?;
    protocol::send(socket.as_fd(), &Frame::AskOuter, None).ok()?;
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        match protocol::receive(socket.as_fd(), &mut buffer).ok()? {
            Received::Frame(Frame::Outer, namespace) => return namespace,
            Received::End => return None,
            _ => {}
        }
    }
}

/// The outer user namespace, found or made, for work on what a container left.
pub(crate) fn outer_namespace(engine: &Engine) -> Result<OwnedFd, Report> {
    let (run, locks) = (engine.paths().run().join("fs"), engine.paths().host());
    match find_outer(engine, &FsPlaces { run: &run, locks: &locks }) {
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
fn read_map(namespace: BorrowedFd<'_>) -> Result<OuterMap, Report> {
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
    let (uids, gids, setgroups) = (parse_map(next()), parse_map(next()), next().trim() == "allow");
    if uids.is_empty() || gids.is_empty() {
        return Err(Report::new(Kind::Internal, "the outer user namespace has no map"));
    }
    Ok(OuterMap { uids, gids, setgroups })
}

fn parse_map(text: &str) -> IdMap {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse);
        Some(Extent { inside: fields.next()?.ok()?, outside: fields.next()?.ok()?, size: fields.next()?.ok()? })
    };
    text.lines().filter_map(line).collect()
}

/// Makes the container's runtime directory.
pub(crate) fn run_dir(engine: &Engine, record: &Record) -> Result<PathBuf, Report> {
    let run_dir = engine.paths().run_container(&record.id);
    fs::create_dir_all(&run_dir).call(|| format!("mkdir({run_dir:?})"))?;
    Ok(run_dir)
}
