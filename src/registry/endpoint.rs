//! The places where a repository is served.

/// A place that serves a repository: the one that a reference names, or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The host with its port, as references have it.
    pub host: String,
    /// The path of the repository there; empty when the registry itself is meant.
    pub repository: String,
    /// Whether it may be spoken to without TLS or with any certificate.
    pub insecure: bool,
    /// Whether it is a mirror, after which the next place is tried.
    pub mirror: bool,
}

impl Endpoint {
    /// A registry itself, for what is about no repository.
    pub(crate) fn registry(host: &str) -> Self {
        Endpoint { host: host.to_owned(), repository: String::new(), insecure: false, mirror: false }
    }

    /// A path below the repository (distribution specification, "Endpoints").
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.repository)
    }
}
