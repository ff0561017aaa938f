//! Whose the files are, and what it costs: containers whose ids are arranged otherwise, an image with owners that no range of
//! subordinate ids has, files that are given back when their container has ended; and what the second of two containers
//! finds of the first.
//!
//! Rivals: podman with the kernel's overlayfs and with fuse-overlayfs. It takes no image with owners beyond its range.

use std::process::Command;

use fixture::image::{Layer, LayerBuilder, Meta};

use super::files::{lingered, timed, told};
use super::rivals::{Engine, Ids, Rival, engines};
use super::{Ground, Side};
use crate::debian;
use crate::shell::{Fallible, command};

/// What is done in a container.
const WORKS: [(&str, &str); 2] = [
    ("stat every file", "find /etc /usr /var -xdev -size +1 >/dev/null"),
    ("change the mode of every file", "chmod -R g-w,o+r /etc /usr /var 2>/dev/null || true"),
];

/// Files of somebody else's, in a container that goes on.
const GIVE: &str = "mkdir /w; i=0; while [ $i -lt 10000 ]; do : >/w/f$i; i=$((i+1)); done; chown -R 33:33 /w; echo made; exec sleep 600";

/// Stops a container with such files: `e` is the engine, `$1` where sublet has its data, `$2` which moment counts (`stopped`, or
/// `back`: all that follows the end is done), the rest what `run` is told.
const STOP: &str = r#"set -e
root=$1; to=$2; shift 2
id=$(e run -d --network none "$@")
until e logs "$id" | grep -q made; do sleep 0.2; done
began=$(date +%s%N)
e stop -t 0 "$id" >/dev/null; stopped=$(date +%s%N)
while [ -e "$root"/hosts/*/containers/"$id"/pid.json ]; do sleep 0.002; done; back=$(date +%s%N)
e rm -f "$id" >/dev/null
echo took $((($to - began) / 1000)); echo done"#;

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let far = debian::debian_and(vec![far_owners()?])?.ok_or("these works need the Debian image")?;
    fixture::push::push(&ground.registry, "far-owners", "latest", &far)?;
    let mut sides = Vec::new();
    for (title, name) in [("debian", "debian"), ("owners above 65,535", "far-owners")] {
        let mut rivals = engines(ground, name, false, Ids::Many)?;
        rivals.extend(engines(ground, name, false, Ids::Kept)?);
        first_and_next(&mut sides, title, &rivals);
        for (work, script) in WORKS {
            let side = |rival: &Rival| {
                let side = Side::timed(&format!("{title}: {work}"), &rival.name, rival.run(&timed(":", script)));
                side.valued("ms", |said| Some(told(said)? / 1000.0))
            };
            sides.extend(rivals.iter().map(side));
        }
    }
    let rivals = engines(ground, "debian", false, Ids::Many)?;
    lingering(&mut sides, &rivals);
    given_back(&mut sides, ground, &rivals);
    Ok(sides)
}

/// 5,000 files of as many owners that a range of 65,536 subordinate ids has not.
fn far_owners() -> Fallible<Layer> {
    let mut layer = LayerBuilder::default();
    for file in 0..5000_u64 {
        let meta = Meta { uid: 100_000 + file, gid: 2_000_000_000 + file, mode: 0o644 };
        layer = layer.file(&format!("usr/lib/far/{}/{file}", file / 100), meta, &[b'x'; 600])?;
    }
    Ok(layer.finish()?)
}

fn first_and_next(sides: &mut Vec<Side>, title: &str, rivals: &[Rival]) {
    for rival in rivals {
        let Some(engine) = &rival.engine else { continue };
        let mut side =
            Side::timed(&format!("{title}: the first container of an image"), &rival.name, rival.run("echo done"));
        if rival.name.starts_with("sublet (overlay") {
            side = side.after(lingered());
        }
        sides.push(engine.anew().into_iter().fold(side, Side::after).times(Some(3)));
    }
    let work = format!("{title}: the next container");
    let next = |rival: &Rival| Side::timed(&work, &rival.name, rival.run("echo done")).after(rival.run("echo done"));
    sides.extend(rivals.iter().map(next));
}

/// `run --rm` behind a `run --rm` of the same image, whose server of files is still there or has ended.
fn lingering(sides: &mut Vec<Side>, rivals: &[Rival]) {
    let read = "find /etc /usr /var -xdev -type f -exec cat {} + >/dev/null; echo done";
    for (work, script) in [("nothing", "echo done"), ("read every file", read)] {
        for (when, waits) in [("just after another container", false), ("half a minute after another container", true)]
        {
            for rival in rivals {
                let side =
                    Side::timed(&format!("{work}, {when}"), &rival.name, rival.run(script)).after(rival.run(script));
                sides.push(if waits { side.after(lingered()).times(Some(3)) } else { side });
            }
        }
    }
}

/// The end of a container with 10,000 files of another owner, which become the caller's after it.
fn given_back(sides: &mut Vec<Side>, ground: &Ground, rivals: &[Rival]) {
    for (work, to) in [("stop", "stopped"), ("all is the caller's", "back")] {
        let own = rivals.iter().filter(|rival| to == "stopped" || rival.name.starts_with("sublet"));
        for (rival, engine) in own.filter_map(|rival| Some((rival, rival.engine.as_ref()?))) {
            let side = Side::timed(
                &format!("10,000 files of another owner: {work}"),
                &rival.name,
                stopped(ground, engine, to),
            );
            sides.push(side.valued("ms", |said| Some(told(said)? / 1000.0)).times(Some(5)));
        }
    }
}

fn stopped(ground: &Ground, engine: &Engine, to: &str) -> Command {
    let by = engine.command(&[]);
    let words = std::iter::once(by.get_program()).chain(by.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut stop = command("sh", ["-c", &format!("e() {{ {} \"$@\"; }}\n{STOP}", words.join(" ")), "sh"]);
    stop.arg(ground.directory.join("sublet")).arg(to).args(&engine.options).args([&engine.image, "sh", "-c", GIVE]);
    stop
}
