//! Work on files inside a container: many small ones, a large one, a walk over the image, a first write to it.

use std::process::Command;

use super::start::{image, podman, sublet};
use super::{Ground, Side};
use crate::shell::{Fallible, output, which};

/// Each work, timed as a whole from outside with the start included; `nothing` shows what the start costs.
const WORKS: &[(&str, &str)] = &[
    ("nothing", "true"),
    (
        "create and remove 10,000 files",
        "mkdir /w && cd /w && i=0; while [ $i -lt 10000 ]; do : >f$i; i=$((i+1)); done; rm -r /w",
    ),
    ("write and read 512 MiB", "dd if=/dev/zero of=/big bs=1M count=512 2>/dev/null && cat /big >/dev/null"),
    ("stat every file of the image, twice", "find / -xdev -size +1 >/dev/null; find / -xdev -size +1 >/dev/null"),
    ("read every file of the image", "tar -cf /dev/null /bin /etc /usr /lib /var 2>/dev/null; true"),
    ("change the mode of every file of the image", "chmod -R g-w /usr /etc /var 2>/dev/null; true"),
];

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let image = image(ground, if ground.has_debian { "debian" } else { "busybox" });
    output(sublet(ground).args(["pull", &image]))?;
    let mut engines: Vec<(String, Box<dyn Fn() -> Command>)> = vec![];
    for driver in ["overlay", "fuse"] {
        let make = || {
            let mut engine = sublet(ground);
            engine.args(["--storage-driver", driver]);
            engine
        };
        engines.push((format!("sublet ({driver})"), Box::new(make)));
    }
    if which("podman").is_some() {
        output(podman(ground).args(["pull", "--tls-verify=false", &image]))?;
        engines.push(("podman (kernel overlay)".to_owned(), Box::new(|| podman(ground))));
    }
    if let (Some(_), Some(program)) = (which("podman"), which("fuse-overlayfs")) {
        let option = format!("overlay.mount_program={}", program.display());
        // Another driver set-up needs another store.
        let store = ground.directory.join("podman-fuse");
        let make = move || {
            let mut engine = Command::new("podman");
            engine.args(["--cgroup-manager=cgroupfs", "--root"]).arg(&store);
            engine.arg("--runroot").arg(store.with_extension("run")).args(["--storage-opt", &option]);
            engine
        };
        output(make().args(["pull", "--tls-verify=false", &image]))?;
        engines.push(("podman (fuse-overlayfs)".to_owned(), Box::new(make)));
    }
    let mut sides = Vec::new();
    for (work, script) in WORKS {
        let script = format!("set -e; {script}; echo done");
        for (name, engine) in &engines {
            let mut command = engine();
            command.args(["run", "--rm", "--network", "none", &image, "sh", "-c", &script]);
            sides.push(Side::timed(work, name, command));
        }
    }
    Ok(sides)
}
