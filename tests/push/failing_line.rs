//! Pushes and pulls behind TLS and tokens: over a line that fails in all ways, and between us and other tools.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fixture::image::{Image, digest};
use fixture::memory_registry::{Features, MemoryRegistry};
use serde_json::Value;

use crate::bed::{Bed, ME};
use crate::support::oracle::{end_podman, podman_of};
use crate::support::{Home, assert_sound, finish, identity, noise, number, skip, start};
use crate::{at, image_for};

/// How many seeds one run goes through, and how many under the other identities, on which nothing of it depends.
const SEEDS: u64 = 12;
const FEW_SEEDS: u64 = 3;
/// How many at once: most of their time is waiting.
const AT_ONCE: usize = 8;
/// A command may meet a line that stalls more than once, for half a minute each.
const LONG: Duration = Duration::from_mins(4);

/// Runs the binary with the options of the bed, which must succeed; what it printed.
#[track_caller]
fn over(home: &Home, bed: &Bed, command: &[&str], names: &[&str]) -> String {
    let words = [command, &bed.options(), names].concat();
    let done = finish(&mut home.command(&words), b"", LONG);
    assert_eq!(done.code, 0, "sublet {words:?}: {done:#?}");
    done.stdout
}

/// What was pushed lies in the registry as it was made.
#[track_caller]
fn arrived(bed: &Bed, repository: &str, tag: &str, image: &Image) {
    assert_eq!(bed.tagged(repository, tag), Some(image.digest()), "{repository}:{tag}");
    assert!(bed.stored(&image.digest()).as_ref() == Some(&image.manifest), "another manifest");
    for (digest, bytes) in &image.blobs {
        assert!(bed.stored(digest).as_ref() == Some(bytes), "{repository} has another blob {digest}, or none");
        assert!(bed.linked(repository, digest), "{repository} lacks the blob {digest}");
    }
}

/// What was pulled lies in the store as it was made.
#[track_caller]
fn came(home: &Home, image: &Image) {
    let blobs = image.blobs.iter().map(|(digest, bytes)| (digest.clone(), bytes));
    for (digest, bytes) in blobs.chain([(image.digest(), &image.manifest)]) {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = home.store().join("store/blobs/sha256").join(&hex[..2]).join(hex);
        assert!(fs::read(&path).ok().as_ref() == Some(bytes), "another blob {digest}, or none");
    }
}

/// Two images and a list of them, pushed and pulled while the line fails by this seed.
fn there_and_back(seed: u64) {
    let Some(home) = Home::new(&[]) else { return };
    let Some(bed) = Bed::start(&home.path("bed"), Some(seed)) else { return };
    let source = MemoryRegistry::start(Features::default());
    let image = |architecture: &str| {
        let large = [architecture.as_bytes(), &seed.to_le_bytes(), &noise(1_500_000)].concat();
        image_for(architecture, &[&large, format!("small {architecture} {seed}").as_bytes()])
    };
    let images = [("amd64", image("amd64")), ("arm64", image("arm64"))];
    let list = bed.name("team/list:1");
    let mut create = vec!["manifest".to_owned(), "create".to_owned(), list.clone()];
    for (architecture, image) in &images {
        source.put_image("app", architecture, image);
        let (from, to) = (at(&source, &format!("app:{architecture}")), bed.name(&format!("team/app:{architecture}")));
        home.ok(&["pull", "--quiet", "--platform", &format!("linux/{architecture}"), &from]);
        home.ok(&["tag", &from, &to]);
        over(&home, &bed, &["push"], &[&to]);
        arrived(&bed, "team/app", architecture, image);
        create.push(to);
    }
    home.ok(&create.iter().map(String::as_str).collect::<Vec<_>>());
    let pushed = over(&home, &bed, &["manifest", "push"], &[&list]).trim_end().to_owned();
    assert_eq!(bed.tagged("team/list", "1"), Some(pushed.clone()));
    let index: Value = serde_json::from_slice(&bed.stored(&pushed).unwrap()).unwrap();
    for (entry, (_, image)) in index["manifests"].as_array().unwrap().iter().zip(&images) {
        assert_eq!(entry["digest"], image.digest());
        assert!(image.blobs.iter().all(|(digest, _)| bed.linked("team/list", digest)));
    }

    let Some(other) = Home::new(&[]) else { return };
    // Killed somewhere, and gone on with.
    let words = [&["pull"], &bed.options()[..], &["--platform", "linux/amd64", &list]].concat();
    let mut first = start(&mut other.command(&words));
    std::thread::sleep(Duration::from_millis(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0x3ff));
    first.kill().unwrap();
    first.wait().unwrap();
    for (architecture, image) in &images {
        over(&other, &bed, &["pull"], &["--platform", &format!("linux/{architecture}"), &list]);
        came(&other, image);
        assert_eq!(other.inspect(&list, "{{.Id}}"), image.blobs.last().unwrap().0);
    }
    assert_sound(&other, &format!("seed {seed}"));
}

#[test]
fn what_goes_over_a_failing_line_arrives() {
    let Some(home) = Home::new(&[]) else { return };
    if Bed::start(&home.path("bed"), None).is_none() {
        return;
    }
    let clock = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let first = number("SEED").unwrap_or_else(clock);
    println!("SUBLET_TEST_SEED={first}");
    let count = || if identity() == "subuids" { SEEDS } else { FEW_SEEDS };
    let (next, end) = (AtomicU64::new(first), first + number("SEEDS").unwrap_or_else(count));
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                there_and_back(seed);
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let failed = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        assert_eq!(failed, 0, "seeds failed; what the line did is above");
    });
}

/// A bed over a good line with an image of ours in it; the image, its name, and its home.
fn with_an_image() -> Option<(Home, Bed, Image, String)> {
    let home = Home::new(&[])?;
    let bed = Bed::start(&home.path("bed"), None)?;
    let source = MemoryRegistry::start(Features::default());
    let image = image_for("amd64", &[&noise(100_000), b"second"]);
    source.put_image("app", "1", &image);
    let (from, to) = (at(&source, "app:1"), bed.name("team/app:1"));
    home.ok(&["pull", &from]);
    home.ok(&["tag", &from, &to]);
    let denied = [&["push"], &bed.options()[..3], &[&to]].concat();
    let said = home.fails(1, &denied);
    assert!(said.contains("denied"), "nobody writes there without a password: {said}");
    over(&home, &bed, &["push"], &[&to]);
    arrived(&bed, "team/app", "1", &image);
    Some((home, bed, image, to))
}

#[test]
fn skopeo_and_we_read_each_other_behind_tls_and_tokens() {
    let Some((home, bed, image, name)) = with_an_image() else { return };
    if Command::new("skopeo").arg("--version").output().is_err() {
        return skip("skopeo is not installed");
    }
    let skopeo = |words: &[&str]| {
        let mut command = Command::new("skopeo");
        home.surround(command.args(words));
        let done = finish(&mut command, b"", LONG);
        assert_eq!(done.code, 0, "skopeo {words:?}: {done:#?}");
    };
    let trust = bed.certificates.to_str().unwrap();
    let copy = format!("dir:{}", home.path("copy").display());
    skopeo(&["copy", "--src-cert-dir", trust, "--src-creds", ME, &format!("docker://{name}"), &copy]);
    let copied = |file: &str| fs::read(Path::new(&home.path("copy")).join(file)).unwrap();
    assert!(copied("manifest.json") == image.manifest);
    for (digest, bytes) in &image.blobs {
        assert!(copied(digest.strip_prefix("sha256:").unwrap()) == *bytes, "another blob {digest}");
    }
    let back = bed.name("skopeo/app:1");
    skopeo(&["copy", "--dest-cert-dir", trust, "--dest-creds", ME, &copy, &format!("docker://{back}")]);
    let Some(other) = Home::new(&[]) else { return };
    over(&other, &bed, &["pull"], &[&back]);
    came(&other, &image);
}

#[test]
fn podman_and_we_read_each_other_behind_tls_and_tokens() {
    if identity() == "one-id" {
        return skip("podman with one id keeps no image with other owners");
    }
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let Some((home, bed, image, name)) = with_an_image() else { return };
    let trust = bed.certificates.to_str().unwrap();
    let podman = |words: &[&str]| finish(podman_of(&home).args(words), b"", LONG);
    let pulled = podman(&["pull", "--cert-dir", trust, "--creds", ME, &name]);
    if pulled.code != 0 && !pulled.stderr.contains("manifest") && !pulled.stderr.contains("blob") {
        end_podman(&home);
        return skip("podman cannot keep images here");
    }
    let seen = podman(&["image", "inspect", "--format", "{{.Digest}} {{.Id}}", &name]);
    let back = bed.name("podman/app:1");
    let sent = podman(&["push", "--cert-dir", trust, "--creds", ME, &name, &back]);
    end_podman(&home);
    assert_eq!((pulled.code, sent.code), (0, 0), "{pulled:#?} {sent:#?}");
    let config = &image.blobs.last().unwrap().0;
    assert_eq!(seen.stdout.trim_end(), format!("{} {}", image.digest(), config.trim_start_matches("sha256:")));
    // What it has packed once more is another blob of the same layer.
    let manifest = bed.stored(&bed.tagged("podman", "1").or_else(|| bed.tagged("podman/app", "1")).unwrap()).unwrap();
    let Some(other) = Home::new(&[]) else { return };
    over(&other, &bed, &["pull"], &[&back]);
    assert_eq!(other.inspect(&back, "{{.Id}}"), *config, "{}", String::from_utf8_lossy(&manifest));
    assert_eq!(other.inspect(&back, "{{json .RootFS.Layers}}"), home.inspect(&name, "{{json .RootFS.Layers}}"));
    assert_eq!(digest(&manifest), bed.tagged("podman/app", "1").unwrap());
    assert_sound(&other, "what podman has pushed");
}
