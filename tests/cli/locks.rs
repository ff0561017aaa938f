//! Locks are for moments: none is held for a container's life or while a registry is silent, and looking takes none.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fixture::image::{Image, LayerBuilder, Meta};
use nix::fcntl::{Flock, FlockArg};

use crate::support::http::{Server, registry_of};
use crate::support::{DRIVERS, Home, busybox, each_file, end, eventually, skip, start};

/// The locks that anybody holds on regular files and directories of ours, by paths from the test's directory. The processes
/// of roles show their descriptors to nobody, the kernel's table shows every lock.
fn held(home: &Home) -> Vec<String> {
    let mut paths: HashMap<String, PathBuf> = HashMap::new();
    for part in ["data", "run"] {
        each_file(&home.directory.join(part), &mut |path, metadata| {
            // The table has the device as two hexadecimal numbers (`lock_get_status` of the kernel).
            let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
            let below = path.strip_prefix(&home.directory).unwrap().to_owned();
            paths.insert(format!("{major:02x}:{minor:02x}:{}", metadata.ino()), below);
        });
    }
    let table = fs::read_to_string("/proc/locks").unwrap();
    let held = table.lines().filter(|line| !line.contains("->"));
    let mut held: Vec<String> = held
        .filter_map(|line| line.split_whitespace().find_map(|word| paths.get(word)))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    held.sort();
    held
}

/// Whether a lock of our own shows in the table; some file systems have other numbers there.
fn table_is_readable(home: &Home) -> bool {
    let path = home.directory.join("data/probe");
    let file = File::create(&path).unwrap();
    let seen = sys_lock(file).is_some_and(|_locked| held(home) == ["data/probe"]);
    fs::remove_file(path).unwrap();
    if !seen {
        skip("the kernel's table of locks has other numbers for this file system");
    }
    seen
}

fn sys_lock(file: File) -> Option<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

#[test]
fn a_running_container_holds_no_lock() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !table_is_readable(&home) {
        return;
    }
    for driver in DRIVERS {
        home.ok(&["run", "-d", "--name", driver, "--storage-driver", driver, &busybox(), "sleep", "600"]);
        home.ok(&["exec", driver, "touch", "/file"]);
    }
    // The server of a container's own overlay marks the upper as its own; a second server of it, not a command, waits.
    let id = home.inspect("fuse", "{{.Id}}");
    let mut expected = Vec::new();
    eventually("only the mark of the overlay's server is held", || {
        expected = held(&home);
        matches!(&expected[..], [mark] if mark.ends_with(&format!("/snaps/{id}/lock")) || mark.ends_with(&format!("/snaps/{id}/upper/lock")))
    });
    for driver in DRIVERS {
        let commands: [&[&str]; 4] =
            [&["diff", driver], &["exec", driver, "true"], &["stop", "-t", "0", driver], &["rm", driver]];
        for command in commands {
            home.ok(command);
        }
    }
}

#[test]
fn no_command_waits_for_a_silent_registry() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !table_is_readable(&home) {
        return;
    }
    let layer = LayerBuilder::default().file("file", Meta::root(0o644), &[7; 4096]).unwrap().finish().unwrap();
    let image = Image::new(vec![layer], &serde_json::json!({}));
    let mut answers = registry_of("slow", &image);
    let blob = answers.keys().find(|path| path.contains("/blobs/")).unwrap().clone();
    let manifest = answers.keys().find(|path| path.ends_with("/manifests/latest")).unwrap().clone();
    for (path, repository) in [(blob, "blob"), (manifest, "manifest")] {
        let before = answers.clone();
        answers.get_mut(&path).unwrap().stall = Duration::from_mins(5);
        let server = Server::start(answers);
        answers = before;
        let mut pull = start(&mut home.command(&["pull", &format!("{}/slow", server.address)]));
        eventually("the registry is silent", || server.asked.lock().unwrap().contains(&path));
        // A lease is there for the sweep to see, a half blob for whoever wants the same one.
        let odd = |path: &String| !path.contains("/store/leases/") && !path.contains("/store/ingest/");
        eventually("nothing but leases and half blobs is locked", || !held(&home).iter().any(odd));
        let began = Instant::now();
        assert!(home.ok(&["ps", "-a"]).lines().count() == 1 && home.ok(&["images", "-q"]).lines().count() == 1);
        assert_eq!(home.sh(&["--network", "none"], "echo alive"), "alive\n");
        home.ok(&["pull", &busybox()]);
        home.ok(&["rmi", &busybox()]);
        home.ok(&["pull", &busybox()]);
        assert!(began.elapsed() < Duration::from_secs(30), "{repository}: {:?}", began.elapsed());
        assert!(pull.try_wait().unwrap().is_none(), "{repository}: the pull still waits");
        pull.kill().unwrap();
        end(pull, Duration::from_secs(5));
    }
}

/// Takes every lock of ours that can be taken, of the two kinds that we use.
fn lock_all(home: &Home) -> (Vec<Flock<File>>, Vec<File>) {
    let (mut of_files, mut of_descriptions) = (Vec::new(), Vec::new());
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let mut lock = |path: &Path, metadata: &fs::Metadata| {
        if !metadata.is_file() && !metadata.is_dir() {
            return;
        }
        if let Some(locked) = File::open(path).ok().and_then(sys_lock) {
            of_files.push(locked);
        }
        if metadata.is_file()
            && let Ok(file) = File::options().read(true).write(true).open(path)
        {
            let taken = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole));
            of_descriptions.extend(taken.is_ok().then_some(file));
        }
    };
    each_file(&home.store(), &mut lock);
    each_file(&home.directory.join("run"), &mut lock);
    (of_files, of_descriptions)
}

#[test]
fn looking_waits_for_no_lock() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "runs", "--network", "none", &busybox(), "sleep", "600"]);
    assert_eq!(
        home.run(&["run", "--name", "ended", "--network", "none", &busybox(), "sh", "-c", "echo word; exit 3"]).code,
        3
    );
    let locked = lock_all(&home);
    assert!(locked.0.len() > 10 && locked.1.len() > 5, "{} {}", locked.0.len(), locked.1.len());
    let shown = home.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
    assert!(shown.starts_with("ended Exited (3)") && shown.contains("\nruns Up "), "{shown}");
    assert_eq!(home.inspect("ended", "{{.State.ExitCode}}"), "3");
    assert_eq!(home.ok(&["logs", "ended"]), "word\n");
    assert_eq!(home.ok(&["images", "-q"]).lines().count(), 1);
    home.ok(&["info"]);
    // The locks are real: who changes something waits for them.
    let mut removal = start(&mut home.command(&["rm", "ended"]));
    std::thread::sleep(Duration::from_millis(500));
    assert!(removal.try_wait().unwrap().is_none(), "a removal needs a lock");
    drop(locked);
    assert_eq!(end(removal, Duration::from_secs(20)).code, 0);
}
