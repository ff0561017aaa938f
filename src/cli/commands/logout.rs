use clap::Args;
use engine::registries;

use crate::environment::Globals;
use crate::output::{Stop, line};

/// Log out from a registry
#[derive(Args)]
pub struct Logout {
    /// The registry; Docker's without
    server: Option<String>,
}

impl Logout {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let (server, known) = registries::log_out(&globals.engine()?, self.server.as_deref())?;
        let what = if known { "Removing login credentials for" } else { "Not logged in to" };
        line(format_args!("{what} {server}"))?;
        Ok(0)
    }
}
