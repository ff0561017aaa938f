use base::Kind;
use clap::Args;
use engine::container;
use engine::container::remove::With;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Remove containers
#[derive(Args)]
pub struct Rm {
    /// Kill those that run; say nothing of those that do not exist
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let with = With { force: self.force, volumes: self.volumes };
            let removed = container::find(&engine, name).and_then(|id| container::remove::remove(&engine, &id, with));
            match removed {
                Err(report) if self.force && report.kind() == Kind::NotFound => {
                    crate::output::error(&report);
                    Ok(())
                }
                Err(report) => Err(report.into()),
                Ok(()) => line(name),
            }
        })
    }
}
