//! Signatures of images by key, in the two forms in which cosign keeps them beside an image.
//!
//! - *Simple signing* (cosign's SIGNATURE_SPEC): the signed bytes are a JSON document with the digest of the image and a name,
//!   a layer of the manifest under the tag `sha256-<hex>.sig`; the signature is an annotation of the layer.
//! - *Bundle* (sigstore's bundle v0.3, cosign's BUNDLE_SPEC): a DSSE envelope around an in-toto statement, the layer of a
//!   manifest that refers to the image.
//!
//! Nothing of what is signed is read before a key fits. Certificates, transparency logs and hints beside a signature are not
//! looked at: the keys are given.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci::{Digest, Entry, Reference};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::key::PublicKey;
use crate::object::{self, Object};
use crate::policy::Identity;

/// The kind of artifact, and the media type, of a bundle.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The media type of a document that is signed.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The largest payload or bundle that is read, in bytes. With certificates and log entries it has twenty thousand.
pub const SIGNATURE_MAX: u64 = 256 << 10;
/// The most signatures of an image that are looked at.
pub const SIGNATURES_MAX: usize = 64;

/// The annotation that holds the signature of a layer.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What a document of simple signing says that it is.
const SIMPLE_TYPE: &str = "cosign container image signature";
/// What an envelope says that it holds.
const STATEMENT_PAYLOAD: &str = "application/vnd.in-toto+json";
/// What a statement says that it is.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// That a statement is a signature. The same key may have signed lists of contents, which allow nothing.
const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// A signature as it was found.
#[derive(Clone, Debug)]
pub struct Signature {
    form: Form,
    /// What says for which image it is.
    payload: Vec<u8>,
    /// The bytes that were signed.
    message: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Simple,
    Statement,
}

/// What a signature says.
#[derive(Debug)]
struct Claim {
    digest: Digest,
    /// For which name.
    name: Option<String>,
}

/// The layers of a manifest with their annotations.
pub fn layers(manifest: &[u8]) -> Result<Vec<Entry>, SignatureError> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(deserialize_with = "object::list")]
        layers: Vec<Entry>,
    }
    let manifest: Manifest = json("the manifest of signatures", manifest)?;
    Ok(manifest.layers)
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, text: &'a [u8]) -> Result<T, SignatureError> {
    let read = serde_json::from_slice(text).map(|Object(value)| value);
    read.map_err(|cause| SignatureError::Json { what, cause })
}

fn decoded(what: &'static str, text: &str) -> Result<Vec<u8>, SignatureError> {
    STANDARD.decode(text).map_err(|_| SignatureError::Malformed { what })
}

impl Signature {
    /// One of simple signing: a layer of the manifest, and its bytes.
    pub fn simple(layer: &Entry, payload: Vec<u8>) -> Result<Self, SignatureError> {
        let text = layer.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
        let text = text.ok_or(SignatureError::Malformed { what: "the annotation with the signature" })?;
        let signatures = vec![decoded("the annotation with the signature", text)?];
        Ok(Signature { form: Form::Simple, message: payload.clone(), payload, signatures })
    }

    /// A bundle. Of what it can hold only a DSSE envelope can name an image.
    pub fn bundle(text: &[u8]) -> Result<Self, SignatureError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Bundle {
            media_type: String,
            dsse_envelope: Option<Object<Envelope>>,
            message_signature: Option<IgnoredAny>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Envelope {
            payload: String,
            payload_type: String,
            #[serde(deserialize_with = "object::list")]
            signatures: Vec<EnvelopeSignature>,
        }
        #[derive(Deserialize)]
        struct EnvelopeSignature {
            sig: String,
        }
        let bundle: Bundle = json("the bundle", text)?;
        if bundle.media_type != BUNDLE {
            return Err(SignatureError::Malformed { what: "the media type of the bundle" });
        }
        let envelope = match (bundle.dsse_envelope, bundle.message_signature) {
            (Some(Object(envelope)), None) => envelope,
            (None, Some(_)) => return Err(SignatureError::Nameless),
            _ => return Err(SignatureError::Malformed { what: "the content of the bundle" }),
        };
        if envelope.payload_type != STATEMENT_PAYLOAD {
            return Err(SignatureError::Malformed { what: "the payload type of the bundle" });
        }
        // The specification of bundles has exactly one; DSSE has any number.
        let [signature] = &envelope.signatures[..] else {
            return Err(SignatureError::Malformed { what: "the number of signatures in the bundle" });
        };
        let payload = decoded("the payload of the bundle", &envelope.payload)?;
        let signatures = vec![decoded("the signature of the bundle", &signature.sig)?];
        Ok(Signature { form: Form::Statement, message: encoded(&payload), payload, signatures })
    }

    /// Whether one of the keys has signed that the image with one of these digests has a name that fits.
    pub fn check(
        &self,
        keys: &[PublicKey],
        identity: &Identity,
        pulled: &Reference,
        digests: &[Digest],
    ) -> Result<(), SignatureError> {
        let signed = |key: &PublicKey| self.signatures.iter().any(|signature| key.has_signed(&self.message, signature));
        if !keys.iter().any(signed) {
            return Err(SignatureError::Key);
        }
        let claim = match self.form {
            Form::Simple => simple_claim(&self.payload)?,
            Form::Statement => statement_claim(&self.payload)?,
        };
        if !digests.contains(&claim.digest) {
            return Err(SignatureError::Digest { found: claim.digest });
        }
        let name = claim.name.ok_or(SignatureError::Nameless)?;
        if name.parse().is_ok_and(|signed| identity.fits(pulled, &signed)) {
            return Ok(());
        }
        Err(SignatureError::Identity { name, identity: identity.to_string() })
    }
}

/// The bytes that are signed for a payload (DSSE's pre-authentication encoding).
fn encoded(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {STATEMENT_PAYLOAD} {} ", STATEMENT_PAYLOAD.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Reads a document of simple signing; as its other readers do, with no word in it that is not known.
fn simple_claim(payload: &[u8]) -> Result<Claim, SignatureError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        #[serde(deserialize_with = "object::one")]
        critical: Critical,
        #[serde(rename = "optional")]
        _optional: Option<IgnoredAny>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Critical {
        #[serde(rename = "type")]
        kind: String,
        #[serde(deserialize_with = "object::one")]
        image: Image,
        #[serde(deserialize_with = "object::one")]
        identity: Named,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Image {
        docker_manifest_digest: Digest,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Named {
        docker_reference: String,
    }
    let Document { critical, .. } = json("what is signed", payload)?;
    if critical.kind != SIMPLE_TYPE {
        return Err(SignatureError::Malformed { what: "the type of what is signed" });
    }
    Ok(Claim { digest: critical.image.docker_manifest_digest, name: Some(critical.identity.docker_reference) })
}

/// Reads a statement that an image is signed.
fn statement_claim(payload: &[u8]) -> Result<Claim, SignatureError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        #[serde(rename = "_type")]
        kind: String,
        predicate_type: String,
        #[serde(deserialize_with = "object::list")]
        subject: Vec<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        name: Option<String>,
        #[serde(deserialize_with = "object::one")]
        digest: Digests,
    }
    #[derive(Deserialize)]
    struct Digests {
        sha256: String,
    }
    let statement: Statement = json("what is signed", payload)?;
    if statement.kind != STATEMENT || statement.predicate_type != SIGN_PREDICATE {
        return Err(SignatureError::Malformed { what: "the type of what is signed" });
    }
    // One image each, so that the name cannot be another one's.
    let [subject] = &statement.subject[..] else {
        return Err(SignatureError::Malformed { what: "the number of images in what is signed" });
    };
    let digest = Digest::from_hex(&subject.digest.sha256);
    let digest = digest.map_err(|_| SignatureError::Malformed { what: "the digest in what is signed" })?;
    Ok(Claim { digest, name: subject.name.clone().filter(|name| !name.is_empty()) })
}

/// Why a signature is none for an image.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Some of it is no JSON, or not what it must be.
    #[error("{what} cannot be read: {cause}")]
    Json {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// Some of it is not what it must be.
    #[error("{what} is not as it must be")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
    /// None of the keys has made it.
    #[error("it is by none of the keys")]
    Key,
    /// It is for another image.
    #[error("it is for the digest {found}")]
    Digest {
        /// That one's.
        found: Digest,
    },
    /// It says a digest alone.
    #[error("it names no image, so that it might have been made for another name")]
    Nameless,
    /// It is for another name.
    #[error("it is for the name {name:?}, which does not fit by {identity}")]
    Identity {
        /// As it is signed.
        name: String,
        /// What the policy wants.
        identity: String,
    },
}

impl SignatureError {
    /// What can be done about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            SignatureError::Nameless => Some(
                "bundles of cosign 3 name no image; `cosign sign --new-bundle-format=false --use-signing-config=false` \
                 makes signatures that do",
            ),
            SignatureError::Identity { .. } => Some(
                "cosign signs the repository without a tag: \"signedIdentity\": {\"type\": \"matchRepository\"} takes that, \
                 and `cosign sign --sign-container-identity NAME:TAG` signs the whole name",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a refused signature is a failed test")]
mod tests {
    use std::collections::BTreeMap;

    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::{Value, json};

    use super::*;

    const NAME: &str = "a.io/app:1";

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
            Signer(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
        }

        fn public(&self) -> PublicKey {
            let head = [
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
                0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ];
            let body = STANDARD.encode([&head, self.0.public_key().as_ref()].concat());
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
            PublicKey::from_pem(pem.as_bytes()).unwrap()
        }

        fn sign(&self, message: &[u8]) -> String {
            STANDARD.encode(self.0.sign(&SystemRandom::new(), message).unwrap())
        }

        fn simple(&self, payload: &[u8]) -> Signature {
            let annotations = BTreeMap::from([(ANNOTATION.to_owned(), self.sign(payload))]);
            Signature::simple(&layer(annotations), payload.to_vec()).unwrap()
        }

        fn bundle(&self, statement: &Value) -> Signature {
            let payload = statement.to_string().into_bytes();
            let sig = self.sign(&encoded(&payload));
            let envelope = json!({
                "payload": STANDARD.encode(&payload), "payloadType": STATEMENT_PAYLOAD, "signatures": [{ "sig": sig }],
            });
            let bundle = json!({
                "mediaType": BUNDLE, "verificationMaterial": { "publicKey": { "hint": "x" } }, "dsseEnvelope": envelope,
            });
            Signature::bundle(bundle.to_string().as_bytes()).unwrap()
        }
    }

    fn layer(annotations: BTreeMap<String, String>) -> Entry {
        let digest = Digest::of(b"");
        let annotations = Some(annotations);
        let media_type = SIMPLE_SIGNING.to_owned();
        Entry { media_type, artifact_type: None, digest, size: 0, platform: None, annotations }
    }

    fn payload(digest: &Digest, name: &str) -> Value {
        json!({
            "critical": {
                "identity": { "docker-reference": name },
                "image": { "docker-manifest-digest": digest },
                "type": SIMPLE_TYPE,
            },
            "optional": null,
        })
    }

    fn statement(digest: &Digest) -> Value {
        json!({
            "_type": STATEMENT, "predicateType": SIGN_PREDICATE, "predicate": {},
            "subject": [{ "name": NAME, "digest": { "sha256": digest.hex() } }],
        })
    }

    fn check(signer: &Signer, signature: &Signature) -> Result<(), String> {
        let digests = [Digest::of(b"index"), Digest::of(b"manifest")];
        let checked = signature.check(&[signer.public()], &Identity::default(), &NAME.parse().unwrap(), &digests);
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn a_signature_is_for_one_image_by_one_key() {
        let (signer, other) = (Signer::new(), Signer::new());
        for digest in [Digest::of(b"index"), Digest::of(b"manifest")] {
            let simple = signer.simple(payload(&digest, NAME).to_string().as_bytes());
            let bundle = signer.bundle(&statement(&digest));
            for signature in [simple, bundle] {
                check(&signer, &signature).unwrap();
                assert_eq!(check(&other, &signature).unwrap_err(), "it is by none of the keys");
                let keys = [other.public(), signer.public()];
                signature.check(&keys, &Identity::default(), &NAME.parse().unwrap(), &[digest]).unwrap();
            }
        }
        let elsewhere = Digest::of(b"another image");
        for signature in
            [signer.simple(payload(&elsewhere, NAME).to_string().as_bytes()), signer.bundle(&statement(&elsewhere))]
        {
            assert_eq!(check(&signer, &signature).unwrap_err(), format!("it is for the digest {elsewhere}"));
        }
    }

    #[test]
    fn every_byte_of_what_is_signed_counts() {
        let signer = Signer::new();
        let text = payload(&Digest::of(b"manifest"), NAME).to_string().into_bytes();
        let good = signer.simple(&text);
        for at in 0..text.len() {
            let mut message = text.clone();
            message[at] ^= 1;
            let changed = Signature { payload: message.clone(), message, ..good.clone() };
            assert!(check(&signer, &changed).is_err(), "{at}");
            let cut = Signature { payload: text[..at].to_vec(), message: text[..at].to_vec(), ..good.clone() };
            assert!(check(&signer, &cut).is_err(), "{at}");
        }
    }

    #[test]
    fn what_is_signed_says_all_that_it_must_and_nothing_else() {
        let signer = Signer::new();
        let good = payload(&Digest::of(b"manifest"), NAME);
        let with = |pointer: &str, value: Value| {
            let mut changed = good.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[key] = value;
            changed.to_string()
        };
        for (text, why) in [
            (with("/critical/type", json!("atomic container signature")), "the type of what is signed"),
            (with("/critical/image/docker-manifest-digest", json!("sha256:00")), "cannot be read"),
            (with("/critical/image/docker-manifest-digest", json!(null)), "cannot be read"),
            (with("/critical/identity/docker-reference", json!("a.io/app")), "does not fit"),
            (with("/critical/identity/docker-reference", json!("")), "does not fit"),
            (with("/critical/identity/docker-reference", json!("a.io/other:1")), "does not fit"),
            (with("/critical/more", json!(1)), "unknown field"),
            (with("/more", json!(1)), "unknown field"),
            (good.to_string().replace("\"type\"", "\"type\":\"x\",\"type\""), "duplicate field"),
            (with("/critical/image", json!([Digest::of(b"manifest")])), "expected an object"),
            (with("/critical/identity", json!([NAME])), "expected an object"),
            (format!("[{},null]", good["critical"]), "expected an object"),
            ("{}".to_owned(), "missing field"),
            (String::new(), "cannot be read"),
            ("[".repeat(100_000), "cannot be read"),
        ] {
            let error = check(&signer, &signer.simple(text.as_bytes())).unwrap_err();
            assert!(error.contains(why), "{text:.200}: {error}");
        }
        check(&signer, &signer.simple(with("/optional", json!({ "creator": "me", "x": [1] })).as_bytes())).unwrap();

        let good = statement(&Digest::of(b"manifest"));
        let with = |key: &str, value: Value| {
            let mut changed = good.clone();
            changed[key] = value;
            signer.bundle(&changed)
        };
        let subject = good["subject"][0].clone();
        let nameless = json!([{ "digest": subject["digest"] }]);
        for (signature, why) in [
            (with("_type", json!("https://in-toto.io/Statement/v0.1")), "the type of what is signed"),
            (with("predicateType", json!("https://spdx.dev/Document")), "the type of what is signed"),
            (with("subject", json!([])), "the number of images"),
            (with("subject", json!([subject, subject])), "the number of images"),
            (with("subject", json!([[NAME, subject["digest"]]])), "expected an object"),
            (with("subject", nameless), "names no image"),
            (with("subject", json!([{ "name": NAME, "digest": { "sha512": "x" } }])), "missing field `sha256`"),
            (with("subject", json!([{ "name": NAME, "digest": { "sha256": "x" } }])), "the digest in what is signed"),
        ] {
            let error = check(&signer, &signature).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn bundles_without_one_envelope_are_refused() {
        let envelope =
            json!({ "payload": "e30=", "payloadType": STATEMENT_PAYLOAD, "signatures": [{ "sig": "eA==" }] });
        let good = json!({ "mediaType": BUNDLE, "dsseEnvelope": envelope });
        Signature::bundle(good.to_string().as_bytes()).unwrap();
        let with = |pointer: &str, value: Value| {
            let mut changed = good.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            changed
        };
        let mut both = good.clone();
        both["messageSignature"] = json!({});
        for bad in [
            with("/mediaType", json!("application/vnd.dev.sigstore.bundle+json;version=0.1")),
            with("/dsseEnvelope", json!(null)),
            with("/dsseEnvelope", json!(["e30=", STATEMENT_PAYLOAD, [{ "sig": "eA==" }]])),
            with("/dsseEnvelope/signatures", json!([["eA=="]])),
            with("/dsseEnvelope/payloadType", json!("text/plain")),
            with("/dsseEnvelope/payload", json!("%")),
            with("/dsseEnvelope/signatures", json!([])),
            with("/dsseEnvelope/signatures/0/sig", json!("%")),
            both,
        ] {
            assert!(Signature::bundle(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        let message = json!({ "mediaType": BUNDLE, "messageSignature": { "signature": "eA==" } });
        assert!(matches!(Signature::bundle(message.to_string().as_bytes()), Err(SignatureError::Nameless)));
    }

    #[test]
    fn a_layer_without_a_signature_is_none() {
        assert!(Signature::simple(&layer(BTreeMap::new()), Vec::new()).is_err());
        let annotations = BTreeMap::from([(ANNOTATION.to_owned(), "%".to_owned())]);
        assert!(Signature::simple(&layer(annotations), Vec::new()).is_err());
        assert!(layers(b"{}").is_err() && layers(br#"{"layers":[{"digest":"x"}]}"#).is_err());
        assert!(layers(br#"{"layers":[]}"#).unwrap().is_empty());
    }
}
