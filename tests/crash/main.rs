//! `kill -9` of any role: `ps` tells the truth, `rm -f` cleans, nothing runs or is mounted afterwards, and the next
//! command works. One test at a time: roles are recognised by being new.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::{Home, Need, busybox, eventually, free_port, processes, unique};

/// The processes of a role.
fn of_role(role: &str) -> Vec<i32> {
    let name = format!("sublet-{role}");
    processes(|words| words[0] == name)
}

/// Runs `start`, then kills -9 every process of the role that is new since.
fn kill_new(role: &str, start: impl FnOnce()) -> usize {
    let before = of_role(role);
    start();
    let new: Vec<i32> = of_role(role).into_iter().filter(|pid| !before.contains(pid)).collect();
    for pid in &new {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("the role is the test user's");
    }
    eventually("the killed are gone", || of_role(role).iter().all(|pid| !new.contains(pid)));
    new.len()
}

fn payloads(number: &str) -> Vec<i32> {
    processes(|words| words.first().is_some_and(|word| word == "sleep") && words.iter().any(|word| word == number))
}

/// After the killing: removal is complete and the next container runs.
fn assert_clean(home: &Home, number: &str) {
    home.ok(&["rm", "-f", "victim"]);
    assert!(home.containers().is_empty());
    eventually("the payload is gone", || payloads(number).is_empty());
    assert_eq!(home.sh(&[], "echo next"), "next\n");
}

#[test]
fn the_monitor_is_killed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let killed = kill_new("monitor", || {
        home.ok(&["run", "-d", "--name", "victim", &busybox(), "sleep", &number]);
    });
    assert_eq!(killed, 1);
    let running = !payloads(&number).is_empty();
    assert_eq!(home.inspect("victim", "{{.State.Running}}"), running.to_string());
    assert_clean(&home, &number);
}

#[test]
fn the_monitor_is_killed_and_the_container_is_stopped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    kill_new("monitor", || {
        home.ok(&["run", "-d", "--name", "victim", &busybox(), "sleep", &number]);
    });
    home.ok(&["stop", "-t", "1", "victim"]);
    assert!(payloads(&number).is_empty());
    assert_eq!(home.inspect("victim", "{{.State.Running}}"), "false");
    assert_clean(&home, &number);
}

#[test]
fn the_file_system_is_killed() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let number = unique();
    let killed = kill_new("fs", || {
        home.ok(&["run", "-d", "--name", "victim", &busybox(), "sleep", &number]);
    });
    assert!(killed >= 1, "a container has an fs role");
    home.ok(&["ps", "-a"]);
    assert_clean(&home, &number);
}

#[test]
fn the_network_is_killed() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let number = unique();
    let publish = format!("127.0.0.1:{}:80", free_port());
    let killed = kill_new("net", || {
        home.ok(&["run", "-d", "-p", &publish, "--name", "victim", &busybox(), "sleep", &number]);
    });
    assert_eq!(killed, 1);
    assert_eq!(home.inspect("victim", "{{.State.Running}}"), "true");
    assert_eq!(home.ok(&["exec", "victim", "echo", "alive"]), "alive\n");
    assert_clean(&home, &number);
}

#[test]
fn all_roles_are_killed_at_once() {
    let Some(home) = Home::with_busybox(&[Need::Fuse, Need::Tun]) else { return };
    let number = unique();
    let before: Vec<i32> = ["monitor", "fs", "net"].iter().flat_map(|role| of_role(role)).collect();
    home.ok(&["run", "-d", "--name", "victim", &busybox(), "sleep", &number]);
    for pid in ["monitor", "fs", "net"].iter().flat_map(|role| of_role(role)).filter(|pid| !before.contains(pid)) {
        // A role may end by itself when the one before it has died.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    assert_clean(&home, &number);
}

#[test]
fn the_payload_is_killed_from_outside() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    home.ok(&["run", "-d", "--name", "victim", &busybox(), "sleep", &number]);
    if payloads(&number).iter().any(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_err()) {
        return support::skip("the payload's ids are not the caller's to kill");
    }
    assert_eq!(home.ok(&["wait", "victim"]), "137\n");
    assert_clean(&home, &number);
}

#[test]
fn a_pull_killed_at_any_moment_is_repaired_by_the_next() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    for delay_ms in [1, 5, 10, 20, 40, 80] {
        let mut child = support::start(&mut home.command(&["pull", &busybox()]));
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        child.kill().expect("our own child");
        support::end(child, support::LIMIT);
    }
    home.ok(&["pull", &busybox()]);
    assert_eq!(home.sh(&[], "cat /etc/replaced"), "second\n");
}
