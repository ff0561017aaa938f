//! What a pull and a push cost: requests, bytes and memory.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixture::image::{Image, Layer, LayerBuilder, MANIFEST, Meta};
use fixture::memory_registry::{Features, MemoryRegistry};
use serde_json::json;

use crate::support::http::{Answer, Server, find, registry_of};
use crate::support::{Done, Home, LIMIT, each_file, end, eventually, start};

/// What a pull or a push may take, whatever the layer.
const MEMORY_BYTES: u64 = 64 << 20;

/// A file that compression leaves as long as it is (xorshift64).
fn noise(bytes: usize) -> Layer {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    LayerBuilder::default().file("noise", Meta::root(0o644), &content).unwrap().finish().unwrap()
}

fn image_of(layer: Layer) -> Image {
    Image::new(vec![layer], &json!({}))
}

/// Runs a command to its end; its peak of memory is asked for again and again until then.
fn with_peak(command: &mut Command) -> (Done, u64) {
    let child = start(command);
    let status = format!("/proc/{}/status", child.id());
    let peak = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&peak);
    let watch = std::thread::spawn(move || {
        // It is there until it is waited for, and without memory once it has ended.
        while let Ok(text) = fs::read_to_string(&status)
            && let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            seen.store(kib << 10, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let done = end(child, LIMIT);
    watch.join().unwrap();
    (done, peak.load(Ordering::Relaxed))
}

#[track_caller]
fn stays_small(home: &Home, what: &str, arguments: &[&str]) {
    let (done, peak_bytes) = with_peak(&mut home.command(arguments));
    assert_eq!(done.code, 0, "{what}: {done:#?}");
    println!("{what}: {} KiB", peak_bytes >> 10);
    assert!((1 << 20..MEMORY_BYTES).contains(&peak_bytes), "{what} took {} KiB", peak_bytes >> 10);
}

#[test]
fn what_is_there_costs_one_request() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    server.put_image("a", "1", &crate::image());
    let name = format!("{}/a:1", server.address);
    home.ok(&["pull", &name]);
    let before = server.seen().len();
    let said = home.ok(&["pull", &name]);
    assert!(said.contains("Image is up to date"), "{said}");
    let seen = server.seen().split_off(before);
    let asked: Vec<_> = seen.iter().map(|seen| (seen.method.as_str(), seen.path.as_str())).collect();
    assert_eq!(asked, [("HEAD", "/v2/a/manifests/1")]);
}

/// The configurations of both images say amd64, as those of careless builds do: the list alone tells them apart.
#[test]
fn what_is_there_for_a_platform_costs_one_request() {
    let Some(home) = Home::new(&[]) else { return };
    let images = [("amd64", crate::image()), ("arm64", image_of(noise(1000)))];
    let mut table: HashMap<String, Answer> = images.iter().flat_map(|(_, image)| registry_of("a", image)).collect();
    let entries = images.iter().map(|(architecture, image)| {
        json!({ "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture } })
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let list = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries.collect::<Vec<_>>() });
    let list = Answer::ok(media_type, list.to_string().as_bytes());
    table.insert("/v2/a/manifests/latest".to_owned(), list);
    let server = Server::start(table);
    let name = format!("{}/a", server.address);
    let pull = |architecture: &str| {
        let before = server.asked.lock().unwrap().len();
        let said = home.ok(&["pull", "--platform", &format!("linux/{architecture}"), &name]);
        let id = home.ok(&["images", "-q", "--no-trunc", &name]);
        (said.contains("Image is up to date"), id, server.asked.lock().unwrap().split_off(before))
    };
    let (_, first, _) = pull("amd64");
    assert_eq!(pull("amd64"), (true, first.clone(), vec!["/v2/a/manifests/latest".to_owned()]));
    let (_, second, _) = pull("arm64");
    assert_ne!(second, first);
    // Its documents and layers are here still.
    assert_eq!(pull("amd64"), (false, first, vec!["/v2/a/manifests/latest".to_owned()]));
}

#[test]
fn what_a_killed_pull_has_is_not_fetched_again() {
    let Some(home) = Home::new(&[]) else { return };
    let layer = noise(4 << 20);
    let (path, size) = (format!("/v2/a/blobs/{}", fixture::image::digest(&layer.gzip)), layer.gzip.len());
    let answers = registry_of("a", &image_of(layer));
    let ranges: Arc<Mutex<Vec<String>>> = Arc::default();
    let asked = Arc::clone(&ranges);
    let server = Server::answering(move |request| {
        let mut answer = find(&answers, &request.path);
        if request.path == path {
            let range = request.header("range").to_owned();
            if let Some(first) = range.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse().ok())
            {
                answer = answer.with("Content-Range", &format!("bytes {first}-{}/{size}", size - 1));
                answer.body = answer.body.split_off(first);
                (answer.status, answer.send_bytes) = (206, answer.body.len());
            } else {
                // At its half, until its client is killed.
                answer.stall = LIMIT;
            }
            asked.lock().unwrap().push(range);
        }
        answer
    });
    let name = format!("{}/a", server.address);
    let mut first = start(&mut home.command(&["pull", &name]));
    eventually("half of the layer is in the store", || {
        let mut bytes = 0;
        each_file(&home.store().join("store/ingest"), &mut |path, file| {
            bytes += if path.ends_with("data") { file.len() } else { 0 };
        });
        bytes == size as u64 / 2
    });
    first.kill().unwrap();
    first.wait().unwrap();
    home.ok(&["pull", &name]);
    assert_eq!(*ranges.lock().unwrap(), [String::new(), format!("bytes={}-", size / 2)]);
}

#[test]
fn memory_does_not_grow_with_a_layer() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let image = image_of(noise(160 << 20));
    server.put_image("large", "1", &image);
    drop(image);
    let name = format!("{}/large:1", server.address);
    stays_small(&home, "the pull of a large layer", &["pull", &name]);
    server.clear();
    stays_small(&home, "the push of a large layer", &["push", &name]);
    assert_eq!(server.count("PUT", "/manifests/"), 1);
}

/// A layer of one file of blanks, which no other layer has, compressed by zstd with so large a window, all of which it fills.
fn wide(number: u8, window_log: u32) -> Layer {
    let mut content = vec![b' '; (1 << window_log) + (8 << 20)];
    content[0] = number;
    let plain = LayerBuilder::default().file("wide", Meta::root(0o644), &content).unwrap().finish().unwrap();
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    zstd.window_log(window_log).unwrap();
    io::copy(&mut flate2::read::GzDecoder::new(plain.gzip.as_slice()), &mut zstd).unwrap();
    Layer { gzip: zstd.finish().unwrap(), ..plain }
}

/// Three layers whose windows would take 384 MiB: they wait for each other, and the pull is as large as with one.
#[test]
fn memory_holds_one_window_of_the_largest_at_a_time() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    server.put_image("wide", "27", &Image::new((0..3).map(|number| wide(number, 27)).collect(), &json!({})));
    let (done, peak_bytes) = with_peak(&mut home.command(&["pull", &format!("{}/wide:27", server.address)]));
    assert_eq!(done.code, 0, "{done:#?}");
    println!("three windows of 128 MiB: {} KiB", peak_bytes >> 10);
    let window_bytes = 128 << 20;
    assert!((window_bytes..window_bytes + MEMORY_BYTES).contains(&peak_bytes), "{} KiB", peak_bytes >> 10);
}

#[test]
fn memory_holds_three_windows_of_usual_size() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    // What `zstd -19` takes, and then `zstd --ultra -20`.
    for window_log in [23, 25] {
        let layers = (0..3).map(|number| wide(number, window_log)).collect();
        server.put_image("wide", &window_log.to_string(), &Image::new(layers, &json!({})));
        let name = format!("{}/wide:{window_log}", server.address);
        stays_small(&home, &format!("the pull of three windows of {} MiB", (1 << window_log) >> 20), &["pull", &name]);
    }
}

#[test]
fn memory_holds_two_hundred_thousand_files() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let content = [b'x'; 2048];
    let mut layer = LayerBuilder::default();
    for file in 0..200_000 {
        let path = format!("usr/lib/modules/package-{}/file-{file}", file / 100);
        // Some of each kind of place: in the index, in the pack.
        layer = layer.file(&path, Meta::root(0o644), &content[..file * 37 % 1024]).unwrap();
    }
    server.put_image("many", "1", &image_of(layer.finish().unwrap()));
    let name = format!("{}/many:1", server.address);
    stays_small(&home, "the pull of many files", &["pull", &name]);
}
