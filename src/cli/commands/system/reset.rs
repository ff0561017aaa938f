use clap::Args;
use engine::system;

use crate::environment::Globals;
use crate::output::{Stop, confirm, warning};

/// Remove all containers, networks, volumes and images of this machine, those of further stores (--store) too
#[derive(Args)]
pub struct Reset {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Reset {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let text = format!(
            "This will remove all of {}:\n  - all containers, those that run too\n  - all networks\n  - all volumes\n  - all images",
            engine.paths().data().display()
        );
        if !self.force && !confirm(&text)? {
            return Ok(0);
        }
        for machine in system::reset(&engine)? {
            warning(&format!("the images on which containers of machine {machine} stand are kept"));
        }
        Ok(0)
    }
}
