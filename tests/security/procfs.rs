//! Writes that a false `/proc` swallows or leads elsewhere (CVE-2019-19921, CVE-2025-52881), and settings of the whole
//! machine.

use std::fs;

use serde_json::json;

use crate::attack::Container;
use crate::bundle::Bundle;
use crate::support::{Home, busybox, identity};

const SETTING: &str = "sys/net/ipv4/ip_unprivileged_port_start";
/// Files that a runtime writes to by path, or reads what it relies on.
const FALSE_FILES: [&str; 8] = [
    SETTING,
    "self/attr/exec",
    "self/attr/apparmor/exec",
    "thread-self/attr/exec",
    "self/status",
    "self/uid_map",
    "self/gid_map",
    "self/oom_score_adj",
];

/// A directory that looks like `/proc` to somebody who goes by names.
fn false_proc(home: &Home) -> std::path::PathBuf {
    let directory = home.path("proc");
    for name in FALSE_FILES {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "untouched").unwrap();
    }
    fs::create_dir_all(directory.join("self/fd")).unwrap();
    directory
}

#[track_caller]
fn untouched(directory: &std::path::Path) {
    for name in FALSE_FILES {
        assert_eq!(fs::read_to_string(directory.join(name)).unwrap(), "untouched", "{name}");
    }
}

#[test]
fn a_false_proc_gets_no_write_of_the_runtime() {
    let Some(mut bundle) = Bundle::new() else { return };
    let directory = false_proc(&bundle.home);
    fs::create_dir(bundle.path.join("rootfs/true")).unwrap();
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/proc" {
            *mount = json!({ "destination": "/proc", "type": "bind", "source": directory, "options": ["bind"] });
        }
    }
    bundle.push("/mounts", json!({ "destination": "/true", "type": "proc", "source": "proc" }));
    bundle.push("/linux/namespaces", json!({ "type": "network" }));
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "99" });
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    let status = format!("cat /true/{SETTING} /true/self/oom_score_adj; grep -E 'NoNewPrivs|CapEff' /true/self/status");
    bundle.script(&status);
    let out = bundle.runs(0);
    assert!(out.starts_with("99\n500\nCapEff:"), "{out}");
    untouched(&directory);
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    let done = container.run(&["--no-new-privs"], &["sh", "-c", &status]);
    assert!(done.stdout.contains("NoNewPrivs:\t1\n"), "{done:#?}");
    untouched(&directory);
    // Who writes by the name that everybody uses is fooled.
    let fooled = container.run(&[], &["sh", "-c", &format!("echo 98 >/proc/{SETTING}; cat /true/{SETTING}")]);
    assert_eq!(fooled.stdout, "99\n", "{fooled:#?}");
    assert_eq!(fs::read_to_string(directory.join(SETTING)).unwrap(), "98\n");
}

#[test]
fn a_false_proc_gets_no_write_of_the_engine() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let directory = false_proc(&home);
    let volume = format!("{}:/proc", directory.display());
    let options = ["-v", &volume, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
    let container = Container::engine(&home, &options, &["sleep", "600"]);
    let mut exec = container.exec(&[], &["sleep", "601"]);
    let mut exec = exec.spawn().unwrap();
    let pid: i32 = home.inspect("box", "{{.State.Pid}}").parse().unwrap();
    // By the host's own /proc, which nobody in there can change.
    let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let confined = |pid: i32| {
        let status = status(pid);
        ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"].iter().all(|line| status.contains(line))
    };
    assert!(confined(pid), "{}", status(pid));
    let second = || {
        crate::support::processes(|words| {
            words.first().is_some_and(|w| w == "sleep") && words.get(1).is_some_and(|w| w == "601")
        })
    };
    crate::support::eventually("the exec runs", || second().into_iter().any(confined));
    untouched(&directory);
    home.ok(&["rm", "-f", "box"]);
    exec.wait().unwrap();
}

/// What belongs to the machine, and could be used to run a program on the host, stop it or read its memory.
const OF_THE_MACHINE: [&str; 6] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sysrq-trigger",
    "/proc/kcore",
    "/sys/kernel/uevent_helper",
];

/// Opens each for writing, and writes nothing; prints what could be opened.
fn opens() -> String {
    let one = |path: &&str| format!("(: >>{path}) 2>/dev/null && echo {path};");
    OF_THE_MACHINE.iter().map(one).collect::<String>() + " echo done"
}

#[test]
fn settings_of_the_machine_cannot_be_opened_in_the_engines_containers() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let mighty = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"];
    for options in [&[][..], &mighty] {
        assert_eq!(home.sh(options, &opens()), "done\n", "{options:?}");
    }
    let container = Container::engine(&home, &mighty, &["sleep", "600"]);
    // Not even where the masks are taken away.
    let script = format!("umount /proc/sysrq-trigger /proc/sys /proc/kcore 2>/dev/null; {}", opens());
    assert_eq!(container.run(&[], &["sh", "-c", &script]).stdout, "done\n");
    assert_eq!(home.run(&["run", "--rm", &busybox(), "sh", "-c", "cat /proc/kcore /proc/keys"]).stdout, "", "masked");
}

/// Two defences: the container's root owns none of it, and it is read-only besides.
#[test]
fn settings_of_the_machine_cannot_be_opened_in_a_bundles_container() {
    let Some(mut bundle) = Bundle::new() else { return };
    let script = opens();
    bundle.script(&script);
    assert_eq!(bundle.runs(0), "done\n");
    // As without the second; for the first, root of the host has to be without a user namespace below.
    let own = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    bundle.push("/linux/namespaces", json!({ "type": "network" }));
    for set in ["bounding", "permitted", "effective"] {
        bundle.push(&format!("/process/capabilities/{set}"), json!("CAP_NET_ADMIN"));
    }
    bundle.script(&format!("(: >>{own}) 2>/dev/null && echo own"));
    bundle.runs(1);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    assert_eq!(bundle.runs(0), "own\n", "what the container's own namespace has");
    bundle.script(&script);
    if identity() != "root" {
        assert_eq!(bundle.runs(0), "done\n", "and nothing else");
        return;
    }
    for name in ["uidMappings", "gidMappings"] {
        bundle.config["linux"].as_object_mut().unwrap().remove(name);
    }
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    let out = bundle.runs(0);
    // Not every kernel has each of them.
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"] {
        assert_eq!(out.contains(path), std::path::Path::new(path).exists(), "{path}: {out}");
    }
    bundle.config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/sysrq-trigger"]);
    let out = bundle.runs(0);
    assert!(!out.contains("core_pattern") && !out.contains("sysrq"), "{out}");
}
