//! Podman's options of commands that speak to registries.

use std::path::PathBuf;

use base::{Context, Kind, Report};
use clap::Args;
use clap::builder::BoolishValueParser;
use engine::Engine;
use engine::registries::{Credential, credential};

use crate::environment::Globals;
use crate::prompt;

/// How registries are reached.
#[derive(Args, Clone, Debug, Default)]
pub struct Reach {
    /// File of credentials, in place of all other files, of the environment and of helpers
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Directory with certificates to trust (*.crt) and ours to show (*.cert, *.key), in place of those of certs.d
    #[arg(long, value_name = "DIRECTORY")]
    pub cert_dir: Option<PathBuf>,
    /// Whether registries must speak TLS and prove who they are, whatever is configured of each
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = BoolishValueParser::new())]
    pub tls_verify: Option<bool>,
}

/// How registries are reached, and who we are there.
#[derive(Args)]
pub struct RegistryOptions {
    #[command(flatten)]
    reach: Reach,
    /// Who we are at the registry, in place of what is known; without a password it is asked for
    #[arg(long, value_name = "NAME[:PASSWORD]")]
    creds: Option<String>,
}

impl Reach {
    /// The engine that reaches registries so; the file of credentials must be there.
    pub fn engine(&self, globals: &Globals, credential: Option<Credential>) -> Result<Engine, Report> {
        if let Some(file) = &self.authfile {
            let found = std::fs::metadata(file).map_err(|error| Report::of(Kind::NotFound, error));
            found.step(|| format!("looking for --authfile {}", file.display()))?;
        }
        globals.engine_reaching(self, credential)
    }
}

impl RegistryOptions {
    /// Refuses them for an image in a file, for which no registry is asked.
    pub fn refuse(&self, image: &str) -> Result<(), Report> {
        let Reach { authfile, cert_dir, tls_verify } = &self.reach;
        let given = [
            ("--creds", self.creds.is_some()),
            ("--authfile", authfile.is_some()),
            ("--cert-dir", cert_dir.is_some()),
            ("--tls-verify", tls_verify.is_some()),
        ];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => {
                Err(Report::new(Kind::Usage, format!("{option} is for registries, and {image} is a file")))
            }
            None => Ok(()),
        }
    }

    /// The engine that reaches registries so.
    pub fn engine(&self, globals: &Globals) -> Result<Engine, Report> {
        let credential = match &self.creds {
            None => None,
            Some(both) if both.contains(':') => Some(credential(both)?),
            Some(user) => Some(credential(&format!("{user}:{}", prompt::secret("Password: ")?))?),
        };
        self.reach.engine(globals, credential)
    }
}
