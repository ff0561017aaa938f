//! Who we are at a registry: the sources of credentials in their order.

use crate::auth::{AuthFile, Credential};
use crate::{Result, helper};

/// A place where credentials are kept.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, with the helpers that it names.
    File(AuthFile),
    /// The helper of this name, for all registries (`credential-helpers` of `registries.conf`).
    Helper(String),
    /// One credential, whatever it is wanted for.
    Only(Credential),
}

/// All places, the first that knows a credential counts.
#[derive(Clone, Debug, Default)]
pub struct Credentials(pub Vec<Source>);

impl Credentials {
    /// The headers that files want registries to get.
    pub fn headers(&self) -> Vec<(String, String)> {
        let files = self.0.iter().filter_map(|source| match source {
            Source::File(file) => Some(file),
            Source::Only(_) | Source::Helper(_) => None,
        });
        files.flat_map(AuthFile::headers).cloned().collect()
    }

    /// The credential for a repository. Runs helpers, which may ask the user. An error is of a source that could not be
    /// asked, where no other one knows a credential.
    pub fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        let mut failure = None;
        for source in &self.0 {
            match source.find(host, repository) {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

impl Source {
    fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        match self {
            Source::Only(credential) => Ok(Some(credential.clone())),
            Source::Helper(name) => helper::get(name, host),
            // Helpers know whole hosts only, so what the file has for a part of one is nearer. Else they go before the file as
            // in Docker: what is left there is older.
            Source::File(file) => match (file.credential(host, repository), file.helper(host)) {
                (Some((key, credential)), _) if key != host => Ok(Some(credential.clone())),
                (found, Some(helper)) => {
                    Ok(helper::get(helper, host)?.or_else(|| found.map(|(_, credential)| credential.clone())))
                }
                (found, None) => Ok(found.map(|(_, credential)| credential.clone())),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_first_source_that_knows_counts() {
        let file = |text: &str| Source::File(AuthFile::parse(text.as_bytes()).unwrap());
        let broken = file(r#"{"credHelpers":{"a.io":"no/such"}}"#);
        let user = |name: &str| Credential::of_user(name.to_owned(), "p".to_owned());
        let with = |name: &str| file(&format!(r#"{{"auths":{{"a.io":{{"username":"{name}","password":"p"}}}}}}"#));
        let find = |sources: Vec<Source>| Credentials(sources).find("a.io", "x");
        assert_eq!(find(vec![file("{}"), with("first"), with("second")]).unwrap(), user("first"));
        assert_eq!(find(vec![broken.clone(), with("second")]).unwrap(), user("second"));
        assert!(find(vec![broken, file("{}")]).is_err());
        assert_eq!(find(vec![]).unwrap(), None);
        let both = |key: &str| {
            let auths = format!(r#"{{"{key}":{{"username":"old","password":"p"}}}}"#);
            file(&format!(r#"{{"auths":{auths},"credsStore":"no/such"}}"#))
        };
        assert!(find(vec![both("a.io")]).is_err(), "the helper is asked first");
        assert_eq!(find(vec![both("a.io/x")]).unwrap(), user("old"), "but for what is of a part of the host");
    }
}
