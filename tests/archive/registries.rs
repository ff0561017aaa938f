//! What only a registry is between: an image that no plain user can unpack goes there and back, and other tools find in it what
//! we have put there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::commit::{FAR, import_rich, rich};
use crate::support::oracle::{end_podman, podman_of};
use crate::support::tar::listing;
use crate::support::{Done, Home, Need, Within, finish, identity, in_namespaces, registry, skip, unique};

/// The most that a tool of others may take.
const PEER_LIMIT: Duration = Duration::from_mins(5);

/// Entries below `far`, in an order of their own.
fn far(layer: &Path) -> Vec<String> {
    listing(layer).into_iter().filter(|line| line.contains(" far/")).collect()
}

/// The files of the layers of an image that skopeo has copied into a directory, checked by their digests.
fn layers_in(directory: &Path) -> Vec<PathBuf> {
    let manifest: Value = serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    let path = |layer: &Value| {
        let digest = layer["digest"].as_str().unwrap();
        let path = directory.join(digest.strip_prefix("sha256:").unwrap());
        assert_eq!(fixture::image::digest(&fs::read(&path).unwrap()), digest);
        path
    };
    manifest["layers"].as_array().unwrap().iter().map(path).collect()
}

fn skopeo(home: &Home, arguments: &[&str]) -> Option<Done> {
    if Command::new("skopeo").arg("--version").output().is_err() {
        skip("skopeo is not installed");
        return None;
    }
    let mut command = Command::new("skopeo");
    home.surround(command.arg("--insecure-policy").args(arguments));
    let done = finish(&mut command, b"", PEER_LIMIT);
    assert_eq!(done.code, 0, "{arguments:?}: {done:#?}");
    Some(done)
}

/// Pulled, changed, committed and pushed by who has one id, in a store on a file system without extended attributes; then read
/// by tools that know nothing of us.
#[test]
fn owners_devices_and_capabilities_go_through_registries() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    fs::write(home.path("rich.tar"), rich()).unwrap();
    let (name, changed) =
        (format!("{}/rich-{}:1", registry(), unique()), format!("{}/rich-{}:2", registry(), unique()));
    import_rich(&home, &name);
    home.ok(&["push", &name]);

    let second = Home::new(&[Need::Registry]).unwrap();
    let bin = second.bin().display();
    let script = format!(
        "{bin} pull -q {name} && {bin} run --name made --network none {name} sh -c 'echo more >>/far/file; rm /far/soft' && \
         {bin} inspect --format '{{{{.Driver}}}}' made && {bin} commit made {changed} && {bin} push -q {changed} && {bin} rm made"
    );
    let memory = format!("mount -t ramfs -o mode=700 ramfs {}", second.directory.join("data").display());
    let Some(done) = in_namespaces(&second, Within::Caller, &memory, &script) else { return };
    assert!(done.code == 0 && done.stdout.contains("\nfuse\n"), "{done:#?}");

    let copied = home.path("copied");
    let to = format!("dir:{}", copied.display());
    if skopeo(&home, &["copy", "--src-tls-verify=false", &format!("docker://{changed}"), &to]).is_none() {
        return;
    }
    let layers = layers_in(&copied);
    assert_eq!(layers.len(), 2);
    let expected = far(&home.path("rich.tar"));
    assert_eq!(far(&layers[0]), expected);
    let changes = listing(&layers[1]);
    let has = |begin: &str, end: &str| changes.iter().any(|line| line.starts_with(begin) && line.ends_with(end));
    let owner = format!("{FAR}/{}", FAR - 1);
    assert!(changes.iter().any(|line| line.contains(&owner) && line.ends_with(" far/file")), "{changes:#?}");
    assert!(has(&format!("drwxrwxrwt {FAR}/{FAR} "), " far/") && has("", " far/.wh.soft"), "{changes:#?}");

    // The one that was pulled is, bit for bit, the one that was pushed.
    let first = home.path("first");
    skopeo(
        &home,
        &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &format!("dir:{}", first.display())],
    );
    assert_eq!(fs::read(&layers_in(&first)[0]).unwrap(), fs::read(&layers[0]).unwrap());

    podman_has_the_same_entries(&home, &changed, &[expected, changes]);
}

/// podman keeps the image and hands it out again with the same entries. Owners that a plain user's ids cannot express it
/// keeps in its own way beside the files, when it is told to go on without them.
fn podman_has_the_same_entries(home: &Home, name: &str, expected: &[Vec<String>]) {
    if identity() == "one-id" {
        return skip("podman with one id keeps no image with other owners");
    }
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let driver = ["--storage-driver=vfs", "--storage-opt=vfs.ignore_chown_errors=true"];
    let podman = |arguments: &[&str]| finish(podman_of(home).args(driver).args(arguments), b"", PEER_LIMIT);
    let pulled = podman(&["pull", "-q", "--tls-verify=false", name]);
    let saved = home.path("podman.tar");
    let done = podman(&["save", "-q", "--format", "oci-archive", "-o", &saved.to_string_lossy(), name]);
    end_podman(home);
    if pulled.code != 0 && ["newuidmap", "user namespace", "insufficient"].iter().any(|why| pulled.stderr.contains(why))
    {
        return skip("podman cannot keep images here");
    }
    assert_eq!((pulled.code, done.code), (0, 0), "{pulled:#?} {done:#?}");
    let directory = home.path("podman-dir");
    let from = format!("oci-archive:{}", saved.display());
    if skopeo(home, &["copy", &from, &format!("dir:{}", directory.display())]).is_none() {
        return;
    }
    let layers = layers_in(&directory);
    assert_eq!(layers.len(), expected.len());
    assert_eq!(far(&layers[0]), expected[0]);
    assert_eq!(listing(&layers[1]), expected[1]);
}

/// What skopeo pushes we read: in each form of a manifest and with each compression of layers that there is.
#[test]
fn what_skopeo_pushes_is_read() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let saved = home.path("saved");
    home.ok(&["save", "--format", "oci-dir", "-o", &saved.to_string_lossy(), &busybox_id(&home)]);
    let layers = home.ok(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &busybox_id(&home)]);
    for (format, compression) in [("oci", "gzip"), ("oci", "zstd"), ("oci", "zstd:chunked"), ("v2s2", "gzip")] {
        let name = format!("{}/theirs-{}:1", registry(), unique());
        let (from, to) = (format!("oci:{}", saved.display()), format!("docker://{name}"));
        let how = ["--dest-tls-verify=false", "--dest-compress", "--dest-compress-format", compression];
        let arguments = [&["copy", "--format", format], &how[..], &[&from, &to]].concat();
        if skopeo(&home, &arguments).is_none() {
            return;
        }
        let second = Home::new(&[Need::Registry]).unwrap();
        second.ok(&["pull", &name]);
        let found = second.ok(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &name]);
        assert_eq!(found, layers, "{format} {compression}");
        assert_eq!(second.ok(&["run", "--rm", "--network", "none", &name, "cat", "/etc/replaced"]), "second\n");
    }
}

fn busybox_id(home: &Home) -> String {
    home.ok(&["images", "-q", "--no-trunc"]).lines().next().unwrap().to_owned()
}
