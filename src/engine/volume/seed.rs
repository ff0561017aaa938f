//! Filling an empty volume with what the image has at its place.
//!
//! `seed.new/` is written, and becomes `seed/` by a rename: from then on it is finished, by this start or the next one. Its
//! log of owners becomes the volume's, and its entries are moved into `_data`, which stays the same directory: a running
//! container may have it already.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base::{Context, Report};
use snapshot::ObjectDirs;
use snapshot::seed::{Seed, directory_at, seed};
use sys::namespace::IdMap;

use crate::Engine;
use crate::container::record::Record;
use crate::container::remove::remove_file;
use crate::container::snapshot::{chain, shown_owner};
use crate::file::failed;
use crate::image::the_store;

/// Which of a container's volumes are to be filled from where.
pub(super) struct Seeding<'a> {
    engine: &'a Engine,
    record: &'a Record,
    maps: (&'a IdMap, &'a IdMap),
    /// Places in the image by the volume's name: the first one counts.
    places: BTreeMap<&'a str, PathBuf>,
}

impl<'a> Seeding<'a> {
    pub(super) fn new(engine: &'a Engine, record: &'a Record, maps: (&'a IdMap, &'a IdMap)) -> Self {
        let mut places = BTreeMap::new();
        // The host's own root is not copied anywhere.
        let volumes = record.host.volumes.iter().filter(|_| !record.image.is_host());
        for volume in volumes.filter(|volume| !volume.no_copy && volume.subpath.is_none() && !volume.cow) {
            if let Some(name) = volume.source.name() {
                places.entry(name).or_insert_with(|| PathBuf::from(&volume.destination));
            }
        }
        Seeding { engine, record, maps, places }
    }

    /// Whether a volume is to be filled and is still empty. One that is not ours now is in use by a container.
    pub(super) fn is_wanted(&self, name: &str, dir: &Path) -> Result<bool, Report> {
        if !self.places.contains_key(name) {
            return Ok(false);
        }
        let data = dir.join("_data");
        let metadata = fs::symlink_metadata(&data).map_err(|error| failed("looking at", &data, error))?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Ok(false);
        }
        match fs::read_dir(&data).map(|mut entries| entries.next().is_none()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            empty => empty.map_err(|error| failed("reading directory", &data, error)),
        }
    }

    /// Fills a volume whose exclusive lock is ours.
    pub(super) fn seed(&self, name: &str, dir: &Path) -> Result<(), Report> {
        let Some(place) = self.places.get(name) else { return Ok(()) };
        let index = chain(self.engine, self.record)?;
        let damaged = |error| Report::of(base::Kind::Internal, error);
        let Some(from) = directory_at(&index, place).map_err(damaged)? else { return Ok(()) };
        let store = the_store(self.engine)?;
        let objects = ObjectDirs::of(store.objects())?;
        let owner = shown_owner(self.maps);
        let new = dir.join("seed.new");
        remove_all(&new)?;
        fs::create_dir(&new).map_err(|error| failed("making directory", &new, error))?;
        // What goes with the container need not outlive a power loss.
        let goes = self.record.host.auto_remove
            && self.record.host.volumes.iter().any(|volume| volume.anonymous && volume.source.name() == Some(name));
        let done = seed(&new, "_data", (&index, from), &objects, Seed { owner: &owner, log_all: false, sync: !goes });
        if done.is_err() {
            // It may have filled the disk. The next start removes what resists.
            let _ = remove_all(&new);
        }
        done.step(|| format!("copying {} of the image", place.display()))?;
        sys::step();
        // A log of files that are gone is not for these.
        remove_file(&dir.join("owners"))?;
        let whole = dir.join("seed");
        fs::rename(&new, &whole).map_err(|error| failed("renaming", &new, error))?;
        sys::step();
        finish(dir)
    }
}

/// Whether contents have been written that are not all in their place.
pub(super) fn is_half_done(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join("seed")).is_ok()
}

/// Moves what has been written into its place; every step may have been done before. Nothing is moved over what is there.
pub(super) fn finish(dir: &Path) -> Result<(), Report> {
    let whole = dir.join("seed");
    if !is_half_done(dir) {
        return Ok(());
    }
    let (from, to) = (whole.join("_data"), dir.join("_data"));
    rename_if_there(&whole.join("owners"), &dir.join("owners"))?;
    sys::step();
    let entries = match fs::read_dir(&from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.map_err(|error| failed("reading directory", &from, error))?),
    };
    if let Some(entries) = entries {
        for entry in entries {
            let entry = entry.map_err(|error| failed("reading directory", &from, error))?;
            let place = to.join(entry.file_name());
            if fs::symlink_metadata(&place).is_err() {
                rename_if_there(&entry.path(), &place)?;
                sys::step();
            }
        }
        // Its true mode and owner are in the log.
        let metadata = fs::metadata(&from).map_err(|error| failed("looking at", &from, error))?;
        let mode = fs::Permissions::from_mode(metadata.permissions().mode() & 0o7777);
        fs::set_permissions(&to, mode).map_err(|error| failed("changing the mode of", &to, error))?;
    }
    sys::step();
    remove_all(&whole)
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), Report> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.map_err(|error| failed("renaming", from, error)),
    }
}

fn remove_all(path: &Path) -> Result<(), Report> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path, error)),
        _ => Ok(()),
    }
}
