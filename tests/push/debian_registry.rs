//! Pushes to Debian's docker-registry, read back by other tools.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::oracle::{end_podman, podman_of};
use crate::support::{Home, LIMIT, Need, busybox, finish, identity, registry, skip, unique};
use crate::told;

/// A repository of the loopback registry that nobody else has.
fn fresh() -> String {
    format!("{}/pushed-{}/app", registry(), unique())
}

/// Runs a tool that may be missing: then the test is skipped.
fn tool(home: &Home, program: &str, arguments: &[&str]) -> Option<String> {
    if Command::new(program).arg("--version").output().is_err() {
        skip(&format!("{program} is not installed"));
        return None;
    }
    let mut command = Command::new(program);
    home.surround(command.args(arguments));
    let done = finish(&mut command, b"", LIMIT);
    assert_eq!(done.code, 0, "{program} {arguments:?}: {done:#?}");
    Some(done.stdout)
}

/// Pulls the small image and pushes it under another name, sent or mounted; its name and its digest.
fn pushed(home: &Home, mounted: bool) -> (String, String) {
    let pulled = home.ok(&["pull", &busybox()]);
    let digest = pulled.lines().find_map(|line| line.strip_prefix("Digest: ")).unwrap().to_owned();
    let to = format!("{}:1", fresh());
    home.ok(&["tag", &busybox(), &to]);
    if !mounted {
        // Without a name that says where else the layers are.
        home.ok(&["rmi", &busybox()]);
    }
    let output = home.ok(&["push", &to]);
    assert_eq!(told(&output), [("1".to_owned(), digest.clone())], "{output}");
    let how = if mounted { ": Mounted from busybox" } else { ": Pushed" };
    assert!(output.matches(how).count() >= 2, "{output}");
    (to, digest)
}

#[test]
fn what_was_pushed_runs_elsewhere_with_the_same_digest() {
    for mounted in [false, true] {
        let Some(home) = Home::new(&[Need::Registry]) else { return };
        let (name, digest) = pushed(&home, mounted);
        let Some(other) = Home::new(&[Need::Registry]) else { return };
        let pulled = other.ok(&["pull", &name]);
        assert!(pulled.contains(&format!("Digest: {digest}\n")), "{pulled}");
        assert_eq!(other.ok(&["run", "--rm", &name, "cat", "/etc/replaced"]), "second\n");
    }
}

#[test]
fn skopeo_reads_what_was_pushed() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (name, digest) = pushed(&home, false);
    let source = format!("docker://{name}");
    let Some(raw) = tool(&home, "skopeo", &["inspect", "--tls-verify=false", "--raw", &source]) else { return };
    assert_eq!(fixture::image::digest(raw.as_bytes()), digest);
    // It checks each digest on its way.
    let to = home.path("copy");
    tool(&home, "skopeo", &["copy", "--src-tls-verify=false", &source, &format!("dir:{}", to.display())]);
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let hex = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = std::fs::read(Path::new(&to).join(hex)).unwrap();
        assert_eq!(fixture::image::digest(&bytes), format!("sha256:{hex}"));
    }
}

#[test]
fn podman_reads_what_was_pushed_and_we_read_what_it_pushes() {
    if identity() == "one-id" {
        return skip("podman with one id keeps no image with other owners");
    }
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (name, digest) = pushed(&home, true);
    let podman = |arguments: &[&str]| finish(podman_of(&home).args(arguments), b"", Duration::from_mins(2));
    let pulled = podman(&["pull", "--tls-verify=false", &name]);
    if pulled.code != 0 && !pulled.stderr.contains("manifest") && !pulled.stderr.contains("blob") {
        end_podman(&home);
        return skip("podman cannot keep images here");
    }
    let seen = podman(&["image", "inspect", "--format", "{{.Digest}}", &name]);
    let back = format!("{}:2", fresh());
    let sent = podman(&["push", "--tls-verify=false", &name, &back]);
    end_podman(&home);
    assert_eq!((pulled.code, seen.stdout.trim_end(), sent.code), (0, digest.as_str(), 0), "{pulled:#?} {sent:#?}");
    home.ok(&["pull", &back]);
    assert_eq!(home.ok(&["run", "--rm", &back, "cat", "/etc/replaced"]), "second\n");
}

#[test]
fn a_list_is_read_by_skopeo() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let list = format!("{}:1", fresh());
    home.ok(&["manifest", "create", &list, &busybox()]);
    let digest = home.ok(&["manifest", "push", &list]).trim_end().to_owned();
    let pulled = home.ok(&["pull", &list]);
    assert!(pulled.contains(&format!("Digest: {digest}\n")), "{pulled}");
    let source = format!("docker://{list}");
    let Some(raw) = tool(&home, "skopeo", &["inspect", "--tls-verify=false", "--raw", &source]) else { return };
    assert_eq!(fixture::image::digest(raw.as_bytes()), digest);
    let seen = home.ok(&["search", &format!("{}/busybox", registry())]);
    assert!(seen.contains("busybox"), "{seen}");
}
