//! `registries.conf`: where names lead. Version 2 of the format (containers-registries.conf(5)), in TOML.
//!
//! A file is read into tables and checked; later files (drop-ins) replace what earlier ones say: whole `[[registry]]` tables
//! of the same prefix, single aliases, single settings. A reference belongs to the table whose prefix matches it and is the
//! longest. What the format does not know is passed over, as other engines do.
//!
//! There is no prompt: where Podman would ask which of several registries a short name means, they are tried in their order,
//! or with the mode `enforcing` refused.

use std::collections::{BTreeMap, BTreeSet};

use oci::Reference;
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use crate::Result;
use crate::endpoint::Endpoint;
use crate::error::RegistryError;

/// What all files together say; by default nothing, and names lead where Docker's do.
#[derive(Clone, Debug, Default)]
pub struct RegistriesConf {
    search: Vec<String>,
    enforcing: bool,
    /// Short name to a complete name without tag.
    aliases: BTreeMap<String, String>,
    /// By prefix.
    registries: BTreeMap<String, Entry>,
    helpers: Option<Vec<String>>,
}

/// A `[[registry]]` table.
#[derive(Clone, Debug)]
struct Entry {
    /// What the prefix is replaced by; `None` for itself.
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
    /// The file that it is in.
    file: String,
}

#[derive(Clone, Debug)]
struct Mirror {
    location: String,
    insecure: bool,
    pulls: Pulls,
}

/// What a mirror is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pulls {
    All,
    ByDigest,
    ByTag,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileToml {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    short_name_mode: Option<Spanned<String>>,
    credential_helpers: Option<Vec<String>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    registry: Vec<Spanned<RegistryToml>>,
    /// What version 1 had in place of all this.
    registries: Option<Spanned<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryToml {
    prefix: Option<Spanned<String>>,
    location: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Spanned<MirrorToml>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorToml {
    location: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Spanned<String>>,
}

/// A file's name and text, to say where something is wrong.
struct Text<'a> {
    file: &'a str,
    text: &'a str,
}

impl Text<'_> {
    fn wrong(&self, at_byte: usize, why: impl Into<String>) -> RegistryError {
        let before = self.text.as_bytes().iter().take(at_byte);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        RegistryError::Conf { file: self.file.to_owned(), line, why: why.into() }
    }

    /// A host, perhaps with a path below it.
    fn place(&self, value: &Spanned<String>) -> Result<String> {
        let place = value.get_ref().trim_end_matches('/');
        let wrong = |why: &str| Err(self.wrong(value.span().start, format!("{:?} {why}", value.get_ref())));
        if place.contains("://") {
            return wrong("must not begin with a scheme");
        }
        // Only to know whether it is a good one.
        match format!("{place}/x").parse::<Reference>() {
            Ok(_) if Reference::names_host(&format!("{place}/x")) => Ok(place.to_owned()),
            Ok(_) => wrong("names no host"),
            Err(error) => wrong(&format!("is no place of images: {error}")),
        }
    }

    /// The beginning of references, or `*.` and the end of a host.
    fn prefix(&self, value: &Spanned<String>) -> Result<String> {
        let prefix = value.get_ref().trim_end_matches('/');
        if prefix.contains("://") {
            return Err(self.wrong(value.span().start, format!("{prefix:?} must not begin with a scheme")));
        }
        let rest = prefix.strip_prefix("*.").unwrap_or(prefix);
        if rest.is_empty() || rest.contains('*') || rest.starts_with('/') {
            let why = format!("{prefix:?} is neither the beginning of references nor *. and a domain");
            return Err(self.wrong(value.span().start, why));
        }
        Ok(prefix.to_owned())
    }

    fn entry(&self, table: &Spanned<RegistryToml>) -> Result<(String, Entry)> {
        let (at, table) = (table.span().start, table.get_ref());
        let location = table.location.as_ref().map(|location| self.place(location)).transpose()?;
        let prefix = match (&table.prefix, &location) {
            (Some(prefix), _) if !prefix.get_ref().is_empty() => self.prefix(prefix)?,
            (_, Some(location)) => location.clone(),
            (_, None) => return Err(self.wrong(at, "this registry has neither a prefix nor a location")),
        };
        let mirrors = table.mirror.iter().map(|mirror| self.mirror(mirror, table.mirror_by_digest_only));
        let entry = Entry {
            mirrors: mirrors.collect::<Result<_>>()?,
            location,
            insecure: table.insecure,
            blocked: table.blocked,
            file: self.file.to_owned(),
        };
        Ok((prefix, entry))
    }

    fn mirror(&self, table: &Spanned<MirrorToml>, all_by_digest: bool) -> Result<Mirror> {
        let (at, table) = (table.span().start, table.get_ref());
        let location = table.location.as_ref().ok_or_else(|| self.wrong(at, "this mirror has no location"))?;
        let pulls = match &table.pull_from_mirror {
            None => {
                if all_by_digest {
                    Pulls::ByDigest
                } else {
                    Pulls::All
                }
            }
            Some(word) if all_by_digest => {
                let why = "pull-from-mirror cannot be beside mirror-by-digest-only = true";
                return Err(self.wrong(word.span().start, why));
            }
            Some(word) => match word.get_ref().as_str() {
                "all" | "" => Pulls::All,
                "digest-only" => Pulls::ByDigest,
                "tag-only" => Pulls::ByTag,
                other => {
                    let why = format!("pull-from-mirror is {other:?}; it must be all, digest-only or tag-only");
                    return Err(self.wrong(word.span().start, why));
                }
            },
        };
        Ok(Mirror { location: self.place(location)?, insecure: table.insecure, pulls })
    }

    /// An alias; `None` takes an earlier one back.
    fn alias(&self, name: &str, target: &Spanned<String>) -> Result<Option<String>> {
        let (at, target) = (target.span().start, target.get_ref().as_str());
        if Reference::names_host(name) || name.contains([':', '@']) {
            return Err(self.wrong(at, format!("{name:?} is no short name")));
        }
        if target.is_empty() {
            return Ok(None);
        }
        match target.parse::<Reference>() {
            Ok(found) if found.tag().is_some() || found.digest().is_some() => {
                Err(self.wrong(at, format!("{target:?} must have neither tag nor digest")))
            }
            Ok(_) if !Reference::names_host(target) => Err(self.wrong(at, format!("{target:?} names no host"))),
            Ok(_) => Ok(Some(target.to_owned())),
            Err(error) => Err(self.wrong(at, error.to_string())),
        }
    }
}

impl RegistriesConf {
    /// Adds what a file says over what earlier ones said. `file` names it in errors.
    pub fn add(&mut self, file: &str, text: &str) -> Result<()> {
        let text = Text { file, text };
        let read: FileToml = toml::from_str(text.text)
            .map_err(|error| text.wrong(error.span().map_or(0, |span| span.start), error.message()))?;
        if let Some(old) = read.registries {
            return Err(text.wrong(old.span().start, "[registries] is of version 1 of this format, which is not read"));
        }
        if let Some(search) = read.unqualified_search_registries {
            self.search = search.iter().map(|place| text.place(place)).collect::<Result<_>>()?;
        }
        if let Some(mode) = read.short_name_mode {
            self.enforcing = match mode.get_ref().as_str() {
                "enforcing" => true,
                "permissive" | "disabled" | "" => false,
                other => {
                    let why = format!("short-name-mode is {other:?}; it must be enforcing, permissive or disabled");
                    return Err(text.wrong(mode.span().start, why));
                }
            };
        }
        for (name, target) in &read.aliases {
            match text.alias(name, target)? {
                Some(target) => self.aliases.insert(name.clone(), target),
                None => self.aliases.remove(name),
            };
        }
        let mut seen = BTreeSet::new();
        for table in &read.registry {
            let (prefix, entry) = text.entry(table)?;
            if !seen.insert(prefix.clone()) {
                return Err(text.wrong(table.span().start, format!("registry {prefix} is here twice")));
            }
            self.registries.insert(prefix, entry);
        }
        if read.credential_helpers.is_some() {
            self.helpers = read.credential_helpers;
        }
        Ok(())
    }

    /// The helpers that are asked for all registries, in their order; `None` if the files do not say. The word
    /// `containers-auth.json` among them means the files of credentials.
    pub fn credential_helpers(&self) -> Option<&[String]> {
        self.helpers.as_deref()
    }

    /// Whether a short name that may mean several registries is refused.
    pub fn is_enforcing(&self) -> bool {
        self.enforcing
    }

    /// What a name may stand for, the most likely first; never empty. A name with a host stands for itself.
    pub fn candidates(&self, name: &str) -> std::result::Result<Vec<Reference>, oci::ReferenceError> {
        let name = name.strip_prefix("docker://").unwrap_or(name);
        if Reference::names_host(name) {
            return Ok(vec![name.parse()?]);
        }
        let end = name.find([':', '@']).unwrap_or(name.len());
        if let Some(target) = self.aliases.get(&name[..end]) {
            return Ok(vec![format!("{target}{}", &name[end..]).parse()?]);
        }
        // It must be a good name wherever it is.
        let docker: Reference = name.parse()?;
        if self.search.is_empty() {
            return Ok(vec![docker]);
        }
        // Below a place it may be too long, for one.
        let (mut good, mut wrong) = (Vec::new(), None);
        for place in &self.search {
            match format!("{place}/{name}").parse() {
                Ok(candidate) => good.push(candidate),
                Err(error) => wrong = Some(error),
            }
        }
        wrong.filter(|_| good.is_empty()).map_or(Ok(good), Err)
    }

    /// Whether a host as a whole may be spoken to without TLS or with any certificate.
    pub(crate) fn is_insecure(&self, host: &str) -> bool {
        let inside = format!("{host}/");
        let of_host = self.registries.iter().filter(|(prefix, _)| match_end(prefix, &inside) == Some(host.len()));
        let nearest = of_host.max_by_key(|(prefix, _)| prefix.len());
        nearest.is_some_and(|(_, entry)| entry.insecure && entry.location.as_ref().is_none_or(|at| at == host))
    }

    /// The table that a reference belongs to, and where in its complete name the prefix ends; an error where it is blocked.
    fn entry_of(&self, name: &str) -> Result<Option<(&Entry, usize)>> {
        let matching = self.registries.iter().filter_map(|(prefix, entry)| {
            let end = match_end(prefix, name)?;
            Some((prefix, entry, end))
        });
        match matching.max_by_key(|(prefix, ..)| prefix.len()) {
            Some((prefix, entry, _)) if entry.blocked => {
                Err(RegistryError::Blocked { prefix: prefix.clone(), file: entry.file.clone() })
            }
            found => Ok(found.map(|(_, entry, end)| (entry, end))),
        }
    }

    /// Where a reference is written to: the place that it names, wherever it is read from. The format's mirrors and
    /// locations are for reading only.
    pub(crate) fn own_endpoint(&self, reference: &Reference) -> Result<Endpoint> {
        let insecure = self.entry_of(&reference.to_string())?.is_some_and(|(entry, _)| entry.insecure);
        Ok(endpoint(reference, insecure, false))
    }

    /// The places that serve a reference: its mirrors in order, then its location.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        let name = reference.to_string();
        let Some((entry, end)) = self.entry_of(&name)? else { return Ok(vec![endpoint(reference, false, false)]) };
        let moved = |location: &str| -> Result<Reference> {
            let text = format!("{location}{}", &name[end..]);
            text.parse().map_err(|cause| RegistryError::Place {
                reference: name.clone(),
                location: location.to_owned(),
                cause,
            })
        };
        let wanted = |mirror: &&Mirror| match mirror.pulls {
            Pulls::All => true,
            Pulls::ByDigest => reference.digest().is_some(),
            Pulls::ByTag => reference.digest().is_none(),
        };
        let mut places = Vec::new();
        for mirror in entry.mirrors.iter().filter(wanted) {
            places.push(endpoint(&moved(&mirror.location)?, mirror.insecure, true));
        }
        let own = entry.location.as_deref().map_or_else(|| Ok(reference.clone()), moved)?;
        places.push(endpoint(&own, entry.insecure, false));
        Ok(places)
    }
}

fn endpoint(reference: &Reference, insecure: bool, mirror: bool) -> Endpoint {
    let (host, repository) = (reference.host().to_owned(), reference.repository().to_owned());
    Endpoint { host, repository, insecure, mirror }
}

/// Where in a complete name the part ends that a prefix matches: whole components, or `*.` and the end of the host.
fn match_end(prefix: &str, name: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*') {
        Some(domain) => {
            let (domain, path) = domain.find('/').map_or((domain, ""), |at| domain.split_at(at));
            let (host, rest) = name.split_at(name.find('/')?);
            let fits = host.len() > domain.len() && host.ends_with(domain) && rest.starts_with(path);
            fits.then_some(host.len() + path.len())?
        }
        None => name.starts_with(prefix).then_some(prefix.len())?,
    };
    let rest = &name[end..];
    // Behind a host a colon begins its port, which makes it another one.
    let next: &[char] = if prefix.contains('/') { &['/', ':', '@'] } else { &['/'] };
    (rest.is_empty() || rest.starts_with(next)).then_some(end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    fn conf(texts: &[&str]) -> Result<RegistriesConf> {
        let mut conf = RegistriesConf::default();
        for (number, text) in texts.iter().enumerate() {
            conf.add(&format!("file{number}"), text)?;
        }
        Ok(conf)
    }

    /// Hosts and repositories, with `!` where insecure and `~` for mirrors.
    fn places(conf: &RegistriesConf, reference: &str) -> String {
        let word = |place: &Endpoint| {
            let marks = [(place.mirror, "~"), (place.insecure, "!")];
            let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
            format!("{marks}{}/{}", place.host, place.repository)
        };
        match conf.endpoints(&reference.parse().unwrap()) {
            Ok(places) => places.iter().map(word).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn places_of_references() {
        let text = r#"
            [[registry]]
            prefix = "docker.io"
            location = "cache.local:5000/hub"
            [[registry.mirror]]
            location = "one.local"
            insecure = true
            [[registry.mirror]]
            location = "two.local/x/"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "three.local"
            pull-from-mirror = "tag-only"

            [[registry]]
            prefix = "docker.io/library/bad"
            blocked = true

            [[registry]]
            location = "plain.io"
            insecure = true

            [[registry]]
            prefix = "*.example.com"
            [[registry.mirror]]
            location = "m.io/e"

            [[registry]]
            prefix = "digests.io"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m.io"
        "#;
        let conf = conf(&[text]).unwrap();
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (reference, wanted) in [
            ("quay.io/a/b", "quay.io/a/b"),
            ("alpine", "~!one.local/library/alpine ~three.local/library/alpine cache.local:5000/hub/library/alpine"),
            (&format!("u/app{digest}"), "~!one.local/u/app ~two.local/x/u/app cache.local:5000/hub/u/app"),
            ("bad:1", "registry docker.io/library/bad is blocked in file0"),
            ("badly", "~!one.local/library/badly ~three.local/library/badly cache.local:5000/hub/library/badly"),
            ("plain.io/x", "!plain.io/x"),
            ("plain.io.evil.com/x", "plain.io.evil.com/x"),
            ("a.b.example.com/x/y", "~m.io/e/x/y a.b.example.com/x/y"),
            ("example.com/x", "example.com/x"),
            ("a.example.com.b.example.com/x", "~m.io/e/x a.example.com.b.example.com/x"),
            ("a.example.com.evil.io/x", "a.example.com.evil.io/x"),
            ("plain.io:5000/x", "plain.io:5000/x"),
            ("digests.io/x:1", "digests.io/x"),
            (&format!("digests.io/x{digest}"), "~m.io/x digests.io/x"),
        ] {
            assert_eq!(places(&conf, reference), wanted, "{reference}");
        }
        let own = |reference: &str| conf.own_endpoint(&reference.parse().unwrap());
        let hub = own("alpine").unwrap();
        assert_eq!((hub.host.as_str(), hub.repository.as_str()), ("docker.io", "library/alpine"), "written to itself");
        assert!(
            conf.is_insecure("plain.io") && !conf.is_insecure("plain.io:5000") && !conf.is_insecure("a.example.com")
        );
        assert!(!hub.insecure && own("plain.io/x").unwrap().insecure && own("bad:1").is_err());
    }

    #[test]
    fn later_files_replace_tables_and_add_aliases() {
        let conf = conf(&[
            "unqualified-search-registries = ['a.io', 'b.io/team']\n[aliases]\n'x' = 'q.io/x'\n'y' = 'q.io/y'\n\
             [[registry]]\nprefix = 'p.io'\n[[registry.mirror]]\nlocation = 'm.io'",
            "short-name-mode = 'enforcing'\ncredential-helpers = ['pass']\n[aliases]\n'x' = ''\n\
             [[registry]]\nprefix = 'p.io'\nlocation = 'r.io'",
        ])
        .unwrap();
        assert_eq!(places(&conf, "p.io/x"), "r.io/x");
        assert!(conf.is_enforcing());
        assert_eq!(conf.credential_helpers(), Some(&["pass".to_owned()][..]));
        let names = |text: &str| match conf.candidates(text) {
            Ok(found) => found.iter().map(Reference::to_string).collect::<Vec<_>>().join(" "),
            Err(_) => "wrong".to_owned(),
        };
        for (text, wanted) in [
            ("x:1", "a.io/x:1 b.io/team/x:1"),
            ("y:1", "q.io/y:1"),
            ("docker://y", "q.io/y"),
            ("y/z", "a.io/y/z b.io/team/y/z"),
            ("c.io/x", "c.io/x"),
            ("localhost/x", "localhost/x"),
            ("X", "wrong"),
            ("", "wrong"),
        ] {
            assert_eq!(names(text), wanted, "{text:?}");
        }
        let nothing = RegistriesConf::default();
        assert_eq!(nothing.candidates("x").unwrap()[0].to_string(), "docker.io/library/x");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, wanted) in [
            ("\n\nx = = 1", "file0:3: "),
            ("\nunqualified-search-registries = 'a.io'", "file0:2: "),
            ("unqualified-search-registries = [\n'a.io',\n'nohost']", "file0:3: \"nohost\" names no host"),
            ("[registries.search]\nregistries = ['a.io']", "version 1"),
            ("\n[[registry]]\ninsecure = true", "neither a prefix nor a location"),
            ("[[registry]]\nlocation = 'https://a.io'", "file0:2: \"https://a.io\" must not begin with a scheme"),
            ("[[registry]]\nprefix = '*'\n", "file0:2: "),
            ("[[registry]]\nprefix = 'a.*.io'\n", "file0:2: "),
            ("[[registry]]\nprefix = 'a.io'\n[[registry.mirror]]\ninsecure = true", "this mirror has no location"),
            (
                "[[registry]]\nprefix = 'a.io'\n[[registry.mirror]]\nlocation = 'b.io'\npull-from-mirror = 'x'",
                "file0:5: pull-from-mirror is \"x\"",
            ),
            ("[[registry]]\nlocation = 'a.io'\n[[registry]]\nlocation = 'a.io'", "is here twice"),
            ("short-name-mode = 'ask'", "file0:1: short-name-mode is \"ask\""),
            ("[aliases]\nx = 'y'", "file0:2: \"y\" names no host"),
            ("[aliases]\nx = 'a.io/y:1'", "neither tag nor digest"),
            ("[aliases]\n'a.io/x' = 'a.io/y'", "is no short name"),
        ] {
            let said = conf(&[text]).unwrap_err().to_string();
            assert!(said.contains(wanted), "{text:?}: {said}");
        }
        assert!(conf(&["", "# nothing", "unknown = 1\n[other]\nx = 2"]).is_ok());
    }
}
