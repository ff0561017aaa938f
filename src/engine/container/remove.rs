//! Removing a container: its directory leaves its place by one rename, which is the removal. All else is tidying, which a
//! killed command leaves to the next one that makes or removes a container: the directory goes last.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use base::{ContainerId, Context, Kind, Report};
use nix::errno::Errno;
use serde::Deserialize;
use sys::Call;
use sys::lock::try_exclusive;

use crate::container::lock::{ContainerLock, lock};
use crate::container::record::{self, Found, HostSettings, load};
use crate::container::state::Life;
use crate::container::{kill, names, snapshot, start, tree, wait};
use crate::events;
use crate::file::{self, failed};
use crate::{Engine, Options, Paths, volume};

/// What removed directories begin with until they are gone.
const GONE: &str = ".gone-";

/// What goes with a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct With {
    /// One that runs is killed first, and one whose record cannot be read goes too.
    pub force: bool,
    /// Its anonymous volumes go too.
    pub volumes: bool,
}

/// Removes a container.
pub fn remove(engine: &Engine, id: &ContainerId, with: With) -> Result<(), Report> {
    let force = with.force;
    let name = match record::look(engine, id)? {
        Found::Record(record) => Some(record.name),
        Found::Broken(_) if force => names::name_of(engine, id),
        Found::Nothing | Found::Broken(_) => Some(load(engine, id)?.name),
    };
    let shown = name.as_deref().unwrap_or(id.short());
    let mut killed = false;
    loop {
        // Before the lock, which whoever starts the container holds.
        let given_up = if force { start::give_up(engine, id) } else { Ok(()) };
        let locked = match given_up.and_then(|()| lock(engine, id)) {
            // Its monitor was faster (`--rm`).
            Err(report) if killed && report.kind() == Kind::NotFound => return Ok(()),
            locked => locked?,
        };
        if !locked.condition.life.is_active() {
            return remove_with(engine, id, locked, with.volumes, &mut || {})
                .step(|| format!("cannot remove container {shown}"));
        }
        let is_paused = locked.condition.is_paused();
        let is_between = matches!(locked.condition.life, Life::Restarting { .. });
        drop(locked);
        if !force {
            let why = if is_paused {
                "container is paused and must be unpaused first"
            } else if is_between {
                "container is restarting: stop the container before removing or force remove"
            } else {
                "container is running: stop the container before removing or force remove"
            };
            return Err(Report::new(Kind::Conflict, format!("cannot remove container \"/{shown}\": {why}")));
        }
        match kill::kill(engine, id, nix::libc::SIGKILL) {
            // It ended in between.
            Err(report) if report.kind() != Kind::Conflict => return Err(report),
            _ => killed = true,
        }
        match wait::wait(engine, id) {
            Err(report) if report.kind() == Kind::NotFound => return Ok(()),
            code => drop(code?),
        }
    }
}

/// What [`after_exit`] needs, for the monitor of a container that is removed when it ends.
pub(crate) fn order(engine: &Engine, id: &ContainerId) -> Result<String, Report> {
    serde_json::to_string(&(engine.paths(), id)).map_err(|error| Report::of(Kind::Internal, error))
}

/// Removes a container whose monitor is about to end; `outer` is its outer user namespace. `gone` is called when no command
/// finds it any more and nothing is left of it that the user's own tools could not delete: for the rest a user need not wait.
pub fn after_exit(order: &str, outer: BorrowedFd<'_>, gone: &mut dyn FnMut()) -> Result<(), Report> {
    let (paths, id): (Paths, ContainerId) =
        serde_json::from_str(order).map_err(|error| Report::of(Kind::Internal, error))?;
    let outer = outer.try_clone_to_owned().call(|| "fcntl(outer user namespace, F_DUPFD_CLOEXEC)".to_owned())?;
    let engine = Engine::open(paths, Options::default()).with_outer(outer);
    let locked = lock(&engine, &id)?;
    // Another command may have started it again.
    if locked.condition.life.is_active() { Ok(()) } else { remove_locked(&engine, &id, locked, gone) }
}

/// Removes a container unless it runs or is about to; one that does not exist is fine.
pub(crate) fn unless_active(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    match lock(engine, id) {
        Ok(locked) if locked.condition.life.is_active() => Ok(()),
        Ok(locked) => remove_locked(engine, id, locked, &mut || {}),
        Err(report) if report.kind() == Kind::NotFound => Ok(()),
        Err(report) => Err(report),
    }
}

/// Removes a container that is at rest; `gone` as for [`after_exit`].
pub(crate) fn remove_locked(
    engine: &Engine,
    id: &ContainerId,
    locked: ContainerLock,
    gone: &mut dyn FnMut(),
) -> Result<(), Report> {
    remove_with(engine, id, locked, false, gone)
}

fn remove_with(
    engine: &Engine,
    id: &ContainerId,
    locked: ContainerLock,
    volumes: bool,
    gone: &mut dyn FnMut(),
) -> Result<(), Report> {
    let from = engine.paths().container(id);
    let to = engine.paths().containers().join(format!("{GONE}{id}"));
    fs::rename(&from, &to).map_err(|error| failed("renaming", &from, error))?;
    events::of_container_in(engine, &to, id, "destroy", &[]);
    let tidied = tidy(engine, id, &to, volumes, gone);
    // The lock's file has moved along: it told other sweeps that somebody is at work there.
    drop(locked);
    sweep(engine);
    // Over NFS a directory stays while a file in it is open, as the lock was; by now the sweep has removed it, after all else.
    let is_gone = fs::symlink_metadata(&to).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if is_gone { Ok(()) } else { tidied }
}

/// What [`tidy`] needs of a record.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    host: HostSettings,
}

impl Named {
    /// Removes the anonymous volumes.
    fn remove_volumes(&self, engine: &Engine) -> Result<(), Report> {
        let anonymous = self.host.volumes.iter().filter(|volume| volume.anonymous);
        let removed =
            anonymous.filter_map(|one| one.source.name()).map(|name| volume::remove::with_container(engine, name));
        removed.collect::<Vec<_>>().into_iter().collect()
    }
}

/// What is left to do after the rename, all of it, in any state in which a killed removal may have left it. The first
/// failure is the answer, and then the directory stays for the next sweep.
fn tidy(
    engine: &Engine,
    id: &ContainerId,
    directory: &Path,
    volumes: bool,
    gone: &mut dyn FnMut(),
) -> Result<(), Report> {
    let named = file::read_json::<Named>(&directory.join("config.json")).ok().flatten();
    // First, since what still runs there may write.
    let own = named.as_ref().filter(|named| volumes || named.host.auto_remove);
    let closed = [
        remove_cgroup(directory, id),
        snapshot::remove(engine, id),
        tree::give_back(engine, id, None),
        own.map_or(Ok(()), |named| named.remove_volumes(engine)),
    ];
    let name = named.map(|named| named.name).or_else(|| names::name_of(engine, id));
    if closed.iter().all(Result::is_ok) {
        gone();
    }
    let name = name.map_or(Ok(()), |name| names::release(engine, &name, id));
    let run = remove_directory(&engine.paths().run_container(id));
    closed.into_iter().chain([name, run]).collect::<Result<(), Report>>()?;
    remove_directory(directory)
}

/// The exit code of a container that was removed while its end was waited for.
pub(crate) fn code_of_removed(engine: &Engine, id: &ContainerId) -> Result<i32, Report> {
    let gone = engine.paths().containers().join(format!("{GONE}{id}"));
    let state = monitor::record::read_state(&gone).ok().flatten();
    state.and_then(|state| state.exit_code).ok_or_else(|| record::missing(id))
}

/// Removes a file that may be gone already.
pub(crate) fn remove_file(path: &Path) -> Result<(), Report> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path, error)),
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<(), Report> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path, error)),
        _ => Ok(()),
    }
}

/// Removes the cgroup that a killed monitor left, with whatever still runs in it.
pub(crate) fn remove_cgroup(directory: &Path, id: &ContainerId) -> Result<(), Report> {
    let Some(path) = monitor::record::read_pid(directory)?.and_then(|pids| pids.cgroup) else { return Ok(()) };
    // Everything in it is killed: a record that names another directory must not choose what.
    if path.file_name() != Some(OsStr::new(&cgroup::container_name(id))) {
        return Err(Report::new(Kind::Internal, format!("{} is no cgroup of container {id}", path.display()))
            .with_step(format!("reading {}", directory.join("pid.json").display())));
    }
    match cgroup::Container::open(&path) {
        Ok(cgroup) => Ok(cgroup.kill().and_then(|()| cgroup.remove())?),
        // It went with the scope.
        Err(cgroup::CgroupError::File { source, .. }) if source.errno() == Errno::ENOENT => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Tidies up what killed removals left. What resists is tried again by the next sweep.
pub(crate) fn sweep(engine: &Engine) {
    names::sweep(engine);
    let Ok(entries) = fs::read_dir(engine.paths().containers()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Ok(id) = name.parse::<ContainerId>() {
            // What resists is tried again by the next sweep.
            let _ = sweep_unrecorded(engine, &id);
        }
        let Some(id) = name.strip_prefix(GONE).and_then(|id| id.parse::<ContainerId>().ok()) else { continue };
        let path = entry.path().join("lock");
        // Without its lock's file it was nearly gone.
        let file = File::options().write(true).open(&path);
        if file.as_ref().is_ok_and(|file| !try_exclusive(file, &path).unwrap_or(false)) {
            continue;
        }
        let _ = tidy(engine, &id, &entry.path(), false, &mut || {});
    }
}

/// Removes a directory in which a killed command has not written a record any more. Its maker would hold the lock of the
/// name until then, so the record is looked for after that lock.
fn sweep_unrecorded(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    if record::exists(engine, id)? || names::is_being_made(engine, id)? || record::exists(engine, id)? {
        return Ok(());
    }
    remove_directory(&engine.paths().container(id))?;
    names::name_of(engine, id).map_or(Ok(()), |name| names::release(engine, &name, id))
}
