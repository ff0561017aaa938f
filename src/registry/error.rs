//! What can go wrong between us and a registry, in the words that Docker's users know.

use std::error::Error;
use std::io;
use std::time::Duration;

use base::{Explain, Kind};
use oci::{Digest, DocumentError};

/// An error of the client.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The repository has no such tag or digest.
    #[error("manifest for {reference} not found: manifest unknown")]
    ManifestUnknown {
        /// The familiar reference.
        reference: String,
    },
    /// The registry has no such repository.
    #[error("repository {name} not found: name unknown")]
    NameUnknown {
        /// The familiar name.
        name: String,
    },
    /// The registry wants other credentials, or none help. Registries do not tell a missing repository from a private.
    #[error("pull access denied for {name}, repository does not exist or may require 'docker login'{}", detail(.message))]
    Denied {
        /// The familiar name.
        name: String,
        /// What the registry said.
        message: String,
        /// The credential helper that would know a password, which is not asked.
        helper: Option<String>,
    },
    /// The repository does not have a blob that its manifest names.
    #[error("blob {digest} not found in {name}: blob unknown to registry")]
    BlobUnknown {
        /// The blob.
        digest: Digest,
        /// The familiar name.
        name: String,
    },
    /// The registry wants us to come later than we wait.
    #[error("{url} asks to wait {} s: too many requests", wait.as_secs())]
    TooManyRequests {
        /// What was asked for.
        url: String,
        /// How long.
        wait: Duration,
    },
    /// An answer that is none of the above.
    #[error("{url} answered with status {status}{}", detail(.message))]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// No answer, or one that broke off.
    #[error("cannot fetch {url}")]
    Transport {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The registry's certificate does not prove who it is.
    #[error("cannot trust the certificate of {host}")]
    Untrusted {
        /// The host.
        host: String,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The registry answers without TLS.
    #[error("{host} does not speak HTTPS")]
    NotTls {
        /// The host.
        host: String,
        /// What came.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A redirect or token service that must not be followed.
    #[error("{url} sends us to {target:?}, which is refused: {why}")]
    Target {
        /// Who sends us.
        url: String,
        /// Where to.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// A body is longer than it may be.
    #[error("{what} is longer than {max_bytes} bytes")]
    TooLong {
        /// What was fetched.
        what: String,
        /// The limit.
        max_bytes: u64,
    },
    /// The token service's answer has no token.
    #[error("the token service {url} gave no token")]
    NoToken {
        /// Its address.
        url: String,
    },
    /// A document cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A credentials file cannot be read.
    #[error("the credentials file is malformed")]
    AuthFile {
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RegistryError {
    /// Takes the error out of one that went through [`std::io::Read`].
    pub fn from_io(error: io::Error) -> Self {
        error
            .downcast::<RegistryError>()
            .unwrap_or_else(|error| RegistryError::Transport { url: "the blob".to_owned(), cause: Box::new(error) })
    }
}

impl From<RegistryError> for io::Error {
    fn from(error: RegistryError) -> io::Error {
        io::Error::other(error)
    }
}

impl Explain for RegistryError {
    fn kind(&self) -> Kind {
        match self {
            RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. } => Kind::NotFound,
            RegistryError::Denied { .. } => Kind::Denied,
            RegistryError::Document(error) => error.kind(),
            RegistryError::AuthFile { .. } => Kind::Usage,
            RegistryError::Cancelled => Kind::Internal,
            _ => Kind::Remote,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RegistryError::Denied { helper: Some(helper), .. } => Some(format!(
                "the password is kept by docker-credential-{helper}, which is not asked; log in without a helper"
            )),
            RegistryError::TooManyRequests { .. } => Some("try again later, or log in for a higher limit".to_owned()),
            RegistryError::Untrusted { host, .. } => Some(format!(
                "put the certificate of its authority into ~/.config/docker/certs.d/{host}/ca.crt, or into the file that \
                 SSL_CERT_FILE names"
            )),
            RegistryError::NotTls { host, .. } => Some(format!(
                "to speak plain HTTP to it, which anybody between can read and change, set SUBLET_INSECURE_REGISTRIES={host}"
            )),
            RegistryError::Document(error) => error.hint(),
            _ => None,
        }
    }
}
