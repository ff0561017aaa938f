//! Making an image of what a container has changed.
//!
//! The changes become the archive of one layer, which passes through `layer::create`: compressed, it is a blob as a registry
//! would have handed it out, and applied, the index that a pull of it would give. The image's configuration is that of the
//! container's image with the container's own settings, then the changes that were asked for. A container that changed
//! nothing adds no layer, and the history says so.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::{ContainerId, Context, Kind, Report};
use layer::{Compression, Limits};
use oci::{Digest, ImageConfig, Platform, Reference};
use serde_json::{Map, Value, json};
use store::{Durability, Store};

use crate::Engine;
use crate::container::lock::{ContainerLock, lock};
use crate::container::record::{Record, Settings, load};
use crate::container::restart::refuse_between;
use crate::container::{pause, rootfs, snapshot};
use crate::image::progress::{Listener, Teller, Told};
use crate::image::{assemble, change, images_of, load_config, make_store};
use crate::system::limits;

/// What is to be made.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Its name; without one it has only its id.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: String,
    /// Why.
    pub message: String,
    /// Instructions of a Dockerfile.
    pub changes: Vec<String>,
    /// Whether the container stands still meanwhile.
    pub pause: bool,
    /// In place of now, in seconds since 1970 (`SOURCE_DATE_EPOCH`); no file is younger either.
    pub epoch_s: Option<i64>,
}

/// Makes an image of a container; its id.
pub fn commit(
    engine: &Engine,
    id: &ContainerId,
    request: &CommitRequest,
    listener: Listener<'_>,
) -> Result<Digest, Report> {
    committed(engine, id, request, listener)
        .map_err(|report| limits::explain(&engine.paths().store(), report))
        .step(|| format!("cannot commit container {}", id.short()))
}

fn committed(
    engine: &Engine,
    id: &ContainerId,
    request: &CommitRequest,
    listener: Listener<'_>,
) -> Result<Digest, Report> {
    let record = load(engine, id)?;
    // Before anything is read: a mistake must not cost a walk.
    let mut config = Map::new();
    take_settings(&mut config, &record.settings);
    change::apply(&mut config, &request.changes)?;
    if record.image.is_host() {
        engine.notice("the image has only what the container changed in this machine's root, without that root itself");
    }
    let held = lock(engine, id)?;
    let store = make_store(engine)?;
    let mut lease = store.lease()?;
    let made = layer_of(engine, &store, &record, held, request, listener)?;
    let (base, manifest) = base_of(&store, &record)?;
    let docker = manifest.as_ref().is_some_and(|manifest| assemble::is_docker(&manifest.media_type));
    let mut layers = assemble::Layers { descriptors: Vec::new(), diff_ids: Vec::new(), changed: false };
    if let Some(base) = &base {
        layers = assemble::whole_layers(&store, base, manifest.as_ref(), docker)?;
    }
    let made = made.filter(|made| made.applied.entries > 0);
    if let Some(made) = &made {
        layers.descriptors.push(assemble::descriptor(made, docker));
        layers.diff_ids.push(made.applied.diff_id);
    }
    let created = created_at(request.epoch_s);
    let config = config_of(&record, base.as_ref(), &layers, made.is_none(), request, &created)?;
    let image = assemble::assemble(&store, &mut lease, config, &layers.descriptors, docker)?;
    assemble::set_name(&store, &image, request.name.as_ref())?;
    Ok(image.config.digest)
}

/// The layer of a container's changes; `None` when it was never started. The container's lock is held until all is read.
pub(crate) fn layer_of(
    engine: &Engine,
    store: &Store,
    record: &Record,
    held: ContainerLock,
    request: &CommitRequest,
    listener: Listener<'_>,
) -> Result<Option<layer::Created>, Report> {
    refuse_between(&record.id, &held.condition.life)?;
    let active = held.condition.life.is_active();
    let _paused = if active && request.pause { pause::hold_still(engine, &held.condition)? } else { None };
    if active {
        pause::flush(rootfs::outer_namespace(engine)?.as_fd(), &held.condition)?;
    }
    let closed = held.condition.may_hold_foreign_files();
    let Some(archive) = snapshot::open_archive(engine, record, closed, request.epoch_s)? else { return Ok(None) };
    let mut outcome = Ok(0);
    let created = layer::create(store, Compression::Gzip, Durability::Later, &Limits::default(), |out| {
        let mut out = Told::new(out, Teller::new(listener, None, None));
        outcome = archive.write(&mut out, request.epoch_s);
        match &outcome {
            Ok(_) => {
                out.moved();
                Ok(())
            }
            Err(report) => {
                let source = std::io::Error::other(report.to_string());
                Err(layer::LayerError::Write { what: "the archive", source })
            }
        }
    });
    drop(held);
    let created = match (created, outcome) {
        // A layer that is refused ends the writing: then why it is refused counts, else why it could not be written.
        (Err(layer::LayerError::Write { what: "the archive", .. }), Err(report)) => return Err(report),
        (created, Err(_)) => created?,
        (created, Ok(sockets)) => {
            if sockets > 0 {
                engine.notice(&format!("{sockets} sockets are not in the layer: an archive cannot hold them"));
            }
            created?
        }
    };
    Ok(Some(created))
}

/// Configuration and manifest of the container's image, as far as they are here.
fn base_of(store: &Store, record: &Record) -> Result<(Option<ImageConfig>, Option<oci::Manifest>), Report> {
    let Some(id) = record.image.id else { return Ok((None, None)) };
    let config = load_config(store, &id)?;
    for image in images_of(store, &id)? {
        if let Some(manifest) = assemble::manifest_of(store, &image)? {
            return Ok((Some(config), Some(manifest)));
        }
    }
    Ok((Some(config), None))
}

/// `created` of a configuration: the given time, or now.
pub(crate) fn created_at(epoch_s: Option<i64>) -> String {
    let moment = match epoch_s.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
        None => SystemTime::now(),
    };
    // As Go writes it: without zeros at the end of the fraction.
    let text = base::time::rfc3339(moment);
    format!("{}Z", text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.'))
}

/// The bytes of the new image's configuration.
fn config_of(
    record: &Record,
    base: Option<&ImageConfig>,
    layers: &assemble::Layers,
    empty: bool,
    request: &CommitRequest,
    created: &str,
) -> Result<Vec<u8>, Report> {
    let mut image: Map<String, Value> = match base {
        Some(base) => serde_json::from_slice(&base.raw).map_err(|error| Report::of(Kind::Internal, error))?,
        None => Map::new(),
    };
    if base.is_none() {
        let platform = Platform::host();
        image.insert("os".to_owned(), platform.os().into());
        image.insert("architecture".to_owned(), platform.architecture().into());
    }
    // What Docker's older configurations say of the container that the image below was made of.
    for stale in ["container", "container_config", "id", "parent", "docker_version"] {
        image.remove(stale);
    }
    assemble::without_empty_times(&mut image);
    image.insert("created".to_owned(), created.into());
    if !request.author.is_empty() {
        image.insert("author".to_owned(), request.author.as_str().into());
    }
    let mut config = image.remove("config").and_then(|config| config.as_object().cloned()).unwrap_or_default();
    take_settings(&mut config, &record.settings);
    change::apply(&mut config, &request.changes)?;
    image.insert("config".to_owned(), config.into());
    let mut history = image.remove("history").and_then(|history| history.as_array().cloned()).unwrap_or_default();
    if let Some(base) = base {
        fill(&mut history, base);
    }
    history.push(history_of(record, request, created, empty));
    image.insert("history".to_owned(), history.into());
    let diff_ids: Vec<String> = layers.diff_ids.iter().map(|layer| layer.0.to_string()).collect();
    image.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
    serde_json::to_vec(&image).map_err(|error| Report::of(Kind::Internal, error))
}

/// Adds what a history lacks that knows fewer layers than there are: else the new one would be taken for one of those.
fn fill(history: &mut Vec<Value>, base: &ImageConfig) {
    let known = history.iter().filter(|entry| entry["empty_layer"] != true).count();
    let missing = base.diff_ids.len().saturating_sub(known);
    let entry = match base.spec.created().as_deref() {
        None | Some("") => json!({}),
        Some(created) => json!({ "created": created }),
    };
    history.splice(0..0, std::iter::repeat_n(entry, missing));
}

fn history_of(record: &Record, request: &CommitRequest, created: &str, empty: bool) -> Value {
    let settings = &record.settings;
    let words: Vec<&str> = settings.entrypoint.iter().chain(&settings.command).map(String::as_str).collect();
    let mut entry = json!({ "created": created, "created_by": words.join(" ") });
    let texts = [("author", &request.author), ("comment", &request.message)];
    for (member, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        entry[member] = text.as_str().into();
    }
    if empty {
        entry["empty_layer"] = true.into();
    }
    entry
}

/// The container's own settings in place of its image's; what they do not have (volumes) stays.
fn take_settings(config: &mut Map<String, Value>, settings: &Settings) {
    let mut set = |member: &str, value: Value, empty: bool| {
        if empty {
            config.remove(member);
        } else {
            config.insert(member.to_owned(), value);
        }
    };
    set("Cmd", settings.command.clone().into(), settings.command.is_empty());
    set("Entrypoint", settings.entrypoint.clone().into(), settings.entrypoint.is_empty());
    set("Env", settings.env.clone().into(), settings.env.is_empty());
    set("User", settings.user.as_str().into(), settings.user.is_empty());
    set("WorkingDir", settings.workdir.as_str().into(), settings.workdir.is_empty());
    set("StopSignal", settings.stop_signal.as_str().into(), settings.stop_signal.is_empty());
    set("Labels", json!(settings.labels), settings.labels.is_empty());
    set("Healthcheck", json!(settings.health_check), settings.health_check.is_none());
    let ports: Map<String, Value> = settings.exposed_ports.iter().map(|port| (port.clone(), json!({}))).collect();
    let none = ports.is_empty();
    set("ExposedPorts", ports.into(), none);
}
