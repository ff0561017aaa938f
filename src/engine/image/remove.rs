//! Removing names of images, and images with their last name.

use base::{Kind, Report};
use oci::{Digest, Reference};
use store::{ImageRecord, Store};

use crate::Engine;
use crate::container::{elsewhere, unstarted};
use crate::events;
use crate::image::sweep::{sweep, users};
use crate::image::{find_record, is_by_name, open_store};

/// What was removed.
#[derive(Clone, Debug)]
pub struct Removed {
    /// The names.
    pub untagged: Vec<Reference>,
    /// The image, when these were its last names.
    pub deleted: Option<Digest>,
}

/// Removes a name; with its last name the image. By id all its names go, several only with `force`.
pub fn remove(engine: &Engine, text: &str, force: bool) -> Result<Removed, Report> {
    unstarted::sweep(engine);
    let missing = || Report::new(Kind::NotFound, format!("No such image: {text}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let names = store.lock_names()?;
    let record = find_record(engine, &store, text)?.ok_or_else(missing)?;
    let all: Vec<ImageRecord> = store.images()?.into_iter().filter(|other| other.config == record.config).collect();
    let by_name = is_by_name(text, &record);
    let going = if by_name { vec![record.clone()] } else { all.clone() };
    if going.len() == all.len() {
        check_use(engine, &record.config, force)?;
    }
    going.iter().try_for_each(|name| refuse_below(&store, name))?;
    let short = &record.config.hex()[..12];
    if !by_name && all.len() > 1 && !force {
        return Err(Report::new(
            Kind::Conflict,
            format!(
                "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
            ),
        ));
    }
    for name in &going {
        names.remove(&name.reference)?;
        events::of_image(engine, &record.config.to_string(), "untag", &name.reference.familiar());
    }
    drop(names);
    let mut deleted = (going.len() == all.len()).then_some(record.config);
    if deleted.is_some() {
        match sweep(engine, &store, &[]) {
            // No sweep takes anything while a name cannot be read. These names are gone all the same.
            Err(report) if store.named_content().is_err() => {
                engine.notice(&format!("what only {short} needs stays in the store: {}", report.lines().join(": ")));
                deleted = None;
            }
            swept => drop(swept?),
        }
        events::of_image(engine, &record.config.to_string(), "delete", &record.config.to_string());
    }
    let untagged = going.into_iter().filter(|record| !record.is_unnamed()).map(|record| record.reference).collect();
    Ok(Removed { untagged, deleted })
}

/// Refuses to take away a name that is only in a store that is only read.
pub(crate) fn refuse_below(store: &Store, name: &ImageRecord) -> Result<(), Report> {
    if !store.is_below(&name.reference)? {
        return Ok(());
    }
    let text = format!("image {} is in a store that is only read", name.reference.familiar());
    Err(Report::new(Kind::Denied, text).with_hint("who keeps that store can remove it"))
}

/// Refuses while containers of this store stand on the image; `force` passes over those that do not run.
fn check_use(engine: &Engine, id: &Digest, force: bool) -> Result<(), Report> {
    let short = &id.hex()[..12];
    let here = engine.paths();
    let mut users = users(engine)?;
    users.retain(|user| user.image == *id && user.engine.paths().store_name() == here.store_name());
    for user in users {
        let active = user.is_active(here)?;
        let (how, word) = if active { ("cannot be forced", "running") } else { ("must be forced", "stopped") };
        if !active && force {
            continue;
        }
        let by = user.id.short();
        let message =
            format!("conflict: unable to delete {short} ({how}) - image is being used by {word} container {by}");
        return Err(match elsewhere::called(user.engine.paths(), here) {
            None => Report::new(Kind::Conflict, message),
            Some(machine) => {
                Report::new(Kind::Conflict, format!("{message} of the machine {machine}")).with_hint(format!(
                    "remove the container there; if that machine is no more, remove {}",
                    user.engine.paths().host().display()
                ))
            }
        });
    }
    Ok(())
}
