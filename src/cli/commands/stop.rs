use base::Report;
use base::units::parse_signal;
use clap::Args;
use engine::container;
use engine::container::stop::Ending;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// How a container is asked to end.
#[derive(Args)]
pub struct EndingOptions {
    /// Seconds of grace, 10 where the container names none; -1 waits for ever
    #[arg(short, long = "time", visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time_s: Option<i64>,
    /// The signal to ask with, in place of the container's own
    #[arg(short, long)]
    signal: Option<String>,
}

impl EndingOptions {
    pub fn ending(&self) -> Result<Ending, Report> {
        let signal = self.signal.as_deref().map(parse_signal).transpose()?;
        Ok(Ending { signal, grace_s: self.time_s })
    }
}

/// Ask containers to end, and kill them after a grace
#[derive(Args)]
pub struct StopCommand {
    #[command(flatten)]
    ending: EndingOptions,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl StopCommand {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            container::stop::stop(&engine, &id, self.ending.ending()?)?;
            line(name)
        })
    }
}
