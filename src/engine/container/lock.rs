//! The lock of who changes a container: an open-file-description lock, which dies with its process.

use std::fs::{DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use base::{ContainerId, Report};
use monitor::client::{self, ClientError};
use sys::lock::{exclusive, try_exclusive};

use crate::Engine;
use crate::container::remove::remove_locked;
use crate::container::state::{Condition, Left, Life, condition, repair_locked};
use crate::container::{record, take_over};
use crate::file::failed;

/// A container that no other command changes meanwhile. Never held over the network, a prompt or the container's life.
#[derive(Debug)]
pub struct ContainerLock {
    _file: File,
    /// Its condition when the lock was taken, after what a killed monitor had left was done or taken over.
    pub condition: Condition,
}

impl ContainerLock {
    /// The same lock after its holder has changed the container's condition.
    pub(crate) fn looked_at_again(self, engine: &Engine, id: &ContainerId) -> Result<Self, Report> {
        Ok(ContainerLock { condition: repair_locked(engine, id)?, ..self })
    }

    /// Of a file that is locked.
    fn of(engine: &Engine, id: &ContainerId, file: File) -> Result<Self, Report> {
        let mut condition = repair_locked(engine, id)?;
        if take_over::if_left(engine, id, &condition)? {
            condition = repair_locked(engine, id)?;
        }
        Ok(ContainerLock { condition, _file: file })
    }
}

/// Takes a container's lock, and does what a killed monitor could not do; one that runs gets another monitor. The caller must
/// have one thread for that.
pub fn lock(engine: &Engine, id: &ContainerId) -> Result<ContainerLock, Report> {
    let (file, path) = open(engine, id)?;
    exclusive(&file, &path)?;
    record::require(engine, id)?;
    ContainerLock::of(engine, id, file)
}

/// Does the same for a command that only looks: unless somebody else is changing the container, who does it then. The caller
/// must have one thread.
pub(crate) fn repair(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    if condition(engine, id)?.left()? != Left::Nothing {
        let (file, path) = open(engine, id)?;
        if try_exclusive(&file, &path)? && record::exists(engine, id)? {
            let locked = ContainerLock::of(engine, id, file)?;
            // Its monitor was to do so (`--rm`), if it has run.
            let has_ended = matches!(locked.condition.life, Life::Exited { .. });
            if record::load(engine, id)?.host.auto_remove && has_ended {
                return remove_locked(engine, id, locked, &mut || {});
            }
        }
    }
    Ok(())
}

/// Connects to the monitor of a container. One that another command is just having taken over is waited for; the caller does
/// not hold the container's lock, and has one thread.
pub(crate) fn dial(engine: &Engine, id: &ContainerId) -> Result<OwnedFd, ClientError> {
    let run_dir = engine.paths().run_container(id);
    match client::dial(&run_dir) {
        // Why it cannot be locked is no answer to who wants to talk.
        Err(ClientError::NoMonitor { .. }) if lock(engine, id).is_ok() => client::dial(&run_dir),
        dialled => dialled,
    }
}

fn open(engine: &Engine, id: &ContainerId) -> Result<(File, PathBuf), Report> {
    let path = engine.paths().container(id).join("lock");
    match File::options().create(true).truncate(false).write(true).open(&path) {
        Ok(file) => Ok((file, path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(record::missing(id)),
        Err(error) => Err(failed("opening", &path, error)),
    }
}

/// Makes the directory that a container's files lie in.
pub(crate) fn make_container_dir(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    let path = engine.paths().container(id);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|error| failed("making directory", &path, error))
}
