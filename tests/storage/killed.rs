//! Starts that are killed at each of their steps, where they write the image out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use crate::support::{Home, busybox, each_file, eventually};

/// Whether nobody else's file is in the store, and none of a container.
fn is_tidy(home: &Home) -> bool {
    let uid = nix::unistd::getuid().as_raw();
    let mut left = home.containers().len();
    each_file(&home.store(), &mut |path, metadata| {
        let of_container = path.parent().is_some_and(|parent| parent.ends_with("snaps"));
        left += usize::from(metadata.uid() != uid || of_container);
    });
    left == 0
}

#[test]
fn an_image_that_is_half_written_is_written_anew() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let look = "stat -c '%u %g %a' /var/owned /var/owned/file /var/owned/again; cat /etc/replaced; ls /var";
    let run = |driver: &str| {
        let options = ["run", "--rm", "--network", "none", "--storage-driver", driver, image.as_str()];
        home.ok(&[&options[..], &["sh", "-c", look]].concat())
    };
    let wanted = run("overlay");
    for (driver, fewest) in [("tree", 8), ("copy", 3)] {
        let mut steps = 0;
        loop {
            let options = ["run", "--rm", "--network", "none", "--storage-driver", driver, image.as_str(), "true"];
            let mut command = home.command(&options);
            command.env("SUBLET_KILL_AT", format!("command:{}", steps + 1)).stdout(Stdio::null());
            let done = command.stderr(Stdio::piped()).output().unwrap();
            // By the next command that makes, finds or removes containers.
            home.ok(&["container", "prune", "-f"]);
            eventually("all is given back and removed", || is_tidy(&home));
            assert_eq!(run(driver), wanted, "{driver}, killed at step {}", steps + 1);
            assert!(is_tidy(&home), "{driver}, killed at step {}", steps + 1);
            if done.status.code() == Some(0) {
                break;
            }
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(said.contains("killed at command:"), "{driver}, step {}: {said}", steps + 1);
            steps += 1;
            // So that the next one has to write it too.
            let hosts = home.store().join("hosts");
            let machine = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().path();
            drop(fs::remove_dir_all(machine.join("trees")));
        }
        assert!(steps >= fewest, "{driver}: only {steps} steps were seen");
    }
}

/// A start gives files to the container before there is a monitor.
#[test]
fn any_command_repairs_what_a_killed_start_has_given() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    for driver in ["overlay", "tree", "copy"] {
        let options =
            ["run", "--name", driver, "--network", "none", "--storage-driver", driver, "-v", "data:/var/owned"];
        let script =
            "[ -e /own ] || { mkdir /own; echo x >/own/f; chown -R 5:6 /own 2>/dev/null; chmod 0 /own; }; ls /own";
        home.ok(&[&options[..], &[image.as_str(), "sh", "-c", script]].concat());
        let mut steps = 0;
        loop {
            eventually("all is given back", || home.foreign_files() == 0);
            let mut command = home.command(&["start", "-a", driver]);
            command.env("SUBLET_KILL_AT", format!("command:{}", steps + 1)).stdout(Stdio::null());
            let done = command.stderr(Stdio::piped()).output().unwrap();
            // By a command that only looks.
            home.ok(if steps % 2 == 0 { &["ps", "-a"] } else { &["system", "df"] });
            eventually("all is given back", || home.foreign_files() == 0);
            assert_eq!(home.ok(&["start", "-a", driver]), "f\n", "{driver}, killed at step {}", steps + 1);
            if done.status.code() == Some(0) {
                break;
            }
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(said.contains("killed at command:"), "{driver}, step {}: {said}", steps + 1);
            steps += 1;
        }
        assert!(steps >= 1, "{driver}: no step was seen");
        home.ok(&["rm", driver]);
    }
}

#[test]
fn many_at_once_agree_on_one_tree() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let look = "stat -c '%u %g %a' /var/owned/file; echo own >>/etc/replaced; tail -n 1 /etc/replaced";
    let wanted = home.sh(&["--network", "none"], look);
    for round in 0..3 {
        let options = ["run", "--rm", "--network", "none", "--storage-driver", "tree", image.as_str()];
        let started: Vec<_> = (0..6)
            .map(|_| {
                let mut command = home.command(&[&options[..], &["sh", "-c", look]].concat());
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for child in started {
            let done = child.wait_with_output().unwrap();
            let (out, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            assert_eq!(out, wanted, "round {round}: {said}");
        }
        assert!(is_tidy(&home), "round {round}");
    }
}

/// The trees of images that are there, by the directories of their files.
fn trees(home: &Home) -> Vec<std::path::PathBuf> {
    let hosts = fs::read_dir(home.store().join("hosts")).unwrap().flatten();
    let trees = hosts.flat_map(|host| fs::read_dir(host.path().join("trees")).into_iter().flatten().flatten());
    trees.map(|tree| tree.path().join("tree")).filter(|tree| tree.exists()).collect()
}

#[test]
fn a_sweep_leaves_the_tree_of_a_container_that_runs() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "one", "--storage-driver", "tree", &busybox(), "sleep", "600"]);
    assert_eq!(trees(&home).len(), 1);
    // Nobody can read any more which image it has.
    let record = home.store().join("hosts");
    let record = fs::read_dir(record).unwrap().flatten().map(|host| host.path().join("containers"));
    let record = record.flat_map(|containers| fs::read_dir(containers).into_iter().flatten().flatten()).next().unwrap();
    let (record, kept) = (record.path().join("config.json"), home.path("kept"));
    fs::rename(&record, &kept).unwrap();
    fs::write(&record, "{").unwrap();
    home.run(&["rmi", "-f", &busybox()]);
    home.run(&["system", "prune", "-af"]);
    assert_eq!(trees(&home).len(), 1, "its files are still there");
    fs::rename(&kept, &record).unwrap();
    home.ok(&["exec", "one", "busybox", "true"]);
    home.ok(&["rm", "-f", "one"]);
    home.run(&["rmi", "-f", &busybox()]);
    home.ok(&["system", "prune", "-af"]);
    assert_eq!(trees(&home).len(), 0);
}
