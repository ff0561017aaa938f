//! `logout`: a credential is taken out of every place where it would be found.

use base::Report;
use registry::{AuthFile, auth, helper};

use super::{AUTH_VARIABLE, auth_file, host_and_path, login, read_auth, server};
use crate::Engine;

/// Forgets the credential for a registry (Docker's without a name): its name, and whether there was one.
pub fn log_out(engine: &Engine, server_text: Option<&str>) -> Result<(String, bool), Report> {
    let server = server(server_text)?;
    let mut known = false;
    for path in &engine.options().registries.auth_files {
        let Some(content) = read_auth(path)? else { continue };
        let file = auth_file(path, &content)?;
        if let Some(name) = file.helper_of(host_and_path(&server).0).or(file.default_helper()) {
            known |= helper::erase(name, &server)?;
        }
        // Also where it holds no password: an entry without one is what Docker leaves for its helper.
        known |= login::change(path, |content| auth::without_credential(content, &server))?;
    }
    let variable = engine.options().registries.auth.as_deref().and_then(|text| AuthFile::parse(text.as_bytes()).ok());
    if variable.is_some_and(|file| file.has(&server)) {
        engine.notice(&format!("{AUTH_VARIABLE} in the environment still has a credential for {server}"));
    }
    Ok((server, known))
}
