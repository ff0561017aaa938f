use clap::Args;

use crate::environment::{Globals, shell};
use crate::output::Stop;

/// Run a command of this machine as root over the ids of containers
///
/// It has mounts of its own. Without a command your shell is run.
#[derive(Args)]
pub struct Unshare {
    #[arg(trailing_var_arg = true, value_names = ["COMMAND"])]
    command: Vec<String>,
}

impl Unshare {
    pub fn execute(mut self, globals: &Globals) -> Result<u8, Stop> {
        if self.command.is_empty() {
            self.command.push(shell());
        }
        Err(engine::plain::unshare(&globals.engine()?, &self.command).into())
    }
}
