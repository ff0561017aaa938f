//! Volumes whose writes stay in the container: seen, brought into the source, dropped.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Home, Need, busybox, identity};

/// A directory with files of all kinds.
fn source(home: &Home) -> PathBuf {
    let source = home.path("source");
    fs::create_dir_all(source.join("dir/deep")).unwrap();
    fs::create_dir_all(source.join("doomed/deep")).unwrap();
    fs::create_dir_all(source.join("replaced/old")).unwrap();
    for name in ["kept", "changed", "gone", "dir/deep/file", "doomed/deep/file", "replaced/old/file", "mode"] {
        fs::write(source.join(name), format!("{name}\n")).unwrap();
    }
    symlink("kept", source.join("link")).unwrap();
    source
}

/// Names, kinds, modes and contents below a directory.
fn tree(directory: &Path) -> String {
    let script = "cd \"$1\" && find . | sort | while read f; do stat -c '%n %F %a %h' \"$f\"; [ -L \"$f\" ] && readlink \"$f\"; \
                  [ -f \"$f\" ] && cat \"$f\"; done";
    let done = Command::new("sh").args(["-c", script, "sh"]).arg(directory).output().unwrap();
    assert!(done.stderr.is_empty() && done.stdout.starts_with(b". directory "), "{done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

const WORK: &str = "cd /src && echo more >>changed && rm gone && rm -r doomed && rm -r replaced && mkdir replaced && \
                    echo new >replaced/new && chmod 750 mode && ln -sf changed link && mkdir -p a/b && echo x >a/b/x && \
                    ln a/b/x hard && mkfifo pipe && echo y >dir/deep/y && mv kept kept2";
const CHANGES: &str = "A /src/a\nA /src/a/b\nA /src/a/b/x\nC /src/changed\nC /src/dir\nC /src/dir/deep\nA /src/dir/deep/y\n\
                       D /src/doomed\nD /src/gone\nA /src/hard\nD /src/kept\nA /src/kept2\nC /src/link\nC /src/mode\nA /src/pipe\n\
                       C /src/replaced\nA /src/replaced/new\nD /src/replaced/old\n";

#[test]
fn writes_stay_in_the_container_until_they_are_applied() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let source = source(&home);
    let before = tree(&source);
    let bind = format!("{}:/src:cow", source.display());
    home.ok(&["run", "--name", "worker", "-v", &bind, &image, "sh", "-c", WORK]);
    assert_eq!(tree(&source), before, "the source is as it was");
    home.assert_store_is_ours();
    assert_eq!(home.ok(&["volume", "diff", "worker"]), CHANGES);
    assert_eq!(home.ok(&["volume", "diff", "worker:/src"]), CHANGES);
    // What the same does to a plain bind is what applying it gives.
    let copy = home.path("copy");
    assert!(Command::new("cp").arg("-a").arg(&source).arg(&copy).status().unwrap().success());
    home.sh(&["-v", &format!("{}:/src", copy.display())], WORK);
    assert_eq!(home.ok(&["volume", "apply", "worker"]), CHANGES);
    assert_eq!(tree(&source), tree(&copy));
    assert_eq!(home.ok(&["volume", "diff", "worker"]), "");
    home.ok(&["rm", "worker"]);
}

#[test]
fn they_outlive_the_run_and_can_be_dropped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let source = source(&home);
    let bind = format!("{}:/src:O", source.display());
    home.ok(&["run", "-d", "--name", "worker", "-v", &bind, &image, "sleep", "600"]);
    home.ok(&["exec", "worker", "sh", "-c", "echo x >/src/new"]);
    for verb in ["apply", "drop"] {
        let said = home.fails(1, &["volume", verb, "worker"]);
        assert!(said.contains("is running") && said.contains("hint: stop it first"), "{said}");
    }
    assert_eq!(home.ok(&["volume", "diff", "worker"]), "A /src/new\n");
    home.ok(&["kill", "worker"]);
    home.ok(&["wait", "worker"]);
    assert_eq!(home.ok(&["volume", "diff", "worker"]), "A /src/new\n");
    assert!(!source.join("new").exists());
    home.ok(&["volume", "drop", "worker:/src/"]);
    assert_eq!(home.ok(&["volume", "diff", "worker"]), "");
    assert_eq!(home.ok(&["volume", "apply", "worker"]), "");
    home.ok(&["rm", "worker"]);
    // With --rm it goes with the container.
    home.sh(&["-v", &bind], "rm /src/kept");
    assert!(source.join("kept").exists());
    assert_eq!(fs::read_dir(crate::machine(&home).join("snaps")).unwrap().count(), 0);
}

#[test]
fn a_volume_of_ours_can_be_below_too() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let image = busybox();
    home.sh(&["-v", "data:/data"], "echo x >/data/x; chown 33:33 /data/x; chmod 600 /data/x");
    home.ok(&[
        "run",
        "--name",
        "worker",
        "-v",
        "data:/data:cow",
        &image,
        "sh",
        "-c",
        "cat /data/x; echo y >/data/x; touch /data/z; chown 44 /data/z",
    ]);
    home.assert_store_is_ours();
    assert_eq!(home.sh(&["-v", "data:/data"], "cat /data/x; ls /data"), "x\nx\n");
    // Whose the root is the layer has from the volume as it is in a container.
    home.sh(&["-v", "data:/data"], "chown 33:44 /data; chmod 700 /data");
    assert_eq!(home.sh(&["-v", "data:/data:cow"], "stat -c '%u:%g %a' /data"), "33:44 700\n");
    // Others may have the volume: it is not written to behind their back.
    let said = home.fails(1, &["volume", "apply", "worker"]);
    assert!(said.contains("what is kept from volume data can be seen and dropped, not applied to it"), "{said}");
    assert_eq!(home.sh(&["-v", "data:/data"], "cat /data/x; ls /data"), "x\nx\n");
    assert_eq!(home.ok(&["volume", "diff", "worker"]), "C /data/x\nA /data/z\n");
    home.ok(&["volume", "drop", "worker"]);
    assert_eq!(home.ok(&["volume", "diff", "worker"]), "");
    home.ok(&["rm", "worker"]);
}

#[test]
fn several_are_told_apart_and_what_cannot_be_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let source = source(&home);
    let (a, b) = (format!("{}:/a:cow", source.display()), format!("{}:/b:cow", source.display()));
    home.ok(&[
        "run",
        "--name",
        "worker",
        "-v",
        &a,
        "-v",
        &b,
        &image,
        "sh",
        "-c",
        "echo a >/a/new; cat /b/new 2>/dev/null || rm /b/gone",
    ]);
    let said = home.fails(1, &["volume", "diff", "worker"]);
    assert!(said.contains("several volumes") && said.contains("worker:/a, worker:/b"), "{said}");
    assert_eq!(home.ok(&["volume", "diff", "worker:/a"]), "A /a/new\n");
    assert_eq!(home.ok(&["volume", "apply", "worker:/b"]), "D /b/gone\n");
    assert!(!source.join("gone").exists() && !source.join("new").exists());
    let said = home.fails(1, &["volume", "diff", "worker:/c"]);
    assert!(said.contains("has no volume at /c whose writes it keeps"), "{said}");
    let file = format!("{}:/f:cow", source.join("kept").display());
    let said = home.fails(125, &["run", "--rm", "-v", &file, &image, "true"]);
    assert!(said.contains("is no directory"), "{said}");
    let said = home.fails(125, &["run", "--mount", "src=data,dst=/d,volume-subpath=a,cow", &image, "true"]);
    assert!(said.contains("a part of a volume cannot be kept from it"), "{said}");
    let whole = format!("{}:/h:cow", home.directory.display());
    let said = home.fails(125, &["run", "--rm", "-v", &whole, &image, "true"]);
    assert!(said.contains("sublet's own data directory lies in"), "{said}");
}

#[test]
fn modes_and_owners_are_applied_as_far_as_the_caller_may() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let source = source(&home);
    let bind = format!("{}:/src:cow", source.display());
    let script = "cd /src; echo s >secret; chmod 400 secret; echo o >other; chown 33:44 other; chmod 4755 other; mkdir d; chmod 1777 d; mkdir c; echo z >c/in; chmod 555 c";
    home.ok(&["run", "--name", "worker", "-v", &bind, &busybox(), "sh", "-c", script]);
    let done = home.run(&["volume", "apply", "worker"]);
    let mode = |name: &str| fs::metadata(source.join(name)).unwrap().permissions().mode() & 0o7777;
    let owner = |name: &str| fs::metadata(source.join(name)).unwrap().uid();
    assert_eq!([mode("secret"), mode("d"), mode("c")], [0o400, 0o1777, 0o555], "{done:#?}");
    assert_eq!(fs::read_to_string(source.join("c/in")).unwrap(), "z\n");
    // So that the home can be deleted.
    fs::set_permissions(source.join("c"), fs::Permissions::from_mode(0o755)).unwrap();
    if identity() == "root" {
        assert_eq!((owner("other"), mode("other")), (33, 0o4755));
    } else {
        assert_eq!((owner("other"), mode("other")), (nix::unistd::getuid().as_raw(), 0o755));
        assert!(done.stderr.contains("1 files belonged to other users of the container"), "{done:#?}");
    }
}

#[test]
fn links_in_the_source_lead_nowhere_else() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let (source, outside) = (source(&home), home.path("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "theirs\n").unwrap();
    let bind = format!("{}:/src:cow", source.display());
    home.ok(&[
        "run",
        "--name",
        "worker",
        "-v",
        &bind,
        &busybox(),
        "sh",
        "-c",
        "cd /src; echo x >dir/deep/file; echo y >dir/file; rm -r doomed",
    ]);
    // Meanwhile somebody has put links in the way.
    fs::remove_dir_all(source.join("dir")).unwrap();
    symlink(&outside, source.join("dir")).unwrap();
    fs::remove_dir_all(source.join("doomed")).unwrap();
    symlink(&outside, source.join("doomed")).unwrap();
    home.run(&["volume", "apply", "worker"]);
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "theirs\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(source.join("dir/deep/file")).unwrap(), "x\n");
    assert!(fs::symlink_metadata(source.join("doomed")).is_err());
}

#[test]
fn an_apply_that_is_killed_is_done_by_the_next_one() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let source = source(&home);
    let saved = home.path("saved");
    assert!(Command::new("cp").arg("-a").arg(&source).arg(&saved).status().unwrap().success());
    let bind = format!("{}:/src:cow", source.display());
    let mut wanted = String::new();
    for step in 1.. {
        home.ok(&["run", "--name", "worker", "-v", &bind, &image, "sh", "-c", WORK]);
        let mut command = home.command(&["volume", "apply", "worker"]);
        let done = command.env("SUBLET_KILL_AT", format!("command:{step}")).stdout(Stdio::null()).output().unwrap();
        home.ok(&["volume", "apply", "worker"]);
        let seen = tree(&source);
        if wanted.is_empty() {
            wanted.clone_from(&seen);
        }
        assert_eq!(seen, wanted, "step {step}");
        home.ok(&["rm", "worker"]);
        fs::remove_dir_all(&source).unwrap();
        assert!(Command::new("cp").arg("-a").arg(&saved).arg(&source).status().unwrap().success());
        if done.status.code() == Some(0) {
            assert!(step > 10, "only {step} steps were seen");
            return;
        }
    }
}
