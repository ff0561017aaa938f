//! `logout`: a credential is taken out of every place where it would be found.

use std::path::Path;

use base::Report;
use registry::{AuthFile, auth, helper};

use super::{AUTH_VARIABLE, auth_file, host_and_path, login, read_auth, server};
use crate::Engine;

/// Forgets the credential for a registry (Docker's without a name): its name, and whether there was one. Goes on where one
/// place cannot be changed, and fails with the first that could not.
pub fn log_out(engine: &Engine, server_text: Option<&str>) -> Result<(String, bool), Report> {
    let server = server(server_text)?;
    let (mut known, mut failure) = (false, None);
    for path in &engine.options().registries.auth_files {
        match forget(path, &server) {
            Ok(had) => known |= had,
            Err(report) => failure = failure.or(Some(report)),
        }
    }
    let variable = engine.options().registries.auth.as_deref().and_then(|text| AuthFile::parse(text.as_bytes()).ok());
    if variable.is_some_and(|file| file.has(&server)) {
        engine.notice(&format!("{AUTH_VARIABLE} in the environment still has a credential for {server}"));
    }
    failure.map_or(Ok((server, known)), Err)
}

/// Takes a credential out of a file, and from the helper that it names; whether there was one.
fn forget(path: &Path, server: &str) -> Result<bool, Report> {
    let Some(content) = read_auth(path)? else { return Ok(false) };
    let file = auth_file(path, &content)?;
    // Also where a helper has the password: an entry without one is what Docker leaves beside it.
    let in_file = login::change(path, |content| auth::without_credential(content, server))?;
    match file.helper_of(host_and_path(server).0).or(file.default_helper()) {
        Some(name) => Ok(helper::erase(name, server)? || in_file),
        None => Ok(in_file),
    }
}
