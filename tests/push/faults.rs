//! Pushes that are refused, broken off and killed.

use std::fs;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use fixture::image::Image;
use fixture::memory_registry::{Fate, Features, MemoryRegistry, Seen};
use nix::sys::signal::Signal;

use crate::support::{Home, end, eventually, noise, signal, start};
use crate::{at, image_for};

/// A layer of this size, pulled from a registry that then forgets it, and whose writes have the fate that a rule says.
fn ready(
    home: &Home,
    size: usize,
    features: Features,
    rule: impl Fn(&Seen) -> Fate + Send + Sync + 'static,
) -> (MemoryRegistry, Image, String) {
    let image = image_for("amd64", &[&noise(size)]);
    let server = MemoryRegistry::start_with(features, rule);
    server.put_image("team/app", "1", &image);
    let name = at(&server, "team/app:1");
    home.ok(&["pull", &name]);
    server.clear();
    (server, image, name)
}

#[track_caller]
fn arrived(server: &MemoryRegistry, image: &Image) {
    assert!(server.manifest("team/app", "1").is_some_and(|raw| raw == image.manifest), "no manifest, or another");
    for (digest, bytes) in &image.blobs {
        assert!(server.blob("team/app", digest).as_ref() == Some(bytes), "the blob {digest} is not there, or another");
    }
}

#[test]
fn a_broken_connection_is_resumed() {
    let Some(home) = Home::new(&[]) else { return };
    let large = |seen: &Seen| seen.headers.get("content-length").is_some_and(|length| length.len() > 5);
    let (server, image, name) = ready(&home, 3 << 20, Features::default(), move |seen| match seen.method.as_str() {
        "PATCH" if large(seen) && seen.before < 2 => Fate::CutAfter(1 << 20),
        _ => Fate::Done,
    });
    home.ok(&["push", &name]);
    arrived(&server, &image);
    let resumed = server.seen().into_iter().filter(|seen| seen.headers.contains_key("content-range")).count();
    assert_eq!(resumed, 2);
}

#[test]
fn a_token_that_ends_is_renewed() {
    let Some(home) = Home::new(&[]) else { return };
    let features = Features { tokens: true, ..Features::default() };
    // When the other blob is through: a token that ends between its purchase and its use is a denial.
    let (through, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let large = |seen: &Seen| seen.headers["content-length"].parse::<usize>().unwrap() > 1 << 20;
    let (server, image, name) = ready(&home, 3 << 20, features, move |seen| match seen.method.as_str() {
        "PUT" => {
            let _ = through.send(());
            Fate::Done
        }
        "PATCH" if large(seen) && seen.before == 0 => {
            let wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
            assert_eq!(wait.recv_timeout(Duration::from_secs(20)), Ok(()));
            Fate::Revoked
        }
        _ => Fate::Done,
    });
    home.ok(&["push", &name]);
    arrived(&server, &image);
    let sent = server.seen().into_iter().filter(|seen| seen.method == "PATCH").count();
    assert_eq!(sent, 3, "the layer goes twice");
}

#[test]
fn a_layer_that_is_too_large_goes_in_parts() {
    let Some(home) = Home::new(&[]) else { return };
    let too_large = |seen: &Seen| seen.headers["content-length"].parse::<usize>().unwrap() > 2 << 20;
    let (server, image, name) = ready(&home, 5 << 20, Features::default(), move |seen| {
        if seen.method == "PATCH" && too_large(seen) { Fate::status(413) } else { Fate::Done }
    });
    home.ok(&["push", &name]);
    arrived(&server, &image);
    server.clear();
    home.ok(&["push", "--chunk-size", "1m", &name]);
    arrived(&server, &image);
    let whole = server.seen().into_iter().filter(|seen| seen.method == "PATCH" && too_large(seen)).count();
    assert_eq!(whole, 0);
}

#[test]
fn what_a_registry_does_not_allow_is_said() {
    let Some(home) = Home::new(&[]) else { return };
    for (fate, words) in [
        (Fate::status(403), "denied: requested access to the resource is denied"),
        (Fate::With(vec!["Location: ftp://x/".to_owned()]), "which is refused"),
        (Fate::status(405), "answered with status 405"),
    ] {
        let (server, _, name) = ready(&home, 1000, Features::default(), move |seen| match seen.method.as_str() {
            "POST" => fate.clone(),
            _ => Fate::Done,
        });
        let said = home.fails(1, &["push", &name]);
        assert!(said.contains(words) && said.contains("cannot push"), "{said}");
        assert!(server.manifest("team/app", "1").is_none());
        home.ok(&["rmi", &name]);
    }
}

#[test]
fn a_killed_push_is_made_again() {
    let Some(home) = Home::new(&[]) else { return };
    // The registry takes no manifest before the push has been killed.
    let (killed, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (server, image, name) = ready(&home, 1 << 20, Features::default(), move |seen| {
        if seen.method == "PUT" && seen.path.contains("/manifests/") {
            // Ends when the test drops the other end, whatever becomes of the test.
            let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
        Fate::Done
    });
    let child = start(&mut home.command(&["push", &name]));
    eventually("the manifest is on its way", || server.count("PUT", "/manifests/") > 0);
    signal(&child, Signal::SIGKILL);
    assert_eq!(end(child, Duration::from_secs(10)).code, 137);
    drop(killed);
    home.ok(&["push", &name]);
    arrived(&server, &image);
    // Nothing of the killed one keeps content: it goes with the name.
    home.ok(&["rmi", &name]);
    let mut left = 0;
    crate::support::each_file(&home.store().join("store/blobs"), &mut |_, metadata| {
        left += u32::from(metadata.is_file());
    });
    assert_eq!(left, 0);
}

#[test]
fn memory_does_not_grow_with_a_layer() {
    const MAX_KIB: u64 = 64 << 10;
    let Some(home) = Home::new(&[]) else { return };
    let (server, image, name) = ready(&home, 160 << 20, Features::default(), |_| Fate::Done);
    let mut command = home.command(&["push", &name]);
    let child = start(&mut command);
    let (status, mut peak_kib, began) = (format!("/proc/{}/status", child.id()), 0, Instant::now());
    // The mark of a process that has ended cannot be read any more: the last look counts.
    while began.elapsed() < Duration::from_mins(1) {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let Some(mark) = mark.and_then(|mark| mark.trim().strip_suffix(" kB")?.parse().ok()) else { break };
        peak_kib = mark;
        std::thread::sleep(Duration::from_millis(5));
    }
    let done = end(child, Duration::from_mins(1));
    assert_eq!(done.code, 0, "{done:#?}");
    arrived(&server, &image);
    println!("push of a layer of 160 MiB: {peak_kib} KiB at most");
    assert!(peak_kib > 0 && peak_kib <= MAX_KIB, "{peak_kib} KiB");
}
