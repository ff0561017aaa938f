//! Public keys as cosign writes them: a PEM file (RFC 7468) with a SubjectPublicKeyInfo (RFC 5280, 4.1).
//!
//! The few shapes of DER that such a file can have are read here; what is in them is checked by `ring` at each use.

use std::fmt;

use base::{Explain, Kind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};

/// The largest file of a key that is read, in bytes; an RSA key of 8192 bits takes two thousand.
pub const KEY_MAX: usize = 16 << 10;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// Tags of DER.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const NULL: u8 = 0x05;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// Object identifiers, encoded: RFC 5480 2.1.1, RFC 8410 3, RFC 8017 A.1.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// The bits that an RSA key may have; less can be broken.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Ways to make a signature by a key.
type Algorithms = &'static [&'static dyn VerificationAlgorithm];

const BY_P256: Algorithms = &[&ECDSA_P256_SHA256_ASN1];
/// Which hash goes with the longer curve has changed with cosign's versions.
const BY_P384: Algorithms = &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1];
const BY_ED25519: Algorithms = &[&ED25519];
const BY_RSA: Algorithms = &[&RSA_PKCS1_2048_8192_SHA256];

/// A key by which signatures are checked.
#[derive(Clone)]
pub struct PublicKey {
    /// How a signature by it may be made.
    algorithms: Algorithms,
    key: Vec<u8>,
}

impl PublicKey {
    /// Reads a PEM file with one key.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        if text.len() > KEY_MAX {
            return Err(KeyError::Pem { why: "it is too long for one" });
        }
        let text = std::str::from_utf8(text).map_err(|_| KeyError::Pem { why: "it is not text" })?;
        let body = text.trim().strip_prefix(BEGIN).ok_or(KeyError::Pem { why: "it does not begin as one" })?;
        let (body, rest) = body.split_once(END).ok_or(KeyError::Pem { why: "it does not end as one" })?;
        if !rest.is_empty() {
            return Err(KeyError::Pem { why: "more follows the first key" });
        }
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| KeyError::Pem { why: "it is no base64" })?;
        PublicKey::from_spki(&der)
    }

    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let mut info = Der(Der(der).only(SEQUENCE)?);
        let mut algorithm = Der(info.next(SEQUENCE)?);
        // The first byte is the number of bits that are left over, none for keys.
        let key = info.last(BIT_STRING)?.strip_prefix(&[0]).ok_or(KeyError::Der)?;
        let algorithms = match algorithm.next(OBJECT_IDENTIFIER)? {
            EC_PUBLIC_KEY => match (algorithm.last(OBJECT_IDENTIFIER)?, key) {
                (P256, [4, rest @ ..]) if rest.len() == 64 => BY_P256,
                (P384, [4, rest @ ..]) if rest.len() == 96 => BY_P384,
                (P256 | P384, _) => return Err(KeyError::Der),
                _ => return Err(KeyError::Algorithm),
            },
            ID_ED25519 if algorithm.0.is_empty() && key.len() == 32 => BY_ED25519,
            RSA_ENCRYPTION => {
                algorithm.last(NULL)?;
                check_rsa(key)?;
                BY_RSA
            }
            ID_ED25519 => return Err(KeyError::Der),
            _ => return Err(KeyError::Algorithm),
        };
        Ok(PublicKey { algorithms, key: key.to_vec() })
    }

    /// Whether this key has signed these bytes.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.key).verify(message, signature).is_ok()
        };
        self.algorithms.iter().any(by)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.algorithms)
    }
}

/// An RSAPublicKey (RFC 8017, A.1.1) with a modulus of a length that is allowed.
fn check_rsa(key: &[u8]) -> Result<(), KeyError> {
    let mut members = Der(Der(key).only(SEQUENCE)?);
    let modulus = members.next(INTEGER)?;
    members.last(INTEGER)?;
    let modulus = &modulus[modulus.iter().take_while(|byte| **byte == 0).count()..];
    let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let bits = modulus.len() * 8 - unused;
    if RSA_BITS.contains(&bits) { Ok(()) } else { Err(KeyError::RsaBits { bits }) }
}

/// The rest of some DER (X.690): values, each with a tag and a length.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value, which must have this tag.
    fn next(&mut self, tag: u8) -> Result<&'a [u8], KeyError> {
        let (length, rest) = match self.0 {
            [found, rest @ ..] if *found == tag => match rest {
                [length @ ..=0x7f, rest @ ..] | [0x81, length @ 0x80..=0xff, rest @ ..] => (usize::from(*length), rest),
                [0x82, high @ 1..=0xff, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
                _ => return Err(KeyError::Der),
            },
            _ => return Err(KeyError::Der),
        };
        let (value, rest) = rest.split_at_checked(length).ok_or(KeyError::Der)?;
        self.0 = rest;
        Ok(value)
    }

    /// The next value, behind which there must be none.
    fn last(&mut self, tag: u8) -> Result<&'a [u8], KeyError> {
        let value = self.next(tag)?;
        if self.0.is_empty() { Ok(value) } else { Err(KeyError::Der) }
    }

    fn only(mut self, tag: u8) -> Result<&'a [u8], KeyError> {
        self.last(tag)
    }
}

/// Why a file is no key that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the text form of a public key.
    #[error("this is no public key in PEM: {why}")]
    Pem {
        /// What is wrong.
        why: &'static str,
    },
    /// Not what the text form must hold.
    #[error("this is no public key: what the PEM holds is no SubjectPublicKeyInfo")]
    Der,
    /// A key for signatures that are not checked.
    #[error("keys of this algorithm are not supported")]
    Algorithm,
    /// An RSA key that is too weak, or too large.
    #[error("an RSA key of {bits} bits is not supported")]
    RsaBits {
        /// Bits of its modulus.
        bits: usize,
    },
}

impl Explain for KeyError {
    fn kind(&self) -> Kind {
        match self {
            KeyError::Pem { .. } | KeyError::Der => Kind::Usage,
            KeyError::Algorithm | KeyError::RsaBits { .. } => Kind::Unsupported,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            KeyError::Pem { .. } | KeyError::Der => {
                "`cosign public-key --key KEY` writes one; several keys go into keyPaths, one a file".to_owned()
            }
            _ => "supported are ECDSA on P-256 and P-384, Ed25519, and RSA of 2048 to 8192 bits".to_owned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused key is a failed test")]
mod tests {
    use std::process::Command;

    use super::*;

    /// A value of DER.
    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let length = match body.len() {
            length @ ..=0x7f => vec![length as u8],
            length @ ..=0xff => vec![0x81, length as u8],
            length => [&[0x82], &(length as u16).to_be_bytes()[..]].concat(),
        };
        [&[tag], &length[..], &body].concat()
    }

    fn spki(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
        der(SEQUENCE, &[&der(SEQUENCE, algorithm), &der(BIT_STRING, &[&[0], key])])
    }

    fn oid(bytes: &[u8]) -> Vec<u8> {
        der(OBJECT_IDENTIFIER, &[bytes])
    }

    fn rsa(bits: usize) -> Vec<u8> {
        let modulus = [&[0][..], &vec![0xff; bits / 8]].concat();
        let key = der(SEQUENCE, &[&der(INTEGER, &[&modulus]), &der(INTEGER, &[&[1, 0, 1]])]);
        spki(&[&oid(RSA_ENCRYPTION), &der(NULL, &[])], &key)
    }

    fn point(length: usize) -> Vec<u8> {
        [&[4][..], &vec![7; length]].concat()
    }

    #[test]
    fn keys_of_four_algorithms_are_read_and_others_refused() {
        let ec = |curve: &[u8], length| spki(&[&oid(EC_PUBLIC_KEY), &oid(curve)], &point(length));
        for good in [ec(P256, 64), ec(P384, 96), spki(&[&oid(ID_ED25519)], &[7; 32]), rsa(2048), rsa(4096)] {
            PublicKey::from_spki(&good).unwrap();
            for end in 0..good.len() {
                assert_eq!(PublicKey::from_spki(&good[..end]).unwrap_err(), KeyError::Der, "{end}");
            }
            let longer = [&good[..], &[0]].concat();
            assert_eq!(PublicKey::from_spki(&longer).unwrap_err(), KeyError::Der);
        }
        for (bad, why) in [
            (ec(&[0x2b, 0x81, 0x04, 0x00, 0x23], 132), KeyError::Algorithm),
            (ec(P256, 63), KeyError::Der),
            (ec(P384, 64), KeyError::Der),
            (spki(&[&oid(&[0x2b, 0x65, 0x71])], &[7; 57]), KeyError::Algorithm),
            (spki(&[&oid(ID_ED25519)], &[7; 31]), KeyError::Der),
            (rsa(1024), KeyError::RsaBits { bits: 1024 }),
            (rsa(16384), KeyError::RsaBits { bits: 16384 }),
        ] {
            assert_eq!(PublicKey::from_spki(&bad).unwrap_err(), why);
        }
    }

    #[test]
    fn a_file_has_one_key_and_nothing_else() {
        let body = STANDARD.encode(spki(&[&oid(ID_ED25519)], &[7; 32]));
        let pem = format!("{BEGIN}\n{body}\n{END}\n");
        PublicKey::from_pem(pem.as_bytes()).unwrap();
        PublicKey::from_pem(pem.replace('\n', "\r\n").as_bytes()).unwrap();
        for bad in [
            pem.repeat(2),
            format!("# key\n{pem}"),
            pem.replace("PUBLIC KEY", "ENCRYPTED SIGSTORE PRIVATE KEY"),
            pem.replace(END, ""),
            pem.replace(&body, "%"),
            pem.replace(&body, ""),
            String::new(),
            " ".repeat(KEY_MAX + 1),
        ] {
            assert!(PublicKey::from_pem(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(PublicKey::from_pem(&[0xff; 8]).is_err());
    }

    /// What openssl makes, as every signer's library does, for each algorithm.
    #[test]
    fn signatures_of_openssl_are_right_and_changed_ones_wrong() {
        if Command::new("openssl").arg("version").output().is_err() {
            fixture::skip("openssl is not installed");
            return;
        }
        let directory = std::env::temp_dir().join(format!("sublet-key-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let openssl = |arguments: &str| {
            let words: Vec<&str> = arguments.split(' ').collect();
            let done = Command::new("openssl").args(&words).current_dir(&directory).output().unwrap();
            assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
        };
        let message = b"what is signed";
        std::fs::write(directory.join("message"), message).unwrap();
        for (kind, sign) in [
            ("EC -pkeyopt ec_paramgen_curve:P-256", "-digest sha256"),
            ("EC -pkeyopt ec_paramgen_curve:P-384", "-digest sha384"),
            ("EC -pkeyopt ec_paramgen_curve:P-384", "-digest sha256"),
            ("RSA -pkeyopt rsa_keygen_bits:2048", "-digest sha256"),
            ("ED25519", ""),
        ] {
            openssl(&format!("genpkey -out key -algorithm {kind}"));
            openssl("pkey -in key -pubout -out public");
            openssl(format!("pkeyutl -sign -inkey key -rawin -in message -out signature {sign}").trim_end());
            let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
            let (key, mut signature) = (PublicKey::from_pem(&read("public")).unwrap(), read("signature"));
            assert!(key.has_signed(message, &signature), "{kind} {sign}");
            assert!(!key.has_signed(b"what was signed", &signature), "{kind} {sign}");
            let last = signature.len() - 1;
            signature[last] ^= 1;
            assert!(!key.has_signed(message, &signature), "{kind} {sign}");
            assert!(!key.has_signed(message, &[]), "{kind} {sign}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
