//! Images that the policy does not allow: no layer of them is asked for.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fixture::image::{Image, MANIFEST};
use fixture::memory_registry::{Fate, Features, MemoryRegistry, Seen};
use serde_json::{Value, json};

use crate::support::{Home, LIMIT};
use crate::{
    INDEX, Key, SIMPLE_SIGNING, at, digest, image, layer_of, payload, put_signature, require, require_key, search,
    statement, write_policy,
};

/// Puts a signature beside an image.
type Sign<'a> = &'a dyn Fn(&MemoryRegistry, &Image);

fn registry() -> (MemoryRegistry, Image) {
    let (server, image) = (MemoryRegistry::start(Features { referrers: true, ..Features::default() }), image(b"one"));
    server.put_image("app", "1", &image);
    (server, image)
}

/// Pull and run are refused with this text, before a layer was asked for.
#[track_caller]
fn refused(home: &Home, server: &MemoryRegistry, image: &Image, wanted: &str) {
    let name = at(server, "app:1");
    for (code, command) in [(1, &["pull"][..]), (125, &["run", "--rm"])] {
        let said = home.fails(code, &[command, &[name.as_str()]].concat());
        let file = home.path(".config/containers/policy.json");
        assert!(said.contains(wanted), "{wanted}: {said}");
        assert!(said.contains(&file.display().to_string()), "{said}");
    }
    assert_eq!(server.count("GET", layer_of(image)), 0);
    assert_eq!(home.ok(&["images", "-q"]), "");
}

#[test]
fn signatures_that_are_not_what_is_wanted() {
    let Some(home) = Home::new(&[]) else { return };
    let (key, other) = (Key::new(), Key::new());
    let whole = |server: &MemoryRegistry, image: &Image| payload(&image.digest(), &at(server, "app:1"));
    let cases: [(&str, Sign); 9] = [
        ("the image has no signature", &|_, _| {}),
        ("it is by none of the keys", &|server, image| {
            other.simple(server, "app", &image.digest(), &whole(server, image));
        }),
        ("it is for the digest", &|server, image| {
            key.simple(server, "app", &image.digest(), &payload(&digest(b"another"), &at(server, "app:1")));
        }),
        ("does not fit by matchRepoDigestOrExact", &|server, image| {
            key.simple(server, "app", &image.digest(), &payload(&image.digest(), &at(server, "other:1")));
        }),
        ("it is by none of the keys", &|server, image| {
            // Whole bytes are signed, and some of them kept.
            let text = whole(server, image);
            let cut = &text[..text.len() - 1];
            let blob = server.put_blob("app", cut.as_bytes());
            put_signature(server, "app", &image.digest(), &blob, cut.len(), &key.sign(text.as_bytes()));
        }),
        ("what is signed cannot be read", &|server, image| {
            key.simple(server, "app", &image.digest(), "{\"critical\":");
        }),
        ("more than the 262144 that are read", &|server, image| {
            put_signature(server, "app", &image.digest(), &digest(b"x"), 300_000, "eA==");
        }),
        ("it names no image", &|server, image| {
            key.bundle(server, "app", image, &statement(&image.digest(), None));
        }),
        ("it is by none of the keys", &|server, image| {
            let name = at(server, "app:1");
            other.bundle(server, "app", image, &statement(&image.digest(), Some(&name)));
        }),
    ];
    for (wanted, sign) in cases {
        let (server, image) = registry();
        sign(&server, &image);
        require_key(&home, &server, &key, "matchRepoDigestOrExact");
        refused(&home, &server, &image, wanted);
    }
}

#[test]
fn a_registry_that_does_not_say_what_there_is_allows_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let key = Key::new();
    for (part, status, referrers) in
        [(".sig", 500, true), (".sig", 403, true), ("/referrers/", 503, true), ("/manifests/sha256-", 403, false)]
    {
        let features = Features { referrers, ..Features::default() };
        let is_meant = move |path: &str| path.contains(part) && (part == ".sig" || !path.contains(".sig"));
        let rule = move |seen: &Seen| if is_meant(&seen.path) { Fate::status(status) } else { Fate::Done };
        let (server, image) = (MemoryRegistry::start_with(features, rule), image(b"one"));
        server.put_image("app", "1", &image);
        require_key(&home, &server, &key, "matchExact");
        refused(&home, &server, &image, "looking for signatures of");
    }
    // Other rights than it has are wanted for the interface where a registry does not have it; then there is no signature.
    let rule = |seen: &Seen| if seen.path.contains("/referrers/") { Fate::status(403) } else { Fate::Done };
    let (server, image) = (MemoryRegistry::start_with(Features::default(), rule), image(b"one"));
    server.put_image("app", "1", &image);
    require_key(&home, &server, &key, "matchExact");
    refused(&home, &server, &image, "the image has no signature");
}

#[test]
fn a_signature_for_one_platform_is_none_for_another() {
    let Some(home) = Home::new(&[]) else { return };
    let ((server, image), key, other) = (registry(), Key::new(), image(b"other"));
    server.put_image("app", "other", &other);
    let entry = |image: &Image, architecture: &str| {
        json!({
            "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&image, "amd64"), entry(&other, "s390x")],
    });
    server.put_manifest("app", "1", INDEX, index.to_string().as_bytes());
    key.simple(&server, "app", &other.digest(), &payload(&other.digest(), &at(&server, "app:1")));
    require_key(&home, &server, &key, "matchExact");
    refused(&home, &server, &image, "the image has no signature");
}

#[test]
fn what_is_told_of_signatures_has_an_end() {
    let Some(home) = Home::new(&[]) else { return };
    let ((server, image), key) = (registry(), Key::new());
    let long = "x".repeat(100_000);
    let layers: Vec<Value> = (0..70)
        .map(|number| {
            let text = payload(&image.digest(), &format!("a.io/{long}:{number}"));
            let blob = server.put_blob("app", text.as_bytes());
            let annotations = json!({ "dev.cosignproject.cosign/signature": key.sign(text.as_bytes()) });
            json!({ "mediaType": SIMPLE_SIGNING, "digest": blob, "size": text.len(), "annotations": annotations })
        })
        .collect();
    let empty = server.put_blob("app", b"{}");
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": empty, "size": 2 });
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let tag = format!("{}.sig", image.digest().replace(':', "-"));
    server.put_manifest("app", &tag, MANIFEST, manifest.to_string().as_bytes());
    require_key(&home, &server, &key, "matchExact");
    refused(&home, &server, &image, "and 59 more; 64 of one digest are looked at, and there are others");
    assert!(home.fails(1, &["pull", &at(&server, "app:1")]).len() < 3000);
}

#[test]
fn what_the_policy_refuses_is_not_looked_for_elsewhere() {
    let Some(home) = Home::new(&[]) else { return };
    let ((first, image), (second, _), key) = (registry(), registry(), Key::new());
    search(&home, &first, &second);
    let file = home.path("key.pub");
    fs::write(&file, key.pem()).unwrap();
    for (requirement, why) in [
        (json!({ "type": "reject" }), "no image is allowed there"),
        (json!({ "type": "sigstoreSigned", "keyPath": file }), "the image has no signature"),
    ] {
        let scopes = json!({ first.address.to_string(): [requirement] });
        let accept = json!([{ "type": "insecureAcceptAnything" }]);
        write_policy(&home, &json!({ "default": accept, "transports": { "docker": scopes } }).to_string());
        for arguments in [&["pull", "app:1"][..], &["lock", "app:1"]] {
            let said = home.fails(1, arguments);
            assert!(said.contains(why) && said.contains("is not allowed by the policy"), "{said}");
        }
        assert!(second.seen().is_empty() && first.count("GET", layer_of(&image)) == 0);
        assert!(!home.path("images.lock").exists());
    }
}

#[test]
fn a_link_to_a_policy_that_leads_nowhere_is_no_permission() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = registry();
    fs::create_dir_all(home.path(".config/containers")).unwrap();
    std::os::unix::fs::symlink("/none/policy.json", home.path(".config/containers/policy.json")).unwrap();
    refused(&home, &server, &image, "No such file or directory");
    assert!(server.seen().is_empty());
}

#[test]
fn what_no_image_can_have_is_told_before_any_request() {
    let Some(home) = Home::new(&[]) else { return };
    let key = home.path("key");
    fs::write(&key, "no key").unwrap();
    let none = home.path("none");
    let cases: [(Value, &str); 5] = [
        (json!({ "type": "reject" }), "no image is allowed there"),
        (json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": key }), "cannot be checked here"),
        (json!({ "type": "sigstoreSigned", "keyPath": key, "rekorPublicKeyPath": key }), "cannot be checked here"),
        (json!({ "type": "sigstoreSigned", "keyPath": key }), "this is no public key in PEM"),
        (json!({ "type": "sigstoreSigned", "keyPath": none }), "No such file or directory"),
    ];
    for (requirement, wanted) in cases {
        let (server, image) = registry();
        require(&home, &server, &requirement);
        refused(&home, &server, &image, wanted);
        assert!(server.seen().is_empty(), "{:?}", server.seen());
    }
    for broken in [
        "",
        "{",
        r#"{"default":[]}"#,
        r#"{"default":[{"type":"insecureAcceptAnything"}],"x":1}"#,
        r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"debian":[{"type":"reject"}]}}}"#,
    ] {
        let (server, image) = registry();
        write_policy(&home, broken);
        refused(&home, &server, &image, "this is no policy");
        assert!(server.seen().is_empty(), "{:?}", server.seen());
    }
}

#[test]
fn a_policy_that_came_later_stops_pulls_and_not_what_is_here() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = registry();
    let name = at(&server, "app:1");
    home.ok(&["pull", &name]);
    require_key(&home, &server, &Key::new(), "matchExact");
    let said = home.fails(1, &["pull", &name]);
    assert!(said.contains("the image has no signature"), "{said}");
    assert_eq!(server.count("GET", layer_of(&image)), 1);
    // It has no program that could run; that is found out after the policy.
    let done = home.run(&["run", "--rm", &name]);
    assert!(matches!(done.code, 126 | 127), "{done:#?}");
}

#[test]
fn images_in_files_have_scopes_of_their_own() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    let name = at(&server, "app:1");
    home.ok(&["pull", &name]);
    home.ok(&["save", "-o", "docker.tar", &name]);
    home.ok(&["save", "--format", "oci-dir", "-o", "layout", &name]);
    home.ok(&["rmi", &name]);
    let policy = |scopes: Value| {
        let accept = json!([{ "type": "insecureAcceptAnything" }]);
        write_policy(&home, &json!({ "default": accept, "transports": scopes }).to_string());
    };
    let reject = json!([{ "type": "reject" }]);
    let shown = |path: std::path::PathBuf| path.display().to_string();
    policy(json!({ "oci": { shown(home.directory.join("home")): reject }, "oci-archive": { "": reject } }));
    for arguments in [&["load", "-i", "layout"][..], &["pull", "oci:./layout"], &["load", "-i", "docker.tar"]] {
        let said = home.fails(1, arguments);
        assert!(said.contains("is not allowed by the policy") && said.contains("reject, by transports.oci"), "{said}");
    }
    home.fails(125, &["run", "--rm", "oci:./layout"]);
    let streamed = home.run_with_input(&["load"], &fs::read(home.path("docker.tar")).unwrap());
    assert!(streamed.code == 1 && streamed.stderr.contains("the image is not allowed"), "{streamed:#?}");
    assert_eq!(home.ok(&["images", "-q"]), "");
    // With a slash at the end it would stand for no directory.
    policy(json!({ "oci": { shown(home.path("layout/")): reject } }));
    let said = home.fails(1, &["load", "-i", "layout"]);
    assert!(said.contains("fits no image; write") && said.contains("/layout\""), "{said}");
    policy(json!({ "oci": { "": reject, shown(home.path("layout")): [{ "type": "insecureAcceptAnything" }] } }));
    home.ok(&["load", "-i", "layout"]);
}

/// What is judged is the file that is read, and not what its name leads to in another moment.
#[test]
fn a_name_that_changes_hands_brings_no_refused_image() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    server.put_image("other", "1", &image(b"other"));
    for (repository, directory) in [("app", "good"), ("other", "bad")] {
        let name = at(&server, &format!("{repository}:1"));
        home.ok(&["pull", &name]);
        fs::create_dir(home.path(directory)).unwrap();
        home.ok(&["save", "-o", &format!("{directory}/image.tar"), &name]);
        home.ok(&["rmi", &name]);
    }
    let (accept, reject) = (json!([{ "type": "insecureAcceptAnything" }]), json!([{ "type": "reject" }]));
    let scopes = json!({ "oci-archive": { home.path("bad").display().to_string(): reject } });
    write_policy(&home, &json!({ "default": accept, "transports": scopes }).to_string());
    let stop = AtomicBool::new(false);
    let (mut loaded, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for directory in ["good", "bad"] {
                    std::os::unix::fs::symlink(directory, home.path("new")).unwrap();
                    fs::rename(home.path("new"), home.path("swapped")).unwrap();
                }
            }
        });
        while !home.path("swapped").exists() {}
        // At least these, and until both have been met: which one a load meets is chance.
        let until = Instant::now() + LIMIT;
        let mut loads = 0;
        while loads < 60 || ((loaded == 0 || refused == 0) && Instant::now() < until) {
            loads += 1;
            let done = home.run(&["load", "-i", "swapped/image.tar"]);
            if done.code == 0 {
                loaded += 1;
            } else if done.stderr.contains("is not allowed by the policy") {
                refused += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(loaded + refused, loads);
    });
    println!("{loaded} loaded, {refused} refused");
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
    assert!(!home.ok(&["images"]).contains("/other"));
}
