use std::io::{self, IsTerminal, Read};

use base::{Kind, Report};
use clap::Args;
use engine::Engine;
use engine::registries::{self, Kept};

use crate::environment::Globals;
use crate::output::{Stop, line, stderr, warning};
use crate::prompt;
use crate::registry_options::Reach;

/// More than this is no password.
const PASSWORD_MAX: u64 = 64 << 10;

/// Log in to a registry
#[derive(Args)]
pub struct Login {
    /// Password or access token
    #[arg(short, long)]
    password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// User name
    #[arg(short, long)]
    username: Option<String>,
    #[command(flatten)]
    reach: Reach,
    /// The registry; Docker's without
    server: Option<String>,
}

impl Login {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine_reaching(&self.reach, None)?;
        let given = self.given_password()?;
        if given.is_none() && self.username.is_none() && self.again(&engine)? {
            line("Login Succeeded")?;
            return Ok(0);
        }
        let asks = given.is_none() || self.username.is_none();
        if asks && !io::stdin().is_terminal() {
            return Err(usage("Cannot perform an interactive login from a non TTY device").into());
        }
        let user = self.username.map_or_else(|| prompt::line("Username: "), Ok)?;
        if user.is_empty() {
            return Err(usage("Non-null Username Required").into());
        }
        let password = given.map_or_else(|| prompt::secret("Password: "), Ok)?;
        if password.is_empty() {
            return Err(usage("Password Required").into());
        }
        let login = registries::Login { server: self.server, user, password };
        if let Kept::InFile(path) = registries::log_in(&engine, &login)? {
            // In Docker's words, which people know.
            stderr(&format!(
                "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning.\n\n",
                path.display()
            ))?;
        }
        line("Login Succeeded")?;
        Ok(0)
    }

    /// The password of the options, if they give one.
    fn given_password(&self) -> Result<Option<String>, Stop> {
        if !self.password_stdin {
            if self.password.is_some() {
                stderr("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")?;
            }
            return Ok(self.password.clone());
        }
        if self.password.is_some() {
            return Err(usage("--password and --password-stdin are mutually exclusive").into());
        }
        if self.username.is_none() {
            return Err(usage("Must provide --username with --password-stdin").into());
        }
        let mut password = String::new();
        let read = io::stdin().take(PASSWORD_MAX + 1).read_to_string(&mut password);
        read.map_err(|error| Report::of(Kind::Usage, error).with_step("reading the password"))?;
        if password.len() as u64 > PASSWORD_MAX {
            return Err(usage(&format!("the password is longer than {PASSWORD_MAX} bytes")).into());
        }
        let password = password.strip_suffix('\n').unwrap_or(&password);
        Ok(Some(password.strip_suffix('\r').unwrap_or(password).to_owned()))
    }

    /// Tries what is kept from an earlier login; whether the registry still knows it.
    fn again(&self, engine: &Engine) -> Result<bool, Stop> {
        match registries::log_in_again(engine, self.server.as_deref()) {
            Ok(known) => Ok(known.is_some()),
            // Another one may do, if there is someone to ask for it.
            Err(report) if report.kind() == Kind::Denied && io::stdin().is_terminal() => {
                warning(&format!("the credentials of an earlier login are refused: {}", report.lines().join(": ")));
                Ok(false)
            }
            Err(report) => Err(report.into()),
        }
    }
}

fn usage(message: &str) -> Report {
    Report::new(Kind::Usage, message)
}
