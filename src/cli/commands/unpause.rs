use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Let containers go on that stand still
#[derive(Args)]
pub struct Unpause {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Unpause {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            container::pause::unpause(&engine, &container::find(&engine, name)?)?;
            line(name)
        })
    }
}
