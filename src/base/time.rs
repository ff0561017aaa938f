//! Moments as RFC 3339 text, and spans of time in the words of Docker's tables.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::report::{Explain, Kind};

/// How a moment that never was is written (Go's zero time).
pub const NEVER: &str = "0001-01-01T00:00:00Z";

const DAY_S: u64 = 86_400;

/// A calendar moment in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u64,
    day: u64,
    second_of_day: u64,
    nanos: u32,
}

/// A moment as RFC 3339 in UTC with nine digits of nanoseconds: `2026-11-24T01:02:03.000000004Z`.
pub fn rfc3339(moment: SystemTime) -> String {
    let Civil { year, month, day, second_of_day: s, nanos } = civil(moment);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z", s / 3600, s / 60 % 60, s % 60)
}

/// A moment as Go's `time.Time` prints itself, to the second: `2026-11-24 01:02:03 +0000 UTC`.
pub fn go_text(moment: SystemTime) -> String {
    let Civil { year, month, day, second_of_day: s, .. } = civil(moment);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} +0000 UTC", s / 3600, s / 60 % 60, s % 60)
}

/// Reads RFC 3339, with an offset or `Z`, and with any number of digits after the second.
pub fn parse_rfc3339(text: &str) -> Result<SystemTime, TimeError> {
    let wrong = || TimeError { text: text.to_owned() };
    parse_parts(text).ok_or_else(wrong)
}

/// Reads what `--since` takes: RFC 3339, a date, seconds since the epoch with a fraction, or a span before `now`
/// in Go's words (`10m`, `1h30m`).
pub fn parse_moment(text: &str, now: SystemTime) -> Result<SystemTime, TimeError> {
    if let Some(span) = parse_span(text).filter(|_| text != "0") {
        return Ok(now.checked_sub(span).unwrap_or(UNIX_EPOCH));
    }
    if let Some(moment) = parse_epoch(text) {
        return Ok(moment);
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 if text.is_ascii() => format!("{text}:00Z"),
        19 if text.is_ascii() => format!("{text}Z"),
        _ => text.to_owned(),
    };
    parse_parts(&full).ok_or_else(|| TimeError { text: text.to_owned() })
}

/// A span in Docker's words, which tools match: `Less than a second`, `About a minute`, `3 weeks`.
pub fn human_span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, (span.as_secs_f64() / 3600.0).round() as u64);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A span as Go's `time.Duration` prints itself: `1m30s`, `1.5s`, `500ms`.
pub fn go_span(span: Duration) -> String {
    let fraction = |amount: u128, unit: u128| {
        let digits = format!("{:09}", amount % unit * (1_000_000_000 / unit));
        let digits = digits.trim_end_matches('0');
        format!("{}{}{digits}", amount / unit, if digits.is_empty() { "" } else { "." })
    };
    let (hours, minutes) = (span.as_secs() / 3600, span.as_secs() / 60 % 60);
    let seconds = format!("{}s", fraction(span.as_nanos() % 60_000_000_000, 1_000_000_000));
    match span.as_nanos() {
        0 => "0s".to_owned(),
        nanos if nanos < 1_000 => format!("{nanos}ns"),
        nanos if nanos < 1_000_000 => format!("{}µs", fraction(nanos, 1_000)),
        nanos if nanos < 1_000_000_000 => format!("{}ms", fraction(nanos, 1_000_000)),
        _ if hours > 0 => format!("{hours}h{minutes}m{seconds}"),
        _ if minutes > 0 => format!("{minutes}m{seconds}"),
        _ => seconds,
    }
}

/// A text that names no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time: it must be RFC 3339, seconds since 1970, or a span like 10m")]
pub struct TimeError {
    text: String,
}

impl Explain for TimeError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Days to and from the civil calendar, by the era of 400 years (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn civil(moment: SystemTime) -> Civil {
    let (seconds, nanos) = match moment.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => (-(before.as_secs() as i64), 0),
                nanos => (-(before.as_secs() as i64) - 1, 1_000_000_000 - nanos),
            }
        }
    };
    let days = seconds.div_euclid(DAY_S as i64) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097) as u64);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    Civil {
        year: year_of_era as i64 + era * 400 + i64::from(month <= 2),
        month,
        day: day_of_year - (153 * shifted + 2) / 5 + 1,
        second_of_day: seconds.rem_euclid(DAY_S as i64) as u64,
        nanos,
    }
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Digits only: `str::parse` would take a sign.
fn digits(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn parse_parts(text: &str) -> Option<SystemTime> {
    let shape = text.get(..19)?.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        10 => matches!(byte, b'T' | b't' | b' '),
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    let part = |from: usize, to: usize| text.get(from..to).and_then(digits);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !shape || !valid {
        return None;
    }
    let rest = &text[19..];
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(fraction) => {
            let end = fraction.bytes().position(|byte| !byte.is_ascii_digit())?;
            (nanos_of(&fraction[..end])?, &fraction[end..])
        }
        None => (0, rest),
    };
    let seconds = days_from_civil(year, month, day) * DAY_S as i64 + hour * 3600 + minute * 60 + second;
    moment_of(seconds - offset_s(zone)?, nanos)
}

fn moment_of(seconds: i64, nanos: u32) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base?.checked_add(Duration::from_nanos(u64::from(nanos)))
}

/// `Z`, or `+02:00` in seconds.
fn offset_s(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match zone.as_bytes().first()? {
        b'+' => (1, &zone[1..]),
        b'-' => (-1, &zone[1..]),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// The digits after a second's point as nanoseconds; more than nine are cut.
fn nanos_of(fraction: &str) -> Option<u32> {
    let nine = fraction.get(..fraction.len().min(9))?;
    let value = u32::try_from(digits(nine)?).ok()?;
    (!nine.is_empty()).then(|| value * 10u32.pow(9 - nine.len() as u32))
}

/// `1700000000` or `1700000000.5`.
fn parse_epoch(text: &str) -> Option<SystemTime> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if seconds.is_empty() {
        return None;
    }
    moment_of(digits(seconds)?, nanos_of(fraction)?)
}

/// Reads a span in Go's words (`time.ParseDuration`), without a sign: `1h30m`, `1.5s`, `0`.
pub fn parse_span(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.bytes().position(|byte| !byte.is_ascii_digit() && byte != b'.')?;
        let value: f64 = rest[..end].parse().ok()?;
        let (unit_s, length) = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .iter()
            .find(|(unit, _)| rest[end..].starts_with(unit))
            .map(|(unit, seconds)| (*seconds, unit.len()))?;
        total = total.checked_add(Duration::try_from_secs_f64(value * unit_s).ok()?)?;
        rest = &rest[end + length..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn moments_are_written_and_read() {
        for (moment, text) in [
            (at(0, 0), "1970-01-01T00:00:00.000000000Z"),
            (at(951_782_400, 1), "2000-02-29T00:00:00.000000001Z"),
            (at(1_700_000_000, 120_000_000), "2023-11-14T22:13:20.120000000Z"),
            (at(4_107_542_399, 999_999_999), "2100-02-28T23:59:59.999999999Z"),
            (UNIX_EPOCH - Duration::new(1, 500_000_000), "1969-12-31T23:59:58.500000000Z"),
        ] {
            assert_eq!(rfc3339(moment), text);
            assert_eq!(parse_rfc3339(text).unwrap(), moment, "{text}");
        }
        assert_eq!(parse_rfc3339("2023-11-15T00:13:20.12+02:00").unwrap(), at(1_700_000_000, 120_000_000));
        assert_eq!(rfc3339(parse_rfc3339(NEVER).unwrap()), "0001-01-01T00:00:00.000000000Z");
        assert_eq!(go_text(at(1_700_000_000, 5)), "2023-11-14 22:13:20 +0000 UTC");
        for wrong in [
            "",
            "2023",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20",
            "2023-11-14T22:13:20.Z",
            "é",
            "2023-11-14T2é:13:20Z",
        ] {
            assert!(parse_rfc3339(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn since_takes_four_forms() {
        let now = at(1_700_000_000, 0);
        for (text, moment) in [
            ("10m", at(1_700_000_000 - 600, 0)),
            ("1h30m", at(1_700_000_000 - 5400, 0)),
            ("1.5s", at(1_699_999_998, 500_000_000)),
            ("1600000000", at(1_600_000_000, 0)),
            ("1600000000.25", at(1_600_000_000, 250_000_000)),
            ("1970-01-02", at(86_400, 0)),
            ("1970-01-02T00:00:01", at(86_401, 0)),
            ("1970-01-02T00:00:01Z", at(86_401, 0)),
        ] {
            assert_eq!(parse_moment(text, now).unwrap(), moment, "{text}");
        }
        for wrong in ["", "m", "ten", "1x", "-5m", "1600000000."] {
            assert!(parse_moment(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_are_written_as_go_does() {
        for text in ["0s", "1ns", "1.5µs", "500ms", "1.5s", "30s", "1m30s", "1h0m0.000000001s", "25h1m0s"] {
            assert_eq!(go_span(parse_span(&text.replace('µ', "u")).unwrap()), text);
        }
        assert_eq!(parse_span("0"), Some(Duration::ZERO));
    }

    #[test]
    fn spans_have_dockers_words() {
        let hour = 3600;
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (45, "45 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (59 * 60, "59 minutes"),
            (60 * 60, "About an hour"),
            (89 * 60, "About an hour"),
            (90 * 60, "2 hours"),
            (47 * hour, "47 hours"),
            (48 * hour, "2 days"),
            (13 * 24 * hour, "13 days"),
            (14 * 24 * hour, "2 weeks"),
            (59 * 24 * hour, "8 weeks"),
            (60 * 24 * hour, "2 months"),
            (729 * 24 * hour, "24 months"),
            (730 * 24 * hour, "2 years"),
        ] {
            assert_eq!(human_span(Duration::from_secs(seconds)), words, "{seconds}");
        }
    }
}
