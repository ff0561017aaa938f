//! One request and all it takes to get its answer: scheme, certificates, token, redirects, retries.
//!
//! Order: the cached grant or nothing is sent; 401 brings a grant and one more try; a redirect is followed by hand, so
//! that `Authorization` goes only to the origin (scheme, host, port) it is for; temporary failures start again at the
//! registry, since addresses of storage behind it expire.
//! Locks: `grants` and `plain` are each held for a look-up only, never over a request.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use oci::Reference;
use oci::reference::DEFAULT_HOST;
use serde::Deserialize;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::auth::{Credential, Grant, TokenAnswer};
use crate::challenge::{self, Challenge};
use crate::error::RegistryError;
use crate::{Result, Settings, retry};

/// Where docker.io is served.
const DOCKER_ENDPOINT: &str = "registry-1.docker.io";
const REDIRECTS_MAX: usize = 10;
/// The longest error or token body that is read.
const SMALL_BODY_MAX: u64 = 256 << 10;
/// The longest message of a registry that is shown.
const MESSAGE_MAX: usize = 300;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// A server that sends nothing for this long is taken for dead, and asked again.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Where distributions keep the certificates they trust, most common first.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A good answer (2xx).
pub(crate) struct Answer(Response<Body>);

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    pub(crate) fn into_reader(self) -> ureq::BodyReader<'static> {
        self.0.into_body().into_with_config().limit(u64::MAX).reader()
    }
}

#[derive(Debug)]
pub(crate) struct Transport {
    pub settings: Settings,
    verified: OnceLock<Agent>,
    /// By host, for those that have certificates of their own; `None` for others.
    own: Mutex<HashMap<String, Option<Agent>>>,
    unverified: OnceLock<Agent>,
    /// By host and repository.
    grants: Mutex<HashMap<(String, String), Grant>>,
    /// Hosts that turned out not to speak TLS, and may.
    plain: Mutex<HashSet<String>>,
}

/// What is asked of a registry.
struct Request<'a> {
    head: bool,
    reference: &'a Reference,
    path: &'a str,
    accept: &'a str,
    offset: u64,
}

/// Why an attempt has no good answer.
enum Failure {
    /// It will not get better.
    Final(RegistryError),
    /// It may, after this wait or our own.
    Temporary(RegistryError, Option<Duration>),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Failure::Final(error)
    }
}

impl Transport {
    pub(crate) fn new(settings: Settings) -> Self {
        Transport {
            settings,
            verified: OnceLock::new(),
            own: Mutex::default(),
            unverified: OnceLock::new(),
            grants: Mutex::default(),
            plain: Mutex::default(),
        }
    }

    pub(crate) fn head(&self, reference: &Reference, path: &str, accept: &str) -> Result<Answer> {
        self.request(&Request { head: true, reference, path, accept, offset: 0 })
    }

    /// GET; from `offset` on if it is not 0, as far as the server can.
    pub(crate) fn get(&self, reference: &Reference, path: &str, accept: &str, offset: u64) -> Result<Answer> {
        self.request(&Request { head: false, reference, path, accept, offset })
    }

    fn request(&self, request: &Request<'_>) -> Result<Answer> {
        let mut attempt = 1;
        loop {
            if self.settings.cancelled.load(Ordering::Relaxed) {
                return Err(RegistryError::Cancelled);
            }
            let (error, asked) = match self.attempt(request) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Temporary(error, asked)) => (error, asked),
            };
            if let Some(wait) = asked.filter(|wait| *wait > retry::WAIT_MAX) {
                return Err(RegistryError::TooManyRequests { url: self.url_of(request), wait });
            }
            if attempt == retry::ATTEMPTS {
                return Err(error);
            }
            retry::wait(asked.unwrap_or_else(|| retry::back_off(attempt)), &self.settings.cancelled)?;
            attempt += 1;
        }
    }

    /// One try, with a second one when a token is wanted.
    fn attempt(&self, request: &Request<'_>) -> std::result::Result<Answer, Failure> {
        let key = (request.reference.host().to_owned(), request.reference.repository().to_owned());
        let cached = locked(&self.grants).get(&key).filter(|grant| grant.is_fresh(Instant::now())).cloned();
        let response = self.follow(request, cached.as_ref())?;
        if response.status() != 401 {
            return self.judge(request, response);
        }
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        locked(&self.grants).remove(&key);
        let Some(grant) = self.grant(request, &challenges)? else {
            return self.judge(request, response);
        };
        locked(&self.grants).insert(key, grant.clone());
        let response = self.follow(request, Some(&grant))?;
        self.judge(request, response)
    }

    /// Sends the request and follows redirects.
    fn follow(&self, request: &Request<'_>, grant: Option<&Grant>) -> std::result::Result<Response<Body>, Failure> {
        let mut url = self.url_of(request);
        let origin = origin_of(&url);
        for _ in 0..=REDIRECTS_MAX {
            let own = origin_of(&url) == origin;
            let response = match self.send(request, &url, grant.filter(|_| own)) {
                Err(error) if own && self.may_be_plain(request, &url, &error) => {
                    locked(&self.plain).insert(request.reference.host().to_owned());
                    // The same attempt again without TLS.
                    return self.follow(request, grant);
                }
                Err(error) => {
                    return Err(Self::failure(request, url, error));
                }
                Ok(response) => response,
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let target = join(&url, location);
            let refuse = |why| RegistryError::Target { url: url.clone(), target: location.to_owned(), why };
            match target.as_deref().map(|target| target.split(':').next().unwrap_or_default()) {
                Some("https") => {}
                Some("http") if url.starts_with("http:") => {}
                Some("http") => return Err(refuse("it leads from HTTPS to plain HTTP").into()),
                _ => return Err(refuse("it is no web address").into()),
            }
            url = target.unwrap_or_default();
        }
        Err(RegistryError::Target { url: self.url_of(request), target: url, why: "there were ten redirects before" }
            .into())
    }

    /// What a failed way to the registry means. Handshakes that fail now will fail again.
    fn failure(request: &Request<'_>, url: String, error: ureq::Error) -> Failure {
        let (host, recovers) = (request.reference.host().to_owned(), retry::may_recover(&error));
        match TlsTrouble::of(&error) {
            Some(TlsTrouble::Untrusted) => RegistryError::Untrusted { host, cause: Box::new(error) }.into(),
            Some(TlsTrouble::NotTls) => RegistryError::NotTls { host, cause: Box::new(error) }.into(),
            None => {
                let error = RegistryError::Transport { url, cause: Box::new(error) };
                if recovers { Failure::Temporary(error, None) } else { Failure::Final(error) }
            }
        }
    }

    fn send(
        &self,
        request: &Request<'_>,
        url: &str,
        grant: Option<&Grant>,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        // By the host that is spoken to: after a redirect it is another one, with other rights.
        let host = url.parse::<Uri>().ok().and_then(|uri| uri.authority().map(|host| host.as_str().to_owned()));
        let agent = self.agent(host.as_deref().unwrap_or_else(|| request.reference.host()));
        let mut builder = if request.head { agent.head(url) } else { agent.get(url) };
        builder = builder.header("Accept", request.accept).header("Accept-Encoding", "identity");
        if request.offset > 0 {
            builder = builder.header("Range", format!("bytes={}-", request.offset));
        }
        if let Some(grant) = grant {
            builder = builder.header("Authorization", &grant.header);
        }
        builder.call()
    }

    /// Whether a failed TLS connection may be tried without. A refused connection would be refused again.
    fn may_be_plain(&self, request: &Request<'_>, url: &str, error: &ureq::Error) -> bool {
        let no_tls = match error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Protocol(_) => true,
            ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
            _ => false,
        };
        no_tls && url.starts_with("https:") && self.is_insecure(request.reference.host())
    }

    /// Turns an answer into a good one or the error that it means.
    fn judge(&self, request: &Request<'_>, response: Response<Body>) -> std::result::Result<Answer, Failure> {
        let status = response.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(Answer(response));
        }
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let after = after.and_then(|header| retry::retry_after(header, SystemTime::now()));
        let said = if request.head { Said::default() } else { read_error(response) };
        let error = self.error_of(request, status, said);
        Err(if retry::is_temporary(status) { Failure::Temporary(error, after) } else { Failure::Final(error) })
    }

    fn error_of(&self, request: &Request<'_>, status: u16, said: Said) -> RegistryError {
        let name = request.reference.familiar_name();
        let is_blob = request.path.contains("/blobs/");
        match (status, said.code.as_str()) {
            (401 | 403, _) => {
                let helper = self.settings.auth.helper(request.reference.host()).map(str::to_owned);
                RegistryError::Denied { name, message: said.message, helper }
            }
            (404, "NAME_UNKNOWN") => RegistryError::NameUnknown { name },
            (404, _) => match request.reference.digest().filter(|_| is_blob) {
                Some(digest) => RegistryError::BlobUnknown { digest, name },
                None => RegistryError::ManifestUnknown { reference: request.reference.clone().or_latest().familiar() },
            },
            _ => RegistryError::Status { url: self.url_of(request), status, message: said.message },
        }
    }

    /// Gets what the challenges ask for; `None` if none of them can be met with what we have.
    fn grant(&self, request: &Request<'_>, challenges: &[Challenge]) -> std::result::Result<Option<Grant>, Failure> {
        let reference = request.reference;
        let credential = self.settings.auth.credential(reference.host(), reference.repository());
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service, .. } => {
                    return self.token(request, realm, service.as_deref(), credential).map(Some);
                }
                Challenge::Basic => {
                    if let Some(header) = credential.and_then(Credential::basic) {
                        return Ok(Some(Grant::lasting(header)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Asks the token service for leave to pull from this repository, and for nothing more.
    fn token(
        &self,
        request: &Request<'_>,
        realm: &str,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> std::result::Result<Grant, Failure> {
        let refuse = |why| RegistryError::Target { url: self.url_of(request), target: realm.to_owned(), why };
        let uri: Uri = realm.parse().map_err(|_| refuse("it is no web address"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("https"), Some(_)) => {}
            (Some("http"), Some(host)) if self.is_insecure(host.as_str()) => {}
            _ => return Err(refuse("a token service must use HTTPS").into()),
        }
        let scope = format!("repository:{}:pull", request.reference.repository());
        let agent = self.agent(uri.authority().map_or("", |host| host.as_str()));
        let result = match credential {
            Some(Credential::Refresh(token)) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "sublet"),
                    ("scope", &scope),
                ];
                form.extend(service.map(|service| ("service", service)));
                agent.post(realm).send_form(form)
            }
            other => {
                let mut get = agent.get(realm).query("scope", &scope);
                if let Some(service) = service {
                    get = get.query("service", service);
                }
                if let Some(header) = other.and_then(Credential::basic) {
                    get = get.header("Authorization", header);
                }
                get.call()
            }
        };
        let response = result.map_err(|error| {
            let recovers = retry::may_recover(&error);
            let error = RegistryError::Transport { url: realm.to_owned(), cause: Box::new(error) };
            if recovers { Failure::Temporary(error, None) } else { Failure::Final(error) }
        })?;
        let mut response = self.judge_token(request, realm, response)?;
        let answer = response.body_mut().with_config().limit(SMALL_BODY_MAX).read_to_vec().ok();
        let answer = answer.and_then(|body| serde_json::from_slice::<TokenAnswer>(&body).ok());
        let grant = answer.and_then(|answer| Grant::from_token(answer, Instant::now()));
        grant.ok_or_else(|| RegistryError::NoToken { url: realm.to_owned() }.into())
    }

    fn judge_token(
        &self,
        request: &Request<'_>,
        realm: &str,
        response: Response<Body>,
    ) -> std::result::Result<Response<Body>, Failure> {
        let status = response.status().as_u16();
        match status {
            200..300 => Ok(response),
            401 | 403 => Err(self.error_of(request, status, read_error(response)).into()),
            _ => {
                let message = read_error(response).message;
                let error = RegistryError::Status { url: realm.to_owned(), status, message };
                Err(if retry::is_temporary(status) { Failure::Temporary(error, None) } else { error.into() })
            }
        }
    }

    fn url_of(&self, request: &Request<'_>) -> String {
        let host = request.reference.host();
        let scheme = if locked(&self.plain).contains(host) { "http" } else { "https" };
        let host = if host == DEFAULT_HOST { DOCKER_ENDPOINT } else { host };
        format!("{scheme}://{host}{}", request.path)
    }

    fn is_insecure(&self, host: &str) -> bool {
        is_loopback(host) || self.settings.insecure.iter().any(|insecure| insecure == host)
    }

    fn agent(&self, host: &str) -> Agent {
        let roots = self.settings.roots.as_deref();
        if self.is_insecure(host) {
            let made = || agent(TlsConfig::builder().disable_verification(true).build(), is_loopback(host));
            return self.unverified.get_or_init(made).clone();
        }
        let mut own = locked(&self.own);
        let own = own.entry(host.to_owned()).or_insert_with(|| {
            let added = certificates_of(host, &self.settings.certificates);
            (!added.is_empty()).then(|| agent(TlsConfig::builder().root_certs(trusted(roots, added)).build(), false))
        });
        let all = || agent(TlsConfig::builder().root_certs(trusted(roots, Vec::new())).build(), false);
        own.clone().unwrap_or_else(|| self.verified.get_or_init(all).clone())
    }
}

fn agent(tls: TlsConfig, without_proxy: bool) -> Agent {
    let mut config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("sublet/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT));
    if without_proxy {
        config = config.proxy(None);
    }
    config.build().new_agent()
}

/// The machine's certificates (or those of `roots` in their place) and more; where there are none, those that come with
/// the HTTP library.
fn trusted(roots: Option<&Path>, more: Vec<Certificate<'static>>) -> RootCerts {
    let files = roots.map_or_else(|| ROOTS.map(Path::new).to_vec(), |file| vec![file]);
    let found = files.into_iter().map(certificates_in).find(|certificates| !certificates.is_empty());
    match found {
        Some(found) => RootCerts::new_with_certs(&[found, more].concat()),
        // A file that was named and holds nothing is not replaced by trust in others.
        None if roots.is_some() || !more.is_empty() => RootCerts::new_with_certs(&more),
        None => RootCerts::WebPki,
    }
}

/// The certificates in a file. One that is malformed does not make the others untrusted.
fn certificates_in(path: &Path) -> Vec<Certificate<'static>> {
    let Ok(bundle) = std::fs::read(path) else { return Vec::new() };
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    parse_pem(&bundle).filter_map(certificate).collect()
}

/// What the directories of the host (`certs.d/HOST:PORT/*.crt`) hold.
fn certificates_of(host: &str, directories: &[PathBuf]) -> Vec<Certificate<'static>> {
    // A reference's host has no slash, and so names a directory just there.
    let entries = directories.iter().filter_map(|directory| std::fs::read_dir(directory.join(host)).ok());
    let files = entries.flatten().flatten().map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "crt"))
        .flat_map(|path| certificates_in(&path))
        .collect()
}

/// Whether a host of a reference is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What a failed handshake says that the user can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsTrouble {
    /// The certificate is of nobody whom we trust, or of another host.
    Untrusted,
    /// The answer is no TLS: most likely plain HTTP.
    NotTls,
}

impl TlsTrouble {
    fn of(error: &ureq::Error) -> Option<Self> {
        let found = match error {
            ureq::Error::Rustls(error) => Some(error),
            ureq::Error::Io(error) => error.get_ref().and_then(|content| content.downcast_ref()),
            _ => None,
        };
        match found? {
            rustls::Error::InvalidCertificate(_) => Some(TlsTrouble::Untrusted),
            rustls::Error::InvalidMessage(_) => Some(TlsTrouble::NotTls),
            _ => None,
        }
    }
}

/// Scheme, host and port.
fn origin_of(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// The address that a `Location` means (RFC 3986, section 5.2, as far as servers use it).
fn join(base: &str, location: &str) -> Option<String> {
    if location.is_empty() {
        return None;
    }
    if let Ok(uri) = location.parse::<Uri>()
        && uri.scheme().is_some()
        && uri.host().is_some()
    {
        return Some(location.to_owned());
    }
    let (scheme, rest) = base.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    let joined = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let path = rest.split('?').next()?.strip_prefix(host)?;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{host}{folder}/{location}")
    };
    joined.parse::<Uri>().is_ok().then_some(joined)
}

/// What a registry says in the body of an error.
#[derive(Default)]
struct Said {
    code: String,
    message: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reads an error body (distribution specification, "Error Codes"). Control characters would be the terminal's.
fn read_error(response: Response<Body>) -> Said {
    let body = response.into_body().into_with_config().limit(SMALL_BODY_MAX).read_to_vec().unwrap_or_default();
    let Ok(body) = serde_json::from_slice::<ErrorBody>(&body) else { return Said::default() };
    let Some(first) = body.errors.into_iter().next() else { return Said::default() };
    let message = first.message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect();
    Said { code: first.code, message }
}

/// A poisoned lock is only a cache that a panicking thread was in: each entry is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = "https://reg:5000/v2/a/blobs/x?y";
        for (location, joined) in [
            ("https://s3/x", Some("https://s3/x")),
            ("//cdn/x", Some("https://cdn/x")),
            ("/x?q=1", Some("https://reg:5000/x?q=1")),
            ("z", Some("https://reg:5000/v2/a/blobs/z")),
            ("", None),
        ] {
            assert_eq!(join(base, location).as_deref(), joined, "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin_of("https://a/x"), origin_of("https://A:443/y"));
        for other in ["http://a/", "https://a:444/", "https://b/"] {
            assert_ne!(origin_of("https://a/x"), origin_of(other));
        }
    }

    #[test]
    fn loopback_is_by_address() {
        for (host, loopback) in [
            ("localhost:5000", true),
            ("127.0.0.9:1", true),
            ("[::1]:5000", true),
            ("localhost.evil.io", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }
}
