//! The leases of the store, for those who look into it: who is at work there, and on what.

use base::{Kind, Report};
use store::LeaseInfo;

use crate::Engine;
use crate::image::open_store;

/// All leases, the oldest first.
pub fn list(engine: &Engine) -> Result<Vec<LeaseInfo>, Report> {
    match open_store(engine)? {
        Some(store) => Ok(store.leases()?),
        None => Ok(Vec::new()),
    }
}

/// Removes a lease. One whose owner lives is refused unless `force`: a sweep could then take from under its hands what it
/// works with.
pub fn remove(engine: &Engine, name: &str, force: bool) -> Result<(), Report> {
    let missing = || Report::new(Kind::NotFound, format!("No such lease: {name}"));
    let store = open_store(engine)?.ok_or_else(missing)?;
    let lease = store.leases()?.into_iter().find(|lease| lease.name == name).ok_or_else(missing)?;
    if lease.living && !force {
        let owner = lease.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        let text = format!("conflict: unable to remove lease {name} (must be forced) - its owner{owner} is at work");
        return Err(Report::new(Kind::Conflict, text).with_hint("it goes by itself when that command ends"));
    }
    if store.remove_lease(&lease)? { Ok(()) } else { Err(missing()) }
}
