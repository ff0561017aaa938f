use clap::Args;
use engine::container;
use engine::container::start::Started;

use crate::commands::stop::EndingOptions;
use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Stop containers and start them again
#[derive(Args)]
pub struct Restart {
    #[command(flatten)]
    ending: EndingOptions,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Restart {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            match container::restart::restart(&engine, &id, self.ending.ending()?)? {
                Started::Interrupted { signal } => Err(Stop::Quiet(128 + signal as u8)),
                _ => line(name),
            }
        })
    }
}
