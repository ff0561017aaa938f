//! Whom a host's certificate must come from, what we show for one, and what a failed handshake means.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{ConnectionDetails, Connector, Transport};

use crate::error::RegistryError;
use crate::notes::Notes;
use crate::transport::chain;
use crate::{Result, Settings, locked};

/// Where distributions keep the certificates they trust, most common first.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What is wrong with a file that should have a certificate.
const NO_CERTIFICATE: &str = "it holds no certificate in PEM";

/// What the directories of a host (`certs.d/HOST:PORT`) hold.
#[derive(Default)]
pub(crate) struct OfHost {
    /// Authorities (`*.crt`) that are trusted for this host beside the machine's.
    authorities: Vec<Certificate<'static>>,
    /// What we show when the host asks who we are (`*.cert` with the `*.key` of the same name).
    client: Option<ClientCert>,
}

impl OfHost {
    /// What there is for a host: in the directory for all, else in those by host. Who we are by the directory for all is
    /// for the place that is `meant` alone, not for whom that sends us to.
    pub(crate) fn of(host: &str, meant: bool, settings: &Settings, notes: &Notes) -> Result<Self> {
        match &settings.certificates_for_all {
            Some(directory) => {
                let found = OfHost::read([directory.clone()], Err)?;
                Ok(OfHost { client: found.client.filter(|_| meant), ..found })
            }
            // As an address has it, which need not be one of a reference.
            None if matches!(host, "" | "." | "..") => Ok(OfHost::default()),
            // A host has no slash, and so names a directory just there.
            None => OfHost::read(settings.certificates.iter().map(|directory| directory.join(host)), |error| {
                notes.add(format!("authority for {host}: {error}"), &chain(&error));
                Ok(())
            }),
        }
    }

    /// Reads the directories, the first one's client certificate counts. One without its key, and one that is malformed, are
    /// errors: a host that asks for it would refuse us without a word why. What a file of authorities that holds none
    /// means is for `unusable` to say: in a directory that the user named it is an error, in those of the machine a note,
    /// since distributions put links there that lead to nothing.
    fn read(
        directories: impl IntoIterator<Item = PathBuf>,
        unusable: impl Fn(RegistryError) -> Result<()>,
    ) -> Result<Self> {
        let mut found = OfHost::default();
        for directory in directories {
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.sort();
            for file in files {
                match file.extension().and_then(|end| end.to_str()) {
                    Some("crt") => match authorities_in(&file) {
                        Ok(authorities) => found.authorities.extend(authorities),
                        Err(error) => unusable(error)?,
                    },
                    Some("cert") if found.client.is_none() => found.client = Some(client_certificate(&file)?),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.client.is_none()
    }
}

/// How to meet a host: by the machine's certificates and its own, or by none where it is insecure.
pub(crate) fn config(settings: &Settings, of_host: OfHost, insecure: bool) -> TlsConfig {
    let config = TlsConfig::builder().client_cert(of_host.client);
    if insecure {
        return config.disable_verification(true).build();
    }
    config.root_certs(trusted(settings.roots.as_deref(), of_host.authorities)).build()
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

/// The certificates in a file that is there for them.
fn authorities_in(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let refused = |cause| RegistryError::Authority { path: path.to_path_buf(), cause };
    let bundle = std::fs::read(path).map_err(|error| refused(error.into()))?;
    let found = certificates_of(&bundle);
    if found.is_empty() { Err(refused(NO_CERTIFICATE.into())) } else { Ok(found) }
}

/// The certificates in a file, none if it cannot be read. One that is malformed does not make the others untrusted.
fn certificates_in(path: &Path) -> Vec<Certificate<'static>> {
    std::fs::read(path).map_or_else(|_| Vec::new(), |bundle| certificates_of(&bundle))
}

fn certificates_of(bundle: &[u8]) -> Vec<Certificate<'static>> {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    parse_pem(bundle).filter_map(certificate).collect()
}

/// The certificate in a file and the key beside it.
fn client_certificate(path: &Path) -> Result<ClientCert> {
    let refused = |path: &Path, cause| RegistryError::ClientCertificate { path: path.to_path_buf(), cause };
    let chain = certificates_in(path);
    if chain.is_empty() {
        return Err(refused(path, NO_CERTIFICATE.into()));
    }
    let key_path = path.with_extension("key");
    let pem = std::fs::read(&key_path).map_err(|error| refused(&key_path, error.into()))?;
    let key = PrivateKey::from_pem(&pem).map_err(|error| refused(&key_path, error.into()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

/// What a failed handshake says that the user can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The certificate is of nobody whom we trust, or of another host.
    Untrusted,
    /// The answer is no TLS: most likely plain HTTP.
    NotTls,
}

impl Trouble {
    pub(crate) fn of(error: &ureq::Error) -> Option<Self> {
        let found = match error {
            ureq::Error::Rustls(error) => Some(error),
            ureq::Error::Io(error) => error.get_ref().and_then(|content| content.downcast_ref()),
            _ => None,
        };
        match found? {
            rustls::Error::InvalidCertificate(_) => Some(Trouble::Untrusted),
            rustls::Error::InvalidMessage(_) => Some(Trouble::NotTls),
            _ => None,
        }
    }
}

/// Whether a failed connection looks as if there is no TLS: the other side speaks something else, or hangs up. A refused
/// connection would be refused again.
pub(crate) fn is_refusal_of_tls(error: &ureq::Error) -> bool {
    match error {
        _ if Trouble::of(error) == Some(Trouble::NotTls) => true,
        ureq::Error::Io(error) => {
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        }
        _ => false,
    }
}

/// The hosts (with ports, as addresses have them) with which a handshake was done to its end. As the last link of a chain of
/// connectors it hears of each connection before anything is sent over it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secure(Arc<Mutex<HashSet<String>>>);

impl Secure {
    pub(crate) fn has(&self, host: &str) -> bool {
        locked(&self.0).contains(host)
    }
}

impl<In: Transport> Connector<In> for Secure {
    type Out = In;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> std::result::Result<Option<In>, ureq::Error> {
        if details.needs_tls()
            && chained.is_some()
            && let Some(host) = details.uri.authority()
        {
            locked(&self.0).insert(host.to_string());
        }
        Ok(chained)
    }
}
