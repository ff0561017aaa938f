//! Files of credentials as Docker and Podman keep them: read, and changed without losing what we do not know.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci::reference::DEFAULT_HOST;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use ureq::http::{HeaderName, HeaderValue};

use crate::error::{RegistryError, json_trouble};

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
    /// What a name and its secret are; `None` without a name.
    pub fn of_user(user: String, password: String) -> Option<Self> {
        if TOKEN_USERS.contains(&user.as_str()) {
            return Some(Credential::Refresh(password));
        }
        (!user.is_empty()).then_some(Credential::Basic { user, password })
    }

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
    headers: Vec<(String, String)>,
    credentials: HashMap<String, Credential>,
    helpers: HashMap<String, String>,
    default_helper: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigJson {
    // Go writes an empty map as null, and so an entry without anything.
    auths: Option<BTreeMap<String, Option<AuthEntry>>>,
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
    creds_store: Option<String>,
    #[serde(rename = "HttpHeaders")]
    http_headers: Option<BTreeMap<String, String>>,
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
        let json: ConfigJson = serde_json::from_slice(content).map_err(|error| malformed(&error))?;
        let mut credentials = HashMap::new();
        for (key, entry) in json.auths.unwrap_or_default() {
            let Some(credential) = entry.and_then(credential) else { continue };
            // Of several names of one place the plain one counts, which is the newer habit.
            if key == normal_key(&key) {
                credentials.insert(key, credential);
            } else {
                credentials.entry(normal_key(&key)).or_insert(credential);
            }
        }
        let named = |helper: &String| !helper.is_empty();
        let helpers = json.cred_helpers.unwrap_or_default().into_iter();
        let helpers = helpers.filter_map(|(key, helper)| Some((normal_key(&key), helper.filter(named)?))).collect();
        let default_helper = json.creds_store.filter(named);
        let headers = json.http_headers.unwrap_or_default().into_iter().filter(|(name, _)| is_meta(name));
        let headers: Vec<(String, String)> = headers.collect();
        if let Some(name) = first_malformed(&headers) {
            return Err(RegistryError::AuthFile { why: format!("HttpHeaders: {name:?} or its value is no header") });
        }
        Ok(AuthFile { headers, credentials, helpers, default_helper })
    }

    /// The credential for a repository, with its key: the most specific one wins, as Podman has it (`host/org/app`,
    /// `host/org`, `host`).
    pub fn credential(&self, host: &str, repository: &str) -> Option<(&str, &Credential)> {
        let mut key = format!("{host}/{repository}");
        loop {
            if let Some((key, found)) = self.credentials.get_key_value(&key) {
                return Some((key.as_str(), found));
            }
            key.truncate(key.rfind('/')?);
        }
    }

    /// Those of Docker's `HttpHeaders` that Docker hands on to registries: the ones that begin with `X-Meta-`.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Whether the file itself has a credential for just this place.
    pub fn has(&self, server: &str) -> bool {
        self.credentials.contains_key(&normal_key(server))
    }

    /// The helper that keeps the credential of this host: its own, else the one for all.
    pub fn helper(&self, host: &str) -> Option<&str> {
        self.helpers.get(host).or(self.default_helper.as_ref()).map(String::as_str)
    }
}

fn is_meta(name: &str) -> bool {
    name.get(..7).is_some_and(|begin| begin.eq_ignore_ascii_case("x-meta-"))
}

fn first_malformed(headers: &[(String, String)]) -> Option<&str> {
    let is_header =
        |(name, value): &&(String, String)| name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok();
    headers.iter().find(|header| !is_header(header)).map(|(name, _)| name.as_str())
}

/// The name of a place in the form that references have: `docker.io`, `reg:5000`, `quay.io/org`.
pub fn server_name(text: &str) -> String {
    normal_key(text)
}

/// The key under which other engines look for a place.
pub fn server_key(server: &str) -> &str {
    if server == DEFAULT_HOST { DOCKER_KEY } else { server }
}

/// The content of a file (empty: a new one) with a user's password for a place, in place of what it had for it. All else
/// stays.
pub fn with_credential(content: &[u8], server: &str, user: &str, password: &str) -> Result<Vec<u8>, RegistryError> {
    let mut document = document(content)?;
    remove(&mut document, server);
    let auths = document.entry("auths").or_insert_with(|| json!({}));
    if !auths.is_object() {
        *auths = json!({});
    }
    auths[server_key(server)] = json!({ "auth": STANDARD.encode(format!("{user}:{password}")) });
    written(&document)
}

/// The content of a file without what it has for a place; `None` if it has nothing.
pub fn without_credential(content: &[u8], server: &str) -> Result<Option<Vec<u8>>, RegistryError> {
    let mut document = document(content)?;
    if remove(&mut document, server) { written(&document).map(Some) } else { Ok(None) }
}

fn document(content: &[u8]) -> Result<Map<String, Value>, RegistryError> {
    if content.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(content).map_err(|error| malformed(&error))
}

fn remove(document: &mut Map<String, Value>, server: &str) -> bool {
    let Some(Value::Object(auths)) = document.get_mut("auths") else { return false };
    let before = auths.len();
    auths.retain(|key, _| normal_key(key) != server);
    auths.len() < before
}

/// With tabs, as Docker writes it.
fn written(document: &Map<String, Value>) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    document.serialize(&mut serializer).map_err(|error| malformed(&error))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn malformed(error: &serde_json::Error) -> RegistryError {
    RegistryError::AuthFile { why: json_trouble(error) }
}

/// Keys may be addresses: the host is what counts, and Docker's own has three names.
fn normal_key(key: &str) -> String {
    if key == DOCKER_KEY {
        return DEFAULT_HOST.to_owned();
    }
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    // The interface's root at a host; deeper it is a repository's name.
    let root = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).filter(|host| !host.contains('/'));
    let key = root.unwrap_or(key);
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
    Credential::of_user(user, password)
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
            let found = file.credential(host, repository).map(|(_, credential)| credential);
            assert_eq!(found, wanted.as_ref(), "{host}/{repository}");
        }
        assert_eq!((file.helper("helped.io"), file.helper("quay.io")), (Some("pass"), None));
        let all = AuthFile::parse(br#"{"credsStore":"all","credHelpers":{"helped.io":"pass"}}"#).unwrap();
        assert_eq!((all.helper("helped.io"), all.helper("quay.io")), (Some("pass"), Some("all")));
        assert!(file.has("https://quay.io") && !file.has("quay.io/other"));
        assert!(AuthFile::parse(b"{").is_err());
        let error = AuthFile::parse(br#"{"auths":{"a.io":"hunter2"}}"#).unwrap_err().to_string();
        assert!(error.contains("line 1 column") && !error.contains("hunter2"), "{error}");
        for nothing in
            ["{}", r#"{"auths":null,"credHelpers":null}"#, r#"{"auths":{"a":null},"credHelpers":{"a":null}}"#]
        {
            let file = AuthFile::parse(nothing.as_bytes()).unwrap();
            assert!(file.credential("a", "b").is_none() && file.helper("a").is_none(), "{nothing}");
        }
    }

    #[test]
    fn of_two_names_of_docker_io_the_plain_one_counts() {
        let both = format!(
            r#"{{"auths":{{"{DOCKER_KEY}":{{"username":"old","password":"x"}},"docker.io":{{"username":"new","password":"x"}}}}}}"#
        );
        let found =
            AuthFile::parse(both.as_bytes()).unwrap().credential("docker.io", "a").map(|(_, found)| found.clone());
        assert_eq!(found, Credential::of_user("new".to_owned(), "x".to_owned()));
    }

    #[test]
    fn places_have_one_name() {
        for (text, name) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("http://reg:5000/v2/", "reg:5000"),
            ("reg.io/org/", "reg.io/org"),
            ("reg.io/v1", "reg.io"),
            ("reg.io/team/v1", "reg.io/team/v1"),
        ] {
            assert_eq!(server_name(text), name, "{text}");
        }
    }

    #[test]
    fn a_change_keeps_what_is_unknown() {
        let old =
            br#"{"auths":{"a.io":{"auth":"x","email":"e"},"docker.io":{}},"plugins":{"p":{"n":18446744073709551615}}}"#;
        let new = with_credential(old, "docker.io", "me", "se:cret").unwrap();
        let value: Value = serde_json::from_slice(&new).unwrap();
        assert_eq!(value["plugins"]["p"]["n"], json!(u64::MAX));
        assert_eq!(value["auths"]["a.io"], json!({"auth": "x", "email": "e"}));
        assert_eq!(value["auths"].as_object().unwrap().len(), 2, "{value}");
        let read = AuthFile::parse(&new).unwrap();
        let wanted = Credential::of_user("me".into(), "se:cret".into());
        assert_eq!(read.credential("docker.io", "x").map(|(_, found)| found), wanted.as_ref());
        let gone = without_credential(&new, "docker.io").unwrap().unwrap();
        assert_eq!(without_credential(&gone, "docker.io").unwrap(), None);
        assert!(AuthFile::parse(&gone).unwrap().credential("docker.io", "x").is_none());
        for (content, works) in
            [("", true), (" \n", true), ("{}", true), (r#"{"auths":7}"#, true), ("[]", false), ("{", false)]
        {
            assert_eq!(with_credential(content.as_bytes(), "a", "u", "p").is_ok(), works, "{content}");
        }
    }
}
