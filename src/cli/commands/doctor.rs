use clap::Args;

use crate::environment::{Globals, runtime_dir};
use crate::output::{Stop, line, stdout};

/// Tell for each part what was tried, what is used, why, and what would make it better
#[derive(Args)]
pub struct Doctor {
    /// As json
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let mut ladders = vec![runtime_dir().1];
        ladders.extend(engine::doctor::ladders(&globals.engine()?));
        if self.json {
            line(serde_json::to_string_pretty(&ladders).unwrap_or_default())?;
        } else {
            stdout(&engine::doctor::table(&ladders))?;
        }
        Ok(0)
    }
}
