use clap::Args;

use crate::environment::Globals;
use crate::output::{Stop, stdout};

/// Print what running containers use, for Prometheus
///
/// The names are those of cAdvisor. A timer that writes it to a file for node_exporter's textfile collector is all it takes.
#[derive(Args)]
pub struct Metrics {}

impl Metrics {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let Metrics {} = self;
        stdout(&engine::metrics::metrics(&globals.engine()?)?)?;
        Ok(0)
    }
}
