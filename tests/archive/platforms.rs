//! `save --platform`: of images for several platforms the one that is asked for. An image for another platform is taken, and told.

use std::fs;

use fixture::image::{Image, LayerBuilder, MANIFEST, Meta};
use fixture::memory_registry::{Features, MemoryRegistry};
use serde_json::{Value, json};

use crate::support::Home;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image whose configuration says its platform, with one file.
fn image(architecture: &str) -> Image {
    let layer = LayerBuilder::default().file("name", Meta::root(0o644), architecture.as_bytes()).unwrap();
    let mut image = Image::new(vec![layer.finish().unwrap()], &json!({}));
    let (old, config) = image.blobs.pop().unwrap();
    let config = String::from_utf8(config).unwrap().replace("amd64", architecture).into_bytes();
    let new = fixture::image::digest(&config);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    assert_eq!(manifest["config"]["digest"], old);
    manifest["config"]["digest"] = new.clone().into();
    manifest["config"]["size"] = config.len().into();
    image.manifest = manifest.to_string().into_bytes();
    image.blobs.push((new, config));
    image
}

#[test]
fn of_an_index_the_image_of_a_platform_is_saved() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let images = ["amd64", "arm64", "s390x"].map(|architecture| (architecture, image(architecture)));
    let entries = images.iter().map(|(architecture, image)| {
        server.put_image("a", architecture, image);
        json!({ "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture } })
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries.collect::<Vec<_>>() });
    server.put_manifest("a", "1", INDEX, index.to_string().as_bytes());
    let name = format!("{}/a:1", server.address);
    for architecture in ["arm64", "amd64"] {
        home.ok(&["pull", "--platform", architecture, &name]);
    }
    let saved = |options: &[&str], to: &str| {
        home.ok(&[&["save", "--format", "oci-dir", "-o", to][..], options, &[&name]].concat());
        let index: Value = serde_json::from_slice(&fs::read(home.path(to).join("index.json")).unwrap()).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1);
        assert_eq!(manifests[0]["annotations"]["org.opencontainers.image.ref.name"], name.as_str());
        manifests[0]["digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(saved(&[], "as-here"), images[0].1.digest());
    assert_eq!(saved(&["--platform", "linux/amd64"], "amd"), images[0].1.digest());
    assert_eq!(saved(&["--platform", "linux/arm64"], "arm"), images[1].1.digest());
    home.ok(&["image", "bundle", "--platform", "arm64", "-o", "arm.tar", &name]);

    let said = home.fails(1, &["save", "--platform", "s390x", "-o", "none.tar", &name]);
    assert!(said.contains("is not here for the platform linux/s390x"), "{said}");
    assert!(said.contains(&format!("hint: `sublet pull --platform linux/s390x {name}` brings it")), "{said}");
    let said = home.fails(1, &["save", "--platform", "riscv64", "-o", "none.tar", &name]);
    assert!(said.contains("linux/riscv64"), "{said}");
    assert!(!home.path("none.tar").exists());

    // The one that was saved is an image of its own elsewhere.
    let other = Home::new(&[]).unwrap();
    other.ok(&["load", "-i", &home.path("arm.tar").display().to_string()]);
    let said = other.fails(1, &["save", "--platform", "amd64", "-o", "none.tar", &name]);
    assert!(said.contains("does not provide the specified platform (linux/amd64)"), "{said}");
    let seen = other.ok(&["image", "inspect", "--format", "{{.Architecture}}", &name]);
    assert_eq!(seen, "arm64\n");
}

#[test]
fn an_image_for_another_platform_is_taken_and_told() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    server.put_image("a", "1", &image("s390x"));
    let name = format!("{}/a:1", server.address);
    let warned = |arguments: &[&str]| {
        let done = home.run(arguments);
        assert_eq!(done.code, 0, "{done:#?}");
        let told: Vec<String> = done.stderr.lines().map(str::to_owned).collect();
        assert!(
            told.len() <= 1 && told.iter().all(|line| line.starts_with("warning: the image's platform ")),
            "{told:?}"
        );
        told.concat()
    };
    let said = warned(&["pull", "--platform", "linux/riscv64", &name]);
    assert!(said.ends_with("(linux/s390x) does not match the one asked for (linux/riscv64)"), "{said}");
    // Both here and when it must be fetched first.
    let said = warned(&["create", &name, "true"]);
    assert!(said.contains("(linux/s390x) does not match this machine's (linux/"), "{said}");
    assert_eq!(warned(&["create", "--platform", "linux/s390x", &name, "true"]), "");
    let said = warned(&["create", "-q", "--platform", "linux/riscv64", &name, "true"]);
    assert!(said.ends_with("does not match the one asked for (linux/riscv64)"), "{said}");
    let said = home.fails(1, &["create", "--pull", "never", "--platform", "linux/riscv64", &name, "true"]);
    let words = "was found but does not provide the specified platform (linux/riscv64): it is for linux/s390x";
    assert!(said.contains(words), "{said}");
    let said = home.fails(1, &["create", "--pull", "never", &format!("{name}x"), "true"]);
    assert!(said.contains("No such image"), "{said}");
}
