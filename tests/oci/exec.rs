//! exec: one more process with the container's rights, or those that are asked for.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{LIMIT, end, finish, read_until, skip, start};

fn running(bundle: &mut Bundle) {
    bundle.script("sleep 100");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
}

#[test]
fn exec_joins_every_namespace() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    let list = "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done";
    let ours = bundle.ok(&["exec", "box", "sh", "-c", list]);
    let theirs = bundle.ok(&["exec", "box", "sh", "-c", &list.replace("self", "1")]);
    assert_eq!(ours, theirs);
    assert_eq!(bundle.call(&["exec", "box", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(bundle.call(&["exec", "box", "sh", "-c", "kill -34 $$"]).code, 162, "a real-time signal");
    assert_eq!(bundle.call(&["exec", "box", "no-such-program"]).code, 127);
}

#[test]
fn exec_has_what_the_options_say() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    let out =
        bundle.ok(&["exec", "--cwd", "/tmp", "-e", "A=b", "box", "sh", "-c", "pwd; echo $A; env | grep -c ^PATH="]);
    assert_eq!(out, "/tmp\nb\n1\n");
    let file = bundle.path.join("process.json");
    let process = json!({
        "cwd": "/etc", "args": ["sh", "-c", "pwd; grep NoNewPrivs /proc/self/status"], "user": { "uid": 0, "gid": 0 },
        "env": ["PATH=/bin"], "noNewPrivileges": true,
    });
    fs::write(&file, process.to_string()).expect("the home is ours");
    let out = bundle.ok(&["exec", "--process", &file.to_string_lossy(), "box"]);
    assert_eq!(out, "/etc\nNoNewPrivs:\t1\n");
}

/// What confines the container, and what its programs see of the machine, holds for what is executed in it too.
#[test]
fn exec_is_what_the_container_is_where_its_file_says_nothing() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bundle.config["process"]["user"]["umask"] = json!(0o027);
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    bundle.config["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 5 });
    running(&mut bundle);
    let file = bundle.path.join("process.json");
    let show =
        "uname -m; umask; ionice -p $$; set -- $(cat /proc/self/stat); echo ${19}; grep NoNewPrivs /proc/self/status";
    let process = json!({
        "cwd": "/", "args": ["sh", "-c", show], "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
    });
    fs::write(&file, process.to_string()).expect("the home is ours");
    let narrow = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    let out = bundle.ok(&["exec", "--process", &file.to_string_lossy(), "box"]);
    assert_eq!(out, format!("{narrow}\n0027\nidle\n5\nNoNewPrivs:\t1\n"));
}

#[test]
fn exec_begins_and_goes_on_with_the_processors_that_are_asked_for() {
    let Some(mut bundle) = Bundle::new() else { return };
    let list = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a line of proc(5)");
        line.trim().to_owned()
    };
    let ours = list(&fs::read_to_string("/proc/self/status").expect("/proc is mounted"));
    if !ours.starts_with("0-") && !ours.starts_with("0,1") {
        skip(&format!("the caller has the processors {ours} and not 0 and 1"));
        return;
    }
    running(&mut bundle);
    let file = bundle.path.join("process.json");
    for (affinity, expected) in [(json!({ "initial": "0" }), "0"), (json!({ "initial": "0", "final": "1" }), "1")] {
        let process = json!({
            "cwd": "/", "args": ["sh", "-c", "cat /proc/self/status; echo began; sleep 0.5"], "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 }, "execCPUAffinity": affinity,
        });
        fs::write(&file, process.to_string()).expect("the home is ours");
        let mut child = start(&mut bundle.command(&["exec", "--process", &file.to_string_lossy(), "box"]));
        let said = read_until(child.stdout.as_mut().expect("a pipe"), "began\n");
        assert_eq!(list(&said), expected, "{affinity}");
        // Who relays its streams is not bound by it.
        let relay = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it waits for the command");
        assert_eq!(list(&relay), ours, "{affinity}");
        assert_eq!(end(child, LIMIT).code, 0);
    }
}

#[test]
fn exec_stands_in_the_cgroup_that_is_named() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    let own = "grep ^0:: /proc/self/cgroup";
    if bundle.call(&["pause", "box"]).stderr.contains("has no cgroup") {
        let error = bundle.fails(&["exec", "--cgroup", "below", "box", "true"]);
        assert!(error.contains("not possible without a cgroup"), "{error}");
        skip("no cgroup v2 that the caller may write");
        return;
    }
    bundle.ok(&["resume", "box"]);
    let pid = bundle.state("box", "pid");
    let place = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("init lives");
    let place = place.lines().find_map(|line| line.strip_prefix("0::/")).expect("it has a cgroup of version 2");
    fs::create_dir(Path::new("/sys/fs/cgroup").join(place).join("below")).expect("the cgroup is ours");
    for (named, expected) in [("below", "0::/below\n"), ("/below", "0::/below\n"), ("/", "0::/\n")] {
        assert_eq!(bundle.ok(&["exec", "--cgroup", named, "box", "sh", "-c", own]), expected, "{named}");
    }
    assert!(bundle.fails(&["exec", "--cgroup", "..", "box", "true"]).contains("component `..`"));
    assert!(bundle.fails(&["exec", "--cgroup", "missing", "box", "true"]).contains("ENOENT"));
}

#[test]
fn exec_gets_no_more_capabilities_than_the_container() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    let status = ["exec", "box", "grep", "Cap", "/proc/self/status"];
    let own = bundle.ok(&["exec", "box", "grep", "Cap", "/proc/1/status"]);
    assert_eq!(bundle.ok(&status), own);
    let more = bundle.ok(&["exec", "--cap", "CAP_NET_RAW", "box", "grep", "Cap", "/proc/self/status"]);
    let set = |name: &str| {
        let line = more.lines().find_map(|line| line.strip_prefix(name)).expect("a line a set");
        u64::from_str_radix(line.trim(), 16).expect("a mask")
    };
    assert_eq!((set("CapInh:"), set("CapAmb:")), (0, 0), "CVE-2022-27650");
    assert_ne!(set("CapEff:") & 1 << 13, 0, "{more}");
}

#[test]
fn descriptors_do_not_leak_into_exec_but_for_those_handed_on() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    // ls has the directory itself open as the next one.
    assert_eq!(bundle.ok(&["exec", "box", "ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    let script = "exec 3</etc/passwd 4</etc/passwd 5</etc/passwd; exec \"$@\"";
    let mut command = std::process::Command::new("/bin/sh");
    let at = bundle.home.bin().to_string_lossy().into_owned();
    let id = bundle.id("box");
    command.args(["-c", script, "sh", &at, "runtime", "exec", "--preserve-fds", "2", &id, "ls", "/proc/self/fd"]);
    bundle.home.surround(&mut command);
    let done = finish(&mut command, b"", LIMIT);
    assert_eq!((done.code, done.stdout.as_str()), (0, "0\n1\n2\n3\n4\n5\n"), "{done:#?}");
}

#[test]
fn a_user_is_numbers_only() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    for bad in ["root", "-1", "1 ", "+1", "1:", "4294967295"] {
        let error = bundle.fails(&["exec", "--user", bad, "box", "id"]);
        assert!(error.contains("UID[:GID]"), "{bad:?}: {error}");
    }
}

#[test]
fn descriptors_that_are_not_there_cannot_be_handed_on() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    let error = bundle.fails(&["exec", "--preserve-fds", "40", "box", "true"]);
    assert!(error.contains("is to be handed on and is not open"), "{error}");
    bundle.script("ls /proc/self/fd");
    let mut command = bundle.command(&["run", "--bundle", &bundle.at(), "second"]);
    command.env("LISTEN_FDS", "4");
    let done = finish(&mut command, b"", LIMIT);
    assert_eq!((done.code, done.stdout.as_str()), (0, "0\n1\n2\n3\n"), "meant for another process: {done:#?}");
}

#[test]
fn exec_has_the_containers_limits() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]);
    running(&mut bundle);
    assert_eq!(bundle.ok(&["exec", "box", "sh", "-c", "ulimit -n; ulimit -Hn"]), "77\n88\n");
}

#[test]
fn a_working_directory_of_the_host_is_refused() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    // CVE-2024-21626: whatever number is a directory of the host's.
    for number in 3..40 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/made-on-the-host")] {
            let done = bundle.call(&["exec", "--cwd", &path, "box", "cat", "../etc/hostname", "etc/os-release"]);
            assert!(done.code != 0 && done.stdout.is_empty(), "{path}: {done:#?}");
        }
    }
}

#[test]
fn sockets_of_systemd_are_handed_on_and_told() {
    let Some(mut bundle) = Bundle::new() else { return };
    running(&mut bundle);
    let activated = |words: &[&str]| {
        let runtime = bundle.command(words);
        let mut command = std::process::Command::new("/bin/sh");
        let script = "exec 3</etc/passwd 4</etc/passwd; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
        command.args(["-c", script, "sh"]).arg(bundle.home.bin()).args(runtime.get_args());
        bundle.home.surround(&mut command);
        let done = finish(&mut command, b"", LIMIT);
        assert_eq!(done.code, 0, "{done:#?}");
        done.stdout
    };
    let script = "test $LISTEN_PID = $$ && echo $LISTEN_FDS; ls /proc/self/fd";
    let told = "2\n0\n1\n2\n3\n4\n5\n";
    assert_eq!(activated(&["exec", "box", "sh", "-c", script]), told);
    let mut config = bundle.config.clone();
    config["process"]["args"] = json!(["sh", "-c", script]);
    let file = bundle.path.join("other.json");
    fs::write(&file, config.to_string()).expect("the home is ours");
    let run = ["run", "--config", &file.to_string_lossy(), "--bundle", &bundle.at(), "second"].map(str::to_owned);
    assert_eq!(activated(&run.each_ref().map(String::as_str)), told);
}

#[test]
fn the_first_processors_of_an_exec_are_not_those_of_the_runtime() {
    let Some(mut bundle) = Bundle::new() else { return };
    let allowed = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).expect("a line").to_owned()
    };
    let own = allowed(std::process::id());
    let first: String =
        own.split_whitespace().nth(1).expect("a list").chars().take_while(char::is_ascii_digit).collect();
    if own.ends_with(&format!("\t{first}")) {
        skip("this machine has one processor");
        return;
    }
    running(&mut bundle);
    let file = bundle.path.join("process.json");
    let process = json!({
        "cwd": "/", "args": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; sleep 100"],
        "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"], "execCPUAffinity": { "initial": first },
    });
    fs::write(&file, process.to_string()).expect("the home is ours");
    let mut child = start(&mut bundle.command(&["exec", "--process", &file.to_string_lossy(), "box"]));
    let mut out = child.stdout.take().expect("a pipe");
    let told = read_until(&mut out, "\n");
    assert_eq!(told.trim_end(), format!("Cpus_allowed_list:\t{first}"));
    assert_eq!(allowed(child.id()), own);
    bundle.ok(&["kill", "box", "KILL"]);
    drop(out);
    end(child, LIMIT);
}
