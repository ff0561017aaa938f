//! Removing all that this machine has in the data directory: its containers, networks, volumes, and the images.
//!
//! Containers go first, as `rm -f` removes them; a failure there ends it, since what runs needs the rest. Then volumes, which may hold
//! files of other ids. The store leaves its place by one rename: a command that is at work in it fails, and leaves nothing in a new
//! one. If containers of other machines stand on images, only those go on which none does.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use base::{Context, Kind, Report};
use snapshot::SnapshotError;

use crate::Engine;
use crate::container::elsewhere;
use crate::container::remove::{With, remove};
use crate::container::rootfs::outer_namespace;
use crate::file::failed;
use crate::image::sweep::users;
use crate::image::{self, PruneRequest};
use crate::network;
use crate::paths::names_in;
use crate::system::filter::PruneFilter;
use crate::system::{here, migrate};

/// What a store that is being removed begins with.
const GONE: &str = ".gone-store-";

/// Removes everything. The answer is the machines whose containers keep images.
pub fn reset(engine: &Engine) -> Result<Vec<String>, Report> {
    let with = With { force: true, volumes: true };
    for (store, id) in here::containers(engine)? {
        match remove(&store, &id, with) {
            Err(report) if report.kind() == Kind::NotFound => {}
            removed => removed.step(|| format!("cannot remove container {}", id.short()))?,
        }
    }
    let others = others(engine)?;
    for store in here::stores(engine)? {
        network::remove::prune(&store, &PruneFilter::default())?;
        if !others.is_empty() {
            image::prune(&store, &PruneRequest { all: true, ..PruneRequest::default() })?;
        }
        remove_all(&store)?;
    }
    if others.is_empty() {
        move_store(engine)?;
    }
    sweep(engine);
    // Nothing of ours keeps files of the store open any longer than it must.
    drop(migrate::end_servers(engine)?);
    Ok(others)
}

/// The other machines whose containers stand on images of the store.
fn others(engine: &Engine) -> Result<Vec<String>, Report> {
    let here = engine.paths();
    let mut names: Vec<String> =
        users(engine)?.iter().filter_map(|user| elsewhere::called(user.engine.paths(), here)).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Removes what a store of this machine has beside images.
fn remove_all(store: &Engine) -> Result<(), Report> {
    let paths = store.paths();
    for directory in [paths.volumes(), paths.trees(), paths.snapshots()] {
        let names = names_in(&directory).map_err(|error| failed("reading directory", &directory, error))?;
        for name in names.iter().filter(|name| directory.join(name).is_dir()) {
            remove_tree(store, &directory, name)?;
        }
    }
    let host = paths.host();
    remove_tree(store, host.parent().unwrap_or(&host), host.file_name().and_then(OsStr::to_str).unwrap_or_default())?;
    // Of a further store, what no other machine has used; a directory that is not empty stays.
    for empty in host.ancestors().skip(1).take_while(|path| *path != paths.data()) {
        if fs::remove_dir(empty).is_err() {
            break;
        }
    }
    Ok(())
}

/// Only where files of other ids resist is the outer user namespace needed.
fn remove_tree(engine: &Engine, directory: &Path, name: &str) -> Result<(), Report> {
    match snapshot::remove(directory, name, None) {
        Err(SnapshotError::NeedsOuter { .. }) => {
            let outer = outer_namespace(engine)?;
            Ok(snapshot::remove(directory, name, Some(outer.as_fd()))?)
        }
        removed => Ok(removed?),
    }
}

fn move_store(engine: &Engine) -> Result<(), Report> {
    let from = engine.paths().store();
    let gone = format!("{GONE}{:016x}", u64::from_ne_bytes(sys::random()?));
    match fs::rename(&from, engine.paths().data().join(gone)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(|error| failed("renaming", &from, error)),
    }
}

/// Deletes stores that were removed; what a killed reset has left, the next one or a `system prune` deletes.
pub(crate) fn sweep(engine: &Engine) {
    let data = engine.paths().data();
    for name in names_in(data).unwrap_or_default().iter().filter(|name| name.starts_with(GONE)) {
        let _ = fs::remove_dir_all(data.join(name));
    }
}
