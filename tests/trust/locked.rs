//! Names that are locked to digests.

use std::fs;

use fixture::image::{Image, MANIFEST};
use fixture::memory_registry::{Fate, Features, MemoryRegistry};
use serde_json::{Value, json};

use crate::support::{Home, LIMIT, Need, busybox, end, start};
use crate::{INDEX, at, image, layer_of, put_index, search};

fn manifest_of(home: &Home, file: &str) -> String {
    let json: Value = serde_json::from_slice(&fs::read(home.path(file)).unwrap()).unwrap();
    json["images"][0]["manifest"].as_str().unwrap().to_owned()
}

#[test]
fn a_locked_pull_never_asks_for_the_tag() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, old, new) = (MemoryRegistry::start(Features::default()), image(b"old"), image(b"new"));
    let name = at(&server, "app:1");
    let index = put_index(&server, "app", "1", &old);
    let printed = home.ok(&["lock", &name]);
    assert_eq!(printed, format!("{name} (linux/amd64) {}\n", old.digest()));
    let expected = format!(
        "{{\n  \"version\": 1,\n  \"images\": [\n    {{\n      \"name\": \"{name}\",\n      \"platform\": \"linux/amd64\",\n      \
         \"index\": \"{index}\",\n      \"manifest\": \"{}\",\n      \"size\": {}\n    }}\n  ]\n}}\n",
        old.digest(),
        old.manifest.len()
    );
    assert_eq!(fs::read_to_string(home.path("images.lock")).unwrap(), expected);
    assert_eq!(home.ok(&["lock", "--check"]), "");
    assert_eq!(server.count("GET", "/blobs/"), 2, "no layer is fetched for a lock, only configurations");

    let asked = |server: &MemoryRegistry| server.count("GET", "/manifests/1") + server.count("HEAD", "/manifests/1");
    put_index(&server, "app", "1", &new);
    let before = asked(&server);
    let pulled = home.ok(&["pull", "--locked", &name]);
    assert!(pulled.contains(&index) && pulled.contains(&format!("image for {name}")), "{pulled}");
    assert!(home.ok(&["pull", "--locked=images.lock", &name]).contains("up to date"));
    assert_eq!((asked(&server), server.count("GET", layer_of(&new))), (before, 0));

    let done = home.run(&["lock", "--check", &name]);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!((done.code, lines[0]), (1, format!("{name} (linux/amd64)").as_str()), "{done:#?}");
    assert_eq!(lines[1], format!("  locked: {} in index {index}", old.digest()));
    assert!(lines[2].starts_with(&format!("  found:  {} in index sha256:", new.digest())), "{done:#?}");
    assert_eq!(fs::read_to_string(home.path("images.lock")).unwrap(), expected, "a check writes nothing");

    // The file is brought up to date by its own names.
    home.ok(&["lock"]);
    assert_eq!(manifest_of(&home, "images.lock"), new.digest());
}

#[test]
fn what_is_here_and_another_image_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, old, new) = (MemoryRegistry::start(Features::default()), image(b"old"), image(b"new"));
    let name = at(&server, "app:1");
    server.put_image("app", "1", &old);
    home.ok(&["lock", "-f", "other.lock", &name]);
    server.put_image("app", "1", &new);
    home.ok(&["pull", &name]);
    let said = home.fails(125, &["run", "--rm", "--locked=other.lock", &name]);
    for wanted in [
        format!("{name} (linux/amd64) is not what other.lock locks"),
        format!("locked: {}", old.digest()),
        format!("found:  {}", new.digest()),
        format!("`sublet pull --locked=other.lock {name}`"),
        format!("`sublet lock -f other.lock {name}`"),
    ] {
        assert!(said.contains(&wanted), "{wanted}: {said}");
    }
    let said = home.fails(1, &["--offline", "pull", "--locked=other.lock", &name]);
    assert!(said.contains("is not what other.lock locks"), "{said}");
    home.ok(&["pull", "--locked=other.lock", &name]);
    // It has no program that could run; that is found out when the image is the right one.
    let done = home.run(&["run", "--rm", "--locked=other.lock", &name]);
    assert!(matches!(done.code, 126 | 127), "{done:#?}");
}

#[test]
fn what_is_not_locked_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = (MemoryRegistry::start(Features::default()), image(b"one"));
    server.put_image("app", "1", &image);
    server.put_image("app", "2", &image);
    let (one, two) = (at(&server, "app:1"), at(&server, "app:2"));
    let said = home.fails(1, &["pull", "--locked", &one]);
    assert!(said.contains("there is no file of locked images images.lock"), "{said}");
    home.ok(&["lock", &one]);
    let asked = server.seen().len();
    for (code, arguments) in [
        (1, &["pull", "--locked", &two][..]),
        (125, &["run", "--locked", &two]),
        (1, &["pull", "--locked", "--platform", "linux/s390x", &one]),
    ] {
        let said = home.fails(code, arguments);
        assert!(said.contains("is not locked by images.lock") && said.contains("`sublet lock -f"), "{said}");
        assert_eq!(said.contains("images.lock --platform linux/s390x "), arguments.contains(&"--platform"), "{said}");
    }
    home.fails(125, &["run", "--locked", "host:"]);
    fs::write(home.path("broken.lock"), "{").unwrap();
    let said = home.fails(1, &["pull", "--locked=broken.lock", &one]);
    assert!(said.contains("this is no file of locked images"), "{said}");
    assert_eq!(server.seen().len(), asked, "nobody was asked");
}

#[test]
fn files_and_ids_are_not_locked() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = (MemoryRegistry::start(Features::default()), image(b"one"));
    server.put_image("app", "1", &image);
    let name = at(&server, "app:1");
    home.ok(&["lock", &name]);
    home.ok(&["pull", &name]);
    home.ok(&["save", "--format", "oci-dir", "-o", "layout", &name]);
    let id = home.ok(&["images", "-q", "--no-trunc"]);
    for (image, what) in [("oci:./layout", "is a file"), (id.trim(), "is an id")] {
        for (code, command) in [(1, "pull"), (125, "run")] {
            let said = home.fails(code, &[command, "--locked", image]);
            assert!(said.contains("--locked is for names on registries") && said.contains(what), "{said}");
        }
    }
}

#[test]
fn of_several_names_the_locked_one_counts() {
    let Some(home) = Home::new(&[]) else { return };
    let (first, second) = (MemoryRegistry::start(Features::default()), MemoryRegistry::start(Features::default()));
    let (one, two) = (image(b"one"), image(b"two"));
    search(&home, &first, &second);
    second.put_image("app", "1", &two);
    let done = home.run(&["lock", "app:1"]);
    assert_eq!((done.code, manifest_of(&home, "images.lock")), (0, two.digest()), "{done:#?}");
    for wanted in [format!("app:1 is not {}: ", at(&first, "app:1")), format!("app:1 is {}", at(&second, "app:1"))] {
        assert!(done.stderr.contains(&wanted), "{done:#?}");
    }
    // The image of the other name is here, and is not taken for it.
    first.put_image("app", "1", &one);
    home.ok(&["pull", &at(&first, "app:1")]);
    let done = home.run(&["run", "--rm", "--locked", "app:1"]);
    assert!(matches!(done.code, 126 | 127), "{done:#?}");
    assert_eq!(second.count("GET", layer_of(&two)), 1);
}

#[test]
fn a_registry_that_fails_is_not_passed_over_by_a_lock() {
    let Some(home) = Home::new(&[]) else { return };
    for status in [403, 500] {
        let broken = MemoryRegistry::start_with(Features::default(), move |_| Fate::status(status));
        let (good, image) = (MemoryRegistry::start(Features::default()), image(b"one"));
        good.put_image("app", "1", &image);
        search(&home, &broken, &good);
        home.fails(1, &["lock", "app:1"]);
        assert!(good.seen().is_empty() && !home.path("images.lock").exists());
    }
}

#[test]
fn an_image_is_locked_as_it_was_chosen() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, one, two) = (MemoryRegistry::start(Features::default()), image(b"one"), image(b"two"));
    let name = at(&server, "app:1");
    server.put_image("app", "one", &one);
    server.put_image("app", "two", &two);
    // Their configurations say amd64.
    let entry = |image: &Image, architecture: &str| {
        json!({
            "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&one, "amd64"), entry(&two, "s390x")],
    });
    server.put_manifest("app", "1", INDEX, index.to_string().as_bytes());
    let printed = home.ok(&["lock", "--platform", "linux/s390x", &name]);
    assert_eq!(printed, format!("{name} (linux/s390x) {}\n", two.digest()));
    assert_eq!(home.ok(&["lock", "--check"]), "");
    home.ok(&["pull", "--locked", "--platform", "linux/s390x", &name]);
    assert_eq!((server.count("GET", layer_of(&one)), server.count("GET", layer_of(&two))), (0, 1));
    assert_eq!(home.ok(&["lock", &name]), format!("{name} (linux/amd64) {}\n", one.digest()));
    home.ok(&["pull", "--locked", &name]);
    assert_eq!(server.count("GET", layer_of(&one)), 1);

    // An index that does not lead to the locked image.
    let text = fs::read_to_string(home.path("images.lock")).unwrap();
    let other = image(b"other");
    server.put_image("app", "other", &other);
    fs::write(home.path("images.lock"), text.replace(&one.digest(), &other.digest())).unwrap();
    let said = home.fails(1, &["pull", "--locked", &name]);
    assert!(said.contains(&format!("no manifest {}", other.digest())), "{said}");
    assert_eq!(server.count("GET", layer_of(&other)), 0);
}

#[test]
fn a_locked_image_runs() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let name = busybox();
    home.ok(&["lock", &name]);
    assert_eq!(home.ok(&["run", "--rm", "--locked", &name, "echo", "hello"]), "hello\n");
    home.ok(&["run", "-d", "--name", "one", "--locked", &name, "true"]);
    let named = home.inspect("one", "{{.Config.Image}}");
    assert!(named.ends_with(&format!("@{}", manifest_of(&home, "images.lock"))), "{named}");
}

/// Each asks its registry before it writes, and neither knows then what the other will lock.
#[test]
fn two_locks_of_one_file_at_once_lose_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let names: Vec<String> = (0..8).map(|number| at(&server, &format!("app{number}:1"))).collect();
    for number in 0..names.len() {
        server.put_image(&format!("app{number}"), "1", &image(&[number as u8]));
    }
    let running: Vec<_> = names.iter().map(|name| start(&mut home.command(&["lock", name]))).collect();
    for child in running {
        let done = end(child, LIMIT);
        assert_eq!(done.code, 0, "{done:#?}");
    }
    let text = fs::read_to_string(home.path("images.lock")).unwrap();
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn a_bundle_is_what_the_file_locks_or_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let [one, two, new] = [&b"one"[..], b"two", b"new"].map(image);
    let names = ["app:1", "tool:2"].map(|rest| at(&server, rest));
    put_index(&server, "app", "1", &one);
    server.put_image("tool", "2", &two);
    // The same image under another tag of the repository, which comes first by its name.
    server.put_image("tool", "0", &two);
    home.ok(&["lock", &names[0], &names[1]]);
    let said = home.fails(1, &["image", "bundle", "--locked", "-o", "all.tar"]);
    assert!(said.contains("No such image") && said.contains("`sublet pull --locked=images.lock"), "{said}");
    home.ok(&["pull", &names[0], &names[1], &at(&server, "tool:0")]);
    home.ok(&["image", "bundle", "--locked", "-o", "all.tar"]);
    home.ok(&["image", "bundle", "--locked=images.lock", "-o", "one.tar", &names[1]]);
    let loaded = |file: &str| {
        let other = Home::new(&[]).unwrap();
        other.ok(&["load", "-q", "-i", &home.path(file).display().to_string()]);
        other.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])
    };
    assert_eq!(loaded("all.tar"), format!("{}\n{}\n", names[0], names[1]));
    assert_eq!(loaded("one.tar"), format!("{}\n", names[1]));

    let said = home.fails(1, &["image", "bundle", "--locked", "-o", "none.tar", &at(&server, "tool:0")]);
    assert!(said.contains("is not locked by images.lock"), "{said}");
    let said = home.fails(1, &["image", "bundle", "--locked", "--platform", "s390x", "-o", "none.tar"]);
    assert!(said.contains("images.lock locks nothing for linux/s390x"), "{said}");
    server.put_image("tool", "2", &new);
    home.ok(&["pull", &names[1]]);
    let said = home.fails(1, &["image", "bundle", "--locked", "-o", "none.tar"]);
    for wanted in ["is not what images.lock locks", &two.digest(), &new.digest(), "brings the locked one"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert!(!home.path("none.tar").exists());
    home.ok(&["pull", "--locked", &names[1]]);
    home.ok(&["image", "bundle", "--locked", "-o", "none.tar"]);
    home.fails(1, &["image", "bundle"]);
}
