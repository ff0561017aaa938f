//! What refers to an image, such as its signatures (distribution specification, "Listing Referrers").
//!
//! A registry without the interface has an index under a tag made of the subject's digest, which its clients keep. Two of
//! them at once can each leave the other's entry out; so after writing it the index is read again.

use oci::document::{DOCUMENT_MAX, ENTRIES_MAX};
use oci::{Digest, Entries, Entry, Reference, entries, media};
use ureq::http::Method;

use crate::body::Body;
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::paging::pages;
use crate::transport::Request;
use crate::{Registry, Result, manifest_of};

/// How often an entry that another client has overwritten is written again.
const WRITES_MAX: u32 = 3;
/// The most pages of entries that are read.
const PAGES_MAX: usize = 1000;

impl Registry {
    /// The manifests that refer to a digest, of one kind of artifact if so asked. A mirror that has none may have left them out,
    /// so that the next place is asked.
    pub fn referrers(
        &self,
        repository: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Entry>> {
        self.transport.at_each(repository, |place| {
            let found = match self.by_interface(repository, place, subject, artifact_type)? {
                Some(found) => found,
                None => {
                    self.fallback(repository, place, subject)?.map(|raw| list(&raw)).transpose()?.unwrap_or_default()
                }
            };
            // The registry may have applied the filter; doing it again changes nothing then.
            let wanted = |entry: &Entry| artifact_type.is_none_or(|kind| entry.artifact_type.as_deref() == Some(kind));
            let found: Vec<Entry> = found.into_iter().filter(wanted).collect();
            if place.mirror && found.is_empty() {
                return Err(RegistryError::ManifestUnknown { reference: repository.at(*subject).familiar() });
            }
            Ok(found)
        })
    }

    /// `None`: the registry does not have the interface.
    fn by_interface(
        &self,
        repository: &Reference,
        place: &Endpoint,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Entry>>> {
        let filter = artifact_type.map(|kind| format!("?artifactType={}", encoded(kind))).unwrap_or_default();
        let request = Request::pull(Method::GET, repository, place, &format!("referrers/{subject}{filter}"));
        let request = Request { accept: media::OCI_INDEX, ..request };
        let (mut found, mut supported) = (Vec::new(), true);
        let asked = pages(&self.transport, &request, DOCUMENT_MAX, PAGES_MAX, |page| {
            // Some servers have a page for humans at every path.
            supported = page.is_index;
            if supported {
                found.extend(list(&page.body)?);
            }
            Ok(supported && found.len() <= ENTRIES_MAX)
        });
        match asked {
            Ok(true) => Ok(supported.then_some(found)),
            Ok(false) => Err(RegistryError::TooLong { what: request.path, max_bytes: PAGES_MAX as u64 * DOCUMENT_MAX }),
            // What registries without it answer, and those which think that it needs other rights.
            Err(
                RegistryError::ManifestUnknown { .. }
                | RegistryError::NameUnknown { .. }
                | RegistryError::Denied { .. }
                | RegistryError::Status { status: 400 | 405 | 406, .. },
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The index under the fallback tag, if there is one.
    fn fallback(&self, repository: &Reference, place: &Endpoint, subject: &Digest) -> Result<Option<Vec<u8>>> {
        let at = fallback_tag(repository, subject);
        let request = Request::pull(Method::GET, &at, place, &manifest_of(&at));
        match self.transport.read(&Request { accept: media::OCI_INDEX, ..request }, DOCUMENT_MAX) {
            Ok((_, raw)) => Ok(Some(raw)),
            Err(RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists a referrer where the registry does not do it by itself.
    pub(crate) fn list_referrer(
        &self,
        repository: &Reference,
        place: &Endpoint,
        subject: &Digest,
        entry: &Entry,
    ) -> Result<()> {
        let at = fallback_tag(repository, subject);
        let headers = [("Content-Type", media::OCI_INDEX.to_owned())];
        for _ in 0..WRITES_MAX {
            let there = self.fallback(repository, place, subject)?;
            let Some(index) = entries::with_referrer(there.as_deref(), entry)? else { return Ok(()) };
            let request = Request::push(Method::PUT, &at, place, &manifest_of(&at));
            self.transport.send(&Request { headers: &headers, body: Body::Bytes(&index), ..request })?;
        }
        let why = format!("the tag {} is written by others again and again", at.selector());
        Err(RegistryError::Upload { url: at.to_string(), why })
    }
}

fn list(raw: &[u8]) -> Result<Vec<Entry>> {
    Ok(Entries::read(raw)?.list)
}

fn fallback_tag(repository: &Reference, subject: &Digest) -> Reference {
    repository.tagged(&format!("sha256-{}", subject.hex()))
}

/// A media type as a value of a query.
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_in_a_query_is_encoded() {
        assert_eq!(encoded("application/vnd.a+json; x=ü"), "application%2Fvnd.a%2Bjson%3B%20x%3D%C3%BC");
    }
}
