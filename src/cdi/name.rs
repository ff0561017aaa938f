//! Names: `vendor.com/class=name`, of which `vendor.com/class` is the kind.

use std::fmt;
use std::str::FromStr;

use base::{Explain, Kind};

/// SPEC.md, "Kind": the vendor is a DNS subdomain.
const VENDOR_MAX: usize = 253;
/// SPEC.md, "Kind".
const CLASS_MAX: usize = 63;
/// The specification has no limit; no name that anybody means is longer.
const NAME_MAX: usize = 255;

/// The qualified name of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceName {
    /// `vendor.com/class`.
    pub kind: String,
    /// Which one of that kind.
    pub name: String,
}

impl DeviceName {
    /// The device of this kind and name, both checked.
    pub fn new(kind: &str, name: &str) -> Result<Self, NameError> {
        check_kind(kind)?;
        check_name(name)?;
        Ok(DeviceName { kind: kind.to_owned(), name: name.to_owned() })
    }
}

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (kind, name) = text.split_once('=').ok_or_else(|| NameError::Unqualified { text: text.to_owned() })?;
        DeviceName::new(kind, name)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.name)
    }
}

/// Checks `vendor.com/class`.
pub fn check_kind(kind: &str) -> Result<(), NameError> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| NameError::Kind { kind: kind.to_owned() })?;
    check("vendor", vendor, VENDOR_MAX, |first| first.is_ascii_alphabetic(), b"_-.")?;
    check("class", class, CLASS_MAX, |first| first.is_ascii_alphabetic(), b"_-.")
}

/// Checks the name of a device within its kind.
pub fn check_name(name: &str) -> Result<(), NameError> {
    check("device name", name, NAME_MAX, |first| first.is_ascii_alphanumeric(), b"_-.:")
}

fn check(what: &'static str, text: &str, max: usize, begins: fn(u8) -> bool, between: &[u8]) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return Err(NameError::Empty { what }) };
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || between.contains(byte);
    if bytes.len() <= max && begins(*first) && last.is_ascii_alphanumeric() && bytes.iter().all(inside) {
        return Ok(());
    }
    Err(NameError::Malformed { what, text: text.chars().take(NAME_MAX).collect() })
}

/// A text that is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No `=`.
    #[error("{text:?} is no device name: it must be VENDOR/CLASS=NAME")]
    Unqualified {
        /// What was given.
        text: String,
    },
    /// No `/`.
    #[error("{kind:?} is no kind of devices: it must be VENDOR/CLASS")]
    Kind {
        /// What was given.
        kind: String,
    },
    /// A part is missing.
    #[error("the {what} is empty")]
    Empty {
        /// Which part.
        what: &'static str,
    },
    /// A part has characters that it must not have, or too many.
    #[error("{text:?} is no {what}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What was given.
        text: String,
    },
}

impl Explain for NameError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        Some("a device is a path, or VENDOR/CLASS=NAME such as nvidia.com/gpu=all".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_parts() {
        for text in ["vendor.com/device=foo", "nvidia.com/gpu=0", "a/b=c", "foo.bar/foo-bar123.B_az=GPU-1:2.3"] {
            let name: Result<DeviceName, NameError> = text.parse();
            assert_eq!(name.map(|name| name.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("vendor.com/{}=x", "c".repeat(64));
        let texts = [
            "",
            "=",
            "foo",
            "vendor.com/foo",
            "vendor.com=foo",
            "vendor.com/=foo",
            "/class=foo",
            "vendor.com/class=",
            "vendor.com/class/more=foo",
            "1vendor.com/class=foo",
            "vendor.com/1class=foo",
            "vendor.com./class=foo",
            "vendor.com/class=-foo",
            "vendor.com/class=foo/../bar",
            "vendor.com/class=foo\n",
            "vendor.com/class=f\u{f6}o",
            "vendor.com/class=a=b",
            &long,
        ];
        for text in texts {
            assert!(text.parse::<DeviceName>().is_err(), "{text:?}");
        }
    }
}
