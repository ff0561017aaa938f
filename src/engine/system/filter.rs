//! `--filter` of the commands that prune: age and labels. Other commands' filters know labels too.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base::time::parse_moment;
use base::{Kind, Report};

/// Which things a prune is about; an empty one is about all.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Only what was created before.
    until: Option<SystemTime>,
    /// Labels that must be there, or must not.
    labels: Vec<Label>,
}

/// A label that must be there, or must not.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    wanted: bool,
    key: String,
    value: Option<String>,
}

impl Label {
    /// Reads the `KEY[=VALUE]` behind the key `label` or `label!` of a filter.
    pub fn parse(key: &str, text: &str) -> Self {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        Label { wanted: key == "label", key: name.to_owned(), value }
    }

    /// Whether something with these labels is meant.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|wanted| wanted == found)) == self.wanted
    }
}

/// Why a text is no filter.
pub(crate) fn no_filter(text: &str) -> Report {
    Report::new(Kind::Usage, format!("invalid filter '{text}': it must be KEY=VALUE"))
}

impl PruneFilter {
    /// Reads `until=MOMENT`, `label=KEY[=VALUE]` and `label!=KEY[=VALUE]`; all must hold.
    pub fn parse(texts: &[String], now: SystemTime) -> Result<Self, Report> {
        let mut filter = PruneFilter::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| no_filter(text))?;
            match key {
                "until" => filter.until = Some(parse_moment(value, now)?),
                "label" | "label!" => filter.labels.push(Label::parse(key, value)),
                other => {
                    let report = Report::new(Kind::Usage, format!("invalid filter '{other}'"));
                    return Err(report.with_hint("the keys are until, label and label!"));
                }
            }
        }
        Ok(filter)
    }

    /// Whether it is about everything.
    pub fn is_empty(&self) -> bool {
        self.until.is_none() && self.labels.is_empty()
    }

    /// Whether it is about something that was created then (`None` is unknown, which is never old enough) with these
    /// labels.
    pub fn matches(&self, created: Option<SystemTime>, labels: &BTreeMap<String, String>) -> bool {
        let old = self.until.is_none_or(|until| created.is_some_and(|created| created < until));
        old && self.labels.iter().all(|label| label.holds(labels))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;
    use std::time::Duration;

    fn matches(texts: &[&str], created_ago_s: u64) -> bool {
        let now = SystemTime::now();
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        let labels = BTreeMap::from([("tier".to_owned(), "web=1".to_owned())]);
        PruneFilter::parse(&texts, now).unwrap().matches(Some(now - Duration::from_secs(created_ago_s)), &labels)
    }

    #[test]
    fn all_conditions_must_hold() {
        assert!(matches(&[], 0) && matches(&["until=1h"], 7200) && !matches(&["until=1h"], 60));
        assert!(matches(&["label=tier"], 0) && matches(&["label=tier=web=1"], 0) && !matches(&["label=tier=db"], 0));
        assert!(!matches(&["label!=tier"], 0) && matches(&["label!=tier=db"], 0) && matches(&["label!=none"], 0));
        assert!(!matches(&["label=tier", "until=1h"], 60));
        let unknown = PruneFilter::parse(&["until=1h".to_owned()], SystemTime::now()).unwrap();
        assert!(!unknown.matches(None, &BTreeMap::new()));
        for wrong in ["nope=1", "until", "until=soon"] {
            assert!(PruneFilter::parse(&[wrong.to_owned()], SystemTime::now()).is_err(), "{wrong}");
        }
    }
}
