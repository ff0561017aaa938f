//! Web addresses: which server one belongs to, where a `Location` leads, and hosts that are this machine.

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

/// Whether a host of a reference is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
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
}
