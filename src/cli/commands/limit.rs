use clap::Args;

use crate::environment::Globals;
use crate::limit_options::LimitOptions;
use crate::output::Stop;

/// Run a command of this machine under the limits that a container may have
#[derive(Args)]
pub struct Limit {
    #[command(flatten)]
    limits: LimitOptions,
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["COMMAND"])]
    command: Vec<String>,
}

impl Limit {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let request = self.limits.request()?;
        Err(engine::plain::limit(&globals.engine()?, request, &self.command).into())
    }
}
