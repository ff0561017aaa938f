use clap::Args;
use engine::container;

use crate::environment::Globals;
use crate::limit_options::LimitOptions;
use crate::output::{Stop, for_each, line};
use crate::parse;

/// Change what containers may use, while they run too
#[derive(Args)]
pub struct Update {
    #[command(flatten)]
    limits: LimitOptions,
    /// When they are started again: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let restart = self.restart.as_deref().map(parse::restart).transpose()?;
        let request = self.limits.request()?;
        let engine = globals.engine()?;
        for_each(&self.containers, |name| {
            let id = container::find(&engine, name)?;
            container::update::update(&engine, &id, request.clone(), restart)?;
            line(name)
        })
    }
}
