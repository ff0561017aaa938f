use clap::Args;
use engine::container;
use engine::container::exec::ExecRequest;

use crate::commands::run::require_terminal;
use crate::environment::Globals;
use crate::joining::{DETACH_KEYS, streams};
use crate::output::Stop;
use crate::variable_options::variables;

/// Run one more command in a running container
#[derive(Args)]
pub struct Exec {
    /// Keep the standard input open
    #[arg(short, long)]
    interactive: bool,
    /// With a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for the command
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the command while it goes on
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// NAME=VALUE, or NAME for its value here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A file of such lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// USER[:GROUP], by name or number
    #[arg(short, long)]
    user: Option<String>,
    /// With every capability
    #[arg(long)]
    privileged: bool,
    /// Directory to start in
    #[arg(short, long)]
    workdir: Option<String>,
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    words: Vec<String>,
}

impl Exec {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let streams = streams(&self.detach_keys, self.interactive, self.tty)?;
        if !self.detach {
            require_terminal(&streams)?;
        }
        let env = variables(&self.env_file, &self.env)?;
        let mut words = self.words.into_iter();
        let name = words.next().unwrap_or_default();
        let engine = globals.engine()?;
        let id = container::find(&engine, &name)?;
        let request = ExecRequest {
            command: words.collect(),
            env: env.into_iter().filter(|entry| entry.contains('=')).collect(),
            user: self.user.unwrap_or_default(),
            workdir: self.workdir.unwrap_or_default(),
            privileged: self.privileged,
            streams,
            detach: self.detach,
        };
        let code = container::exec::exec(&engine, &id, &request)?;
        Ok(code as u8)
    }
}
