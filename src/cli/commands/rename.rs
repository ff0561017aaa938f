use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::output::Stop;

/// Give a container another name
#[derive(Args)]
pub struct Rename {
    container: String,
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

impl Rename {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        container::rename::rename(&engine, &id, &self.name)?;
        Ok(0)
    }
}
