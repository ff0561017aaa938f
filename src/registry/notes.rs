//! What registries say beside their answers: warnings, and how much may still be fetched. Kept until the caller takes it,
//! each line once.

use std::collections::HashSet;
use std::sync::Mutex;

use ureq::http::HeaderMap;

use crate::challenge::quoted_string;
use crate::locked;

/// The longest line that is shown.
const LINE_MAX: usize = 300;
/// The most lines that are kept: a registry may send another one with every answer.
const LINES_MAX: usize = 20;
/// How little of what is allowed may be left before it is told: one part of so many.
const LITTLE: u64 = 10;

/// Lines for the user.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    waiting: Vec<String>,
    /// By what they must not be told twice.
    told: HashSet<String>,
}

impl Notes {
    /// Keeps a line, unless one of this key was kept before.
    pub(crate) fn add(&self, key: String, line: &str) {
        let mut kept = locked(&self.0);
        if kept.told.len() < LINES_MAX && kept.told.insert(key) {
            kept.waiting.push(printable(line));
        }
    }

    /// What was not taken yet.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.0).waiting)
    }

    /// Heeds the headers of an answer with this status.
    pub(crate) fn hear(&self, host: &str, status: u16, headers: &HeaderMap) {
        let warnings = headers.get_all("warning").iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        for text in warnings.filter_map(|value| warning(&value)) {
            let line = format!("{host} warns: {text}");
            self.add(line.clone(), &line);
        }
        let number = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).and_then(quota);
        let Some((left, window_s)) = number("ratelimit-remaining") else { return };
        let limit = number("ratelimit-limit");
        let is_little = limit.is_some_and(|(limit, _)| left.saturating_mul(LITTLE) <= limit);
        if is_little || status == 429 {
            let of = limit.map(|(limit, _)| format!(" of {limit}")).unwrap_or_default();
            let per = window_s.or(limit.and_then(|(_, window_s)| window_s)).map(period).unwrap_or_default();
            self.add(format!("quota of {host}"), &format!("{host} lets us fetch {left}{of} more images{per}"));
        }
    }
}

/// The text of a `Warning` header that is for people: `299 - "text"` (distribution specification, "Warnings").
fn warning(value: &str) -> Option<String> {
    let quoted = value.trim().strip_prefix("299 ")?.trim_start().split_once(' ')?.1.trim_start().strip_prefix('"')?;
    let (text, _) = quoted_string(quoted);
    (!text.is_empty()).then_some(text)
}

/// `100;w=21600`: a number and the seconds it is for.
fn quota(value: &str) -> Option<(u64, Option<u64>)> {
    let mut parts = value.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    Some((number, parts.find_map(|part| part.strip_prefix("w=")?.parse().ok())))
}

fn period(seconds: u64) -> String {
    match seconds {
        3600 => " in an hour".to_owned(),
        _ if seconds.is_multiple_of(3600) => format!(" in {} hours", seconds / 3600),
        _ => format!(" in {seconds} s"),
    }
}

/// Without what would be a terminal's command, and not too long.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "headers of the tests are well formed")]
mod tests {
    use super::*;

    fn heard(status: u16, headers: &[(&'static str, &str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let notes = Notes::default();
        notes.hear("reg", status, &map);
        notes.hear("reg", status, &map);
        notes.take()
    }

    #[test]
    fn warnings_are_told_once() {
        for (value, line) in [
            (r#"299 - "goes away soon""#, Some("reg warns: goes away soon")),
            (r#"299 proxy:80 "say \"hi\"" "date""#, Some(r#"reg warns: say "hi""#)),
            (r#"199 - "not for people""#, None),
            ("299 -", None),
            ("299", None),
            ("299 - \"\"", None),
        ] {
            assert_eq!(heard(200, &[("warning", value)]), line.into_iter().collect::<Vec<_>>(), "{value}");
        }
        assert_eq!(printable("a\u{1b}[31mb\u{7}\u{9b}c"), "a[31mbc");
        let notes = Notes::default();
        (0..100).for_each(|number: u32| notes.add(number.to_string(), "x"));
        assert_eq!(notes.take().len(), LINES_MAX);
    }

    #[test]
    fn a_quota_is_told_when_little_is_left() {
        let (limit, few) = (("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "10;w=21600"));
        let line = "reg lets us fetch 10 of 100 more images in 6 hours";
        for (status, headers, told) in [
            (200, vec![limit, few], Some(line)),
            (200, vec![limit, ("ratelimit-remaining", "11;w=21600")], None),
            (429, vec![few], Some("reg lets us fetch 10 more images in 6 hours")),
            (429, vec![("ratelimit-remaining", "0")], Some("reg lets us fetch 0 more images")),
            (200, vec![few], None),
            (200, vec![limit, ("ratelimit-remaining", "-1")], None),
            (200, vec![limit], None),
        ] {
            assert_eq!(heard(status, &headers), told.into_iter().collect::<Vec<_>>(), "{headers:?}");
        }
    }
}
