use clap::{Args, Subcommand};
use engine::container;

use crate::environment::Globals;
use crate::output::{Stop, line};

/// Look after health checks
#[derive(Subcommand)]
pub enum Healthcheck {
    Run(Run),
}

/// Probe a container's health now; say by the exit code whether it is healthy: 0 or 1
#[derive(Args)]
pub struct Run {
    container: String,
}

impl Healthcheck {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let Healthcheck::Run(Run { container: name }) = self;
        let engine = globals.engine()?;
        let id = container::find(&engine, &name)?;
        if container::health::run(&engine, &id)? == 0 {
            return Ok(0);
        }
        line("unhealthy")?;
        Ok(1)
    }
}
