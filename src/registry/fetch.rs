//! Fetching what lies at a web address and belongs to no registry: the archive that an image is made of, and layers of which
//! a manifest says where else they are. No credential goes there.

use std::io::Read;

use ureq::http::Method;

use crate::address::{authority_of, is_loopback, names_user};
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::scope::Scopes;
use crate::transport::{Answer, NAMES_USER, Request, Transport};
use crate::{Registry, Result};

impl Registry {
    /// Opens what is at an address (`http` or `https`): its bytes, and how many the server says that there are. Redirects are
    /// followed and what is temporary is tried again. A body that breaks off is an error of its reader.
    pub fn fetch(&self, url: &str) -> Result<(impl Read + Send + use<>, Option<u64>)> {
        let host = host_of(url)?;
        if url.starts_with("http:") && !is_loopback(&host) {
            let line = format!("{host} is spoken to without TLS, so that anybody between can change what comes");
            self.transport.notes.add(format!("plain {host}"), &line);
        }
        let answer = self.transport.open_at(&host, url, 0)?;
        let size_bytes = answer.header("content-length").and_then(|text| text.parse().ok());
        Ok((answer.into_reader(), size_bytes))
    }
}

impl Transport {
    /// Opens what a manifest of this place says to be at an address, from an offset on as far as the server can. Who writes a
    /// manifest must not have us ask for what only we can reach: without TLS it is asked for only where that host and the
    /// registry may do without.
    pub(crate) fn open_beside(&self, place: &Endpoint, url: &str, offset: u64) -> Result<Answer> {
        let host = host_of(url)?;
        let may_do_without = self.is_insecure(place, &host) && self.is_insecure(place, &place.host);
        if (url.starts_with("http:") || is_loopback(&host)) && !may_do_without {
            let why = "a registry that must use TLS sends nobody to what does without, or to this machine";
            return Err(RegistryError::Address { url: url.to_owned(), why });
        }
        self.open_at(&host, url, offset)
    }

    fn open_at(&self, host: &str, url: &str, offset: u64) -> Result<Answer> {
        let place = Endpoint::registry(host);
        let request = Request::new(Method::GET, &place, url.to_owned(), Scopes::default());
        self.open(&Request { offset, ..request })
    }
}

/// The host of a web address that names no user.
fn host_of(url: &str) -> Result<String> {
    let refuse = |why| RegistryError::Address { url: url.to_owned(), why };
    if names_user(url) {
        return Err(refuse(NAMES_USER));
    }
    let is_web = url.starts_with("https://") || url.starts_with("http://");
    authority_of(url).filter(|host| is_web && !host.is_empty()).ok_or_else(|| refuse("it is no web address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn a_manifest_leads_to_nothing_that_only_we_can_reach() {
        let transport = Transport::new(Settings::default());
        let elsewhere = Endpoint::registry("registry.invalid");
        for url in [
            "http://cdn.invalid/layer",
            "http://127.0.0.1:1/layer",
            "https://localhost/layer",
            "https://[::1]/layer",
            "ftp://cdn.invalid/layer",
            "https://localhost@cdn.invalid/layer",
            "layer",
        ] {
            let refused = transport.open_beside(&elsewhere, url, 0).map(|_| ());
            assert!(matches!(refused, Err(RegistryError::Address { .. })), "{url}: {refused:?}");
        }
        // Ours may: nobody listens there.
        let here = Endpoint::registry("127.0.0.1:5000");
        let asked = transport.open_beside(&here, "http://127.0.0.1:1/layer", 0).map(|_| ());
        assert!(matches!(asked, Err(RegistryError::Transport { .. })), "{asked:?}");
    }
}
