//! Names of containers: reserved by one exclusive link, so that of two commands exactly one gets it.
//!
//! The file's content is the container's id. Its maker holds a lock on it until the container's record is written, and as
//! long it has a second link, `.<id>`. By that the next command finds what a killed one has left, and removes it. Where there are
//! no hard links (many file systems of programs) the name is a file of its own beside `.<id>`, made exclusively and locked too.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base::{ContainerId, Kind, Report};
use sys::file::sync_directory;
use sys::lock::{exclusive, try_exclusive};

use crate::Engine;
use crate::container::record::{self, Found};
use crate::file::{self, failed, is_at};
use crate::paths::{make_dir, names_in};

const QUALITIES: [&str; 48] = [
    "amber", "ample", "bold", "brave", "brisk", "calm", "candid", "clear", "cosy", "crisp", "daring", "deft", "eager",
    "early", "fair", "fleet", "fond", "frank", "gentle", "glad", "golden", "grand", "hardy", "humble", "jolly", "keen",
    "kind", "lively", "loyal", "lucid", "mellow", "merry", "modest", "neat", "nimble", "patient", "plain", "proud",
    "quick", "quiet", "ready", "sober", "steady", "sunny", "swift", "tidy", "vivid", "wise",
];
const THINGS: [&str; 48] = [
    "acorn", "alder", "anchor", "aspen", "badger", "beacon", "birch", "brook", "cedar", "clover", "comet", "coral",
    "crane", "dune", "ember", "falcon", "fern", "finch", "fjord", "glade", "harbor", "hazel", "heron", "island",
    "juniper", "kestrel", "lagoon", "lantern", "larch", "linden", "maple", "meadow", "otter", "pebble", "pine",
    "plover", "quartz", "reef", "river", "robin", "sparrow", "summit", "thicket", "thistle", "tundra", "valley",
    "willow", "wren",
];

/// A reserved name, locked until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    file: File,
    path: PathBuf,
    second: PathBuf,
    /// The name's own file, where it is no link of `second`.
    separate: Option<File>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // What stays the next sweep removes.
        let _ = fs::remove_file(&self.second);
    }
}

impl Reservation {
    /// Frees the name again.
    pub(crate) fn give_back(self) -> Result<(), Report> {
        remove_locked(self.separate.as_ref().unwrap_or(&self.file), &self.path)
    }
}

/// All names there are, in no order; none where they cannot be read.
pub fn all(engine: &Engine) -> Vec<String> {
    let mut names = names_in(&engine.paths().names()).unwrap_or_default();
    names.retain(|name| check(name).is_ok());
    names
}

/// Whether a text may be a container's name: two characters at least, `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub fn check(name: &str) -> Result<(), Report> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && rest && (2..=200).contains(&name.len()) {
        return Ok(());
    }
    let allowed = "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed";
    let report = Report::new(Kind::Usage, format!("Invalid container name ({name}), {allowed}"));
    Err(if (2..=200).contains(&name.len()) { report } else { report.with_hint("a name has 2 to 200 characters") })
}

/// Reserves a name for a container; `sync` makes the id last through a power loss before the name is seen.
pub(crate) fn reserve(engine: &Engine, name: &str, id: &ContainerId, sync: bool) -> Result<Reservation, Report> {
    let directory = engine.paths().names();
    make_dir(&directory)?;
    let second = second_link(engine, id);
    loop {
        let made = File::create_new(&second).and_then(|mut file| {
            file.write_all(id.as_str().as_bytes())?;
            if sync {
                file.sync_data()?;
            }
            Ok(file)
        });
        let file = made.map_err(|error| match error.kind() {
            // The one that makes it lets go of its own a moment after the record is there.
            io::ErrorKind::AlreadyExists => {
                let text = format!("another command is making or renaming container {}", id.short());
                Report::new(Kind::Conflict, text).with_hint("try again")
            }
            _ => failed("writing", &second, error),
        })?;
        let mut reservation = Reservation { file, path: directory.join(name), second: second.clone(), separate: None };
        exclusive(&reservation.file, &second)?;
        if !take(engine, name, id, &mut reservation, sync)? {
            continue;
        }
        if sync {
            sync_directory(&directory).map_err(|error| failed("syncing", &directory, error))?;
        }
        return Ok(reservation);
    }
}

fn second_link(engine: &Engine, id: &ContainerId) -> PathBuf {
    engine.paths().names().join(format!(".{id}"))
}

/// Removes the names that killed commands have reserved. What resists is tried again by the next command.
pub(crate) fn sweep(engine: &Engine) {
    let Ok(entries) = fs::read_dir(engine.paths().names()) else { return };
    for entry in entries.flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.strip_prefix('.')?.parse::<ContainerId>().ok());
        if let Some(id) = id {
            let _ = sweep_one(engine, &id);
        }
    }
}

fn sweep_one(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let second = second_link(engine, id);
    let file = File::options().write(true).open(&second).map_err(|error| failed("opening", &second, error))?;
    sweep_opened(engine, id, &file, &second)
}

fn sweep_opened(engine: &Engine, id: &ContainerId, file: &File, second: &Path) -> Result<(), Report> {
    // Another sweep may have removed it since it was opened, and its maker have made it again.
    if !try_exclusive(file, second)? || !is_at(file, second) {
        return Ok(());
    }
    // The names of one that was being made, and of one that was being renamed that which is not its own.
    let own = match record::look(engine, id)? {
        Found::Record(record) => Some(record.name),
        Found::Nothing => None,
        Found::Broken(_) => return remove_locked(file, second),
    };
    for name in names_of(engine, id).filter(|name| own.as_ref() != Some(name)) {
        remove_locked(file, &engine.paths().names().join(&name))?;
        // Where it is a file of its own.
        release(engine, &name, id)?;
    }
    remove_locked(file, second)
}

/// [`reserve`] with a name of our own making.
pub(crate) fn reserve_any(engine: &Engine, id: &ContainerId, sync: bool) -> Result<(String, Reservation), Report> {
    let mut last = None;
    for attempt in 0..20 {
        let [a, b, c] = sys::random()?;
        let pair = format!("{}_{}", QUALITIES[usize::from(a) % 48], THINGS[usize::from(b) % 48]);
        let name = if attempt < 4 { pair } else { format!("{pair}{c}") };
        match reserve(engine, &name, id, sync) {
            Ok(reservation) => return Ok((name, reservation)),
            Err(report) if report.kind() == Kind::Conflict => last = Some(report),
            Err(report) => return Err(report),
        }
    }
    Err(last.unwrap_or_else(|| Report::new(Kind::Internal, "no free name was found")))
}

/// The id that a name stands for.
pub(crate) fn resolve(engine: &Engine, name: &str) -> Result<Option<ContainerId>, Report> {
    if check(name).is_err() {
        return Ok(None);
    }
    let bytes = file::read(&engine.paths().names().join(name))?;
    Ok(bytes.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()))
}

/// The name of a container whose record cannot tell it.
pub(crate) fn name_of(engine: &Engine, id: &ContainerId) -> Option<String> {
    names_of(engine, id).next()
}

fn names_of(engine: &Engine, id: &ContainerId) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(engine.paths().names()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // One that cannot be read is not known to be its name.
    names.filter(|name| resolve(engine, name).is_ok_and(|owner| owner.as_ref() == Some(id)))
}

/// Frees a name if it still is this container's: another command may have taken it over since the record went.
pub(crate) fn release(engine: &Engine, name: &str, id: &ContainerId) -> Result<(), Report> {
    let path = engine.paths().names().join(name);
    match open_locked(&path)? {
        Some((file, owner)) if owner.as_ref() == Some(id) => remove_locked(&file, &path),
        _ => Ok(()),
    }
}

/// Whether a command is at work that has reserved a name for a container and not written its record yet.
pub(crate) fn is_being_made(engine: &Engine, id: &ContainerId) -> Result<bool, Report> {
    let path = second_link(engine, id);
    match File::options().write(true).open(&path) {
        Ok(file) => Ok(!try_exclusive(&file, &path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("opening", &path, error)),
    }
}

/// A name's file, locked, and the id in it, if it holds one; `None` when the name is free. Waits for a command that is
/// between the reservation and the record: milliseconds.
fn open_locked(path: &Path) -> Result<Option<(File, Option<ContainerId>)>, Report> {
    let mut file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("opening", path, error)),
    };
    exclusive(&file, path)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| failed("reading", path, error))?;
    Ok(Some((file, text.parse().ok())))
}

/// Removes a name whose lock is ours, unless the path has come to mean another file.
fn remove_locked(file: &File, path: &Path) -> Result<(), Report> {
    if !is_at(file, path) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path, error)),
        _ => Ok(()),
    }
}

/// Takes the name; false when the second link is gone, as a sweep was faster than our lock.
fn take(
    engine: &Engine,
    name: &str,
    id: &ContainerId,
    reservation: &mut Reservation,
    sync: bool,
) -> Result<bool, Report> {
    let path = reservation.path.clone();
    loop {
        match hard_link(&reservation.second, &path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if is_without_links(&error) => {
                if !is_at(&reservation.file, &reservation.second) {
                    return Ok(false);
                }
                reservation.separate = create_locked(&path, id, sync)?;
                if reservation.separate.is_some() {
                    return Ok(true);
                }
            }
            Err(error) => return Err(failed("reserving name", &path, error)),
        }
        let Some((taken, id)) = open_locked(&path)? else { continue };
        if let Some(id) = id
            && record::exists(engine, &id)?
        {
            return Err(conflict(name, &id));
        }
        // Left by a killed command, and ours to remove while we hold its lock.
        remove_locked(&taken, &path)?;
    }
}

fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    if sys::without(store::HARD_LINKS) {
        return Err(sys::Errno::EPERM.into());
    }
    fs::hard_link(from, to)
}

/// What file systems without hard links say (link(2)).
fn is_without_links(error: &io::Error) -> bool {
    use sys::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS))
}

/// Makes a name that is a file of its own, locked; `None` when somebody else has it.
fn create_locked(path: &Path, id: &ContainerId, sync: bool) -> Result<Option<File>, Report> {
    let mut file = match File::create_new(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(failed("reserving name", path, error)),
    };
    exclusive(&file, path)?;
    // Before the lock it was empty, which is what a killed command leaves: another one may have removed it.
    if !is_at(&file, path) {
        return Ok(None);
    }
    let written = file.write_all(id.as_str().as_bytes()).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
    if let Err(error) = written {
        remove_locked(&file, path)?;
        return Err(failed("writing", path, error));
    }
    Ok(Some(file))
}

fn conflict(name: &str, id: &ContainerId) -> Report {
    Report::new(
        Kind::Conflict,
        format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or \
             rename) that container to be able to reuse that name."
        ),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;
    use crate::{Options, Paths};

    #[test]
    fn a_sweep_that_comes_late_leaves_what_was_made_again() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path().join("data"), root.path().join("run"), "machine".to_owned());
        let engine = Engine::open(paths, Options::default());
        let id = ContainerId::from_random([7; 32]);
        let second = second_link(&engine, &id);
        make_dir(second.parent().unwrap()).unwrap();
        // What two sweeps have opened, of which the first has removed it.
        let late = File::create_new(&second).unwrap();
        fs::remove_file(&second).unwrap();
        let reservation = reserve(&engine, "box", &id, false).unwrap();
        sweep_opened(&engine, &id, &late, &second).unwrap();
        assert_eq!(resolve(&engine, "box").unwrap(), Some(id.clone()), "while it is being made");
        // One that is left is removed by a sweep that has it.
        fs::hard_link(&second, second.with_file_name("kept")).unwrap();
        drop(reservation);
        fs::rename(second.with_file_name("kept"), &second).unwrap();
        sweep_one(&engine, &id).unwrap();
        assert_eq!(resolve(&engine, "box").unwrap(), None);
    }

    #[test]
    fn a_name_that_cannot_be_read_is_not_taken_for_free() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path().join("data"), root.path().join("run"), "machine".to_owned());
        let engine = Engine::open(paths, Options::default());
        // Nobody can read a directory as a file, real root neither.
        make_dir(&engine.paths().names().join("box")).unwrap();
        assert!(resolve(&engine, "box").unwrap_err().to_string().contains("names/box"));
        assert_eq!(resolve(&engine, "none").unwrap(), None);
        assert_eq!(resolve(&engine, "no/name").unwrap(), None);
    }
}
