//! Records of pax extended headers (POSIX pax, GNU tar's sparse records, xattrs as star and libarchive write them).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use index::Time;

use crate::block::Fault;

const MALFORMED: Fault = "a pax record is malformed";

/// The records of one or more extended headers, as far as they matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: PaxSparse,
}

/// GNU.sparse.* of all three versions.
#[derive(Clone, Debug, Default)]
pub(crate) struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` of 0.0 and 0.1, `GNU.sparse.realsize` of 1.0.
    pub real_size: Option<u64>,
    /// Offsets and lengths in turn.
    pub map: Vec<u64>,
    pub has_map: bool,
}

impl Pax {
    /// Adds the records of a header; a later record of a key wins, an empty value takes an earlier one away.
    pub fn add(&mut self, mut data: &[u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let (key, value, rest) = split_record(data).ok_or(MALFORMED)?;
            self.record(key, value)?;
            data = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        match key {
            b"path" => self.path = string(value)?,
            b"linkpath" => self.link_path = string(value)?,
            b"size" => self.size = optional(value, decimal)?,
            b"uid" => self.uid = optional(value, decimal)?,
            b"gid" => self.gid = optional(value, decimal)?,
            b"mtime" => self.mtime = optional(value, time)?,
            b"GNU.sparse.major" => self.sparse.major = optional(value, decimal)?,
            b"GNU.sparse.minor" => self.sparse.minor = optional(value, decimal)?,
            b"GNU.sparse.name" => self.sparse.name = string(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = optional(value, decimal)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_pair(key, value)?,
            b"GNU.sparse.numblocks" => self.sparse.has_map = true,
            b"GNU.sparse.map" => {
                self.sparse.has_map = true;
                let numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
                self.sparse.map = numbers.map(decimal).collect::<Result<_, _>>()?;
            }
            _ => self.xattr_record(key, value)?,
        }
        Ok(())
    }

    fn sparse_pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let is_offset = key.ends_with(b"offset");
        if is_offset != self.sparse.map.len().is_multiple_of(2) {
            return Err("a sparse map has an offset without length");
        }
        self.sparse.has_map = true;
        self.sparse.map.push(decimal(value)?);
        Ok(())
    }

    fn xattr_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let (name, value) = if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            (name.to_vec(), value.to_vec())
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let decoded = STANDARD.decode(value).or_else(|_| STANDARD_NO_PAD.decode(value));
            (percent_decoded(name), decoded.map_err(|_| "an extended attribute is not base64")?)
        } else {
            return Ok(());
        };
        self.xattrs.insert(name, value);
        Ok(())
    }
}

/// Refuses data that is not made of records.
pub(crate) fn check(mut data: &[u8]) -> Result<(), Fault> {
    while !data.is_empty() {
        (_, _, data) = split_record(data).ok_or(MALFORMED)?;
    }
    Ok(())
}

/// `<length> <key>=<value>\n`, the length counting all of it: key, value and what follows.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space]).ok()?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=').filter(|place| *place > 0)?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn optional<T>(value: &[u8], read: impl FnOnce(&[u8]) -> Result<T, Fault>) -> Result<Option<T>, Fault> {
    if value.is_empty() { Ok(None) } else { read(value).map(Some) }
}

fn string(value: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    if value.contains(&0) {
        return Err("a path in a pax record contains a zero byte");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Decimal digits, nothing else.
pub(crate) fn decimal(digits: &[u8]) -> Result<u64, Fault> {
    const WRONG: Fault = "a number in a pax record is malformed";
    if digits.is_empty() {
        return Err(WRONG);
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0'))).ok_or(WRONG),
        _ => Err(WRONG),
    })
}

/// `[-]<seconds>[.<fraction>]`, rounded down to nanoseconds.
fn time(value: &[u8]) -> Result<Time, Fault> {
    const WRONG: Fault = "a time in a pax record is malformed";
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = decimal(parts.next().unwrap_or_default())?;
    // The least number has no positive counterpart.
    let seconds = if negative { 0i64.checked_sub_unsigned(seconds) } else { i64::try_from(seconds).ok() };
    let seconds = seconds.ok_or(WRONG)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(WRONG);
    }
    let digit = |place: usize| u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, place| value * 10 + digit(place));
    Ok(match (negative, nanoseconds) {
        (false, _) | (true, 0) => Time { seconds, nanoseconds },
        (true, _) => Time { seconds: seconds.checked_sub(1).ok_or(WRONG)?, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(data: &[u8]) -> Result<Pax, Fault> {
        let mut pax = Pax::default();
        pax.add(data).map(|()| pax)
    }

    #[test]
    fn reads_records() {
        let pax = parsed(b"12 path=a/b\n12 size=123\n27 SCHILY.xattr.user.k=a=b\n35 LIBARCHIVE.xattr.user.%25x=QUJD\n");
        let pax = pax.unwrap_or_default();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.size, Some(123));
        assert_eq!(pax.xattrs[&b"user.k"[..]], b"a=b");
        assert_eq!(pax.xattrs[&b"user.%x"[..]], b"ABC");
    }

    #[test]
    fn reads_times_with_fraction_and_sign() {
        assert_eq!(time(b"1.5"), Ok(Time { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(time(b"-1.25"), Ok(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(time(b"-3"), Ok(Time { seconds: -3, nanoseconds: 0 }));
        assert_eq!(time(b"0.1234567899"), Ok(Time { seconds: 0, nanoseconds: 123_456_789 }));
        // The ends, as a writer has them.
        assert_eq!(time(b"-9223372036854775808"), Ok(Time { seconds: i64::MIN, nanoseconds: 0 }));
        assert_eq!(time(b"-9223372036854775807.5"), Ok(Time { seconds: i64::MIN, nanoseconds: 500_000_000 }));
        assert_eq!(time(b"9223372036854775807"), Ok(Time { seconds: i64::MAX, nanoseconds: 0 }));
        for beyond in [&b"-9223372036854775808.5"[..], b"-9223372036854775809", b"9223372036854775808"] {
            assert!(time(beyond).is_err());
        }
        assert!(time(b"1.x").is_err());
        assert!(time(b"").is_err());
    }

    #[test]
    fn refuses_malformed_records() {
        for data in [&b"11 path=a/b\n"[..], b"99 path=a\n", b"path=a\n", b"6 =ab\n", b"0 a=b\n", b"12 path=a\0b\n"] {
            assert!(parsed(data).is_err(), "{:?}", String::from_utf8_lossy(data));
        }
        assert!(parsed(b"11 size=-1\n").is_err());
        assert!(parsed(b"29 size=99999999999999999999\n").is_err());
    }
}
