//! Finding repositories: docker.io has an interface of its own for it, other registries can list their names.

use oci::reference::DEFAULT_HOST;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use ureq::http::Method;

use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::paging::pages;
use crate::referrers::encoded;
use crate::scope::Scopes;
use crate::transport::Request;
use crate::{Registry, Result};

/// Where docker.io is searched.
const DOCKER_SEARCH: &str = "https://index.docker.io/v1/search";
/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 4 << 20;
/// The most pages of names that are read: a hundred thousand names, where a registry gives as many at once as it is asked for.
const PAGES_MAX: usize = 100;
/// How many names a registry is asked for at once.
const PAGE: usize = 1000;

/// One repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Found {
    /// Its name, without the host on docker.io.
    pub name: String,
    /// What its owner says of it.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// How many like it.
    #[serde(default, rename = "star_count", deserialize_with = "or_default")]
    pub stars: u64,
    /// Whether it is one of docker.io's own.
    #[serde(default, rename = "is_official", deserialize_with = "or_default")]
    pub official: bool,
}

/// A value of another kind, or none, says nothing: it is no reason to show nothing at all.
fn or_default<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(from: D) -> std::result::Result<T, D::Error> {
    serde_json::Value::deserialize(from).map(|value| serde_json::from_value(value).unwrap_or_default())
}

#[derive(Deserialize)]
struct HubAnswer {
    #[serde(default)]
    results: Vec<Found>,
}

#[derive(Deserialize)]
struct Catalog {
    /// Go writes an empty list as null.
    repositories: Option<Vec<String>>,
}

impl Registry {
    /// The repositories of a registry whose names have `term` in them, `limit` at most; on docker.io what it thinks fits.
    pub fn search(&self, host: &str, term: &str, limit: usize) -> Result<Vec<Found>> {
        let mut found = if host == DEFAULT_HOST { self.hub(term, limit)? } else { self.catalog(host, term, limit)? };
        found.truncate(limit);
        for one in &mut found {
            // Control characters would be the terminal's.
            one.name.retain(|c| !c.is_control());
            one.description = one.description.replace(|c: char| c.is_control(), " ");
        }
        Ok(found)
    }

    fn hub(&self, term: &str, limit: usize) -> Result<Vec<Found>> {
        let place = Endpoint::registry(DEFAULT_HOST);
        let url = format!("{DOCKER_SEARCH}?q={}&n={limit}", encoded(term));
        let request = Request::new(Method::GET, &place, url, Scopes::default());
        let (_, body) = self.transport.read(&request, ANSWER_MAX)?;
        let answer: HubAnswer = serde_json::from_slice(&body).map_err(malformed)?;
        Ok(answer.results)
    }

    fn catalog(&self, host: &str, term: &str, limit: usize) -> Result<Vec<Found>> {
        let insecure = self.transport.settings.registries.is_insecure(host);
        let place = Endpoint { insecure, ..Endpoint::registry(host) };
        let request = Request::new(Method::GET, &place, format!("/v2/_catalog?n={PAGE}"), Scopes::catalog());
        let mut found = Vec::new();
        let listed = pages(&self.transport, &request, ANSWER_MAX, PAGES_MAX, |page| {
            let catalog: Catalog = serde_json::from_slice(&page.body).map_err(malformed)?;
            let fitting = catalog.repositories.unwrap_or_default().into_iter().filter(|name| name.contains(term));
            found.extend(fitting.map(|name| Found { name: format!("{host}/{name}"), ..Found::default() }));
            Ok(found.len() < limit)
        });
        match listed {
            Ok(whole) => {
                if !whole {
                    let line = format!("{host} has more names than the {PAGES_MAX} pages that were searched");
                    self.transport.notes.add("pages".to_owned(), &line);
                }
                Ok(found)
            }
            // The words for a log-in that failed: here nobody may have logged in.
            Err(RegistryError::Login { host, message, trouble }) => {
                Err(RegistryError::Denied { name: host, message, trouble })
            }
            Err(error) => Err(error),
        }
    }
}

fn malformed(cause: serde_json::Error) -> RegistryError {
    oci::DocumentError::Json { cause }.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn odd_values_do_not_hide_what_was_found() {
        for text in [
            r#"{"name":"a"}"#,
            r#"{"name":"a","description":null,"star_count":-1,"is_official":"yes"}"#,
            r#"{"name":"a","description":[],"star_count":1e99,"is_official":null}"#,
        ] {
            let found: Found = serde_json::from_str(text).unwrap();
            assert_eq!(found, Found { name: "a".to_owned(), ..Found::default() }, "{text}");
        }
    }
}
