//! `logout`: a credential is taken out of every place where it would be found.

use std::path::Path;

use base::Report;
use registry::{AuthFile, auth, helper};

use super::{AUTH_VARIABLE, Place, auth_file, conf, host_and_path, login, order, read_auth, server};
use crate::Engine;

/// Forgets the credential for a registry (Docker's without a name): its name, and whether there was one. Goes on where one
/// place cannot be changed, and fails with the first that could not.
pub fn log_out(engine: &Engine, server_text: Option<&str>) -> Result<(String, bool), Report> {
    let server = server(server_text)?;
    let is_host = host_and_path(&server).1.is_empty();
    let (mut known, mut failure) = (false, None);
    let mut tell = |done: Result<bool, Report>| match done {
        Ok(had) => known |= had,
        Err(report) => failure = failure.take().or(Some(report)),
    };
    // Files also where `registries.conf` does not ask them: other engines may.
    for path in &engine.options().registries.auth_files {
        tell(forget(path, &server, is_host));
    }
    match conf(engine) {
        Ok(conf) => {
            for place in order(engine, &conf) {
                if let Place::Helper(name) = place
                    && is_host
                {
                    tell(helper::erase(&name, &server).map_err(Report::from));
                }
            }
        }
        Err(report) => tell(Err(report)),
    }
    let variable = engine.options().registries.auth.as_deref().and_then(|text| AuthFile::parse(text.as_bytes()).ok());
    if variable.is_some_and(|file| file.has(&server)) {
        engine.notice(&format!("{AUTH_VARIABLE} in the environment still has a credential for {server}"));
    }
    failure.map_or(Ok((server, known)), Err)
}

/// Takes a credential out of a file, and from the helper that it names; whether there was one.
fn forget(path: &Path, server: &str, is_host: bool) -> Result<bool, Report> {
    let Some(content) = read_auth(path)? else { return Ok(false) };
    let file = auth_file(path, &content)?;
    // Also where a helper has the password: an entry without one is what Docker leaves beside it.
    let in_file = login::change(path, |content| auth::without_credential(content, server))?;
    match file.helper(host_and_path(server).0).filter(|_| is_host) {
        Some(name) => Ok(helper::erase(name, server)? || in_file),
        None => Ok(in_file),
    }
}
