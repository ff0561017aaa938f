//! Credentials as Docker and Podman keep them, and the tokens they buy.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci::reference::DEFAULT_HOST;
use serde::Deserialize;

use crate::error::RegistryError;

/// Docker's key for its own registry.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The user of credentials that are a refresh token, by convention of the credential helpers.
const TOKEN_USERS: [&str; 2] = ["<token>", "00000000-0000-0000-0000-000000000000"];

/// What is sent to prove who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user's name and password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that buys access tokens (OAuth 2).
    Refresh(String),
}

// A credential must not get into a log by way of `{:?}`.
impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(…)")
    }
}

impl Credential {
    /// The value of an `Authorization` header; `None` for a refresh token, which is no use there.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Credential::Basic { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credential::Refresh(_) => None,
        }
    }
}

/// A `config.json` of Docker or `auth.json` of Podman.
#[derive(Clone, Debug, Default)]
pub struct AuthFile {
    credentials: HashMap<String, Credential>,
    helpers: HashMap<String, String>,
    default_helper: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigJson {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl AuthFile {
    /// Reads the file's content. Entries that hold no credential are left out: Docker writes such for helpers.
    pub fn parse(content: &[u8]) -> Result<Self, RegistryError> {
        let json: ConfigJson = serde_json::from_slice(content).map_err(|cause| RegistryError::AuthFile { cause })?;
        let entries = json.auths.into_iter();
        let credentials = entries.filter_map(|(key, entry)| Some((normal_key(&key), credential(entry)?))).collect();
        let helpers = json.cred_helpers.into_iter().map(|(key, helper)| (normal_key(&key), helper)).collect();
        Ok(AuthFile { credentials, helpers, default_helper: json.creds_store })
    }

    /// The credential for a repository: the most specific key wins, as Podman has it (`host/org/app`, `host/org`, `host`).
    pub fn credential(&self, host: &str, repository: &str) -> Option<&Credential> {
        let mut key = format!("{host}/{repository}");
        loop {
            if let Some(found) = self.credentials.get(&key) {
                return Some(found);
            }
            key.truncate(key.rfind('/')?);
        }
    }

    /// The helper that keeps the credential for a host, if the file itself does not.
    pub fn helper(&self, host: &str) -> Option<&str> {
        self.helpers.get(host).or(self.default_helper.as_ref()).map(String::as_str)
    }
}

/// Keys may be addresses: the host is what counts, and Docker's own has three names.
fn normal_key(key: &str) -> String {
    if key == DOCKER_KEY {
        return DEFAULT_HOST.to_owned();
    }
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    if matches!(key, "index.docker.io" | "registry-1.docker.io") { DEFAULT_HOST.to_owned() } else { key.to_owned() }
}

fn credential(entry: AuthEntry) -> Option<Credential> {
    if let Some(token) = entry.identitytoken.filter(|token| !token.is_empty()) {
        return Some(Credential::Refresh(token));
    }
    let (user, password) = match (entry.username, entry.password, entry.auth) {
        (_, _, Some(auth)) if !auth.is_empty() => {
            let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
            let (user, password) = decoded.split_once(':')?;
            // Docker has padded with NUL bytes.
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        (Some(user), Some(password), _) => (user, password),
        _ => return None,
    };
    if TOKEN_USERS.contains(&user.as_str()) {
        return Some(Credential::Refresh(password));
    }
    (!user.is_empty()).then_some(Credential::Basic { user, password })
}

/// A token service's answer.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// What opens a repository, in memory only.
#[derive(Clone)]
pub(crate) struct Grant {
    /// The value of the `Authorization` header.
    pub header: String,
    expires: Option<Instant>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grant(…)")
    }
}

impl Grant {
    /// A password does not expire as far as we know.
    pub(crate) fn lasting(header: String) -> Self {
        Grant { header, expires: None }
    }

    /// A token lasts as its service says, 60 s if it does not; it is renewed 10 s early.
    pub(crate) fn from_token(answer: TokenAnswer, now: Instant) -> Option<Self> {
        let token = answer.token.or(answer.access_token).filter(|token| is_header_safe(token))?;
        let lasts = Duration::from_secs(answer.expires_in.unwrap_or(60).clamp(15, 24 * 3600) - 10);
        Some(Grant { header: format!("Bearer {token}"), expires: now.checked_add(lasts) })
    }

    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

fn is_header_safe(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn reads_the_files_of_both_engines() {
        let text = format!(
            r#"{{"auths":{{"{DOCKER_KEY}":{{"auth":"{}"}},"quay.io/org":{{"auth":"{}"}},"quay.io":{{"username":"u","password":"p"}},
            "https://reg:5000/v2/":{{"identitytoken":"t"}},"helped.io":{{}},"guid":{{"auth":"{}"}}}},
            "credHelpers":{{"helped.io":"pass"}}}}"#,
            STANDARD.encode("me:se:cret"),
            STANDARD.encode("robot$x:y"),
            STANDARD.encode("<token>:refresh")
        );
        let file = AuthFile::parse(text.as_bytes()).unwrap();
        let basic =
            |user: &str, password: &str| Credential::Basic { user: user.to_owned(), password: password.to_owned() };
        for (host, repository, wanted) in [
            ("docker.io", "library/x", Some(basic("me", "se:cret"))),
            ("quay.io", "org/app", Some(basic("robot$x", "y"))),
            ("quay.io", "organisation/app", Some(basic("u", "p"))),
            ("reg:5000", "a", Some(Credential::Refresh("t".to_owned()))),
            ("guid", "a", Some(Credential::Refresh("refresh".to_owned()))),
            ("helped.io", "a", None),
            ("evil.io", "quay.io", None),
        ] {
            assert_eq!(file.credential(host, repository), wanted.as_ref(), "{host}/{repository}");
        }
        assert_eq!(file.helper("helped.io"), Some("pass"));
        assert!(AuthFile::parse(b"{").is_err());
        assert!(AuthFile::parse(b"{}").unwrap().credential("a", "b").is_none());
    }

    #[test]
    fn tokens_are_renewed_early_and_checked() {
        let now = Instant::now();
        let grant = |json: &str| Grant::from_token(serde_json::from_str(json).unwrap(), now);
        let token = grant(r#"{"token":"a","expires_in":100}"#).unwrap();
        assert_eq!(token.header, "Bearer a");
        assert!(token.is_fresh(now + Duration::from_secs(89)) && !token.is_fresh(now + Duration::from_secs(90)));
        assert!(!grant(r#"{"access_token":"a"}"#).unwrap().is_fresh(now + Duration::from_secs(51)));
        assert!(grant(r#"{"token":"a\r\nX: y"}"#).is_none());
        assert!(grant("{}").is_none());
    }
}
