use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Wait until containers end, and print their exit codes
#[derive(Args)]
pub struct Wait {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            line(container::wait::wait(&engine, &id)?)
        })
    }
}
