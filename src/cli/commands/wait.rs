use clap::Args;
use engine::container;
use engine::container::wait::{Until, wait_until};

use crate::environment::Globals;
use crate::output::{Stop, for_each, line};

/// Wait until containers end, and print their exit codes
#[derive(Args)]
pub struct Wait {
    /// What to wait for: not-running, next-exit, removed, or running (which prints -1)
    #[arg(long, value_name = "CONDITION", value_parser = ["not-running", "next-exit", "removed", "running"],
        default_value = "not-running", hide_possible_values = true)]
    condition: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let until = match self.condition.as_str() {
            "next-exit" => Until::NextExit,
            "removed" => Until::Removed,
            "running" => Until::Running,
            _ => Until::NotRunning,
        };
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            line(wait_until(&engine, &id, until)?)
        })
    }
}
