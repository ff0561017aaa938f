//! Which events are wanted: Docker's filters. Of one key one value has to fit, of several keys all.

use std::collections::BTreeMap;

use base::{Kind, Report};

use crate::events::{Event, Subject};

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    values: BTreeMap<String, Vec<String>>,
}

impl Filter {
    /// Reads `KEY=VALUE` texts.
    pub fn parse(texts: &[String]) -> Result<Self, Report> {
        const KEYS: [&str; 14] = [
            "config",
            "container",
            "daemon",
            "event",
            "image",
            "label",
            "network",
            "node",
            "plugin",
            "scope",
            "secret",
            "service",
            "type",
            "volume",
        ];
        let wrong = |text: String| Report::new(Kind::Usage, text);
        let mut filter = Filter::default();
        for text in texts {
            let bad = || {
                wrong(format!(
                    "invalid argument {text:?} for \"-f, --filter\" flag: bad format of filter (expected name=value)"
                ))
            };
            let (key, value) = text.split_once('=').ok_or_else(bad)?;
            let key = key.trim().to_ascii_lowercase();
            if !KEYS.contains(&key.as_str()) {
                return Err(wrong(format!("invalid filter '{key}'")));
            }
            filter.values.entry(key).or_default().push(value.trim().to_owned());
        }
        Ok(filter)
    }

    /// Whether it is wanted.
    pub fn takes(&self, event: &Event) -> bool {
        self.values.iter().all(|(key, values)| values.iter().any(|value| fits(key, value, event)))
    }
}

fn fits(key: &str, value: &str, event: &Event) -> bool {
    let attribute = |name: &str| event.actor.attributes.get(name).map(String::as_str);
    let is = |kind: Subject| event.kind == kind;
    // Names that are a whole, or what an id begins with.
    let names = |own: &str| own == value || !value.is_empty() && own.starts_with(value);
    match key {
        "type" => event.kind.as_str() == value,
        // `health_status` stands for each of its words.
        "event" => event.action == value || event.action.split(": ").next() == Some(value),
        "scope" => event.scope == value,
        "container" => is(Subject::Container) && (names(&event.actor.id) || attribute("name") == Some(value)),
        "volume" => is(Subject::Volume) && names(&event.actor.id),
        "network" => is(Subject::Network) && (names(&event.actor.id) || attribute("name") == Some(value)),
        "image" => {
            let name = attribute(if is(Subject::Image) { "name" } else { "image" }).unwrap_or_default();
            is(Subject::Image) && names(&event.actor.id) || name == value || without_tag(name) == value
        }
        "label" => match value.split_once('=') {
            Some((name, wanted)) => attribute(name) == Some(wanted),
            None => attribute(value).is_some(),
        },
        // There is none of these.
        _ => false,
    }
}

/// A name of an image without its tag: what stands after a colon that no slash follows.
fn without_tag(name: &str) -> &str {
    name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(name, _)| name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;
    use crate::events::Actor;

    #[test]
    fn values_of_a_key_are_choices_and_keys_are_conditions() {
        let attributes = [("name", "web"), ("image", "example.com/a:1"), ("tier", "front")];
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let event = Event {
            kind: Subject::Container,
            action: "health_status: healthy".to_owned(),
            actor: Actor { id: "abcdef".to_owned(), attributes },
            scope: "local".to_owned(),
            time_s: 0,
            time_ns: 0,
        };
        let takes = |texts: &[&str]| {
            Filter::parse(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap().takes(&event)
        };
        for wanted in [
            &["type=container"][..],
            &["container=web"],
            &["container=abc"],
            &["event=health_status"],
            &["event=health_status: healthy"],
            &["event=start", "event=health_status", "type=container"],
            &["image=example.com/a"],
            &["image=example.com/a:1"],
            &["label=tier"],
            &["label=tier=front"],
            &["scope=local"],
            &[],
        ] {
            assert!(takes(wanted), "{wanted:?}");
        }
        for other in [
            &["type=image"][..],
            &["container=we"],
            &["container="],
            &["event=healthy"],
            &["event=start", "type=container"],
            &["image=a"],
            &["label=tier=back"],
            &["network=x"],
        ] {
            assert!(!takes(other), "{other:?}");
        }
        assert!(Filter::parse(&["odd=1".to_owned()]).is_err() && Filter::parse(&["type".to_owned()]).is_err());
    }
}
