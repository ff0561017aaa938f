//! `login`: a credential is shown to the registry first, and kept where it will be found.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::{Flock, FlockArg};
use registry::{Credential, Credentials, Registry, Source, auth, helper};

use super::{auth_file, auth_files, conf, credentials, host_and_path, read_auth, server, settings};
use crate::Engine;
use crate::file::{failed, replace_private};

/// What is to be kept.
#[derive(Clone)]
pub struct Login {
    /// The registry as the user wrote it; Docker's without one.
    pub server: Option<String>,
    /// The user's name there.
    pub user: String,
    /// The password or token.
    pub password: String,
}

// A password must not get into a log by way of `{:?}`.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("server", &self.server).field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where a credential is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In a file, readable for its owner.
    InFile(PathBuf),
    /// By the helper of this name.
    ByHelper(String),
}

/// Shows a credential to its registry and keeps it if that knows it.
pub fn log_in(engine: &Engine, login: &Login) -> Result<Kept, Report> {
    let server = server(login.server.as_deref())?;
    let credential = Credential::Basic { user: login.user.clone(), password: login.password.clone() };
    show(engine, &server, Source::Only(credential)).step(|| format!("cannot log in to {server}"))?;
    keep(engine, &server, login)
}

/// Shows the credential to a registry that is kept for it; `None` if there is none.
pub fn log_in_again(engine: &Engine, server_text: Option<&str>) -> Result<Option<()>, Report> {
    let server = server(server_text)?;
    let (host, path) = host_and_path(&server);
    let known = credentials(engine, &conf(engine)?)?.find(host, path)?;
    let Some(credential) = known else { return Ok(None) };
    show(engine, &server, Source::Only(credential)).step(|| format!("cannot log in to {server}"))?;
    Ok(Some(()))
}

fn show(engine: &Engine, server: &str, credential: Source) -> Result<(), Report> {
    let registry = Registry::new(settings(engine, conf(engine)?, Credentials(vec![credential])));
    let done = registry.log_in(host_and_path(server).0);
    registry.notes().iter().for_each(|note| engine.notice(note));
    Ok(done?)
}

/// Writes a credential to the first file that has one for the server, since that is the one that would be found; else to the
/// file for new ones.
fn keep(engine: &Engine, server: &str, login: &Login) -> Result<Kept, Report> {
    let known = auth_files(engine)?.into_iter().find(|(_, file)| file.has(server)).map(|(path, _)| path);
    let path = known.or(engine.options().registries.login_file.as_deref());
    let path = path.ok_or_else(|| Report::new(Kind::Usage, "no file for credentials: HOME is not set"))?;
    let content = read_auth(path)?.unwrap_or_default();
    if !content.is_empty() {
        let file = auth_file(path, &content)?;
        if let Some(name) = file.helper_of(host_and_path(server).0).or(file.default_helper()) {
            helper::store(name, server, &login.user, &login.password)?;
            return Ok(Kept::ByHelper(name.to_owned()));
        }
    }
    change(path, |content| auth::with_credential(content, server, &login.user, &login.password).map(Some))?;
    Ok(Kept::InFile(path.to_path_buf()))
}

/// Replaces a file of credentials by what `new` makes of its content; whether it made anything. One command at a time, by a
/// lock on the directory; a file system that has no locks on directories does without, as other engines do.
pub(super) fn change(
    path: &Path,
    new: impl FnOnce(&[u8]) -> Result<Option<Vec<u8>>, registry::RegistryError>,
) -> Result<bool, Report> {
    // A link leads to where its owner keeps such files.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let directory = path.parent().unwrap_or(Path::new("/"));
    private_directory(directory)?;
    let opened = File::open(directory).map_err(|error| failed("opening", directory, error))?;
    let _lock = Flock::lock(opened, FlockArg::LockExclusive).ok();
    let content = read_auth(&path)?.unwrap_or_default();
    let Some(bytes) = new(&content).step(|| format!("reading {}", path.display()))? else { return Ok(false) };
    replace_private(&path, &bytes)?;
    Ok(true)
}

/// Makes a directory that only we can read, and those above it.
fn private_directory(directory: &Path) -> Result<(), Report> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| failed("making", directory, error))
}
