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
