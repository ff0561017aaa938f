//! Which proxy a request goes through, by the rules that Docker's and Podman's users know from Go's HTTP library: HTTPS by
//! one proxy, plain HTTP by another, and hosts that are reached without.

use std::net::IpAddr;

use ureq::Proxy;
use ureq::http::Uri;

use crate::Result;
use crate::address::{is_loopback, shown};
use crate::error::RegistryError;

/// The proxies to use. This machine itself is always reached without.
#[derive(Clone, Default)]
pub struct Proxies {
    /// For plain HTTP (`http_proxy`).
    pub http: Option<String>,
    /// For HTTPS (`https_proxy`).
    pub https: Option<String>,
    /// What is reached without (`no_proxy`): `*`, hosts with all that is below them, `.example.org` for only what is below,
    /// addresses, and blocks of addresses (`10.0.0.0/8`); each may have a port; separated by commas.
    pub none: String,
}

// Addresses of proxies may have a password.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |proxy: &Option<String>| proxy.as_deref().map(shown);
        let mut fields = f.debug_struct("Proxies");
        fields.field("http", &shown(&self.http)).field("https", &shown(&self.https)).field("none", &self.none).finish()
    }
}

impl Proxies {
    /// The proxy for an address.
    pub(crate) fn for_url(&self, url: &str) -> Result<Option<Proxy>> {
        let Ok(uri) = url.parse::<Uri>() else { return Ok(None) };
        let (proxy, port) = match uri.scheme_str() {
            Some("http") => (&self.http, 80),
            _ => (&self.https, 443),
        };
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let Some(proxy) = proxy else { return Ok(None) };
        if is_loopback(&host) || self.passes_by(&host, uri.port_u16().unwrap_or(port)) {
            return Ok(None);
        }
        let made = Proxy::new(proxy).map_err(|cause| RegistryError::Proxy { url: url.to_owned(), cause });
        made.map(Some)
    }

    fn passes_by(&self, host: &str, port: u16) -> bool {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        self.none.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
            let (entry, wanted) = split_port(&entry);
            if wanted.is_some_and(|wanted| wanted != port) {
                return false;
            }
            match (entry.split_once('/'), address) {
                (Some((net, bits)), Some(address)) => in_block(address, net, bits),
                (_, Some(address)) if entry != "*" => entry.parse() == Ok(address),
                _ if entry == "*" => true,
                _ => is_name_in(host, entry),
            }
        })
    }
}

/// An entry without its port.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let bare = |entry: &'_ str| entry.parse::<IpAddr>().is_ok();
    match entry.rsplit_once(':') {
        Some((name, port)) if !bare(entry) && !entry.contains('/') => {
            (name.trim_matches(['[', ']']), port.parse().ok())
        }
        _ => (entry.trim_matches(['[', ']']), None),
    }
}

fn is_name_in(host: &str, entry: &str) -> bool {
    let entry = entry.strip_prefix('*').unwrap_or(entry);
    match entry.strip_prefix('.') {
        // What remains of a `*` alone.
        _ if entry.is_empty() => false,
        Some(_) => host.len() > entry.len() && host.ends_with(entry),
        None => host == entry || host.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Whether an address is in a block of its own family.
fn in_block(address: IpAddr, net: &str, bits: &str) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let (Ok(net), Ok(bits)) = (net.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let ((net, net_bits), (address, address_bits)) = (number(net), number(address));
    let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
    net_bits == address_bits && bits <= net_bits && net & mask == address & mask
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_has_its_proxy() {
        let proxies = Proxies {
            http: Some("http://plain:1".to_owned()),
            https: Some("tls:2".to_owned()),
            none: "internal".to_owned(),
        };
        let host = |url: &str| proxies.for_url(url).unwrap().map(|proxy| proxy.host().to_owned());
        for (url, wanted) in [
            ("http://a/x", Some("plain")),
            ("https://a/x", Some("tls")),
            ("https://reg.internal:5000/x", None),
            ("http://127.0.0.1:5000/x", None),
            ("http://localhost/x", None),
        ] {
            assert_eq!(host(url).as_deref(), wanted, "{url}");
        }
        let bad = Proxies { https: Some("gopher://a".to_owned()), ..Proxies::default() };
        assert!(bad.for_url("https://a/").is_err());
        assert!(bad.for_url("http://a/").unwrap().is_none());
    }

    #[test]
    fn what_is_reached_without() {
        for (none, host, port, passes) in [
            ("", "a.b", 443, false),
            ("*", "a.b", 443, true),
            ("*", "10.0.0.1", 443, true),
            ("x, B.org ", "b.org", 443, true),
            ("b.org", "a.b.org", 443, true),
            ("b.org", "ab.org", 443, false),
            (".b.org", "b.org", 443, false),
            (".b.org", "a.b.org", 443, true),
            ("*.b.org", "a.b.org", 443, true),
            ("b.org:5000", "b.org", 5000, true),
            ("b.org:5000", "b.org", 443, false),
            ("10.1.2.3", "10.1.2.3", 443, true),
            ("10.1.2.3", "10.1.2.30", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("10.0.0.0/99", "10.0.0.0", 443, false),
            ("0.0.0.0/0", "11.1.2.3", 443, true),
            ("fd00::/8", "[fd01::1]", 443, true),
            ("fd00::/8", "10.0.0.1", 443, false),
            ("::1", "[::1]", 443, true),
            ("[::1]:5000", "[::1]", 443, false),
        ] {
            let proxies = Proxies { none: none.to_owned(), ..Proxies::default() };
            assert_eq!(proxies.passes_by(host, port), passes, "{none:?} and {host}:{port}");
        }
    }
}
