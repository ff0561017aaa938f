//! Descriptors and working directories that lead out (CVE-2024-21626, CVE-2016-9962).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::attack::Container;
use crate::bundle::Bundle;
use crate::support::{Home, LIMIT, busybox, finish};

/// What nobody in a container may read.
const SECRET: &str = "of the host";
/// The numbers that descriptors of ours could have.
const NUMBERS: std::ops::Range<u32> = 3..50;

fn secret(home: &Home) -> PathBuf {
    let path = home.path("secret");
    fs::write(&path, SECRET).unwrap();
    path
}

/// A path that leads to a file of the host's from wherever on the host.
fn upwards(file: &Path) -> String {
    format!("{}{}", "../".repeat(20).trim_end_matches('/'), file.display())
}

/// A script that tries every directory which some process has open, and every link to one.
fn probe(file: &Path) -> String {
    format!(
        "for at in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd /proc/[0-9]*/root; do \
         (cd $at && cat {}) 2>/dev/null; done; echo done",
        upwards(file)
    )
}

#[test]
fn nothing_open_in_the_engines_containers_leads_out() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let probe = probe(&secret(&home));
    for options in [&[][..], &["--init"], &["-i"], &["-t"]] {
        assert_eq!(home.sh(options, &probe).trim(), "done", "{options:?}");
    }
    let container = Container::engine(&home, &["--init"], &["sleep", "600"]);
    for options in [&[][..], &["-i"], &["-t"]] {
        let done = container.run(options, &["sh", "-c", &probe]);
        assert_eq!((done.code, done.stdout.trim()), (0, "done"), "{done:#?}");
    }
    // Of process 1 the first instruction of an exec sees no more than the standard streams either.
    let listed = container.run(&[], &["sh", "-c", "ls /proc/self/fd; ls /proc/1/fd"]);
    assert_eq!(listed.stdout, "0\n1\n2\n3\n", "3 is the directory that ls reads; the reaper shows none: {listed:#?}");
}

#[test]
fn nothing_open_in_a_bundles_container_leads_out() {
    let Some(mut bundle) = Bundle::new() else { return };
    let probe = probe(&secret(&bundle.home));
    bundle.script(&probe);
    assert_eq!(bundle.runs(0), "done\n");
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    let done = container.run(&[], &["sh", "-c", &probe]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "done\n"), "{done:#?}");
}

#[test]
fn a_working_directory_of_the_host_is_refused_by_the_engine() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let file = upwards(&secret(&home));
    let image = busybox();
    let container = Container::engine(&home, &[], &["sleep", "600"]);
    for directory in NUMBERS.map(|number| format!("/proc/self/fd/{number}")) {
        let done = home.run(&["run", "--rm", "-w", &directory, &image, "cat", &file]);
        assert!(done.code != 0 && done.stdout.is_empty(), "{directory}: {done:#?}");
        let done = container.run(&["-w", &directory], &["cat", &file]);
        assert!(done.code != 0 && done.stdout.is_empty(), "exec in {directory}: {done:#?}");
        let below = format!("{directory}{}/made", home.path("").display());
        container.run(&["-w", &below], &["true"]);
    }
    assert!(!home.path("made").exists(), "a directory was made on the host");
}

#[test]
fn a_working_directory_of_the_host_is_refused_by_the_runtime() {
    let Some(mut bundle) = Bundle::new() else { return };
    let file = upwards(&secret(&bundle.home));
    bundle.config["process"]["args"] = json!(["cat", file]);
    for number in NUMBERS {
        let directory = format!("/proc/self/fd/{number}");
        bundle.config["process"]["cwd"] = json!(directory);
        let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
        assert!(done.code != 0 && done.stdout.is_empty(), "{directory}: {done:#?}");
    }
    bundle.config["process"]["cwd"] = json!("/");
    let container = Container::runtime(&mut bundle, &["sleep", "600"]);
    for number in NUMBERS {
        let done = container.run(&["--cwd", &format!("/proc/self/fd/{number}")], &["cat", &file]);
        assert!(done.code != 0 && done.stdout.is_empty(), "{number}: {done:#?}");
    }
}

/// The caller hands on a directory of the host: then the probe gets out by it, and even so it is no working directory.
#[test]
fn a_directory_that_is_handed_on_leads_out() {
    let Some(mut bundle) = Bundle::new() else { return };
    let file = secret(&bundle.home);
    let hand_on = |bundle: &Bundle, words: &[&str]| {
        let runtime = bundle.command(words);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 3</; exec \"$@\"", "sh"]).arg(bundle.home.bin()).args(runtime.get_args());
        bundle.home.surround(&mut command);
        finish(&mut command, b"", LIMIT)
    };
    let at = bundle.at();
    let run = ["run", "--preserve-fds", "1", "--bundle", &at, "box"];
    bundle.script(&probe(&file));
    let done = hand_on(&bundle, &run);
    assert!(done.stdout.contains(SECRET), "{done:#?}");
    bundle.config["process"]["cwd"] = json!("/proc/self/fd/3");
    let done = hand_on(&bundle, &run);
    assert!(done.code != 0 && done.stdout.is_empty(), "{done:#?}");
    assert!(done.stderr.contains("outside the container's root"), "{done:#?}");

    bundle.config["process"]["cwd"] = json!("/");
    Container::runtime(&mut bundle, &["sleep", "600"]);
    let exec = ["exec", "--preserve-fds", "1", "box", "sh", "-c", &probe(&file)];
    let done = hand_on(&bundle, &exec);
    assert!(done.stdout.contains(SECRET), "{done:#?}");
    let exec = ["exec", "--preserve-fds", "1", "--cwd", "/proc/self/fd/3", "box", "cat", &upwards(&file)];
    let done = hand_on(&bundle, &exec);
    assert!(done.code != 0 && done.stdout.is_empty(), "{done:#?}");
    assert!(done.stderr.contains("outside the container's root"), "{done:#?}");
}
