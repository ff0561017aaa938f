//! Writing to registries: what was pulled arrives with the same bytes, over breaks and refusals; lists of images; searching.
//!
//! The registry is Debian's where other tools are to read what we sent, else one in the test's own memory
//! (`fixture::memory_registry`), which counts requests and fails as told. Debian's registry behind TLS, tokens and a line that
//! fails is in `bed`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod debian_registry;
mod evicted;
mod failing_line;
mod faults;
mod lists;
mod memory;
mod options;

use fixture::image::{CONFIG, Image, LAYER, LayerBuilder, MANIFEST, Meta, digest};
use fixture::memory_registry::MemoryRegistry;
use serde_json::{Value, json};

/// An image for an architecture, with one layer for each content.
fn image_for(architecture: &str, contents: &[&[u8]]) -> Image {
    let layer =
        |content: &&[u8]| LayerBuilder::default().file("file", Meta::root(0o644), content).unwrap().finish().unwrap();
    let layers: Vec<_> = contents.iter().map(layer).collect();
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string().into_bytes();
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() });
    let descriptors: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, &layer.gzip)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": descriptors,
    });
    let mut blobs: Vec<_> = layers.into_iter().map(|layer| (digest(&layer.gzip), layer.gzip)).collect();
    blobs.push((digest(&config), config));
    Image { blobs, manifest: manifest.to_string().into_bytes() }
}

/// The name of an image at a registry in memory.
fn at(server: &MemoryRegistry, rest: &str) -> String {
    format!("{}/{rest}", server.address)
}

/// The digests that a push's last lines tell, by tag.
fn told(output: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let (tag, rest) = line.split_once(": digest: ")?;
        Some((tag.to_owned(), rest.split(' ').next()?.to_owned()))
    };
    output.lines().filter_map(line).collect()
}
