//! Patterns of names, by the rules of Go's `path.Match`, which Docker's users know: `*` and `?` stand for what has no slash,
//! `[a-z]` and `[^a-z]` for one character, and a backslash takes the meaning of the next one away.

use std::iter::Peekable;
use std::str::Chars;

use base::{Explain, Kind};

use crate::reference::Reference;

/// The longest pattern that is read, in bytes.
const PATTERN_MAX: usize = 4096;

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error)]
#[error("syntax error in pattern '{text}'")]
pub struct PatternError {
    /// The text.
    pub text: String,
}

impl Explain for PatternError {
    fn kind(&self) -> Kind {
        Kind::NotFound
    }

    fn hint(&self) -> Option<String> {
        Some("a pattern has *, ?, [a-z] and [^a-z]; a backslash before one of them takes its meaning away".to_owned())
    }
}

/// A pattern of names.
#[derive(Clone, Debug)]
pub struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Character(char),
    /// `?`.
    Any,
    /// `*`.
    Many,
    /// Ranges, both ends included, and whether it is all but these.
    Class(Vec<(char, char)>, bool),
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let parts = (text.len() <= PATTERN_MAX).then(|| parts(text)).flatten();
        parts.map(|parts| Pattern { parts }).ok_or_else(|| PatternError { text: text.to_owned() })
    }

    /// Whether a reference fits: its name, or its name with tag or digest, as users write it or in full.
    pub fn fits(&self, reference: &Reference) -> bool {
        let texts = [reference.familiar_name(), reference.familiar(), reference.name(), reference.to_string()];
        texts.iter().any(|text| self.is_match(text))
    }

    /// Whether the whole of a text fits.
    fn is_match(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut part, mut at) = (0, 0);
        // Where to go on when something does not fit: behind the last `*`, which then stands for one character more.
        let mut again: Option<(usize, usize)> = None;
        loop {
            let fits = match (self.parts.get(part), text.get(at)) {
                (None, None) => return true,
                (Some(Part::Many), _) => {
                    again = Some((part + 1, at));
                    part += 1;
                    continue;
                }
                (Some(one), Some(character)) => one.is_match(*character),
                _ => false,
            };
            if fits {
                (part, at) = (part + 1, at + 1);
                continue;
            }
            match again {
                Some((behind, from)) if text.get(from).is_some_and(|character| *character != '/') => {
                    (part, at) = (behind, from + 1);
                    again = Some((part, at));
                }
                _ => return false,
            }
        }
    }
}

impl Part {
    fn is_match(&self, character: char) -> bool {
        match self {
            Part::Character(wanted) => *wanted == character,
            Part::Any | Part::Many => character != '/',
            Part::Class(ranges, negated) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&character)) != *negated
            }
        }
    }
}

fn parts(text: &str) -> Option<Vec<Part>> {
    let mut rest = text.chars().peekable();
    let mut parts = Vec::new();
    while let Some(character) = rest.next() {
        parts.push(match character {
            '*' => Part::Many,
            '?' => Part::Any,
            '[' => class(&mut rest)?,
            '\\' => Part::Character(rest.next()?),
            character => Part::Character(character),
        });
    }
    Some(parts)
}

/// What is behind a `[`.
fn class(rest: &mut Peekable<Chars<'_>>) -> Option<Part> {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
        let low = end(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { end(rest)? } else { low };
        ranges.push((low, high));
    }
    Some(Part::Class(ranges, negated))
}

/// One end of a range.
fn end(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        character => Some(character),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    /// The table of Go's own test of `path.Match`, without its cases of bytes that are no text.
    #[test]
    fn patterns_mean_what_go_says() {
        for (pattern, text, fits) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("[\\-x]", "a", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().is_match(text), fits, "{pattern} {text}");
        }
        for wrong in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a\\", &"*".repeat(5000)] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = Pattern::parse(&"*a".repeat(2000)).unwrap();
        assert!(!pattern.is_match(&"a".repeat(1900)) && pattern.is_match(&"a".repeat(2100)));
    }

    #[test]
    fn a_reference_fits_with_and_without_its_tag() {
        let fits = |pattern: &str, text: &str| Pattern::parse(pattern).unwrap().fits(&text.parse().unwrap());
        for pattern in ["debian", "deb*", "debian:12", "*:12", "docker.io/library/debian", "docker.io/*/debian:1?"] {
            assert!(fits(pattern, "debian:12"), "{pattern}");
        }
        assert!(!fits("*", "quay.io/a/b:1") && fits("*/*/b", "quay.io/a/b:1") && !fits("debian:11", "debian:12"));
    }
}
