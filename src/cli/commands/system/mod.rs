//! `system`: the engine as a whole.

mod df;
mod fsck;
mod prune;

use clap::Subcommand;

use crate::environment::Globals;
use crate::output::Stop;

/// Look after the engine as a whole
#[derive(Subcommand)]
pub enum System {
    Df(df::Df),
    Fsck(fsck::Fsck),
    Prune(prune::Prune),
}

impl System {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            System::Df(command) => command.execute(globals),
            System::Fsck(command) => command.execute(globals),
            System::Prune(command) => command.execute(globals),
        }
    }
}
