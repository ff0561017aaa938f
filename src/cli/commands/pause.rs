use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Let containers stand still
#[derive(Args)]
pub struct Pause {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Pause {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            container::pause::pause(&engine, &container::find(&engine, name)?)?;
            line(name)
        })
    }
}
