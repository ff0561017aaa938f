//! Removing names of images, and images with their last name.

use std::io;

use base::{Kind, Report};
use oci::{Digest, ImageName, Reference};
use store::{ImageRecord, Store};

use crate::Engine;
use crate::container::record::{self, Found};
use crate::container::state::condition;
use crate::container::{lookup, unstarted};
use crate::image::{find_record, open_store};

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
    let record = find_record(&store, text)?.ok_or_else(missing)?;
    let all: Vec<ImageRecord> = store.images()?.into_iter().filter(|other| other.config == record.config).collect();
    let by_name = matches!(text.parse::<ImageName>(), Ok(ImageName::Reference(_)))
        && !record.config.hex().starts_with(oci::reference::id_prefix(text).unwrap_or("-"));
    let going = if by_name { vec![record.clone()] } else { all.clone() };
    if going.len() == all.len() {
        check_use(engine, &record.config, force)?;
    }
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
        store.remove_image(&name.reference)?;
    }
    let deleted = (going.len() == all.len()).then_some(record.config);
    if deleted.is_some() {
        sweep(engine, &store)?;
    }
    Ok(Removed { untagged: going.into_iter().map(|record| record.reference).collect(), deleted })
}

/// Refuses while containers stand on the image; `force` passes over those that do not run.
fn check_use(engine: &Engine, id: &Digest, force: bool) -> Result<(), Report> {
    let short = &id.hex()[..12];
    for container in lookup::ids(engine)? {
        let Found::Record(found) = record::look(engine, &container)? else { continue };
        if found.image.id != Some(*id) {
            continue;
        }
        let active = condition(engine, &container)?.life.is_active();
        let (how, word) = if active { ("cannot be forced", "running") } else { ("must be forced", "stopped") };
        let by = container.short();
        if active || !force {
            return Err(Report::new(
                Kind::Conflict,
                format!("conflict: unable to delete {short} ({how}) - image is being used by {word} container {by}"),
            ));
        }
    }
    Ok(())
}

/// Deletes what no name and no container leads to any more.
fn sweep(engine: &Engine, store: &Store) -> Result<(), Report> {
    let mut roots = || {
        let ids = lookup::ids(engine).map_err(|report| io::Error::other(report.to_string()))?;
        let mut roots = Vec::new();
        for id in ids {
            // One that cannot be read cannot be started: it needs nothing.
            let found = record::look(engine, &id).map_err(|report| io::Error::other(report.to_string()))?;
            if let Found::Record(record) = found {
                roots.extend(record.image.id);
            }
        }
        Ok(roots)
    };
    let mut objects = |layer| match layer::open_layer(store, layer) {
        Ok(index) => Ok(index.objects().map(|(digest, _)| digest).collect()),
        Err(error) => Err(io::Error::other(error)),
    };
    store.gc(&mut roots, &mut objects)?;
    Ok(())
}
