//! From a registry on loopback to an image that can be started, into an empty store.

use std::process::Command;

use super::start::{image, podman, sublet};
use super::{Ground, Side};
use crate::shell::{Fallible, command, which};

/// Empties a directory by the owner's means; podman's needs its namespace.
fn empty(ground: &Ground, name: &str, by_podman: bool) -> Command {
    let mut remove = if by_podman { command("podman", ["unshare", "rm", "-rf"]) } else { command("rm", ["-rf"]) };
    remove.arg(ground.directory.join(name));
    remove
}

/// The engine's command that lists its images.
fn listed(mut engine: Command) -> Command {
    engine.args(["images", "-q"]);
    engine
}

#[allow(clippy::unnecessary_wraps, reason = "every topic has the same signature")]
pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let names: &[&str] = if ground.has_debian { &["busybox", "debian"] } else { &["busybox"] };
    let mut sides = Vec::new();
    for name in names {
        let work = format!("pull {name}");
        let image = image(ground, name);
        let mut ours = sublet(ground);
        ours.args(["pull", &image]);
        sides.push(
            Side::timed(&work, "sublet", ours).after(empty(ground, "sublet", false)).proved_by(listed(sublet(ground))),
        );
        if which("podman").is_some() {
            let mut theirs = podman(ground);
            theirs.args(["pull", "--tls-verify=false", &image]);
            sides.push(
                Side::timed(&work, "podman", theirs)
                    .after(empty(ground, "podman", true))
                    .proved_by(listed(podman(ground))),
            );
        }
        if which("skopeo").is_some() {
            let mut copy = command("skopeo", ["copy", "--src-tls-verify=false"]);
            copy.arg(format!("docker://{image}")).arg(format!("dir:{}", ground.directory.join("skopeo").display()));
            let manifest = command("cat", [ground.directory.join("skopeo/manifest.json")]);
            let side = Side::timed(&work, "skopeo (download only)", copy).after(empty(ground, "skopeo", false));
            sides.push(side.proved_by(manifest));
        }
    }
    Ok(sides)
}
