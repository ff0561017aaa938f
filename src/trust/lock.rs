//! `images.lock`: which image a name stood for when it was locked, by platform.
//!
//! JSON that people read and version control merges: one image after another in the order of names and platforms.

use std::collections::BTreeSet;

use base::{Explain, Kind};
use oci::{Digest, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::object::{self, Object};

/// The version of the format.
const VERSION: u32 = 1;

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    #[serde(deserialize_with = "object::list")]
    images: Vec<Locked>,
}

/// An image that is locked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// The complete reference, with its tag.
    pub name: Reference,
    /// What the image runs on.
    pub platform: Platform,
    /// The index that the name stood for, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The manifest of the image.
    pub manifest: Digest,
    /// The size of the manifest in bytes.
    pub size: u64,
}

impl Locked {
    /// What the registry is asked for.
    pub fn digest(&self) -> Digest {
        self.index.unwrap_or(self.manifest)
    }
}

impl Default for Lock {
    fn default() -> Self {
        Lock { version: VERSION, images: Vec::new() }
    }
}

impl Lock {
    /// Reads a file.
    pub fn parse(text: &[u8]) -> Result<Self, LockError> {
        let Object::<Lock>(lock) = serde_json::from_slice(text).map_err(|cause| LockError::Json { cause })?;
        if lock.version != VERSION {
            return Err(LockError::Version { version: lock.version });
        }
        let mut seen = BTreeSet::new();
        for image in &lock.images {
            if !seen.insert((&image.name, image.platform.to_string())) {
                return Err(LockError::Twice { image: format!("{} for {}", image.name, image.platform) });
            }
        }
        Ok(lock)
    }

    /// The file's text.
    pub fn text(&self) -> String {
        // Strings and numbers always are JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// All images, in order.
    pub fn images(&self) -> &[Locked] {
        &self.images
    }

    /// The image of a name that suits a platform best.
    pub fn find(&self, name: &Reference, wanted: &Platform) -> Option<&Locked> {
        let of_name = self.images.iter().filter(|image| image.name == *name);
        let ranked = of_name.filter_map(|image| Some((wanted.rank(&image.platform)?, image)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| image)
    }

    /// Locks an image, in place of the one with its name and platform.
    pub fn set(&mut self, image: Locked) {
        self.images.retain(|old| old.name != image.name || old.platform != image.platform);
        self.images.push(image);
        self.images.sort_by_key(|image| (image.name.clone(), image.platform.to_string()));
    }
}

/// A file that locks nothing.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Not the JSON that it must be.
    #[error("this is no file of locked images: {cause}")]
    Json {
        /// What is wrong, and where.
        cause: serde_json::Error,
    },
    /// A version that is not known.
    #[error("the version {version} of the format is not known")]
    Version {
        /// The one in the file.
        version: u32,
    },
    /// Two images for one name and platform.
    #[error("{image} is there twice")]
    Twice {
        /// Both.
        image: String,
    },
}

impl Explain for LockError {
    fn kind(&self) -> Kind {
        match self {
            LockError::Version { .. } => Kind::Unsupported,
            _ => Kind::Usage,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused file is a failed test")]
mod tests {
    use super::*;

    fn image(name: &str, platform: &str, content: &str) -> Locked {
        let manifest = Digest::of(content.as_bytes());
        Locked { name: name.parse().unwrap(), platform: platform.parse().unwrap(), index: None, manifest, size: 7 }
    }

    #[test]
    fn the_order_is_that_of_names_and_platforms() {
        let (a, b, c) =
            (image("a:1", "linux/amd64", "a"), image("a:1", "linux/arm64", "b"), image("b.io/x:1", "linux/386", "c"));
        let texts: Vec<String> = [[&a, &b, &c], [&c, &b, &a], [&b, &a, &c]]
            .into_iter()
            .map(|order| {
                let mut lock = Lock::default();
                for image in order.into_iter().chain([&a]) {
                    lock.set(image.clone());
                }
                lock.text()
            })
            .collect();
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
        let lock = Lock::parse(texts[0].as_bytes()).unwrap();
        // docker.io goes behind b.io.
        assert_eq!(lock.images(), [c, a, b]);
        assert!(
            texts[0].starts_with("{\n  \"version\": 1,\n  \"images\": [\n    {\n      \"name\": \"b.io/x:1\",\n"),
            "{}",
            texts[0]
        );
    }

    #[test]
    fn the_best_image_for_a_platform_is_found() {
        let mut lock = Lock::default();
        for platform in ["linux/386", "linux/amd64", "linux/amd64/v3", "linux/arm64"] {
            lock.set(image("a:1", platform, platform));
        }
        for (wanted, found) in [
            ("linux/amd64/v4", Some("linux/amd64/v3")),
            ("linux/amd64/v2", Some("linux/amd64")),
            ("linux/386", Some("linux/386")),
            ("linux/s390x", None),
        ] {
            let name = "a:1".parse().unwrap();
            let image = lock.find(&name, &wanted.parse().unwrap());
            assert_eq!(image.map(|image| image.platform.to_string()).as_deref(), found, "{wanted}");
        }
        assert_eq!(lock.find(&"a:2".parse().unwrap(), &"linux/amd64".parse().unwrap()), None);
    }

    #[test]
    fn many_images_are_read_in_time() {
        let image = image("a:1", "linux/amd64", "x");
        let named = |number: usize| Locked { name: image.name.tagged(&number.to_string()), ..image.clone() };
        let lock = Lock { version: VERSION, images: (0..100_000).map(named).collect() };
        // Each held against each other would take minutes.
        let began = std::time::Instant::now();
        assert_eq!(Lock::parse(lock.text().as_bytes()).unwrap(), lock);
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mut lock = Lock::default();
        lock.set(image("a:1", "linux/amd64", "x"));
        let good = lock.text();
        let entry = &good[good.find("    {").unwrap()..=good.rfind("    }").unwrap() + 4];
        for (bad, why) in [
            (good.replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (good.replace("\"size\"", "\"sizes\""), "unknown field"),
            (good.replace("sha256:", "sha512:"), "sha512"),
            (good.replace("linux/amd64", ""), "platform"),
            (good.replace("docker.io/library/a:1", "A"), "reference"),
            (good.replace(entry, &format!("{entry},{entry}")), "twice"),
            (String::new(), "EOF"),
            ("[1,[]]".to_owned(), "expected an object"),
            (r#"{"version":1,"images":[["a:1","linux/amd64"]]}"#.to_owned(), "expected an object"),
            ("[".repeat(100_000), "invalid type"),
        ] {
            let error = Lock::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:.300}: {error}");
        }
    }
}
