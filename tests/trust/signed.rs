//! Images that the policy allows.

use std::fs;

use fixture::image::MANIFEST;
use fixture::memory_registry::{Features, MemoryRegistry};
use serde_json::json;

use crate::support::Home;
use crate::{
    Key, at, configure, digest, image, layer_of, payload, put_index, put_signature, require, require_key, statement,
    write_policy,
};

#[test]
fn a_signature_under_the_tag_of_the_digest_is_found() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, key, image) = (MemoryRegistry::start(Features::default()), Key::new(), image(b"one"));
    server.put_image("app", "1", &image);
    // As cosign signs: without the tag.
    key.simple(&server, "app", &image.digest(), &payload(&image.digest(), &at(&server, "app")));
    require_key(&home, &server, &key, "matchRepository");
    home.ok(&["pull", &at(&server, "app:1")]);
    assert_eq!(server.count("GET", layer_of(&image)), 1);
    // The same again, of an image that is here.
    let asked = server.count("GET", ".sig");
    let done = home.ok(&["pull", &at(&server, "app:1")]);
    assert!(done.contains("up to date") && server.count("GET", ".sig") == asked + 1, "{done}");

    key.simple(&server, "app", &image.digest(), &payload(&image.digest(), &at(&server, "app:1")));
    require_key(&home, &server, &key, "matchRepoDigestOrExact");
    home.ok(&["pull", &at(&server, "app:1")]);
    home.ok(&["pull", &at(&server, &format!("app@{}", image.digest()))]);
    server.put_image("app", "2", &image);
    let said = home.fails(1, &["pull", &at(&server, "app:2")]);
    assert!(said.contains("does not fit by matchRepoDigestOrExact") && said.contains("matchRepository"), "{said}");
}

#[test]
fn a_bundle_that_refers_to_the_image_is_found() {
    let Some(home) = Home::new(&[]) else { return };
    for referrers in [true, false] {
        let server = MemoryRegistry::start(Features { referrers, ..Features::default() });
        let (key, image) = (Key::new(), image(b"one"));
        server.put_image("app", "1", &image);
        let name = at(&server, "app:1");
        key.bundle(&server, "app", &image, &statement(&image.digest(), Some(&name)));
        require_key(&home, &server, &key, "matchRepoDigestOrExact");
        home.ok(&["pull", &name]);
        home.ok(&["rmi", &name]);
    }
}

#[test]
fn the_index_or_its_image_is_signed() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, key, image) = (MemoryRegistry::start(Features::default()), Key::new(), image(b"one"));
    for (number, outer) in [(1, true), (2, false)] {
        let repository = format!("app{number}");
        let name = at(&server, &format!("{repository}:1"));
        let index = put_index(&server, &repository, "1", &image);
        let signed = if outer { index } else { image.digest() };
        key.simple(&server, &repository, &signed, &payload(&signed, &name));
        require_key(&home, &server, &key, "matchExact");
        home.ok(&["pull", &name]);
        home.ok(&["rmi", &name]);
    }
}

#[test]
fn all_requirements_hold_and_any_key_of_one() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = (MemoryRegistry::start(Features::default()), image(b"one"));
    let (first, second, other) = (Key::new(), Key::new(), Key::new());
    server.put_image("app", "1", &image);
    let name = at(&server, "app:1");
    first.simple(&server, "app", &image.digest(), &payload(&image.digest(), &name));
    second.bundle(&server, "app", &image, &statement(&image.digest(), Some(&name)));

    let file = |name: &str, key: &Key| {
        fs::write(home.path(name), key.pem()).unwrap();
        home.path(name)
    };
    let paths = [file("first", &first), file("second", &second), file("other", &other)];
    let by = |paths: &[&std::path::PathBuf]| json!({ "type": "sigstoreSigned", "keyPaths": paths });
    let policy = |list: &[serde_json::Value]| write_policy(&home, &json!({ "default": list }).to_string());
    policy(&[by(&[&paths[0]]), by(&[&paths[2]])]);
    let said = home.fails(1, &["pull", &name]);
    assert!(said.contains("it is by none of the keys") && server.count("GET", layer_of(&image)) == 0, "{said}");
    policy(&[by(&[&paths[0]]), by(&[&paths[2], &paths[1]])]);
    home.ok(&["pull", &name]);
}

#[test]
fn a_mirror_is_judged_by_the_name_that_was_written() {
    let Some(home) = Home::new(&[]) else { return };
    let (mirror, key, image) = (MemoryRegistry::start(Features::default()), Key::new(), image(b"one"));
    mirror.put_image("copy/app", "1", &image);
    key.simple(&mirror, "copy/app", &image.digest(), &payload(&image.digest(), "registry.test/team/app:1"));
    let conf = format!(
        "[[registry]]\nprefix = \"registry.test/team\"\nlocation = \"127.0.0.1:1/team\"\n[[registry.mirror]]\n\
         location = \"{}/copy\"\n",
        mirror.address
    );
    configure(&home, &conf);
    fs::write(home.path("key.pub"), key.pem()).unwrap();
    let signed = json!([{ "type": "sigstoreSigned", "keyPath": home.path("key.pub") }]);
    let reject = json!([{ "type": "reject" }]);
    let scopes = json!({ "registry.test/team": signed, mirror.address.to_string(): reject });
    write_policy(&home, &json!({ "default": reject, "transports": { "docker": scopes } }).to_string());
    home.ok(&["pull", "registry.test/team/app:1"]);
    // Its signatures are under a tag, also where the mirror is for digests alone.
    configure(&home, &format!("{conf}pull-from-mirror = \"digest-only\"\n"));
    home.ok(&["pull", &format!("registry.test/team/app@{}", image.digest())]);
}

#[test]
fn what_a_mirror_does_not_list_is_asked_of_the_next_place() {
    let Some(home) = Home::new(&[]) else { return };
    for referrers in [true, false] {
        let features = Features { referrers, ..Features::default() };
        let (mirror, own) = (MemoryRegistry::start(features), MemoryRegistry::start(features));
        let (key, image, name) = (Key::new(), image(b"one"), at(&own, "app:1"));
        mirror.put_image("app", "1", &image);
        own.put_image("app", "1", &image);
        key.bundle(&own, "app", &image, &statement(&image.digest(), Some(&name)));
        configure(
            &home,
            &format!(
                "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
                own.address, mirror.address
            ),
        );
        require_key(&home, &own, &key, "matchExact");
        home.ok(&["pull", &name]);
        assert_eq!((mirror.count("GET", layer_of(&image)), own.count("GET", layer_of(&image))), (1, 0));
        home.ok(&["rmi", &name]);
    }
}

/// Puts something beside an image with this digest that is no signature.
type Spoil<'a> = &'a dyn Fn(&MemoryRegistry, &str);

#[test]
fn a_bad_signature_does_not_hide_a_good_one() {
    let Some(home) = Home::new(&[]) else { return };
    let key = Key::new();
    let cases: [Spoil<'_>; 4] = [
        // A blob that is not there, one that is too large, and one of other bytes.
        &|server, signed| put_signature(server, "app", signed, &digest(b"missing"), 7, "eA=="),
        &|server, signed| put_signature(server, "app", signed, &digest(b"x"), 300_000, "eA=="),
        &|server, signed| {
            let blob = server.put_blob("app", b"other bytes");
            put_signature(server, "app", signed, &blob, 7, "eA==");
        },
        // A manifest that is none.
        &|server, signed| {
            let text = json!({ "schemaVersion": 2, "layers": 7 }).to_string();
            server.put_manifest("app", &format!("{}.sig", signed.replace(':', "-")), MANIFEST, text.as_bytes());
        },
    ];
    for spoil in cases {
        let (server, image) = (MemoryRegistry::start(Features::default()), image(b"one"));
        server.put_image("app", "1", &image);
        let name = at(&server, "app:1");
        spoil(&server, &image.digest());
        require_key(&home, &server, &key, "matchExact");
        let said = home.fails(1, &["pull", &name]);
        assert!(said.contains("is not allowed by the policy") && !said.contains("looking for"), "{said}");
        key.bundle(&server, "app", &image, &statement(&image.digest(), Some(&name)));
        home.ok(&["pull", &name]);
        home.ok(&["rmi", &name]);
    }
}

#[test]
fn the_policy_in_force_is_shown_and_can_be_named() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = (MemoryRegistry::start(Features::default()), image(b"one"));
    server.put_image("app", "1", &image);
    let name = at(&server, "app:1");
    require(&home, &server, &json!({ "type": "reject" }));
    let usual = home.path(".config/containers/policy.json");
    assert_eq!(home.ok(&["info", "--format", "{{.SignaturePolicy}}"]), format!("{}\n", usual.display()));
    home.fails(1, &["pull", &name]);
    fs::write(home.path("lax.json"), json!({ "default": [{ "type": "insecureAcceptAnything" }] }).to_string()).unwrap();
    home.ok(&["--signature-policy", "lax.json", "pull", &name]);
    let said = home.fails(1, &["--signature-policy", "none.json", "pull", &name]);
    assert!(said.contains("none.json") && said.contains("No such file"), "{said}");
}
