//! What a pull shows meanwhile: bars on a terminal, lines off it, objects for programs (docs/progress.md).

use std::time::Duration;

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::{Value, json};

use crate::support::http::{Answer, Server, registry_of};
use crate::support::{Home, noise};

/// A registry that has `app` with a layer of two megabytes, in the middle of which it pauses, and a small one.
fn slow() -> (Server, Image) {
    let layer = |name: &str, size| {
        LayerBuilder::default().file(name, Meta::root(0o644), &noise(size)).unwrap().finish().unwrap()
    };
    let image = Image::new(vec![layer("large", 2_000_000), layer("small", 400_000)], &json!({}));
    let mut table = registry_of("app", &image);
    for answer in table.values_mut().filter(|answer| answer.body.len() > 1_000_000) {
        *answer = Answer { stall: Duration::from_millis(1500), ..answer.clone() };
    }
    (Server::start(table), image)
}

/// The digest of the layer with more bytes.
fn large(image: &Image) -> &(String, Vec<u8>) {
    image.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap()
}

fn name(server: &Server) -> String {
    format!("{}/app:latest", server.address)
}

#[test]
fn on_a_terminal_there_are_bars_and_a_total() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = slow();
    let line = |options: &str| format!("TERM=xterm {} pull {options} {}", home.bin().display(), name(&server));
    let seen = home.on_a_terminal(&line(""));
    let id = &large(&image).0["sha256:".len()..][..12];
    assert!(seen.contains(&format!("{id}: ")), "a bar for the layer: {seen:?}");
    let both: usize = image.blobs.iter().map(|(_, bytes)| bytes.len()).filter(|length| *length > 1000).sum();
    let hundredths = (both + 5_000) / 10_000;
    let both = format!("B of {}.{:02}MB", hundredths / 100, hundredths % 100);
    assert!(seen.contains("total       : ") && seen.contains(&both), "a bar for all, {both}: {seen:?}");
    // It is known once half a second has passed, and the pause is longer.
    assert!(seen.contains("MB/s, ") && seen.contains("s left"), "its rate and the time that is left: {seen:?}");
    assert!(seen.contains(&format!("{id}: Pull complete\n")), "{seen:?}");
    assert!(seen.contains(&format!("Status: Downloaded newer image for {}\n", name(&server))), "{seen:?}");
    // The bar for all stands below each line until the last.
    let last = seen.rsplit("\u{1b}[2K").next();
    assert_eq!(last, Some(format!("{}\n", name(&server)).as_str()), "the bars are gone at the end: {seen:?}");

    home.ok(&["rmi", &name(&server)]);
    assert_eq!(home.on_a_terminal(&line("-q")), format!("{}\n", name(&server)));
    home.ok(&["rmi", &name(&server)]);
    let plain = home.on_a_terminal(&line("--progress=plain"));
    assert!(plain.contains("Pull complete\n") && !plain.contains('\u{1b}'), "{plain:?}");
    home.ok(&["rmi", &name(&server)]);
    let ci = home.on_a_terminal(&format!("CI=true {}", line("")));
    assert!(!ci.contains('\u{1b}'), "who keeps a log wants no bars: {ci:?}");
}

#[test]
fn a_warning_is_for_the_quiet_too() {
    let Some(home) = Home::new(&[]) else { return };
    let server = Server::start(crate::serving("app"));
    let done = home.run(&["pull", "-q", "--platform", "linux/s390x", &name(&server)]);
    assert_eq!((done.code, done.stdout), (0, format!("{}\n", name(&server))), "{}", done.stderr);
    let warning = "warning: the image's platform (linux/amd64) does not match the one asked for (linux/s390x)\n";
    assert_eq!(done.stderr, warning);
}

#[test]
fn off_it_there_are_lines() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = slow();
    let done = home.run(&["pull", &name(&server)]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    let mut lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines.remove(0), "latest: Pulling from app");
    // Which of two layers is there first is open.
    lines[..2].sort_unstable();
    let short = |(digest, _): &(String, Vec<u8>)| format!("{}: Pull complete", &digest["sha256:".len()..][..12]);
    let mut complete: Vec<String> = image.blobs.iter().filter(|(_, bytes)| bytes.len() > 1000).map(short).collect();
    complete.sort_unstable();
    let digest = format!("Digest: {}", image.digest());
    let status = format!("Status: Downloaded newer image for {}", name(&server));
    assert_eq!(lines, [&complete[0], &complete[1], &digest, &status, &name(&server)]);
    let done = home.run(&["pull", "-q", &name(&server)]);
    assert_eq!((done.stdout, done.stderr), (format!("{}\n", name(&server)), String::new()));
    let refused = home.fails(1, &["--progress=tty", "pull", &name(&server)]);
    assert!(refused.contains("standard error is no terminal"), "{refused}");
    assert_eq!(home.run(&["pull", "--progress=loud", &name(&server)]).code, 125);
}

#[test]
fn programs_get_an_object_a_line() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = slow();
    let done = home.run(&["pull", "--progress=json", &name(&server)]);
    assert_eq!((done.code, done.stdout), (0, format!("{}\n", name(&server))), "only the answer");
    let objects: Vec<Value> = done.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects[0], json!({ "id": "latest", "status": "Pulling from app" }));
    let layers: Vec<&(String, Vec<u8>)> = image.blobs.iter().filter(|(_, bytes)| bytes.len() > 1000).collect();
    let bytes: usize = layers.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(objects[1], json!({ "status": "Total", "progressDetail": { "current": 0, "total": bytes } }));
    let of = |status: &str| objects.iter().filter(|object| object["status"] == status).collect::<Vec<_>>();
    for (digest, content) in layers {
        let mine = |object: &&&Value| object["digest"] == **digest;
        let moving: Vec<u64> = of("Downloading")
            .iter()
            .filter(mine)
            .map(|object| {
                assert_eq!(object["progressDetail"]["total"], content.len());
                assert_eq!(object["id"], digest["sha256:".len()..][..12]);
                object["progressDetail"]["current"].as_u64().unwrap()
            })
            .collect();
        assert!(moving.is_sorted() && moving[0] == 0, "{moving:?}");
        assert_eq!(moving.last(), Some(&(content.len() as u64)));
        assert_eq!(of("Pull complete").iter().filter(mine).count(), 1);
    }
    let last = of("Total").last().unwrap()["progressDetail"].clone();
    assert_eq!((&last["current"], &last["total"]), (&json!(bytes), &json!(bytes)));
    assert!(last["bytesPerSecond"].as_u64().is_some_and(|rate| rate > 10_000), "{last}");
    assert!(last["secondsLeft"].is_u64(), "{last}");
    assert_eq!(of(&format!("Digest: {}", image.digest())).len(), 1);

    let done = home.run(&["--progress=json", "pull", &format!("{}/none", server.address)]);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""));
    let error: Value = serde_json::from_str(done.stderr.lines().last().unwrap()).unwrap();
    assert!(error["error"].as_str().unwrap().contains("not found"), "{error}");
    assert_eq!(error["errorDetail"]["message"], error["error"]);
}

#[test]
fn what_was_fetched_before_does_not_count() {
    let Some(home) = Home::new(&[]) else { return };
    let (broken, image) = slow();
    let (digest, content) = large(&image);
    // The first registry ends each connection in the middle of the large layer until the pull gives up.
    let mut table = registry_of("app", &image);
    for answer in table.values_mut().filter(|answer| answer.body.len() > 1_000_000) {
        *answer = Answer { send_bytes: 1_200_000, ..answer.clone() };
    }
    drop(broken);
    let broken = Server::start(table);
    home.fails(1, &["pull", &name(&broken)]);
    // It knows no ranges, so what was there comes again and is skipped.
    let whole = Server::start(registry_of("app", &image));
    let done = home.run(&["pull", "--progress=json", &name(&whole)]);
    assert_eq!(done.code, 0, "{done:#?}");
    let objects: Vec<Value> = done.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = objects.iter().find(|object| object["digest"] == **digest).unwrap();
    let begun = first["progressDetail"]["current"].as_u64().unwrap();
    assert!(begun >= 1_000_000, "it goes on where the last one ended: {first}");
    let last = objects.iter().rfind(|object| object["status"] == "Total").unwrap();
    let moved = last["progressDetail"]["total"].as_u64().unwrap();
    assert!(moved <= content.len() as u64 - begun + 500_000, "{last}");
}
