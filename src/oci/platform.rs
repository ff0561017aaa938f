//! Platforms: their many spellings, and which image of an index suits a machine.
//!
//! The order of preference is containerd's: the wanted variant, then each lower one that the processor also runs.

use std::fmt;
use std::str::FromStr;

use base::{Explain, Kind};
use oci_spec::image as spec;
use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in Go's words. Always normal: `arm64` never has the variant `v8`,
/// `amd64` never `v1`, and `arm` always has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The normal form of these words, whatever they are; an empty variant is none.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_ascii_lowercase);
        let (architecture, variant) = normal(&architecture.to_ascii_lowercase(), variant);
        Platform { os, architecture, variant }
    }

    /// The machine this runs on, with the processor's level on amd64. For choosing from an index; what must not
    /// depend on the machine takes the platform of the image that was chosen.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", x86_level()),
            "aarch64" => ("arm64", None),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform::new("linux", architecture, variant)
    }

    /// The same for every processor of the architecture: on amd64 without a level.
    #[must_use]
    pub fn of_any_level(self) -> Self {
        let variant = self.variant.filter(|_| self.architecture != "amd64");
        Platform { variant, ..self }
    }

    /// `linux`, `windows`, …
    pub fn os(&self) -> &str {
        &self.os
    }

    /// `amd64`, `arm64`, …
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `v7`, `v3`, …
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The platforms whose images run here, best first; the first one is this platform.
    pub fn runs(&self) -> Vec<Platform> {
        let mut list = vec![self.clone()];
        let mut add = |architecture: &str, variant: Option<String>| {
            list.push(Platform { os: self.os.clone(), architecture: architecture.to_owned(), variant });
        };
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("amd64", variant) => {
                for level in (2..number(variant, 1)).rev() {
                    add("amd64", Some(format!("v{level}")));
                }
                if variant.is_some() {
                    add("amd64", None);
                }
                add("386", None);
            }
            ("arm", variant) => {
                for version in (5..number(variant, 7)).rev() {
                    add("arm", Some(format!("v{version}")));
                }
            }
            ("arm64", variant) => {
                for lower in lower_arm64(variant) {
                    add("arm64", lower);
                }
                for version in (5..=8).rev() {
                    add("arm", Some(format!("v{version}")));
                }
            }
            _ => {}
        }
        list
    }

    /// The place of an image's platform in this one's order of preference, 0 the best; `None` if it does not run here.
    pub fn rank(&self, image: &Platform) -> Option<usize> {
        self.runs().iter().position(|candidate| candidate == image)
    }

    /// Whether this is the placeholder of entries that are no image.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

/// One spelling for each architecture and variant.
fn normal(architecture: &str, variant: Option<String>) -> (String, Option<String>) {
    let (architecture, variant) = match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", Some("v1") | None) => ("amd64", None),
        ("x86_64" | "x86-64", _) => ("amd64", variant),
        ("aarch64" | "arm64", Some("8" | "v8" | "v8.0") | None) => ("arm64", None),
        ("aarch64" | "arm64", Some("9" | "9.0" | "v9.0")) => ("arm64", Some("v9".to_owned())),
        ("aarch64", _) => ("arm64", variant),
        ("armel", _) => ("arm", Some("v6".to_owned())),
        ("armhf", _) | ("arm", None) => ("arm", Some("v7".to_owned())),
        ("arm", Some(version @ ("5" | "6" | "7" | "8"))) => ("arm", Some(format!("v{version}"))),
        ("i386" | "i686" | "386" | "x86", _) => ("386", None),
        (other, _) => (other, variant),
    };
    (architecture.to_owned(), variant)
}

/// The digits of `v7`, or what stands for none; anything else is a variant without lower ones.
fn number(variant: Option<&str>, default: u8) -> u8 {
    match variant {
        None => default,
        // One digit: no level or version of these two is longer, and a loop up to it stays short.
        Some(variant) => match variant.as_bytes() {
            [b'v', digit @ b'0'..=b'9'] => digit - b'0',
            _ => 0,
        },
    }
}

/// The versions of arm64 below `v9.x` or `v8.x`: every v9.x runs all of v8.(x+5).
fn lower_arm64(variant: Option<&str>) -> Vec<Option<String>> {
    let Some(version) = variant.and_then(|variant| variant.strip_prefix('v')) else { return Vec::new() };
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    let Some(minor) = minor.parse::<u8>().ok().filter(|minor| *minor < 10) else { return Vec::new() };
    let name = |major: u8, minor: u8| match (major, minor) {
        (8, 0) => None,
        (_, 0) => Some(format!("v{major}")),
        _ => Some(format!("v{major}.{minor}")),
    };
    match major {
        "9" => (0..minor).rev().map(|m| name(9, m)).chain((0..=minor + 5).rev().map(|m| name(8, m))).collect(),
        "8" => (0..minor).rev().map(|m| name(8, m)).collect(),
        _ => Vec::new(),
    }
}

/// The micro-architecture level of this processor by the x86-64 psABI; `None` is the first.
#[cfg(target_arch = "x86_64")]
fn x86_level() -> Option<&'static str> {
    macro_rules! has {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    if !has!("sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "cmpxchg16b") {
        None
    } else if !has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe") {
        Some("v2")
    } else if !has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl") {
        Some("v3")
    } else {
        Some("v4")
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_level() -> Option<&'static str> {
    None
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// `os[/architecture[/variant]]` or an architecture alone; what is left out is this machine's.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let malformed = || PlatformError { text: text.to_owned() };
        let word = |part: &str| {
            let ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            (1..=32).contains(&part.len()) && part.bytes().all(ok)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| word(part)) {
            return Err(malformed());
        }
        let host = Platform::host();
        match parts[..] {
            [os] if OPERATING_SYSTEMS.contains(&os.to_ascii_lowercase().as_str()) => {
                Ok(Platform::new(os, host.architecture(), None))
            }
            [architecture] => {
                let platform = Platform::new(host.os(), architecture, None);
                if ARCHITECTURES.contains(&platform.architecture()) { Ok(platform) } else { Err(malformed()) }
            }
            [os, architecture] => Ok(Platform::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, Some(variant))),
            _ => Err(malformed()),
        }
    }
}

/// Words that are an operating system when they stand alone (Go's list, as far as images exist).
const OPERATING_SYSTEMS: [&str; 8] = ["linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris"];
/// Words that are an architecture when they stand alone.
const ARCHITECTURES: [&str; 12] =
    ["amd64", "arm64", "386", "arm", "riscv64", "ppc64le", "ppc64", "s390x", "loong64", "mips64le", "mips64", "wasm"];

impl TryFrom<String> for Platform {
    type Error = PlatformError;

    fn try_from(text: String) -> Result<Self, PlatformError> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> String {
        platform.to_string()
    }
}

impl From<&spec::Platform> for Platform {
    fn from(platform: &spec::Platform) -> Self {
        Platform::new(&platform.os().to_string(), &platform.architecture().to_string(), platform.variant().as_deref())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            // As others print it: the variant that every arm64 has without being named is left out, arm's is not.
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A text that names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a platform: it must be os[/architecture[/variant]], like linux/arm64")]
pub struct PlatformError {
    text: String,
}

impl Explain for PlatformError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn spellings_become_one() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/x86-64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v9.0", "linux/arm64/v9"),
            ("Linux/ARMHF", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("arm64", "linux/arm64"),
            ("riscv64", "linux/riscv64"),
        ] {
            let platform: Platform = text.parse().unwrap();
            assert_eq!(platform.to_string(), normal, "{text}");
            assert_eq!(normal.parse::<Platform>().unwrap(), platform);
        }
        assert_eq!("linux".parse::<Platform>().unwrap().architecture(), Platform::host().architecture());
        for wrong in ["", "/", "linux/", "a/b/c/d", "nonsense", "linux/a b", "linux/\u{e9}"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn preference_goes_down_the_variants() {
        for (host, order) in [
            ("linux/amd64", "linux/amd64 linux/386"),
            ("linux/amd64/v3", "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386"),
            ("linux/arm/v7", "linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            ("linux/arm64", "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"),
            (
                "linux/arm64/v9.1",
                "linux/arm64/v9.1 linux/arm64/v9 linux/arm64/v8.6 linux/arm64/v8.5 linux/arm64/v8.4 linux/arm64/v8.3 \
                 linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
            ),
            ("linux/s390x", "linux/s390x"),
            ("linux/amd64/odd", "linux/amd64/odd linux/amd64 linux/386"),
        ] {
            let runs: Vec<String> = host.parse::<Platform>().unwrap().runs().iter().map(ToString::to_string).collect();
            assert_eq!(runs.join(" "), order);
        }
    }

    #[test]
    fn the_host_runs_its_own_baseline() {
        let host = Platform::host();
        assert_eq!(host.os(), "linux");
        assert!(host.rank(&Platform::new("linux", host.architecture(), None)).is_some());
        assert_eq!(host.rank(&Platform::new("windows", host.architecture(), None)), None);
    }
}
