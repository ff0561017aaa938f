//! The image fixtures: a real Debian made by mmdebstrap and a small busybox image, both with owners, whiteouts and links
//! that a careless unpacker gets wrong.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use fixture::image::{Image, Layer, LayerBuilder, MTIME_S, Meta};
use serde_json::{Value, json};

use crate::host::{is_root, is_static};
use crate::shell::{Fallible, cache, output, run, which};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The first mirror and the suite that this host's apt uses: (mirror, suite, components).
struct Source {
    mirror: String,
    suite: String,
}

impl Source {
    /// Debian hosts get trixie from their own mirror, others their own release.
    fn of_host() -> Option<Self> {
        let mirror = host_mirror()?;
        let release = fs::read_to_string("/etc/os-release").ok()?;
        let value = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
            Some(line.trim_matches('"').to_owned())
        };
        let suite = if value("ID")? == "debian" { "trixie".to_owned() } else { value("VERSION_CODENAME")? };
        Some(Source { mirror, suite })
    }
}

/// The first mirror in apt's sources of this host.
pub fn host_mirror() -> Option<String> {
    let mut files = vec!["/etc/apt/sources.list".into()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    // The distribution's own file first: others are add-ons that hold no base system.
    files.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        !(name == "sources.list" || name.starts_with("debian") || name.starts_with("ubuntu"))
    });
    let texts = files.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.flat_map(|text| mirrors(&text)).next()
}

/// The addresses in a file of apt sources, in either format.
fn mirrors(text: &str) -> Vec<String> {
    let address = |line: &str| {
        let words = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
        words.split_whitespace().find(|word| word.contains("://")).map(str::to_owned)
    };
    text.lines().filter_map(address).collect()
}

/// The Debian image: the base system and a second layer that changes, hides and adds. `None` without mmdebstrap, a
/// mirror, or the rights to unpack.
pub fn debian() -> Fallible<Option<Image>> {
    debian_and(Vec::new())
}

/// The same with these layers on top.
pub fn debian_and(more: Vec<Layer>) -> Fallible<Option<Image>> {
    let Some(tarball) = base_system()? else { return Ok(None) };
    let base = Layer::from_tar(File::open(tarball)?)?;
    let second = LayerBuilder::default()
        .file("etc/sublet-fixture", Meta { uid: 33, gid: 42, mode: 0o640 }, b"second layer\n")?
        .whiteout("etc", "issue.net")?
        .dir("var/lib/sublet", Meta { uid: 1234, gid: 5678, mode: 0o2775 })?
        .hardlink("var/lib/sublet/link", Meta { uid: 33, gid: 42, mode: 0o640 }, "etc/sublet-fixture")?
        .finish()?;
    let layers = [vec![base, second], more].concat();
    Ok(Some(Image::new(layers, &json!({ "Env": [PATH], "Cmd": ["bash"] }))))
}

/// An image of further packages, for works that need programs: those of `root` by mmdebstrap's options. As [`debian`] where it
/// cannot be made.
pub fn equipped(root: &Root) -> Fallible<Option<Image>> {
    let Some(tarball) = tarball(root)? else { return Ok(None) };
    let layer = Layer::from_tar(File::open(tarball)?)?;
    Ok(Some(Image::new(vec![layer], &json!({ "Env": [PATH], "Cmd": ["bash"] }))))
}

/// A root directory that mmdebstrap makes.
pub struct Root {
    /// What it is called in the cache: as long as the options are the same.
    pub name: &'static str,
    /// Options of mmdebstrap.
    pub options: &'static [&'static str],
}

/// The cached tar stream of a minimal Debian.
fn base_system() -> Fallible<Option<std::path::PathBuf>> {
    tarball(&Root { name: "", options: &[] })
}

/// The cached tar stream of a root, its digest noted beside it.
fn tarball(root: &Root) -> Fallible<Option<std::path::PathBuf>> {
    let directory = cache().join("fixtures");
    let Some(source) = Source::of_host() else { return Ok(None) };
    let name = if root.name.is_empty() { source.suite.clone() } else { format!("{}-{}", source.suite, root.name) };
    let tarball = directory.join(format!("{name}.tar"));
    let note = tarball.with_extension("tar.sha256");
    if tarball.exists() && note.exists() {
        return Ok(Some(tarball));
    }
    let (Some(program), true) = (which("mmdebstrap"), is_root()) else { return Ok(None) };
    println!("== Debian image fixture ({name})");
    fs::create_dir_all(&directory)?;
    let mut make = Command::new(program);
    make.args(["--quiet", "--variant=minbase", "--skip=output/dev"]).args(root.options);
    make.arg(&source.suite).arg(&tarball);
    make.arg(format!("deb {} {} main", source.mirror, source.suite)).env("SOURCE_DATE_EPOCH", MTIME_S.to_string());
    if let Err(error) = run(&mut make) {
        println!("no Debian fixture: {error}");
        return Ok(None);
    }
    let digest = output(Command::new("sha256sum").arg(&tarball))?;
    fs::write(note, digest.split(' ').next().unwrap_or_default().to_owned() + "\n")?;
    Ok(Some(tarball))
}

/// The small image: static busybox, two layers. `None` when there is no static busybox.
pub fn busybox() -> Fallible<Option<Image>> {
    let Some(program) = which("busybox").filter(|path| is_static(path)) else { return Ok(None) };
    Ok(Some(busybox_image(&program)?))
}

fn busybox_image(program: &Path) -> Fallible<Image> {
    let applets = output(Command::new(program).arg("--list"))?;
    let config: Value = json!({
        "Env": [PATH, "FIXTURE=busybox"], "Cmd": ["sh"], "WorkingDir": "/", "Labels": { "fixture": "busybox" },
    });
    Ok(Image::new(vec![busybox_base(program, &applets)?, busybox_second()?], &config))
}

fn busybox_base(program: &Path, applets: &str) -> io::Result<Layer> {
    let sticky = Meta::root(0o1777);
    let mut layer = LayerBuilder::default();
    for directory in ["bin", "dev", "etc", "proc", "root", "sys", "var", "var/www"] {
        layer = layer.dir(directory, Meta::root(0o755))?;
    }
    layer = layer.dir("tmp", sticky)?.file("bin/busybox", Meta::root(0o755), &fs::read(program)?)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    layer
        .file("etc/passwd", Meta::root(0o644), b"root:x:0:0:root:/root:/bin/sh\napp:x:1234:5678:app:/:/bin/sh\n")?
        .file("etc/group", Meta::root(0o644), b"root:x:0:\napp:x:5678:\nextra:x:777:app\n")?
        .file("etc/shadow", Meta { uid: 0, gid: 42, mode: 0o640 }, b"root:*:19000:0:99999:7:::\n")?
        .file("etc/removed", Meta::root(0o644), b"hidden by the second layer\n")?
        .file("etc/replaced", Meta::root(0o644), b"first\n")?
        .dir("var/opaque", Meta::root(0o755))?
        .file("var/opaque/below", Meta::root(0o644), b"hidden by an opaque directory\n")?
        .file("var/www/index.html", Meta::root(0o644), b"it works\n")?
        .finish()
}

fn busybox_second() -> io::Result<Layer> {
    LayerBuilder::default()
        .whiteout("etc", "removed")?
        .file("etc/replaced", Meta::root(0o600), b"second\n")?
        .dir("var/opaque", Meta::root(0o755))?
        .file("var/opaque/.wh..wh..opq", Meta::root(0o644), &[])?
        .file("var/opaque/above", Meta::root(0o644), b"stays\n")?
        .dir("var/owned", Meta { uid: 1234, gid: 5678, mode: 0o2775 })?
        .file("var/owned/file", Meta { uid: 1234, gid: 5678, mode: 0o4750 }, b"owned\n")?
        .hardlink("var/owned/again", Meta { uid: 1234, gid: 5678, mode: 0o4750 }, "var/owned/file")?
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_apt_sources_are_read() {
        let list = "# a comment\ndeb [signed-by=/usr/share/k.gpg] http://mirror.example/debian trixie main\n";
        assert_eq!(mirrors(list), ["http://mirror.example/debian"]);
        let deb822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\n";
        assert_eq!(mirrors(deb822), ["http://mirror.example/debian"]);
    }
}
