//! Finding images at a registry.

use base::{Context, Kind, Report};
use oci::reference::host_and_rest;
pub use registry::search::Found;

use crate::{Engine, registries};

/// The most that may be asked for.
pub const LIMIT_MAX: usize = 100;

/// The repositories that fit a term, which may have a registry's host in front: `quay.io/app`, `localhost:5000/`.
pub fn search(engine: &Engine, text: &str, limit: usize) -> Result<Vec<Found>, Report> {
    if !(1..=LIMIT_MAX).contains(&limit) {
        let message = format!("limit {limit} is outside the range of [1, {LIMIT_MAX}]");
        return Err(Report::new(Kind::Usage, message));
    }
    let (host, term) = host_and_rest(text);
    let registry = registries::client_in_parts(engine, None)?;
    let found = registry.search(host, term, limit);
    registries::tell_notes(engine, &registry);
    found.step(|| format!("cannot search {host}"))
}
