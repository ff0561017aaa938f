//! Work on files inside a container: a walk, reads, many small files, a large one, first writes to what the image has.
//!
//! Rivals: podman with each of its drivers; and, without any engine, the kernel's overlayfs over the image's tree in a
//! plain directory, fuse-overlayfs over the same, each in a user namespace that maps one id, and the plain directory itself.
//! Every sample has a new writable layer, which is gone when it ends.
//!
//! The clock is the script's own, from just before the work to just behind it; what an engine takes to start and end is the
//! work `nothing`, by the clock outside. What only looks at the image is done in three states of the caches: *cold* (the
//! kernel has dropped all of them: only in the rig, where root does so for us), *in a second container* (another one has
//! just done it) and *again* (the same one has).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Command;

use super::pull::small_files;
use super::rivals::{Ids, Reach, Rival, engines, rivals};
use super::{Ground, Side};
use crate::debian;
use crate::shell::{Fallible, command};

/// Names a named pipe, beside one with `.done`: a line to the first has root drop the kernel's caches and answer by the second.
const DROP: &str = "SUBLET_BENCH_DROP";

/// The files of an image.
struct Tree {
    /// What the tables call it.
    title: &'static str,
    /// Its image in the registry: Debian's, with so many small files more.
    name: &'static str,
    added: u64,
    /// Where they are, and what of them the programs of the works can do without.
    places: &'static str,
    spare: &'static str,
    rounds: Option<usize>,
}

const MODULES: &str = "/usr/lib/node_modules";
const TREES: [Tree; 3] = [
    Tree {
        title: "debian",
        name: "debian",
        added: 0,
        places: "/etc /usr /var",
        spare: "/var /usr/share",
        rounds: None,
    },
    Tree { title: "50,000 files", name: "files-50k", added: 50_000, places: MODULES, spare: MODULES, rounds: Some(3) },
    Tree {
        title: "200,000 files",
        name: "files-200k",
        added: 200_000,
        places: MODULES,
        spare: MODULES,
        rounds: Some(2),
    },
];

/// What only looks. `@` stands for the places.
const LOOKS: [(&str, &str); 3] = [
    ("stat every file", "find @ -xdev -size +1 >/dev/null"),
    ("open and read every file", "find @ -xdev -type f -exec cat {} + >/dev/null"),
    ("tar every file", "tar -cf - @ 2>/dev/null | cat >/dev/null"),
];

/// What changes files of the image: a name, what comes first, the work. `@` stands for the places, `%` for what can be spared.
const CHANGES: [(&str, &str, &str); 2] = [
    ("change the mode of every file", ":", "chmod -R g-w,o+r @ 2>/dev/null || true"),
    ("remove files of the image", ":", "rm -r % 2>/dev/null || true"),
];

/// What makes new files of the image's.
const COPIES: [(&str, &str, &str); 2] = [
    ("unpack every file", "tar -cf /w/a.tar @ 2>/dev/null || true; mkdir /w/a", "tar -xf /w/a.tar -C /w/a"),
    ("copy every file", "mkdir /w/a", "cp -a @ /w/a"),
];

const MANY: &str = "i=0; while [ $i -lt 5000 ]; do : >/w/f$i; i=$((i+1)); done";
const LARGE: &str = "dd if=/dev/zero of=/w/large bs=1M count=1024 2>/dev/null";

/// Runs a container (the words after the first) that says when its server is to be looked at; how many KiB the newest process
/// has whose command line is like `$1`.
const MEMORY: &str = r#"server=$1; shift
"$@" | while read -r said; do
  echo "$said"; [ "$said" != walked ] || sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/took \1/p' "/proc/$(pgrep -n -f "$server")/status"
done"#;

/// What has nothing to do with the image.
const ANYWHERE: [(&str, &str, &str); 4] = [
    ("create 5,000 files", ":", MANY),
    ("remove 5,000 files", MANY, "rm -r /w/*"),
    ("write 1 GiB", ":", LARGE),
    ("read 1 GiB that was written", LARGE, "cat /w/large >/dev/null"),
];

/// The works on Debian's tree.
pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    of_trees(ground, &TREES[..1])
}

/// Those on trees of many files, and of many layers.
pub fn sides_of_large_trees(ground: &Ground) -> Fallible<Vec<Side>> {
    let mut sides = of_trees(ground, &TREES[1..])?;
    layers(&mut sides, ground)?;
    Ok(sides)
}

fn of_trees(ground: &Ground, trees: &[Tree]) -> Fallible<Vec<Side>> {
    if !ground.has_debian {
        return Err("these works need the programs of the Debian image".into());
    }
    if dropper().is_none() {
        println!("left out: cold caches: only root can drop them, as `cargo xtask rig bench files` does");
    }
    let mut sides = Vec::new();
    for tree in trees {
        publish(ground, tree)?;
        let is_small = tree.added == 0;
        let rivals = rivals(ground, tree.name, is_small)?;
        if is_small {
            sides.extend(rivals.iter().map(|rival| Side::timed("nothing", &rival.name, rival.run("echo done"))));
        }
        looks(&mut sides, tree, &rivals);
        let anywhere: &[_] = if is_small { &ANYWHERE } else { &[] };
        for (work, before, script) in anywhere.iter().chain(&COPIES) {
            sides.extend(rivals.iter().map(|rival| side(tree, rival, work, before, script)));
        }
        for (work, before, script) in CHANGES {
            let able = rivals.iter().filter(|rival| rival.reach == Reach::Layer);
            sides.extend(able.map(|rival| side(tree, rival, work, before, script)));
        }
        if !is_small {
            servers(&mut sides, tree, &rivals);
        }
    }
    Ok(sides)
}

fn looks(sides: &mut Vec<Side>, tree: &Tree, rivals: &[Rival]) {
    for (work, script) in LOOKS {
        if dropper().is_some() {
            let cold = |rival| side(tree, rival, &format!("{work}, cold"), ":", script).after_doing(dropped);
            sides.extend(rivals.iter().map(cold));
        }
        let second = |rival: &Rival| {
            let first = rival.run(&timed(&filled(tree, script), ":"));
            side(tree, rival, &format!("{work}, in a second container"), ":", script).after(first)
        };
        sides.extend(rivals.iter().map(second));
        sides.extend(rivals.iter().map(|rival| side(tree, rival, &format!("{work}, again"), script, script)));
    }
}

/// How large a server of files becomes.
fn servers(sides: &mut Vec<Side>, tree: &Tree, rivals: &[Rival]) {
    let walk = filled(tree, LOOKS[0].1);
    for (work, script) in [("memory of the server at first", ":"), ("memory of the server after a walk", &walk)] {
        for rival in rivals {
            let server = if rival.name.starts_with("sublet") { "^sublet-fs " } else { "^[^ ]*fuse-overlayfs " };
            if !rival.name.contains("fuse") && server != "^sublet-fs " {
                continue;
            }
            let mut run = command("sh", ["-c", MEMORY, "sh", server]);
            let alone = rival.run(&format!("{script}; echo walked; sleep 2; echo done"));
            run.arg(alone.get_program()).args(alone.get_args());
            let side = Side::timed(&format!("{}: {work}", tree.title), &rival.name, run);
            let side = side.valued("MiB", |kib| Some(told(kib)? / 1024.0));
            sides.push(side.after(lingered()).times(tree.rounds));
        }
    }
}

/// The first container of an image of many layers, whose server has to begin, and the next one.
fn layers(sides: &mut Vec<Side>, ground: &Ground) -> Fallible<()> {
    let numbers = (0..100).map(|layer| layer * 2000..(layer + 1) * 2000);
    let image = debian::debian_and(numbers.map(small_files).collect::<Fallible<_>>()?)?.ok_or("no Debian image")?;
    fixture::push::push(&ground.registry, "layers", "latest", &image)?;
    let engines = engines(ground, "layers", false, Ids::Many)?;
    for (work, is_first) in [("the first container", true), ("the next container", false)] {
        for engine in &engines {
            let side =
                Side::timed(&format!("102 layers, 200,000 files: {work}"), &engine.name, engine.run("echo done"));
            let is_served = is_first && engine.name.starts_with("sublet");
            let before = if is_served { lingered() } else { engine.run("echo done") };
            sides.push(side.after(before).times(Some(5)));
        }
    }
    Ok(())
}

/// Waits until servers without a container have ended.
pub fn lingered() -> Command {
    command("sleep", ["32"])
}

fn side(tree: &Tree, rival: &Rival, work: &str, before: &str, script: &str) -> Side {
    let run = rival.run(&timed(&filled(tree, before), &filled(tree, script)));
    let side = Side::timed(&format!("{}: {work}", tree.title), &rival.name, run);
    side.valued("ms", |said| Some(told(said)? / 1000.0)).times(tree.rounds)
}

fn filled(tree: &Tree, script: &str) -> String {
    script.replace('@', tree.places).replace('%', tree.spare)
}

/// A script that does `work` after `before`, with an empty directory `/w`, and says how many microseconds the work took.
pub fn timed(before: &str, work: &str) -> String {
    format!(
        "set -e; rm -rf /w; mkdir /w; {before}; began=$(date +%s%N); {work}; ended=$(date +%s%N); rm -rf /w; \
         echo took $(((ended - began) / 1000)); echo done"
    )
}

/// The number that a script says it took.
pub fn told(said: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix("took "))?.parse().ok()
}

/// By which pipe root can be asked, if it is there.
pub fn dropper() -> Option<PathBuf> {
    std::env::var_os(DROP).map(PathBuf::from)
}

/// Has root drop the kernel's caches, and waits until it has.
pub fn dropped() -> Result<(), String> {
    let pipe = dropper().ok_or("nobody drops the kernel's caches")?;
    let asked = || {
        File::options().write(true).open(&pipe)?.write_all(b"drop\n")?;
        let mut said = String::new();
        BufReader::new(File::open(pipe.with_extension("done"))?).read_line(&mut said)?;
        std::io::Result::Ok(said)
    };
    match asked() {
        Ok(said) if said == "dropped\n" => Ok(()),
        Ok(said) => Err(format!("the kernel's caches were not dropped: {said:?}")),
        Err(error) => Err(format!("asking by {}: {error}", pipe.display())),
    }
}

/// Pushes the image of a tree, if it is not there yet.
fn publish(ground: &Ground, tree: &Tree) -> Fallible<()> {
    if tree.added == 0 {
        return Ok(());
    }
    let image = debian::debian_and(vec![small_files(0..tree.added)?])?.ok_or("no Debian image")?;
    Ok(fixture::push::push(&ground.registry, tree.name, "latest", &image)?)
}
