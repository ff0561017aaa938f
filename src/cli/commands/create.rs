use clap::Args;
use engine::container;

use crate::commands::run::{ContainerOptions, Wanted};
use crate::environment::Globals;
use crate::output::{Stop, line};

/// Create a container without starting it; print its id
#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    options: ContainerOptions,
}

impl Create {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let Wanted { engine, request, cid_file } = self.options.want(globals, true)?;
        let id = container::create(&engine, request)?;
        cid_file.write(&id)?;
        line(id)?;
        Ok(0)
    }
}
