//! Who a process is and what it may do: users that are parsed loosely (CVE-2026-30892), capabilities that an exec has
//! otherwise than a run (CVE-2022-27650), filters that it lacks; and the calls that only the filter keeps away.

use std::collections::BTreeMap;
use std::fs;

use nix::libc::{SYS_add_key, SYS_io_uring_setup, SYS_keyctl, SYS_socket, SYS_unshare};
use serde_json::json;

use crate::attack::{Container, bind_programs, has_perl, programs};
use crate::bundle::Bundle;
use crate::support::{Home, Need, busybox, identity};

/// Texts that a loose parser reads as some number, often 0.
const NO_USERS: [&str; 14] = [
    "-1",
    "+0",
    " 0",
    "0 ",
    "0x0",
    "0\n",
    "00x",
    "0a",
    "1e3",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "0:-1",
    "0:4294967296",
];

#[test]
fn the_engine_takes_no_text_for_a_user_that_is_none() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let container = Container::engine(&home, &[], &["sleep", "600"]);
    for user in NO_USERS {
        let done = home.run(&["run", "--rm", "--user", user, &busybox(), "id"]);
        assert!(done.code != 0 && done.stdout.is_empty(), "{user:?}: {done:#?}");
        let done = container.run(&["--user", user], &["id"]);
        assert!(done.code != 0 && done.stdout.is_empty(), "exec, {user:?}: {done:#?}");
    }
}

/// The same in the image's own files: a number that does not fit is no user, and surely not root.
#[test]
fn the_engine_reads_no_number_that_does_not_fit() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let passwd = home.path("passwd");
    let lines = ["4294967296", "-1", "4294967295", "0x0", " 0", "", "18446744073709551616"];
    let entry = |(at, uid): (usize, &&str)| format!("evil{at}:x:{uid}:{uid}::/:/bin/sh");
    let text: Vec<String> = lines.iter().enumerate().map(entry).collect();
    fs::write(&passwd, format!("{}\ngood:x:0:0::/:/bin/sh\n", text.join("\n"))).unwrap();
    let volume = format!("{}:/etc/passwd", passwd.display());
    let run = |user: &str| home.run(&["run", "--rm", "-v", &volume, "--user", user, &busybox(), "id", "-u"]);
    for (at, line) in lines.iter().enumerate() {
        let done = run(&format!("evil{at}"));
        assert!(done.code != 0 && done.stdout.is_empty(), "{line:?}: {done:#?}");
    }
    assert_eq!(run("good").stdout, "0\n", "the file is read");
}

#[test]
fn numbers_are_the_users_that_they_say() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let container = Container::engine(&home, &[], &["sleep", "600"]);
    for (user, expected) in [("33", "33"), ("1234", "1234"), ("0", "0"), ("33:0", "33")] {
        assert_eq!(home.sh(&["--user", user], "id -u").trim(), expected);
        assert_eq!(container.run(&["--user", user], &["id", "-u"]).stdout.trim(), expected);
    }
}

/// The lines of `/proc/self/status` that tell of rights.
fn rights(status: &str) -> BTreeMap<String, String> {
    let names =
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups"];
    let line = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    status.lines().filter_map(line).filter(|(name, _)| names.contains(&name.as_str())).collect()
}

/// How many filters of system calls a process has beside those that the whole test has (`xtask test --refuse`).
fn own_filters(rights_of_it: &BTreeMap<String, String>) -> i32 {
    let count = |rights: &BTreeMap<String, String>| rights["Seccomp_filters"].parse::<i32>().expect("Linux 5.9");
    let ours = rights(&fs::read_to_string("/proc/self/status").expect("the host has /proc"));
    count(rights_of_it) - count(&ours)
}

const STATUS: [&str; 2] = ["cat", "/proc/self/status"];

#[test]
fn an_exec_of_the_engine_has_the_rights_of_the_run() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let settings: [&[&str]; 5] = [
        &[],
        &["--cap-drop", "ALL", "--cap-add", "KILL"],
        &["--security-opt", "no-new-privileges"],
        &["--init"],
        &["--security-opt", "seccomp=unconfined"],
    ];
    for options in settings {
        let run = rights(&home.sh(options, &STATUS.join(" ")));
        let container = Container::engine(&home, options, &["sleep", "600"]);
        let exec = rights(&container.run(&[], &STATUS).stdout);
        assert_eq!(exec, run, "{options:?}");
        assert_eq!((&*exec["CapInh"], &*exec["CapAmb"]), ("0000000000000000", "0000000000000000"), "{options:?}");
        // The probe sees the difference.
        assert_eq!(own_filters(&exec), i32::from(!options.contains(&"seccomp=unconfined")));
        assert_eq!(exec["NoNewPrivs"], if options.contains(&"no-new-privileges") { "1" } else { "0" });
        assert_eq!(exec["CapEff"] == "0000000000000020", options.contains(&"KILL"));
        home.ok(&["rm", "-f", "box"]);
    }
}

#[test]
fn an_exec_of_the_runtime_has_the_rights_of_the_run() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
    });
    let id = bundle.id("box");
    let both = |bundle: &mut Bundle| {
        bundle.config["process"]["args"] = json!(STATUS);
        let run = rights(&bundle.runs(0));
        let container = Container::runtime(bundle, &["sleep", "600"]);
        let exec = rights(&container.run(&[], &STATUS).stdout);
        let made = container.run(&[], &["mkdir", "/tmp/made"]).code;
        bundle.ok(&["delete", "--force", &id]);
        // What is handed on to the next one.
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "bind" || mount["destination"] == "/sys");
        assert_eq!(exec, run);
        (exec, made)
    };
    let (confined, made) = both(&mut bundle);
    assert_eq!((own_filters(&confined), &*confined["CapInh"], made), (1, "0000000000000000", 1));
    // A bundle that asks for less is how the probe shows that it can see it.
    bundle.config["linux"]["seccomp"] = json!(null);
    bundle.config["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
    let (open, made) = both(&mut bundle);
    assert_eq!((own_filters(&open), &*open["CapInh"], made), (0, "0000000000000020", 0));
}

/// Calls with arguments that make nothing, and what the kernel itself says to them, if it is none of the answers below.
const CALLS: [(&str, i64, &str); 5] = [
    ("a user namespace", SYS_unshare, "0x10000000"),
    ("a key", SYS_add_key, "0, 0, 0, 0, 0"),
    ("a keyring", SYS_keyctl, "0, -3, 0"),
    ("AF_ALG", SYS_socket, "38, 5, 0"),
    ("io_uring", SYS_io_uring_setup, "0, 0"),
];

/// The default profile keeps away what has had the most holes; `seccomp=unconfined` shows that nothing else does.
#[test]
fn calls_with_many_holes_are_not_reached() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if !has_perl() {
        return;
    }
    let call = |(_, number, arguments): &(_, _, _)| {
        format!("print syscall({number}, {arguments}) < 0 ? $! + 0 : 'done', \"\\n\";")
    };
    let calls = CALLS.iter().map(call).collect::<Vec<String>>().concat();
    let (programs, image) = (programs(), busybox());
    let answers = |options: &[&str]| -> Vec<String> {
        let programs = programs.iter().map(String::as_str);
        let run = ["run", "--rm"].into_iter().chain(options.iter().copied()).chain(programs);
        let words: Vec<&str> = run.chain([image.as_str(), "perl", "-e", &calls]).collect();
        home.ok(&words).lines().map(str::to_owned).collect()
    };
    let (confined, open) = (answers(&[]), answers(&["--security-opt", "seccomp=unconfined"]));
    assert_eq!(open.len(), CALLS.len());
    for (position, (name, ..)) in CALLS.iter().enumerate() {
        assert_eq!(confined[position], "1", "{name}");
        // Some kernels refuse io_uring to everybody, in the same word.
        assert!(open[position] != "1" || *name == "io_uring", "{name}: {}", open[position]);
    }
    let container = Container::engine(&home, &[], &["sleep", "600"]);
    let exec = container.run(&[], &["perl", "-e", &calls]);
    assert_eq!(exec.stdout.lines().collect::<Vec<_>>(), confined, "{exec:#?}");
}

/// A directory that its owner has closed to one group is open to everybody else: who could leave the group would get in.
#[test]
fn a_group_that_is_shut_out_cannot_be_left() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !has_perl() || identity() == "root" {
        return;
    }
    bind_programs(&mut bundle);
    bundle.push("/process/capabilities/bounding", json!("CAP_SETGID"));
    bundle.push("/process/capabilities/permitted", json!("CAP_SETGID"));
    bundle.push("/process/capabilities/effective", json!("CAP_SETGID"));
    bundle.config["process"]["args"] = json!(["cat", "/proc/self/setgroups"]);
    assert_eq!(bundle.runs(0), "deny\n", "with one id there is no helper that may allow it");
    let setgroups = nix::libc::SYS_setgroups;
    bundle.config["process"]["args"] =
        json!(["perl", "-e", format!("print syscall({setgroups}, 0, 0) ? $! + 0 : 'left'")]);
    assert_eq!(bundle.runs(0), "1");
    if identity() == "subuids" {
        // newgidmap allows it: to those whom the administrator has given ids.
        bundle.map_all();
        assert_eq!(bundle.runs(0), "left");
    }
}
