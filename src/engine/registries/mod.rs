//! How registries are reached and who we are there: the files of other engines, read when they are needed, and the
//! commands that change them.
//!
//! What is asked of a registry is written by crate `registry`; here is where its settings come from. A file that is there
//! and cannot be read or understood is an error: what it says would else be dropped silently.

pub mod import;
mod login;
mod logout;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use registry::{AuthFile, Credentials, RegistriesConf, Registry, Settings, Source};

use crate::Engine;
use crate::file::{self, failed};

pub use login::{Kept, Login, log_in, log_in_again};
pub use logout::log_out;
pub use registry::Credential;

/// What `credential-helpers` of `registries.conf` calls the files of credentials.
const FILES_WORD: &str = "containers-auth.json";
/// How the environment's credentials are called in errors.
const AUTH_VARIABLE: &str = "DOCKER_AUTH_CONFIG";

/// Where to find out about registries.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The content of a file of credentials that goes before all files (`DOCKER_AUTH_CONFIG`).
    pub auth: Option<String>,
    /// Files that may hold credentials; each is asked that exists.
    pub auth_files: Vec<PathBuf>,
    /// Whether a user's option named the files, so that no helper of `registries.conf` is asked.
    pub files_alone: bool,
    /// The file that `login` writes, where no other one knows the registry.
    pub login_file: Option<PathBuf>,
    /// Places of `registries.conf`; the first whose file exists counts.
    pub conf: Vec<ConfPlace>,
}

/// A `registries.conf` with what belongs to it.
#[derive(Clone, Debug)]
pub struct ConfPlace {
    /// The file.
    pub file: PathBuf,
    /// Whether it was named, and so must exist.
    pub named: bool,
    /// Directories of drop-ins (`*.conf`), which are read in the order of their names. Those of the last place count
    /// without its file.
    pub drop_ins: Vec<PathBuf>,
}

/// What all files of `registries.conf` say.
pub(crate) fn conf(engine: &Engine) -> Result<RegistriesConf, Report> {
    let mut conf = RegistriesConf::default();
    for path in conf_files(engine)? {
        // One that has gone meanwhile says nothing.
        let Some(bytes) = file::read(&path)? else { continue };
        let text = String::from_utf8(bytes).map_err(|error| failed("reading", &path, io::Error::other(error)))?;
        conf.add(&path.display().to_string(), &text)?;
    }
    Ok(conf)
}

/// The files of `registries.conf` that are in force, in the order in which they are read.
pub fn conf_files(engine: &Engine) -> Result<Vec<PathBuf>, Report> {
    let mut files = Vec::new();
    let mut drop_ins = &[][..];
    for place in &engine.options().registries.conf {
        drop_ins = &place.drop_ins;
        if place.file.try_exists().map_err(|error| failed("looking at", &place.file, error))? {
            files.push(place.file.clone());
            break;
        }
        if place.named {
            return Err(failed("reading", &place.file, io::ErrorKind::NotFound.into()));
        }
    }
    for directory in drop_ins {
        files.extend(drop_ins_in(directory)?);
    }
    Ok(files)
}

fn drop_ins_in(directory: &Path) -> Result<Vec<PathBuf>, Report> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("reading", directory, error)),
    };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()
        .map_err(|error| failed("reading", directory, error))?;
    files.retain(|path| path.extension().is_some_and(|end| end == "conf"));
    files.sort();
    Ok(files)
}

/// A user's name and password as `NAME:PASSWORD`.
pub fn credential(text: &str) -> Result<Credential, Report> {
    let wrong = || Report::new(Kind::Usage, "credentials are a user's name and a password with a colon between");
    let (user, password) = text.split_once(':').ok_or_else(wrong)?;
    Credential::of_user(user.to_owned(), password.to_owned()).ok_or_else(wrong)
}

/// A client of all registries; refused where none may be asked.
pub(crate) fn client(engine: &Engine, conf: RegistriesConf) -> Result<Registry, Report> {
    client_of(engine, conf, None)
}

/// The same that sends blobs in parts of this size, if one is given.
pub(crate) fn client_in_parts(engine: &Engine, part_bytes: Option<u64>) -> Result<Registry, Report> {
    client_of(engine, conf(engine)?, part_bytes)
}

fn client_of(engine: &Engine, conf: RegistriesConf, part_bytes: Option<u64>) -> Result<Registry, Report> {
    let credentials = credentials(engine, &conf)?;
    let credential = engine.options().credential.clone();
    Ok(Registry::new(Settings { part_bytes, credential, ..settings(engine, conf, credentials)? }))
}

/// A client of registries that a command's options are not about: it takes neither their certificates nor who we are there.
pub(crate) fn client_beside(engine: &Engine) -> Result<Registry, Report> {
    let conf = conf(engine)?;
    let credentials = credentials(engine, &conf)?;
    let settings = settings(engine, conf, credentials)?;
    Ok(Registry::new(Settings { certificates_for_all: None, tls_verify: None, ..settings }))
}

/// A client that is nobody, for what belongs to no registry.
pub(crate) fn anonymous(engine: &Engine) -> Result<Registry, Report> {
    Ok(Registry::new(settings(engine, RegistriesConf::default(), Credentials::default())?))
}

/// Says what registries said beside their answers.
pub(crate) fn tell_notes(engine: &Engine, registry: &Registry) {
    registry.notes().iter().for_each(|note| engine.notice(note));
}

fn settings(engine: &Engine, registries: RegistriesConf, credentials: Credentials) -> Result<Settings, Report> {
    engine.require_network(&[])?;
    let options = engine.options();
    if let Some(directory) = &options.certificates_for_all {
        fs::read_dir(directory).map_err(|error| failed("reading the certificates in", directory, error))?;
    }
    Ok(Settings {
        headers: credentials.headers(),
        credentials,
        registries,
        certificates_for_all: options.certificates_for_all.clone(),
        tls_verify: options.tls_verify,
        insecure: options.insecure.clone(),
        certificates: options.certificates.clone(),
        roots: options.roots.clone(),
        proxies: options.proxies.clone(),
        ..Settings::default()
    })
}

/// All sources of credentials: the environment, then the places in their order.
fn credentials(engine: &Engine, conf: &RegistriesConf) -> Result<Credentials, Report> {
    let mut sources: Vec<Source> = environment(engine)?.map(Source::File).into_iter().collect();
    for place in order(engine, conf) {
        match place {
            Place::Files => sources.extend(auth_files(engine)?.into_iter().map(|(_, file)| Source::File(file))),
            Place::Helper(name) => sources.push(Source::Helper(name)),
        }
    }
    Ok(Credentials(sources))
}

/// What is asked for credentials after the environment.
enum Place {
    /// The files, each that exists.
    Files,
    /// The helper of this name.
    Helper(String),
}

/// The order in which places are asked: that of `registries.conf`, else the files alone, as where an option names the file.
fn order(engine: &Engine, conf: &RegistriesConf) -> Vec<Place> {
    let place = |word: &String| if word == FILES_WORD { Place::Files } else { Place::Helper(word.clone()) };
    match conf.credential_helpers() {
        Some(words) if !words.is_empty() && !engine.options().registries.files_alone => {
            words.iter().map(place).collect()
        }
        _ => vec![Place::Files],
    }
}

/// The credentials in the environment.
fn environment(engine: &Engine) -> Result<Option<AuthFile>, Report> {
    let content = engine.options().registries.auth.as_ref();
    content.map(|content| AuthFile::parse(content.as_bytes()).step(|| format!("reading {AUTH_VARIABLE}"))).transpose()
}

/// The files of credentials that exist, with where they are.
fn auth_files(engine: &Engine) -> Result<Vec<(&Path, AuthFile)>, Report> {
    let mut files = Vec::new();
    for path in &engine.options().registries.auth_files {
        if let Some(content) = read_auth(path)? {
            files.push((path.as_path(), auth_file(path, &content)?));
        }
    }
    Ok(files)
}

/// A file of credentials; `None` when there is none. An empty one says as much.
fn read_auth(path: &Path) -> Result<Option<Vec<u8>>, Report> {
    Ok(file::read(path)?.filter(|content| !content.trim_ascii().is_empty()))
}

fn auth_file(path: &Path, content: &[u8]) -> Result<AuthFile, Report> {
    AuthFile::parse(content).step(|| format!("reading {}", path.display()))
}

/// The name of a registry that a user gave to `login` or `logout`: `docker.io` without one. May have the beginning of a
/// repository's path behind it, for which alone the credential is then.
fn server(text: Option<&str>) -> Result<String, Report> {
    let server = registry::auth::server_name(text.unwrap_or(oci::reference::DEFAULT_HOST));
    let inside = format!("{server}/x");
    match inside.parse::<oci::Reference>() {
        Ok(_) if oci::Reference::names_host(&inside) => Ok(server),
        Ok(_) => Err(Report::new(Kind::Usage, format!("{server:?} is no registry's host"))
            .with_hint("a host without a dot needs its port: HOST:PORT")),
        Err(error) => Err(Report::from(error).with_step(format!("{server:?} is no registry's host"))),
    }
}

/// A server's host, and what follows it.
fn host_and_path(server: &str) -> (&str, &str) {
    server.split_once('/').unwrap_or((server, ""))
}
