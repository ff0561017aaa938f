use base::{Kind, Report};
use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::limit_options::LimitOptions;
use crate::output::{Stop, for_each, line};

/// Change what containers may use, while they run too
#[derive(Args)]
pub struct Update {
    #[command(flatten)]
    limits: LimitOptions,
    /// Not built yet
    #[arg(long, value_name = "POLICY", hide = true)]
    restart: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        if self.restart.is_some() {
            return Err(Report::new(Kind::Unsupported, "--restart: restart policies are not built yet").into());
        }
        let request = self.limits.request()?;
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            container::update::update(&engine, &id, request.clone())?;
            line(name)
        })
    }
}
