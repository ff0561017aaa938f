//! Which volumes there are.

use std::collections::HashMap;

use base::Report;

use crate::Engine;
use crate::container::{lookup, record};
use crate::volume::{Volume, check_name, entries, in_use, read};

/// Every volume, by name; those that cannot be read are told and left out.
pub fn list(engine: &Engine) -> Result<Vec<Volume>, Report> {
    let mut volumes = Vec::new();
    for name in entries(&engine.paths().volumes())?.into_iter().filter(|name| check_name(name).is_ok()) {
        // What resists is tried again by the next command.
        let _ = in_use::give_back(engine, &name, None);
        match read(engine, &name) {
            Ok(volume) => volumes.extend(volume),
            Err(report) => engine.notice(&report.with_step(format!("cannot read volume {name}")).to_string()),
        }
    }
    Ok(volumes)
}

/// How many containers have each volume; who is not named has none.
pub fn links(engine: &Engine) -> Result<HashMap<String, usize>, Report> {
    let mut links = HashMap::new();
    for id in lookup::ids(engine)? {
        if let record::Found::Record(record) = record::look(engine, &id)? {
            record.volume_names().into_iter().for_each(|name| *links.entry(name).or_default() += 1);
        }
    }
    Ok(links)
}
