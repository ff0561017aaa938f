//! Pushes to a registry in memory, which shows each request.

use std::fs;

use fixture::image::Image;
use fixture::memory_registry::{Features, MemoryRegistry};

use crate::support::{Home, each_file};
use crate::{at, image_for, told};

/// A registry with an image that a home has pulled.
fn pulled(home: &Home, features: Features) -> (MemoryRegistry, Image) {
    let server = MemoryRegistry::start(features);
    let image = image_for("amd64", &[b"lower", b"upper"]);
    server.put_image("base/app", "1", &image);
    home.ok(&["pull", &at(&server, "base/app:1")]);
    (server, image)
}

#[test]
fn what_was_pulled_arrives_as_it_was() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = pulled(&home, Features::default());
    server.clear();
    let pushed = home.ok(&["push", &at(&server, "base/app:1")]);
    let lines: Vec<&str> = pushed.lines().collect();
    assert_eq!(lines[0], format!("The push refers to repository [{}]", at(&server, "base/app")));
    assert_eq!(pushed.matches(": Pushed").count(), 2, "{pushed}");
    let last = format!("1: digest: {} size: {}", image.digest(), image.manifest.len());
    assert_eq!(lines.last(), Some(&last.as_str()));
    assert_eq!(server.manifest("base/app", "1").unwrap(), image.manifest);
    for (digest, bytes) in &image.blobs {
        assert_eq!(server.blob("base/app", digest).as_ref(), Some(bytes));
    }
    // The manifest comes when all that it names is there.
    let seen = server.seen();
    let position =
        |method: &str, part: &str| seen.iter().rposition(|seen| seen.method == method && seen.path.contains(part));
    assert!(position("PUT", "/manifests/") > position("PUT", "/uploads/"));

    let again = home.ok(&["push", &at(&server, "base/app:1")]);
    assert_eq!(again.matches(": Layer already exists").count(), 2, "{again}");
    assert_eq!(server.count("PATCH", ""), 3);
    assert_eq!(home.ok(&["push", "-q", &at(&server, "base/app:1")]), format!("{}\n", at(&server, "base/app:1")));
}

#[test]
fn layers_are_mounted_from_where_they_are() {
    let Some(home) = Home::new(&[]) else { return };
    for tokens in [false, true] {
        let (server, image) = pulled(&home, Features { tokens, ..Features::default() });
        home.ok(&["tag", &at(&server, "base/app:1"), &at(&server, "team/app:2")]);
        let pushed = home.ok(&["push", &at(&server, "team/app:2")]);
        assert_eq!(pushed.matches(": Mounted from base/app").count(), 2, "{pushed}");
        // The configuration alone is sent.
        assert_eq!(server.count("PATCH", ""), 1);
        assert_eq!(server.manifest("team/app", "2").unwrap(), image.manifest);
        home.ok(&["rmi", "-f", &at(&server, "base/app:1")]);
        home.ok(&["rmi", "-f", &at(&server, "team/app:2")]);
    }
}

#[test]
fn an_index_goes_whole_or_its_image_alone() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let (amd, arm) = (image_for("amd64", &[b"amd"]), image_for("arm64", &[b"arm"]));
    let index = |extra: &str| {
        let entry = |image: &Image, arch: &str| {
            format!(
                r#"{{"mediaType":"{}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{arch}"}}}}"#,
                fixture::image::MANIFEST,
                image.digest(),
                image.manifest.len()
            )
        };
        // Bytes that nobody would write again.
        format!(r#"{{ "schemaVersion":2,  "manifests":[{},{}]{extra} }}"#, entry(&amd, "amd64"), entry(&arm, "arm64"))
    };
    let raw = index("").into_bytes();
    for image in [&amd, &arm] {
        server.put_image("base/app", "one", image);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let digest = server.put_manifest("base/app", "1", kind, &raw);
    let (from, to) = (at(&server, "base/app:1"), at(&server, "team/app:1"));
    home.ok(&["pull", "--platform", "linux/amd64", &from]);
    home.ok(&["tag", &from, &to]);
    let done = home.run(&["push", &to]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.stderr.contains("only the one for linux/amd64 is pushed"), "{done:#?}");
    assert_eq!(told(&done.stdout), [("1".to_owned(), amd.digest())]);

    home.ok(&["pull", "--platform", "linux/arm64", &from]);
    home.ok(&["tag", &from, &to]);
    let done = home.run(&["push", &to]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    assert_eq!(told(&done.stdout), [("1".to_owned(), digest.clone())]);
    assert_eq!(server.manifest("team/app", "1").unwrap(), raw);
    assert_eq!(server.manifest("team/app", &arm.digest()).unwrap(), arm.manifest);

    let done = home.run(&["push", "--platform", "linux/amd64", &to]);
    assert_eq!(told(&done.stdout), [("1".to_owned(), amd.digest())], "{done:#?}");
    let said = home.fails(1, &["push", "--platform", "linux/s390x", &to]);
    assert!(said.contains("linux/s390x"), "{said}");
    // What the repository has need not be here.
    let other = Home::new(&[]).unwrap();
    other.ok(&["pull", "--platform", "linux/amd64", &from]);
    other.ok(&["tag", &from, &at(&server, "team/app:2")]);
    assert_eq!(told(&other.ok(&["push", &at(&server, "team/app:2")])), [("2".to_owned(), digest)]);
}

#[test]
fn all_tags_of_a_repository() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = pulled(&home, Features::default());
    for tag in ["team/app:a", "team/app:latest", "team/other:b"] {
        home.ok(&["tag", &at(&server, "base/app:1"), &at(&server, tag)]);
    }
    let pushed = home.ok(&["push", "--all-tags", &at(&server, "team/app")]);
    let digest = image.digest();
    assert_eq!(told(&pushed), [("a".to_owned(), digest.clone()), ("latest".to_owned(), digest)]);
    assert!(server.manifest("team/other", "b").is_none());
    let said = home.ok(&["push", &at(&server, "team/app")]);
    assert!(said.starts_with("Using default tag: latest\nThe push refers to repository ["), "{said}");
}

#[test]
fn what_cannot_be_pushed_is_said_in_dockers_words() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = pulled(&home, Features::default());
    let known = at(&server, "base/app");
    for (arguments, code, words) in [
        (vec!["no/such"], 1, "An image does not exist locally with the tag: no/such".to_owned()),
        (vec![&*format!("{known}:2")], 1, format!("tag does not exist: {known}:2")),
        (vec![&*format!("{known}@{}", image.digest())], 1, "cannot push a digest reference".to_owned()),
        (vec!["-a", &*format!("{known}:1")], 1, "tag can't be used with --all-tags/-a".to_owned()),
        (vec!["--chunk-size", "0", &*format!("{known}:1")], 1, "must have a byte at least".to_owned()),
        (vec!["oci:/tmp/image"], 1, "`sublet save --format oci-dir -o /tmp/image IMAGE` writes that".to_owned()),
        (vec!["docker://no/such"], 1, "An image does not exist locally with the tag: no/such".to_owned()),
    ] {
        let said = home.fails(code, &[&["push"], &arguments[..]].concat());
        assert!(said.contains(&words), "{arguments:?}: {said}");
    }
}

#[test]
fn a_blob_that_is_gone_is_missed_only_where_it_must_be_sent() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = pulled(&home, Features::default());
    let layer = image.blobs[0].0.strip_prefix("sha256:").unwrap().to_owned();
    each_file(&home.store().join("store/blobs"), &mut |path, _| {
        if path.ends_with(&layer) {
            fs::remove_file(path).unwrap();
        }
    });
    home.ok(&["push", &at(&server, "base/app:1")]);
    server.clear();
    let said = home.fails(1, &["push", &at(&server, "base/app:1")]);
    assert!(
        said.contains(&format!("the blob sha256:{layer} is not in the store")) && said.contains("hint: "),
        "{said}"
    );
    assert!(server.manifest("base/app", "1").is_none());
}

#[test]
fn a_registry_is_searched_by_its_names() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, image) = pulled(&home, Features::default());
    for name in ["base/application", "tools/x", "tools/my-app"] {
        server.put_image(name, "1", &image);
    }
    let names = |arguments: &[&str]| -> Vec<String> {
        let all = [&["search", "--format", "{{.Name}}"], arguments].concat();
        let prefix = format!("{}/", server.address);
        home.ok(&all).lines().map(|line| line.strip_prefix(&prefix).unwrap().to_owned()).collect()
    };
    assert_eq!(names(&[&at(&server, "app")]), ["base/app", "base/application", "tools/my-app"]);
    assert_eq!(names(&["--limit", "1", &at(&server, "app")]), ["base/app"]);
    assert_eq!(names(&["--filter", "stars=1", &at(&server, "app")]), Vec::<String>::new());
    let table = home.ok(&["search", &at(&server, "tools/x")]);
    assert!(table.starts_with("NAME ") && table.lines().next().unwrap().ends_with("STARS     OFFICIAL"), "{table}");
    let said = home.fails(1, &["search", "--limit", "101", "x"]);
    assert!(said.contains("limit 101 is outside the range of [1, 100]"), "{said}");
}
