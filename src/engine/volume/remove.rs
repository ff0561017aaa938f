//! Removing volumes: the directory leaves its place by one rename, which is the removal; the rest is tidying.

use std::fs::{self, File};
use std::path::Path;

use base::{Context, Kind, Report};
use snapshot::SnapshotError;

use crate::Engine;
use crate::container::rootfs::outer_namespace;
use crate::events;
use crate::file::failed;
use crate::held::Hold;
use crate::volume::{GONE, NEW, check_name, create, directory, entries, hold, in_use, missing, users};

/// Removes a volume that no container has; with `force` one that is not there is fine.
pub fn remove(engine: &Engine, name: &str, force: bool) -> Result<(), Report> {
    sweep(engine);
    let held = if check_name(name).is_ok() { hold(engine, name, Hold::Exclusive)? } else { None };
    let Some(held) = held else {
        return if force { Ok(()) } else { Err(missing(name)) };
    };
    let users = users(engine, name)?;
    if !users.is_empty() {
        let ids: Vec<&str> = users.iter().map(|(id, _)| id.as_str()).collect();
        return Err(Report::new(Kind::Conflict, format!("remove {name}: volume is in use - [{}]", ids.join(", "))));
    }
    let volumes = engine.paths().volumes();
    let gone = format!("{GONE}{name}-{:08x}", u32::from_ne_bytes(sys::random()?));
    let from = directory(engine, name);
    fs::rename(&from, volumes.join(&gone)).map_err(|error| failed("renaming", &from, error))?;
    events::of_volume(engine, name, "destroy");
    sys::step();
    let deleted = delete(engine, &volumes, &gone);
    drop(held);
    deleted.step(|| format!("remove {name}"))
}

/// Removes an anonymous volume of a container that is gone, unless another one has it.
pub(crate) fn with_container(engine: &Engine, name: &str) -> Result<(), Report> {
    match remove(engine, name, true) {
        // Its monitor has left that to the removal.
        Err(report) if report.kind() == Kind::Conflict => in_use::give_back(engine, name, None),
        removed => removed,
    }
}

/// Only where files of other ids resist is the outer user namespace needed.
fn delete(engine: &Engine, volumes: &Path, gone: &str) -> Result<(), Report> {
    match snapshot::remove(volumes, gone, None) {
        Err(SnapshotError::NeedsOuter { .. }) => {
            let outer = outer_namespace(engine)?;
            Ok(snapshot::remove(volumes, gone, Some(std::os::fd::AsFd::as_fd(&outer)))?)
        }
        removed => Ok(removed?),
    }
}

/// Tidies up what killed commands have left. What resists is tried again by the next sweep.
pub(crate) fn sweep(engine: &Engine) {
    let volumes = engine.paths().volumes();
    for name in entries(&volumes).unwrap_or_default() {
        if name.starts_with(NEW) {
            create::sweep(&volumes, &name);
        } else if name.starts_with(GONE) {
            let path = volumes.join(&name).join("lock");
            // Whose lock's file is gone was nearly gone; its remover may be at it, and two do no harm.
            let file = File::options().read(true).write(true).open(&path);
            if file.as_ref().map_or(true, |file| sys::lock::try_exclusive(file, &path).unwrap_or(false)) {
                let _ = delete(engine, &volumes, &name);
            }
        }
    }
}
