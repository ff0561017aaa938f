use base::{Kind, Report};
use clap::Args;
use engine::container::attach::{attach, relay};
use engine::container::record;
use engine::container::start::{Started, start};
use engine::{Engine, container};

use crate::environment::Globals;
use crate::joining::{DETACH_KEYS, streams};
use crate::output::{Stop, error, for_each, line};

/// Start containers that do not run
#[derive(Args)]
pub struct Start {
    /// Join the output, hand signals on, and end with the command's exit code
    #[arg(short, long)]
    attach: bool,
    /// Join the standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container while it goes on
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        if !self.attach && !self.interactive {
            return for_each(&self.containers, |name| match start(&engine, &container::find(&engine, name)?, None)? {
                Started::Interrupted { signal } => Err(Stop::Quiet(128 + signal as u8)),
                _ => line(name),
            });
        }
        let [name] = &self.containers[..] else {
            return Err(Report::new(Kind::Usage, "you cannot start and attach multiple containers at once").into());
        };
        match self.joined(&engine, name) {
            // Docker has codes of its own only for `run`.
            Err(Stop::Failed(report)) => {
                error(&report);
                Ok(1)
            }
            code => code,
        }
    }

    fn joined(&self, engine: &Engine, name: &str) -> Result<u8, Stop> {
        let id = container::find(engine, name)?;
        let settings = record::load(engine, &id)?.settings;
        let streams = streams(&self.detach_keys, self.interactive && settings.stdin, settings.tty)?;
        let attachment = match start(engine, &id, Some(&streams))? {
            Started::Attached(attachment) => attachment,
            Started::Detached => attach(engine, &id, &streams)?,
            Started::Interrupted { signal } => return Ok(128 + signal as u8),
        };
        Ok(relay(engine, attachment)?.code() as u8)
    }
}
