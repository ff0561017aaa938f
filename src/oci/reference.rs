//! Image names: the grammar of references, what Docker's users may leave out, and the names that are no reference.
//!
//! `[host[:port]/]path[:tag][@sha256:hex]`, as the distribution project defines it. A name without a host is on
//! docker.io, a name there of one component is in `library/`; both are dropped again for output ([`Reference::familiar`]).

use std::fmt;
use std::str::FromStr;

use base::{Explain, Kind};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// The host of names that give none.
pub const DEFAULT_HOST: &str = "docker.io";
/// The tag of names that give neither a tag nor a digest.
pub const DEFAULT_TAG: &str = "latest";
/// The first component of names of one component on the default host.
const DEFAULT_NAMESPACE: &str = "library/";
/// Other names of the default host.
const DEFAULT_HOST_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// The longest repository, host excluded (distribution's limit).
const REPOSITORY_MAX: usize = 255;
/// The longest tag.
const TAG_MAX: usize = 128;
/// The longest host with its port: a DNS name (RFC 1035) and `:65535`.
const HOST_MAX: usize = 253 + 6;
/// Words that other tools put before an image's location.
const TRANSPORTS: [&str; 6] = ["oci", "oci-archive", "dir", "docker-archive", "docker-daemon", "containers-storage"];

/// What a user may write where an image is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// `host:`: this machine's own root file system. Its empty tag keeps it out of the grammar of references.
    Host,
    /// The whole id of an image: 64 hexadecimal digits, with or without `sha256:`.
    Id(Digest),
    /// A reference. A text of few hexadecimal digits is one as well; a name wins over an id ([`id_prefix`]).
    Reference(Reference),
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text == "host:" {
            return Ok(ImageName::Host);
        }
        if let Ok(id) = Digest::from_hex(text.strip_prefix("sha256:").unwrap_or(text)) {
            return Ok(ImageName::Id(id));
        }
        text.strip_prefix("docker://").unwrap_or(text).parse().map(ImageName::Reference)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageName::Host => f.write_str("host:"),
            ImageName::Id(digest) => digest.fmt(f),
            ImageName::Reference(reference) => f.write_str(&reference.familiar()),
        }
    }
}

/// The digits of a text that may be the beginning of an image's id, `sha256:` taken off.
pub fn id_prefix(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (hex && (1..=64).contains(&digits.len())).then_some(digits)
}

/// A reference whose host and repository are complete. Displays in full; see [`Reference::familiar`] for output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Whether a text begins with a registry's name. One that does not is a *short name*: it means [`DEFAULT_HOST`] unless
    /// a configuration says otherwise.
    pub fn names_host(text: &str) -> bool {
        text.split_once('/').is_some_and(|(first, _)| looks_like_host(first))
    }

    /// The registry's name, with its port when one was given: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path on the registry: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given. With a digest beside it, it is for display only.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and repository: `docker.io/library/debian`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The same with the tag `latest` if there was neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository by another digest, without a tag.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Reference { host: self.host.clone(), repository: self.repository.clone(), tag: None, digest: Some(digest) }
    }

    /// The same repository by a tag, which must be one by the grammar.
    #[must_use]
    pub fn tagged(&self, tag: &str) -> Self {
        let (host, repository) = (self.host.clone(), self.repository.clone());
        Reference { host, repository, tag: Some(tag.to_owned()), digest: None }
    }

    /// What a registry is asked for: the digest, else the tag, else `latest`.
    pub fn selector(&self) -> String {
        match (self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The name as Docker's users write it: `debian`, `user/app`, `quay.io/org/app`.
    pub fn familiar_name(&self) -> String {
        if self.host != DEFAULT_HOST {
            return self.name();
        }
        match self.repository.strip_prefix(DEFAULT_NAMESPACE) {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The familiar name with tag and digest.
    pub fn familiar(&self) -> String {
        self.familiar_name() + &self.suffix()
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.repository, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        refuse_other_sources(text)?;
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(text, digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the host's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(malformed(
                text,
                "the tag must be 1 to 128 of letters, digits, _ . - and not begin with . or -",
            ));
        }
        let (host, path) = split_host(name);
        if !is_host(&host) {
            return Err(malformed(text, "the registry's host is malformed"));
        }
        check_path(text, &path)?;
        Ok(Reference { host, repository: path, tag: tag.map(str::to_owned), digest })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

/// `oci:x` and `dir:1.0` are good references; a word is a transport only before what can be nothing but a path.
fn refuse_other_sources(text: &str) -> Result<(), ReferenceError> {
    if let Some((word, rest)) = text.split_once(':')
        && TRANSPORTS.contains(&word)
        && ["/", "./", "../", "~"].iter().any(|start| rest.starts_with(start))
    {
        return Err(ReferenceError::Transport { word: word.to_owned() });
    }
    if Digest::from_hex(text).is_ok() {
        return Err(malformed(text, "64 hexadecimal digits are an image id, not a name"));
    }
    Ok(())
}

fn parse_digest(text: &str, digest: &str) -> Result<Digest, ReferenceError> {
    digest.parse().map_err(|cause| ReferenceError::Digest { text: text.to_owned(), cause })
}

/// The host in front of a name, or the one that stands for none, and the rest. Neither need be within the grammar.
pub fn host_and_rest(name: &str) -> (&str, &str) {
    let given = name.split_once('/').filter(|(first, _)| looks_like_host(first));
    let (host, path) = given.unwrap_or((DEFAULT_HOST, name));
    (if DEFAULT_HOST_ALIASES.contains(&host) { DEFAULT_HOST } else { host }, path)
}

/// The one spelling for all that name the same host: in lower case, without HTTPS's port, and [`DEFAULT_HOST`] for its other
/// names. A word that only the port shows to be a host keeps it.
pub fn canonical_host(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    let bare = lower.strip_suffix(":443").unwrap_or(&lower);
    match bare {
        _ if !looks_like_host(bare) => format!("{bare}:443"),
        _ if DEFAULT_HOST_ALIASES.contains(&bare) => DEFAULT_HOST.to_owned(),
        _ => bare.to_owned(),
    }
}

/// Splits a name into its complete host and repository: the first component is a host only if it looks like one.
fn split_host(name: &str) -> (String, String) {
    let (host, path) = host_and_rest(name);
    let namespace = if host == DEFAULT_HOST && !path.contains('/') { DEFAULT_NAMESPACE } else { "" };
    (host.to_owned(), format!("{namespace}{path}"))
}

fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `name[:port]`, `1.2.3.4[:port]` or `[v6][:port]`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let address_ok = address.parse::<std::net::Ipv6Addr>().is_ok();
            return address_ok && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let component = |part: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    host.len() <= HOST_MAX && name.split('.').all(component) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TAG_MAX).contains(&tag.len())
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
        && tag.bytes().next().is_some_and(word)
}

fn check_path(text: &str, path: &str) -> Result<(), ReferenceError> {
    if path.len() > REPOSITORY_MAX {
        return Err(malformed(text, "the repository is longer than 255 characters"));
    }
    if path.split('/').all(is_path_component) {
        return Ok(());
    }
    if path.to_ascii_lowercase().split('/').all(is_path_component) {
        return Err(ReferenceError::Uppercase { text: text.to_owned() });
    }
    Err(malformed(
        text,
        "a repository is of lower-case letters and digits, joined by single . or /, by _ or __, or by dashes",
    ))
}

/// Lower-case alphanumerics joined by `.`, `_`, `__` or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators =
        component.split(|c: char| c.is_ascii() && alphanumeric(c as u8)).filter(|part| !part.is_empty());
    let edges = [component.bytes().next(), component.bytes().next_back()];
    edges.iter().all(|byte| byte.is_some_and(alphanumeric))
        && separators.all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|byte| byte == b'-'))
}

fn malformed(text: &str, why: &'static str) -> ReferenceError {
    ReferenceError::Malformed { text: text.to_owned(), why }
}

/// A text that is no image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Outside the grammar.
    #[error("invalid reference format: {text:?}: {why}")]
    Malformed {
        /// What was given.
        text: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The repository would be right in lower case.
    #[error("invalid reference format: repository name ({text}) must be lowercase")]
    Uppercase {
        /// What was given.
        text: String,
    },
    /// What follows the `@` is no digest that we can check.
    #[error("invalid reference format: {text:?}")]
    Digest {
        /// What was given.
        text: String,
        /// What is wrong with its digest.
        #[source]
        cause: DigestError,
    },
    /// An image in a file or directory of another tool's format.
    #[error("images behind {word}: cannot be read")]
    Transport {
        /// The word before the colon.
        word: String,
    },
}

impl Explain for ReferenceError {
    fn kind(&self) -> Kind {
        match self {
            ReferenceError::Transport { .. } | ReferenceError::Digest { cause: DigestError::Algorithm { .. }, .. } => {
                Kind::Unsupported
            }
            _ => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ReferenceError::Uppercase { text } => Some(format!("try {}", text.to_lowercase())),
            ReferenceError::Transport { .. } => Some("push the image to a registry and name it there".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn complete_and_familiar_forms() {
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            ("index.docker.io/library/debian", "docker.io/library/debian", "debian"),
            ("user/app", "docker.io/user/app", "user/app"),
            ("library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x", "localhost:5000/x", "localhost:5000/x"),
            ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("Host/x", "Host/x", "Host/x"),
            ("quay.io/org/app:v1.2-3_x", "quay.io/org/app:v1.2-3_x", "quay.io/org/app:v1.2-3_x"),
            ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
            ("a__b/c-----d.e_f", "docker.io/a__b/c-----d.e_f", "a__b/c-----d.e_f"),
            ("oci:x", "docker.io/library/oci:x", "oci:x"),
            ("dir:1.0", "docker.io/library/dir:1.0", "dir:1.0"),
            ("abc123", "docker.io/library/abc123", "abc123"),
            (
                &format!("a:1@sha256:{HEX}"),
                &format!("docker.io/library/a:1@sha256:{HEX}"),
                &format!("a:1@sha256:{HEX}"),
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "the full form names the same");
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference, "the familiar form names the same");
        }
    }

    #[test]
    fn selector_prefers_the_digest() {
        for (text, selector) in
            [("a", "latest"), ("a:1", "1"), (&format!("a:1@sha256:{HEX}"), &format!("sha256:{HEX}") as &str)]
        {
            assert_eq!(text.parse::<Reference>().unwrap().selector(), selector);
        }
        assert_eq!("a".parse::<Reference>().unwrap().or_latest().familiar(), "a:latest");
    }

    #[test]
    fn refuses_what_is_outside_the_grammar() {
        let long_tag = format!("a:{}", "x".repeat(129));
        let long_path = "x".repeat(256);
        for text in [
            "",
            ":",
            "a:",
            ":1",
            "/",
            "a/",
            "/a",
            "a//b",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            "a.",
            "_a",
            "a b",
            "a:b c",
            "a:-x",
            "a:.x",
            "a@",
            "a@sha256:00",
            "a@b@c",
            "localhost:/x",
            "localhost:0/x",
            "localhost:99999/x",
            "a\n",
            "ä",
            "-a.b/x",
            "a..b/x",
            "[::1/x",
            "[zz]/x",
            "[::1]x/x",
            "https://a/b",
            "oci:/x",
            HEX,
            &long_tag,
            &long_path,
            "host:",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn upper_case_and_transports_have_their_own_words() {
        let upper = "Debian".parse::<Reference>().unwrap_err();
        assert_eq!(upper.to_string(), "invalid reference format: repository name (Debian) must be lowercase");
        assert_eq!(upper.hint().unwrap(), "try debian");
        assert!(matches!("quay.io/Org/x".parse::<Reference>(), Err(ReferenceError::Uppercase { .. })));
        assert!(matches!("oci:./x".parse::<Reference>(), Err(ReferenceError::Transport { .. })));
        let other = format!("a@sha512:{HEX}{HEX}").parse::<Reference>().unwrap_err();
        assert_eq!(other.kind(), Kind::Unsupported);
    }

    #[test]
    fn names_that_are_no_reference() {
        let id = Digest::from_hex(HEX).unwrap();
        assert_eq!("host:".parse::<ImageName>().unwrap(), ImageName::Host);
        assert_eq!(HEX.parse::<ImageName>().unwrap(), ImageName::Id(id));
        assert_eq!(format!("sha256:{HEX}").parse::<ImageName>().unwrap(), ImageName::Id(id));
        let host: ImageName = "host".parse().unwrap();
        assert_eq!(host, ImageName::Reference("docker.io/library/host".parse().unwrap()));
        assert_eq!("docker://a/b:1".parse::<ImageName>().unwrap().to_string(), "a/b:1");
        for (text, digits) in [
            ("abc", Some("abc")),
            ("sha256:0a", Some("0a")),
            ("", None),
            ("xyz", None),
            ("sha256:", None),
            ("ABC", None),
        ] {
            assert_eq!(id_prefix(text), digits);
        }
    }
}
