//! `login`: a credential is shown to the registry first, and kept where it will be found.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use nix::fcntl::{Flock, FlockArg};
use registry::{AuthFile, Credential, Credentials, Registry, Source, auth, helper};

use super::{
    AUTH_VARIABLE, Place, auth_files, conf, credentials, environment, host_and_path, order, read_auth, server,
    settings, tell_notes,
};
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
    let registry = Registry::new(settings(engine, conf(engine)?, Credentials(vec![credential]))?);
    let done = registry.log_in(host_and_path(server).0);
    tell_notes(engine, &registry);
    Ok(done?)
}

/// Keeps a credential with the first that would be asked for it: a helper of `registries.conf`, or the first file that has one
/// for the server or names a helper for it; else the file for new ones.
fn keep(engine: &Engine, server: &str, login: &Login) -> Result<Kept, Report> {
    if environment(engine)?.is_some_and(|file| answers_for(&file, server)) {
        engine.notice(&format!("{AUTH_VARIABLE} in the environment goes before what is kept now for {server}"));
    }
    // A part of a host is what only files know.
    let is_host = host_and_path(server).1.is_empty();
    for place in order(engine, &conf(engine)?) {
        match place {
            Place::Helper(name) if is_host => return by_helper(&name, server, login),
            Place::Helper(_) => {}
            Place::Files => return in_files(engine, server, login),
        }
    }
    let why =
        format!("the credential helpers of registries.conf keep nothing for a part of a registry, such as {server}");
    Err(Report::new(Kind::Usage, why).with_hint(format!("log in to {}", host_and_path(server).0)))
}

fn by_helper(name: &str, server: &str, login: &Login) -> Result<Kept, Report> {
    helper::store(name, server, &login.user, &login.password)?;
    Ok(Kept::ByHelper(name.to_owned()))
}

fn in_files(engine: &Engine, server: &str, login: &Login) -> Result<Kept, Report> {
    let mut files = auth_files(engine)?;
    let login_file = engine.options().registries.login_file.as_deref();
    let known = files.iter().position(|(_, file)| answers_for(file, server));
    let at = known.or_else(|| files.iter().position(|(path, _)| Some(*path) == login_file));
    let (path, file) = match (at, login_file) {
        (Some(at), _) => files.swap_remove(at),
        (None, Some(path)) => (path, AuthFile::default()),
        (None, None) => return Err(Report::new(Kind::Usage, "no file for credentials: HOME is not set")),
    };
    match file.helper(host_and_path(server).0) {
        Some(name) if host_and_path(server).1.is_empty() => {
            let kept = by_helper(name, server, login)?;
            // A password that was here before is not good any more, and was never meant to stay.
            change(path, |content| auth::without_credential(content, server))?;
            Ok(kept)
        }
        _ => {
            change(path, |content| auth::with_credential(content, server, &login.user, &login.password).map(Some))?;
            Ok(Kept::InFile(path.to_path_buf()))
        }
    }
}

/// Whether a file has or gets a credential for a server.
fn answers_for(file: &AuthFile, server: &str) -> bool {
    let (host, path) = host_and_path(server);
    file.credential(host, path).is_some() || file.helper(host).is_some()
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
