//! Commands that are killed or that race: no volume is half filled, and nothing is left behind.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{Home, Need, busybox, identity};

/// An image with three files in `/srv/data`.
fn image(home: &Home) -> &'static str {
    let owner = if identity() == "one-id" { "0" } else { "33" };
    let script = format!(
        "mkdir -p /srv/data && cd /srv/data && echo 1 >a && echo 2 >b && echo 3 >c && chown {owner} b . && chmod 0 c"
    );
    home.ok(&["run", "--name", "maker", &busybox(), "sh", "-c", &script]);
    home.ok(&["commit", "maker", "seeded"]);
    home.ok(&["rm", "maker"]);
    "seeded"
}

/// What lies below the directory of volumes.
fn left(home: &Home) -> Vec<String> {
    let hosts = home.store().join("hosts");
    let machine = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().file_name();
    let entries = fs::read_dir(hosts.join(machine).join("volumes")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Kills a command line at its first step, its second, and so on, until it ends by itself; then `check`.
fn at_each_step(home: &Home, prepare: &[&[&str]], words: &[&str], check: &dyn Fn(u32)) -> u32 {
    for step in 1.. {
        for line in prepare {
            home.ok(line);
        }
        let mut command = home.command(words);
        command.env("SUBLET_KILL_AT", format!("command:{step}")).stdout(Stdio::null());
        let done = command.stderr(Stdio::piped()).output().unwrap();
        check(step);
        if done.status.code() == Some(0) {
            return step - 1;
        }
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains("killed at command:"), "step {step}: {said}");
    }
    0
}

#[test]
fn a_killed_filling_is_finished_or_begun_anew() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = image(&home);
    let owner = if identity() == "one-id" { "0" } else { "33" };
    let wanted = format!("a 644 0\nb 644 {owner}\nc 0 0\n1\n2\n3\n/srv/data {owner}\n");
    let script = "cd /srv/data; stat -c '%n %a %u' *; cat *; stat -c '%n %u' /srv/data";
    let steps = at_each_step(&home, &[], &["run", "--rm", "-v", "data:/srv/data", image, "true"], &|step| {
        let seen = home.ok(&["run", "--rm", "-v", "data:/srv/data", image, "sh", "-c", script]);
        assert_eq!(seen, wanted, "step {step}");
        home.ok(&["volume", "rm", "data"]);
        assert_eq!(left(&home), [""; 0], "step {step}");
        home.assert_store_is_ours();
    });
    assert!(steps >= 6, "only {steps} steps were seen");
}

#[test]
fn a_killed_removal_is_done_by_the_next_command() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = image(&home);
    let prepare: &[&[&str]] = &[&["run", "--rm", "-v", "data:/srv/data", image, "true"]];
    let steps = at_each_step(&home, prepare, &["volume", "rm", "data"], &|step| {
        // Whether it is removed or not, the name can be had.
        home.ok(&["volume", "create", "data"]);
        home.ok(&["volume", "rm", "data"]);
        assert_eq!(left(&home), [""; 0], "step {step}");
    });
    assert!(steps >= 1);
}

#[test]
fn many_at_once_agree_on_one_volume() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = image(&home);
    let (program, data) = (home.bin().to_owned(), "data:/srv/data");
    let run = |words: &[&str]| {
        let mut command = Command::new(&program);
        home.surround(&mut command);
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for _ in 0..3 {
        let script = "cat /srv/data/a /srv/data/b /srv/data/c; echo $HOSTNAME >>/srv/data/who";
        let children: Vec<_> =
            (0..6).map(|_| run(&["run", "--rm", "--network", "none", "-v", data, image, "sh", "-c", script])).collect();
        let removers: Vec<_> = (0..3).map(|_| run(&["volume", "rm", "data"])).collect();
        for child in children {
            let done = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!((done.status.code(), &*done.stdout), (Some(0), &b"1\n2\n3\n"[..]), "{said}");
        }
        for remover in removers {
            let done = remover.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            let fine = ["volume is in use", "no such volume"].iter().any(|words| said.contains(words));
            assert!(done.status.success() || fine, "{said}");
        }
        home.assert_store_is_ours();
        home.ok(&["volume", "rm", "-f", "data"]);
        assert_eq!(left(&home), [""; 0]);
    }
}

#[test]
fn a_killed_monitor_leaves_a_volume_that_the_next_command_gives_back() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    home.ok(&["volume", "create", "data"]);
    let script = "echo x >/data/x; chown 33:33 /data/x; touch /data/ready; exec sleep 600";
    let child = home.ok(&["run", "-d", "--rm", "-v", "data:/data", &busybox(), "sh", "-c", script]);
    let id = child.trim();
    let hosts = home.store().join("hosts");
    let machine = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().file_name();
    let place = hosts.join(machine);
    while fs::symlink_metadata(place.join("volumes/data/_data/ready")).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pids: serde_json::Value =
        serde_json::from_slice(&fs::read(place.join("containers").join(id).join("pid.json")).unwrap()).unwrap();
    for key in ["monitor_pid", "pid"] {
        let pid = nix::unistd::Pid::from_raw(pids[key].as_i64().unwrap() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    while !home.containers().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    home.ok(&["volume", "ls"]);
    home.assert_store_is_ours();
    assert_eq!(home.sh(&["-v", "data:/data"], "stat -c '%u:%g' /data/x; cat /data/x"), "33:33\nx\n");
}
