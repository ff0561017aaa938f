//! Machines that lack something: devices, namespaces, a runtime directory.
//!
//! Each lack is made in a mount or user namespace of the test, so the machine itself stays as it is.

use std::process::Command;

use crate::support::{Done, Home, LIMIT, Need, busybox, finish, skip};

/// Runs a shell script as the caller's root in a user and mount namespace of its own; `None` where those are forbidden.
fn in_namespaces(home: &Home, script: &str) -> Option<Done> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    home.surround(&mut command);
    let done = finish(&mut command, b"", LIMIT);
    if done.stderr.contains("unshare:") || done.stderr.contains("mount:") {
        skip("user and mount namespaces of a test are forbidden here");
        return None;
    }
    Some(done)
}

/// Hides a device behind another file.
fn without(device: &str) -> String {
    format!("mount --bind /dev/full {device} && ")
}

#[test]
fn without_fuse_a_lower_rung_is_taken_and_named() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script =
        format!("{}{} run --rm --network none {} echo alive", without("/dev/fuse"), home.bin().display(), busybox());
    let Some(done) = in_namespaces(&home, &script) else { return };
    let named = done.stderr.contains("/dev/fuse");
    assert!(named, "the missing device must be named: {done:#?}");
    assert!((done.code == 0 && done.stdout == "alive\n") || done.code == 125, "{done:#?}");
}

#[test]
fn without_tun_the_network_says_so() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = format!("{}{} run --rm {} echo alive", without("/dev/net/tun"), home.bin().display(), busybox());
    let Some(done) = in_namespaces(&home, &script) else { return };
    assert!(done.stderr.contains("/dev/net/tun"), "the missing device must be named: {done:#?}");
    assert!((done.code == 0 && done.stdout == "alive\n") || done.code == 125, "{done:#?}");
}

#[test]
fn without_user_namespaces_the_sysctl_is_named() {
    let Some(home) = Home::with_busybox(&[Need::PlainUser]) else { return };
    // The limit of a user namespace holds for those made inside it.
    let script = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -all --inh-caps -all {} run --rm {} true",
        home.bin().display(),
        busybox()
    );
    let Some(done) = in_namespaces(&home, &script) else { return };
    if done.stderr.contains("max_user_namespaces: Read-only") || done.stderr.contains("can't create") {
        return skip("the sysctl cannot be written here");
    }
    assert_eq!(done.code, 125, "{done:#?}");
    assert!(done.stderr.contains("max_user_namespaces") && done.stderr.contains("hint:"), "{done:#?}");
}

#[test]
fn without_a_runtime_directory_another_is_taken() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let mut command = home.command(&["run", "--rm", "--network", "none", &image, "echo", "alive"]);
    command.env_remove("XDG_RUNTIME_DIR");
    let done = finish(&mut command, b"", LIMIT);
    assert_eq!((done.code, done.stdout.as_str()), (0, "alive\n"), "{done:#?}");
}

#[test]
fn a_runtime_directory_of_somebody_else_is_refused() {
    let Some(home) = Home::with_busybox(&[Need::PlainUser]) else { return };
    let image = busybox();
    let mut command = home.command(&["run", "--rm", &image, "true"]);
    command.env("XDG_RUNTIME_DIR", "/");
    let done = finish(&mut command, b"", LIMIT);
    assert!(!done.stderr.contains("panicked") && !done.stderr.is_empty(), "{done:#?}");
}

#[test]
fn without_subordinate_ids_one_id_is_used_and_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if crate::support::identity() != "one-id" {
        return skip("the caller has subordinate ids");
    }
    let done = home.run(&["run", "--rm", &busybox(), "stat", "-c", "%u %g", "/var/owned/file"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "1234 5678\n"), "{done:#?}");
    assert!(done.stderr.contains("subuid"), "the step down is said with its fix: {done:#?}");
}
