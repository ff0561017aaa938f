//! Links, `..` and magic links that lead out of the root: in images, in bundles, in what a configuration asks for
//! (CVE-2021-30465, CVE-2023-27561, CVE-2024-45310), and the old way out of chroot(2).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::{Value, json};

use crate::attack::{Container, bind_programs, has_perl};
use crate::bundle::Bundle;
use crate::support::http::{Server, registry_of};
use crate::support::{Home, LIMIT, Within, each_file, finish, in_namespaces};

/// A directory of the host with names that set-up could be led to, and what it looks like.
struct Outside {
    directory: PathBuf,
    before: Vec<String>,
}

impl Outside {
    fn new(home: &Home) -> Self {
        let directory = home.path("outside");
        for name in ["pts", "shm", "mqueue", "fs/cgroup", "self", "sys"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        for name in ["secret", "null", "hosts", "hostname", "resolv.conf", "mtab", "console", "passwd"] {
            fs::write(directory.join(name), "of the host").unwrap();
        }
        let before = picture(&directory);
        Outside { directory, before }
    }

    #[track_caller]
    fn is_untouched(&self, what: &str) {
        assert_eq!(picture(&self.directory), self.before, "{what}");
    }

    /// The links that lead here from a directory of this depth: from the root, and upwards.
    fn links(&self, depth: usize) -> [String; 2] {
        let path = self.directory.display().to_string();
        [path.clone(), format!("{}{}", "../".repeat(depth + 20).trim_end_matches('/'), path)]
    }
}

/// Every file below a directory: its name, what it is, what is in it.
fn picture(directory: &Path) -> Vec<String> {
    let mut list = Vec::new();
    each_file(directory, &mut |path, metadata| {
        let content = metadata.is_file().then(|| fs::read_to_string(path).unwrap_or_default());
        list.push(format!("{path:?} {:?} {:?} {content:?}", metadata.file_type(), metadata.permissions()));
    });
    list.sort();
    list
}

/// Where the engine mounts, writes or makes something in an image.
const OF_THE_ENGINE: [&str; 12] = [
    "dev",
    "proc",
    "sys",
    "etc",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/mtab",
    "etc/passwd",
    "volume",
    "place",
    "memory",
];

#[test]
fn links_in_an_image_lead_nowhere() {
    let Some(home) = Home::new(&[]) else { return };
    let Some(busybox) = Bundle::busybox() else { return };
    let busybox = fs::read(busybox).unwrap();
    let outside = Outside::new(&home);
    let secret = outside.directory.join("secret").display().to_string();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let volume = format!("{}:/volume/below", source.display());
    for (number, place) in OF_THE_ENGINE.iter().enumerate() {
        for (variant, link) in outside.links(2).iter().enumerate() {
            // A link to a file where a file is expected.
            let file = Path::new(place).file_name().filter(|_| place.contains('/'));
            let link = file.map_or_else(|| link.clone(), |file| format!("{link}/{}", file.to_string_lossy()));
            let layer = LayerBuilder::default().dir("bin", Meta::root(0o755)).unwrap();
            let layer = layer.file("bin/busybox", Meta::root(0o755), &busybox).unwrap().symlink(place, &link).unwrap();
            let image = Image::new(vec![layer.finish().unwrap()], &json!({ "Cmd": ["/bin/busybox", "true"] }));
            let repository = format!("linked-{number}-{variant}");
            let server = Server::start(registry_of(&repository, &image));
            let reference = format!("{}/{repository}", server.address);
            home.ok(&["pull", &reference]);
            let options = ["run", "--rm", "-v", &volume, "--tmpfs", "/memory/below", "-w", "/place/below"];
            let words = [reference.as_str(), "/bin/busybox", "cat", &secret];
            let done = home.run(&[&options[..], &words[..]].concat());
            assert!(done.code != 0 && done.stdout.is_empty(), "{place} is a link to {link}: {done:#?}");
            assert!(!done.stderr.contains("panicked"), "{done:#?}");
            outside.is_untouched(&format!("{place} is a link to {link}: {done:#?}"));
            if matches!(*place, "proc" | "sys") {
                assert!(done.stderr.contains("no directory"), "{place}: {done:#?}");
            }
        }
    }
}

/// Mounts of a template that lie on directories of the root file system itself where `/dev` is no mount.
const OF_A_BUNDLE: [&str; 10] =
    ["dev", "proc", "sys", "etc", "tmp", "dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/console"];

#[test]
fn links_in_a_bundles_root_lead_nowhere() {
    let Some(mut bundle) = Bundle::new() else { return };
    let outside = Outside::new(&bundle.home);
    let secret = outside.directory.join("secret").display().to_string();
    bundle.config["process"]["args"] = json!(["cat", secret]);
    bundle.config["process"]["cwd"] = json!("/tmp/place/below");
    bundle.push("/mounts", json!({ "destination": "/etc/below", "type": "tmpfs", "source": "tmpfs" }));
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
        { "path": "/dev/fifo", "type": "p" }]);
    let template = bundle.config.clone();
    let root = bundle.path.join("rootfs");
    for place in OF_A_BUNDLE {
        for link in outside.links(2) {
            for own_dev in [true, false] {
                bundle.config = template.clone();
                if !own_dev {
                    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
                    mounts.retain(|mount| mount["destination"] != "/dev");
                }
                let path = root.join(place);
                let aside = root.join("aside");
                let was_there = fs::rename(&path, &aside).is_ok();
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let name = path.file_name().unwrap().to_string_lossy();
                let to = if place.contains('/') { format!("{link}/{name}") } else { link.clone() };
                symlink(&to, &path).unwrap();
                let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
                assert!(done.code != 0 && done.stdout.is_empty(), "{place} is a link to {to}: {done:#?}");
                outside.is_untouched(&format!("{place} is a link to {to}: {done:#?}"));
                if matches!(place, "proc" | "sys") {
                    assert!(done.stderr.contains("no directory") || place == "sys", "{place}: {done:#?}");
                }
                // Made by names joined to names, as it once was done, it lands outside.
                if place == "etc" && own_dev {
                    fs::create_dir(path.join("below")).unwrap();
                    assert_ne!(picture(&outside.directory), outside.before);
                    fs::remove_dir(outside.directory.join("below")).unwrap();
                }
                let _ = fs::remove_file(&path);
                if was_there {
                    let _ = fs::remove_dir_all(&path);
                    fs::rename(&aside, &path).unwrap();
                }
            }
        }
    }
}

/// The same links where the runtime follows them.
#[test]
fn without_resolution_below_the_root_links_lead_outside() {
    let Some(mut bundle) = Bundle::new() else { return };
    let outside = Outside::new(&bundle.home);
    bundle.config["process"]["args"] = json!(["true"]);
    bundle.push("/mounts", json!({ "destination": "/etc/below", "type": "tmpfs", "source": "tmpfs" }));
    let etc = bundle.path.join("rootfs/etc");
    fs::remove_dir_all(&etc).unwrap();
    for link in outside.links(1) {
        symlink(&link, &etc).unwrap();
        let mut run = bundle.command(&["run", "--bundle", &bundle.at(), "box"]);
        let done = finish(run.env("SUBLET_WITHOUT", "in-root"), b"", LIMIT);
        assert_ne!(picture(&outside.directory), outside.before, "{link}: {done:#?}");
        fs::remove_dir(outside.directory.join("below")).unwrap();
        fs::remove_file(&etc).unwrap();
    }
}

/// What a configuration or an image asks for stays below the root, however it is written.
#[test]
fn paths_of_a_configuration_stay_below_the_root() {
    let Some(mut bundle) = Bundle::new() else { return };
    let outside = Outside::new(&bundle.home);
    let out = outside.directory.display().to_string();
    let paths = [
        format!("/../../../../../../../../../../..{out}"),
        format!("/tmp/../../../../../../../../..{out}"),
        format!("/proc/self/root{out}"),
        format!("/proc/self/cwd{out}"),
        format!("/proc/1/cwd{out}"),
        format!("/proc/self/fd/4{out}"),
        format!("/dev/fd/5{out}"),
    ];
    let secret = format!("{out}/secret");
    bundle.config["process"]["args"] = json!(["cat", secret]);
    let template = bundle.config.clone();
    let mount = |at: String, typ: &str| json!({ "destination": at, "type": typ, "source": typ });
    for path in &paths {
        let mut ask = |what: &str, change: &dyn Fn(&mut Value)| {
            bundle.config = template.clone();
            change(&mut bundle.config);
            let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
            assert!(done.code != 0 && done.stdout.is_empty(), "{what} {path}: {done:#?}");
            outside.is_untouched(&format!("{what} {path}: {done:#?}"));
        };
        ask("a mount", &|config| config["mounts"].as_array_mut().unwrap().push(mount(format!("{path}/new"), "tmpfs")));
        ask("a file", &|config| {
            let bind = json!({ "destination": format!("{path}/file"), "type": "bind", "source": "/etc/passwd", "options": ["bind"] });
            config["mounts"].as_array_mut().unwrap().push(bind);
        });
        ask("a directory", &|config| config["process"]["cwd"] = json!(format!("{path}/new")));
        ask("a mask", &|config| config["linux"]["maskedPaths"] = json!([format!("{path}/secret")]));
        ask("protection", &|config| config["linux"]["readonlyPaths"] = json!([path]));
        ask("a device", &|config| {
            config["linux"]["devices"] = json!([{ "path": format!("{path}/fifo"), "type": "p" },
                                                { "path": format!("{path}/zero"), "type": "c", "major": 1, "minor": 5 }]);
        });
    }
    // The file is there for who is outside, by such a path too.
    assert!(bundle.path.join("rootfs").join(&paths[0][1..]).join("secret").exists());
}

/// Root in a chroot(2) that keeps a directory outside of a second one walks up from there.
const OUT_OF_CHROOT: &str = r#"
    my ($file) = @ARGV;
    mkdir "/tmp/hole";
    chroot "/tmp/hole" or print "chroot: $!\n";
    chdir ".." for 1..50;
    chroot ".";
    open(my $secret, "<", $file) or print("inside\n"), exit;
    print "outside: ", <$secret>, "\n";
"#;

#[test]
fn the_old_way_out_of_chroot_leads_nowhere() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !has_perl() {
        return;
    }
    let secret = bundle.home.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let secret = secret.display().to_string();
    let words = ["perl", "-e", OUT_OF_CHROOT, &secret];
    // In a mere chroot the attack succeeds.
    let root = bundle.path.join("rootfs").display().to_string();
    for name in ["usr", "lib", "lib64"] {
        fs::create_dir_all(bundle.path.join("rootfs").join(name)).unwrap();
    }
    // Perl reads a program of its arguments from there.
    fs::write(bundle.path.join("rootfs/dev/null"), "").unwrap();
    let binds = format!("for i in usr lib lib64; do test ! -e /$i || mount --rbind /$i {root}/$i || exit 1; done");
    let quoted = OUT_OF_CHROOT.replace('\'', "'\\''");
    let script = format!("chroot {root} /usr/bin/perl -e '{quoted}' {secret}");
    let Some(done) = in_namespaces(&bundle.home, Within::Root, &binds, &script) else { return };
    assert_eq!(done.stdout, "outside: of the host\n", "{done:#?}");

    for set in ["bounding", "permitted", "effective"] {
        bundle.push(&format!("/process/capabilities/{set}"), json!("CAP_SYS_CHROOT"));
    }
    bind_programs(&mut bundle);
    bundle.config["process"]["args"] = json!(words);
    assert_eq!(bundle.runs(0), "inside\n");
    let at = bundle.at();
    let done = bundle.call(&["run", "--no-pivot", "--bundle", &at, "box"]);
    // A moved root is asked for where pivot_root(2) cannot work; for this attack it is as good.
    assert_eq!((done.code, done.stdout.as_str()), (0, "inside\n"), "{done:#?}");
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    assert_eq!(container.run(&[], &words).stdout, "inside\n");
}

#[test]
fn nor_in_the_engines_containers() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    let secret = home.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let container = Container::engine(&home, &[], &["sleep", "600"]);
    let done = container.run(&[], &["perl", "-e", OUT_OF_CHROOT, &secret.display().to_string()]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "inside\n"), "{done:#?}");
}
