use clap::Args;
use engine::container::{self, diff::Change};

use crate::environment::Globals;
use crate::output::{Stop, line};

/// List what a container changed in its root file system
#[derive(Args)]
pub struct Diff {
    container: String,
}

impl Diff {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        lines(&container::diff::diff(&engine, &id)?)
    }
}

/// Prints changes, one a line.
pub fn lines(changes: &[Change]) -> Result<u8, Stop> {
    for change in changes {
        line(format_args!("{} {}", change.kind.letter(), change.path))?;
    }
    Ok(0)
}
