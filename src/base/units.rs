//! Amounts as Docker's users write and read them.
#![allow(clippy::cast_precision_loss, reason = "three or four digits are shown, and limits round to pages")]

use crate::report::{Explain, Kind};

/// A number of bytes with three significant digits in powers of 1000, as Docker's tables of images show it: `74.8MB`.
pub fn human_size(bytes: u64) -> String {
    scaled(bytes, 3, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A number of bytes with four significant digits in powers of 1024, as Docker shows memory: `23.54GiB`.
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes, 4, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(bytes: u64, digits: usize, base: f64, units: [&str; 7]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    // The comparison is with what will be printed, so that 999.96 becomes 1 of the next unit.
    while rounded(value, digits) >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", rounded(value, digits), units[unit])
}

fn rounded(value: f64, digits: usize) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let scale = 10f64.powi(digits as i32 - 1 - value.log10().floor() as i32);
    (value * scale).round() / scale
}

/// Reads an amount of memory: a number, a unit `b k m g t p` in powers of 1024 in either case, and `i`, `b` or `ib`
/// behind it: `512m`, `1.5g`, `64KiB`.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Bytes { text: text.to_owned() };
    let split = text.bytes().position(|byte| !byte.is_ascii_digit() && byte != b'.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let value = decimal(number).ok_or_else(wrong)?;
    let unit = unit.trim_start_matches(' ').to_ascii_lowercase();
    let letters = unit.strip_suffix('b').unwrap_or(&unit);
    let letters = letters.strip_suffix('i').unwrap_or(letters);
    let power = match letters {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let bytes = value * 1024f64.powi(power);
    if bytes >= u64::MAX as f64 { Err(wrong()) } else { Ok(bytes as u64) }
}

/// Reads a number of processors as billionths: `1.5` is 1,500,000,000.
pub fn parse_cpus(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Cpus { text: text.to_owned() };
    let value = decimal(text).ok_or_else(wrong)?;
    if value <= 1e6 { Ok((value * 1e9).round() as u64) } else { Err(wrong()) }
}

/// Names of the signals without `SIG`, by number from 1 on, and the further names that some have.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const SIGNAL_ALIASES: [(&str, i32); 3] = [("IOT", 6), ("CLD", 17), ("POLL", 29)];

/// Reads a signal: a number, or a name with or without `SIG` in either case: `15`, `term`, `SIGRTMIN+3`.
pub fn parse_signal(text: &str) -> Result<i32, UnitError> {
    let wrong = || UnitError::Signal { text: text.to_owned() };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The kernel's numbers of the real-time signals that programs may use are those of the C libraries: from 34.
    let real_time = |text: &str, sign: char, base: i32| {
        let offset: i32 = if text.is_empty() { 0 } else { text.strip_prefix(sign)?.parse().ok()? };
        let number = if sign == '-' { base.checked_sub(offset) } else { base.checked_add(offset) };
        number.filter(|number| (34..=64).contains(number))
    };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return real_time(rest, '+', 34).ok_or_else(wrong);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return real_time(rest, '-', 64).ok_or_else(wrong);
    }
    let standard = SIGNALS.iter().position(|name| *name == short).map(|position| position as i32 + 1);
    let alias = || SIGNAL_ALIASES.iter().find(|(name, _)| *name == short).map(|(_, number)| *number);
    standard.or_else(alias).ok_or_else(wrong)
}

/// A number of digits with at most one point; not the signs, exponents and words that `f64` parses too.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
    (plain && begins).then(|| text.parse().ok()).flatten()
}

/// A text that is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number of bytes.
    #[error("invalid size: '{text}': it must be a number with a unit like 512m or 1.5g")]
    Bytes {
        /// What was given.
        text: String,
    },
    /// Not a signal.
    #[error("Invalid signal: {text}")]
    Signal {
        /// What was given.
        text: String,
    },
    /// Not a number of processors.
    #[error("invalid number of CPUs: '{text}': it must be a number like 1.5")]
    Cpus {
        /// What was given.
        text: String,
    },
}

impl Explain for UnitError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (74_800_000, "74.8MB"),
            (999_999, "1MB"),
            (124_000_000, "124MB"),
            (1_500_000_000, "1.5GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(binary_size(25_276_502_016), "23.54GiB");
        assert_eq!(binary_size(1_023), "1023B");
    }

    #[test]
    fn memory_is_in_powers_of_two() {
        for (text, bytes) in [
            ("512", 512),
            ("512b", 512),
            ("64k", 65_536),
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("1.5g", 3 << 29),
            ("2GiB", 2 << 30),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "m", "-1", "1x", "1.2.3", "1e9", "inf", "99999999999p", "1mm"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn processors_may_be_parts() {
        assert_eq!(parse_cpus("1.5").unwrap(), 1_500_000_000);
        assert_eq!(parse_cpus("0.01").unwrap(), 10_000_000);
        for wrong in ["", "-1", "two", "1e3", "nan"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signals_by_any_name() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN", 34), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "NOPE", "RTMIN+40", "RTMIN-3", "-9"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
