//! From what a user writes to a container: full id, exact name, unique beginning of an id, in that order.

use base::{ContainerId, Kind, Report};

use crate::Engine;
use crate::container::{elsewhere, lock, names, record, unstarted};
use crate::file::failed;
use crate::paths::names_in;

/// The container that a text names, after what killed commands and monitors have left of it was tidied up.
pub fn find(engine: &Engine, text: &str) -> Result<ContainerId, Report> {
    unstarted::sweep(engine);
    let id = look_up(engine, text)?;
    // What is wrong with it the command itself will meet.
    let _ = lock::repair(engine, &id);
    Ok(id)
}

/// The error where a text names no container.
pub fn missing(text: &str) -> Report {
    Report::new(Kind::NotFound, format!("No such container: {text}"))
}

/// The container that has exactly this name.
pub(crate) fn named(engine: &Engine, name: &str) -> Result<Option<ContainerId>, Report> {
    unstarted::sweep(engine);
    match names::resolve(engine, name)? {
        Some(id) if record::exists(engine, &id)? => Ok(Some(id)),
        _ => Ok(None),
    }
}

fn look_up(engine: &Engine, text: &str) -> Result<ContainerId, Report> {
    // Readable or not: what cannot be read must still be found to be removed.
    let exists = |id: &ContainerId| record::exists(engine, id);
    if let Ok(id) = text.parse::<ContainerId>()
        && exists(&id)?
    {
        return Ok(id);
    }
    let name = text.strip_prefix('/').unwrap_or(text);
    if let Some(id) = names::resolve(engine, name)?
        && exists(&id)?
    {
        return Ok(id);
    }
    let mut matching = Vec::new();
    if !text.is_empty() {
        matching = ids(engine)?.into_iter().filter(|id| id.as_str().starts_with(text)).collect();
    }
    match matching.as_slice() {
        [] => Err(elsewhere::missing(engine, text)),
        [one] => Ok(one.clone()),
        _ => Err(Report::new(Kind::Usage, format!("multiple IDs found with provided prefix: {text}"))),
    }
}

/// The ids of all containers, in no order. What cannot be listed is an error: one that is not seen would lose its image.
pub(crate) fn ids(engine: &Engine) -> Result<Vec<ContainerId>, Report> {
    let directory = engine.paths().containers();
    let names = names_in(&directory).map_err(|error| failed("reading directory", &directory, error))?;
    // What is no id (a removal under way) is no container.
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}
