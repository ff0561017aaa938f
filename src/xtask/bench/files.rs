//! Work on files inside a container: many small ones, a large one, a walk over the image, a first write to it.
//!
//! Rivals: podman with each of its drivers; and, without any engine, the kernel's overlayfs over the image's tree in a
//! plain directory, and fuse-overlayfs over the same, each in a user namespace that maps one id. Every sample has a new
//! writable layer, and ends when that is gone again. What an engine takes to start and end is shown by the work `nothing`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::start::{image, sublet};
use super::{Ground, Side};
use crate::shell::{Fallible, command, output, which};

/// Each work, timed as a whole from outside with the start included.
const WORKS: &[(&str, &str)] = &[
    ("nothing", "true"),
    (
        "create and remove 10,000 files",
        "mkdir /w && cd /w && i=0; while [ $i -lt 10000 ]; do : >f$i; i=$((i+1)); done; rm -r /w",
    ),
    ("write and read 512 MiB", "dd if=/dev/zero of=/big bs=1M count=512 2>/dev/null; cat /big >/dev/null"),
    ("stat every file of the image, twice", "find / -xdev -size +1 >/dev/null; find / -xdev -size +1 >/dev/null"),
    ("read every file of the image", "tar -cf - /bin/ /etc /usr /var 2>/dev/null | cat >/dev/null; true"),
    (
        "unpack every file of the image elsewhere, remove it",
        "mkdir /w && tar -cf - /bin/ /etc /usr /var 2>/dev/null | tar -xf - -C /w; test -d /w/etc; rm -r /w",
    ),
    ("change the mode of every file of the image", "chmod -R g-w,o+r /usr /etc /var 2>/dev/null; true"),
    ("remove every file of the image but programs", "rm -r /var /usr/share 2>/dev/null; true"),
];

/// Mounts a writable layer over the image's tree, runs the work in it and removes the layer: `$1` the directory, `$2` how
/// to mount `merged`, `$3` the work.
const WITHOUT_ENGINE: &str = r#"set -e
cd "$1"; rm -rf upper work merged; mkdir upper work merged
eval "$2"
mkdir -p merged/dev merged/proc; mount --rbind /dev merged/dev; mount --rbind /proc merged/proc
chroot merged /bin/sh -c "$3"
umount -l merged/proc merged/dev; umount merged
rm -rf upper work merged"#;

/// The mounts of [`WITHOUT_ENGINE`]: who, and how.
const MOUNTS: &[(&str, &str, &str)] = &[
    (
        "kernel overlayfs (no engine)",
        "mount",
        "mount -t overlay overlay -o userxattr,xino=on,lowerdir=../tree,upperdir=upper,workdir=work merged",
    ),
    (
        "fuse-overlayfs (no engine)",
        "fuse-overlayfs",
        "fuse-overlayfs -o lowerdir=../tree,upperdir=upper,workdir=work merged",
    ),
];

/// Runs a script in a new container of the image, or in what stands for one.
struct Rival {
    name: String,
    run: Box<dyn Fn(&str) -> Command>,
}

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let image = image(ground, if ground.has_debian { "debian" } else { "busybox" });
    output(sublet(ground).args(["pull", &image]))?;
    let mut rivals = ours(ground, &image);
    rivals.extend(podmans(ground, &image));
    rivals.extend(mounts(ground, &image)?);
    let mut sides = Vec::new();
    for (work, script) in WORKS {
        let script = format!("set -e; {script}; echo done");
        sides.extend(rivals.iter().map(|rival| Side::timed(work, &rival.name, (rival.run)(&script))));
    }
    Ok(sides)
}

/// The words that every engine's command line ends with.
fn in_container(mut engine: Command, options: &[&str], image: &str, script: &str) -> Command {
    engine.args(["run", "--rm", "--network", "none"]).args(options).args([image, "sh", "-c", script]);
    engine
}

fn ours(ground: &Ground, image: &str) -> Vec<Rival> {
    let rival = |driver: &'static str| {
        let (program, root, image) = (ground.sublet.clone(), ground.directory.join("sublet"), image.to_owned());
        let run = move |script: &str| {
            let mut engine = Command::new(&program);
            engine.arg("--root").arg(&root);
            in_container(engine, &["--storage-driver", driver], &image, script)
        };
        Rival { name: format!("sublet ({driver})"), run: Box::new(run) }
    };
    ["overlay", "fuse"].map(rival).into()
}

/// Podman with each driver that it can have here, each with a store of its own.
fn podmans(ground: &Ground, image: &str) -> Vec<Rival> {
    if which("podman").is_none() {
        return Vec::new();
    }
    let mut drivers = vec![("overlay", vec!["--storage-driver=overlay".to_owned()])];
    if let Some(program) = which("fuse-overlayfs") {
        let option = format!("overlay.mount_program={}", program.display());
        drivers
            .push(("fuse-overlayfs", vec!["--storage-driver=overlay".to_owned(), "--storage-opt".to_owned(), option]));
    }
    drivers.push(("vfs", vec!["--storage-driver=vfs".to_owned()]));
    let mut rivals = Vec::new();
    for (driver, options) in drivers {
        let store = ground.directory.join(format!("podman-{driver}"));
        let engine = move || {
            let mut engine = Command::new("podman");
            engine.args(["--cgroup-manager=cgroupfs", "--root"]).arg(&store);
            engine.arg("--runroot").arg(store.with_extension("run")).args(&options);
            engine
        };
        let name = format!("podman ({driver})");
        if let Err(error) = output(engine().args(["pull", "--tls-verify=false", image])) {
            println!("left out: {name}: {error}");
            continue;
        }
        let image = image.to_owned();
        rivals.push(Rival { name, run: Box::new(move |script| in_container(engine(), &[], &image, script)) });
    }
    rivals
}

/// The same tree without an engine.
fn mounts(ground: &Ground, image: &str) -> Fallible<Vec<Rival>> {
    let base = ground.directory.join("plain");
    unpack(ground, image, &base.join("tree"))?;
    let mut rivals = Vec::new();
    for (name, program, mount) in MOUNTS {
        let directory: PathBuf = base.join(program);
        fs::create_dir_all(&directory)?;
        let run = move |script: &str| {
            let mut run = command("unshare", ["--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-c"]);
            run.args([WITHOUT_ENGINE, "sh"]).arg(&directory).args([*mount, script]);
            run
        };
        if which(program).is_none() {
            println!("left out: {name}: not installed");
        } else if let Err(error) = output(&mut run("echo done")) {
            println!("left out: {name}: {error}");
        } else {
            rivals.push(Rival { name: (*name).to_owned(), run: Box::new(run) });
        }
    }
    Ok(rivals)
}

/// The image's tree as plain files of the caller.
fn unpack(ground: &Ground, image: &str, tree: &Path) -> Fallible<()> {
    fs::create_dir_all(tree)?;
    let archive = tree.with_extension("tar");
    let list = "cd / && tar -cf - $(ls -A | grep -v -x -e proc -e sys -e dev -e run)";
    let mut pack = in_container(sublet(ground), &[], image, list);
    let status = pack.stdout(fs::File::create(&archive)?).status()?;
    if !status.success() {
        return Err(format!("packing the tree of {image} failed ({status})").into());
    }
    output(command("tar", ["-x", "--no-same-owner", "-f"]).arg(&archive).arg("-C").arg(tree))?;
    fs::remove_file(archive)?;
    Ok(())
}
