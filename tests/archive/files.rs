//! `save`, `load`, `tag` and the sources that are no registry.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::commit::{drop_layer_blobs, layers_of};
use crate::support::{Home, LIMIT, busybox, finish};

fn id_of(home: &Home, name: &str) -> String {
    home.ok(&["image", "inspect", "--format", "{{.Id}}", name]).trim_end().to_owned()
}

/// Gives the one image of a layout another configuration; what it is now.
pub fn changed_config(layout: &std::path::Path, change: impl FnOnce(&mut Value)) -> Value {
    let blob =
        |digest: &Value| layout.join("blobs/sha256").join(digest.as_str().unwrap().trim_start_matches("sha256:"));
    let read = |path: &std::path::Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let put = |descriptor: &mut Value, document: &Value| {
        let raw = serde_json::to_vec(document).unwrap();
        descriptor["digest"] = fixture::image::digest(&raw).into();
        descriptor["size"] = raw.len().into();
        fs::write(blob(&descriptor["digest"]), raw).unwrap();
    };
    let mut index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    change(&mut config);
    put(&mut manifest["config"], &config);
    put(&mut index["manifests"][0], &manifest);
    fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    config
}

#[test]
fn an_image_comes_back_out_of_every_form() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["tag", &busybox(), "small", "small:2", "other/name:3"]);
    let id = id_of(&home, "small");
    // A name without a tag is all tags of it.
    for format in ["docker-archive", "oci-archive", "oci-dir", "docker-dir"] {
        let path = home.path(format);
        let path = path.to_string_lossy();
        home.ok(&["save", "--format", format, "-o", &path, "small"]);
        let second = Home::new(&[]).unwrap();
        let said = second.ok(&["load", "-i", &path]);
        let name = if format == "docker-dir" { id.as_str() } else { "small:latest" };
        let both = "Loaded image: small:2\nLoaded image: small:latest\n".to_owned();
        let expected = if format == "docker-dir" { format!("Loaded image ID: {id}\n") } else { both };
        assert_eq!(said, expected, "{format}");
        assert_eq!(id_of(&second, name), id, "{format}");
        let digest = |home: &Home, name: &str| home.ok(&["images", "--digests", "--format", "{{.Digest}}", name]);
        if format != "docker-dir" {
            assert_eq!(
                digest(&home, "small:latest"),
                digest(&second, "small:latest"),
                "{format}: the manifest's bytes"
            );
        }
        let seen = second.ok(&["run", "--rm", "--network", "none", name, "cat", "/etc/replaced"]);
        assert_eq!(seen, "second\n", "{format}");
        second.assert_store_is_ours();
    }
    // The same in the place of a name.
    for source in [
        "docker-archive:./docker-archive",
        "oci-archive:./oci-archive",
        "oci:./oci-dir",
        "dir:./docker-dir",
        "docker-archive:./docker-archive:small:latest",
        "oci:./oci-dir:docker.io/library/small:latest",
    ] {
        let second = Home::new(&[]).unwrap();
        let at = source.find("./").unwrap();
        let source = format!("{}{}/{}", &source[..at], home.path("").display(), &source[at + 2..]);
        let seen = second.ok(&["run", "--rm", "--network", "none", &source, "echo", "run"]);
        assert_eq!(seen, "run\n", "{source}");
        second.ok(&["pull", &source]);
        let said = second.run(&["pull", &format!("{source}:none")]);
        assert!(said.code != 0, "{said:#?}");
    }
}

#[test]
fn several_images_are_one_file() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["tag", &busybox(), "a:1"]);
    home.ok(&["tag", &busybox(), "a:2"]);
    home.ok(&["run", "--name", "cc", "--network", "none", &busybox(), "touch", "/x"]);
    home.ok(&["commit", "cc", "b"]);
    let done = home.run_with_input(&["save", "a:1", "b", "a:2"], b"");
    assert_eq!(done.code, 0);
    let path = home.path("all.tar.gz");
    let script = format!("{} save a:1 b a:2 | gzip >{}", home.bin().display(), path.display());
    let mut shell = std::process::Command::new("sh");
    home.surround(shell.arg("-c").arg(script));
    assert_eq!(finish(&mut shell, b"", LIMIT).code, 0);
    let second = Home::new(&[]).unwrap();
    let input = fs::read(&path).unwrap();
    let done = second.run_with_input(&["load"], &input);
    let mut lines: Vec<&str> = done.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Loaded image: a:1", "Loaded image: a:2", "Loaded image: b:latest"], "{done:#?}");
    assert_eq!(id_of(&second, "a:1"), id_of(&second, "a:2"));
    let (bundle, third) = (home.path("bundle.tar"), Home::new(&[]).unwrap());
    home.ok(&["image", "bundle", "-o", &bundle.to_string_lossy(), "a:1", "b"]);
    let said = third.ok(&["image", "load", "-i", &bundle.to_string_lossy()]);
    assert_eq!(said, "Loaded image: a:1\nLoaded image: b:latest\n");
    assert_eq!(second.ok(&["run", "--rm", "--network", "none", "b", "ls", "/x"]), "/x\n");
}

/// A layer whose blob is gone is made anew, and what was made anew once stays the same.
#[test]
fn a_layer_whose_blob_is_not_kept_is_made_anew() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    drop_layer_blobs(&home);
    home.ok(&["tag", &busybox(), "small"]);
    let first = home.path("first.tar");
    let done = home.run(&["save", "-o", &first.to_string_lossy(), "small"]);
    assert!(done.code == 0 && done.stderr.contains("made anew"), "{done:#?}");
    let second = Home::new(&[]).unwrap();
    second.ok(&["load", "-i", &first.to_string_lossy()]);
    assert_eq!(second.ok(&["run", "--rm", "--network", "none", "small", "cat", "/etc/replaced"]), "second\n");
    drop_layer_blobs(&second);
    let again = second.path("again.tar");
    second.ok(&["save", "-o", &again.to_string_lossy(), "small"]);
    let blobs = |home: &Home, path| {
        layers_of(home, path).iter().map(|path| path.file_name().map(ToOwned::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(blobs(&home, &first), blobs(&second, &again));
}

#[test]
fn names_are_given_and_taken() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let id = id_of(&home, &busybox());
    home.ok(&["tag", &busybox(), "x/y:z"]);
    assert_eq!(id_of(&home, "x/y:z"), id);
    home.ok(&["image", "tag", &id[7..19], "short"]);
    home.ok(&["image", "exists", "short"]);
    let done = home.run(&["image", "exists", "shorter"]);
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (1, "", ""));
    home.ok(&["untag", "short"]);
    assert!(home.ok(&["images"]).contains("<none>"));
    assert_eq!(home.ok(&["images", "-q"]).lines().count(), 1);
    // A name again.
    home.ok(&["tag", &id, "named"]);
    assert_eq!(home.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]), "named:latest\n");
    // An image whose last name goes to another one stays.
    home.ok(&["run", "--name", "cc", "--network", "none", "named", "touch", "/x"]);
    home.ok(&["commit", "cc", "named"]);
    let mut names: Vec<String> =
        home.ok(&["images", "--format", "{{.Repository}}"]).lines().map(str::to_owned).collect();
    names.sort();
    assert_eq!(names, ["<none>", "named"]);
    home.ok(&["rm", "cc"]);
    home.ok(&["tag", &id, "named"]);
    let said = home.fails(1, &["tag", "nothing", "a"]);
    assert!(said.contains("No such image: nothing"), "{said}");
    let said = home.fails(1, &["tag", "named", "A"]);
    assert!(said.contains("lowercase"), "{said}");
    let said = home.fails(1, &["untag", "named", "other"]);
    assert!(said.contains("tag not known"), "{said}");
    let tree = home.ok(&["image", "tree", "named"]);
    assert!(tree.contains("Image Layers\n├── ID: ") && tree.contains("Top Layer of: [named:latest]"), "{tree}");
    let table = home.ok(&["history", "named"]);
    assert!(table.starts_with("IMAGE          CREATED"), "{table}");
    assert_eq!(home.ok(&["image", "rm", "named"]).lines().next(), Some("Untagged: named:latest"));
}

#[test]
fn of_several_platforms_one_is_loaded_and_artifacts_are_left_out() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["tag", &busybox(), "small"]);
    let path = home.path("layout");
    let layout = path.to_string_lossy().into_owned();
    home.ok(&["save", "--format", "oci-dir", "-o", &layout, "small:latest"]);
    let index = || -> Value { serde_json::from_slice(&fs::read(path.join("index.json")).unwrap()).unwrap() };
    let own = index()["manifests"][0].clone();
    changed_config(&path, |config| config["architecture"] = "s390x".into());
    let mut other = index()["manifests"][0].clone();
    let mut own_labelled = own.clone();
    let platform = |entry: &mut Value, architecture: &str| {
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
    };
    platform(&mut other, "s390x");
    let host = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    platform(&mut own_labelled, host);
    // An artifact has a manifest, and something else than an image's configuration in it.
    let blob = |raw: &[u8]| {
        let digest = fixture::image::digest(raw);
        fs::write(path.join("blobs/sha256").join(&digest[7..]), raw).unwrap();
        (digest, raw.len())
    };
    let (digest, size) = blob(b"{}");
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": size }, "layers": [] });
    let (digest, size) = blob(manifest.to_string().as_bytes());
    let artifact = serde_json::json!({ "mediaType": manifest["mediaType"], "digest": digest, "size": size,
        "annotations": { "org.opencontainers.image.ref.name": "docker.io/library/signature:1" } });
    let write = |entries: &[&Value]| {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries });
        fs::write(path.join("index.json"), index.to_string()).unwrap();
    };
    write(&[&other, &artifact, &own_labelled]);
    let second = Home::new(&[]).unwrap();
    let done = second.run(&["load", "-i", &layout]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "Loaded image: small:latest\n"), "{done:#?}");
    assert!(done.stderr.contains("signature:1 is left out: it is an artifact"), "{done:#?}");
    assert_eq!(id_of(&second, "small"), id_of(&home, "small"));
    second.ok(&["load", "--platform", "linux/s390x", "-i", &layout]);
    assert_ne!(id_of(&second, "small"), id_of(&home, "small"));
    let said = second.fails(1, &["load", "--platform", "linux/ppc64le", "-i", &layout]);
    assert!(said.contains("no matching manifest for linux/ppc64le"), "{said}");
    write(&[&artifact]);
    let said = second.fails(1, &["load", "-i", &layout]);
    assert!(said.contains("there is no image in it"), "{said}");

    // What comes from a file is run as it is there, whatever a registry has under its name.
    write(&[&own]);
    let mut run =
        home.command(&["run", "--rm", "--pull", "always", "--network", "none", "oci:./layout", "cat", "/etc/replaced"]);
    let done = finish(run.current_dir(path.parent().unwrap()), b"", LIMIT);
    assert_eq!((done.code, done.stdout.as_str()), (0, "second\n"), "{done:#?}");
}

#[test]
fn what_is_no_image_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let path = home.path("saved");
    home.ok(&["save", "--format", "oci-dir", "-o", &path.to_string_lossy(), &busybox()]);
    let load = |what: &str| {
        let done = home.run(&["load", "-i", &path.to_string_lossy()]);
        assert!(done.code == 1 && !done.stderr.contains("panicked"), "{what}: {done:#?}");
        done.stderr
    };
    let said = home.fails(1, &["save", "--format", "oci-dir", "-o", &path.to_string_lossy(), &busybox()]);
    assert!(said.contains("is not empty"), "{said}");
    let index: Value = serde_json::from_slice(&fs::read(path.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
    let manifest = path.join("blobs/sha256").join(digest);
    let parsed: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let layer = path.join("blobs/sha256").join(&parsed["layers"][0]["digest"].as_str().unwrap()[7..]);
    let second = Home::new(&[]).unwrap();
    let refused = |what: &str, words: &str| {
        let done = second.run(&["load", "-i", &path.to_string_lossy()]);
        assert!(done.code == 1 && done.stderr.contains(words), "{what}: {done:#?}");
        assert_eq!(second.ok(&["images", "-q"]), "", "{what}");
    };
    let good = fs::read(&layer).unwrap();
    fs::write(&layer, [&good[..], b"x"].concat()).unwrap();
    refused("a longer layer", "digest");
    fs::remove_file(&layer).unwrap();
    refused("no layer", "is missing");
    std::os::unix::fs::symlink("/etc/passwd", &layer).unwrap();
    refused("a link out", "");
    fs::remove_file(&manifest).unwrap();
    refused("no manifest", "is missing");
    fs::write(path.join("index.json"), "{}").unwrap();
    refused("an empty index", "there is no image in it");
    fs::remove_file(path.join("index.json")).unwrap();
    assert!(load("nothing").contains("neither an index.json nor a manifest.json"));
    for (what, bytes) in [("text", &b"no archive at all"[..]), ("xz", b"\xfd7zXZ\0rest"), ("gzip", b"\x1f\x8b\x08cut")]
    {
        let done = home.run_with_input(&["load"], bytes);
        assert!(done.code == 1 && !done.stderr.contains("panicked"), "{what}: {done:#?}");
    }
    let said = home.fails(1, &["save", "nothing"]);
    assert!(said.contains("No such image: nothing"), "{said}");
    home.fails(1, &["save", "--format", "zip", &busybox()]);
}

#[test]
fn a_bundle_is_for_any_runtime() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let path = home.path("bundle");
    let done = home.run(&["bundle", &busybox(), &path.to_string_lossy()]);
    assert_eq!(done.code, 0, "{done:#?}");
    let config: Value = serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["root"]["path"], "rootfs");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_to_string(path.join("rootfs/etc/replaced")).unwrap(), "second\n");
    let inode = |name: &str| fs::metadata(path.join("rootfs/var/owned").join(name)).unwrap().ino();
    assert_eq!(inode("file"), inode("again"));
    assert!(!path.join("rootfs/var/opaque/below").exists());
    let said = home.fails(1, &["bundle", &busybox(), &path.to_string_lossy()]);
    assert!(said.contains("File exists"), "{said}");
}

/// A million files in one archive: within the limits of a layer, and of memory.
#[test]
fn a_million_files_are_an_image() {
    let Some(home) = Home::new(&[]) else { return };
    let archive = home.path("million.tar");
    let mut file = std::io::BufWriter::new(fs::File::create(&archive).unwrap());
    crate::tar::many(&mut file, 1_000_000);
    drop(file);
    let mut import = home.command(&["import", &archive.to_string_lossy(), "million"]);
    let done = finish(&mut import, b"", std::time::Duration::from_mins(3));
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(home.ok(&["images"]).contains("million"));
}
