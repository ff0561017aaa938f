use std::time::Duration;

use base::Report;
use base::units::parse_signal;
use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// How a container is asked to end.
#[derive(Args)]
pub struct Ending {
    /// Seconds of grace; -1 waits for ever
    #[arg(short, long = "time", visible_alias = "timeout", value_name = "SECONDS", default_value_t = 10)]
    time_s: i64,
    /// The signal to ask with, in place of the container's own
    #[arg(short, long)]
    signal: Option<String>,
}

impl Ending {
    pub fn grace(&self) -> Option<Duration> {
        u64::try_from(self.time_s).ok().map(Duration::from_secs)
    }

    pub fn signal(&self) -> Result<Option<i32>, Report> {
        self.signal.as_deref().map(parse_signal).transpose().map_err(Report::from)
    }
}

/// Ask containers to end, and kill them after a grace
#[derive(Args)]
pub struct StopCommand {
    #[command(flatten)]
    ending: Ending,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl StopCommand {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            container::stop::stop(&engine, &id, self.ending.signal()?, self.ending.grace())?;
            line(name)
        })
    }
}
