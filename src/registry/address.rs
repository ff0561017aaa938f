//! Web addresses: which server one belongs to, where a `Location` leads, and hosts that are this machine.

use std::net::IpAddr;

use ureq::http::Uri;

/// Scheme, host and port: whom a credential is for.
pub(crate) fn origin_of(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Host and port as an address has them.
pub(crate) fn authority_of(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?.as_str();
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned())
}

/// An address as errors show it: without a user's name, and without a query, which may be all that storage asks for.
pub(crate) fn shown(url: &str) -> String {
    let (address, query) = url.split_once('?').map_or((url, ""), |(address, _)| (address, "?…"));
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}{query}")
        }
        None => format!("{address}{query}"),
    }
}

/// Whether an address has a user's name before its host.
pub(crate) fn names_user(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

/// The address that a `Location` means (RFC 3986, section 5.2, as far as servers use it).
pub(crate) fn join(base: &str, location: &str) -> Option<String> {
    if location.is_empty() {
        return None;
    }
    if let Ok(uri) = location.parse::<Uri>()
        && uri.scheme().is_some()
        && uri.host().is_some()
    {
        return Some(location.to_owned());
    }
    let (scheme, rest) = base.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    let joined = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let path = rest.split('?').next()?.strip_prefix(host)?;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{host}{folder}/{location}")
    };
    joined.parse::<Uri>().is_ok().then_some(joined)
}

/// A host without its port, and an address of IPv6 without its brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Whether a host is so surely this machine that it needs no TLS.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = name_of(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a host may be this machine, as it is written: any spelling that leads to loopback without a name server's
/// help, also the short, octal and hexadecimal ones that the C library takes for addresses of IPv4.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let name = name_of(host).trim_end_matches('.').to_ascii_lowercase();
    if let Ok(address) = name.parse::<IpAddr>() {
        let address = address.to_canonical();
        return address.is_loopback() || address.is_unspecified();
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    last == "localhost" || last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = "https://reg:5000/v2/a/blobs/x?y";
        for (location, joined) in [
            ("https://s3/x", Some("https://s3/x")),
            ("//cdn/x", Some("https://cdn/x")),
            ("/x?q=1", Some("https://reg:5000/x?q=1")),
            ("z", Some("https://reg:5000/v2/a/blobs/z")),
            ("", None),
        ] {
            assert_eq!(join(base, location).as_deref(), joined, "{location}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin_of("https://a/x"), origin_of("https://A:443/y"));
        for other in ["http://a/", "https://a:444/", "https://b/"] {
            assert_ne!(origin_of("https://a/x"), origin_of(other));
        }
    }

    #[test]
    fn a_user_is_named_before_the_host() {
        for (url, named) in [
            ("http://localhost:x@evil.example/token", true),
            ("https://a@b/", true),
            ("https://b/a@c", false),
            ("https://b?a@c", false),
        ] {
            assert_eq!(names_user(url), named, "{url}");
        }
    }

    #[test]
    fn errors_show_no_secrets() {
        for (url, wanted) in [
            ("https://a/b/c", "https://a/b/c"),
            ("https://me:pw@a:5/b?sig=x", "https://a:5/b?…"),
            ("https://me:pw@a", "https://a"),
            ("https://a/b@c", "https://a/b@c"),
            ("/x?sig=y", "/x?…"),
            ("the blob", "the blob"),
        ] {
            assert_eq!(shown(url), wanted, "{url}");
        }
    }

    #[test]
    fn loopback_is_by_address() {
        for (host, loopback) in [
            ("localhost:5000", true),
            ("127.0.0.9:1", true),
            ("[::1]:5000", true),
            ("localhost.evil.io", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }
    #[test]
    fn this_machine_has_many_spellings() {
        for (host, here) in [
            ("localhost:5000", true),
            ("LOCALHOST.", true),
            ("a.localhost", true),
            ("127.0.0.1", true),
            ("127.1:80", true),
            ("0x7f000001", true),
            ("2130706433", true),
            ("0177.0.0.1", true),
            ("0.0.0.0:1", true),
            ("[::]", true),
            ("[::1]:5000", true),
            ("[::ffff:127.0.0.1]", true),
            ("10.0.0.1:5000", false),
            ("[2001:db8::1]:1", false),
            ("localhost.evil.io", false),
            ("registry.example:5000", false),
        ] {
            assert_eq!(is_this_machine(host), here, "{host}");
        }
    }
}
