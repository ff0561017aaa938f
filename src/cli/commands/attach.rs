use clap::Args;
use engine::container::attach::{attach, relay};
use engine::container::{self, record};

use crate::commands::run::require_terminal;
use crate::environment::Globals;
use crate::joining::Joining;
use crate::output::Stop;

/// Join our streams to a running container's, until it ends or is left
#[derive(Args)]
pub struct Attach {
    /// Leave the standard input out
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    joining: Joining,
    container: String,
}

impl Attach {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        let settings = record::load(&engine, &id)?.settings;
        let streams = self.joining.streams(settings.stdin && !self.no_stdin, settings.tty)?;
        require_terminal(&streams)?;
        let attachment = attach(&engine, &id, &streams)?;
        Ok(relay(&engine, attachment)?.code() as u8)
    }
}
