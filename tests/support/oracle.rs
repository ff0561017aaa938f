//! The same script under an oracle and under sublet, outputs compared whole.
//!
//! For file system behaviour the oracle is the kernel: the script runs with the host's static busybox, the same program
//! that the image holds, in an empty directory of a disk file system. For behaviour of an engine it is podman, where that
//! is installed.

use std::process::Command;
use std::time::Duration;

use super::{DRIVERS, Done, Home, LIMIT, busybox, finish, skip};

/// Where the static busybox is, if it is.
pub fn host_busybox() -> Option<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| std::path::Path::new(path).exists())
}

/// The script's first lines: every oracle and sublet call the same applets, in an empty directory.
fn with_prologue(directory: &str, script: &str) -> String {
    format!("umask 022; mkdir -p {directory}; cd {directory}; {script}")
}

/// Runs a script on the kernel's own file system.
fn on_the_kernel(home: &Home, script: &str) -> Option<Done> {
    let program = host_busybox()?;
    let directory = home.path("oracle");
    let applets = home.path("applets");
    std::fs::create_dir_all(&applets).ok()?;
    let mut install = Command::new(program);
    home.surround(install.args(["--install", "-s"]).arg(&applets));
    finish(&mut install, b"", LIMIT);
    // A user namespace of one id, so that root of the container and root of the oracle are the same kind of root.
    let mut run = Command::new("unshare");
    run.args(["--user", "--map-root-user", program, "sh", "-c"]);
    run.arg(with_prologue(&directory.to_string_lossy(), script));
    home.surround(&mut run);
    run.env("PATH", &applets);
    Some(finish(&mut run, b"", LIMIT))
}

/// The script must do the same on the kernel's file system and in a container's, with each storage driver.
#[track_caller]
pub fn same_as_the_kernel(script: &str) {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let Some(expected) = on_the_kernel(&home, script) else { return skip("no static busybox on the host") };
    if expected.stderr.contains("unshare:") {
        return skip("user namespaces are forbidden here");
    }
    let image = busybox();
    let script = with_prologue("/var/oracle", script);
    for driver in DRIVERS {
        let options = ["run", "--rm", "--network", "none", "--storage-driver", driver];
        let ours = home.run(&[&options[..], &[&image, "sh", "-c", &script]].concat());
        assert_eq!(
            (ours.code, &ours.stdout),
            (expected.code, &expected.stdout),
            "kernel: {expected:#?}\n{driver}: {ours:#?}"
        );
    }
}

/// podman with a store below this home.
pub fn podman_of(home: &Home) -> Command {
    let mut podman = Command::new("podman");
    podman.args(["--cgroup-manager=cgroupfs", "--root"]).arg(home.directory.join("podman"));
    podman.arg("--runroot").arg(home.directory.join("podman-run"));
    home.surround(&mut podman);
    podman
}

/// Whether podman or its runtime could not start the container, which says nothing about ours. In a virtual machine real
/// root may lack the right to raise a limit ("OCI permission denied"); crun serves no hybrid cgroups ("OCI runtime error").
pub fn podman_cannot_run(done: &Done) -> bool {
    let runtime_failed = ["OCI permission denied", "OCI runtime error"].iter().any(|words| done.stderr.contains(words));
    done.code == 125 || (done.code == 126 && runtime_failed)
}

/// Deletes podman's store, and ends the process by which it keeps its user namespace. The mount of the store on itself, which
/// it makes for root and may leave, goes too.
pub fn end_podman(home: &Home) {
    for end in [["system", "reset", "-f"].as_slice(), &["system", "migrate"]] {
        finish(podman_of(home).args(end), b"", LIMIT);
    }
    finish(Command::new("umount").args(["-q", "-l"]).arg(home.directory.join("podman/overlay")), b"", LIMIT);
}

/// The same command line of an engine must give the same output and code under podman (with the loopback registry).
#[track_caller]
pub fn same_as_podman(options: &[&str], script: &str) {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let mut arguments = vec!["run", "--rm"];
    arguments.extend(options);
    arguments.extend([image.as_str(), "sh", "-c", script]);
    let mut podman = podman_of(&home);
    podman.args(&arguments[..1]).arg("--tls-verify=false").args(&arguments[1..]);
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let expected = finish(&mut podman, b"", Duration::from_mins(2));
    end_podman(&home);
    if podman_cannot_run(&expected) {
        return skip("podman cannot run containers here");
    }
    let ours = home.run(&arguments);
    assert_eq!((ours.code, &ours.stdout), (expected.code, &expected.stdout), "podman: {expected:#?}\nours: {ours:#?}");
}

/// A script of command lines of an engine, which it calls `e`, must print the same under podman; `$IMAGE` is the small image.
#[track_caller]
pub fn same_life_as_podman(script: &str) {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let image = busybox();
    let run = |engine: &Command, script: &str| {
        let words = std::iter::once(engine.get_program()).chain(engine.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("e() {{ {} \"$@\"; }}; {script}", words.join(" "))]);
        home.surround(shell.env("IMAGE", &image));
        finish(shell.env("IMAGE", &image), b"", Duration::from_mins(2))
    };
    let podman = podman_of(&home);
    let tried = run(&podman, "e pull -q --tls-verify=false $IMAGE >/dev/null; e run --rm $IMAGE true");
    let expected = (tried.code == 0).then(|| run(&podman, script));
    run(&podman, "e rm -fa");
    end_podman(&home);
    let Some(expected) = expected else { return skip("podman cannot run containers here") };
    let ours = run(&home.command(&[]), script);
    assert_eq!((ours.code, &ours.stdout), (expected.code, &expected.stdout), "podman: {expected:#?}\nours: {ours:#?}");
}
