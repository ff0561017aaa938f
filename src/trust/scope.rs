//! Which scopes of a policy fit an image. One that fits none would be passed over in silence, and with it what it rejects.

use oci::Reference;
use oci::reference::canonical_host;

/// The transport of images from registries.
pub(crate) const DOCKER: &str = "docker";
/// The transports of images in files, whose scopes are paths.
const FILES: [&str; 4] = ["oci", "oci-archive", "dir", "docker-archive"];

/// What is wrong with a scope of a transport, and what to write; the scopes of transports that are not known are not looked at.
pub(crate) fn check(transport: &str, scope: &str) -> Result<(), String> {
    let (instead, form) = match transport {
        _ if scope.is_empty() => return Ok(()),
        DOCKER => (of_registries(scope), "the complete name of an image, a beginning of it up to a slash, or *.DOMAIN"),
        _ if FILES.contains(&transport) => (of_files(scope), "an absolute path, or PATH:NAME"),
        _ => return Ok(()),
    };
    match instead {
        Some(instead) if instead == scope => Ok(()),
        Some(instead) => Err(format!("write {instead:?}")),
        None => Err(format!("write {form}")),
    }
}

/// How a scope must be written to fit images of a registry, where that can be told.
fn of_registries(scope: &str) -> Option<String> {
    if scope == "*" {
        return Some(String::new());
    }
    let scope = scope.split_once("://").map_or(scope, |(_, rest)| rest).trim_end_matches('/');
    if let Some(domain) = scope.strip_prefix("*.") {
        let domain = domain.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let host = format!("x.{domain}/x");
        return host.parse::<Reference>().is_ok().then(|| format!("*.{domain}"));
    }
    // Two components, as one alone is in `library/` on the default host.
    let below = format!("{scope}/x/y");
    if Reference::names_host(&below)
        && let Ok(reference) = below.parse::<Reference>()
    {
        return canonical_name(&reference).strip_suffix("/x/y").map(str::to_owned);
    }
    Some(canonical(&scope.parse().ok()?))
}

/// The path without what leads nowhere else; `None` if it has no beginning, or nothing is left of it before a name.
fn of_files(scope: &str) -> Option<String> {
    let (path, name) = scope.split_once(':').map_or((scope, None), |(path, name)| (path, Some(name)));
    let mut components = Vec::new();
    for component in path.strip_prefix('/')?.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            component => components.push(component),
        }
    }
    // What stands behind a colon may be the rest of the path, and is no name either with such parts.
    if name.is_some_and(|name| components.is_empty() || name.split('/').any(|part| ["", ".", ".."].contains(&part))) {
        return None;
    }
    let name = name.map(|name| format!(":{name}")).unwrap_or_default();
    Some(components.into_iter().flat_map(|component| ["/", component]).collect::<String>() + &name)
}

/// Host and repository, the host in the one spelling that scopes have.
pub(crate) fn canonical_name(reference: &Reference) -> String {
    format!("{}/{}", canonical_host(reference.host()), reference.repository())
}

/// The same with what a registry is asked for: of a tag beside a digest only the digest counts.
pub(crate) fn canonical(reference: &Reference) -> String {
    let name = canonical_name(reference);
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_that_fit_no_image_are_refused_with_what_to_write() {
        let by_digest = format!("a.io/x@sha256:{}", "0".repeat(64));
        let both = by_digest.replace('@', ":1@");
        let docker: &[(&str, &str)] = &[
            ("debian", "docker.io/library/debian"),
            ("debian:latest", "docker.io/library/debian:latest"),
            ("team/app", "docker.io/team/app"),
            ("docker.io/debian:12", "docker.io/library/debian:12"),
            ("index.docker.io", "docker.io"),
            ("registry-1.docker.io/library", "docker.io/library"),
            ("https://a.io", "a.io"),
            ("docker://a.io/x", "a.io/x"),
            ("a.io/", "a.io"),
            ("A.io/x:1", "a.io/x:1"),
            ("a.io:443/x", "a.io/x"),
            ("REGISTRY/x", "registry:443/x"),
            ("*", ""),
            ("*.A.io", "*.a.io"),
            ("*.a.io:5000", "*.a.io"),
            (&both, &by_digest),
        ];
        for (scope, instead) in docker {
            assert_eq!(check(DOCKER, scope), Err(format!("write {instead:?}")), "{scope}");
            assert_eq!(check(DOCKER, instead), Ok(()), "{instead}");
        }
        for scope in ["*.", "*a.io", "a.*", "a.io/Team", "a.io//x", "/a.io", " a.io", "a.io/*", "_", "://"] {
            assert!(check(DOCKER, scope).is_err_and(|why| why.contains("complete name")), "{scope}");
        }
        for scope in ["localhost", "localhost:5000/x", "[::1]:5000", "a.io/x:1", "docker.io/team", "*.io", "*.0.0.1"] {
            assert_eq!(check(DOCKER, scope), Ok(()), "{scope}");
        }
    }

    #[test]
    fn scopes_of_files_are_paths_as_they_are_looked_up() {
        for transport in FILES {
            for (scope, instead) in [
                ("/", ""),
                ("//", ""),
                ("/srv/untrusted/", "/srv/untrusted"),
                ("/srv//x", "/srv/x"),
                ("/srv/./x", "/srv/x"),
                ("/srv/../x", "/x"),
                ("/../x", "/x"),
                ("/srv/x/:app:1", "/srv/x:app:1"),
            ] {
                assert_eq!(check(transport, scope), Err(format!("write {instead:?}")), "{scope}");
            }
            for scope in ["srv/x", "./x", "~/x", ":app", "*", "/srv/..:app", "/a:b/../c", "/a:b/"] {
                assert!(check(transport, scope).is_err_and(|why| why.contains("absolute path")), "{scope}");
            }
            for scope in ["/srv", "/srv/x y", "/srv/..x", "/srv/x:a.io/team/app:1", "/srv/x:app@y"] {
                assert_eq!(check(transport, scope), Ok(()), "{scope}");
            }
        }
        assert_eq!(check("docker-daemon", "anything"), Ok(()));
    }
}
