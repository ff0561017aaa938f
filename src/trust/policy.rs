//! `policy.json` of the containers/image family (containers-policy.json(5)): what is required of an image before it is
//! brought in, by the place that it comes from.
//!
//! The file is read as strictly as there: an unknown or repeated key, an empty list, a requirement with two places for its
//! keys are errors. What it may require and we do not check (GPG, certificates, transparency logs) is read, and refuses the
//! images that it is required of.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use base::{Explain, Kind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci::Reference;
use oci::reference::canonical_host;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::object::{self, Object};
use crate::scope::{self, DOCKER, canonical, canonical_name};

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    default: Requirements,
    #[serde(default)]
    transports: Unique<Unique<Requirements>>,
}

/// What holds for an image.
#[derive(Clone, Debug)]
pub struct Chosen<'a> {
    /// Where in the file it is written.
    pub scope: String,
    /// All of these must be met.
    pub requirements: &'a [Requirement],
}

/// One thing that is required.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub enum Requirement {
    /// Nothing (`insecureAcceptAnything`).
    Accept,
    /// What no image has (`reject`).
    Reject,
    /// A signature (`sigstoreSigned`).
    Signed(Signed),
    /// What we cannot check, and so no image has.
    Unsupported {
        /// The requirement's type, with the key that makes it so.
        what: String,
    },
}

/// A signature that is required.
#[derive(Clone, Debug)]
pub struct Signed {
    /// By one of these keys; at least one.
    pub keys: Vec<KeySource>,
    /// For a name that fits the image's.
    pub identity: Identity,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In this file.
    Path(PathBuf),
    /// In the policy; the bytes of such a file.
    Data(Vec<u8>),
}

/// How the name in a signature must fit the one by which the image is asked for (`signedIdentity`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Identity {
    /// It is the same, with its tag or digest.
    MatchExact {},
    /// It is the same, or, where a digest is asked for, of the same repository. So too where nothing is written.
    MatchRepoDigestOrExact {},
    /// It is of the same repository.
    MatchRepository {},
    /// It is this one, whatever is asked for.
    ExactReference {
        /// With a tag or a digest.
        docker_reference: Named,
    },
    /// It is of this repository, whatever is asked for.
    ExactRepository {
        /// The repository.
        docker_repository: Reference,
    },
    /// Names asked for that begin with one prefix are signed with another one; then as by default.
    RemapIdentity {
        /// A host, a namespace or a repository.
        prefix: Prefix,
        /// What stands for it in signatures.
        signed_prefix: Prefix,
    },
}

impl Default for Identity {
    fn default() -> Self {
        Identity::MatchRepoDigestOrExact {}
    }
}

/// A reference with a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Reference")]
pub struct Named(Reference);

impl TryFrom<Reference> for Named {
    type Error = &'static str;

    fn try_from(reference: Reference) -> Result<Self, &'static str> {
        if names_one(&reference) { Ok(Named(reference)) } else { Err("dockerReference needs a tag or a digest") }
    }
}

/// The beginning of complete names: a host, or more, without tag and digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix(String);

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Two components, as one alone is in `library/` on the default host.
        let inside = format!("{text}/x/y");
        let whole = inside.parse::<Reference>().is_ok_and(|reference| reference.name() == inside);
        if whole && Reference::names_host(&inside) { Ok(Prefix(text)) } else { Err(format!("{text:?} is no prefix")) }
    }
}

fn names_one(reference: &Reference) -> bool {
    reference.tag().is_some() || reference.digest().is_some()
}

/// What a registry is asked for: of a tag beside a digest only the digest counts.
fn asked(reference: &Reference) -> Reference {
    reference.digest().map_or_else(|| reference.clone(), |digest| reference.at(digest))
}

impl Identity {
    /// Whether a signature for one name is good for an image that is asked for by another.
    pub fn fits(&self, pulled: &Reference, signed: &Reference) -> bool {
        let pulled = &asked(pulled);
        match self {
            Identity::MatchExact {} => names_one(signed) && signed == pulled,
            Identity::MatchRepoDigestOrExact {} => repo_digest_or_exact(pulled, signed),
            Identity::MatchRepository {} => signed.name() == pulled.name(),
            Identity::ExactReference { docker_reference } => *signed == docker_reference.0,
            Identity::ExactRepository { docker_repository } => signed.name() == docker_repository.name(),
            Identity::RemapIdentity { prefix, signed_prefix } => {
                let (name, text) = (pulled.name(), pulled.to_string());
                // The prefix ends with a component: `host` is not `host:port`.
                match name.strip_prefix(&prefix.0).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                    None => repo_digest_or_exact(pulled, signed),
                    Some(rest) => format!("{}{rest}{}", signed_prefix.0, &text[name.len()..])
                        .parse()
                        .is_ok_and(|mapped| repo_digest_or_exact(&mapped, signed)),
                }
            }
        }
    }
}

fn repo_digest_or_exact(pulled: &Reference, signed: &Reference) -> bool {
    match pulled.digest() {
        _ if !names_one(signed) => false,
        Some(_) => signed.name() == pulled.name(),
        None => signed == pulled,
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::MatchExact {} => f.write_str("matchExact"),
            Identity::MatchRepoDigestOrExact {} => f.write_str("matchRepoDigestOrExact"),
            Identity::MatchRepository {} => f.write_str("matchRepository"),
            Identity::ExactReference { docker_reference } => write!(f, "exactReference {}", docker_reference.0),
            Identity::ExactRepository { docker_repository } => {
                write!(f, "exactRepository {}", docker_repository.name())
            }
            Identity::RemapIdentity { prefix, signed_prefix } => {
                write!(f, "remapIdentity {} to {}", prefix.0, signed_prefix.0)
            }
        }
    }
}

impl Policy {
    /// Reads a file.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        let Object::<Policy>(policy) = serde_json::from_slice(text).map_err(|cause| PolicyError::Json { cause })?;
        for (transport, scopes) in &policy.transports.0 {
            for scope in scopes.0.keys() {
                scope::check(transport, scope).map_err(|instead| PolicyError::Scope {
                    transport: transport.clone(),
                    scope: scope.clone(),
                    instead,
                })?;
            }
        }
        Ok(policy)
    }

    /// What holds for an image on a registry: what is written for its tag or digest, else for its repository, the
    /// namespaces above it, its host, the domains above that (`*.domain`), all registries, and at last everything. How the
    /// host is spelled makes no difference.
    pub fn for_reference(&self, reference: &Reference) -> Chosen<'_> {
        let (name, host) = (canonical_name(reference), canonical_host(reference.host()));
        let parents = name.match_indices('/').rev().map(|(at, _)| name[..at].to_owned());
        let domain = host.split(':').next().unwrap_or_default();
        let wildcards = domain.match_indices('.').map(|(at, _)| format!("*{}", &domain[at..]));
        let repository = [canonical(reference), name.clone()];
        self.choose(DOCKER, repository.into_iter().chain(parents).chain(wildcards))
    }

    /// What holds for an image in a file or directory, as the transport calls it: what is written for its path and name,
    /// its path, the directories above it, all of the transport, everything. A stream has no path.
    pub fn for_file(&self, transport: &str, path: Option<&Path>, image: Option<&str>) -> Chosen<'_> {
        let texts = path.into_iter().flat_map(Path::ancestors).map(|path| path.to_string_lossy().into_owned());
        // The root directory stands for all of the transport, which has its own scope.
        let texts: Vec<String> = texts.filter(|text| text.len() > 1).collect();
        let named = texts.first().zip(image).map(|(path, image)| format!("{path}:{image}"));
        self.choose(transport, named.into_iter().chain(texts))
    }

    fn choose(&self, transport: &str, scopes: impl Iterator<Item = String>) -> Chosen<'_> {
        if let Some(of_transport) = self.transports.0.get(transport) {
            for scope in scopes.chain([String::new()]) {
                if let Some(Requirements(requirements)) = of_transport.0.get(&scope) {
                    return Chosen { scope: format!("transports.{transport}.{scope:?}"), requirements };
                }
            }
        }
        Chosen { scope: "default".to_owned(), requirements: &self.default.0 }
    }
}

/// A list that is not empty.
#[derive(Clone, Debug)]
struct Requirements(Vec<Requirement>);

impl<'de> Deserialize<'de> for Requirements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = object::list(deserializer)?;
        if list.is_empty() { Err(D::Error::custom("a list of requirements is empty")) } else { Ok(Requirements(list)) }
    }
}

/// An object in which no key is twice.
#[derive(Clone, Debug)]
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Unique(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if members.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("{key:?} is there twice")));
                    }
                    members.insert(key, value);
                }
                Ok(Unique(members))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// A requirement as it is written.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Written {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy(SignedBy),
    SigstoreSigned(Box<SigstoreSigned>),
}

/// No image meets it here; it is only read as strictly as where it can be met.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SignedBy {
    #[serde(rename = "keyType")]
    _key_type: String,
    key_path: Option<IgnoredAny>,
    key_paths: Option<IgnoredAny>,
    key_data: Option<IgnoredAny>,
    #[serde(rename = "signedIdentity")]
    _signed_identity: Option<Object<Identity>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SigstoreSigned {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
    #[serde(deserialize_with = "object::one")]
    signed_identity: Identity,
}

impl TryFrom<Written> for Requirement {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::InsecureAcceptAnything {} => Ok(Requirement::Accept),
            Written::Reject {} => Ok(Requirement::Reject),
            Written::SignedBy(by) => match [by.key_path, by.key_paths, by.key_data].iter().flatten().count() {
                1 => Ok(Requirement::Unsupported { what: "signedBy (GPG)".to_owned() }),
                _ => Err("signedBy needs exactly one of keyPath, keyPaths and keyData".to_owned()),
            },
            Written::SigstoreSigned(signed) => signed.requirement(),
        }
    }
}

impl SigstoreSigned {
    fn requirement(self) -> Result<Requirement, String> {
        let datas = self.key_datas.map(|list| list.iter().map(|text| data(text)).collect::<Result<_, _>>());
        let paths = self.key_paths.map(|list| list.into_iter().map(KeySource::Path).collect());
        let places: [Option<Vec<KeySource>>; 6] = [
            self.key_path.map(|path| vec![KeySource::Path(path)]),
            paths,
            self.key_data.map(|text| data(&text).map(|data| vec![data])).transpose()?,
            datas.transpose()?,
            self.fulcio.map(|_| Vec::new()),
            self.pki.map(|_| Vec::new()),
        ];
        let (fulcio, pki) = (places[4].is_some(), places[5].is_some());
        let mut given = places.into_iter().flatten();
        let (Some(keys), None) = (given.next(), given.next()) else {
            return Err(
                "sigstoreSigned needs exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki".to_owned()
            );
        };
        let rekor = [
            self.rekor_public_key_path,
            self.rekor_public_key_paths,
            self.rekor_public_key_data,
            self.rekor_public_key_datas,
        ];
        match rekor.iter().flatten().count() {
            _ if fulcio => Ok(Requirement::Unsupported { what: "sigstoreSigned with fulcio".to_owned() }),
            _ if pki => Ok(Requirement::Unsupported { what: "sigstoreSigned with pki".to_owned() }),
            _ if keys.is_empty() => Err("sigstoreSigned has an empty list of keys".to_owned()),
            0 => Ok(Requirement::Signed(Signed { keys, identity: self.signed_identity })),
            1 => Ok(Requirement::Unsupported { what: "sigstoreSigned with a key of Rekor".to_owned() }),
            _ => Err("sigstoreSigned has several places for the key of Rekor".to_owned()),
        }
    }
}

fn data(text: &str) -> Result<KeySource, String> {
    STANDARD.decode(text).map(KeySource::Data).map_err(|error| format!("a key is not in base64: {error}"))
}

/// A file that is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the JSON that it must be.
    #[error("this is no policy: {cause}")]
    Json {
        /// What is wrong, and where.
        cause: serde_json::Error,
    },
    /// A scope would never be looked up.
    #[error("this is no policy: the scope {scope:?} of {transport} fits no image; {instead}")]
    Scope {
        /// Its transport.
        transport: String,
        /// As it is written.
        scope: String,
        /// What to write.
        instead: String,
    },
}

impl Explain for PolicyError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("nothing is fetched until it can be read; containers-policy.json(5) describes it".to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused policy is a failed test")]
mod tests {
    use super::*;

    const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
    const REJECT: &str = r#"[{"type":"reject"}]"#;

    fn policy(text: &str) -> Result<Policy, String> {
        Policy::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn requirement(text: &str) -> Result<Requirement, String> {
        let policy = policy(&format!(r#"{{"default":[{text}]}}"#))?;
        Ok(policy.default.0[0].clone())
    }

    #[test]
    fn a_file_is_read_as_strictly_as_its_other_readers_do() {
        for good in [
            format!(r#"{{"default":{ACCEPT}}}"#),
            format!(r#"{{"default":{REJECT},"transports":{{}}}}"#),
            format!(
                r#"{{"default":{REJECT},"transports":{{"docker":{{"":{ACCEPT},"a.io":{REJECT}}},"x":{{"y":{REJECT}}}}}}}"#
            ),
        ] {
            policy(&good).unwrap();
        }
        for (bad, why) in [
            (String::new(), "EOF"),
            ("[]".to_owned(), "invalid"),
            ("{}".to_owned(), "missing field `default`"),
            (r#"{"default":[]}"#.to_owned(), "empty"),
            (format!("[{ACCEPT},{{}}]"), "expected an object"),
            (r#"{"default":[["reject"]]}"#.to_owned(), "expected an object"),
            (format!(r#"{{"default":{ACCEPT},"transports":[]}}"#), "expected an object"),
            (
                format!(r#"{{"default":{ACCEPT},"transports":{{"oci":{{"/":{REJECT}}}}}}}"#),
                r#""/" of oci fits no image"#,
            ),
            (format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"debian":{REJECT}}}}}}}"#), "docker.io/library"),
            (format!(r#"{{"default":{ACCEPT}}} x"#), "trailing"),
            (format!(r#"{{"default":{ACCEPT},"default":{ACCEPT}}}"#), "duplicate field"),
            (format!(r#"{{"default":{ACCEPT},"defaults":{ACCEPT}}}"#), "unknown field `defaults`"),
            (format!(r#"{{"Default":{ACCEPT}}}"#), "unknown field"),
            (format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"a":{ACCEPT},"a":{REJECT}}}}}}}"#), "twice"),
            (format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{}},"docker":{{}}}}}}"#), "twice"),
            (format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{"a":[]}}}}}}"#), "empty"),
            (format!(r#"{{"default":{}}}"#, "[".repeat(100_000)), "invalid type"),
            (format!(r#"{{"default":[{{"type":"sigstoreSigned","fulcio":{}"#, "[".repeat(100_000)), "recursion"),
        ] {
            let error = policy(&bad).unwrap_err();
            assert!(error.contains(why), "{bad:.100}: {error}");
        }
    }

    #[test]
    fn requirements_have_what_belongs_to_them_and_nothing_else() {
        let signed = |members: &str| requirement(&format!(r#"{{"type":"sigstoreSigned",{members}}}"#));
        for (members, keys) in [
            (r#""keyPath":"/k""#, vec![KeySource::Path("/k".into())]),
            (r#""keyPaths":["/k","/l"]"#, vec![KeySource::Path("/k".into()), KeySource::Path("/l".into())]),
            (r#""keyData":"eA==""#, vec![KeySource::Data(b"x".to_vec())]),
            (r#""keyDatas":["eA==","eQ=="]"#, vec![KeySource::Data(b"x".to_vec()), KeySource::Data(b"y".to_vec())]),
        ] {
            match signed(members).unwrap() {
                Requirement::Signed(signed) => assert_eq!((signed.keys, signed.identity), (keys, Identity::default())),
                other => assert_eq!(format!("{other:?}"), members),
            }
        }
        for unsupported in [
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#,
            r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c"},"rekorPublicKeyPath":"/r"}"#,
            r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/c"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r"}"#,
        ] {
            assert!(matches!(requirement(unsupported).unwrap(), Requirement::Unsupported { .. }), "{unsupported}");
        }
        for bad in [
            "{}",
            "7",
            r#"{"type":"nonsense"}"#,
            r#"{"type":"reject","type":"reject"}"#,
            r#"{"type":"reject","keyPath":"/k"}"#,
            r#"{"type":"insecureAcceptAnything","x":1}"#,
            r#"{"type":"signedBy"}"#,
            r#"{"type":"signedBy","keyType":"GPGKeys"}"#,
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","x":1}"#,
            r#"{"type":"sigstoreSigned"}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","keyPath":"/k"}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","keyData":"eA=="}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","fulcio":{}}"#,
            r#"{"type":"sigstoreSigned","keyPaths":[]}"#,
            r#"{"type":"sigstoreSigned","keyData":"%"}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","x":1}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r","rekorPublicKeyData":"eA=="}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchAny"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchExact","x":1}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":["matchExact"]}"#,
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":["matchExact"]}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"a.io/x"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactRepository"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a.io/x:1","signedPrefix":"b.io"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"x","signedPrefix":"b.io"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a.io/","signedPrefix":"b.io"}}"#,
        ] {
            assert!(requirement(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_narrowest_scope_counts() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let by_digest = format!("docker.io/library/debian@sha256:{hex}");
        let chosen = |scopes: &[&str], name: &str| {
            let scopes: Vec<String> = scopes.iter().map(|scope| format!("{scope:?}:{REJECT}")).collect();
            let text = format!(r#"{{"default":{ACCEPT},"transports":{{"docker":{{{}}}}}}}"#, scopes.join(","));
            policy(&text).unwrap().for_reference(&name.parse::<Reference>().unwrap().or_latest()).scope
        };
        let all =
            ["docker.io/library/debian:12", "docker.io/library/debian", "docker.io/library", "docker.io", "*.io", ""];
        for first in 0..all.len() {
            assert_eq!(chosen(&all[first..], "debian:12"), format!("transports.docker.{:?}", all[first]));
        }
        for (scope, name, holds) in [
            ("docker.io/library/debian:latest", "debian", true),
            ("docker.io/library/debian:12", "debian:1", false),
            ("docker.io/library/deb", "debian", false),
            ("docker.io/lib", "debian", false),
            (by_digest.as_str(), &format!("debian:12@sha256:{hex}"), true),
            ("docker.io/library/debian:12", &format!("debian:12@sha256:{hex}"), false),
            ("a.b.io:5000", "a.b.io:5000/x/y", true),
            ("a.b.io", "a.b.io:5000/x/y", false),
            ("*.b.io", "a.b.io:5000/x/y", true),
            ("*.io", "a.b.io:5000/x/y", true),
            ("*.a.b.io", "a.b.io/x", false),
            ("a.b.io", "A.B.io:443/x", true),
            ("a.b.io/x:1", "A.B.io:443/x:1", true),
            ("*.b.io", "A.B.io/x", true),
            ("reg:443", "REG/x", true),
            ("docker.io/library/debian", "INDEX.docker.io:443/library/debian", true),
            ("[::1]:5000", "[::1]:5000/x", true),
        ] {
            assert_eq!(chosen(&[scope], name) != "default", holds, "{scope} for {name}");
        }
    }

    #[test]
    fn files_have_scopes_of_their_transport() {
        let text = format!(
            r#"{{"default":{REJECT},"transports":{{"docker":{{"":{ACCEPT}}},"oci":{{"/a/b":{ACCEPT},"/a/b/c:one":{ACCEPT}}},
                "docker-archive":{{"":{ACCEPT}}}}}}}"#
        );
        let policy = policy(&text).unwrap();
        let scope = |transport, path: Option<&str>, image| policy.for_file(transport, path.map(Path::new), image).scope;
        assert_eq!(scope("oci", Some("/a/b/c"), Some("one")), r#"transports.oci."/a/b/c:one""#);
        assert_eq!(scope("oci", Some("/a/b/c"), Some("two")), r#"transports.oci."/a/b""#);
        assert_eq!(scope("oci", Some("/a/bc"), None), "default");
        assert_eq!(scope("docker-archive", None, None), r#"transports.docker-archive."""#);
        assert_eq!(scope("dir", Some("/a/b"), None), "default");
    }

    #[test]
    fn names_in_signatures_fit_as_the_identity_says() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let (at, both) = (format!("a.io/x@sha256:{hex}"), format!("a.io/x:1@sha256:{hex}"));
        let identity = |text: &str| serde_json::from_str::<Identity>(text).unwrap();
        let (exact, default) = (identity(r#"{"type":"matchExact"}"#), identity(r#"{"type":"matchRepoDigestOrExact"}"#));
        let repository = identity(r#"{"type":"matchRepository"}"#);
        let one = identity(r#"{"type":"exactReference","dockerReference":"b.io/y:2"}"#);
        let any = identity(r#"{"type":"exactRepository","dockerRepository":"b.io/y"}"#);
        let remap = identity(r#"{"type":"remapIdentity","prefix":"a.io","signedPrefix":"b.io/team"}"#);
        let host = identity(r#"{"type":"remapIdentity","prefix":"a.io","signedPrefix":"b.io"}"#);
        let whole = identity(r#"{"type":"remapIdentity","prefix":"a.io/x","signedPrefix":"b.io/team/y"}"#);
        for (identity, pulled, signed, fits) in [
            (&exact, "a.io/x:1", "a.io/x:1", true),
            (&exact, "a.io/x:1", "a.io/x:2", false),
            (&exact, "a.io/x:1", "a.io/x", false),
            (&exact, &at, "a.io/x:1", false),
            (&exact, &at, &at, true),
            (&default, "a.io/x:1", "a.io/x:1", true),
            (&default, "a.io/x:1", "a.io/x:2", false),
            (&default, "a.io/x:1", "a.io/x", false),
            (&default, &at, "a.io/x:2", true),
            (&default, &both, "a.io/x:2", true),
            (&default, &at, "a.io/x", false),
            (&default, &at, "a.io/y:2", false),
            (&repository, "a.io/x:1", "a.io/x", true),
            (&repository, "a.io/x:1", "a.io/x:2", true),
            (&repository, "a.io/x:1", "a.io/xy:1", false),
            (&repository, "debian:1", "docker.io/library/debian", true),
            (&one, "a.io/x:1", "b.io/y:2", true),
            (&one, "b.io/y:1", "b.io/y:1", false),
            (&any, "a.io/x:1", "b.io/y", true),
            (&any, "a.io/x:1", "a.io/x", false),
            (&remap, "a.io/x:1", "b.io/team/x:1", true),
            (&remap, "a.io/x:1", "a.io/x:1", false),
            (&remap, "a.io.evil/x:1", "b.io/team.evil/x:1", false),
            (&host, "a.io/x:1", "b.io/x:1", true),
            (&host, "a.io:5000/x:1", "b.io:5000/x:1", false),
            (&remap, "a.io:5000/x:1", "b.io/team/x:1", false),
            (&remap, "a.io:5000/x:1", "a.io:5000/x:1", true),
            (&remap, "c.io/x:1", "c.io/x:1", true),
            (&whole, "a.io/x:1", "b.io/team/y:1", true),
            (&whole, &at, "b.io/team/y:2", true),
            (&whole, "a.io/xy:1", "b.io/team/yy:1", false),
        ] {
            let parse = |text: &str| text.parse::<Reference>().unwrap();
            assert_eq!(identity.fits(&parse(pulled), &parse(signed)), fits, "{identity}: {signed} for {pulled}");
        }
    }
}
