//! Registries that do not answer, or lie.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::json;

use crate::support::http::{Answer, Server, registry_of};
use crate::support::{Home, Need, Within, each_file, in_namespaces, registry};

/// An image of one layer with this much incompressible content.
fn image(bytes: usize) -> Image {
    let mut state = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        // Knuth's 64-bit congruential generator: noise that gzip cannot shrink.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(bytes)
    .collect();
    let layer = LayerBuilder::default().file("noise", Meta::root(0o644), &content).unwrap().finish().unwrap();
    Image::new(vec![layer], &json!({ "Cmd": ["/noise"] }))
}

/// Pulls from a server with these answers, which must fail; its standard error.
#[track_caller]
fn pull_fails(home: &Home, answers: HashMap<String, Answer>) -> String {
    let server = Server::start(answers);
    let said = home.fails(1, &["pull", &format!("{}/bad", server.address)]);
    assert_eq!(home.ok(&["images", "-q"]), "", "a failed pull makes no image");
    said
}

fn layer_path(image: &Image) -> String {
    format!("/v2/bad/blobs/{}", image.blobs[0].0)
}

#[test]
fn an_unknown_image_is_named() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let name = format!("{}/no-such-image", registry());
    let said = home.fails(1, &["pull", &name]);
    assert!(said.contains("no-such-image"), "{said}");
    home.fails(125, &["run", "--rm", &name, "true"]);
    assert!(home.containers().is_empty());
}

#[test]
fn a_malformed_name_is_refused_before_any_request() {
    let Some(home) = Home::new(&[]) else { return };
    for name in ["UPPER/case", "a//b", "x:", "x@sha256:12", "../x", ""] {
        home.fails(125, &["run", "--rm", name, "true"]);
    }
}

#[test]
fn a_registry_that_is_not_there_is_named_with_its_port() {
    let Some(home) = Home::new(&[]) else { return };
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = home.fails(1, &["pull", &format!("{address}/x")]);
    assert!(said.contains(&address.to_string()) && said.contains("refused"), "{said}");
}

#[test]
fn a_layer_with_other_bytes_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let (good, other) = (image(1000), image(2000));
    let mut answers = registry_of("bad", &good);
    let mut lie = other.blobs[0].1.clone();
    lie.resize(good.blobs[0].1.len(), 0);
    answers.insert(layer_path(&good), Answer::ok("application/octet-stream", &lie));
    let said = pull_fails(&home, answers);
    assert!(said.contains("digest") && said.contains(&good.blobs[0].0), "{said}");
}

#[test]
fn a_manifest_with_other_bytes_than_its_name_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let good = image(1000);
    let mut answers = registry_of("bad", &good);
    let manifest = Answer::ok(fixture::image::MANIFEST, &image(2000).manifest);
    answers.insert(format!("/v2/bad/manifests/{}", good.digest()), manifest);
    let server = Server::start(answers);
    let said = home.fails(1, &["pull", &format!("{}/bad@{}", server.address, good.digest())]);
    assert!(said.contains("digest"), "{said}");
}

#[test]
fn a_layer_that_ends_early_is_refused_and_the_next_pull_repairs() {
    let Some(home) = Home::new(&[]) else { return };
    let good = image(200_000);
    let whole = registry_of("bad", &good);
    let mut answers = whole.clone();
    if let Some(answer) = answers.get_mut(&layer_path(&good)) {
        answer.send_bytes /= 2;
    }
    pull_fails(&home, answers);
    let server = Server::start(whole);
    home.ok(&["pull", &format!("{}/bad", server.address)]);
    assert_eq!(home.ok(&["images", "-q"]).lines().count(), 1);
}

#[test]
fn a_layer_that_is_no_archive_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let mut bad = image(1000);
    // The bytes and their digest agree: only their meaning is wrong.
    let garbage = b"this is neither gzip nor tar, whatever the manifest says".repeat(40);
    let digest = fixture::image::digest(&garbage);
    let manifest = String::from_utf8(bad.manifest.clone()).unwrap();
    let size = bad.blobs[0].1.len();
    let manifest = manifest
        .replace(&bad.blobs[0].0, &digest)
        .replace(&format!("\"size\":{size}"), &format!("\"size\":{}", garbage.len()));
    bad.manifest = manifest.into_bytes();
    bad.blobs[0] = (digest, garbage);
    pull_fails(&home, registry_of("bad", &bad));
}

#[test]
fn a_layer_cannot_write_outside_its_root() {
    let Some(home) = Home::new(&[]) else { return };
    let name = format!("sublet-escape-{}", crate::support::unique());
    // The tar crate refuses to write `..`, so the name is patched into the finished archive.
    let mut tar = tar_of(&format!("xx/xx/xx/xx/xx/xx/tmp/{name}"));
    patch(&mut tar, b"xx/", b"../");
    let layer = fixture::image::Layer::from_tar(tar.as_slice()).unwrap();
    let evil = Image::new(vec![layer], &json!({}));
    let server = Server::start(registry_of("bad", &evil));
    home.run(&["pull", &format!("{}/bad", server.address)]);
    assert!(server.asked.lock().unwrap().contains(&layer_path(&evil)), "the layer was not even fetched");
    assert!(!std::path::Path::new("/tmp").join(&name).exists(), "the layer escaped");
    let mut outside = Vec::new();
    each_file(&home.directory, &mut |path, _| {
        if path.ends_with(&name) && !path.starts_with(home.store()) {
            outside.push(path.to_path_buf());
        }
    });
    assert!(outside.is_empty(), "{outside:?}");
}

/// An uncompressed tar stream with one file.
fn tar_of(path: &str) -> Vec<u8> {
    use std::io::Read;
    let layer = LayerBuilder::default().file(path, Meta::root(0o644), b"escaped").unwrap().finish().unwrap();
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(layer.gzip.as_slice()).read_to_end(&mut tar).unwrap();
    tar
}

/// Replaces bytes in the name of the first header and sets its checksum right.
fn patch(tar: &mut [u8], from: &[u8], to: &[u8]) {
    for start in 0..100 - from.len() {
        if &tar[start..start + from.len()] == from {
            tar[start..start + from.len()].copy_from_slice(to);
        }
    }
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let big = image(6 << 20);
    let server = Server::start(registry_of("bad", &big));
    // A small tmpfs as the data directory, in a namespace of our own.
    let data = home.directory.join("data").display().to_string();
    let small = format!("mount -t tmpfs -o size=3m tmpfs {data}");
    let script = format!(
        "{{ {bin} pull {address}/bad; code=$?; {bin} images -q; du -sk {data} | cut -f1; exit $code; }}",
        bin = home.bin().display(),
        address = server.address,
    );
    let Some(done) = in_namespaces(&home, Within::Root, &small, &script) else { return };
    assert_eq!(done.code, 1, "{done:#?}");
    assert!(done.stderr.contains("No space left on device"), "{done:#?}");
    // What pull prints, no image id, and the size.
    let left_kib: u64 = done.stdout.lines().nth(1).unwrap_or_default().parse().expect("a number");
    assert!(left_kib < 1024, "the half blob was kept: {done:#?}");
    assert_eq!(fs::read_dir(home.directory.join("data")).unwrap().count(), 0);
}
