//! Whether a start has failed because the image is damaged.
//!
//! A start takes the merged index as it is, in constant time, and a server answers `EIO` for what it cannot read. Only when a
//! start has failed is all of the index looked at, so that the failure names the image and what helps.

use base::{Kind, Report};
use snapshot::Driver;
use snapshot::fs_client::try_connect;

use crate::Engine;
use crate::container::record::Record;
use crate::container::rootfs::{self, Places};
use crate::container::snapshot::chain;
use crate::image::the_store;

/// Adds to a failed start that the image is damaged, if it is.
pub(crate) fn explain(engine: &Engine, record: &Record, report: Report) -> Report {
    let can_be = matches!(report.kind(), Kind::Internal | Kind::CommandNotFound | Kind::CommandNotExecutable);
    let Some(damage) = can_be.then(|| find(engine, record)).flatten() else { return report };
    // Else the next start would find the view of what has been repaired by then.
    if let Ok(Some(key)) = rootfs::key(engine, record, Driver::Overlay)
        && let Ok(Some(view)) = try_connect(&Places::of(engine).as_ref(), &key)
    {
        // One that is gone is of no use to the next start either.
        let _gone = view.leave();
    }
    let name = &record.image.reference;
    report.with_step(format!("image {name}: {damage}")).with_hint(format!(
        "`sublet system fsck --repair` makes it again, or says that `sublet pull {name}` has to bring it"
    ))
}

/// What is wrong with the merged index of a container's image, or what it lacks.
fn find(engine: &Engine, record: &Record) -> Option<String> {
    record.image.chain.as_ref()?;
    let (store, index) = (the_store(engine).ok()?, chain(engine, record).ok()?);
    if let Err(damaged) = index.verify() {
        return Some(damaged.to_string());
    }
    // What cannot be looked at may be whole.
    let lacks = |size_bytes, found| matches!(found, Ok(found) if found != Some(size_bytes));
    let (lacking, _) = index.objects().find(|(object, size_bytes)| lacks(*size_bytes, store.objects().size(object)))?;
    Some(format!("the object {lacking} is not in the store, or cut short"))
}
