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
            // The helper of a host goes before the file as in both engines; the one for the rest comes after it, since
            // that spares a process.
            Source::File(file) => match (file.helper_of(host), file.credential(host, repository)) {
                (Some(helper), _) => helper::get(helper, host),
                (None, Some(credential)) => Ok(Some(credential.clone())),
                (None, None) => file.default_helper().map_or(Ok(None), |helper| helper::get(helper, host)),
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
    }
}
