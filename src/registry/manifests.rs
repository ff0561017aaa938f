//! Manifests and indexes on their way to a registry (distribution specification, "Pushing Manifests").

use oci::{Digest, Reference, entries};
use ureq::http::Method;

use crate::body::Body;
use crate::error::RegistryError;
use crate::transport::{Request, chain};
use crate::upload::check_digest;
use crate::{Registry, Result, accept, manifest_of};

impl Registry {
    /// Whether a repository has a manifest or an index.
    pub fn has_document(&self, repository: &Reference, digest: &Digest) -> Result<bool> {
        let (at, place) = (repository.at(*digest), self.transport.place_of(repository)?);
        let request = Request::push(Method::HEAD, &at, &place, &manifest_of(&at));
        match self.transport.send(&Request { accept: &accept(), ..request }) {
            Ok(_) => Ok(true),
            Err(RegistryError::ManifestUnknown { .. } | RegistryError::NameUnknown { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stores a document under a tag or its digest, as these bytes. What it names must be there before. That it refers to
    /// something and cannot be listed there is only noted.
    pub fn put_document(&self, reference: &Reference, raw: &[u8], media_type: &str) -> Result<()> {
        let place = self.transport.place_of(reference)?;
        // Before it is stored: what cannot be read would be an error too late.
        let referrer = entries::referrer(raw, media_type)?;
        let headers = [("Content-Type", media_type.to_owned())];
        let request = Request::push(Method::PUT, reference, &place, &manifest_of(reference));
        let answer = self.transport.send(&Request { headers: &headers, body: Body::Bytes(raw), ..request })?;
        check_digest(&answer, &Digest::of(raw))?;
        // A registry that knows about referrers says so. It has the document in any case, which was what was wanted.
        if answer.header("oci-subject").is_none()
            && let Some((subject, entry)) = referrer
            && let Err(error) = self.list_referrer(reference, &place, &subject, &entry)
        {
            let line = format!("{} is not listed as what refers to {subject}: {}", entry.digest, chain(&error));
            self.transport.notes.add(format!("referrer {}", entry.digest), &line);
        }
        Ok(())
    }
}
