//! Content digests. Only sha256: it is the one algorithm that registries use.

use std::fmt;
use std::io;
use std::str::FromStr;

use base::{Explain, Kind};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The sha256 of some content; written `sha256:<64 lower-case hexadecimal digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest whose 32 bytes are known already.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits without the algorithm's name, as file names use them.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
            hex.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        hex
    }

    /// The first twelve digits, as tables show them.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }

    /// Reads exactly 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed { text: hex.to_owned() };
        let digits: &[u8; 64] = hex.as_bytes().try_into().map_err(|_| malformed())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]).ok_or_else(malformed)? << 4 | nibble(pair[1]).ok_or_else(malformed)?;
        }
        Ok(Digest(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.split_once(':') {
            Some(("sha256", hex)) => {
                Digest::from_hex(hex).map_err(|_| DigestError::Malformed { text: text.to_owned() })
            }
            Some((algorithm @ ("sha384" | "sha512" | "blake3"), _)) => {
                Err(DigestError::Algorithm { algorithm: algorithm.to_owned() })
            }
            _ => Err(DigestError::Malformed { text: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no digest, or not one we can check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("{text:?} is not a digest: it must be sha256: and 64 lower-case hexadecimal digits")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// A known algorithm other than sha256.
    #[error("digests of the algorithm {algorithm} are not supported, only sha256")]
    Algorithm {
        /// The algorithm's name.
        algorithm: String,
    },
}

impl Explain for DigestError {
    fn kind(&self) -> Kind {
        match self {
            DigestError::Malformed { .. } => Kind::Usage,
            DigestError::Algorithm { .. } => Kind::Unsupported,
        }
    }
}

/// Computes a digest of content that comes in pieces, and counts its bytes.
#[derive(Clone, Debug, Default)]
pub struct Hasher {
    state: Sha256,
    size_bytes: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Hasher::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// How many bytes were taken.
    pub fn size(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all that was taken.
    pub fn finish(self) -> Digest {
        Digest(self.state.finalize().into())
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The digest of a layer's uncompressed tar stream (image-spec, "Layer DiffID").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// The name of a stack of layers (image-spec, "Layer ChainID").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// The chain of these layers, lowest first; `None` when there are none.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (lowest, upper) = layers.split_first()?;
        Some(upper.iter().fold(ChainId(lowest.0), |chain, layer| chain.push(*layer)))
    }

    /// The chain with one layer more on top.
    #[must_use]
    pub fn push(self, layer: DiffId) -> Self {
        ChainId(Digest::of(format!("{self} {layer}").as_bytes()))
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn reads_and_writes_one_spelling_only() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.hex(), ABC);
        assert_eq!(format!("sha256:{ABC}").parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short(), "ba7816bf8f01");
        for wrong in [
            "",
            "sha256:",
            ABC,
            &format!("sha256:{}", ABC.to_uppercase()),
            &format!("sha256:{}", &ABC[1..]),
            &format!("sha256:{ABC}0"),
            &format!("SHA256:{ABC}"),
            &format!("sha256::{ABC}"),
            &format!("sha256:{}\u{e9}", &ABC[2..]),
        ] {
            assert!(matches!(wrong.parse::<Digest>(), Err(DigestError::Malformed { .. })), "{wrong}");
        }
        assert!(matches!("sha512:00".parse::<Digest>(), Err(DigestError::Algorithm { .. })));
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut hasher = Hasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.size(), 3);
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn a_chain_hashes_parent_and_layer_as_text() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        let c = DiffId(Digest::of(b"c"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        let ab = Digest::of(format!("sha256:{} sha256:{}", a.0.hex(), b.0.hex()).as_bytes());
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(ab)));
        assert_eq!(ChainId::of(&[a, b, c]), Some(ChainId(ab).push(c)));
    }

    #[test]
    fn serde_is_the_text() {
        let digest = Digest::of(b"abc");
        let json = serde_json::to_string(&ChainId(digest)).unwrap();
        assert_eq!(json, format!("\"sha256:{ABC}\""));
        assert_eq!(serde_json::from_str::<ChainId>(&json).unwrap().0, digest);
        assert!(serde_json::from_str::<Digest>("\"sha256:00\"").is_err());
    }
}
