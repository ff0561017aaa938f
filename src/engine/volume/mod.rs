//! Volumes: directories of ours that outlive containers.
//!
//! ```text
//! hosts/<machine>/volumes/<name>/_data/        what containers see
//!                                volume.json   when and with which labels and options it was made; absent in old ones
//!                                lock          shared by who creates or starts a container with it, exclusive for who
//!                                              fills, gives back or removes it; never for a container's life
//!                                used          from a start until its files have been given back
//!                                owners        true owners and modes, while the files are the caller's
//!                                seed/         the image's contents on their way into `_data`; `seed.new` until whole
//!                        .new-<hex>/           being made; its lock is held by its maker
//!                        .gone-<name>-<hex>/   being removed
//! ```
//! **Owners.** As a writable layer's: at rest all files are the caller's, so that the store can be read, moved and deleted
//! by plain tools, and true owners are data in the log `owners`. Who starts a container puts them back (`in_use`); who ends
//! the last container that has the volume gives the files back. Both walk the volume once, where it has foreign files.
//!
//! **In use** is a volume while any container's record names it, and active while one of those runs. Records are looked at
//! under the exclusive lock, and written, or made to say that their container runs, under the shared one.
//!
//! **Filled** is an empty volume at its first use with what the image has there (`seed`): written beside it, made whole by
//! a rename, moved in; a killed start leaves what the next one drops or finishes.
//!
//! Lock order: container, volumes by name, an exclusive lock only for a moment. Who creates a container takes shared ones in
//! the order of its command line, which nobody with an exclusive one waits for.

pub mod create;
pub(crate) mod in_use;
pub mod list;
pub mod prune;
pub mod remove;
mod seed;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base::time::{parse_rfc3339, rfc3339};
use base::{ContainerId, Kind, Report};
use serde::{Deserialize, Serialize};

pub use crate::volume::in_use::after_exit;

use crate::Engine;
use crate::container::state::condition;
use crate::container::{lookup, record};
use crate::file::{failed, read_json};
use crate::held::{Held, Hold};
use crate::paths::names_in;

/// The label by which Docker marks a volume that nobody has named.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// The version of `volume.json`.
const FORMAT: u32 = 1;
/// What volumes that are made and removed begin with; no name does.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// A volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What its driver was told.
    pub options: BTreeMap<String, String>,
    /// Where its files lie.
    pub mountpoint: PathBuf,
}

/// `volume.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct VolumeRecord {
    format: u32,
    created_at: String,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
}

impl Volume {
    /// Whether nobody has named it.
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS)
    }

    /// When it was made.
    pub fn created(&self) -> Option<SystemTime> {
        parse_rfc3339(&self.created_at).ok()
    }
}

/// Refuses what is no name of a volume, in Docker's words.
pub fn check_name(name: &str) -> Result<(), Report> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if !name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) || !name.bytes().all(word) {
        return Err(Report::new(
            Kind::Usage,
            format!(
                "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
                 \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            ),
        ));
    }
    // With `.gone-` and the rest it must still be a name of a file.
    if !(2..=200).contains(&name.len()) {
        let text = if name.len() < 2 {
            "volume name is too short, names should be at least two alphanumeric characters"
        } else {
            "volume name is too long, names have at most 200 characters"
        };
        return Err(Report::new(Kind::Usage, text));
    }
    Ok(())
}

/// A mount point in a container, in one spelling; else why it is none.
pub fn destination(text: &str) -> Result<String, String> {
    let parts = || text.split('/').filter(|part| !matches!(*part, "" | "."));
    if !text.starts_with('/') || parts().any(|part| part == "..") {
        return Err(format!("invalid mount path: '{text}' mount path must be absolute"));
    }
    if parts().next().is_none() {
        return Err("destination can't be '/'".to_owned());
    }
    Ok(parts().flat_map(|part| ["/", part]).collect())
}

/// A volume by its name.
pub fn find(engine: &Engine, name: &str) -> Result<Volume, Report> {
    check_name(name).map_err(|_| missing(name))?;
    // What a killed monitor has left is tidied up, or else by the next command.
    let _ = in_use::give_back(engine, name, None);
    read(engine, name)?.ok_or_else(|| missing(name))
}

/// Docker's words for a volume that is not there.
fn missing(name: &str) -> Report {
    Report::new(Kind::NotFound, format!("get {name}: no such volume"))
}

/// What is known about a volume; `None` where there is none.
fn read(engine: &Engine, name: &str) -> Result<Option<Volume>, Report> {
    let directory = directory(engine, name);
    let Ok(metadata) = fs::symlink_metadata(directory.join("_data")) else { return Ok(None) };
    let record = match read_json::<VolumeRecord>(&directory.join("volume.json"))? {
        Some(record) if record.format > FORMAT => {
            let text = format!("volume {name} has format {}, this build knows {FORMAT}", record.format);
            return Err(Report::new(Kind::Unsupported, text));
        }
        Some(record) => record,
        // Of an earlier version of the program.
        None => VolumeRecord {
            format: FORMAT,
            created_at: rfc3339(metadata.created().or_else(|_| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)),
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
        },
    };
    let VolumeRecord { created_at, labels, options, .. } = record;
    Ok(Some(Volume { name: name.to_owned(), created_at, labels, options, mountpoint: directory.join("_data") }))
}

fn directory(engine: &Engine, name: &str) -> PathBuf {
    engine.paths().volumes().join(name)
}

/// What is bound into a container.
pub(crate) enum Place {
    /// The volume's own files.
    Ours(PathBuf),
    /// A directory of the host that its options name.
    Device(PathBuf),
}

/// Where what is bound into a container lies.
pub(crate) fn place(engine: &Engine, name: &str) -> Result<Place, Report> {
    let volume = read(engine, name)?.ok_or_else(|| missing(name))?;
    Ok(match volume.options.get("device") {
        Some(device) => Place::Device(PathBuf::from(device)),
        None => Place::Ours(volume.mountpoint),
    })
}

/// The containers that have a volume, and whether each is active.
fn users(engine: &Engine, name: &str) -> Result<Vec<(ContainerId, bool)>, Report> {
    let mut users = Vec::new();
    for id in lookup::ids(engine)? {
        // One that is gone, or cannot be read, which cannot start either.
        let record::Found::Record(record) = record::look(engine, &id)? else { continue };
        if record.host.volumes.iter().any(|volume| volume.source.name() == Some(name)) {
            let active = condition(engine, &id)?.life.is_active();
            users.push((id, active));
        }
    }
    Ok(users)
}

/// Takes a volume's lock; `None` where there is no such volume, or it is not free.
fn hold(engine: &Engine, name: &str, how: Hold) -> Result<Option<Held>, Report> {
    Held::of(&directory(engine, name), how)
}

/// The entries of the directory of volumes; none before there is one.
fn entries(directory: &Path) -> Result<Vec<String>, Report> {
    let mut names = names_in(directory).map_err(|error| failed("reading directory", directory, error))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_has_one_spelling() {
        for (text, wanted) in [("/b/", "/b"), ("//a//b", "/a/b"), ("/./a/./b/.", "/a/b"), ("/..a", "/..a")] {
            assert_eq!(destination(text).as_deref(), Ok(wanted), "{text}");
        }
        for text in ["", "a", "/", "//", "/.", "/a/..", "/../a"] {
            assert!(destination(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_dockers() {
        for name in ["data", "a1", "A_b.c-d", "0123456789"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a", "-data", ".new-1", "a/b", "..", "ä1", "a b", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
