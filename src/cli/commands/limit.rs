use clap::Args;

use crate::environment::Globals;
use crate::limit_options::LimitOptions;
use crate::output::Stop;
use crate::parse;

/// Run a command of this machine under the limits that a container may have
#[derive(Args)]
pub struct Limit {
    #[command(flatten)]
    limits: LimitOptions,
    /// How its reads and writes of disks stand beside others': idle, best-effort[:0-7] or realtime[:0-7]
    #[arg(long, value_name = "CLASS")]
    io_class: Option<String>,
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["COMMAND"])]
    command: Vec<String>,
}

impl Limit {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let io_class = self.io_class.as_deref().map(parse::io_class).transpose()?;
        let request = self.limits.request()?;
        Err(engine::plain::limit(&globals.engine()?, request, io_class, &self.command).into())
    }
}
