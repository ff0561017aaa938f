//! The distribution client: documents and blobs from registries and to them, as bytes.
//!
//! A request goes to the registry as it is; what comes back decides: 401 brings a token ([`challenge`]), a redirect is
//! followed without our credentials, what is temporary is tried again ([`transport`]). Everything a registry sends is
//! hostile: sizes are capped by what was announced, documents are checked against their digests, and a credential
//! never goes to another host than the one it is for, nor from HTTPS to plain HTTP.
//!
//! Where a reference leads is said by `registries.conf` ([`conf`]), who we are there by files and helpers ([`auth`],
//! [`helper`]); what between us and it, by [`Proxies`].
//!
//! This crate does not know the store. It blocks; a caller that wants streams in parallel uses threads (a
//! [`Registry`] is shared by reference). It reads neither the environment nor the home directory; a credential helper
//! inherits the environment.

mod address;
pub mod auth;
mod blob;
mod body;
pub mod challenge;
pub mod conf;
mod credentials;
mod endpoint;
mod error;
mod fetch;
pub mod helper;
mod manifests;
mod notes;
mod pace;
mod paging;
mod proxy;
mod referrers;
mod retry;
mod scope;
pub mod search;
mod tags;
mod tls;
mod token;
mod transport;
mod upload;

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::document::DOCUMENT_MAX;
use oci::{Descriptor, Digest, Document, Reference, media};
use ureq::http::Method;

pub use auth::{AuthFile, Credential};
pub use blob::BlobReader;
pub use conf::RegistriesConf;
pub use credentials::{Credentials, Source};
pub use endpoint::Endpoint;
pub use error::RegistryError;
pub use proxy::Proxies;
pub use upload::{Blob, Mount, Session};

use scope::Scopes;
use transport::{Request, Transport};

/// What every function of this crate returns.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who we are there.
    pub credentials: Credentials,
    /// Where references lead.
    pub registries: RegistriesConf,
    /// Hosts (with ports, as references have them) that may be spoken to without TLS or with any certificate.
    /// Loopback addresses always may.
    pub insecure: Vec<String>,
    /// Directories that have one for a host with its port, with certificates of authorities (`*.crt`) that are trusted
    /// for this host beside the machine's, and a certificate and key of ours (`*.cert`, `*.key`): Docker's `certs.d`.
    pub certificates: Vec<PathBuf>,
    /// A directory that has such files itself, in place of those: the authorities for all hosts, the certificate of ours for
    /// the places that references name themselves.
    pub certificates_for_all: Option<PathBuf>,
    /// A file of certificates to trust in place of the machine's (`SSL_CERT_FILE`).
    pub roots: Option<PathBuf>,
    /// Whether all hosts must, or none need, speak TLS and prove who they are; `None`: as said of each.
    pub tls_verify: Option<bool>,
    /// Who we are at the places that references name themselves, whatever `credentials` say. Mirrors do not get it.
    pub credential: Option<Credential>,
    /// Headers for every request to a registry itself.
    pub headers: Vec<(String, String)>,
    /// What is between us and registries.
    pub proxies: Proxies,
    /// The largest part of a blob that is sent at once; `None`: all, and less only where a registry wants that.
    pub part_bytes: Option<u64>,
    /// Set to end all waiting and reading with [`RegistryError::Cancelled`].
    pub cancelled: Arc<AtomicBool>,
}

/// A client for all registries.
#[derive(Debug)]
pub struct Registry {
    transport: Transport,
}

/// What a tag points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The digest of the document.
    pub digest: Digest,
    /// What the registry says it is.
    pub media_type: String,
}

impl Registry {
    /// A client; nothing is opened yet.
    pub fn new(settings: Settings) -> Self {
        Registry { transport: Transport::new(settings) }
    }

    /// Asks a registry whether it knows us by these credentials.
    pub fn log_in(&self, host: &str) -> Result<()> {
        let insecure = self.transport.settings.registries.is_insecure(host);
        let endpoint = Endpoint { insecure, ..Endpoint::registry(host) };
        let request = Request::new(Method::GET, &endpoint, "/v2/".to_owned(), Scopes::default());
        self.transport.send(&request).map(drop)
    }

    /// Set by whoever wants all that this client does to end: [`Settings::cancelled`].
    pub fn cancelled(&self) -> &AtomicBool {
        &self.transport.settings.cancelled
    }

    /// What registries said beside their answers, one line each, since this was asked last.
    pub fn notes(&self) -> Vec<String> {
        self.transport.notes.take()
    }

    /// Asks what a reference points to now, without fetching it. `None`: this registry does not say; fetch it.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Resolved>> {
        let answer = self.transport.at_each(reference, |endpoint| {
            let request = Request::pull(Method::HEAD, reference, endpoint, &manifest_of(reference));
            self.transport.send(&Request { accept: &accept(), ..request })
        })?;
        let digest = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
        let media_type = answer.header("content-type").map(|text| media::essence(text).to_owned());
        Ok(digest.zip(media_type).map(|(digest, media_type)| Resolved { digest, media_type }))
    }

    /// Fetches what a reference points to. With a digest in the reference, the document is that.
    pub fn document(&self, reference: &Reference) -> Result<Document> {
        self.document_beside(reference, reference)
    }

    /// The same from the places that serve an image of the repository: some mirrors are for tags alone, or for digests.
    pub fn document_beside(&self, image: &Reference, reference: &Reference) -> Result<Document> {
        self.transport.at_each(image, |endpoint| {
            let (content_type, raw) = self.manifest(reference, endpoint, DOCUMENT_MAX)?;
            Ok(Document::read(raw, content_type.as_deref())?)
        })
    }

    /// Fetches a small content of the repository, checked: a manifest, an index or a configuration.
    pub fn content(&self, repository: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>> {
        // The two bytes that stand for nothing are never fetched: some registries do not have them.
        if descriptor.media_type == media::OCI_EMPTY && descriptor.digest == Digest::of(b"{}") {
            return Ok(b"{}".to_vec());
        }
        if descriptor.size > DOCUMENT_MAX {
            return Err(oci::DocumentError::TooLarge { size_bytes: descriptor.size }.into());
        }
        if media::is_index(&descriptor.media_type) || media::is_manifest(&descriptor.media_type) {
            let at = repository.at(descriptor.digest);
            let (_, raw) = self.transport.at_each(&at, |endpoint| self.manifest(&at, endpoint, descriptor.size))?;
            return Ok(raw);
        }
        let mut raw = Vec::new();
        self.blob(repository, descriptor, 0)?.read_to_end(&mut raw).map_err(RegistryError::from_io)?;
        check(descriptor.digest, &raw)?;
        Ok(raw)
    }

    /// A manifest or index with its type, from one place.
    fn manifest(
        &self,
        reference: &Reference,
        endpoint: &Endpoint,
        max_bytes: u64,
    ) -> Result<(Option<String>, Vec<u8>)> {
        let request = Request::pull(Method::GET, reference, endpoint, &manifest_of(reference));
        let (content_type, raw) = self.transport.read(&Request { accept: &accept(), ..request }, max_bytes)?;
        if let Some(wanted) = reference.digest() {
            check(wanted, &raw)?;
        }
        Ok((content_type, raw))
    }

    /// Opens a blob from `offset` on. The reader goes on by itself after a broken connection and gives exactly
    /// the bytes up to the descriptor's size; their digest is for the consumer to check.
    pub fn blob(&self, repository: &Reference, descriptor: &Descriptor, offset: u64) -> Result<BlobReader<'_>> {
        BlobReader::open(&self.transport, repository, descriptor, offset)
    }
}

fn manifest_of(reference: &Reference) -> String {
    format!("manifests/{}", reference.selector())
}

fn accept() -> String {
    media::DOCUMENTS.join(", ")
}

fn check(wanted: Digest, raw: &[u8]) -> Result<()> {
    let found = Digest::of(raw);
    if found == wanted { Ok(()) } else { Err(oci::DocumentError::Mismatch { wanted, found }.into()) }
}

/// A poisoned lock is only a cache that a panicking thread was in: each entry is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
