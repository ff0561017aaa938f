//! Who can run a script in a new writable layer over an image's tree: sublet and podman with each of their drivers, and mounts
//! that anybody can make without an engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use super::Ground;
use super::start::{image, sublet};
use crate::shell::{Fallible, command, output, which};

/// Mounts a writable layer over the image's tree, runs the work in it and removes the layer: `$1` the directory, `$2` how
/// to mount `merged`, `$3` the work.
const WITHOUT_ENGINE: &str = r#"set -e
cd "$1"; rm -rf upper work merged; mkdir upper work merged
eval "$2"
mkdir -p merged/dev merged/proc; mount --rbind /dev merged/dev; mount --rbind /proc merged/proc
chroot merged /bin/sh -c "$3"
umount -l merged/proc merged/dev; umount merged
rm -rf upper work merged"#;

/// A way to mount `merged` of [`WITHOUT_ENGINE`].
struct Mount {
    name: &'static str,
    program: &'static str,
    script: &'static str,
    reach: Reach,
}

const MOUNTS: [Mount; 3] = [
    Mount {
        name: "kernel overlayfs (no engine)",
        program: "mount",
        script: "mount -t overlay overlay -o userxattr,xino=on,lowerdir=../tree,upperdir=upper,workdir=work merged",
        reach: Reach::Layer,
    },
    Mount {
        name: "fuse-overlayfs (no engine)",
        program: "fuse-overlayfs",
        script: "fuse-overlayfs -o lowerdir=../tree,upperdir=upper,workdir=work merged",
        reach: Reach::Layer,
    },
    Mount { name: "plain directory", program: "mount", script: "mount --bind ../tree merged", reach: Reach::Tree },
];

/// What a script of a rival changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A layer, or a copy, that is gone afterwards.
    Layer,
    /// The tree itself: no script may change what it has.
    Tree,
}

/// Runs a script in a new container of an image, or in what stands for one.
pub struct Rival {
    /// What the tables call it.
    pub name: String,
    /// What it changes.
    pub reach: Reach,
    /// The engine, if it is one.
    pub engine: Option<Engine>,
    run: Box<dyn Fn(&str) -> Command>,
}

/// An engine that has an image.
pub struct Engine {
    /// Options of its `run`.
    pub options: Vec<String>,
    /// The image.
    pub image: String,
    /// Its command line without a command.
    by: Rc<dyn Fn() -> Command>,
    /// How it pulls the image.
    pull: &'static [&'static str],
}

impl Engine {
    /// A command of it.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = (self.by)();
        command.args(words);
        command
    }

    /// The commands after which it has the image as if it had never run it.
    pub fn anew(&self) -> [Command; 2] {
        [self.command(&["rmi", "-f", &self.image]), self.command(&[self.pull, &[self.image.as_str()]].concat())]
    }
}

impl Rival {
    fn of(name: String, engine: Engine) -> Rival {
        let (by, options, image) = (Rc::clone(&engine.by), engine.options.clone(), engine.image.clone());
        let run = move |script: &str| in_container(by(), &options, &image, script);
        Rival { name, reach: Reach::Layer, engine: Some(engine), run: Box::new(run) }
    }

    /// The command that runs a script.
    pub fn run(&self, script: &str) -> Command {
        (self.run)(script)
    }
}

/// How many ids the caller has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// As the machine has it.
    Many,
    /// The same, and the container has the caller's own id as it is.
    Kept,
    /// The own one alone.
    One,
}

/// Hides the subordinate ids from a command.
const WITH_ONE_ID: &str = r#"mount --bind /dev/null /etc/subuid && mount --bind /dev/null /etc/subgid &&
exec setpriv --inh-caps=-all --ambient-caps=-all "$@""#;

impl Ids {
    fn word(self) -> &'static str {
        match self {
            Ids::Many => "",
            Ids::Kept => ", keep-id",
            Ids::One => ", one id",
        }
    }

    /// Options of `run`; the work is root's everywhere.
    fn options(self) -> &'static [&'static str] {
        if self == Ids::Kept { &["--userns", "keep-id", "-u", "0"] } else { &[] }
    }

    /// Where an engine keeps what it has, apart for each number of ids.
    fn place(self, ground: &Ground, name: &str) -> PathBuf {
        let suffix = if self == Ids::One { "-one" } else { "" };
        ground.directory.join(format!("{name}{suffix}"))
    }

    /// A program to which its arguments are to be added.
    fn command(self, ground: &Ground) -> impl Fn(&Path) -> Command + use<> {
        let run = self.place(ground, "run");
        move |program| match self {
            Ids::Many | Ids::Kept => Command::new(program),
            Ids::One => {
                let user = ["--user", "--map-current-user", "--keep-caps", "--mount", "sh", "-c", WITH_ONE_ID, "sh"];
                let mut unshared = command("unshare", user);
                unshared.arg(program).env("XDG_RUNTIME_DIR", &run);
                unshared
            }
        }
    }
}

/// All that are installed, for an image of the ground's registry, which each of them has then. `copies` says whether those take
/// part that copy the whole image for each container.
pub fn rivals(ground: &Ground, name: &str, copies: bool) -> Fallible<Vec<Rival>> {
    let mut rivals = engines(ground, name, copies, Ids::Many)?;
    rivals.extend(mounts(ground, name, &image(ground, name))?);
    Ok(rivals)
}

/// Those of them that are engines.
pub fn engines(ground: &Ground, name: &str, copies: bool, ids: Ids) -> Fallible<Vec<Rival>> {
    fs::create_dir_all(ids.place(ground, "run"))?;
    let image = image(ground, name);
    let mut engines = ours(ground, &image, ids)?;
    engines.extend(podmans(ground, &image, copies, ids));
    Ok(engines)
}

/// The words that every engine's command line ends with.
fn in_container(mut engine: Command, options: &[String], image: &str, script: &str) -> Command {
    engine.args(["run", "--rm", "--network", "none"]).args(options).args([image, "sh", "-c", script]);
    engine
}

fn ours(ground: &Ground, image: &str, ids: Ids) -> Fallible<Vec<Rival>> {
    let rival = |driver: &'static str| {
        let (program, root) = (ground.sublet.clone(), ids.place(ground, "sublet"));
        let by = ids.command(ground);
        let by = move || {
            let mut engine = by(&program);
            engine.arg("--root").arg(&root);
            engine
        };
        let options = [&["--storage-driver", driver][..], ids.options()].concat();
        let options = options.into_iter().map(str::to_owned).collect();
        let engine = Engine { options, image: image.to_owned(), by: Rc::new(by), pull: &["pull", "-q"] };
        output(&mut engine.command(&["pull", "-q", image]))?;
        Ok(Rival::of(format!("sublet ({driver}{})", ids.word()), engine))
    };
    ["overlay", "fuse"].into_iter().map(rival).collect()
}

/// Podman with each driver that it can have here, each with a store of its own.
fn podmans(ground: &Ground, image: &str, copies: bool, ids: Ids) -> Vec<Rival> {
    let Some(program) = which("podman") else { return Vec::new() };
    let mut drivers = vec![("overlay", vec!["--storage-driver=overlay".to_owned()])];
    if let Some(program) = which("fuse-overlayfs") {
        let option = format!("overlay.mount_program={}", program.display());
        drivers
            .push(("fuse-overlayfs", vec!["--storage-driver=overlay".to_owned(), "--storage-opt".to_owned(), option]));
    }
    if ids == Ids::One {
        // Else it takes no image that has more than one owner.
        let squashed = ["--storage-opt", "overlay.ignore_chown_errors=true"].map(str::to_owned);
        for (_, options) in &mut drivers {
            options.extend(squashed.clone());
        }
    }
    if copies {
        drivers.push(("vfs", vec!["--storage-driver=vfs".to_owned()]));
    }
    let mut rivals = Vec::new();
    for (driver, options) in drivers {
        let store = ids.place(ground, &format!("podman-{driver}"));
        let (by, program) = (ids.command(ground), program.clone());
        let by = move || {
            let mut engine = by(&program);
            engine.args(["--cgroup-manager=cgroupfs", "--root"]).arg(&store);
            engine.arg("--runroot").arg(store.with_extension("run")).args(&options);
            engine
        };
        let options = ids.options().iter().map(|&word| word.to_owned()).collect();
        let pull = &["pull", "-q", "--tls-verify=false"];
        let engine = Engine { options, image: image.to_owned(), by: Rc::new(by), pull };
        let name = format!("podman ({driver}{})", ids.word());
        match output(&mut engine.command(&[&pull[..], &[image]].concat())) {
            Ok(_) => rivals.push(Rival::of(name, engine)),
            Err(error) => println!("left out: {name}: {error}"),
        }
    }
    rivals
}

/// The same tree without an engine.
fn mounts(ground: &Ground, name: &str, image: &str) -> Fallible<Vec<Rival>> {
    let base = ground.directory.join("plain").join(name);
    unpack(ground, image, &base.join("tree"))?;
    let mut rivals = Vec::new();
    for mount in &MOUNTS {
        let directory: PathBuf = base.join(mount.name.split(' ').next().unwrap_or_default());
        fs::create_dir_all(&directory)?;
        let run = move |script: &str| {
            let mut run = command("unshare", ["--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-c"]);
            run.args([WITHOUT_ENGINE, "sh"]).arg(&directory).args([mount.script, script]);
            run
        };
        if which(mount.program).is_none() {
            println!("left out: {}: not installed", mount.name);
        } else if let Err(error) = output(&mut run("echo done")) {
            println!("left out: {}: {error}", mount.name);
        } else {
            rivals.push(Rival { name: mount.name.to_owned(), reach: mount.reach, engine: None, run: Box::new(run) });
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
