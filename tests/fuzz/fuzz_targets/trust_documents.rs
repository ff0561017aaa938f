//! What administrators, signers and registries write about trust: any bytes give a policy, a key, a lock or an error, and a
//! document that a key has signed is for one image or an error.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci::{Digest, Entry, Platform, Reference};
use ring::signature::{Ed25519KeyPair, KeyPair};
use trust::signature::{BUNDLE, SIMPLE_SIGNING, layers};
use trust::{Identity, Lock, Policy, PublicKey, Signature};

static KEY: LazyLock<(Ed25519KeyPair, PublicKey)> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let body = STANDARD.encode([&head, pair.public_key().as_ref()].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    let public = PublicKey::from_pem(pem.as_bytes()).unwrap();
    (pair, public)
});

fn sign(message: &[u8]) -> String {
    STANDARD.encode(KEY.0.sign(message))
}

fn simple(payload: &[u8]) -> Signature {
    let annotations = BTreeMap::from([("dev.cosignproject.cosign/signature".to_owned(), sign(payload))]);
    let layer = Entry {
        media_type: SIMPLE_SIGNING.to_owned(),
        artifact_type: None,
        digest: Digest::of(payload),
        size: payload.len() as u64,
        platform: None,
        annotations: Some(annotations),
    };
    Signature::simple(&layer, payload.to_vec()).unwrap()
}

fn bundle(payload: &[u8]) -> Signature {
    let kind = "application/vnd.in-toto+json";
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let (sig, payload) = (sign(&[head.as_bytes(), payload].concat()), STANDARD.encode(payload));
    let text = serde_json::json!({
        "mediaType": BUNDLE,
        "dsseEnvelope": { "payload": payload, "payloadType": kind, "signatures": [{ "sig": sig }] },
    });
    Signature::bundle(text.to_string().as_bytes()).unwrap()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let name: Reference = "a.io/team/app:1".parse().unwrap();
    if let Ok(policy) = Policy::parse(bytes) {
        assert!(!policy.for_reference(&name).requirements.is_empty());
        assert!(!policy.for_file("oci", Some(Path::new("/a/b")), Some("c")).requirements.is_empty());
    }
    if let Ok(lock) = Lock::parse(bytes) {
        let _ = lock.find(&name, &Platform::host());
        assert_eq!(Lock::parse(lock.text().as_bytes()).unwrap(), lock);
    }
    if let Ok(key) = PublicKey::from_pem(bytes) {
        assert!(!key.has_signed(bytes, bytes));
    }
    let _ = (layers(bytes), Signature::bundle(bytes));
    let digests = [Digest::of(b"manifest")];
    for signature in [simple(bytes), bundle(bytes)] {
        let _ = signature.check(std::slice::from_ref(&KEY.1), &Identity::default(), &name, &digests);
    }
});
