//! What has happened: a line a change, in Docker's shape, written by who made the change; and reading them.
//!
//! ```text
//! <runtime directory>/events/log     {"Type":"container","Action":"start","Actor":{…},"scope":"local","time":…,"timeNano":…}
//!                            log.N   those before it (`rotated`)
//!                            lock    held by who writes
//! ```
//! They last until the next boot, or as long as the runtime directory, as Docker's last until its daemon ends: nothing is
//! decided by them. So a line that cannot be written is lost and fails nothing. Who reads needs no other process; it is woken
//! by inotify(7).

mod filter;
mod follow;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{ContainerId, Kind, Report};
use monitor::log;
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::container::record::{ImageOrigin, Record, Settings, Volume};
use crate::file::read_json;
use crate::network::Network;
use crate::paths::make_dir;

pub use filter::Filter;
pub use follow::{EventsRequest, events};

/// The size from which on a further file is begun, and how many are kept.
const FILE_BYTES_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 4;
/// How long is waited for others who write: one of them may have been stopped.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// A change, in the shape of Docker's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    /// What has changed.
    #[serde(rename = "Type")]
    pub kind: Subject,
    /// What it was: `start`, `health_status: healthy`.
    pub action: String,
    /// Which one.
    pub actor: Actor,
    /// `local`.
    #[serde(rename = "scope")]
    pub scope: String,
    /// Seconds since 1970.
    #[serde(rename = "time")]
    pub time_s: u64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_ns: u64,
}

/// Which object has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The id of a container, an image or a network, the name of a volume, or of an image that a registry is asked for.
    #[serde(rename = "ID")]
    pub id: String,
    /// What is to be known of it.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// The kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A network that containers share.
    Network,
}

impl Subject {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Container => "container",
            Subject::Image => "image",
            Subject::Volume => "volume",
            Subject::Network => "network",
        }
    }
}

/// What an event tells of a container, whose record may be of any version.
#[derive(Deserialize)]
struct Told {
    name: String,
    image: ImageOrigin,
    settings: Settings,
}

/// Tells of a change of a container.
pub(crate) fn of_container(engine: &Engine, id: &ContainerId, action: &str, details: &[(&str, String)]) {
    of_container_in(engine, &engine.paths().container(id), id, action, details);
}

/// The same for one whose record lies in another directory by now.
pub(crate) fn of_container_in(
    engine: &Engine,
    directory: &Path,
    id: &ContainerId,
    action: &str,
    details: &[(&str, String)],
) {
    // Of one that cannot be read there is the id.
    let told = read_json::<Told>(&directory.join("config.json")).ok().flatten();
    let attributes = told.map(|told| attributes(&told.name, &told.image, &told.settings)).unwrap_or_default();
    begin(engine);
    tell(&engine.paths().events(), Subject::Container, action, id.as_str(), attributes, details);
}

/// Tells of a change of an image by its id, or by its name where that is what counts.
pub(crate) fn of_image(engine: &Engine, id: &str, action: &str, name: &str) {
    let attributes = BTreeMap::from([("name".to_owned(), name.to_owned())]);
    begin(engine);
    tell(&engine.paths().events(), Subject::Image, action, id, attributes, &[]);
}

/// Tells of a change of a volume.
pub(crate) fn of_volume(engine: &Engine, name: &str, action: &str) {
    let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
    begin(engine);
    tell(&engine.paths().events(), Subject::Volume, action, name, attributes, &[]);
}

/// Tells of a change of a network, or of a container's place in it.
pub(crate) fn of_network(engine: &Engine, network: &Network, action: &str, container: Option<&ContainerId>) {
    begin(engine);
    let container = container.map(|id| ("container", id.to_string()));
    let attributes = of_bridge(&network.name);
    tell(&engine.paths().events(), Subject::Network, action, &network.id, attributes, container.as_slice());
}

fn of_bridge(network: &str) -> BTreeMap<String, String> {
    [("name", network), ("type", "bridge")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// What the monitor of a container needs to tell of its changes. It would have megabytes more of the program in memory if it
/// read the whole record for that.
#[derive(Serialize, Deserialize)]
struct Order {
    /// Where events are.
    directory: PathBuf,
    /// The container's record, for its name of then.
    record: PathBuf,
    id: String,
    attributes: BTreeMap<String, String>,
    /// What is told of each named volume at a start; absent in those of an earlier version.
    #[serde(default)]
    volumes: Vec<(String, BTreeMap<String, String>)>,
    /// Where networks are; absent in those of an earlier version.
    #[serde(default)]
    networks: PathBuf,
}

/// What the record of a container says by the time of an event.
#[derive(Deserialize)]
struct Known {
    name: String,
    host: KnownHost,
}

#[derive(Deserialize)]
struct KnownHost {
    #[serde(default)]
    networks: Vec<KnownWanted>,
}

#[derive(Deserialize)]
struct KnownWanted {
    network: String,
}

#[derive(Deserialize)]
struct KnownNetwork {
    id: String,
}

/// The [`Order`] for a container that is started.
pub(crate) fn order(engine: &Engine, record: &Record) -> Result<String, Report> {
    let order = Order {
        directory: engine.paths().events(),
        record: engine.paths().container(&record.id).join("config.json"),
        id: record.id.to_string(),
        attributes: attributes(&record.name, &record.image, &record.settings),
        volumes: record.host.volumes.iter().filter_map(|volume| mounted(&record.id, volume)).collect(),
        networks: crate::network::directory(engine),
    };
    serde_json::to_string(&order).map_err(|error| Report::of(Kind::Internal, error))
}

/// Tells, for a monitor with this order, of a change of its container.
pub fn of_monitor(order: &str, action: &str, details: &[(&str, String)]) {
    let Ok(order) = serde_json::from_str::<Order>(order) else { return };
    let Order { directory, record, id, mut attributes, volumes, networks } = order;
    let mut shared = Vec::new();
    if let Ok(Some(Known { name, host })) = read_json(&record) {
        attributes.insert("name".to_owned(), name);
        shared = host.networks;
    }
    let of_networks = |action: &str| {
        for KnownWanted { network } in &shared {
            let file = crate::network::file_in(&networks, network);
            let Ok(Some(KnownNetwork { id: of })) = read_json(&file) else { continue };
            let container = [("container", id.clone())];
            tell(&directory, Subject::Network, action, &of, of_bridge(network), &container);
        }
    };
    if action == "start" {
        for (name, attributes) in &volumes {
            tell(&directory, Subject::Volume, "mount", name, attributes.clone(), &[]);
        }
        of_networks("connect");
    }
    tell(&directory, Subject::Container, action, &id, attributes, details);
    if action == "die" {
        of_networks("disconnect");
        for (name, mut attributes) in volumes {
            attributes.retain(|name, _| ["container", "driver"].contains(&name.as_str()));
            tell(&directory, Subject::Volume, "unmount", &name, attributes, &[]);
        }
    }
}

/// The name of a volume, and what is told of it when a container is started; `None` for a directory of the host.
fn mounted(container: &ContainerId, volume: &Volume) -> Option<(String, BTreeMap<String, String>)> {
    let propagation = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];
    let propagation = volume.options.iter().find(|option| propagation.contains(&option.as_str()));
    let attributes = [
        ("container", container.to_string()),
        ("destination", volume.destination.clone()),
        ("driver", "local".to_owned()),
        ("propagation", propagation.cloned().unwrap_or_default()),
        ("read/write", (!volume.read_only).to_string()),
    ];
    let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Some((volume.source.name()?.to_owned(), attributes))
}

/// What is told of a container in each event.
fn attributes(name: &str, image: &ImageOrigin, settings: &Settings) -> BTreeMap<String, String> {
    let mut attributes = settings.labels.clone();
    attributes.insert("image".to_owned(), image.reference.clone());
    attributes.insert("name".to_owned(), name.to_owned());
    attributes
}

/// Makes the directory, where it is not there.
fn begin(engine: &Engine) {
    let directory = engine.paths().events();
    if !directory.exists() {
        // What is to be written there fails then, see below.
        let _ = engine.paths().make_run().and_then(|()| make_dir(&directory));
    }
}

fn tell(
    directory: &Path,
    kind: Subject,
    action: &str,
    id: &str,
    mut attributes: BTreeMap<String, String>,
    details: &[(&str, String)],
) {
    attributes.extend(details.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let event = Event {
        kind,
        action: action.to_owned(),
        actor: Actor { id: id.to_owned(), attributes },
        scope: "local".to_owned(),
        time_s: now.as_secs(),
        time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    };
    // As said above: a change is not undone since it cannot be told.
    let _ = serde_json::to_vec(&event).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        append(directory, &line)
    });
}

fn append(directory: &Path, line: &[u8]) -> io::Result<()> {
    let path = directory.join("lock");
    let lock = OpenOptions::new().create(true).write(true).truncate(false).open(&path)?;
    let until = Instant::now() + LOCK_LIMIT;
    while !sys::lock::try_exclusive(&lock, &path).map_err(io::Error::other)? {
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOCK_LIMIT / 100);
    }
    let path = directory.join(log::NAME);
    let mut file = append_to(&path)?;
    let size_bytes = file.metadata()?.len();
    if size_bytes >= FILE_BYTES_MAX {
        let numbers = log::set_aside(directory)?;
        fs::rename(&path, directory.join(log::aside(numbers.last().map_or(1, |last| last + 1))))?;
        for number in &numbers[..(numbers.len() + 2).saturating_sub(FILES_MAX).min(numbers.len())] {
            fs::remove_file(directory.join(log::aside(*number)))?;
        }
        file = append_to(&path)?;
    } else if log::is_torn(&file, size_bytes)? {
        // By a writer that was killed, or a full file system.
        file.write_all(b"\n")?;
    }
    file.write_all(line)
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}
