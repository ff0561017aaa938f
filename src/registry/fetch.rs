//! Fetching what lies at a web address and belongs to no registry: the archive that an image is made of, and layers of which
//! a manifest says where else they are. No credential goes there.

use std::io::Read;

use ureq::http::Method;

use crate::address::{authority_of, is_loopback, is_this_machine, names_user};
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
        let place = Endpoint::registry(&host);
        let answer = self.transport.open(&Request::new(Method::GET, &place, url.to_owned(), Scopes::default()))?;
        let size_bytes = answer.header("content-length").and_then(|text| text.parse().ok());
        Ok((answer.into_reader(), size_bytes))
    }
}

impl Transport {
    /// Opens what a manifest of this place says to be at an address, from an offset on as far as the server can.
    pub(crate) fn open_beside(&self, place: &Endpoint, url: &str, offset: u64) -> Result<Answer> {
        let there = Endpoint::registry(&host_of(url)?);
        let request = Request::new(Method::GET, &there, url.to_owned(), Scopes::default());
        self.open(&Request { offset, sent_by: Some(place), ..request })
    }

    /// Refuses an address to which a manifest of this place leads, itself or by redirects. Who writes a manifest must not have
    /// us ask for what only we can reach: this machine only where the registry is on it, whatever may do without TLS, and
    /// plain HTTP only where that host and the registry may do without. The address is judged as it is written: what a
    /// name resolves to is not looked at, nor other addresses of this machine's networks.
    pub(crate) fn check_beside(&self, place: &Endpoint, url: &str) -> Result<()> {
        let host = host_of(url)?;
        let refuse = |why| Err(RegistryError::Address { url: url.to_owned(), why });
        if is_this_machine(&host) && !is_this_machine(&place.host) {
            return refuse("a registry elsewhere sends nobody to this machine");
        }
        let may_do_without = self.is_insecure(place, &host) && self.is_insecure(place, &place.host);
        if url.starts_with("http:") && !may_do_without {
            return refuse("a registry that must use TLS sends nobody to what does without");
        }
        Ok(())
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
#[allow(clippy::unwrap_used, reason = "a server that fails fails the test")]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::{Proxies, Settings};

    /// A proxy that stands for every host, which sends us to this address.
    fn sends_to(target: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(first)) = lines.next() {
                    lines.by_ref().take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).for_each(drop);
                    let answer = if first.starts_with("CONNECT ") {
                        "HTTP/1.1 200 x\r\n\r\n".to_owned()
                    } else {
                        format!("HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: {target}\r\n\r\n")
                    };
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn a_manifest_leads_to_nothing_that_only_we_can_reach() {
        let transport = Transport::new(Settings::default());
        let elsewhere = Endpoint::registry("registry.invalid");
        for url in [
            "http://cdn.invalid/layer",
            "http://127.0.0.1:1/layer",
            "https://localhost/layer",
            "https://[::1]/layer",
            "https://0.0.0.0/layer",
            "https://[::ffff:127.0.0.1]/layer",
            "https://127.1/layer",
            "https://localhost./layer",
            "ftp://cdn.invalid/layer",
            "https://localhost@cdn.invalid/layer",
            "layer",
        ] {
            let refused = transport.open_beside(&elsewhere, url, 0).map(|_| ());
            assert!(matches!(refused, Err(RegistryError::Address { .. })), "{url}: {refused:?}");
        }
        // Also where nobody needs TLS.
        let insecure = Transport::new(Settings { tls_verify: Some(false), ..Settings::default() });
        for url in ["http://127.0.0.1:1/layer", "https://127.0.0.1:1/layer"] {
            let refused = insecure.open_beside(&elsewhere, url, 0).map(|_| ());
            assert!(matches!(refused, Err(RegistryError::Address { .. })), "{url}: {refused:?}");
        }
        // Ours may: nobody listens there.
        let here = Endpoint::registry("127.0.0.1:5000");
        let asked = transport.open_beside(&here, "http://127.0.0.1:1/layer", 0).map(|_| ());
        assert!(matches!(asked, Err(RegistryError::Transport { .. })), "{asked:?}");
    }
    #[test]
    fn a_redirect_leads_to_nothing_else() {
        let elsewhere = Endpoint::registry("registry.invalid");
        for target in ["http://127.0.0.1:1/secret", "https://localhost/secret", "//127.1/secret"] {
            let proxies = Proxies { http: Some(sends_to(target)), ..Proxies::default() };
            let transport = Transport::new(Settings { proxies, tls_verify: Some(false), ..Settings::default() });
            let refused = transport.open_beside(&elsewhere, "http://cdn.invalid/layer", 0).map(|_| ());
            assert!(
                matches!(&refused, Err(RegistryError::Address { url, .. }) if url.ends_with("/secret")),
                "{target}: {refused:?}"
            );
        }
    }
}
