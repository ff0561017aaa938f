//! Making volumes: a new directory gets its name by one rename, so of two makers one wins.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base::{Kind, Report};
use sys::file::sync_directory;
use sys::lock::exclusive;

use crate::Engine;
use crate::events;
use crate::file::{failed, replace_json};
use crate::held::{Held, Hold};
use crate::paths::make_dir;
use crate::volume::{ANONYMOUS, FORMAT, NEW, Volume, VolumeRecord, check_name, directory, hold, missing, read, remove};

/// What a volume is to be.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// Its name; without one it gets 64 hexadecimal digits and is anonymous.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Of Docker's driver `local`: `type`, `o`, `device`.
    pub options: BTreeMap<String, String>,
}

/// Makes a volume; one that is there already is the answer as it is.
pub fn create(engine: &Engine, request: CreateRequest) -> Result<Volume, Report> {
    remove::sweep(engine);
    let mut labels = request.labels;
    let name = if let Some(name) = request.name.filter(|name| !name.is_empty()) {
        name
    } else {
        labels.insert(ANONYMOUS.to_owned(), String::new());
        random_name()?
    };
    check_name(&name)?;
    check_options(&name, &request.options)?;
    make(engine, &name, labels, request.options, true)?;
    read(engine, &name)?.ok_or_else(|| missing(&name))
}

/// 64 hexadecimal digits.
pub(crate) fn random_name() -> Result<String, Report> {
    Ok(base::ContainerId::from_random(sys::random()?).to_string())
}

/// Holds a volume for a container that is being created, making it where it is not there. It has a name.
pub(crate) fn claim(engine: &Engine, request: CreateRequest, sync: bool) -> Result<Held, Report> {
    let CreateRequest { name, labels, options } = request;
    let name = name.unwrap_or_default();
    check_name(&name)?;
    loop {
        if let Some(held) = hold(engine, &name, Hold::Shared)? {
            return Ok(held);
        }
        check_options(&name, &options)?;
        make(engine, &name, labels.clone(), options.clone(), sync)?;
    }
}

/// Docker's driver `local` mounts what its options say; here they may name a directory.
fn check_options(name: &str, options: &BTreeMap<String, String>) -> Result<(), Report> {
    let wrong = |text: String| Report::new(Kind::Usage, format!("create {name}: {text}"));
    if let Some(key) = options.keys().find(|key| !["type", "o", "device"].contains(&key.as_str())) {
        return Err(wrong(format!("invalid option: \"{key}\"")).with_hint("the options are type, o and device"));
    }
    if options.is_empty() {
        return Ok(());
    }
    let (kind, words) =
        (options.get("type").map_or("none", String::as_str), options.get("o").map_or("", String::as_str));
    let binds = words.split(',').any(|word| matches!(word, "bind" | "rbind"));
    let known = words.split(',').all(|word| matches!(word, "bind" | "rbind" | ""));
    let device = options.get("device").ok_or_else(|| wrong("missing device in volume options".to_owned()))?;
    if !matches!(kind, "none" | "bind" | "") || !binds || !known {
        return Err(Report::new(
            Kind::Unsupported,
            format!("create {name}: a volume of type {kind:?} with the options {words:?} would be mounted by root"),
        )
        .with_hint("possible is type=none,o=bind,device=/DIRECTORY; for memory use --tmpfs or --mount type=tmpfs"));
    }
    if !Path::new(device).is_absolute() {
        return Err(wrong(format!("device {device:?} is no absolute path")));
    }
    Ok(())
}

/// Makes a volume unless one of that name is there.
fn make(
    engine: &Engine,
    name: &str,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    sync: bool,
) -> Result<(), Report> {
    let volumes = engine.paths().volumes();
    make_dir(&volumes)?;
    let (new, _lock) = begin(&volumes)?;
    let written = fill(&new, labels, options, sync);
    let named = written.and_then(|()| match fs::rename(&new, directory(engine, name)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(false)
        }
        Err(error) => Err(failed("making volume", &directory(engine, name), error)),
        Ok(()) => Ok(true),
    });
    if !matches!(named, Ok(true)) {
        // What stays the next sweep removes.
        let _ = fs::remove_dir_all(&new);
        return named.map(drop);
    }
    events::of_volume(engine, name, "create");
    if sync { sync_directory(&volumes).map_err(|error| failed("syncing", &volumes, error)) } else { Ok(()) }
}

/// A new directory whose lock is ours: a sweep takes those whose makers are dead.
fn begin(volumes: &Path) -> Result<(PathBuf, File), Report> {
    loop {
        let new = volumes.join(format!("{NEW}{:016x}", u64::from_ne_bytes(sys::random()?)));
        DirBuilder::new().mode(0o700).create(&new).map_err(|error| failed("making directory", &new, error))?;
        let path = new.join("lock");
        let file = match File::options().create_new(true).read(true).write(true).open(&path) {
            // A sweep has found it empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(|error| failed("making", &path, error))?,
        };
        exclusive(&file, &path)?;
        if path.exists() {
            return Ok((new, file));
        }
    }
}

fn fill(
    new: &Path,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    sync: bool,
) -> Result<(), Report> {
    let data = new.join("_data");
    let made = fs::create_dir(&data).and_then(|()| fs::set_permissions(&data, Permissions::from_mode(0o755)));
    made.map_err(|error| failed("making directory", &data, error))?;
    let created_at = base::time::rfc3339(SystemTime::now());
    replace_json(&new.join("volume.json"), &VolumeRecord { format: FORMAT, created_at, labels, options }, sync)
}

/// Removes what killed makers have left.
pub(super) fn sweep(volumes: &Path, name: &str) {
    let new = volumes.join(name);
    let path = new.join("lock");
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => {
            if sys::lock::try_exclusive(&file, &path).unwrap_or(false) {
                let _ = fs::remove_dir_all(&new);
            }
        }
        // Only when it is empty: its maker is about to make the lock, and begins again.
        Err(_) => drop(fs::remove_dir(&new)),
    }
}
