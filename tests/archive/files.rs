//! `save`, `load`, `tag` and the sources that are no registry.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use crate::commit::{drop_layer_blobs, layers_of};
use crate::support::tar::{Entry, archive};
use crate::support::{Home, LIMIT, Within, busybox, finish, identity, in_namespaces};

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
    // Were it followed, the layer would be the right one.
    let outside = home.path("outside");
    fs::write(&outside, &good).unwrap();
    std::os::unix::fs::symlink(&outside, &layer).unwrap();
    refused("a link out", "is missing");
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

#[test]
fn a_bundle_keeps_holes() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let write = "truncate -s 300M /sparse && printf end >>/sparse && truncate -s 400M /sparse";
    home.ok(&["run", "--name", "writer", "--network", "none", &busybox(), "sh", "-c", write]);
    home.ok(&["commit", "-q", "writer", "sparse"]);
    let path = home.path("bundle");
    home.run(&["bundle", "sparse", &path.to_string_lossy()]);
    let file = fs::File::open(path.join("rootfs/sparse")).unwrap();
    let metadata = file.metadata().unwrap();
    assert!(metadata.len() == 400 << 20 && metadata.blocks() * 512 < 4 << 20, "{} blocks", metadata.blocks());
    let mut end = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut end, (300 << 20) - 1).unwrap();
    assert_eq!(&end, b"\0end\0");
}

/// The user of the image is known, what shuts its owner out is there, and what the file system does not take is told.
#[test]
fn a_bundle_has_what_its_image_says() {
    let Some(home) = Home::new(&[]) else { return };
    let value = vec![b'x'; 60_000];
    let large: &[(&str, &[u8])] = &[("SCHILY.xattr.user.large", &value)];
    let file = |path, content| Entry { path, content, ..Entry::default() };
    let tar = archive(&[
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1234:5678::/:/bin/sh\n"),
        file("etc/group", b"app:x:5678:\nextra:x:777:app\nother:x:778:\n"),
        Entry { path: "shut/", kind: b'5', mode: 0o644, ..Entry::default() },
        file("shut/file", b"in"),
        Entry { records: large, ..file("attributed", b"") },
    ]);
    let image = |name: &str, user: &str| {
        let done = home.run_with_input(&["import", "-c", &format!("USER {user}"), "-", name], &tar);
        assert_eq!(done.code, 0, "{done:#?}");
    };
    for (name, user, uid, gid) in
        [("named", "app", 1234, 5678), ("both", "app:other", 1234, 778), ("number", "7", 7, 0)]
    {
        image(name, user);
        let path = home.path(name);
        let done = home.run(&["bundle", name, &path.to_string_lossy()]);
        assert_eq!(done.code, 0, "{done:#?}");
        let config: Value = serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
        let is = &config["process"]["user"];
        assert_eq!((&is["uid"], &is["gid"]), (&uid.into(), &gid.into()), "{is}");
        if identity() == "root" && user == "app" {
            assert_eq!(is["additionalGids"], serde_json::json!([777]));
        }
        let shut = path.join("rootfs/shut");
        let metadata = fs::metadata(&shut).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o644, 1_700_000_000));
        let kept = sys::xattr::get(fs::File::open(path.join("rootfs/attributed")).unwrap(), c"user.large");
        let told = done.stderr.contains("1 extended attributes are left out");
        assert_eq!(kept.is_ok_and(|value| value.is_some()), !told, "{done:#?}");
        // Removed by plain means at the end.
        fs::set_permissions(&shut, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(fs::read(shut.join("file")).unwrap(), b"in");
    }
    for user in ["nobody", "app:nothing"] {
        image("unknown", user);
        let said = home.fails(1, &["bundle", "unknown", &home.path("unknown").to_string_lossy()]);
        assert!(said.contains("unable to find"), "{said}");
        assert!(!home.path("unknown").exists());
    }
}

/// Layers that lead out of the directory in which they are unpacked, by links of their own and of layers below.
#[test]
fn a_bundle_writes_nothing_beside_itself() {
    let Some(home) = Home::new(&[]) else { return };
    let outside = home.path("o");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let looks = || {
        let mut names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let of =
            |path: &std::path::Path| fs::metadata(path).map(|it| (it.mode(), it.mtime(), it.mtime_nsec())).unwrap();
        (names, of(&outside), of(&outside.join("kept")), fs::read(outside.join("kept")).unwrap())
    };
    let before = looks();
    let absolute = outside.to_string_lossy().into_owned();
    let link = |path, target| Entry { path, link: target, ..Entry { kind: b'2', mode: 0o777, ..Entry::default() } };
    let file = |path| Entry { path, content: b"evil", mode: 0o4777, ..Entry::default() };
    let kept = format!("{absolute}/kept");
    let below = archive(&[
        link("abs", &absolute),
        link("up", "../../o"),
        link("kept", &kept),
        Entry { link: "kept", ..Entry { path: "hard", kind: b'1', mode: 0o4777, ..Entry::default() } },
        file("abs/same"),
    ]);
    let above = archive(&[
        file("abs/new"),
        file("up/new"),
        file("up/kept"),
        Entry { path: "up/../../../o/kept", link: "hard", kind: b'1', ..Entry::default() },
    ]);
    let fine = archive(&[file("abs/new"), file("up/new"), file("up/kept"), file("kept")]);
    for (name, layers) in [("one", vec![&below]), ("two", vec![&below, &above]), ("fine", vec![&below, &fine])] {
        let saved = home.path(name);
        fs::write(&saved, docker_archive(name, &layers)).unwrap();
        let loaded = home.run(&["load", "-i", &saved.to_string_lossy()]);
        // A name with `..` that leads out is refused where the layer is read.
        assert_eq!(loaded.code, i32::from(name == "two"), "{loaded:#?}");
        if loaded.code == 0 {
            let bundle = home.path(&format!("bundle-{name}"));
            let done = home.run(&["bundle", name, &bundle.to_string_lossy()]);
            assert_eq!(done.code, 0, "{done:#?}");
            assert!(fs::symlink_metadata(bundle.join("rootfs/hard")).unwrap().is_symlink());
        }
        assert_eq!(looks(), before, "{name}");
    }
}

/// A Docker archive of one image.
fn docker_archive(name: &str, layers: &[&Vec<u8>]) -> Vec<u8> {
    docker_archive_of(&[name], layers)
}

/// A Docker archive of images that have all the same.
fn docker_archive_of(names: &[&str], layers: &[&Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| fixture::image::digest(layer)).collect();
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let image = |name: &&str| serde_json::json!({ "Config": "config.json", "RepoTags": [format!("{name}:latest")], "Layers": paths });
    let manifest = Value::from(names.iter().map(image).collect::<Vec<_>>());
    let (config, manifest) = (config.to_string().into_bytes(), manifest.to_string().into_bytes());
    let documents = [("manifest.json", &manifest), ("config.json", &config)];
    let layers = paths.iter().map(String::as_str).zip(layers.iter().copied());
    let entry = |(path, content): (_, &'_ Vec<u8>)| -> Vec<u8> {
        let mut one = archive(&[Entry { path, content, ..Entry::default() }]);
        one.truncate(one.len() - 1024);
        one
    };
    documents.into_iter().chain(layers).flat_map(entry).chain([0; 1024]).collect()
}

/// A disk that is full at any size is what is told, and not an archive that cannot be read.
#[test]
fn a_full_disk_is_told() {
    let Some(home) = Home::new(&[]) else { return };
    // A content that does not become smaller, several times and too far from itself for a compressor's window.
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let noise: Vec<u8> = noise.take(150_000).collect();
    let names: Vec<String> = (0..10).map(|number| format!("f{number}")).collect();
    let file = |path| Entry { path, content: &noise, ..Entry::default() };
    let layer = archive(&names.iter().map(|name| file(name)).collect::<Vec<_>>());
    fs::write(home.path("layer.tar"), &layer).unwrap();
    fs::write(home.path("image.tar"), docker_archive("image", &[&layer])).unwrap();
    let (data, bin) = (home.directory.join("data"), home.bin().display().to_string());
    let data = data.display();
    let script = format!(
        "gzip -k layer.tar
         for command in 'import layer.tar' 'import layer.tar.gz' 'load -i image.tar'; do
             size=100; small=0
             while :; do
                 mount -t tmpfs -o size=${{size}}k tmpfs {data} || exit 1
                 if {bin} $command >out 2>err; then break; fi
                 small=$((small + 1))
                 grep -q 'No space left on device' err || {{ echo \"$command $size: no word of a full disk\"; cat err; }}
                 grep -q 'hint: ' err || {{ echo \"$command $size: no hint\"; cat err; }}
                 if grep 'cannot read' err; then echo \"$command $size: nothing was read\"; cat err; fi
                 umount {data}
                 size=$((size + 100))
                 [ $size -lt 9000 ] || {{ echo never; exit 1; }}
             done
             umount {data}
             [ $small -gt 4 ] || echo \"$command: only $small were too small\"
         done"
    );
    let Some(done) = in_namespaces(&home, Within::Root, "mount -t tmpfs tmpfs /mnt", &script) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:#?}");
}

/// Thousands of images that share a layer cost its time once.
#[test]
fn a_layer_of_many_images_is_taken_once() {
    let Some(home) = Home::new(&[]) else { return };
    let zeros = vec![0; 64 << 20];
    let layer = archive(&[Entry { path: "zeros", content: &zeros, ..Entry::default() }]);
    let path = home.path("image.tar");
    let names: Vec<String> = (0..1000).map(|number| format!("image{number}")).collect();
    fs::write(&path, docker_archive_of(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[&layer])).unwrap();
    let mut load = home.command(&["load", "-i", &path.to_string_lossy()]);
    let done = finish(&mut load, b"", LIMIT);
    assert_eq!((done.code, done.stdout.lines().count()), (0, 1000), "{}", done.stderr);
}

/// Many files in one archive: within the limits of a layer, and of time.
#[test]
fn two_hundred_thousand_files_are_an_image() {
    let Some(home) = Home::new(&[]) else { return };
    let path = home.path("many.tar");
    let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    crate::support::tar::many(&mut file, 200_000);
    drop(file);
    let mut import = home.command(&["import", &path.to_string_lossy(), "many"]);
    let done = finish(&mut import, b"", std::time::Duration::from_mins(5));
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(home.ok(&["images"]).contains("many"));
}
