//! Somebody changes what is looked at, while it is looked at: a container that shares a volume with the one that is being
//! made (CVE-2021-30465, CVE-2024-45310, CVE-2025-31133, CVE-2025-52565).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{Home, Within, busybox, finish, in_namespaces};
use crate::terminal::on_a_terminal;

/// How often each container is made under attack.
const STARTS: usize = 200;
/// How long the attack may take against a step that it must win against.
const LIMIT: Duration = Duration::from_secs(20);

/// A thread that exchanges two names for as long as this lives.
struct Racer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    fn start(one: &Path, other: &Path) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let (one, other): (PathBuf, PathBuf) = (one.to_owned(), other.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Busy while something of a naive try is mounted there.
                if renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        Racer { stop, rounds, thread: Some(thread) }
    }

    /// It raced: as many exchanges as there were starts, and more.
    #[track_caller]
    fn end(mut self, at_least: usize) {
        let rounds = self.finish();
        assert!(rounds > at_least as u64, "only {rounds} exchanges");
    }

    fn finish(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
        self.rounds.load(Ordering::Relaxed)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A volume with a directory `d`, and beside it a link that leads outside.
struct Volume {
    directory: PathBuf,
    outside: PathBuf,
}

impl Volume {
    fn new(home: &Home) -> Self {
        let (directory, outside) = (home.path("volume"), home.path("outside"));
        let volume = Volume { directory, outside };
        volume.make();
        volume
    }

    fn make(&self) {
        fs::create_dir_all(self.directory.join("d")).unwrap();
        fs::create_dir(&self.outside).unwrap();
        symlink(&self.outside, self.directory.join("link")).unwrap();
    }

    fn race(&self) -> Racer {
        Racer::start(&self.directory.join("d"), &self.directory.join("link"))
    }

    #[track_caller]
    fn nothing_is_outside(&self) {
        let made: Vec<_> = fs::read_dir(&self.outside).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(made.is_empty(), "made on the host: {made:?}");
    }

    /// Looks whether the directory is below the volume, and then makes one below it by its name.
    fn wins_against_a_check(&self) {
        let racer = self.race();
        let began = Instant::now();
        let path = self.directory.join("d");
        let is_won = || fs::read_dir(&self.outside).unwrap().next().is_some();
        for number in 0.. {
            if fs::canonicalize(&path).is_ok_and(|real| real.starts_with(&self.directory)) {
                let _ = fs::create_dir(path.join(number.to_string()));
            }
            if is_won() {
                break;
            }
            assert!(began.elapsed() < LIMIT, "the attack is too slow to prove anything");
        }
        drop(racer);
        // Back to the state that the others begin with.
        for directory in [&self.directory, &self.outside] {
            fs::remove_dir_all(directory).unwrap();
        }
        self.make();
    }
}

/// The mount points of each type, from what a payload has printed of its mountinfo.
fn mounted(mountinfo: &str, typ: &str) -> Vec<String> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next() == Some(typ)).then(|| left.split(' ').nth(4).unwrap_or_default().to_owned())
    };
    mountinfo.lines().filter_map(line).collect()
}

#[test]
fn mount_points_that_move_stay_below_a_bundles_root() {
    let Some(mut bundle) = Bundle::new() else { return };
    let volume = Volume::new(&bundle.home);
    volume.wins_against_a_check();
    // What the link means below the root is there too, so that mounts succeed wherever it leads.
    let inside = bundle.path.join("rootfs").join(volume.outside.strip_prefix("/").unwrap());
    fs::create_dir_all(&inside).unwrap();
    bundle.push(
        "/mounts",
        json!({ "destination": "/v", "type": "bind", "source": volume.directory, "options": ["bind"] }),
    );
    for (name, typ) in [("d/memory", "tmpfs"), ("d", "proc")] {
        bundle.push("/mounts", json!({ "destination": format!("/v/{name}"), "type": typ, "source": typ }));
    }
    let file = json!({ "destination": "/v/d/file", "type": "bind", "source": "/etc/passwd", "options": ["bind"] });
    let template = bundle.config.clone();
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    bundle.push("/mounts", file);
    let made = bundle.config.clone();
    let racer = volume.race();
    let mut succeeded = 0;
    for start in 0..STARTS {
        bundle.config = if start % 2 == 0 { template.clone() } else { made.clone() };
        bundle.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
        let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
        succeeded += usize::from(done.code == 0);
        volume.nothing_is_outside();
        if start % 2 == 0 && done.code == 0 {
            // Under a name that is a directory, never where a link has led (CVE-2023-27561).
            let outside = volume.outside.display().to_string();
            assert!(!mounted(&done.stdout, "proc").contains(&outside), "{done:#?}");
        }
        assert!(!done.stderr.contains("panicked"), "{done:#?}");
    }
    racer.end(STARTS);
    assert!(succeeded > 0, "no start succeeded, so nothing was raced");
}

/// The same race against the runtime where it follows what it meets.
#[test]
fn without_resolution_below_the_root_the_race_is_won() {
    let Some(mut bundle) = Bundle::new() else { return };
    let volume = Volume::new(&bundle.home);
    let bind = json!({ "destination": "/v", "type": "bind", "source": volume.directory, "options": ["bind"] });
    bundle.push("/mounts", bind);
    bundle.push("/mounts", json!({ "destination": "/v/d/memory", "type": "tmpfs", "source": "tmpfs" }));
    bundle.config["process"]["args"] = json!(["true"]);
    let racer = volume.race();
    let began = Instant::now();
    while fs::read_dir(&volume.outside).unwrap().next().is_none() {
        assert!(began.elapsed() < LIMIT, "the attack is too slow to prove anything");
        let mut run = bundle.command(&["run", "--bundle", &bundle.at(), "box"]);
        finish(run.env("SUBLET_WITHOUT", "in-root"), b"", crate::support::LIMIT);
    }
    drop(racer);
}

#[test]
fn mount_points_that_move_stay_below_the_engines_root() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let volume = Volume::new(&home);
    volume.wins_against_a_check();
    let shared = format!("{}:/v", volume.directory.display());
    let own = home.path("own");
    fs::create_dir(&own).unwrap();
    let below = format!("{}:/v/d/below", own.display());
    let image = busybox();
    let racer = volume.race();
    let mut succeeded = 0;
    for start in 0..STARTS / 2 {
        let more: [&str; 2] = if start % 2 == 0 { ["-v", &below] } else { ["--tmpfs", "/v/d/memory"] };
        let options = ["run", "--rm", "--network", "none", "-v", &shared, "-w", "/v/d/made"];
        let done = home.run(&[&options[..], &more, &[&image, "true"]].concat());
        succeeded += usize::from(done.code == 0);
        volume.nothing_is_outside();
        assert!(!done.stderr.contains("panicked"), "{done:#?}");
    }
    racer.end(STARTS);
    assert!(succeeded > 0, "no start succeeded, so nothing was raced");
}

/// A directory that a bundle has as its `/dev`, and which somebody else can change: there `null` and `console` are now
/// files and now links to something that must stay hidden, and `pts` is now a directory and now another one.
struct Dev(PathBuf);

const SWAPPED: [&str; 3] = ["null", "console", "pts"];

impl Dev {
    fn new(home: &Home) -> Self {
        let directory = home.path("dev");
        fs::create_dir(&directory).unwrap();
        for name in ["null", "console"] {
            fs::write(directory.join(name), "").unwrap();
            symlink("/proc/sys/kernel/core_pattern", directory.join(format!("{name}-evil"))).unwrap();
        }
        for name in ["pts", "shm", "mqueue", "fake"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        fs::write(directory.join("fake/ptmx"), "").unwrap();
        symlink("fake", directory.join("pts-evil")).unwrap();
        Dev(directory)
    }

    fn race(&self) -> Vec<Racer> {
        let racer = |name: &&str| Racer::start(&self.0.join(name), &self.0.join(format!("{name}-evil")));
        SWAPPED.iter().map(racer).collect()
    }
}

/// What is mounted, wherever: the root of each mount in its file system, and the file system.
fn sources(mountinfo: &str) -> Vec<String> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        Some(format!("{} {}", left.split(' ').nth(3)?, right.split(' ').next()?))
    };
    let mut list: Vec<String> = mountinfo.lines().filter_map(line).collect();
    list.sort();
    list
}

fn bind_dev(bundle: &mut Bundle, dev: &Dev, output: &Path) {
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev" {
            *mount = json!({ "destination": "/dev", "type": "bind", "source": dev.0, "options": ["bind"] });
        }
    }
    bundle.push("/mounts", json!({ "destination": "/v", "type": "bind", "source": output, "options": ["bind"] }));
    bundle.push("/linux/maskedPaths", json!("/proc/uptime"));
    bundle.script("{ cat /proc/self/mountinfo; stat -c '%t:%T' /proc/uptime; } >/v/new; mv /v/new /v/out");
}

/// Looks whether it is no link, and then binds it by its name, as the masks of others once were made of `/dev/null`.
#[track_caller]
fn wins_against_a_check(home: &Home, dev: &Dev) -> bool {
    let _racer = Racer::start(&dev.0.join("null"), &dev.0.join("null-evil"));
    let target = home.path("target");
    fs::write(&target, "").unwrap();
    let (null, target) = (dev.0.join("null"), target.display().to_string());
    let script = format!(
        "for i in $(seq 10000); do test -L {null} && continue; mount --bind {null} {target} || continue; \
         grep -q core_pattern /proc/self/mountinfo && echo won && exit; umount {target}; done 2>/dev/null",
        null = null.display()
    );
    let Some(done) = in_namespaces(home, Within::Root, "true", &script) else { return false };
    assert_eq!(done.stdout, "won\n", "the attack is too slow to prove anything: {done:#?}");
    true
}

#[test]
fn masks_and_consoles_are_never_of_what_was_put_in_their_place() {
    let Some(mut bundle) = Bundle::new() else { return };
    let dev = Dev::new(&bundle.home);
    if !wins_against_a_check(&bundle.home, &dev) {
        return;
    }
    let output = bundle.home.path("output");
    fs::create_dir(&output).unwrap();
    bind_dev(&mut bundle, &dev, &output);
    let out = output.join("out");
    let take = || {
        let text = fs::read_to_string(&out).unwrap_or_default();
        let _ = fs::remove_file(&out);
        text
    };
    for terminal in [false, true] {
        bundle.config["process"]["terminal"] = json!(terminal);
        let at = bundle.at();
        let run = |bundle: &Bundle| {
            let command = bundle.command(&["run", "--bundle", &at, "box"]);
            if terminal {
                on_a_terminal(&bundle.home, &command)
            } else {
                let mut command = command;
                format!("{:?}", finish(&mut command, b"", crate::support::LIMIT))
            }
        };
        let said = run(&bundle);
        let quiet = take();
        assert!(quiet.ends_with("1:3\n"), "{said}\n{quiet}");
        let racers = dev.race();
        let starts = if terminal { STARTS / 4 } else { STARTS };
        let mut succeeded = 0;
        for _ in 0..starts {
            let said = run(&bundle);
            assert!(!said.contains("panicked"), "{said}");
            let raced = take();
            if raced.is_empty() {
                continue;
            }
            succeeded += 1;
            assert!(raced.ends_with("1:3\n"), "{raced}");
            assert_eq!(sources(&raced), sources(&quiet), "{raced}");
        }
        for racer in racers {
            racer.end(starts);
        }
        assert!(succeeded > 0, "no start succeeded, so nothing was raced");
        // However it ended.
        for name in SWAPPED {
            let (one, evil) = (dev.0.join(name), dev.0.join(format!("{name}-evil")));
            if one.is_symlink() {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &evil, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        }
    }
}
