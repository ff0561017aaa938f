//! Which images may be brought in: policies with signatures by key, and files of locked digests.
//!
//! The registry is one in the test's own memory, which shows each request; the keys are made by each test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod locked;
mod refused;
mod signed;

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fixture::image::{Image, LayerBuilder, MANIFEST, Meta, digest};
use fixture::memory_registry::MemoryRegistry;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use support::Home;

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// An image with one small file.
fn image(content: &[u8]) -> Image {
    let layer = LayerBuilder::default().file("hello", Meta::root(0o644), content).unwrap().finish().unwrap();
    Image::new(vec![layer], &json!({ "Cmd": ["/hello"] }))
}

/// The digest of the layer of such an image.
fn layer_of(image: &Image) -> &str {
    &image.blobs[0].0
}

/// Gives a registry an index with an image in it, under a tag; its digest.
fn put_index(server: &MemoryRegistry, repository: &str, tag: &str, image: &Image) -> String {
    server.put_image(repository, "inner", image);
    let entry = json!({
        "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
        "platform": { "os": "linux", "architecture": "amd64" },
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    server.put_manifest(repository, tag, INDEX, index.to_string().as_bytes())
}

/// The name of an image at a registry.
fn at(server: &MemoryRegistry, rest: &str) -> String {
    format!("{}/{rest}", server.address)
}

/// A key as cosign makes them.
struct Key(EcdsaKeyPair);

impl Key {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Key(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    /// The file of the public half.
    fn pem(&self) -> String {
        // A SubjectPublicKeyInfo of this curve up to the point (RFC 5480).
        let head = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let body = STANDARD.encode([&head, self.0.public_key().as_ref()].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }

    fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.0.sign(&SystemRandom::new(), message).unwrap())
    }

    /// Signs an image as cosign 2 does: under the tag of `digest`.
    fn simple(&self, server: &MemoryRegistry, repository: &str, digest: &str, payload: &str) {
        let blob = server.put_blob(repository, payload.as_bytes());
        put_signature(server, repository, digest, &blob, payload.len(), &self.sign(payload.as_bytes()));
    }

    /// Signs an image as cosign 3 does: by a manifest that refers to it, and where the registry does not list such by itself
    /// by its entry in the list.
    fn bundle(&self, server: &MemoryRegistry, repository: &str, subject: &Image, statement: &Value) {
        let payload = statement.to_string();
        let kind = "application/vnd.in-toto+json";
        let sig = self.sign(format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len()).as_bytes());
        let envelope =
            json!({ "payload": STANDARD.encode(&payload), "payloadType": kind, "signatures": [{ "sig": sig }] });
        let material = json!({ "publicKey": { "hint": "x" } });
        let bundle = json!({ "mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope });
        let bundle = bundle.to_string();
        let (blob, empty) = (server.put_blob(repository, bundle.as_bytes()), server.put_blob(repository, b"{}"));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE,
            "config": { "mediaType": EMPTY, "digest": empty, "size": 2 },
            "layers": [{ "mediaType": BUNDLE, "digest": blob, "size": bundle.len() }],
            "subject": { "mediaType": MANIFEST, "digest": subject.digest(), "size": subject.manifest.len() },
        });
        let manifest = manifest.to_string();
        let referrer = server.put_manifest(repository, "referrer", MANIFEST, manifest.as_bytes());
        let entry =
            json!({ "mediaType": MANIFEST, "digest": referrer, "size": manifest.len(), "artifactType": BUNDLE });
        let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        server.put_manifest(repository, &subject.digest().replace(':', "-"), INDEX, list.to_string().as_bytes());
    }
}

/// Puts a signature in its place.
fn put_signature(server: &MemoryRegistry, repository: &str, signed: &str, blob: &str, size: usize, signature: &str) {
    let config = server.put_blob(repository, b"{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
        "layers": [{
            "mediaType": SIMPLE_SIGNING, "digest": blob, "size": size,
            "annotations": { "dev.cosignproject.cosign/signature": signature },
        }],
    });
    let tag = format!("{}.sig", signed.replace(':', "-"));
    server.put_manifest(repository, &tag, MANIFEST, manifest.to_string().as_bytes());
}

/// What cosign 2 signs.
fn payload(digest: &str, name: &str) -> String {
    let critical = json!({
        "identity": { "docker-reference": name }, "image": { "docker-manifest-digest": digest },
        "type": "cosign container image signature",
    });
    json!({ "critical": critical, "optional": null }).to_string()
}

/// What cosign 3 signs, with a name where it has none.
fn statement(digest: &str, name: Option<&str>) -> Value {
    let mut subject = json!({ "digest": { "sha256": digest.trim_start_matches("sha256:") } });
    if let Some(name) = name {
        subject["name"] = json!(name);
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "subject": [subject], "predicate": {},
    })
}

/// The user's registries.conf.
fn configure(home: &Home, text: &str) {
    fs::create_dir_all(home.path(".config/containers")).unwrap();
    fs::write(home.path(".config/containers/registries.conf"), text).unwrap();
}

/// A short name may be of either registry.
fn search(home: &Home, first: &MemoryRegistry, second: &MemoryRegistry) {
    configure(home, &format!("unqualified-search-registries = [\"{}\", \"{}\"]\n", first.address, second.address));
}

/// Writes the user's policy: this for the registry, and nothing from elsewhere.
fn require(home: &Home, server: &MemoryRegistry, requirement: &Value) {
    let reject = json!([{ "type": "reject" }]);
    let policy =
        json!({ "default": reject, "transports": { "docker": { server.address.to_string(): [requirement] } } });
    write_policy(home, &policy.to_string());
}

fn write_policy(home: &Home, text: &str) {
    let directory = home.path(".config/containers");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("policy.json"), text).unwrap();
}

/// Wants signatures by a key, for names that fit so.
fn require_key(home: &Home, server: &MemoryRegistry, key: &Key, identity: &str) {
    let file = home.path("key.pub");
    fs::write(&file, key.pem()).unwrap();
    require(
        home,
        server,
        &json!({ "type": "sigstoreSigned", "keyPath": file, "signedIdentity": { "type": identity } }),
    );
}
