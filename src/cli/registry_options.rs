//! Podman's options of commands that speak to registries.

use std::path::PathBuf;

use base::{Context, Kind, Report};
use clap::Args;
use clap::builder::BoolishValueParser;
use engine::Engine;
use engine::registries::{Credential, credential};
use oci::Digest;

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
    /// The same without TLS or with any certificate, by Docker's option of `manifest`.
    #[must_use]
    pub fn insecure(self, insecure: bool) -> Self {
        Reach { tls_verify: if insecure { Some(false) } else { self.tls_verify }, ..self }
    }

    /// The engine that reaches registries so; the file of credentials must be there.
    pub fn engine(&self, globals: &Globals, credential: Option<Credential>) -> Result<Engine, Report> {
        if let Some(file) = &self.authfile {
            let found = std::fs::metadata(file).map_err(|error| Report::of(Kind::NotFound, error));
            found.step(|| format!("looking for --authfile {}", file.display()))?;
        }
        globals.engine_reaching(self, credential)
    }
}

/// Docker's word for whether signatures are looked at. Here the policy says that of each image.
#[derive(Args, Clone, Copy)]
pub struct ContentTrust {
    /// Taken as by Docker
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = BoolishValueParser::new())]
    disable_content_trust: Option<bool>,
}

impl ContentTrust {
    /// Refuses to look at signatures of Docker's kind, of which we know nothing.
    pub fn check(self) -> Result<(), Report> {
        if self.disable_content_trust == Some(false) {
            let text = "--disable-content-trust=false: signatures of Docker Content Trust are not supported";
            return Err(Report::new(Kind::Usage, text).with_hint("--signature-policy says whose signatures are wanted"));
        }
        Ok(())
    }
}

/// Where the digest of an image goes.
#[derive(Args)]
pub struct DigestFile {
    /// Write the digest to this file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
}

impl DigestFile {
    /// Refuses it where there is not one digest to write.
    pub fn refuse_unless(&self, is_one: bool, why: &str) -> Result<(), Report> {
        if self.digestfile.is_some() && !is_one {
            return Err(Report::new(Kind::Usage, format!("--digestfile holds one digest: {why}")));
        }
        Ok(())
    }

    /// Writes it, if it is wanted: without an end of line, as Podman does.
    pub fn write(&self, digest: &Digest) -> Result<(), Report> {
        let Some(path) = &self.digestfile else { return Ok(()) };
        let written = std::fs::write(path, digest.to_string()).map_err(|error| Report::of(Kind::Denied, error));
        written.step(|| format!("writing --digestfile {}", path.display()))
    }
}

impl RegistryOptions {
    /// The same without TLS or with any certificate, by Docker's option of `manifest`.
    #[must_use]
    pub fn insecure(self, insecure: bool) -> Self {
        RegistryOptions { reach: self.reach.insecure(insecure), ..self }
    }

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
