//! Layers whose blobs went: brought again from where they came from, and kept by a push that is at them.

use std::fs;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, SystemTime};

use fixture::image::Image;
use fixture::memory_registry::{Fate, Features, MemoryRegistry};

use crate::support::{Home, LIMIT, each_file, end, start};
use crate::{at, image_for};

/// A registry with an image that a home has pulled under `base/app:1`.
fn pulled(home: &Home, architecture: &str, contents: &[&[u8]]) -> (MemoryRegistry, Image, String) {
    let server = MemoryRegistry::start(Features::default());
    let image = image_for(architecture, contents);
    server.put_image("base/app", "1", &image);
    let name = at(&server, "base/app:1");
    home.ok(&["pull", &name]);
    (server, image, name)
}

/// Evicts all that can be had again.
fn evict(home: &Home, name: &str) {
    home.ok(&["--cache-max", "1k", "pull", name]);
    assert!(!home.ok(&["content", "ls", "--format", "{{.Kind}}"]).lines().any(|kind| kind == "layer"));
}

#[track_caller]
fn arrived(server: &MemoryRegistry, repository: &str, image: &Image) {
    assert!(server.manifest(repository, "1").is_some_and(|raw| raw == image.manifest), "no manifest, or another");
    for (digest, bytes) in &image.blobs {
        assert!(server.blob(repository, digest).as_ref() == Some(bytes), "the blob {digest} is not there, or another");
    }
}

#[test]
fn what_was_evicted_is_fetched_again() {
    let Some(home) = Home::new(&[]) else { return };
    let (origin, image, name) = pulled(&home, "amd64", &[b"lower", b"upper"]);
    let to = MemoryRegistry::start(Features::default());
    let pushed = at(&to, "team/app:1");
    home.ok(&["tag", &name, &pushed]);
    evict(&home, &name);
    // The record of the new name alone says where it was.
    home.ok(&["rmi", &name]);
    let done = home.run(&["push", &pushed]);
    assert_eq!(done.code, 0, "{done:#?}");
    let told = format!("is not kept here: it is fetched again from {}", at(&origin, "base/app"));
    assert_eq!((done.stdout + &done.stderr).matches(&told).count(), 2);
    arrived(&to, "team/app", &image);
    // An older record says it by its own name.
    for old in [false, true] {
        home.ok(&["pull", &name]);
        if old {
            for file in fs::read_dir(home.store().join("store/refs")).unwrap() {
                let path = file.unwrap().path();
                let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                record.as_object_mut().unwrap().remove("source");
                fs::write(&path, record.to_string()).unwrap();
            }
        }
        evict(&home, &name);
        to.clear();
        home.ok(&["push", &pushed]);
        arrived(&to, "team/app", &image);
    }
}

#[test]
fn where_nobody_has_it_any_more_both_are_told() {
    let Some(home) = Home::new(&[]) else { return };
    let (origin, _, name) = pulled(&home, "amd64", &[b"lower"]);
    let to = MemoryRegistry::start(Features::default());
    let pushed = at(&to, "team/app:1");
    home.ok(&["tag", &name, &pushed]);
    evict(&home, &name);
    origin.clear();
    let said = home.fails(1, &["push", &pushed]);
    let from = format!("fetching it again from {}", at(&origin, "base/app"));
    assert!(said.contains(&from) && said.contains("not found in"), "{said}");
    // To where it came from alone there is nobody else to ask.
    let said = home.fails(1, &["push", &name]);
    assert!(said.contains("is not in the store, and the registry does not have it"), "{said}");
    assert!(to.manifest("team/app", "1").is_none() && origin.manifest("base/app", "1").is_none());
}

#[test]
fn an_index_stays_whole_and_the_credential_goes_to_its_registry() {
    let Some(home) = Home::new(&[]) else { return };
    let origin = MemoryRegistry::start(Features::default());
    let (amd, arm) = (image_for("amd64", &[b"amd"]), image_for("arm64", &[b"arm"]));
    for image in [&amd, &arm] {
        origin.put_image("base/app", "one", image);
    }
    let entry = |image: &Image, arch: &str| {
        format!(
            r#"{{"mediaType":"{}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{arch}"}}}}"#,
            fixture::image::MANIFEST,
            image.digest(),
            image.manifest.len()
        )
    };
    let raw = format!(r#"{{ "schemaVersion":2, "manifests":[{},{}] }}"#, entry(&amd, "amd64"), entry(&arm, "arm64"));
    origin.put_manifest("base/app", "1", "application/vnd.oci.image.index.v1+json", raw.as_bytes());
    let name = at(&origin, "base/app:1");
    for platform in ["linux/arm64", "linux/amd64"] {
        home.ok(&["pull", "--platform", platform, &name]);
    }
    let to = MemoryRegistry::start(Features { tokens: true, ..Features::default() });
    let pushed = at(&to, "team/app:1");
    home.ok(&["tag", &name, &pushed]);
    home.ok(&["--cache-max", "1k", "pull", "--platform", "linux/amd64", &name]);
    // Both layers can be had again.
    for image in [&amd, &arm] {
        home.run(&["content", "rm", "-f", &image.blobs[0].0]);
    }
    let before = origin.seen().len();
    home.ok(&["push", "--creds", "me:secret", &pushed]);
    assert_eq!(to.manifest("team/app", "1").unwrap(), raw.as_bytes());
    for image in [&amd, &arm] {
        let (digest, bytes) = &image.blobs[0];
        assert_eq!(to.blob("team/app", digest).as_ref(), Some(bytes));
    }
    let asked = &origin.seen()[before..];
    assert!(!asked.is_empty() && asked.iter().all(|seen| !seen.headers.contains_key("authorization")), "{asked:#?}");
}

#[test]
fn a_list_takes_its_images_from_another_registry() {
    let Some(home) = Home::new(&[]) else { return };
    let origin = MemoryRegistry::start(Features::default());
    let image = image_for("amd64", &[b"amd"]);
    origin.put_image("base/app", "1", &image);
    let to = MemoryRegistry::start(Features::default());
    let list = at(&to, "team/list:1");
    home.ok(&["manifest", "create", &list, &at(&origin, "base/app:1")]);
    home.ok(&["manifest", "push", &list]);
    assert_eq!(to.manifest("team/list", &image.digest()).unwrap(), image.manifest);
    assert_eq!(to.blob("team/list", &image.blobs[0].0).as_ref(), Some(&image.blobs[0].1));
}

#[test]
fn what_is_being_pushed_is_not_taken_away() {
    let Some(home) = Home::new(&[]) else { return };
    // More layers than go at once.
    let contents: Vec<Vec<u8>> = (0..6).map(|number| format!("layer {number}").into_bytes()).collect();
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let (origin, image, name) = pulled(&home, "amd64", &contents);
    let other = image_for("amd64", &[b"other"]);
    origin.put_image("other/app", "1", &other);
    let (began, is_begun) = mpsc::channel::<()>();
    let (release, wait) = mpsc::channel::<()>();
    let (began, wait) = (Mutex::new(began), Mutex::new(wait));
    let to = MemoryRegistry::start_with(Features::default(), move |seen| {
        if seen.method == "PATCH" && seen.total < 3 {
            began.lock().unwrap().send(()).unwrap();
            // Nobody sends: this ends when the other side is dropped.
            let _ = wait.lock().unwrap().recv_timeout(LIMIT);
        }
        Fate::Done
    });
    let pushed = at(&to, "team/app:1");
    home.ok(&["tag", &name, &pushed]);
    // What is as old as a lease, or a second older, is spared by whoever looks at times.
    each_file(&home.store().join("store/blobs"), &mut |path, _| {
        fs::File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    });
    let push = start(&mut home.command(&["push", &pushed]));
    for _ in 0..3 {
        is_begun.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    let elsewhere = at(&origin, "other/app:1");
    home.ok(&["--cache-max", "1k", "pull", &elsewhere]);
    home.ok(&["rmi", &name]);
    home.ok(&["rmi", &pushed]);
    home.ok(&["image", "prune", "-af"]);
    home.ok(&["system", "prune", "-af"]);
    origin.clear();
    drop(release);
    let done = end(push, LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(!(done.stdout + &done.stderr).contains("fetched again"));
    arrived(&to, "team/app", &image);
    home.ok(&["image", "prune", "-af"]);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}
