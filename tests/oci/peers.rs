//! Bugs that other runtimes had, as docs/testing.md lists them; those that no other test is about.

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{LIMIT, eventually, finish, skip};

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

/// Without `cgroup.kill` (before Linux 5.14) nobody may be born between the list of processes and their signals.
#[test]
fn who_forks_without_end_is_killed_without_the_call_for_it() {
    let Some(mut bundle) = Bundle::new() else { return };
    // The end of init would end all of its namespace.
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.script("f() { f & }; f; f; f; f; echo began; sleep 1000");
    for round in 0..10 {
        bundle.create("box");
        bundle.ok(&["start", "box"]);
        eventually("the command has begun", || bundle.log().contains("began"));
        if bundle.call(&["pause", "box"]).stderr.contains("has no cgroup") {
            skip("no cgroup v2 that the caller may write");
            return;
        }
        bundle.ok(&["resume", "box"]);
        let mut kill = bundle.command(&["kill", "--all", "box", "KILL"]);
        let done = finish(kill.env("SUBLET_WITHOUT", "cgroup.kill"), b"", LIMIT);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "round {round}: {done:#?}");
        assert_eq!(bundle.ok(&["ps", "--format", "json", "box"]), "[]\n", "round {round}");
        bundle.ok(&["delete", "box"]);
    }
}

/// runc and crun signal all by the cgroup, and only the first process where there is none. Here the pid namespace tells.
#[test]
fn a_signal_to_all_reaches_all_without_a_cgroup() {
    let Some(mut bundle) = Bundle::new() else { return };
    // Ten seconds at most: nothing ends the second one where it has not its own pid namespace.
    bundle.script(
        "loop() { n=0; while [ $n -lt 200 ]; do n=$((n + 1)); sleep 0.05; done; }
         second() { trap 'echo second' USR1; echo began; loop; }
         trap 'echo first' USR1; second & loop",
    );
    let start = |bundle: &Bundle| {
        assert!(bundle.creates(&["--cgroup-manager", "disabled"], "box"), "{}", bundle.log());
        bundle.ok(&["start", "box"]);
        eventually("both have begun", || bundle.log().contains("began"));
    };
    start(&bundle);
    let done = bundle.call(&["kill", "--all", "box", "USR1"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    eventually("both have heard it", || bundle.log().contains("first") && bundle.log().contains("second"));
    bundle.ok(&["kill", "--all", "box", "KILL"]);
    eventually("it has ended", || bundle.state("box", "status") == "stopped");
    bundle.ok(&["delete", "box"]);
    // Nothing tells which processes of the caller's namespace are the container's.
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    start(&bundle);
    let done = bundle.call(&["kill", "--all", "box", "USR1"]);
    assert!(done.code == 0 && done.stderr.contains("only its first process"), "{done:#?}");
    eventually("the first has heard it", || bundle.log().contains("first"));
}

/// ompi#6844, apptainer#769: ranks of one job could not read each other's memory, as each had a user namespace of its own.
/// Those that join one can: the kernel asks the same for a look at the environment as for `process_vm_readv`.
#[test]
fn ranks_in_one_user_namespace_may_look_into_each_other() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.push("/process/env", json!("RANK=first")).script("echo began; sleep 1000");
    bundle.create("first");
    bundle.ok(&["start", "first"]);
    eventually("the first one runs", || bundle.log().contains("began"));
    let pid = bundle.state("first", "pid").as_i64().expect("a number");
    bundle.join(pid, &["user", "pid", "ipc"]).script("tr '\\0' '\\n' </proc/1/environ | grep RANK");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "second"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "RANK=first\n"), "{done:#?}");
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
