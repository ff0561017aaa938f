use clap::Args;
use engine::container;

use crate::environment::{Globals, source_date_epoch};
use crate::file_output;
use crate::output::Stop;

/// Write a container's root file system as a tar archive
#[derive(Args)]
pub struct Export {
    /// The file, in place of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    container: String,
}

impl Export {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let epoch_s = source_date_epoch()?;
        let id = container::find(&engine, &self.container)?;
        file_output::write(self.output.as_deref(), "export", |out| {
            container::export::export(&engine, &id, epoch_s, out)
        })?;
        Ok(0)
    }
}
