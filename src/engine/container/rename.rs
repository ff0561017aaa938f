//! Giving a container another name.
//!
//! The new name is reserved, the record is replaced, the old name is freed. A name's second link is there meanwhile: by it
//! the next command finds what a killed one has left, and frees the name that is not the record's.

use std::os::fd::AsFd;

use base::{ContainerId, Context, Kind, Report};

use crate::Engine;
use crate::container::lock::lock;
use crate::container::names;
use crate::container::record::{Record, load};
use crate::container::state::Life;
use crate::events;

/// Gives a container another name, also for others of its networks. What it knows of itself by name it knows from its next start.
pub fn rename(engine: &Engine, id: &ContainerId, name: &str) -> Result<(), Report> {
    let wrong = |words: &str| Err(Report::new(Kind::Usage, words));
    let name = name.strip_prefix('/').unwrap_or(name);
    if name.is_empty() {
        return wrong("Neither old nor new names may be empty");
    }
    names::check(name)?;
    names::sweep(engine);
    let locked = lock(engine, id)?;
    let record = load(engine, id)?;
    if record.name == name {
        return wrong("Renaming a container with the same name as its current name");
    }
    let renamed = Record { name: name.to_owned(), ..record.clone() };
    let reserved = names::reserve(engine, name, id, true).step(|| "Error when allocating new name".to_owned())?;
    sys::step();
    if let Err(report) = renamed.save(engine, true) {
        // The first failure is the one to tell.
        let _ = reserved.give_back();
        return Err(report);
    }
    sys::step();
    events::of_container(engine, id, "rename", &[("oldName", format!("/{}", record.name))]);
    names::release(engine, &record.name, id)?;
    if record.host.networks.is_empty() || !matches!(locked.condition.life, Life::Running { .. }) {
        return Ok(());
    }
    let monitor = monitor::client::dial(&engine.paths().run_container(id))?;
    monitor::client::rename(monitor.as_fd(), name).step(|| "telling its networks the new name".to_owned())
}
