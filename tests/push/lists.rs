//! `manifest`: lists of images, made here and pushed as an index.

use fixture::image::MANIFEST;
use fixture::memory_registry::{Features, MemoryRegistry};
use serde_json::Value;

use crate::support::Home;
use crate::{at, image_for};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_list_is_made_annotated_pushed_and_removed() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let (amd, arm) = (image_for("amd64", &[b"amd"]), image_for("arm", &[b"arm"]));
    server.put_image("build/amd", "1", &amd);
    server.put_image("build/arm", "1", &arm);
    let (list, first, second) = (at(&server, "team/app:1"), at(&server, "build/amd:1"), at(&server, "build/arm:1"));
    assert_eq!(home.ok(&["manifest", "create", &list, &first]), format!("Created manifest list {list}\n"));
    let said = home.fails(1, &["manifest", "create", &list, &first]);
    assert!(said.contains("refusing to amend an existing manifest list with no --amend flag"), "{said}");
    home.ok(&["manifest", "create", "--amend", &list, &second]);
    home.ok(&["manifest", "annotate", "--variant", "v7", "--os-features", "a,b", &list, &second]);
    let said = home.fails(1, &["manifest", "annotate", "--arch", "x", &list, "other"]);
    assert!(said.contains(&format!("manifest for image other does not exist in {list}")), "{said}");

    let shown = home.ok(&["manifest", "inspect", &list]);
    let seen = json(&shown);
    assert_eq!(seen["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(seen["manifests"][0]["digest"], amd.digest());
    assert_eq!(seen["manifests"][1]["platform"]["variant"], "v7");
    assert_eq!(seen["manifests"][1]["platform"]["os.features"][1], "b");
    assert!(shown.starts_with("{\n\t\"schemaVersion\": 2,\n\t\"mediaType\""), "{shown}");

    let digest = home.ok(&["manifest", "push", "--purge", &list]).trim_end().to_owned();
    let raw = server.manifest("team/app", "1").unwrap();
    assert_eq!(fixture::image::digest(&raw), digest);
    assert_eq!(json(std::str::from_utf8(&raw).unwrap()), seen);
    for image in [&amd, &arm] {
        assert_eq!(server.manifest("team/app", &image.digest()).as_ref(), Some(&image.manifest));
    }
    let mounts = server.seen().into_iter().filter(|seen| seen.parameter("mount").is_some()).count();
    assert_eq!(mounts, 2, "each layer came from its repository");
    // The list is gone here, so this is the registry's.
    assert_eq!(json(&home.ok(&["manifest", "inspect", &list])), seen);
    home.fails(1, &["manifest", "push", &list]);
    home.ok(&["pull", "--platform", "linux/arm/v7", &list]);
    assert_eq!(home.inspect(&list, "{{.Architecture}}"), "arm");
}

#[test]
fn podmans_grammar_works_too() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let image = image_for("amd64", &[b"amd"]);
    server.put_image("build/amd", "1", &image);
    let (list, source) = (at(&server, "team/app:1"), at(&server, "build/amd:1"));
    home.ok(&["manifest", "create", &list]);
    home.ok(&["manifest", "add", "--arch", "arm64", "--annotation", "a=b", &list, &source]);
    let destination = at(&server, "other/place:2");
    home.ok(&["manifest", "push", "--all", &list, &format!("docker://{destination}")]);
    let entry =
        json(std::str::from_utf8(&server.manifest("other/place", "2").unwrap()).unwrap())["manifests"][0].clone();
    assert_eq!((&entry["platform"]["architecture"], &entry["annotations"]["a"]), (&"arm64".into(), &"b".into()));
    // A list of lists is asked for.
    let all = at(&server, "team/all:1");
    let said = home.fails(1, &["manifest", "create", &all, &destination]);
    assert!(said.contains("is a list of images itself") && said.contains("--all"), "{said}");
    home.ok(&["manifest", "create", "--all", &all, &destination]);
    assert_eq!(json(&home.ok(&["manifest", "inspect", &all]))["manifests"][0], entry, "it says what the other says");
    home.ok(&["manifest", "rm", &list, &all]);
    let said = home.fails(1, &["manifest", "rm", &list]);
    assert!(said.contains("No such manifest"), "{said}");
    let said = home.fails(1, &["manifest", "inspect", &at(&server, "no/such:1")]);
    assert!(said.contains("no such manifest"), "{said}");
}

#[test]
fn an_image_that_is_here_alone_is_listed_and_sent() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let image = image_for("amd64", &[b"amd"]);
    server.put_image("base/app", "1", &image);
    home.ok(&["pull", &at(&server, "base/app:1")]);
    home.ok(&["tag", &at(&server, "base/app:1"), &at(&server, "mine/app:1")]);
    home.ok(&["rmi", &at(&server, "base/app:1")]);
    server.clear();
    let list = at(&server, "team/app:1");
    let done = home.run(&["manifest", "create", &list, &at(&server, "mine/app:1")]);
    assert!(done.code == 0 && done.stderr.contains("is taken as it is here"), "{done:#?}");
    // The list keeps what it needs.
    home.ok(&["rmi", &at(&server, "mine/app:1")]);
    home.ok(&["manifest", "push", &list]);
    assert_eq!(server.manifest("team/app", &image.digest()).unwrap(), image.manifest);
    let entry = &json(std::str::from_utf8(&server.manifest("team/app", "1").unwrap()).unwrap())["manifests"][0];
    assert_eq!(entry["mediaType"], MANIFEST);
    let kept = |home: &Home| {
        let mut files = 0;
        crate::support::each_file(&home.store().join("store/blobs"), &mut |_, meta| files += u32::from(meta.is_file()));
        files
    };
    assert_eq!(kept(&home), 3);
    home.ok(&["manifest", "rm", &list]);
    // Any sweep will do.
    server.put_image("base/app", "1", &image_for("amd64", &[b"other"]));
    home.ok(&["pull", &at(&server, "base/app:1")]);
    home.ok(&["rmi", &at(&server, "base/app:1")]);
    assert_eq!(kept(&home), 0);
}

#[test]
fn a_list_that_is_pushed_tells_how_far_it_is() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let image = image_for("amd64", &[b"amd"]);
    server.put_image("build/amd", "1", &image);
    let (source, list) = (at(&server, "build/amd:1"), at(&server, "team/app:1"));
    home.ok(&["pull", &source]);
    home.ok(&["manifest", "create", &list, &source]);
    // From elsewhere, so that nothing can be mounted.
    let other = MemoryRegistry::start(Features::default());
    let to = at(&other, "team/app:1");
    let done = home.run(&["--progress=json", "manifest", "push", &list, &to]);
    let digest = fixture::image::digest(&other.manifest("team/app", "1").unwrap());
    assert_eq!((done.code, done.stdout), (0, format!("{digest}\n")), "{}", done.stderr);
    let objects: Vec<Value> = done.stderr.lines().map(json).collect();
    let (layer, bytes) = &image.blobs[0];
    let is_it = |object: &&Value| object["status"] == "Pushed" && object["digest"] == *layer;
    assert_eq!(objects.iter().filter(is_it).count(), 1, "{objects:#?}");
    let last = objects.iter().rfind(|object| object["status"] == "Total").unwrap();
    assert_eq!(last["progressDetail"]["current"], bytes.len(), "{objects:#?}");
}
