//! Images from a registry on loopback and to one: how long, in how much memory, over how many bytes and inodes.
//!
//! Each sample stands for itself: what it needs to find is made by its own preparation, since the sides take turns.

use std::fs;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use fixture::image::{Image, Layer, MTIME_S};
use serde_json::json;
use tar::{Builder, Header};

use super::gate::Gate;
use super::start::{image, podman, sublet};
use super::{Ground, Side, in_mib};
use crate::debian;
use crate::registry::Registry;
use crate::shell::{Fallible, command, output, which};

/// How many images `images` lists, and how many of podman, which takes minutes for as many.
const MANY_IMAGES: usize = 1000;
const PODMAN_IMAGES: usize = 100;
/// Of what is costly, how many rounds are enough.
const FEW: usize = 2;

/// One of the engines, with the directory that has its store.
struct Engine<'a> {
    name: &'static str,
    command: Box<dyn Fn() -> Command + 'a>,
    store: PathBuf,
    /// Its options to pull and push without TLS.
    plain: &'static [&'static str],
    by_podman: bool,
}

impl Engine<'_> {
    fn with<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = (self.command)();
        command.args(arguments);
        command
    }

    fn pull(&self, image: &str) -> Command {
        let mut pull = self.with(["pull", "-q"]);
        pull.args(self.plain).arg(image);
        pull
    }

    /// Empties the store by the owner's means; podman's needs its namespace.
    fn empty(&self) -> Command {
        empty(&self.store, self.by_podman)
    }

    /// A command that prints something if the image is there, or is not.
    fn tells(&self, image: &str, there: bool) -> Command {
        let exists = crate::shell::line(&self.with(["image", "exists", image]));
        let joint = if there { "&&" } else { "||" };
        command("sh", ["-c", &format!("{exists} {joint} echo so")])
    }
}

fn empty(directory: &Path, by_podman: bool) -> Command {
    let mut remove = if by_podman { command("podman", ["unshare", "rm", "-rf"]) } else { command("rm", ["-rf"]) };
    remove.arg(directory);
    remove
}

fn engines(ground: &Ground) -> Vec<Engine<'_>> {
    let mut engines = vec![Engine {
        name: "sublet",
        command: Box::new(|| sublet(ground)),
        store: ground.directory.join("sublet"),
        plain: &[],
        by_podman: false,
    }];
    if which("podman").is_some() {
        engines.push(Engine {
            name: "podman",
            command: Box::new(|| podman(ground)),
            store: ground.directory.join("podman"),
            plain: &["--tls-verify=false"],
            by_podman: true,
        });
    }
    engines
}

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let big_bytes = publish(ground)?;
    let engines = engines(ground);
    let mut sides = Vec::new();
    let debian = if ground.has_debian { "debian" } else { "busybox" };
    for (work, name, rounds) in [
        ("pull busybox", "busybox", None),
        ("pull debian", debian, None),
        ("pull 20 layers of 4 MiB", "twenty", None),
        ("pull one layer of 2 GiB", "big", Some(FEW)),
        ("pull one layer of 200,000 files", "many", Some(FEW)),
    ] {
        let image = image(ground, name);
        for engine in &engines {
            let side = Side::timed(work, engine.name, engine.pull(&image)).after(engine.empty());
            sides.push(side.proved_by(engine.tells(&image, true)).with_memory().times(rounds));
        }
        if which("skopeo").is_some() {
            sides.push(by_skopeo(ground, work, &image).times(rounds));
        }
    }
    let image = image(ground, debian);
    for engine in &engines {
        let side = Side::timed("pull debian, which is there", engine.name, engine.pull(&image));
        sides.push(side.after(engine.pull(&image)).proved_by(engine.tells(&image, true)).with_memory());
    }
    for engine in &engines {
        let side = Side::timed("rmi debian", engine.name, engine.with(["rmi", &image])).after(engine.empty());
        sides.push(side.after(engine.pull(&image)).proved_by(engine.tells(&image, false)).with_memory());
    }
    sides.extend(inodes(&engines, &image)?);
    sides.extend(lists(ground)?);
    sides.extend(pushes(ground, &engines)?);
    sides.extend(resumed(ground, &engines, big_bytes)?);
    Ok(sides)
}

fn by_skopeo(ground: &Ground, work: &str, image: &str) -> Side {
    let to = ground.directory.join("skopeo");
    let mut copy = command("skopeo", ["copy", "--src-tls-verify=false"]);
    copy.arg(format!("docker://{image}")).arg(format!("dir:{}", to.display()));
    let manifest = command("cat", [to.join("manifest.json")]);
    Side::timed(work, "skopeo (download only)", copy).after(empty(&to, false)).proved_by(manifest).with_memory()
}

/// How many inodes a store has with one image in it.
fn inodes(engines: &[Engine<'_>], image: &str) -> Fallible<Vec<Side>> {
    let entries = match debian::debian()? {
        Some(debian) => entries(&debian)?,
        None => return Ok(Vec::new()),
    };
    let work = format!("inodes of debian, an image of {entries} entries");
    let mut sides = Vec::new();
    for engine in engines {
        let script = format!("find {} | wc -l", engine.store.display());
        let mut find = if engine.by_podman { command("podman", ["unshare", "sh"]) } else { command("sh", [""; 0]) };
        find.args(["-c", &script]);
        let side = Side::timed(&work, engine.name, find).after(engine.empty()).after(engine.pull(image));
        let side = side.valued("inodes", |said| said.trim().parse().ok());
        sides.push(side.proved_by(engine.tells(image, true)).times(Some(1)));
    }
    Ok(sides)
}

fn entries(image: &Image) -> Fallible<usize> {
    let mut entries = 0;
    // The last blob is the configuration.
    for (_, gzip) in image.blobs.iter().rev().skip(1) {
        entries += tar::Archive::new(flate2::read::GzDecoder::new(gzip.as_slice())).entries()?.count();
    }
    Ok(entries)
}

/// Lists of many images, in stores of their own.
fn lists(ground: &Ground) -> Fallible<Vec<Side>> {
    let mut sides = Vec::new();
    let mut add = |name: &str, count: usize, engine: &dyn Fn() -> Command, rounds| -> Fallible<()> {
        let archive = ground.directory.join("images.tar");
        images_archive(&archive, count)?;
        output(engine().args(["load", "-q", "-i"]).arg(&archive))?;
        let mut list = engine();
        list.arg("images");
        let mut last = engine();
        last.args(["image", "inspect", "--format", "{{.Id}}", &format!("localhost/bench/image-{}", count - 1)]);
        sides.push(Side::timed("images, 1,000 of them", name, list).proved_by(last).with_memory().times(rounds));
        Ok(())
    };
    let ours = || {
        let mut sublet = Command::new(&ground.sublet);
        sublet.arg("--root").arg(ground.directory.join("sublet-many"));
        sublet
    };
    add("sublet", MANY_IMAGES, &ours, None)?;
    if which("podman").is_some() {
        let theirs = || {
            let mut podman = command("podman", ["--cgroup-manager=cgroupfs", "--root"]);
            podman.arg(ground.directory.join("podman-all"));
            podman.arg("--runroot").arg(ground.directory.join("many-run"));
            podman
        };
        add(&format!("podman ({PODMAN_IMAGES} of them)"), PODMAN_IMAGES, &theirs, Some(FEW))?;
    }
    Ok(sides)
}

/// An archive of Docker's with so many images of one layer.
fn images_archive(path: &Path, count: usize) -> Fallible<()> {
    let mut archive = Builder::new(io::BufWriter::new(fs::File::create(path)?));
    let mut layer = Builder::new(Vec::new());
    add(&mut layer, "etc/bench", 6, &b"bench\n"[..])?;
    let layer = layer.into_inner()?;
    let diff_id = fixture::image::digest(&layer);
    add(&mut archive, "layer.tar", layer.len() as u64, layer.as_slice())?;
    let mut manifest = Vec::new();
    for number in 0..count {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z",
            "config": { "Cmd": ["sh"], "Labels": { "number": number.to_string() } },
            "history": [{ "created": "2023-11-14T22:13:20Z", "created_by": "bench" }],
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let (config, name) = (config.to_string(), format!("{number}.json"));
        add(&mut archive, &name, config.len() as u64, config.as_bytes())?;
        let tag = format!("localhost/bench/image-{number}:latest");
        manifest.push(json!({ "Config": name, "RepoTags": [tag], "Layers": ["layer.tar"] }));
    }
    let manifest = json!(manifest).to_string();
    add(&mut archive, "manifest.json", manifest.len() as u64, manifest.as_bytes())?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// The large layer to a registry that has nothing.
fn pushes(ground: &Ground, engines: &[Engine<'_>]) -> Fallible<Vec<Side>> {
    let directory = ground.directory.join("sink");
    fs::create_dir_all(&directory)?;
    let Some(sink) = Registry::start(&directory)? else { return Ok(Vec::new()) };
    let to = format!("{}/big", sink.address);
    let mut sides = Vec::new();
    for engine in engines {
        let from = image(ground, "big");
        let mut push = engine.with(["push", "-q"]);
        push.args(engine.plain).arg(&to);
        let tag = directory.join("registry/docker/registry/v2/repositories/big/_manifests/tags/latest/current/link");
        let proof = command("cat", [tag]);
        let side = Side::timed("push one layer of 2 GiB", engine.name, push);
        let side = side.after(empty(&directory.join("registry/docker"), false));
        // The layer must not be known to come from where it could be mounted.
        let side = side.after(engine.empty()).after(engine.pull(&from)).after(engine.with(["tag", &from, &to]));
        sides.push(side.proved_by(proof).with_memory().times(Some(FEW)));
    }
    ground.keep(sink);
    Ok(sides)
}

/// What the second of two pulls downloads when the first was killed with nine tenths of the layer there.
fn resumed(ground: &Ground, engines: &[Engine<'_>], big_bytes: u64) -> Fallible<Vec<Side>> {
    let gate = Gate::before(&ground.registry)?;
    let image = format!("{}/big", gate.address);
    let work = format!("pull after a kill at 90 % of {} MiB", big_bytes >> 20);
    let mut sides = Vec::new();
    for engine in engines {
        let (opened, counted) = (gate.clone(), gate.clone());
        let mut killed = engine.pull(&image);
        let kill = move || opened.kill_after(&mut killed, big_bytes * 9 / 10).map_err(|error| error.to_string());
        let side = Side::timed(&work, engine.name, engine.pull(&image)).after(engine.empty()).after_doing(kill);
        let side = side.valued("MiB downloaded", move |_| Some(in_mib(counted.passed_bytes())));
        sides.push(side.proved_by(engine.tells(&image, true)).times(Some(FEW)));
    }
    Ok(sides)
}

/// Puts the images on the registry that only this topic needs; the length of the large layer as it is transferred.
fn publish(ground: &Ground) -> Fallible<u64> {
    let put = |name: &str, layers: Vec<Layer>| -> Fallible<u64> {
        let image = Image::new(layers, &json!({ "Cmd": ["sh"] }));
        fixture::push::push(&ground.registry, name, "latest", &image)?;
        Ok(image.blobs[0].1.len() as u64)
    };
    let block = block();
    let twenty = (0..20).map(|number| {
        layer(|tar| {
            (0..4).try_for_each(|file| {
                let begin = format!("layer {number} file {file}\n").into_bytes();
                let content = begin.as_slice().chain(block.as_slice());
                add(tar, &format!("layer-{number}/{file}"), (begin.len() + block.len()) as u64, content)
            })
        })
    });
    put("twenty", twenty.collect::<Fallible<_>>()?)?;
    put("many", vec![small_files(0..200_000)?])?;
    put(
        "big",
        vec![layer(|tar| {
            (0..4_u64).try_for_each(|file| {
                let begin = vec![file as u8; 1 << 20];
                let content = begin.as_slice().chain(Repeated { bytes: &block, at: 0 });
                add(tar, &format!("big/{file}"), 512 << 20, content.take(512 << 20))
            })
        })?],
    )
}

/// A layer of small text files, a hundred in a directory, no two of which are alike but for the empty ones.
pub fn small_files(numbers: Range<u64>) -> Fallible<Layer> {
    layer(|tar| {
        for file in numbers {
            let path = format!("usr/lib/node_modules/package-{}/lib/file-{file}.js", file / 100);
            let line = format!("exports.function{file} = function () {{ return {file}; }};\n").into_bytes();
            let size = file * 37 % 4096;
            add(tar, &path, size, Repeated { bytes: &line, at: 0 }.take(size))?;
        }
        Ok(())
    })
}

/// 1 MiB that gzip makes half as long: noise (xorshift64) and text by turns.
fn block() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::new();
    while block.len() < 1 << 20 {
        for _ in 0..512 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend(state.to_le_bytes());
        }
        block.extend([b'a'; 4096]);
    }
    block
}

/// The same bytes over and over.
struct Repeated<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Read for Repeated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.bytes[self.at..].len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.bytes[self.at..][..length]);
        self.at = (self.at + length) % self.bytes.len();
        Ok(length)
    }
}

/// A layer of what `write` adds to its archive, which is never whole in memory.
fn layer(write: impl FnOnce(&mut Builder<io::BufWriter<io::PipeWriter>>) -> io::Result<()> + Send) -> Fallible<Layer> {
    let (reader, writer) = io::pipe()?;
    std::thread::scope(|scope| {
        let written = scope.spawn(move || {
            let mut tar = Builder::new(io::BufWriter::with_capacity(1 << 20, writer));
            write(&mut tar)?;
            tar.into_inner()?.flush()
        });
        let layer = Layer::from_tar(reader)?;
        written.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(layer)
    })
}

fn add(tar: &mut Builder<impl Write>, path: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(MTIME_S);
    header.set_size(size);
    tar.append_data(&mut header, path, content)
}
