//! One request and all it takes to get its answer: place, scheme, token, redirects, retries.
//!
//! Order: a reference's mirrors, then the place that it names ([`Transport::at_each`]). At each of them the cached grant or
//! nothing is sent; 401 brings a grant and one more try for each challenge that can be met; a redirect is followed by hand,
//! so that `Authorization` goes only to the origin (scheme, host, port) it is for; temporary failures start again at the
//! registry, since addresses of storage behind it expire. A mirror that fails is not asked again.
//! Locks: each is held for a look-up only, never over a request.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use oci::Reference;
use oci::reference::DEFAULT_HOST;
use serde::Deserialize;
use ureq::http::{Method, Response};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use crate::address::{authority_of, is_loopback, join, origin_of};
use crate::auth::Credential;
use crate::challenge::{self, Challenge};
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::notes::{Notes, printable};
use crate::pace::Paced;
use crate::scope::Scopes;
use crate::tls::{OfHost, Trouble, config};
use crate::token::Grant;
use crate::{Result, Settings, locked, retry};

/// Where docker.io is served.
const DOCKER_ENDPOINT: &str = "registry-1.docker.io";
const REDIRECTS_MAX: usize = 10;
/// The most challenges of one answer that are met.
const CHALLENGES_MAX: usize = 4;
/// The longest error or token body that is read.
const SMALL_BODY_MAX: u64 = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// A server that sends nothing for this long is taken for dead, and asked again.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of an answer.
pub(crate) type BodyReader = Paced<ureq::BodyReader<'static>>;

/// A good answer (2xx).
pub(crate) struct Answer(Response<Body>);

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    pub(crate) fn into_reader(self) -> BodyReader {
        reader(self.0)
    }
}

/// What is asked of a registry.
pub(crate) struct Request<'a> {
    /// GET or HEAD.
    pub method: Method,
    /// What it is for, in errors; `None` when the registry itself is meant.
    pub reference: Option<&'a Reference>,
    /// Who is asked.
    pub endpoint: &'a Endpoint,
    /// The path there.
    pub path: String,
    /// The media types that are understood.
    pub accept: &'a str,
    /// From where on the content is wanted, as far as the server can.
    pub offset: u64,
    /// What a token must allow.
    pub scopes: Scopes,
}

impl<'a> Request<'a> {
    /// To read from a repository: what is at `rest` below it.
    pub(crate) fn pull(method: Method, reference: &'a Reference, endpoint: &'a Endpoint, rest: &str) -> Self {
        let (path, scopes) = (endpoint.path(rest), Scopes::pull(&endpoint.repository));
        Request { reference: Some(reference), ..Request::new(method, endpoint, path, scopes) }
    }

    /// To ask a registry for what may be read with these rights.
    pub(crate) fn new(method: Method, endpoint: &'a Endpoint, path: String, scopes: Scopes) -> Self {
        Request { method, reference: None, endpoint, path, accept: "*/*", offset: 0, scopes }
    }
}

/// Why an attempt has no good answer.
pub(crate) enum Failure {
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

/// What the sources of credentials said about a repository.
#[derive(Clone, Debug, Default)]
struct Known {
    credential: Option<Credential>,
    /// Why one of them could not be asked.
    trouble: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Transport {
    pub settings: Settings,
    pub notes: Notes,
    verified: OnceLock<Agent>,
    unverified: OnceLock<Agent>,
    /// By host and whether it is insecure, for those that have certificates of their own; `None` for others.
    own: Mutex<HashMap<(String, bool), Option<Agent>>>,
    /// By host and what they allow.
    grants: Mutex<HashMap<(String, Scopes), Grant>>,
    /// By host and repository.
    known: Mutex<HashMap<(String, String), Known>>,
    /// Hosts that turned out not to speak TLS, and may.
    plain: Mutex<HashSet<String>>,
    /// Hosts of mirrors that failed.
    given_up: Mutex<HashSet<String>>,
}

impl Transport {
    pub(crate) fn new(settings: Settings) -> Self {
        Transport {
            settings,
            notes: Notes::default(),
            verified: OnceLock::new(),
            unverified: OnceLock::new(),
            own: Mutex::default(),
            grants: Mutex::default(),
            known: Mutex::default(),
            plain: Mutex::default(),
            given_up: Mutex::default(),
        }
    }

    /// Does something at the places that serve a reference, in their order, until it is done. The error is that of the
    /// last place, which is the one that the reference names; why mirrors failed is told by notes.
    pub(crate) fn at_each<T>(&self, reference: &Reference, once: impl Fn(&Endpoint) -> Result<T>) -> Result<T> {
        let places = self.settings.registries.endpoints(reference)?;
        let wanted = |place: &&Endpoint| !place.mirror || !locked(&self.given_up).contains(&place.host);
        let mut last = None;
        for place in places.iter().filter(wanted) {
            match once(place) {
                Ok(done) => return Ok(done),
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => {
                    if place.mirror && !error.is_absence() {
                        locked(&self.given_up).insert(place.host.clone());
                        let line = format!("the mirror {} is left out: {}", place.host, chain(&error));
                        self.notes.add(format!("mirror {}", place.host), &line);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(RegistryError::Cancelled))
    }

    /// Sends a request until it has a good answer.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer> {
        self.retried(|| self.attempt(request))
    }

    /// Sends a request until its answer came whole; the type and the bytes.
    pub(crate) fn read(&self, request: &Request<'_>, max_bytes: u64) -> Result<(Option<String>, Vec<u8>)> {
        self.retried(|| {
            let answer = self.attempt(request)?;
            let content_type = answer.header("content-type").map(str::to_owned);
            let mut body = Vec::new();
            answer.into_reader().take(max_bytes + 1).read_to_end(&mut body).map_err(|cause| {
                Failure::Temporary(RegistryError::Transport { url: self.url_of(request), cause: cause.into() }, None)
            })?;
            if body.len() as u64 > max_bytes {
                return Err(RegistryError::TooLong { what: self.url_of(request), max_bytes }.into());
            }
            Ok((content_type, body))
        })
    }

    fn retried<T>(&self, mut once: impl FnMut() -> std::result::Result<T, Failure>) -> Result<T> {
        let mut attempt = 1;
        loop {
            if self.settings.cancelled.load(Ordering::Relaxed) {
                return Err(RegistryError::Cancelled);
            }
            let (error, asked) = match once() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Temporary(error, asked)) => (error, asked),
            };
            if asked.is_some_and(|wait| wait > retry::WAIT_MAX) {
                return Err(error.with_wait(asked));
            }
            if attempt == retry::ATTEMPTS {
                return Err(error);
            }
            retry::wait(asked.unwrap_or_else(|| retry::back_off(attempt)), &self.settings.cancelled)?;
            attempt += 1;
        }
    }

    /// One try, with a second one for each challenge that can be met.
    fn attempt(&self, request: &Request<'_>) -> std::result::Result<Answer, Failure> {
        let key = (request.endpoint.host.clone(), request.scopes.clone());
        let cached = locked(&self.grants).get(&key).filter(|grant| grant.is_fresh(Instant::now())).cloned();
        let (mut response, own) = self.follow(request, cached.as_ref())?;
        if response.status() != 401 || !own {
            return self.judge(request, response);
        }
        locked(&self.grants).remove(&key);
        let mut refusal = None;
        for challenge in self.challenges(request, &response)? {
            let grant = match self.grant(request, &challenge) {
                Ok(Some(grant)) => grant,
                Ok(None) => continue,
                Err(Failure::Final(error)) => {
                    refusal = Some(error);
                    continue;
                }
                Err(temporary) => return Err(temporary),
            };
            (response, _) = self.follow(request, Some(&grant))?;
            if response.status() != 401 {
                locked(&self.grants).insert(key, grant);
                return self.judge(request, response);
            }
        }
        match refusal {
            Some(error) => Err(error.into()),
            None => self.judge(request, response),
        }
    }

    /// What a 401 asks for, tokens before passwords. Some registries say so at their front door alone.
    fn challenges(
        &self,
        request: &Request<'_>,
        response: &Response<Body>,
    ) -> std::result::Result<Vec<Challenge>, Failure> {
        let mut found = challenges_of(response);
        if found.is_empty() && request.path != "/v2/" {
            let path = "/v2/".to_owned();
            let scopes = request.scopes.clone();
            let door =
                Request { reference: request.reference, ..Request::new(Method::GET, request.endpoint, path, scopes) };
            let (response, own) = self.follow(&door, None)?;
            if own && response.status() == 401 {
                found = challenges_of(&response);
            }
        }
        found.sort_by_key(|challenge| *challenge == Challenge::Basic);
        found.truncate(CHALLENGES_MAX);
        Ok(found)
    }

    /// Sends the request and follows redirects; whether the answer is the registry's own.
    fn follow(
        &self,
        request: &Request<'_>,
        grant: Option<&Grant>,
    ) -> std::result::Result<(Response<Body>, bool), Failure> {
        let mut url = self.url_of(request);
        let origin = origin_of(&url);
        for _ in 0..=REDIRECTS_MAX {
            let own = origin_of(&url) == origin;
            let response = match self.call(request, &url, grant.filter(|_| own))? {
                Err(error) if own && self.may_be_plain(request, &url, &error) => {
                    locked(&self.plain).insert(request.endpoint.host.clone());
                    // The same attempt again without TLS.
                    return self.follow(request, grant);
                }
                Err(error) => {
                    return Err(Self::failure(request, url, error));
                }
                Ok(response) => response,
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, own));
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
        let (host, recovers) = (request.endpoint.host.clone(), retry::may_recover(&error));
        match Trouble::of(&error) {
            Some(Trouble::Untrusted) => RegistryError::Untrusted { host, cause: Box::new(error) }.into(),
            Some(Trouble::NotTls) => RegistryError::NotTls { host, cause: Box::new(error) }.into(),
            None => {
                let error = RegistryError::Transport { url, cause: Box::new(error) };
                if recovers { Failure::Temporary(error, None) } else { Failure::Final(error) }
            }
        }
    }

    fn call(
        &self,
        request: &Request<'_>,
        url: &str,
        grant: Option<&Grant>,
    ) -> Result<std::result::Result<Response<Body>, ureq::Error>> {
        let agent = self.agent_for(request.endpoint, url)?;
        let builder = if request.method == Method::HEAD { agent.head(url) } else { agent.get(url) };
        let mut builder = builder.config().proxy(self.settings.proxies.for_url(url)?).build();
        builder = builder.header("Accept", request.accept).header("Accept-Encoding", "identity");
        if request.offset > 0 {
            builder = builder.header("Range", format!("bytes={}-", request.offset));
        }
        if let Some(grant) = grant {
            builder = builder.header("Authorization", &grant.header);
        }
        Ok(builder.call())
    }

    /// Whether a failed TLS connection may be tried without. A refused connection would be refused again.
    fn may_be_plain(&self, request: &Request<'_>, url: &str, error: &ureq::Error) -> bool {
        let no_tls = match error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Protocol(_) => true,
            ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
            _ => false,
        };
        no_tls && url.starts_with("https:") && self.is_insecure(request.endpoint, &request.endpoint.host)
    }

    /// Turns an answer into a good one or the error that it means.
    fn judge(&self, request: &Request<'_>, response: Response<Body>) -> std::result::Result<Answer, Failure> {
        let status = response.status().as_u16();
        self.notes.hear(&request.endpoint.host, status, response.headers());
        if (200..300).contains(&status) {
            return Ok(Answer(response));
        }
        let after = retry::after(response.headers());
        let said = if request.method == Method::HEAD { Said::default() } else { read_error(response) };
        let error = self.error_of(request, status, said);
        Err(if retry::is_temporary(status) { Failure::Temporary(error, after) } else { Failure::Final(error) })
    }

    fn error_of(&self, request: &Request<'_>, status: u16, said: Said) -> RegistryError {
        let (url, message) = (self.url_of(request), said.message);
        match (status, request.reference) {
            (401 | 403, _) => self.denied(request, message),
            (404, Some(reference)) => {
                let name = reference.familiar_name();
                match reference.digest().filter(|_| request.path.contains("/blobs/")) {
                    _ if said.code == "NAME_UNKNOWN" => RegistryError::NameUnknown { name },
                    Some(digest) => RegistryError::BlobUnknown { digest, name },
                    None => RegistryError::ManifestUnknown { reference: reference.clone().or_latest().familiar() },
                }
            }
            (429, _) => RegistryError::TooManyRequests { url, wait: None, message },
            _ => RegistryError::Status { url, status, message },
        }
    }

    /// The error for a request that is not allowed.
    pub(crate) fn denied(&self, request: &Request<'_>, message: String) -> RegistryError {
        match request.reference {
            Some(reference) => {
                let key = (request.endpoint.host.clone(), request.endpoint.repository.clone());
                let trouble = locked(&self.known).get(&key).and_then(|known| known.trouble.clone());
                RegistryError::Denied { name: reference.familiar_name(), message, trouble }
            }
            None => RegistryError::Login { host: request.endpoint.host.clone(), message },
        }
    }

    /// The credential for a repository. A source that cannot be asked does not stop what may be open to everybody; if it
    /// is not, the error tells.
    pub(crate) fn credential(&self, endpoint: &Endpoint) -> Option<Credential> {
        let key = (endpoint.host.clone(), endpoint.repository.clone());
        if let Some(known) = locked(&self.known).get(&key) {
            return known.credential.clone();
        }
        let known = match self.settings.credentials.find(&endpoint.host, &endpoint.repository) {
            Ok(credential) => Known { credential, trouble: None },
            Err(error) => Known { credential: None, trouble: Some(chain(&error)) },
        };
        let credential = known.credential.clone();
        locked(&self.known).insert(key, known);
        credential
    }

    pub(crate) fn url_of(&self, request: &Request<'_>) -> String {
        let host = request.endpoint.host.as_str();
        let scheme = if locked(&self.plain).contains(host) { "http" } else { "https" };
        let host = if host == DEFAULT_HOST { DOCKER_ENDPOINT } else { host };
        format!("{scheme}://{host}{}", request.path)
    }

    /// Whether a host that a request goes to may be spoken to without TLS or with any certificate.
    pub(crate) fn is_insecure(&self, endpoint: &Endpoint, host: &str) -> bool {
        is_loopback(host)
            || endpoint.insecure && endpoint.host == host
            || self.settings.insecure.iter().any(|insecure| insecure == host)
    }

    /// The connections for an address, by the host that is spoken to: after a redirect it is another one, with other rights.
    pub(crate) fn agent_for(&self, endpoint: &Endpoint, url: &str) -> Result<Agent> {
        let host = authority_of(url).unwrap_or_else(|| endpoint.host.clone());
        let insecure = self.is_insecure(endpoint, &host);
        let key = (host.clone(), insecure);
        let known = locked(&self.own).get(&key).cloned();
        let own = if let Some(known) = known {
            known
        } else {
            let of_host = OfHost::read(&host, &self.settings.certificates)?;
            let made = (!of_host.is_empty()).then(|| agent(config(&self.settings, of_host, insecure)));
            locked(&self.own).entry(key).or_insert(made).clone()
        };
        let shared = if insecure { &self.unverified } else { &self.verified };
        let make = || agent(config(&self.settings, OfHost::default(), insecure));
        Ok(own.unwrap_or_else(|| shared.get_or_init(make).clone()))
    }
}

/// The proxy is set for each request: it follows from the address.
fn agent(tls: TlsConfig) -> Agent {
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("sublet/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .proxy(None)
        .build()
        .new_agent()
}

fn challenges_of(response: &Response<Body>) -> Vec<Challenge> {
    let headers = response.headers().get_all("www-authenticate").iter();
    headers.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// An error and its causes in one line.
fn chain(error: &RegistryError) -> String {
    let mut line = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(cause) = below {
        line = format!("{line}: {cause}");
        below = cause.source();
    }
    line
}

/// What a registry says in the body of an error.
#[derive(Default)]
pub(crate) struct Said {
    code: String,
    pub message: String,
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

/// Reads an error body (distribution specification, "Error Codes").
pub(crate) fn read_error(response: Response<Body>) -> Said {
    let Ok(body) = serde_json::from_slice::<ErrorBody>(&small_body(response)) else { return Said::default() };
    let Some(first) = body.errors.into_iter().next() else { return Said::default() };
    Said { code: first.code, message: printable(&first.message) }
}

/// What there is of a body, up to the limit: one that broke off or does not end says nothing worth an error of its own.
pub(crate) fn small_body(response: Response<Body>) -> Vec<u8> {
    let mut body = Vec::new();
    // What came before the error is in the buffer; half a document is none.
    let _ = reader(response).take(SMALL_BODY_MAX).read_to_end(&mut body);
    body
}

fn reader(response: Response<Body>) -> BodyReader {
    Paced::new(response.into_body().into_with_config().limit(u64::MAX).reader())
}
