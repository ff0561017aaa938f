//! The store: what it takes, whether it is whole, what may go, and what is left of commands that were killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod content;
mod fsck;
mod full;
mod killed;
mod names;
mod prune;
mod stores;
mod together;
mod usage;

use fixture::image::{Image, Layer, LayerBuilder, Meta};
use serde_json::json;
use support::http::{Server, registry_of};
use support::{assert_sound, df, du};

/// Incompressible content; another seed gives another one.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        // Knuth's 64-bit congruential generator: noise that gzip cannot shrink.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A layer with one file that lies in an object of its own, one in the pack and one in the index.
fn layer(seed: u64) -> Layer {
    let builder = LayerBuilder::default();
    let builder = builder.file(&format!("large-{seed}"), Meta::root(0o644), &noise(seed, 150_000)).unwrap();
    let builder = builder.file(&format!("small-{seed}"), Meta::root(0o600), &noise(seed + 1000, 3_000)).unwrap();
    builder.file(&format!("tiny-{seed}"), Meta::root(0o755), b"tiny").unwrap().finish().unwrap()
}

/// An image of the layers with these seeds, with a label of its own.
fn image(label: &str, seeds: &[u64]) -> Image {
    let layers = seeds.iter().map(|seed| layer(*seed)).collect();
    Image::new(layers, &json!({ "Cmd": ["/none"], "Labels": { "name": label } }))
}

/// A registry with these images; the repository's name is the label.
fn serve(images: &[(&str, &[u64])]) -> Server {
    let tables = images.iter().flat_map(|(label, seeds)| registry_of(label, &image(label, seeds)));
    Server::start(tables.collect())
}
