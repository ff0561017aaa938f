//! What can go wrong between us and a registry, in the words that Docker's users know.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use base::{Explain, Kind};
use oci::{Digest, DocumentError};

use crate::address::shown;

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
        /// Why a source of credentials could not be asked.
        trouble: Option<String>,
    },
    /// The registry does not let us write, as we are.
    #[error("denied: {}", if message.is_empty() { "requested access to the resource is denied" } else { message })]
    PushDenied {
        /// The familiar name.
        name: String,
        /// What the registry said.
        message: String,
        /// Why a source of credentials could not be asked.
        trouble: Option<String>,
    },
    /// An upload does not go as it should.
    #[error("the upload to {} cannot go on: {why}", shown(.url))]
    Upload {
        /// Where to.
        url: String,
        /// Why not.
        why: String,
    },
    /// A registry took less than it was sent.
    #[error("the upload to {} cannot go on: {why}", shown(.url))]
    Short {
        /// Where to.
        url: String,
        /// How much it took.
        why: String,
    },
    /// A registry does not take a credential.
    #[error("unauthorized: {host} does not take this user name and password{}", detail(.message))]
    Login {
        /// The host.
        host: String,
        /// What the registry said.
        message: String,
        /// Why a source of credentials could not be asked.
        trouble: Option<String>,
    },
    /// The repository does not have a blob that its manifest names.
    #[error("blob {digest} not found in {name}: blob unknown to registry")]
    BlobUnknown {
        /// The blob.
        digest: Digest,
        /// The familiar name.
        name: String,
    },
    /// A list of tags cannot be taken as a whole.
    #[error("the tags of {name} cannot be listed: {why}")]
    Tags {
        /// The familiar name.
        name: String,
        /// Why not.
        why: String,
    },
    /// The registry wants us to come later than we wait.
    #[error("{}{}: too many requests{}", shown(.url), asked(*.wait), detail(.message))]
    TooManyRequests {
        /// What was asked for.
        url: String,
        /// How long, if it said.
        wait: Option<Duration>,
        /// What the registry said.
        message: String,
    },
    /// An answer that is none of the above.
    #[error("{} answered with status {status}{}", shown(.url), detail(.message))]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// No answer, or one that broke off.
    #[error("the request to {} failed", shown(.url))]
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
    #[error("{} sends us to {:?}, which is refused: {why}", shown(.url), shown(.target))]
    Target {
        /// Who sends us.
        url: String,
        /// Where to.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// An address of the user's that cannot be asked.
    #[error("{} cannot be fetched: {why}", shown(.url))]
    Address {
        /// The address.
        url: String,
        /// Why not.
        why: &'static str,
    },
    /// A body is longer than it may be.
    #[error("{} is longer than {max_bytes} bytes", shown(.what))]
    TooLong {
        /// What was fetched.
        what: String,
        /// The limit.
        max_bytes: u64,
    },
    /// The token service's answer has no token.
    #[error("the token service {} gave no token", shown(.url))]
    NoToken {
        /// Its address.
        url: String,
    },
    /// A document cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A credentials file cannot be read.
    #[error("the credentials file is malformed: {why}")]
    AuthFile {
        /// What is wrong, and where.
        why: String,
    },
    /// A certificate or key of ours for a registry cannot be used.
    #[error("cannot use {} to say who we are", path.display())]
    ClientCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A certificate of an authority for a registry cannot be used.
    #[error("cannot trust the authority in {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The proxy's address is malformed.
    #[error("the proxy for {} cannot be used", shown(.url))]
    Proxy {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        cause: ureq::Error,
    },
    /// A credential helper did not do what it was asked for.
    #[error("{program} {action} failed")]
    Helper {
        /// The helper.
        program: String,
        /// What it was asked for.
        action: &'static str,
        /// Why.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A `registries.conf` cannot be used.
    #[error("{file}:{line}: {why}")]
    Conf {
        /// The file.
        file: String,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A `registries.conf` leads a reference to where no image can be.
    #[error("{reference} cannot be fetched from {location}")]
    Place {
        /// What was asked for.
        reference: String,
        /// Where to.
        location: String,
        /// Why not.
        #[source]
        cause: oci::ReferenceError,
    },
    /// A `registries.conf` forbids a registry.
    #[error("registry {prefix} is blocked in {file}")]
    Blocked {
        /// What is blocked.
        prefix: String,
        /// By which file.
        file: String,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// What is wrong with a JSON text that may hold passwords: the parser's own words quote it.
pub(crate) fn json_trouble(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a value is not of the kind that it should be",
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is no JSON",
    };
    format!("{what}, at line {} column {}", error.line(), error.column())
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn asked(wait: Option<Duration>) -> String {
    wait.map(|wait| format!(" asks to wait {} s", wait.as_secs())).unwrap_or_default()
}

impl RegistryError {
    /// The same for a registry that wants us to come much later.
    pub(crate) fn with_wait(self, wait: Option<Duration>) -> Self {
        match self {
            RegistryError::TooManyRequests { url, message, .. } | RegistryError::Status { url, message, .. } => {
                RegistryError::TooManyRequests { url, wait, message }
            }
            other => other,
        }
    }

    /// Whether it says that something is not there, and nothing about who says so.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(
            self,
            RegistryError::ManifestUnknown { .. }
                | RegistryError::NameUnknown { .. }
                | RegistryError::BlobUnknown { .. }
                | RegistryError::Denied { trouble: None, .. }
        )
    }

    /// Takes the error out of one that went through [`std::io::Read`].
    pub fn from_io(error: io::Error) -> Self {
        error.downcast::<RegistryError>().unwrap_or_else(|error| RegistryError::Transport {
            url: "the registry for a blob".to_owned(),
            cause: Box::new(error),
        })
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
            RegistryError::Denied { .. }
            | RegistryError::PushDenied { .. }
            | RegistryError::Login { .. }
            | RegistryError::Blocked { .. } => Kind::Denied,
            RegistryError::Document(error) => error.kind(),
            RegistryError::AuthFile { .. }
            | RegistryError::Address { .. }
            | RegistryError::Conf { .. }
            | RegistryError::Place { .. }
            | RegistryError::ClientCertificate { .. }
            | RegistryError::Authority { .. }
            | RegistryError::Proxy { .. } => Kind::Usage,
            RegistryError::Helper { .. } | RegistryError::Cancelled => Kind::Internal,
            _ => Kind::Remote,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RegistryError::Denied { trouble: Some(trouble), .. }
            | RegistryError::PushDenied { trouble: Some(trouble), .. }
            | RegistryError::Login { trouble: Some(trouble), .. } => {
                Some(format!("a source of credentials could not be asked: {trouble}"))
            }
            RegistryError::PushDenied { name, .. } => {
                Some(format!("log in to the registry of {name} as somebody who may write there"))
            }
            RegistryError::Upload { .. } => {
                Some("if the registry does not take layers in parts, push without --chunk-size".to_owned())
            }
            RegistryError::Helper { program, .. } => {
                Some(format!("install {program}, or take it out of credsStore and credHelpers of the credentials file"))
            }
            RegistryError::TooManyRequests { .. } => Some("try again later, or log in for a higher limit".to_owned()),
            RegistryError::Untrusted { host, .. } => Some(format!(
                "put the certificate of its authority into ~/.config/docker/certs.d/{host}/ca.crt, or into the file that \
                 SSL_CERT_FILE names"
            )),
            RegistryError::NotTls { host, .. } => Some(format!(
                "to speak plain HTTP to it, which anybody between can read and change, set SUBLET_INSECURE_REGISTRIES={host} \
                 or say insecure = true of it in registries.conf"
            )),
            RegistryError::Document(error) => error.hint(),
            _ => None,
        }
    }
}
