//! How long until a container has run a command and is gone, with the image there already.

use std::process::Command;

use super::oci::bundle;
use super::{Ground, Side};
use crate::shell::{Fallible, command, output, which};

/// Podman with its store on the ground, as the rootless default has it.
pub fn podman(ground: &Ground) -> Command {
    let mut podman = Command::new("podman");
    podman.args(["--cgroup-manager=cgroupfs", "--root"]).arg(ground.directory.join("podman"));
    podman.arg("--runroot").arg(ground.directory.join("podman-run"));
    podman
}

/// Our binary with its store on the ground.
pub fn sublet(ground: &Ground) -> Command {
    let mut sublet = Command::new(&ground.sublet);
    sublet.arg("--root").arg(ground.directory.join("sublet"));
    sublet
}

/// The reference of an image of the loopback registry.
pub fn image(ground: &Ground, name: &str) -> String {
    format!("{}/{name}", ground.registry)
}

/// A copy of the image's root for rivals that know no images; made by `podman`, else by the host's busybox alone.
pub fn plain_root(ground: &Ground) -> Fallible<std::path::PathBuf> {
    let root = ground.directory.join("root");
    if !root.exists() {
        for name in ["bin", "proc", "dev", "sys", "tmp", "etc", "work"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        let busybox = which("busybox").ok_or("busybox-static is not installed")?;
        std::fs::copy(&busybox, root.join("bin/busybox"))?;
        for applet in
            ["sh", "echo", "true", "find", "tar", "cat", "rm", "dd", "wget", "cp", "seq", "touch", "date", "sleep"]
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    Ok(root)
}

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let image = image(ground, "busybox");
    let root = plain_root(ground)?;
    output(sublet(ground).args(["pull", &image]))?;
    let has_podman = which("podman").is_some();
    if has_podman {
        output(podman(ground).args(["pull", "--tls-verify=false", &image]))?;
    }
    let mut sides = Vec::new();
    // Each sample is the second of two runs in a row, as the kernel takes the namespaces of the side before down behind its
    // back, and who makes one meanwhile waits for it.
    let twice = |work: &str, name: &str, command: &dyn Fn() -> Fallible<Command>| -> Fallible<Side> {
        Ok(Side::timed(work, name, command()?).after(command()?))
    };
    for (work, options) in [("echo, no network", ["--network", "none"].as_slice()), ("echo, default network", &[])] {
        let run = |mut engine: Command| {
            engine.args(["run", "--rm"]).args(options).args([image.as_str(), "echo", "done"]);
            engine
        };
        sides.push(twice(work, "sublet", &|| Ok(run(sublet(ground))))?);
        if has_podman {
            sides.push(twice(work, "podman", &|| Ok(run(podman(ground))))?);
        }
        if !options.is_empty() && which("crun").is_some() {
            let crun = || {
                let mut crun = command("crun", ["run", "--bundle"]);
                crun.arg(bundle(ground, "bundle", &["/bin/echo", "done"])?)
                    .arg(format!("bench-{}", std::process::id()));
                Ok(crun)
            };
            sides.push(twice(work, "crun (no image, no limits)", &crun)?);
        }
        if !options.is_empty() && which("bwrap").is_some() {
            let bwrap = || {
                let mut bwrap = command("bwrap", ["--unshare-all", "--bind"]);
                bwrap.arg(&root).args(["/", "--proc", "/proc", "--dev", "/dev", "echo", "done"]);
                Ok(bwrap)
            };
            sides.push(twice(work, "bwrap (no image, no limits)", &bwrap)?);
        }
    }
    Ok(sides)
}
