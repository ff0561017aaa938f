//! Copies between containers and the host, and archives of them, of containers that run and of those that do not.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{DRIVERS, Home, LIMIT, Need, busybox, end, eventually, finish, start};

/// The states of a container in which its files can be reached.
const STATES: [&str; 3] = ["created", "running", "exited"];

/// A container `box` in a state.
fn container(home: &Home, state: &str, options: &[&str]) {
    let image = busybox();
    home.ok(&[&["create", "--name", "box"], options, &[image.as_str(), "sleep", "600"]].concat());
    if state != "created" {
        home.ok(&["start", "box"]);
    }
    if state == "exited" {
        home.ok(&["stop", "-t", "0", "box"]);
    }
}

/// What a shell line prints in a container, which is started for that.
fn inside(home: &Home, line: &str) -> String {
    home.ok(&["start", "box"]);
    home.ok(&["exec", "box", "sh", "-c", line])
}

#[test]
fn files_go_both_ways_whatever_the_state() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        for state in STATES {
            container(&home, state, &["--storage-driver", driver, "-v", "kept:/volume"]);
            let (from, to) = (home.path("from"), home.path("to"));
            fs::create_dir_all(from.join("below")).unwrap();
            fs::write(from.join("below/file"), state).unwrap();
            fs::set_permissions(from.join("below/file"), PermissionsExt::from_mode(0o640)).unwrap();
            symlink("below/file", from.join("link")).unwrap();
            fs::hard_link(from.join("below/file"), from.join("same")).unwrap();
            assert_eq!(home.ok(&["cp", from.to_str().unwrap(), "box:/tmp"]), "");
            home.ok(&["cp", from.join("same").to_str().unwrap(), "box:volume/x"]);
            home.ok(&["cp", "box:/tmp/from", to.to_str().unwrap()]);
            assert_eq!(fs::read_to_string(to.join("below/file")).unwrap(), state);
            assert_eq!(
                fs::metadata(to.join("same")).unwrap().ino(),
                fs::metadata(to.join("below/file")).unwrap().ino()
            );
            assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("below/file"));
            let looks =
                |path: &Path| fs::metadata(path.join("same")).map(|found| (found.mode(), found.mtime(), found.uid()));
            assert_eq!(looks(&to).unwrap(), looks(&from).unwrap(), "{driver}, {state}");
            let seen = home.ok(&["ps", "-a", "--format", "{{.State}}"]);
            assert_eq!(seen, format!("{state}\n"), "{driver}");
            let line = "stat -c '%U %G %a' /tmp/from/same; cat /volume/x";
            assert_eq!(inside(&home, line), format!("root root 640\n{state}"), "{driver}, {state}");
            home.ok(&["rm", "-f", "box"]);
            home.ok(&["volume", "rm", "kept"]);
            fs::remove_dir_all(&from).unwrap();
            fs::remove_dir_all(&to).unwrap();
        }
    }
    home.assert_store_is_ours();
}

/// The table of docker(1): what is there at the destination decides what is made.
#[test]
fn the_destination_decides() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    container(&home, "running", &[]);
    home.ok(&["exec", "box", "sh", "-c", "mkdir -p /s/d /t; echo x >/s/f; echo y >/s/d/g; ln -s f /s/l"]);
    let at = |name: &str| home.path(name).to_str().unwrap().to_owned();
    fs::create_dir(home.path("dir")).unwrap();
    fs::write(home.path("file"), "old").unwrap();
    let read = |name: &str| fs::read_to_string(home.path(name)).unwrap();
    home.ok(&["cp", "box:/s/f", &at("new")]);
    home.ok(&["cp", "box:/s/f", &at("file")]);
    home.ok(&["cp", "box:/s/f", &at("dir")]);
    assert_eq!((read("new"), read("file"), read("dir/f")), ("x\n".into(), "x\n".into(), "x\n".into()));
    home.ok(&["cp", "box:/s", &at("made")]);
    home.ok(&["cp", "box:/s", &at("dir")]);
    home.ok(&["cp", "box:/s/d/.", &at("dir")]);
    home.ok(&["cp", "box:/s/d/.", &at("contents")]);
    assert_eq!(
        (read("made/d/g"), read("dir/s/d/g"), read("dir/g"), read("contents/g")),
        ("y\n".into(), "y\n".into(), "y\n".into(), "y\n".into())
    );
    home.ok(&["cp", "box:/s/l", &at("link")]);
    home.ok(&["cp", "-L", "box:/s/l", &at("followed")]);
    assert_eq!(fs::read_link(home.path("link")).unwrap(), Path::new("f"));
    assert_eq!(read("followed"), "x\n");
    for (from, to, words) in [
        ("box:/s", at("file"), "cannot copy directory"),
        ("box:/s/f", at("absent/"), "no such directory"),
        ("box:/s/f", at("file/"), "not a directory"),
        ("box:/s/f", at("absent/below"), "no such directory"),
        ("box:/not/there", at("new"), "Could not find the file /not/there in container box"),
        ("box:/s/f/", at("new"), "ENOTDIR"),
    ] {
        let said = home.fails(1, &["cp", from, &to]);
        assert!(said.contains(words), "{from} {to}: {said}");
    }
    // The other way the rules are the same.
    fs::create_dir_all(home.path("h/d")).unwrap();
    fs::write(home.path("h/d/g"), "z").unwrap();
    home.ok(&["cp", &at("h/d/g"), "box:/t/g"]);
    home.ok(&["cp", "h/d", "box:/t/made"]);
    home.ok(&["cp", "./h/d", "box:/t"]);
    home.ok(&["container", "cp", "h/d/.", "box:t/contents/"]);
    assert_eq!(home.ok(&["exec", "box", "sh", "-c", "cd /t; cat g made/g d/g contents/g"]), "zzzz");
    for (from, to, words) in [
        ("h/d", "box:/t/g", "cannot copy directory"),
        ("h/d/g", "box:/t/absent/", "no such directory"),
        ("h/absent", "box:/t", "No such file or directory"),
        ("h/d", "h/x", "must specify at least one container source"),
        ("box:/s", "box:/t", "copying between containers is not supported"),
        ("nobody:/s", "h", "No such container: nobody"),
        ("h/d", "box:/s/f", "cannot copy directory"),
    ] {
        let said = home.fails(1, &["cp", from, to]);
        assert!(said.contains(words), "{from} {to}: {said}");
    }
    home.ok(&["exec", "box", "mkdir", "/t/x"]);
    fs::create_dir(home.path("h/e")).unwrap();
    fs::write(home.path("h/e/x"), "").unwrap();
    assert!(home.fails(1, &["cp", "h/e/.", "box:/t"]).contains("cannot overwrite directory with non-directory"));
}

#[test]
fn archives_go_through_the_standard_streams() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    container(&home, "exited", &[]);
    fs::create_dir(home.path("tree")).unwrap();
    fs::write(home.path("tree/file"), "x").unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-cf", "tree.tar", "--owner=5", "--group=6", "--numeric-owner", "tree"]);
    home.surround(&mut tar);
    assert_eq!(finish(&mut tar, b"", LIMIT).code, 0);
    let archive = fs::read(home.path("tree.tar")).unwrap();
    let done = home.run_with_input(&["cp", "-", "box:/tmp"], &archive);
    if Home::new(&[Need::Subids]).is_none() {
        // Its owners have no numbers here.
        assert_eq!(done.code, 1, "{done:#?}");
        return;
    }
    assert_eq!(done.code, 0, "{done:#?}");
    let done = home.run_with_input(&["cp", "-", "box:/tmp/tree/file"], &archive);
    assert!(done.code == 1 && done.stderr.contains("destination must be a directory"), "{done:#?}");
    let mut command = home.command(&["cp", "box:/tmp/tree", "-"]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    let mut tar = Command::new("tar");
    home.surround(tar.args(["-tvf", "-", "--numeric-owner"]));
    let listed = finish(&mut tar, &output.stdout, LIMIT).stdout;
    assert!(listed.lines().any(|line| line.contains(" 5/6 ") && line.ends_with(" tree/file")), "{listed}");
    assert_eq!(inside(&home, "stat -c '%u %g' /tmp/tree /tmp/tree/file"), "5 6\n5 6\n");
    // Who stops reading is told nothing but that.
    let mut child = start(home.command(&["cp", "box:/", "-"]).stdin(Stdio::null()));
    drop(child.stdout.take());
    assert!(end(child, LIMIT).code != 0);
}

#[test]
fn owners_are_kept_when_asked() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    container(&home, "running", &["--user", "7:8"]);
    fs::write(home.path("file"), "x").unwrap();
    home.ok(&["cp", "file", "box:/tmp/plain"]);
    assert_eq!(inside(&home, "stat -c '%u %g' /tmp/plain"), "0 0\n");
    let own = fs::metadata(home.path("file")).unwrap();
    home.ok(&["cp", "-a", "file", "box:/tmp/kept"]);
    assert_eq!(inside(&home, "stat -c '%u %g' /tmp/kept"), format!("{} {}\n", own.uid(), own.gid()));
    home.ok(&["exec", "box", "sh", "-c", "echo x >/tmp/su; chmod 4755 /tmp/su"]);
    home.ok(&["cp", "box:/tmp/su", "su"]);
    let su = fs::metadata(home.path("su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid()), (0o755, own.uid()), "nobody gains rights by a copy");
}

/// What a container does meanwhile leads neither side out of where it is.
#[test]
fn a_hostile_container_leads_nobody_out() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    container(&home, "running", &[]);
    fs::create_dir(home.path("secret")).unwrap();
    fs::write(home.path("secret/key"), "of the host").unwrap();
    let secret = home.path("secret").to_str().unwrap().to_owned();
    home.ok(&[
        "exec",
        "box",
        "sh",
        "-c",
        &format!("ln -s {secret} /tmp/l; ln -s / /tmp/root; ln -s /proc/1/root /tmp/p"),
    ]);
    for path in [
        "box:/tmp/l/key",
        "box:/tmp/root/tmp/l/key",
        &format!("box:/tmp/p/{secret}/key"),
        &format!("box:../../../{secret}/key"),
    ] {
        let said = home.fails(1, &["cp", path, "stolen"]);
        assert!(said.contains("Could not find the file"), "{path}: {said}");
    }
    fs::write(home.path("mine"), "x").unwrap();
    home.fails(1, &["cp", "mine", "box:/tmp/l/key"]);
    assert_eq!(fs::read_to_string(home.path("secret/key")).unwrap(), "of the host");
    // Directories that become links, and back, while they are copied.
    let race = format!(
        "mkdir -p /r/d; echo in >/r/d/key; ln -s {secret} /r/x; while :; do mv /r/d /r/e; mv /r/x /r/d; mv /r/d /r/x; mv /r/e /r/d; done"
    );
    home.ok(&["exec", "-d", "box", "sh", "-c", &race]);
    for _ in 0..40 {
        home.run(&["cp", "box:/r", "out"]);
        let copied = fs::symlink_metadata(home.path("out/d")).is_ok_and(|found| found.is_dir());
        if copied && let Ok(text) = fs::read_to_string(home.path("out/d/key")) {
            assert_ne!(text, "of the host");
        }
        home.run(&["cp", "mine", "box:/r/d/key"]);
        let _ = fs::remove_dir_all(home.path("out"));
    }
    assert_eq!(fs::read_to_string(home.path("secret/key")).unwrap(), "of the host");
    assert_eq!(fs::read_dir(home.path("secret")).unwrap().count(), 1);
}

/// A copy that is killed leaves the container as it was, and the next command what is to be tidied up.
#[test]
fn a_copy_that_is_killed_leaves_the_container_at_rest() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    container(&home, "exited", &[]);
    let mut child = start(home.command(&["cp", "-", "box:/tmp"]).stdin(Stdio::piped()));
    child.stdin.as_mut().unwrap().write_all(&[0; 100]).unwrap();
    eventually("its files are there", || {
        !crate::support::processes(|words| words.first().is_some_and(|word| word == "sublet-monitor")).is_empty()
    });
    assert_eq!(home.ok(&["ps", "-a", "--format", "{{.State}}"]), "exited\n");
    child.kill().unwrap();
    end(child, LIMIT);
    home.ok(&["start", "box"]);
    assert_eq!(home.inspect("box", "{{.State.Status}}"), "running");
    home.ok(&["stop", "-t", "0", "box"]);
    home.assert_store_is_ours();
}
