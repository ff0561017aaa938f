//! Which driver joins an image and a container's changes: chosen at the container's first start, the same ever after.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use base::{Context, Kind, Ladder, Report};
use snapshot::{Driver, Place};

use crate::Engine;
use crate::container::record::{HostSettings, Record};
use crate::paths::make_dir;

/// What the drivers are called, best first.
pub const DRIVERS: [&str; 4] = {
    let [overlay, fuse, tree, copy] = Driver::ALL;
    [overlay.as_str(), fuse.as_str(), tree.as_str(), copy.as_str()]
};

/// The driver of a container that is about to start: the one that its snapshot has, else the one that was asked for, else
/// the best that this machine offers. The caller must have one thread.
pub(crate) fn choose(engine: &Engine, record: &Record) -> Result<Driver, Report> {
    let recorded = snapshot::meta(&engine.paths().snapshots(), record.id.as_str())
        .step(|| "reading the container's own directory".to_owned())?;
    if let Some(meta) = recorded {
        return Ok(meta.driver);
    }
    let asked = record.host.storage_driver.as_deref().and_then(Driver::from_name);
    // The best one is tried first, since its trial tells more than a start that fails.
    if let Some(driver) = asked.filter(|driver| *driver != Driver::Overlay) {
        return above_an_image(driver, record.image.is_host()).map(|()| driver);
    }
    if record.host.size_bytes.is_some() {
        check_size(&record.host, record.image.is_host())?;
        engine.notice("storage driver: fuse, since overlay does not count what is written (--storage-opt size)");
        return Ok(Driver::Fuse);
    }
    // So that a killed trial lies where the next one looks for it.
    make_dir(&engine.paths().snapshots())?;
    let ladder = ladder(engine);
    match ladder.chosen.and_then(Driver::from_name) {
        Some(Driver::Overlay) => Ok(Driver::Overlay),
        Some(driver) if asked.is_none() && !record.image.is_host() => {
            engine.step_down(&ladder.step_down().unwrap_or_default())?;
            Ok(driver)
        }
        _ => Err(impossible(&ladder, record)),
    }
}

/// The driver of a container, for people: before its first start the one that was asked for, if any.
pub(crate) fn known(engine: &Engine, record: &Record) -> Option<Driver> {
    let meta = snapshot::meta(&engine.paths().snapshots(), record.id.as_str()).ok().flatten();
    meta.map(|meta| meta.driver).or_else(|| Driver::from_name(record.host.storage_driver.as_deref()?))
}

/// All drivers but one stand on the index of an image, and the machine's own root has none.
pub(crate) fn above_an_image(driver: Driver, is_host: bool) -> Result<(), Report> {
    if is_host && driver != Driver::Overlay {
        let text = format!("the storage driver {} cannot stand on host:", driver.as_str());
        return Err(
            Report::new(Kind::Unsupported, text).with_hint("leave --storage-driver out: host: always has overlay")
        );
    }
    Ok(())
}

/// Only our own overlay counts what is written.
pub(crate) fn check_size(host: &HostSettings, is_host: bool) -> Result<(), Report> {
    if host.size_bytes.is_none() {
        return Ok(());
    }
    let why = match host.storage_driver.as_deref() {
        Some(driver) if driver != Driver::Fuse.as_str() => format!("the storage driver {driver}"),
        _ if is_host => "the image host:".to_owned(),
        _ => return Ok(()),
    };
    let text = format!("--storage-opt size: {why} keeps no container from writing more");
    Err(Report::new(Kind::Unsupported, text).with_hint("it is for images with the storage driver fuse"))
}

/// Why neither the driver that was asked for nor another one can be used.
fn impossible(ladder: &Ladder, record: &Record) -> Report {
    let tried = ladder.trials.iter().filter_map(|trial| Some(format!("{}: {}", trial.rung, trial.failure.as_ref()?)));
    let report = Report::new(Kind::Unsupported, tried.collect::<Vec<_>>().join("; "))
        .with_step(format!("choosing the storage driver of {}", record.image.reference));
    let other = ladder.chosen.filter(|_| !record.image.is_host());
    match (&ladder.fix, other) {
        (Some(fix), Some(other)) => report.with_hint(format!("{fix}; or use --storage-driver {other}")),
        (Some(fix), None) => report.with_hint(fix),
        (None, _) => report,
    }
}

/// What this machine offers on the file system of the writable snapshots. A trial takes milliseconds, so that overlayfs
/// works is remembered until the next boot; that it does not is tried again each time. The caller must have one thread.
pub(crate) fn ladder(engine: &Engine) -> Ladder {
    // A question makes no data directory: the nearest directory that is there, which may be anybody's, stands for it.
    let snaps = engine.paths().snapshots();
    let place = snaps.ancestors().find(|path| path.is_dir()).unwrap_or(&snaps);
    let mark = Mark::of(engine, place);
    if mark.as_ref().is_some_and(Mark::is_there) {
        return snapshot::overlay_works();
    }
    let ladder = snapshot::probe(if place == snaps { Place::Snapshots(place) } else { Place::Other(place) });
    if let Some(mark) = mark.filter(|_| ladder.chosen == Some(Driver::Overlay.as_str())) {
        mark.leave();
    }
    ladder
}

/// A file of the runtime directory that says on which file system overlayfs works, since which boot.
struct Mark {
    path: PathBuf,
    text: String,
}

impl Mark {
    fn of(engine: &Engine, place: &std::path::Path) -> Option<Mark> {
        let boot = sys::process::boot_id().ok()?;
        let device = fs::metadata(place).ok()?.dev();
        let user_namespace = fs::read_link("/proc/self/ns/user").ok()?;
        let text = format!("{boot} {device} {}\n", user_namespace.display());
        Some(Mark { path: engine.paths().run().join("overlay"), text })
    }

    fn is_there(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
    }

    /// Without it the next start tries again, so a failure is no loss.
    fn leave(&self) {
        let _ = fs::write(&self.path, &self.text);
    }
}
