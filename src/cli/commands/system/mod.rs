//! `system`: the engine as a whole.

mod df;
mod fsck;
mod prune;

use clap::Subcommand;

use crate::commands::events::Events;
use crate::commands::info::Info;
use crate::environment::Globals;
use crate::output::Stop;

/// Look after the engine as a whole
#[derive(Subcommand)]
pub enum System {
    Df(df::Df),
    Events(Events),
    Fsck(fsck::Fsck),
    /// Show how the engine is set up
    Info(Info),
    Prune(prune::Prune),
}

impl System {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            System::Df(command) => command.execute(globals),
            System::Events(command) => command.execute(globals),
            System::Fsck(command) => command.execute(globals),
            System::Info(command) => command.execute(globals),
            System::Prune(command) => command.execute(globals),
        }
    }
}
