//! Bugs that other runtimes had, as docs/testing.md lists them; those that no other test is about.

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{eventually, skip};

/// runc#5208: an exec whose command ended at once was waited for without end.
#[test]
fn an_exec_that_ends_at_once_is_answered() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("sleep 1000");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    for code in 0..100 {
        let done = bundle.call(&["exec", "box", "sh", "-c", &format!("exit {code}")]);
        assert_eq!((done.code, done.stderr.as_str()), (code, ""), "{done:#?}");
    }
    let file = bundle.path.join("pid");
    for _ in 0..50 {
        bundle.ok(&["exec", "--detach", "--pid-file", &file.to_string_lossy(), "box", "true"]);
        let pid = fs::read_to_string(&file).expect("it was written");
        assert!(pid.parse::<i32>().is_ok_and(|pid| pid > 1), "{pid:?}");
    }
    assert_eq!(bundle.state("box", "status"), "running");
}

/// crun 1.29.1: a container stayed frozen after an error. To signal all processes we freeze it where `cgroup.kill` does
/// not do.
#[test]
fn a_signal_to_all_leaves_nothing_frozen() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("trap 'echo heard' USR1; echo began; while true; do sleep 0.05; done");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    eventually("the trap is set", || bundle.log().contains("began"));
    // Where there is no cgroup it goes to init.
    bundle.ok(&["kill", "--all", "box", "USR1"]);
    assert_eq!(bundle.state("box", "status"), "running");
    eventually("it was heard", || bundle.log().contains("heard"));
    assert!(bundle.fails(&["kill", "--all", "box", "NOTHING"]).contains("NOTHING"));
    assert_eq!(bundle.state("box", "status"), "running");
    let paused = bundle.call(&["pause", "box"]);
    if paused.stderr.contains("has no cgroup") {
        skip("no cgroup v2 that the caller may write");
        return;
    }
    // What was frozen before stays so, and SIGKILL ends it all the same.
    bundle.ok(&["kill", "--all", "box", "USR1"]);
    assert_eq!(bundle.state("box", "status"), "paused");
    bundle.ok(&["kill", "--all", "box", "KILL"]);
    eventually("it has ended", || bundle.state("box", "status") == "stopped");
}

/// podman#20765: a container that was started again had another oom_score_adj.
#[test]
fn the_score_for_want_of_memory_is_the_callers_or_the_configurations() {
    let Some(mut bundle) = Bundle::new() else { return };
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("/proc is mounted");
    bundle.script("cat /proc/self/oom_score_adj");
    assert_eq!(bundle.runs(0), own);
    for _ in 0..2 {
        bundle.config["process"]["oomScoreAdj"] = json!(900);
        assert_eq!(bundle.runs(0), "900\n");
        bundle.config["process"].as_object_mut().expect("an object").remove("oomScoreAdj");
        assert_eq!(bundle.runs(0), own);
    }
}

/// crun 1.29: modes of file systems' roots changed, and options of mounts got lost.
#[test]
fn the_mounts_of_the_template_are_what_they_were() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["root"]["readonly"] = json!(true);
    bundle.script(
        "cat /proc/self/mountinfo; echo; stat -c '%n %a' / /dev /dev/shm /dev/mqueue /dev/pts /proc /proc/self/fd",
    );
    let out = bundle.runs(0);
    let (mounts, modes) = out.split_once("\n\n").expect("an empty line");
    // proc_pid_mountinfo(5); the last of two on one place counts.
    let mounts: BTreeMap<&str, (&str, &str)> = mounts
        .lines()
        .map(|line| {
            let (mount, file_system) = line.split_once(" - ").expect("a separator");
            let fields: Vec<&str> = mount.split(' ').collect();
            (fields[4], (fields[5], file_system.split(' ').next().expect("a type")))
        })
        .collect();
    let golden = [
        ("/proc", "rw,relatime", "proc"),
        ("/dev", "rw,nosuid", "tmpfs"),
        ("/dev/pts", "rw,nosuid,noexec,relatime", "devpts"),
        ("/dev/shm", "rw,nosuid,nodev,noexec,relatime", "tmpfs"),
        ("/dev/mqueue", "rw,nosuid,nodev,noexec,relatime", "mqueue"),
        ("/sys", "ro,nosuid,nodev,noexec,relatime", "sysfs"),
        ("/proc/bus", "ro,relatime", "proc"),
        ("/proc/fs", "ro,relatime", "proc"),
        ("/proc/irq", "ro,relatime", "proc"),
        ("/proc/sys", "ro,relatime", "proc"),
    ];
    for (place, options, typ) in golden {
        assert_eq!(mounts.get(place), Some(&(options, typ)), "{place}: {mounts:#?}");
    }
    assert!(mounts["/"].0.starts_with("ro,"), "{mounts:#?}");
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let (options, _) = mounts[format!("/dev/{name}").as_str()];
        assert!(options.contains("nosuid") && options.contains("noexec"), "{name}: {options}");
    }
    let cgroup = mounts.get("/sys/fs/cgroup").expect("the template has it");
    assert!(cgroup.0.starts_with("ro,nosuid,nodev,noexec"), "{cgroup:?}");
    let modes: Vec<&str> = modes.lines().skip(1).collect();
    let golden = ["/dev 755", "/dev/shm 1777", "/dev/mqueue 1777", "/dev/pts 755", "/proc 555", "/proc/self/fd 500"];
    assert_eq!(modes, golden);
}
