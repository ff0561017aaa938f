//! Images that the policy does not allow: no layer of them is asked for.

use std::fs;

use fixture::image::Image;
use fixture::memory_registry::{Features, MemoryRegistry};
use serde_json::{Value, json};

use crate::support::Home;
use crate::{Key, at, digest, image, layer_of, payload, put_signature, require, require_key, statement, write_policy};

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
fn a_blob_of_a_signature_that_is_another_one_ends_the_pull() {
    let Some(home) = Home::new(&[]) else { return };
    let ((server, image), key) = (registry(), Key::new());
    let text = payload(&image.digest(), &at(&server, "app:1"));
    let named = digest(b"of other bytes");
    put_signature(&server, "app", &image.digest(), &named, text.len(), &key.sign(text.as_bytes()));
    require_key(&home, &server, &key, "matchExact");
    refused(&home, &server, &image, "looking for signatures of");
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
    for broken in ["", "{", r#"{"default":[]}"#, r#"{"default":[{"type":"insecureAcceptAnything"}],"x":1}"#] {
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
    policy(json!({ "oci": { "": reject, shown(home.path("layout")): [{ "type": "insecureAcceptAnything" }] } }));
    home.ok(&["load", "-i", "layout"]);
}
