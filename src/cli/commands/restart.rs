use std::time::Duration;

use base::Report;
use base::units::parse_signal;
use clap::Args;
use engine::container;
use engine::container::start::Started;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Stop containers and start them again
#[derive(Args)]
pub struct Restart {
    /// Seconds of grace; -1 waits for ever
    #[arg(short, long = "time", visible_alias = "timeout", value_name = "SECONDS", default_value_t = 10)]
    time_s: i64,
    /// The signal to ask with, in place of the container's own
    #[arg(short, long)]
    signal: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Restart {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let grace = u64::try_from(self.time_s).ok().map(Duration::from_secs);
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            let signal = self.signal.as_deref().map(parse_signal).transpose().map_err(Report::from)?;
            match container::restart::restart(&engine, &id, signal, grace)? {
                Started::Interrupted { signal } => Err(Stop::Quiet(128 + signal as u8)),
                _ => line(name),
            }
        })
    }
}
