//! Removing a container: its directory leaves its place by one rename, which is the removal; the rest is tidying that
//! a killed command leaves to the next removal.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use base::{ContainerId, Context, Kind, Report};
use nix::errno::Errno;

use crate::container::lock::{ContainerLock, lock};
use crate::container::record::{self, Found, load};
use crate::container::{kill, names, snapshot, wait};
use crate::file::failed;
use crate::{Engine, Options, Paths};

/// What removed directories begin with until they are gone.
const GONE: &str = ".gone-";

/// Removes a container; with `force` one that runs is killed first, and one whose record cannot be read goes too.
pub fn remove(engine: &Engine, id: &ContainerId, force: bool) -> Result<(), Report> {
    let name = match record::look(engine, id)? {
        Found::Record(record) => Some(record.name),
        Found::Broken(_) if force => names::name_of(engine, id),
        Found::Nothing | Found::Broken(_) => Some(load(engine, id)?.name),
    };
    let shown = name.as_deref().unwrap_or(id.short());
    loop {
        let locked = lock(engine, id)?;
        if !locked.condition.life.is_active() {
            return remove_locked(engine, id, name.as_deref(), locked)
                .step(|| format!("cannot remove container {shown}"));
        }
        drop(locked);
        if !force {
            return Err(Report::new(
                Kind::Conflict,
                format!(
                    "cannot remove container \"/{shown}\": container is running: stop the container before removing or \
                     force remove"
                ),
            ));
        }
        match kill::kill(engine, id, nix::libc::SIGKILL) {
            // It ended in between.
            Err(report) if report.kind() != Kind::Conflict => return Err(report),
            _ => drop(wait::wait(engine, id)?),
        }
    }
}

/// What [`after_exit`] needs, for the monitor of a container that is removed when it ends.
pub(crate) fn order(engine: &Engine, id: &ContainerId) -> Result<String, Report> {
    serde_json::to_string(&(engine.paths(), id)).map_err(|error| Report::of(Kind::Internal, error))
}

/// Removes a container whose monitor is about to end.
pub fn after_exit(order: &str) -> Result<(), Report> {
    let (paths, id): (Paths, ContainerId) =
        serde_json::from_str(order).map_err(|error| Report::of(Kind::Internal, error))?;
    remove(&Engine::open(paths, Options::default()), &id, false)
}

fn remove_locked(engine: &Engine, id: &ContainerId, name: Option<&str>, locked: ContainerLock) -> Result<(), Report> {
    snapshot::remove(engine, id)?;
    let from = engine.paths().container(id);
    let to = engine.paths().containers().join(format!("{GONE}{id}"));
    fs::rename(&from, &to).map_err(|error| failed("renaming", &from, error))?;
    drop(locked);
    if let Some(name) = name {
        names::release(engine, name, id)?;
    }
    let run = engine.paths().run_container(id);
    // Told at the end: the rest goes all the same.
    let cgroup = remove_cgroup(&to, id);
    for directory in [&to, &run] {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("removing", directory, error)),
            _ => {}
        }
    }
    sweep(engine);
    cgroup
}

/// Removes the cgroup that a killed monitor left, with whatever still runs in it.
fn remove_cgroup(gone: &Path, id: &ContainerId) -> Result<(), Report> {
    let Some(path) = monitor::record::read_pid(gone)?.and_then(|pids| pids.cgroup) else { return Ok(()) };
    // Everything in it is killed: a record that names another directory must not choose what.
    if path.file_name() != Some(OsStr::new(&cgroup::container_name(id))) {
        return Err(Report::new(Kind::Internal, format!("{} is no cgroup of container {id}", path.display()))
            .with_step(format!("reading {}", gone.join("pid.json").display())));
    }
    match cgroup::Container::open(&path) {
        Ok(cgroup) => Ok(cgroup.kill().and_then(|()| cgroup.remove())?),
        // It went with the scope.
        Err(cgroup::CgroupError::File { source, .. }) if source.errno() == Errno::ENOENT => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes what killed removals left. What resists is tried again by the next removal.
fn sweep(engine: &Engine) {
    let Ok(entries) = fs::read_dir(engine.paths().containers()) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(GONE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
