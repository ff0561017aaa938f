use base::units::parse_signal;
use base::{Context, Report};
use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Send a signal to running containers
#[derive(Args)]
pub struct Kill {
    /// The signal
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            let signal = parse_signal(&self.signal).map_err(Report::from)?;
            container::kill::kill(&engine, &id, signal).step(|| format!("cannot kill container: {name}"))?;
            line(name)
        })
    }
}
