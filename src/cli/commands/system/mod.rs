//! `system`: the engine as a whole.

mod boot;
mod df;
mod fsck;
mod migrate;
mod prune;
mod reset;

use clap::Subcommand;

use crate::commands::events::Events;
use crate::commands::info::Info;
use crate::environment::Globals;
use crate::output::Stop;

/// Look after the engine as a whole
#[derive(Subcommand)]
pub enum System {
    /// Start the containers that are to be there after a boot, as the unit of `system enable` does
    Boot,
    Df(df::Df),
    /// Undo `system enable`
    Disable,
    /// Have your systemd start containers at boot: those with --restart always, and with unless-stopped if they ran
    Enable,
    Events(Events),
    Fsck(fsck::Fsck),
    /// Show how the engine is set up
    Info(Info),
    /// Stop all containers, so that the next one has the subordinate ids and the program that there are now
    Migrate,
    Prune(prune::Prune),
    Reset(reset::Reset),
}

impl System {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            System::Boot => boot::boot(globals),
            System::Df(command) => command.execute(globals),
            System::Disable => boot::disable(),
            System::Enable => boot::enable(globals),
            System::Events(command) => command.execute(globals),
            System::Fsck(command) => command.execute(globals),
            System::Info(command) => command.execute(globals),
            System::Migrate => migrate::migrate(globals),
            System::Prune(command) => command.execute(globals),
            System::Reset(command) => command.execute(globals),
        }
    }
}
