//! `ps --filter`: Docker's keys over what the engine lists.

use std::ops::RangeInclusive;
use std::time::SystemTime;

use base::{Kind, Report};
use engine::container::list::Summary;
use engine::{Engine, container, image};
use oci::Digest;
use regex::Regex;

/// Docker's keys, but for those of swarms.
const KEYS: &str =
    "ancestor, before, exited, expose, health, id, label, name, network, publish, since, status and volume";

/// Which containers are shown: values of one key are alternatives, but labels must all be there.
#[derive(Default)]
pub struct ContainerFilters {
    id: Vec<String>,
    name: Vec<Regex>,
    status: Vec<String>,
    health: Vec<String>,
    label: Vec<(String, Option<String>)>,
    exited: Vec<i32>,
    volume: Vec<String>,
    network: Vec<String>,
    publish: Vec<Ports>,
    expose: Vec<Ports>,
    ancestor: Vec<String>,
    before: Vec<String>,
    since: Vec<String>,
}

/// `80`, `80/udp`, `8000-8080/tcp`.
struct Ports {
    numbers: RangeInclusive<u16>,
    protocol: String,
}

/// The same with everything looked up that needs the engine.
pub struct Sieve {
    filters: ContainerFilters,
    ancestors: Vec<Ancestor>,
    created_before: Vec<SystemTime>,
    created_since: Vec<SystemTime>,
}

/// An image that containers may stand on.
struct Ancestor {
    id: Digest,
    layers: Vec<Digest>,
}

impl ContainerFilters {
    /// Reads each `KEY=VALUE`.
    pub fn parse(texts: &[String]) -> Result<Self, Report> {
        const VERDICTS: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];
        const STATES: [&str; 7] = ["created", "running", "exited", "paused", "restarting", "removing", "dead"];
        let mut filters = ContainerFilters::default();
        for text in texts {
            let bad = |why: String| Report::new(Kind::NotFound, why);
            let (key, value) =
                text.split_once('=').ok_or_else(|| bad(format!("invalid filter '{text}': it must be KEY=VALUE")))?;
            let wrong = || bad(format!("invalid filter '{key}={value}'"));
            match key {
                "id" => filters.id.push(value.to_owned()),
                "name" => filters.name.push(Regex::new(value).map_err(|_| wrong())?),
                "status" if STATES.contains(&value) => filters.status.push(value.to_owned()),
                "health" if VERDICTS.contains(&value) => filters.health.push(value.to_owned()),
                "exited" => filters.exited.push(value.parse().map_err(|_| wrong())?),
                "volume" => filters.volume.push(value.to_owned()),
                "network" => filters.network.push(value.to_owned()),
                "publish" => filters.publish.push(Ports::parse(value).ok_or_else(wrong)?),
                "expose" => filters.expose.push(Ports::parse(value).ok_or_else(wrong)?),
                "ancestor" => filters.ancestor.push(value.to_owned()),
                "before" => filters.before.push(value.to_owned()),
                "since" => filters.since.push(value.to_owned()),
                "label" => match value.split_once('=') {
                    Some((key, value)) => filters.label.push((key.to_owned(), Some(value.to_owned()))),
                    None => filters.label.push((value.to_owned(), None)),
                },
                "status" | "health" => return Err(wrong()),
                _ => return Err(bad(format!("invalid filter '{key}'")).with_hint(format!("the keys are {KEYS}"))),
            }
        }
        Ok(filters)
    }

    /// Whether containers are asked for by their state, of which those that run are one.
    pub fn names_states(&self) -> bool {
        !self.status.is_empty()
    }

    /// Looks up what the filters name. A container that is not there is an error, as in Docker; an image that is not here has no
    /// containers.
    pub fn look_up(self, engine: &Engine, listed: &[Summary]) -> Result<Sieve, Report> {
        let moments = |names: &[String]| -> Result<Vec<SystemTime>, Report> {
            let moment = |name: &String| {
                let id = container::find(engine, name)?;
                let found = listed.iter().find(|summary| summary.id == id);
                found.map(|summary| summary.created).ok_or_else(|| container::lookup::missing(name))
            };
            names.iter().map(moment).collect()
        };
        let (created_before, created_since) = (moments(&self.before)?, moments(&self.since)?);
        let mut ancestors = Vec::new();
        for name in &self.ancestor {
            match image::find(engine, name) {
                Ok(image) => ancestors.push(Ancestor {
                    id: image.config.digest,
                    layers: image.config.diff_ids.iter().map(|layer| layer.0).collect(),
                }),
                Err(report) if matches!(report.kind(), Kind::NotFound | Kind::Usage) => {}
                Err(report) => return Err(report),
            }
        }
        Ok(Sieve { filters: self, ancestors, created_before, created_since })
    }
}

impl Sieve {
    /// Whether a container is shown.
    pub fn passes(&self, container: &Summary) -> bool {
        let filters = &self.filters;
        // Docker's names have a slash in front, and a pattern may say so.
        let full_name = format!("/{}", container.name);
        any(&filters.id, |id| container.id.as_str().starts_with(id.as_str()))
            && any(&filters.name, |name| name.is_match(&full_name) || name.is_match(&container.name))
            && any(&filters.status, |status| container.state == status)
            && any(&filters.health, |health| container.health == health)
            && any(&filters.exited, |code| container.exit_code == Some(*code))
            && any(&filters.volume, |volume| {
                container.mounts.contains(volume) || container.destinations.contains(volume)
            })
            && any(&filters.network, |network| container.network.split(',').any(|name| name == network))
            && any(&filters.publish, |ports| container.bound.iter().any(|port| ports.have(port)))
            && any(&filters.expose, |ports| container.listens.iter().any(|port| ports.have(port)))
            && (filters.ancestor.is_empty() || self.ancestors.iter().any(|image| image.is_below(container)))
            && self.created_before.iter().all(|moment| container.created < *moment)
            && self.created_since.iter().all(|moment| container.created > *moment)
            && filters.label.iter().all(|(key, wanted)| {
                container.labels.get(key).is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
            })
    }
}

fn any<T>(list: &[T], test: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(test)
}

impl Ancestor {
    /// Whether a container is of this image, or of one that was made on top of it.
    fn is_below(&self, container: &Summary) -> bool {
        container.image_id == Some(self.id) || !self.layers.is_empty() && container.layers.starts_with(&self.layers)
    }
}

impl Ports {
    fn parse(text: &str) -> Option<Self> {
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let numbers = first.parse().ok()?..=last.parse().ok()?;
        (!numbers.is_empty()).then(|| Ports { numbers, protocol: protocol.to_owned() })
    }

    fn have(&self, port: &str) -> bool {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        protocol == self.protocol && number.parse().is_ok_and(|number: u16| self.numbers.contains(&number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_good(text: &str) -> bool {
        ContainerFilters::parse(&[text.to_owned()]).is_ok()
    }

    #[test]
    fn keys_and_values_are_checked() {
        for good in
            ["name=^/?web$", "exited=0", "publish=80", "publish=80-90/udp", "label=a", "status=dead", "health=none"]
        {
            assert!(is_good(good), "{good}");
        }
        for bad in ["nope=1", "id", "name=(", "exited=x", "publish=x", "expose=90-80", "status=gone", "health=fine"] {
            assert!(!is_good(bad), "{bad}");
        }
    }

    #[test]
    fn ports_are_numbers_and_a_protocol() {
        let have = |text: &str, port: &str| Ports::parse(text).is_some_and(|ports| ports.have(port));
        assert!(have("80", "80/tcp") && have("80-82/udp", "81/udp"));
        assert!(!have("80", "80/udp") && !have("80-82", "83/tcp"));
    }
}
