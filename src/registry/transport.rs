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
use ureq::http::{self, Method, Response};
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, ResponseExt, SendBody};

use crate::address::{authority_of, is_loopback, join, names_user, origin_of};
use crate::auth::Credential;
use crate::body::{Body, Part};
use crate::challenge::{self, Challenge};
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::notes::{Notes, printable};
use crate::pace::Paced;
use crate::scope::Scopes;
use crate::tls::{OfHost, Secure, Trouble, config, is_refusal_of_tls};
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

/// How long the answer may take where the registry has much to do before: it reads the whole blob once more, or copies it.
const LONG_TIMEOUT: Duration = Duration::from_mins(5);
/// A server that takes nothing for this long, likewise.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Why an address with a user's name is not followed: before its `@` it may look like another host.
pub(crate) const NAMES_USER: &str = "it names a user, which no registry has a reason for";

/// The body of an answer.
pub(crate) type BodyReader = Paced<ureq::BodyReader<'static>>;

/// A good answer (2xx).
pub(crate) struct Answer(Response<ureq::Body>);

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    /// The address that something in the answer means, relative to where the answer is from. Behind a proxy that speaks TLS
    /// for it a registry may think that it is spoken to without.
    pub(crate) fn resolve(&self, link: &str) -> Result<String> {
        let from = self.0.get_uri().to_string();
        let refuse = |why| RegistryError::Target { url: from.clone(), target: link.to_owned(), why };
        let target = join(&from, link).filter(|_| !is_of_another_kind(link));
        let target = target.ok_or_else(|| refuse("it is no web address"))?;
        if names_user(&target) {
            return Err(refuse(NAMES_USER));
        }
        match target.split_once("://") {
            Some(("https", _)) => Ok(target),
            Some(("http", _)) if from.starts_with("http:") => Ok(target),
            Some(("http", rest)) if authority_of(&target) == authority_of(&from) => Ok(format!("https://{rest}")),
            Some(("http", _)) => Err(refuse("it leads from HTTPS to plain HTTP")),
            _ => Err(refuse("it is no web address")),
        }
    }

    /// Where an upload goes on.
    pub(crate) fn location(&self) -> Result<String> {
        self.resolve(self.header("location").unwrap_or_default())
    }

    pub(crate) fn into_reader(self) -> BodyReader {
        reader(self.0)
    }
}

/// What is asked of a registry.
#[derive(Clone)]
pub(crate) struct Request<'a> {
    /// The verb.
    pub method: Method,
    /// What it is for, in errors; `None` when the registry itself is meant.
    pub reference: Option<&'a Reference>,
    /// Who is asked.
    pub endpoint: &'a Endpoint,
    /// The path there, or an address that the registry gave us.
    pub path: String,
    /// The media types that are understood.
    pub accept: &'a str,
    /// From where on the content is wanted, as far as the server can.
    pub offset: u64,
    /// What a token must allow.
    pub scopes: Scopes,
    /// The place whose manifest named the address: where that may not lead, redirects of it may not either.
    pub sent_by: Option<&'a Endpoint>,
    /// Further headers.
    pub headers: &'a [(&'static str, String)],
    /// What is sent.
    pub body: Body<'a>,
    /// How often it is sent at most while failures are temporary.
    pub attempts: u32,
    /// Whether the registry may take its time.
    pub long: bool,
}

impl<'a> Request<'a> {
    /// To read from a repository: what is at `rest` below it.
    pub(crate) fn pull(method: Method, reference: &'a Reference, endpoint: &'a Endpoint, rest: &str) -> Self {
        let (path, scopes) = (endpoint.path(rest), Scopes::pull(&endpoint.repository));
        Request { reference: Some(reference), ..Request::new(method, endpoint, path, scopes) }
    }

    /// To write to a repository: to what is at `rest` below it.
    pub(crate) fn push(method: Method, reference: &'a Reference, endpoint: &'a Endpoint, rest: &str) -> Self {
        let (path, scopes) = (endpoint.path(rest), Scopes::push(&endpoint.repository));
        Request { reference: Some(reference), ..Request::new(method, endpoint, path, scopes) }
    }

    /// A request that sends nothing and may be repeated.
    pub(crate) fn new(method: Method, endpoint: &'a Endpoint, path: String, scopes: Scopes) -> Self {
        Request {
            method,
            reference: None,
            endpoint,
            path,
            accept: "*/*",
            offset: 0,
            scopes,
            sent_by: None,
            headers: &[],
            body: Body::None,
            attempts: retry::ATTEMPTS,
            long: false,
        }
    }

    /// Whether nothing changes by it.
    fn reads(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
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

/// What is not asked again. One host may serve several mirrors, as repositories of different paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum GivenUp {
    /// A host with which there is no talking.
    Host(String),
    /// A host and a repository for which it did not answer well.
    Repository(String, String),
}

impl GivenUp {
    fn of(place: &Endpoint, error: &RegistryError) -> Self {
        match error {
            RegistryError::Transport { .. } | RegistryError::Untrusted { .. } | RegistryError::NotTls { .. } => {
                GivenUp::Host(place.host.clone())
            }
            _ => GivenUp::Repository(place.host.clone(), place.repository.clone()),
        }
    }

    fn all_of(place: &Endpoint) -> [Self; 2] {
        let (host, repository) = (place.host.clone(), place.repository.clone());
        [GivenUp::Host(host.clone()), GivenUp::Repository(host, repository)]
    }
}

#[derive(Debug)]
pub(crate) struct Transport {
    pub settings: Settings,
    pub notes: Notes,
    verified: OnceLock<Agent>,
    unverified: OnceLock<Agent>,
    /// By host, whether it is insecure and whether it is the place that is meant, for those that have certificates of their
    /// own; `None` for others.
    own: Mutex<HashMap<(String, bool, bool), Option<Agent>>>,
    /// By host and what they allow.
    grants: Mutex<HashMap<(String, Scopes), Grant>>,
    /// By host and repository.
    known: Mutex<HashMap<(String, String), Known>>,
    /// Hosts that turned out not to speak TLS, and may.
    plain: Mutex<HashSet<String>>,
    /// Hosts that have shown that they speak TLS.
    secure: Secure,
    /// Hosts that have answered, whatever it was.
    answered: Mutex<HashSet<String>>,
    /// Mirrors that failed.
    given_up: Mutex<HashSet<GivenUp>>,
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
            secure: Secure::default(),
            answered: Mutex::default(),
            given_up: Mutex::default(),
        }
    }

    /// Does something at the places that serve a reference, in their order, until it is done. The error is that of the
    /// last place, which is the one that the reference names; why mirrors failed is told by notes.
    pub(crate) fn at_each<T>(&self, reference: &Reference, once: impl Fn(&Endpoint) -> Result<T>) -> Result<T> {
        let places = self.settings.registries.endpoints(reference)?;
        let is_given_up = |place: &Endpoint| {
            let given_up = locked(&self.given_up);
            GivenUp::all_of(place).iter().any(|one| given_up.contains(one))
        };
        let wanted = |place: &&Endpoint| !place.mirror || !is_given_up(place);
        let mut last = None;
        for place in places.iter().filter(wanted) {
            match once(place) {
                Ok(done) => return Ok(done),
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => {
                    if place.mirror && !error.is_absence() {
                        let given_up = GivenUp::of(place, &error);
                        let name = match &given_up {
                            GivenUp::Host(host) => host.clone(),
                            GivenUp::Repository(host, repository) => format!("{host}/{repository}"),
                        };
                        locked(&self.given_up).insert(given_up);
                        let line = format!("the mirror {name} is left out: {}", chain(&error));
                        self.notes.add(format!("mirror {name}"), &line);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(RegistryError::Cancelled))
    }

    /// Sends a request until it has a good answer.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer> {
        self.retried(request.attempts, || self.attempt(request))
    }

    /// Sends a request until its answer came whole; the type and the bytes.
    pub(crate) fn read(&self, request: &Request<'_>, max_bytes: u64) -> Result<(Option<String>, Vec<u8>)> {
        self.retried(request.attempts, || {
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

    /// Sends a request without any grant, whatever is asked for, until it has a good answer.
    pub(crate) fn open(&self, request: &Request<'_>) -> Result<Answer> {
        self.retried(request.attempts, || {
            let (response, _) = self.follow(request, None)?;
            let status = response.status().as_u16();
            if (200..300).contains(&status) {
                return Ok(Answer(response));
            }
            let after = retry::after(response.headers());
            let error = RegistryError::Status { url: self.url_of(request), status, message: String::new() };
            Err(if retry::is_temporary(status) { Failure::Temporary(error, after) } else { Failure::Final(error) })
        })
    }

    fn retried<T>(&self, attempts: u32, mut once: impl FnMut() -> std::result::Result<T, Failure>) -> Result<T> {
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
            if attempt >= attempts {
                // Who sends once only asks again in another way, and the registry's wait holds for that too.
                if let Some(wait) = asked.filter(|_| attempts == 1) {
                    retry::wait(wait, &self.settings.cancelled)?;
                }
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
        {
            let mut grants = locked(&self.grants);
            // Only what was refused: another thread may have brought a better one meanwhile.
            if grants.get(&key).map(|grant| &grant.header) == cached.as_ref().map(|used| &used.header) {
                grants.remove(&key);
            }
        }
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
        response: &Response<ureq::Body>,
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
    ) -> std::result::Result<(Response<ureq::Body>, bool), Failure> {
        let mut url = self.url_of(request);
        // The registry's own, also where it has sent us elsewhere with what we send.
        let origin = origin_of(&self.base_of(request.endpoint));
        for _ in 0..=REDIRECTS_MAX {
            if let Some(place) = request.sent_by {
                self.check_beside(place, &url)?;
            }
            let own = origin_of(&url) == origin;
            let response = match self.call(request, &url, own, grant.filter(|_| own))? {
                Err(error) if own && self.may_be_plain(request, &url, &error) => {
                    locked(&self.plain).insert(request.endpoint.host.clone());
                    // The same attempt again without TLS.
                    return self.follow(request, grant);
                }
                Err(error) => return Err(self.failure(request, url, error)),
                Ok(response) => response,
            };
            self.note_answer(&url);
            let follows = match response.status().as_u16() {
                301..=303 => request.reads(),
                // These two mean the same request again (RFC 9110, section 15.4).
                307 | 308 => true,
                _ => false,
            };
            if !follows {
                return Ok((response, own));
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let target = join(&url, location).filter(|_| !is_of_another_kind(location));
            let refuse = |why| RegistryError::Target { url: url.clone(), target: location.to_owned(), why };
            if target.as_deref().is_some_and(names_user) {
                return Err(refuse(NAMES_USER).into());
            }
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

    /// What a failed way to an address means, which is the registry's or one that it has led to. Handshakes that fail now will
    /// fail again.
    fn failure(&self, request: &Request<'_>, url: String, error: ureq::Error) -> Failure {
        let host = authority_of(&url).unwrap_or_else(|| request.endpoint.host.clone());
        match Trouble::of(&error) {
            Some(Trouble::Untrusted) => RegistryError::Untrusted { host, cause: Box::new(error) }.into(),
            Some(Trouble::NotTls) => RegistryError::NotTls { host, cause: Box::new(error) }.into(),
            None => self.broken(url, error),
        }
    }

    /// What a way to an address means that broke or could not be made.
    pub(crate) fn broken(&self, url: String, error: ureq::Error) -> Failure {
        let has_answered = authority_of(&url).is_some_and(|host| locked(&self.answered).contains(&host));
        let recovers = retry::may_recover(&error, has_answered);
        let error = RegistryError::Transport { url, cause: Box::new(error) };
        if recovers { Failure::Temporary(error, None) } else { Failure::Final(error) }
    }

    /// Remembers that the host of an address has answered.
    pub(crate) fn note_answer(&self, url: &str) {
        locked(&self.answered).extend(authority_of(url));
    }

    fn call(
        &self,
        request: &Request<'_>,
        url: &str,
        own: bool,
        grant: Option<&Grant>,
    ) -> Result<std::result::Result<Response<ureq::Body>, ureq::Error>> {
        let agent = self.agent_for(request, url)?;
        let mut builder = http::Request::builder().method(request.method.clone()).uri(url);
        builder = builder.header("Accept", request.accept).header("Accept-Encoding", "identity");
        if request.offset > 0 {
            builder = builder.header("Range", format!("bytes={}-", request.offset));
        }
        if let Some(grant) = grant {
            builder = builder.header("Authorization", &grant.header);
        }
        // An address that somebody gave us may be anybody's.
        let to_registry = own && request.path.starts_with('/');
        for (name, value) in self.settings.headers.iter().filter(|_| to_registry) {
            builder = builder.header(name, value);
        }
        for (name, value) in request.headers {
            builder = builder.header(*name, value);
        }
        let proxy = self.settings.proxies.for_url(url)?;
        let long = request.long;
        let run = |request: http::Result<http::Request<SendBody<'_>>>| {
            let mut request = agent.configure_request(request.map_err(ureq::Error::from)?).proxy(proxy);
            if long {
                request = request.timeout_recv_response(Some(LONG_TIMEOUT)).timeout_per_read(Some(LONG_TIMEOUT));
            }
            agent.run(request.build())
        };
        Ok(match request.body {
            Body::None => run(builder.body(SendBody::none())),
            Body::Bytes(mut bytes) => {
                run(builder.header("Content-Length", bytes.len()).body(SendBody::from_reader(&mut bytes)))
            }
            Body::File { file, offset, length, told } => {
                let cancelled = &self.settings.cancelled;
                let mut part = Part { file, position: offset, end: offset + length, told, cancelled };
                run(builder.header("Content-Length", length).body(SendBody::from_reader(&mut part)))
            }
        })
    }

    /// Whether a failed handshake may be done without. Where one went well before, the host speaks TLS: whatever breaks
    /// later is no reason to say aloud what was secret.
    fn may_be_plain(&self, request: &Request<'_>, url: &str, error: &ureq::Error) -> bool {
        url.starts_with("https:")
            && is_refusal_of_tls(error)
            && self.is_insecure(request.endpoint, &request.endpoint.host)
            && authority_of(url).is_none_or(|host| !self.secure.has(&host))
    }

    /// Turns an answer into a good one or the error that it means.
    fn judge(&self, request: &Request<'_>, response: Response<ureq::Body>) -> std::result::Result<Answer, Failure> {
        let status = response.status().as_u16();
        let from = response.get_uri().to_string();
        let own = origin_of(&from) == origin_of(&self.base_of(request.endpoint));
        let host = if own { None } else { authority_of(&from) };
        self.notes.hear(host.as_deref().unwrap_or(&request.endpoint.host), status, response.headers());
        if (200..300).contains(&status) {
            return Ok(Answer(response));
        }
        let after = retry::after(response.headers());
        let said = if request.method == Method::HEAD { Said::default() } else { read_error(response) };
        let error = match status {
            // Who stores for a registry knows nothing of who we are there; what it has not the registry has not.
            401 | 403 | 429 | 500..=599 if !own => RegistryError::Status { url: from, status, message: said.message },
            _ => self.error_of(request, status, said),
        };
        Err(if retry::is_temporary(status) { Failure::Temporary(error, after) } else { Failure::Final(error) })
    }

    fn error_of(&self, request: &Request<'_>, status: u16, said: Said) -> RegistryError {
        let (url, message) = (self.url_of(request), said.message);
        // What a registry has not is told by its paths; where it sent us to with an upload is none.
        let reference = request.reference.filter(|_| request.reads() && request.path.starts_with('/'));
        match (status, reference) {
            (401 | 403, _) => self.denied(request, message),
            (404, None) if said.code == "NAME_UNKNOWN" && request.reference.is_some() => {
                let name = request.reference.map(Reference::familiar_name).unwrap_or_default();
                RegistryError::NameUnknown { name }
            }
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
        let key = (request.endpoint.host.clone(), request.endpoint.repository.clone());
        let trouble = locked(&self.known).get(&key).and_then(|known| known.trouble.clone());
        match request.reference {
            Some(reference) if request.scopes.writes() => {
                RegistryError::PushDenied { name: reference.familiar_name(), message, trouble }
            }
            Some(reference) => RegistryError::Denied { name: reference.familiar_name(), message, trouble },
            None => RegistryError::Login { host: request.endpoint.host.clone(), message, trouble },
        }
    }

    /// The credential for a repository. A source that cannot be asked does not stop what may be open to everybody; if it
    /// is not, the error tells.
    pub(crate) fn credential(&self, endpoint: &Endpoint) -> Option<Credential> {
        if let Some(given) = self.settings.credential.as_ref().filter(|_| !endpoint.mirror) {
            return Some(given.clone());
        }
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
        if request.path.starts_with('/') {
            self.base_of(request.endpoint) + &request.path
        } else {
            request.path.clone()
        }
    }

    /// Scheme and host of a registry.
    fn base_of(&self, endpoint: &Endpoint) -> String {
        let host = endpoint.host.as_str();
        let scheme = if locked(&self.plain).contains(host) { "http" } else { "https" };
        let host = if host == DEFAULT_HOST { DOCKER_ENDPOINT } else { host };
        format!("{scheme}://{host}")
    }

    /// The place that a reference itself names, where it is written to.
    pub(crate) fn place_of(&self, reference: &Reference) -> Result<Endpoint> {
        self.settings.registries.own_endpoint(reference)
    }

    /// Whether a host that a request goes to may be spoken to without TLS or with any certificate.
    pub(crate) fn is_insecure(&self, endpoint: &Endpoint, host: &str) -> bool {
        if let Some(verify) = self.settings.tls_verify {
            return !verify;
        }
        is_loopback(host)
            || endpoint.insecure && endpoint.host == host
            || self.settings.insecure.iter().any(|insecure| insecure == host)
    }

    /// The connections for an address, by the host that is spoken to: after a redirect it is another one, with other rights.
    pub(crate) fn agent_for(&self, request: &Request<'_>, url: &str) -> Result<Agent> {
        let endpoint = request.endpoint;
        let host = authority_of(url).unwrap_or_else(|| endpoint.host.clone());
        let insecure = self.is_insecure(endpoint, &host);
        let is_own = origin_of(url) == origin_of(&self.base_of(endpoint));
        let meant = is_own && !endpoint.mirror && request.sent_by.is_none();
        let key = (host.clone(), insecure, meant);
        let known = locked(&self.own).get(&key).cloned();
        let own = if let Some(known) = known {
            known
        } else {
            let of_host = OfHost::of(&host, meant, &self.settings, &self.notes)?;
            let made = (!of_host.is_empty()).then(|| self.agent(config(&self.settings, of_host, insecure)));
            locked(&self.own).entry(key).or_insert(made).clone()
        };
        let shared = if insecure { &self.unverified } else { &self.verified };
        let make = || self.agent(config(&self.settings, OfHost::default(), insecure));
        Ok(own.unwrap_or_else(|| shared.get_or_init(make).clone()))
    }

    fn agent(&self, tls: TlsConfig) -> Agent {
        agent(tls, self.secure.clone(), WRITE_TIMEOUT)
    }
}

/// Connections that note who speaks TLS. The proxy is set for each request: it follows from the address.
fn agent(tls: TlsConfig, secure: Secure, write_timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("sublet/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .timeout_per_write(Some(write_timeout))
        .proxy(None)
        .build();
    Agent::with_parts(config, DefaultConnector::new().chain(secure), DefaultResolver::default())
}

/// Whether an address has a scheme that is not the web's (RFC 3986, section 3.1).
fn is_of_another_kind(address: &str) -> bool {
    let Some((scheme, _)) = address.split_once(':') else { return false };
    let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.bytes().all(may_be) && !["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web))
}

fn challenges_of(response: &Response<ureq::Body>) -> Vec<Challenge> {
    let headers = response.headers().get_all("www-authenticate").iter();
    headers.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &RegistryError) -> String {
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
pub(crate) fn read_error(response: Response<ureq::Body>) -> Said {
    // One that broke off or does not end says nothing worth an error of its own.
    let body = whole_body(response).unwrap_or_default();
    let Ok(body) = serde_json::from_slice::<ErrorBody>(&body) else { return Said::default() };
    let Some(first) = body.errors.into_iter().next() else { return Said::default() };
    Said { code: first.code, message: printable(&first.message) }
}

/// A body up to the limit; an error when it broke off.
pub(crate) fn whole_body(response: Response<ureq::Body>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    reader(response).take(SMALL_BODY_MAX).read_to_end(&mut body)?;
    Ok(body)
}

fn reader(response: Response<ureq::Body>) -> BodyReader {
    Paced::new(response.into_body().into_with_config().limit(u64::MAX).reader())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a server that fails fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stops_reading_is_left() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut vec![0; 100_000]).unwrap();
            // The connection stays open until the client has given up.
            let _ = wait.recv();
        });
        let agent = agent(TlsConfig::default(), Secure::default(), Duration::from_millis(200));
        let began = Instant::now();
        let sent = agent.post(&url).send(SendBody::from_reader(&mut std::io::repeat(0).take(1 << 30)));
        assert!(matches!(sent, Err(ureq::Error::Timeout(_))), "{sent:?}");
        assert!(began.elapsed() < Duration::from_secs(20));
        drop(done);
        server.join().unwrap();
    }
}
