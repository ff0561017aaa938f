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
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{ContainerId, Kind, Report};
use monitor::log;
use serde::{Deserialize, Serialize};

use crate::container::record::{ImageOrigin, Settings};
use crate::file::read_json;
use crate::paths::make_dir;
use crate::{Engine, Options, Paths};

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
    /// The id of a container or an image, the name of a volume, or of an image that a registry is asked for.
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
}

impl Subject {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Container => "container",
            Subject::Image => "image",
            Subject::Volume => "volume",
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
    let mut attributes = BTreeMap::new();
    // Of one that cannot be read there is the id.
    if let Ok(Some(told)) = read_json::<Told>(&directory.join("config.json")) {
        attributes.extend(told.settings.labels);
        attributes.insert("image".to_owned(), told.image.reference);
        attributes.insert("name".to_owned(), told.name);
    }
    tell(engine.paths(), Subject::Container, action, id.as_str(), attributes, details);
}

/// Tells of a change of an image by its id, or by its name where that is what counts.
pub(crate) fn of_image(engine: &Engine, id: &str, action: &str, name: &str) {
    let attributes = BTreeMap::from([("name".to_owned(), name.to_owned())]);
    tell(engine.paths(), Subject::Image, action, id, attributes, &[]);
}

/// Tells of a change of a volume.
pub(crate) fn of_volume(engine: &Engine, name: &str, action: &str) {
    let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
    tell(engine.paths(), Subject::Volume, action, name, attributes, &[]);
}

/// What the monitor of a container needs to tell of its changes.
pub(crate) fn order(engine: &Engine, id: &ContainerId) -> Result<String, Report> {
    serde_json::to_string(&(engine.paths(), id)).map_err(|error| Report::of(Kind::Internal, error))
}

/// Tells, for a monitor with this order, of a change of its container.
pub fn of_monitor(order: &str, action: &str, details: &[(&str, String)]) {
    let Ok((paths, id)) = serde_json::from_str::<(Paths, ContainerId)>(order) else { return };
    of_container(&Engine::open(paths, Options::default()), &id, action, details);
}

fn tell(
    paths: &Paths,
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
    // See above: a change is not undone since it cannot be told.
    let _ = serde_json::to_vec(&event).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        append(paths, &line)
    });
}

fn append(paths: &Paths, line: &[u8]) -> io::Result<()> {
    let directory = paths.events();
    let path = directory.join("lock");
    let open = || OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let lock = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = paths.make_run().and_then(|()| make_dir(&directory));
            made.map_err(|report| io::Error::other(report.to_string()))?;
            open()?
        }
        lock => lock?,
    };
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
        let numbers = log::set_aside(&directory)?;
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
