//! Containers of the other machines that share this data directory, as their records stand. Whether their processes exist
//! nobody here can know: they are shown and named, and never repaired, changed or removed.

use std::time::SystemTime;

use base::{ContainerId, Report};
use nix::unistd::gethostname;

use crate::container::list::{Summary, summary};
use crate::container::{lookup, names, record, state};
use crate::file::{self, failed};
use crate::paths::make_dir;
use crate::{Engine, Options, Paths};

/// How much of a file with a machine's host name is looked at; the kernel's names have 64 bytes at most.
const NAME_MAX: usize = 64;

/// Writes down what this machine is called, for the others. One that cannot be written down goes by its id.
pub(crate) fn introduce(engine: &Engine) {
    let path = engine.paths().machine_name();
    let name = gethostname().unwrap_or_default().into_encoded_bytes();
    if file::read(&path).ok().flatten().as_ref() != Some(&name) && make_dir(&engine.paths().machine()).is_ok() {
        let _ = file::replace(&path, &name, false);
    }
}

/// The containers of this store on other machines, newest first, and what of them cannot be read.
pub fn list(engine: &Engine, now: SystemTime) -> Result<(Vec<Summary>, Vec<Report>), Report> {
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for (machine, there) in others(engine)? {
        for id in lookup::ids(&there)? {
            match one(&there, &id, &machine, now) {
                Ok(summary) => found.extend(summary),
                Err(report) => {
                    broken.push(report.with_step(format!("cannot read container {} of {machine}", id.short())));
                }
            }
        }
    }
    found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok((found, broken))
}

fn one(there: &Engine, id: &ContainerId, machine: &str, now: SystemTime) -> Result<Option<Summary>, Report> {
    let Some(record) = record::try_load(there, id)? else { return Ok(None) };
    let mut summary = summary(&record, &state::recorded(there, id)?, now)?;
    summary.status = format!("{} on {machine}", summary.status);
    Ok(Some(summary))
}

/// The error where a text names no container of this machine; of one that is another machine's it says so.
pub(crate) fn missing(engine: &Engine, text: &str) -> Report {
    let report = lookup::missing(text);
    // What cannot be read is no answer to what was asked.
    let machine =
        others(engine).into_iter().flatten().find(|(_, there)| is_of(there, text)).map(|(machine, _)| machine);
    match machine {
        Some(machine) => report.with_hint(format!(
            "{text} is a container of the machine {machine}: run the command there; `ps --all-machines` lists all"
        )),
        None => report,
    }
}

fn is_of(there: &Engine, text: &str) -> bool {
    let name = text.strip_prefix('/').unwrap_or(text);
    let id = text.parse().ok().or_else(|| names::resolve(there, name).ok().flatten());
    id.is_some_and(|id| record::exists(there, &id).unwrap_or(false))
}

/// The other machines that have used this store: what each is called, and its directories.
fn others(engine: &Engine) -> Result<Vec<(String, Engine)>, Report> {
    let here = engine.paths();
    let places = here.everywhere().map_err(|error| failed("reading directories below", here.data(), error))?;
    let others = places.into_iter().filter(|paths| paths.store_name() == here.store_name());
    Ok(others
        .filter_map(|paths| Some((called(&paths, here)?, Engine::open(paths.clone(), Options::default()))))
        .collect())
}

/// What the machine is called whose directories these are; `None` for this one.
pub(crate) fn called(paths: &Paths, here: &Paths) -> Option<String> {
    let id = paths.elsewhere(here)?;
    let name = file::read(&paths.machine_name()).ok().flatten().and_then(|name| String::from_utf8(name).ok());
    let is_name = |name: &String| !name.is_empty() && name.len() <= NAME_MAX && !name.contains(char::is_control);
    Some(name.filter(is_name).unwrap_or_else(|| id.to_owned()))
}
