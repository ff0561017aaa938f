use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::format::tabulate;
use crate::output::{Stop, printable_part, stdout};

/// How wide a column is at least.
const COLUMN_MIN: usize = 20;

/// Show the processes of a container
#[derive(Args)]
pub struct Top {
    /// A container, and options of ps(1)
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["CONTAINER", "OPTION"])]
    words: Vec<String>,
}

impl Top {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let mut words = self.words.into_iter();
        let name = words.next().unwrap_or_default();
        let engine = globals.engine()?;
        let id = container::find(&engine, &name)?;
        let rows = container::top::top(&engine, &id, &words.collect::<Vec<_>>())?;
        let line = |row: &Vec<String>| row.iter().map(|cell| printable_part(cell)).collect::<Vec<_>>().join("\t");
        stdout(&tabulate(&rows.iter().map(line).collect::<Vec<_>>(), COLUMN_MIN))?;
        Ok(0)
    }
}
