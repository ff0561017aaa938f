//! `--filter` of `images`: which images are listed.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use base::time::parse_moment;
use base::{Kind, Report};
use oci::{Digest, Pattern};
use store::{ImageRecord, Store};

use crate::Engine;
use crate::image::find_record;
use crate::image::list::created_of;
use crate::image::sweep::used;
use crate::system::filter::{Label, no_filter};

/// Which images are meant; an empty one means all. Values of `reference` are alternatives, all else must hold.
#[derive(Clone, Debug, Default)]
pub struct ImageFilter {
    /// Whether they have no name.
    dangling: Option<bool>,
    /// Whether containers stand on them.
    containers: Option<bool>,
    /// Whether they lie in a store that is only read.
    read_only: Option<bool>,
    labels: Vec<Label>,
    references: Vec<Pattern>,
    /// Only what was created before.
    until: Option<SystemTime>,
    /// Images than which they must be older, and such than which they must be newer.
    before: Vec<String>,
    since: Vec<String>,
}

impl ImageFilter {
    /// Reads Docker's `dangling=BOOL`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`, `before=IMAGE`, `since=IMAGE`, `until=MOMENT` and
    /// `reference=PATTERN`, and Podman's `containers=BOOL` and `readonly=BOOL`.
    pub fn parse(texts: &[String], now: SystemTime) -> Result<Self, Report> {
        let mut filter = ImageFilter::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| no_filter(text))?;
            match key {
                "dangling" => filter.dangling = Some(truth(text, value)?),
                "containers" => filter.containers = Some(truth(text, value)?),
                "readonly" => filter.read_only = Some(truth(text, value)?),
                "label" | "label!" => filter.labels.push(Label::parse(key, value)),
                "reference" => filter.references.push(Pattern::parse(value)?),
                "until" => filter.until = Some(parse_moment(value, now)?),
                "before" => filter.before.push(value.to_owned()),
                "since" => filter.since.push(value.to_owned()),
                other => {
                    let keys = "the keys are before, containers, dangling, label, label!, readonly, reference, since and until";
                    return Err(Report::new(Kind::Usage, format!("invalid filter '{other}'")).with_hint(keys));
                }
            }
        }
        Ok(filter)
    }

    /// Adds a name that may be a pattern: one more alternative.
    pub fn or_named(&mut self, pattern: &str) -> Result<(), Report> {
        self.references.push(Pattern::parse(pattern)?);
        Ok(())
    }
}

/// The words for true and false that Docker takes here.
fn truth(text: &str, value: &str) -> Result<bool, Report> {
    match value {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(Report::new(Kind::Usage, format!("invalid filter '{text}'")).with_hint("it is true or false")),
    }
}

/// A filter with what it means in a store.
pub(super) struct Sieve<'f> {
    filter: &'f ImageFilter,
    store: &'f Store,
    /// The images on which containers stand, where that is asked.
    used: HashSet<Digest>,
    /// The moments between which an image must have been created.
    after: Option<SystemTime>,
    before: Option<SystemTime>,
}

impl<'f> Sieve<'f> {
    pub fn of(filter: &'f ImageFilter, engine: &Engine, store: &'f Store) -> Result<Self, Report> {
        let created = |text: &String| {
            let missing = || Report::new(Kind::NotFound, format!("No such image: {text}"));
            let record = find_record(engine, store, text)?.ok_or_else(missing)?;
            // One of which that is unknown is neither older nor newer than any.
            let unknown = || Report::new(Kind::NotFound, format!("image {text} does not say when it was created"));
            created_of(store, &record)?.ok_or_else(unknown)
        };
        let before = filter.before.iter().map(created).collect::<Result<Vec<_>, _>>()?;
        let since = filter.since.iter().map(created).collect::<Result<Vec<_>, _>>()?;
        Ok(Sieve {
            filter,
            store,
            used: if filter.containers.is_some() { used(engine)? } else { HashSet::new() },
            after: since.into_iter().max(),
            before: before.into_iter().chain(filter.until).min(),
        })
    }

    /// Whether an image can be meant by what its record says.
    pub fn passes(&self, record: &ImageRecord) -> Result<bool, Report> {
        let ImageFilter { dangling, containers, read_only, references, .. } = self.filter;
        let is_named = |pattern: &Pattern| {
            let reference = &record.reference;
            !record.is_unnamed() && (pattern.fits(reference) || pattern.fits(&reference.at(record.digest)))
        };
        if dangling.is_some_and(|wanted| wanted != record.is_unnamed())
            || containers.is_some_and(|wanted| wanted != self.used.contains(&record.config))
            || !(references.is_empty() || references.iter().any(is_named))
        {
            return Ok(false);
        }
        match read_only {
            Some(wanted) => Ok(*wanted == self.store.is_below(&record.reference)?),
            None => Ok(true),
        }
    }

    /// Whether labels are asked for.
    pub fn wants_labels(&self) -> bool {
        !self.filter.labels.is_empty()
    }

    /// Whether an image is meant that was created then, if it says, and has these labels.
    pub fn passes_created(&self, created: Option<SystemTime>, labels: &BTreeMap<String, String>) -> bool {
        self.after.is_none_or(|after| created.is_some_and(|created| created > after))
            && self.before.is_none_or(|before| created.is_some_and(|created| created < before))
            && self.filter.labels.iter().all(|label| label.holds(labels))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_filter_is_refused() {
        let parse = |text: &str| ImageFilter::parse(&[text.to_owned()], SystemTime::now());
        for good in
            ["dangling=true", "dangling=0", "label=a=b=c", "label!=a", "reference=a/*:1", "until=10m", "since=x"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (wrong, word) in [
            ("dangling", "invalid filter 'dangling'"),
            ("dangling=x", "invalid filter 'dangling=x'"),
            ("no=1", "invalid filter 'no'"),
            ("reference=[", "syntax error in pattern '['"),
            ("until=soon", "soon"),
        ] {
            let said = parse(wrong).unwrap_err().to_string();
            assert!(said.contains(word), "{wrong}: {said}");
        }
    }
}
