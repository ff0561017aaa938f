//! A container with one id: programs that give files to other users, or become them, go on, and what is committed has the
//! owners that were given.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{DRIVERS, Home, Need, busybox, eventually, processes};

/// Gives files away in every way; says how they look inside. (busybox always names both, the one that is not given as `stat`
/// shows it.)
const GIVE: &str = "mkdir -p /o/d && cd /o && echo x >f && echo y >g && ln -s f l && \
    chown 33:34 f && chown 1000:7 /o/d && chown -h 5:6 l && chown 9:9 ../o/g && chown 0:0 g && \
    chmod 4755 f && stat -c '%n %a' f && chown 4000000000:34 f && stat -c '%n %u:%g %a' f d";

/// The owners of what is in `/o`, by the archive of an export.
fn owners(home: &Home, container: &str) -> Vec<String> {
    let archive = home.path("exported.tar");
    home.ok(&["export", "-o", archive.to_str().unwrap(), container]);
    let listed = Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&archive).arg("o").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let words = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found: Vec<String> = words.map(|words| format!("{} {}", words[5], words[1])).collect();
    found.sort();
    found
}

fn expected(driver: &str) -> Vec<String> {
    // A native upper has no attributes of links.
    let link = if driver == "fuse" { "o/l 5/6" } else { "o/l 0/0" };
    ["o/ 0/0", "o/d/ 1000/7", "o/f 4000000000/34", "o/g 0/0", link].map(str::to_owned).to_vec()
}

#[test]
fn owners_are_given_and_exported() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    for driver in DRIVERS {
        let options = ["run", "--name", driver, "--network", "none", "--userns", "single", "--storage-driver", driver];
        let seen = home.ok(&[&options[..], &[&busybox(), "sh", "-c", GIVE]].concat());
        assert_eq!(seen, "f 4755\nf 0:0 755\nd 0:0 755\n", "{driver}");
        assert_eq!(owners(&home, driver), expected(driver), "{driver}");
        // In an image they are as true, and no attribute tells of it.
        let image = format!("given-{driver}");
        home.ok(&["commit", driver, &image]);
        let again = format!("again-{driver}");
        let options = ["run", "--name", &again, "--network", "none", "--storage-driver", driver];
        home.ok(&[&options[..], &[&image, "sh", "-c", "chmod 700 /o/f; chmod 711 /o/d"]].concat());
        assert_eq!(owners(&home, &again), expected(driver), "{driver}");
    }
    home.assert_store_is_ours();
}

#[test]
fn further_processes_and_a_killed_role_go_on() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let id = home.ok(&["run", "-d", "--network", "none", "--userns", "single", &busybox(), "sleep", "600"]);
    let (id, label) = (id.trim(), &id[..12]);
    let roles = || processes(|words| words[0] == "sublet-notify" && words.get(1).is_some_and(|word| word == label));
    assert!(roles().is_empty(), "without a call there is no role");
    let user = "echo u:x:33:33::/:/bin/sh >>/etc/passwd; touch /a && chown 33:33 /a && su u -c 'echo went on'";
    assert_eq!(home.ok(&["exec", id, "sh", "-c", user]), "went on\n");
    let [role] = roles()[..] else { panic!("{:?} answer", roles()) };
    kill(Pid::from_raw(role), Signal::SIGKILL).unwrap();
    eventually("the role has ended", || !roles().contains(&role));
    home.ok(&["exec", id, "sh", "-c", "mkdir /b && chown -R 44:44 /b"]);
    home.ok(&["rm", "-f", id]);
    eventually("no role is left", || roles().is_empty());
}

#[test]
fn what_is_not_allowed_stays_so() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let profile = home.path("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chown","fchownat","lchown"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, text).unwrap();
    let profile = format!("seccomp={}", profile.display());
    for options in [["--cap-drop", "CHOWN"], ["--security-opt", &profile], ["--read-only", "--init"]] {
        let options = [&["--userns", "single", "--network", "none"], &options[..]].concat();
        assert_eq!(home.sh(&options, "chown 33 /bin 2>/dev/null || echo refused"), "refused\n", "{options:?}");
    }
    let absent = "chown 33 /absent 2>&1 | grep -o 'No such.*'; chown 33:33 /proc/version 2>/dev/null || echo refused";
    assert_eq!(home.sh(&["--userns", "single", "--network", "none"], absent), "No such file or directory\nrefused\n");
}
