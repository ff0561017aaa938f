use std::path::PathBuf;

use clap::Args;
use engine::registries;

use crate::environment::Globals;
use crate::output::{Stop, line};
use crate::registry_options::Reach;

/// Log out from a registry
#[derive(Args)]
pub struct Logout {
    /// File of credentials, in place of all other files, of the environment and of helpers
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// The registry; Docker's without
    server: Option<String>,
}

impl Logout {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let reach = Reach { authfile: self.authfile, ..Reach::default() };
        let (server, known) = registries::log_out(&globals.engine_reaching(&reach, None)?, self.server.as_deref())?;
        let what = if known { "Removing login credentials for" } else { "Not logged in to" };
        line(format_args!("{what} {server}"))?;
        Ok(0)
    }
}
