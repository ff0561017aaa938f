//! `host:`: a copy-on-write view of this machine's own root file system.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;

use support::{Home, Need};

#[test]
fn the_hosts_programs_run_without_any_image() {
    let Some(home) = Home::new(&[Need::Fuse]) else { return };
    let seen = home.ok(&["run", "--rm", "host:", "sh", "-c", "id -u; cat /etc/os-release"]);
    assert_eq!(seen, format!("0\n{}", fs::read_to_string("/etc/os-release").unwrap()));
}

#[test]
fn changes_never_reach_the_host_and_are_listed() {
    let Some(home) = Home::new(&[Need::Fuse]) else { return };
    let name = format!("sublet-test-{}", support::unique());
    let script = format!("echo x >/etc/{name} && cat /etc/{name} && rm /etc/os-release");
    assert_eq!(home.ok(&["run", "--name", "changer", "host:", "sh", "-c", &script]), "x\n");
    assert!(!Path::new("/etc").join(&name).exists(), "the host has the new file");
    assert!(Path::new("/etc/os-release").exists(), "the host has lost a file");
    let listed = home.ok(&["diff", "changer"]);
    assert!(listed.contains(&format!("A /etc/{name}\n")) && listed.contains("D /etc/os-release\n"), "{listed}");
}

#[test]
fn homes_and_runtime_files_of_the_host_are_not_in_it() {
    let Some(home) = Home::new(&[Need::Fuse]) else { return };
    fs::write(home.path("secret"), "s").unwrap();
    let secret = home.path("secret");
    let script =
        format!("test -e {} && echo seen; ls -A /run/user /tmp 2>/dev/null | grep -v : | wc -w", secret.display());
    assert_eq!(home.ok(&["run", "--rm", "host:", "sh", "-c", &script]), "0\n");
}

#[test]
fn what_the_caller_may_not_read_is_not_readable_inside() {
    let Some(home) = Home::new(&[Need::Fuse, Need::PlainUser]) else { return };
    let seen = home.ok(&["run", "--rm", "host:", "sh", "-c", "cat /etc/shadow 2>/dev/null || echo refused"]);
    assert_eq!(seen, "refused\n");
}

#[test]
fn directories_that_the_caller_may_not_read_are_empty_and_listed() {
    let Some(home) = Home::new(&[Need::Fuse, Need::PlainUser]) else { return };
    let usual = ["/lost+found", "/etc/ssl/private", "/var/cache/ldconfig", "/var/cache/apt/archives/partial"];
    let closed =
        |path: &&str| fs::read_dir(path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    let Some(closed) = usual.into_iter().find(closed) else {
        return support::skip("no directory of this machine is closed to the caller");
    };
    let looked = home.ok(&["run", "--name", "looker", "host:", "ls", "-A", closed, "/etc/alternatives"]);
    let shown = looked.starts_with("/etc/alternatives:\n") && looked.ends_with(&format!("\n\n{closed}:\n"));
    assert!(shown, "{looked}");
    assert_eq!(home.inspect("looker", "{{json .HostClosed}}"), format!("[\"{closed}\"]"));
}

/// `--host-home` binds a directory that can be written: which one must be beyond doubt.
#[test]
fn the_root_directory_is_no_home() {
    let Some(home) = Home::new(&[Need::Fuse]) else { return };
    let run = |variable: Option<&str>| {
        let mut command = home.command(&["run", "--rm", "--host-home", "host:", "sh", "-c", "grep -c . $1", "sh"]);
        command.arg("/proc/self/mountinfo");
        match variable {
            Some(value) => command.env("HOME", value),
            None => command.env_remove("HOME"),
        };
        support::finish(&mut command, b"", support::LIMIT)
    };
    for root in ["/", "//", "/usr/.."] {
        let done = run(Some(root));
        assert!(done.code == 125 && done.stderr.contains("is the root directory, not a home"), "{root}: {done:#?}");
        assert!(done.stderr.contains("hint: set HOME"), "{root}: {done:#?}");
    }
    let done = run(Some("/no/such/home"));
    assert!(done.code == 125 && done.stderr.contains("/no/such/home"), "{done:#?}");
    // What is no absolute path counts as not set, and then /etc/passwd tells.
    let uid = nix::unistd::getuid();
    let told = nix::unistd::User::from_uid(uid).unwrap().filter(|user| user.dir.is_dir());
    for variable in [None, Some("relative/home"), Some("")] {
        let done = run(variable);
        match &told {
            Some(_) => assert_eq!(done.code, 0, "{variable:?}: {done:#?}"),
            None => assert_eq!(done.code, 125, "{variable:?}: {done:#?}"),
        }
    }
}
