//! The distribution client: documents and blobs from registries, as bytes. Pull only.
//!
//! A request goes to the registry as it is; what comes back decides: 401 brings a token ([`auth`]), a redirect is
//! followed without our credentials, what is temporary is tried again ([`transport`]). Everything a registry sends is
//! hostile: sizes are capped by what was announced, documents are checked against their digests, and a credential
//! never goes to another host than the one it is for, nor from HTTPS to plain HTTP.
//!
//! This crate does not know the store. It blocks; a caller that wants streams in parallel uses threads (a
//! [`Registry`] is shared by reference). It reads neither the environment nor the home directory, with one exception:
//! the proxy variables, which the HTTP library reads.

pub mod auth;
mod blob;
pub mod challenge;
mod error;
mod retry;
mod transport;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use oci::document::DOCUMENT_MAX;
use oci::{Descriptor, Digest, Document, Reference, media};

pub use auth::AuthFile;
pub use blob::BlobReader;
pub use error::RegistryError;

use transport::{Answer, Transport};

/// What every function of this crate returns.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Credentials.
    pub auth: AuthFile,
    /// Hosts (with ports, as references have them) that may be spoken to without TLS or with any certificate.
    /// Loopback addresses always may.
    pub insecure: Vec<String>,
    /// Directories that have one for a host with its port, with certificates of authorities (`*.crt`) that are trusted
    /// for this host beside the machine's (Docker's `certs.d`).
    pub certificates: Vec<PathBuf>,
    /// A file of certificates to trust in place of the machine's (`SSL_CERT_FILE`).
    pub roots: Option<PathBuf>,
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

    /// Asks what a reference points to now, without fetching it. `None`: this registry does not say; fetch it.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Resolved>> {
        let answer = self.transport.head(reference, &manifest_path(reference), &accept())?;
        let digest = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
        let media_type = answer.header("content-type").map(|text| media::essence(text).to_owned());
        Ok(digest.zip(media_type).map(|(digest, media_type)| Resolved { digest, media_type }))
    }

    /// Fetches what a reference points to. With a digest in the reference, the document is that.
    pub fn document(&self, reference: &Reference) -> Result<Document> {
        let answer = self.transport.get(reference, &manifest_path(reference), &accept(), 0)?;
        let content_type = answer.header("content-type").map(str::to_owned);
        let raw = read_capped(answer, DOCUMENT_MAX, reference)?;
        if let Some(wanted) = reference.digest() {
            check(wanted, &raw)?;
        }
        Ok(Document::read(raw, content_type.as_deref())?)
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
        let is_document = media::is_index(&descriptor.media_type) || media::is_manifest(&descriptor.media_type);
        let raw = if is_document {
            let at = repository.at(descriptor.digest);
            let answer = self.transport.get(&at, &manifest_path(&at), &accept(), 0)?;
            read_capped(answer, descriptor.size, &at)?
        } else {
            let mut raw = Vec::new();
            self.blob(repository, descriptor, 0)?.read_to_end(&mut raw).map_err(RegistryError::from_io)?;
            raw
        };
        check(descriptor.digest, &raw)?;
        Ok(raw)
    }

    /// Opens a blob from `offset` on. The reader goes on by itself after a broken connection and gives exactly
    /// the bytes up to the descriptor's size; their digest is for the consumer to check.
    pub fn blob(&self, repository: &Reference, descriptor: &Descriptor, offset: u64) -> Result<BlobReader<'_>> {
        BlobReader::open(&self.transport, repository, descriptor, offset)
    }
}

fn manifest_path(reference: &Reference) -> String {
    format!("/v2/{}/manifests/{}", reference.repository(), reference.selector())
}

fn accept() -> String {
    media::DOCUMENTS.join(", ")
}

fn check(wanted: Digest, raw: &[u8]) -> Result<()> {
    let found = Digest::of(raw);
    if found == wanted { Ok(()) } else { Err(oci::DocumentError::Mismatch { wanted, found }.into()) }
}

fn read_capped(answer: Answer, max_bytes: u64, reference: &Reference) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    let failed = |cause| RegistryError::Transport { url: reference.to_string(), cause: Box::new(cause) };
    answer.into_reader().take(max_bytes + 1).read_to_end(&mut raw).map_err(failed)?;
    if raw.len() as u64 > max_bytes {
        return Err(RegistryError::TooLong { what: reference.to_string(), max_bytes });
    }
    Ok(raw)
}
