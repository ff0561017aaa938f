//! Power loss: a file that was renamed into its place and not synced may be there cut short. Whichever file of a container
//! it is, no other container is hidden by it, `ps` names it, and `rm -f` removes it whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Victim;
use crate::support::{DRIVERS, Home, busybox, each_file, eventually, skip};

/// The directories of the host that a container has in the store.
fn directories(home: &Home, id: &str) -> Vec<PathBuf> {
    let hosts = fs::read_dir(home.store().join("hosts")).unwrap().flatten();
    let below = hosts.flat_map(|host| ["containers", "snaps"].map(|part| host.path().join(part).join(id)));
    below.filter(|path| path.exists()).collect()
}

/// Our own files about a container: not its contents, which are only as durable as the container asked for.
fn records(home: &Home, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in directories(home, id) {
        each_file(&directory, &mut |path, metadata| {
            let inside = path.strip_prefix(&directory).unwrap();
            let contents = inside.starts_with("upper") && !inside.to_string_lossy().starts_with("upper/log.");
            if metadata.is_file() && metadata.len() > 0 && !contents && !inside.starts_with("work") {
                found.push(path.to_owned());
            }
        });
    }
    found.sort();
    found
}

fn cut(path: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

#[test]
fn a_container_with_a_file_cut_short_is_named_and_removed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let run = |name: &str, driver: &str| {
        let options = ["run", "--name", name, "--network", "none", "--storage-driver", driver];
        let done = home.run(&[&options[..], &[&image, "sh", "-c", "echo x >/x; chown 7:7 /x; exit 3"]].concat());
        // With one id the change of the owner fails, which is none of this test's business.
        assert_eq!(done.code, 3, "{done:#?}");
        home.inspect(name, "{{.Id}}")
    };
    run("other", "overlay");
    for driver in DRIVERS {
        let mut number = 0;
        loop {
            let id = run("victim", driver);
            let files = records(&home, &id);
            assert!(files.len() >= 3, "a container has records: {files:?}");
            let Some(path) = files.get(number / 2) else {
                home.ok(&["rm", "victim"]);
                break;
            };
            let length = fs::metadata(path).unwrap().len();
            cut(path, if number.is_multiple_of(2) { 0 } else { length / 2 });
            number += 1;
            let what = format!("{driver}: {} cut from {length}", path.display());

            let shown = home.run(&["ps", "-a", "--format", "{{.ID}} {{.Names}} {{.Status}}"]);
            assert!(shown.stdout.contains(" other Exited (3)"), "{what}: {shown:#?}");
            let told = format!("{}{}", shown.stdout, shown.stderr);
            assert!(told.contains(&id[..12]) && !told.contains("panicked"), "{what}: {told}");
            for command in [&["inspect", &id][..], &["logs", &id], &["diff", &id]] {
                let done = home.run(command);
                let said = done.code == 0 || done.stderr.contains("rror");
                assert!(said && !done.stderr.contains("panicked"), "{what}: {command:?}: {done:#?}");
            }
            let removed = home.run(&["rm", "-f", &id]);
            assert_eq!(removed.code, 0, "{what}: {removed:#?}");
            assert_eq!(directories(&home, &id), Vec::<PathBuf>::new(), "{what}");
            assert_eq!(home.ok(&["ps", "-aq"]).lines().count(), 1, "{what}");
        }
    }
}

/// The host has gone down while it ran, and with it every process; what was not synced is lost in every mixture.
#[test]
fn a_running_container_whose_records_are_lost_has_ended() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for lost in [&["state.json"][..], &["pid.json"], &["state.json", "pid.json"]] {
        let victim = Victim::start(&home, &["--network", "none"]);
        let id = home.inspect("victim", "{{.Id}}");
        victim.kill(&["monitor"]);
        if !victim.kill_payload() {
            return skip("the payload's ids are not the caller's to kill");
        }
        let mut files = records(&home, &id);
        files.retain(|path| lost.iter().any(|name| path.ends_with(name)));
        assert_eq!(files.len(), lost.len());
        for path in &files {
            cut(path, 0);
        }
        // The cgroups end with the host too.
        if let Some(cgroup) = &victim.cgroup {
            eventually("the cgroup is empty", || fs::remove_dir(cgroup).is_ok() || !cgroup.exists());
        }
        // The payload may take a moment to die.
        eventually("ps shows the end", || {
            home.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).starts_with("victim Exited (255)")
        });
        victim.assert_removed_without_a_trace();
    }
}
