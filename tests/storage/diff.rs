//! `diff`, by Docker's rules, for every driver and for `host:`.

use std::process::Command;

use crate::support::oracle::{end_podman, podman_cannot_run, podman_of};
use crate::support::{DRIVERS, Home, LIMIT, Need, busybox, finish, skip};

/// Everything that a container can do to a path of its image.
const CHANGES: &str = "mkdir -p /data/deep; echo x >/data/deep/f; ln /data/deep/f /data/l; ln -s f /data/s; rm /etc/group; \
    chmod 600 /etc/passwd; echo more >>/etc/replaced; rm -r /var/www; rm -r /var/opaque; mkdir /var/opaque; \
    echo n >/var/opaque/n; mv /var/owned /var/moved; touch /tmp/t; rm /tmp/t; rm -r /root; echo file >/root";

/// Docker's documentation of `docker diff`: A added, C changed, D deleted; and the rules of the code that makes the list:
/// a directory is changed when something in it is, of a deleted one only itself is listed.
const EXPECTED: &str = "A /data\nA /data/deep\nA /data/deep/f\nA /data/l\nA /data/s\nC /etc\nD /etc/group\nC /etc/passwd\n\
    C /etc/replaced\nC /root\nC /var\nA /var/moved\nA /var/moved/again\nA /var/moved/file\nC /var/opaque\nD /var/opaque/above\n\
    A /var/opaque/n\nD /var/owned\nD /var/www\n";

fn changed(home: &Home, driver: &str, script: &str) -> String {
    let image = busybox();
    let options = ["run", "--name", driver, "--network", "none", "--storage-driver", driver];
    home.ok(&[&options[..], &[&image, "sh", "-c", script]].concat());
    let told = home.ok(&["diff", driver]);
    home.ok(&["rm", driver]);
    told
}

#[test]
fn a_container_that_touches_nothing_has_changed_nothing() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        assert_eq!(changed(&home, driver, "true"), "", "{driver}");
        // Opened for writing, linked, set to what it was: copied up, and still the same.
        let same = "exec 3>>/etc/replaced; chmod 600 /etc/replaced; chown 0:0 /etc; touch /tmp/x; rm /tmp/x";
        assert_eq!(changed(&home, driver, same), "", "{driver}");
    }
    home.ok(&["run", "--name", "host", "--network", "none", "host:", "true"]);
    assert_eq!(home.ok(&["diff", "host"]), "");
}

#[test]
fn every_kind_of_change_is_told_as_docker_tells_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        assert_eq!(changed(&home, driver, CHANGES), EXPECTED, "{driver}");
    }
}

#[test]
fn a_running_container_is_compared_too() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    for driver in DRIVERS {
        let options = ["run", "-d", "--name", driver, "--network", "none", "--storage-driver", driver];
        let script =
            "chown 33:44 /etc/passwd; touch /var/owned/new; chown 1234:5678 /var/owned/new; echo done; sleep 1000";
        home.ok(&[&options[..], &[&busybox(), "sh", "-c", script]].concat());
        crate::support::eventually("the payload has written", || home.ok(&["logs", driver]) == "done\n");
        let expected = "C /etc\nC /etc/passwd\nC /var\nC /var/owned\nA /var/owned/new\n";
        assert_eq!(home.ok(&["diff", driver]), expected, "{driver}, running");
        home.ok(&["kill", driver]);
        home.ok(&["wait", driver]);
        assert_eq!(home.ok(&["diff", driver]), expected, "{driver}, ended");
    }
}

#[test]
fn closed_directories_of_a_running_container_are_compared_too() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "mkdir -p /shut/in; echo x >/shut/in/f; chown 33:33 /shut /shut/in 2>/dev/null; chmod 0 /shut/in /shut /var/owned; \
        echo done; sleep 1000";
    let expected = "A /shut\nA /shut/in\nA /shut/in/f\nC /var\nC /var/owned\n";
    for driver in DRIVERS {
        let options = ["run", "-d", "--name", driver, "--network", "none", "--storage-driver", driver];
        home.ok(&[&options[..], &[&busybox(), "sh", "-c", script]].concat());
        crate::support::eventually("the payload has written", || home.ok(&["logs", driver]) == "done\n");
        assert_eq!(home.ok(&["diff", driver]), expected, "{driver}, running");
        home.ok(&["kill", driver]);
        home.ok(&["wait", driver]);
        assert_eq!(home.ok(&["diff", driver]), expected, "{driver}, ended");
    }
}

/// Podman compares directories by their time of modification too, and lists mount points that it made in the image. What is
/// added or deleted, and which files are changed, must be the same.
#[test]
fn podman_tells_the_same() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let mut run = podman_of(&home);
    run.args(["run", "--tls-verify=false", "--name", "changed", "--network", "none", &busybox(), "sh", "-c", CHANGES]);
    let done = finish(&mut run, b"", LIMIT);
    if podman_cannot_run(&done) {
        end_podman(&home);
        return skip("podman cannot run containers here");
    }
    let theirs = finish(podman_of(&home).args(["diff", "changed"]), b"", LIMIT);
    end_podman(&home);
    let directories = ["/", "/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var", "/var/opaque"];
    let files = |text: &str| {
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !directories.contains(&line.split(' ').nth(1).unwrap_or_default()))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    for driver in DRIVERS {
        assert_eq!(files(&changed(&home, driver, CHANGES)), files(&theirs.stdout), "{driver}; podman: {theirs:#?}");
    }
}
