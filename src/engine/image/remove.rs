//! Removing names of images, and images with their last name.

use std::io;

use base::{ContainerId, Kind, Report};
use monitor::record::Status;
use oci::{Digest, ImageName, Reference};
use store::{ImageRecord, Store};

use crate::container::record::{self, Found};
use crate::container::state::condition;
use crate::container::{lookup, unstarted};
use crate::file::failed;
use crate::image::{find_record, open_store};
use crate::{Engine, Options};

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
    let untagged = going.into_iter().filter(|record| !record.is_unnamed()).map(|record| record.reference).collect();
    Ok(Removed { untagged, deleted })
}

/// A container of any machine that uses this data directory.
struct User {
    id: ContainerId,
    /// The image it stands on.
    image: Digest,
    /// The machine, unless it is this one.
    elsewhere: Option<String>,
    /// Where its files lie.
    engine: Engine,
}

/// The containers that stand on images. One whose record cannot be read cannot be started: it needs nothing.
fn users(engine: &Engine) -> Result<Vec<User>, Report> {
    let hosts = engine.paths().data().join("hosts");
    let machines = engine.paths().machines().map_err(|error| failed("reading directory", &hosts, error))?;
    let mut users = Vec::new();
    for (machine, paths) in machines {
        let elsewhere = (paths.host() != engine.paths().host()).then_some(machine);
        let engine = Engine::open(paths, Options::default());
        for id in lookup::ids(&engine)? {
            let Found::Record(record) = record::look(&engine, &id)? else { continue };
            if let Some(image) = record.image.id {
                users.push(User { id, image, elsewhere: elsewhere.clone(), engine: engine.clone() });
            }
        }
    }
    Ok(users)
}

impl User {
    /// Whether it runs. On another machine its record alone can tell, and a machine that went down cannot correct that.
    fn is_active(&self) -> Result<bool, Report> {
        if self.elsewhere.is_none() {
            return Ok(condition(&self.engine, &self.id)?.life.is_active());
        }
        let state = monitor::record::read_state(&self.engine.paths().container(&self.id))?;
        Ok(state.is_some_and(|state| matches!(state.status, Status::Starting | Status::Running)))
    }
}

/// Refuses while containers stand on the image; `force` passes over those that do not run.
fn check_use(engine: &Engine, id: &Digest, force: bool) -> Result<(), Report> {
    let short = &id.hex()[..12];
    for user in users(engine)?.into_iter().filter(|user| user.image == *id) {
        let active = user.is_active()?;
        let (how, word) = if active { ("cannot be forced", "running") } else { ("must be forced", "stopped") };
        if !active && force {
            continue;
        }
        let by = user.id.short();
        let message =
            format!("conflict: unable to delete {short} ({how}) - image is being used by {word} container {by}");
        return Err(match &user.elsewhere {
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

/// Deletes what no name and no container, of whatever machine, leads to any more.
fn sweep(engine: &Engine, store: &Store) -> Result<(), Report> {
    let mut roots = || {
        let users = users(engine).map_err(|report| io::Error::other(report.to_string()))?;
        Ok(users.into_iter().map(|user| user.image).collect())
    };
    let mut objects = |layer| match layer::open_layer(store, layer) {
        Ok(index) => Ok(index.objects().map(|(digest, _)| digest).collect()),
        Err(error) => Err(io::Error::other(error)),
    };
    store.gc(&mut roots, &mut objects)?;
    Ok(())
}
