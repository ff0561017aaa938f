//! The lock of who changes a container: an open-file-description lock, which dies with its process.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;

use base::{ContainerId, Report};
use sys::lock::exclusive;

use crate::Engine;
use crate::container::record;
use crate::container::state::{Condition, repair_locked};
use crate::file::failed;

/// A container that no other command changes meanwhile. Never held over the network, a prompt or the container's life.
#[derive(Debug)]
pub struct ContainerLock {
    _file: File,
    /// Its condition when the lock was taken, repaired if a monitor had been killed.
    pub condition: Condition,
}

/// Takes a container's lock, and writes the end that a killed monitor could not write.
pub fn lock(engine: &Engine, id: &ContainerId) -> Result<ContainerLock, Report> {
    let path = engine.paths().container(id).join("lock");
    let file = match File::options().create(true).truncate(false).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(record::missing(id)),
        Err(error) => return Err(failed("opening", &path, error)),
    };
    exclusive(&file, &path)?;
    record::require(engine, id)?;
    Ok(ContainerLock { condition: repair_locked(engine, id)?, _file: file })
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
