//! What others save we load, and what we save others load. A tool that is not here is a skip by name.

use std::process::Command;
use std::time::Duration;

use crate::support::oracle::{end_podman, podman_of};
use crate::support::{Done, Home, busybox, finish, skip};

/// The most that a tool of others may take: their stores are slow on a machine that has other work.
const PEER_LIMIT: Duration = Duration::from_mins(10);

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(&format!("{program} is not installed"));
    }
    there
}

fn podman(home: &Home, arguments: &[&str]) -> Done {
    finish(podman_of(home).args(arguments), b"", PEER_LIMIT)
}

#[test]
fn podman_reads_what_we_save_and_we_what_it_saves() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !has("podman") {
        return;
    }
    home.ok(&["run", "--name", "cc", "--network", "none", &busybox(), "sh", "-c", "echo mine >/mine; rm /etc/group"]);
    home.ok(&["commit", "cc", "localhost/made:1"]);
    let id = home.ok(&["image", "inspect", "--format", "{{.Id}}", "localhost/made:1"]);
    let mut loaded = 0;
    // A directory podman 4 calls by its path, which fails where that is no name of an image.
    for format in ["docker-archive", "oci-archive"] {
        let path = home.path(format);
        let path = path.to_string_lossy();
        home.ok(&["save", "--format", format, "-o", &path, "localhost/made:1"]);
        let done = podman(&home, &["load", "-i", &path]);
        if done.code != 0
            && ["newuidmap", "insufficient", "user namespace"].iter().any(|words| done.stderr.contains(words))
        {
            end_podman(&home);
            return skip("podman has no store here");
        }
        assert_eq!(done.code, 0, "{format}: {done:#?}");
        let theirs = podman(&home, &["image", "inspect", "--format", "sha256:{{.Id}}", "localhost/made:1"]);
        assert_eq!(theirs.stdout, id, "{format}: {theirs:#?}");
        let back = home.path(&format!("{format}.back"));
        let saved = podman(&home, &["save", "--format", format, "-o", &back.to_string_lossy(), "localhost/made:1"]);
        assert_eq!(saved.code, 0, "{format}: {saved:#?}");
        let second = Home::new(&[]).unwrap();
        let said = second.ok(&["load", "-i", &back.to_string_lossy()]);
        let name = if said.contains("localhost/made:1") {
            "localhost/made:1".to_owned()
        } else {
            said.trim_end().rsplit(' ').next().unwrap().to_owned()
        };
        let seen =
            second.ok(&["run", "--rm", "--network", "none", &name, "sh", "-c", "cat /mine; ls /etc/group 2>&1; true"]);
        assert!(seen.starts_with("mine\n") && seen.contains("No such file"), "{format}: {seen}");
        podman(&home, &["rmi", "-a", "-f"]);
        loaded += 1;
    }
    end_podman(&home);
    assert_eq!(loaded, 2);
}

#[test]
fn skopeo_copies_what_we_save() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !has("skopeo") {
        return;
    }
    let saved = home.path("saved.tar");
    home.ok(&["tag", &busybox(), "small"]);
    home.ok(&["save", "-o", &saved.to_string_lossy(), "small"]);
    let target = home.path("copied");
    let mut skopeo = Command::new("skopeo");
    home.surround(&mut skopeo);
    skopeo.args(["--insecure-policy", "copy"]);
    skopeo.arg(format!("docker-archive:{}:docker.io/library/small:latest", saved.display()));
    skopeo.arg(format!("oci:{}:small", target.display()));
    let done = finish(&mut skopeo, b"", PEER_LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(
        home.ok(&["run", "--rm", "--network", "none", &format!("oci:{}", target.display()), "echo", "x"]),
        "x\n"
    );
}

#[test]
fn umoci_unpacks_what_we_save() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !has("umoci") {
        return;
    }
    let layout = home.path("layout");
    home.ok(&["tag", &busybox(), "small"]);
    home.ok(&["save", "--format", "oci-dir", "-o", &layout.to_string_lossy(), "small"]);
    let mut umoci = Command::new("umoci");
    home.surround(&mut umoci);
    umoci.args(["unpack", "--rootless", "--image"]);
    umoci.arg(format!("{}:docker.io/library/small:latest", layout.display())).arg(home.path("unpacked"));
    let done = finish(&mut umoci, b"", PEER_LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(std::fs::read_to_string(home.path("unpacked/rootfs/etc/replaced")).unwrap(), "second\n");
}
