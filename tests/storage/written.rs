//! Images that are written out, by the drivers `tree` and `copy`: what a copy cannot have, disks that are full, closed directories,
//! and who has the tree of an image.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::tar::{Entry, archive, listing};
use crate::support::{
    DRIVERS, Home, LIMIT, Need, Within, busybox, df, du, eventually, finish, identity, in_namespaces, parent_of,
};

/// The archive of an image with the small image's files and these entries.
fn image_with(home: &Home, entries: &[Entry<'_>]) -> PathBuf {
    let base = home.path("base.tar");
    home.ok(&["create", "--name", "base", &busybox()]);
    home.ok(&["export", "-o", base.to_str().unwrap(), "base"]);
    home.ok(&["rm", "base"]);
    let mut bytes = fs::read(&base).unwrap();
    while bytes.ends_with(&[0; 512]) {
        bytes.truncate(bytes.len() - 512);
    }
    bytes.extend(archive(entries));
    fs::write(&base, bytes).unwrap();
    base
}

fn directory(path: &str, mode: u32) -> Entry<'_> {
    Entry { path, kind: b'5', mode, ..Entry::default() }
}

/// What an export of a container has under some names.
fn exported(home: &Home, container: &str, names: &[&str]) -> Vec<String> {
    let file = home.path("exported.tar");
    home.ok(&["export", "-o", file.to_str().unwrap(), container]);
    listing(&file).into_iter().filter(|line| names.iter().any(|name| line.contains(name))).collect()
}

/// The machine's directory in a data directory.
fn machine(home: &Home) -> PathBuf {
    fs::read_dir(home.store().join("hosts")).unwrap().next().unwrap().unwrap().path()
}

/// The trees of images that are there.
fn trees(home: &Home) -> Vec<PathBuf> {
    let trees = fs::read_dir(machine(home).join("trees")).into_iter().flatten().flatten();
    trees.map(|tree| tree.path()).filter(|tree| tree.join("tree").exists()).collect()
}

#[test]
fn devices_of_an_image_are_told_of_and_kept() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let node = |path, kind, device| Entry { path, kind, device, mode: 0o640, owner: (3, 4), ..Entry::default() };
    let archive = image_with(
        &home,
        &[
            directory("var/nodes/", 0o755),
            node("var/nodes/null", b'3', (1, 3)),
            node("var/nodes/disk", b'4', (8, 1)),
            node("dev/extra", b'3', (1, 5)),
            directory("var/gone/", 0o755),
            node("var/gone/zero", b'3', (1, 5)),
        ],
    );
    home.ok(&["import", archive.to_str().unwrap(), "nodes"]);
    let names = ["var/nodes", "var/gone", "dev/extra"];
    let is_node = |line: &String| line.starts_with(['b', 'c']);
    let mut wanted = None;
    for driver in DRIVERS {
        let options = ["run", "--name", driver, "--network", "none", "--storage-driver", driver, "nodes"];
        let done = home.run(&[&options[..], &["sh", "-c", "rm -r /var/gone; echo x >/var/nodes/new"]].concat());
        let said = done.stderr.lines().filter(|line| line.contains("lacks 3 device nodes of its image")).count();
        let written = matches!(driver, "tree" | "copy");
        assert!(done.code == 0 && said == usize::from(written), "{driver}: {done:#?}");
        // Not again.
        assert!(!home.run(&["start", "-a", driver]).stderr.contains("device nodes"), "{driver}");
        let diff = "C /var\nD /var/gone\nC /var/nodes\nA /var/nodes/new\n";
        assert_eq!(home.ok(&["diff", driver]), diff, "{driver}");
        let mut found = exported(&home, driver, &names);
        found.retain(is_node);
        let wanted = wanted.get_or_insert(found.clone());
        assert!(wanted.len() == 3 && found == *wanted, "{driver}: {found:#?}");
        let image = format!("of-{driver}");
        home.ok(&["commit", driver, &image]);
        home.ok(&["create", "--name", "again", &image]);
        let mut found = exported(&home, "again", &names);
        found.retain(is_node);
        assert_eq!(found, *wanted, "{driver}");
        home.ok(&["rm", "again"]);
    }
}

#[test]
fn what_a_file_system_cannot_hold_stays_in_what_is_made_of_a_copy() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let capability = [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat();
    let (note, capable) =
        ([("SCHILY.xattr.user.note", &b"v"[..])], [("SCHILY.xattr.security.capability", &capability[..])]);
    let kept = image_with(
        &home,
        &[
            Entry { records: &note, ..directory("var/marked/", 0o755) },
            Entry { path: "var/marked/file", records: &note, content: b"text", ..Entry::default() },
            Entry { path: "var/marked/capable", mode: 0o755, records: &capable, content: b"run", ..Entry::default() },
        ],
    );
    // tar(1) lists no capabilities.
    let attributes = |archive: &[u8]| -> [usize; 2] {
        let count = |name: &str| archive.windows(name.len()).filter(|bytes| *bytes == name.as_bytes()).count();
        ["SCHILY.xattr.security.capability=\u{1}", "SCHILY.xattr.user.note=v\n"].map(count)
    };
    let of_image = attributes(&fs::read(&kept).unwrap());
    assert_eq!(of_image, [1, 2]);
    let (bin, kept) = (home.bin().display().to_string(), kept.display().to_string());
    let ramfs = format!("mount -t ramfs -o mode=700 ramfs {}", home.directory.join("data").display());
    let script = format!(
        "{bin} import {kept} marked >/dev/null && {bin} run --name one --network none --storage-driver copy marked \
         sh -c 'echo x >/var/marked/new' && {bin} diff one && {bin} export -o one.tar one && {bin} commit one made >/dev/null && \
         {bin} create --name two made >/dev/null && {bin} export -o two.tar two && {bin} rm one two >/dev/null"
    );
    let Some(done) = in_namespaces(&home, Within::Caller, &ramfs, &script) else { return };
    let diff = "C /var\nC /var/marked\nA /var/marked/new\n";
    assert_eq!((done.code, done.stdout.as_str()), (0, diff), "{done:#?}");
    for file in ["one.tar", "two.tar"] {
        assert_eq!(attributes(&fs::read(home.path(file)).unwrap()), of_image, "{file}");
    }
}

#[test]
fn a_full_disk_is_told_and_nothing_half_made_is_left() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (bin, image) = (home.bin().display().to_string(), busybox());
    let data = home.directory.join("data").display().to_string();
    let run = format!("{bin} run --rm --network none --storage-driver");
    let script = format!(
        "{bin} pull -q {image} >/dev/null || exit 1
         for driver in tree copy; do
             free=$(df --output=avail -B1 {data} | tail -n 1)
             head -c $((free - 400000)) /dev/zero >{data}/fill || exit 1
             {run} $driver {image} true 2>err && echo $driver: there was room
             grep -q 'No space left on device' err && grep -q 'hint: ' err || {{ echo $driver: no word of it; cat err; }}
             find {data}/sublet/hosts/*/trees {data}/sublet/hosts/*/snaps -mindepth 1 2>/dev/null
             rm {data}/fill
             {run} $driver {image} cat /etc/replaced
             {bin} image prune -f >/dev/null
         done"
    );
    let memory = format!("mount -t tmpfs -o size=64m,mode=700 tmpfs {data}");
    let Some(done) = in_namespaces(&home, Within::Caller, &memory, &script) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (0, "second\nsecond\n"), "{done:#?}");
}

#[test]
fn trees_are_counted_and_pruned() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let options = ["run", "--network", "none", "--storage-driver", "tree", "--name", "one", &image, "true"];
    home.ok(&options);
    home.ok(&["run", "--network", "none", "--storage-driver", "copy", "--name", "two", &image, "true"]);
    eventually("their monitors are done", || df(&home, "Containers", "SizeBytes") == du(&machine(&home)));
    let tree_bytes = du(&trees(&home)[0]);
    let of_two = du(&machine(&home).join("snaps").join(home.inspect("two", "{{.Id}}")));
    assert!(tree_bytes > 500_000 && of_two > 500_000, "{tree_bytes} {of_two}");
    // As long as a container has it.
    home.ok(&["image", "prune", "-f"]);
    assert_eq!(trees(&home).len(), 1);
    home.ok(&["rm", "two", "one"]);
    assert_eq!(df(&home, "Containers", "ReclaimableBytes"), tree_bytes);
    for command in [&["image", "prune", "-f"][..], &["container", "prune", "-f"], &["system", "prune", "-f"]] {
        home.run(&options);
        home.ok(&["rm", "-f", "one"]);
        assert_eq!(trees(&home).len(), 1, "{command:?}");
        let said = home.ok(command);
        assert!(!said.contains("reclaimed space: 0B"), "{command:?}: {said}");
        assert_eq!(trees(&home).len(), 0, "{command:?}");
        assert!(!home.ok(&["images", "-q"]).is_empty());
    }
}

/// What a power loss leaves while a container has its files: a tree of an earlier boot, with owners and modes that shut us out.
#[test]
fn a_tree_with_closed_directories_is_written_anew() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let file = Entry { path: "shut/file", mode: 0, owner: (7, 7), content: b"text\n", ..Entry::default() };
    let archive = image_with(&home, &[directory("./", 0), directory("shut/", 0), file]);
    home.ok(&["import", archive.to_str().unwrap(), "closed"]);
    let mut arranged = vec![&[][..]];
    if identity() == "subuids" {
        // Then the root directory is not even ours.
        arranged.push(&["--userns", "keep-id", "-u", "0"]);
    }
    for ids in arranged {
        let options = [&["run", "--network", "none", "--storage-driver", "tree"], ids].concat();
        let look = "stat -c %a / /shut /shut/file; cat /shut/file";
        home.ok(&[&options[..], &["-d", "--name", "one", "closed", "sleep", "600"]].concat());
        let pid = home.inspect("one", "{{.State.Pid}}").parse().unwrap();
        kill(Pid::from_raw(parent_of(pid)), Signal::SIGKILL).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        for tree in trees(&home) {
            fs::write(tree.join("boot"), "another").unwrap();
        }
        let seen = home.ok(&[&options[..], &["--rm", "closed", "sh", "-c", look]].concat());
        assert_eq!(seen, "0\n0\n0\ntext\n", "{ids:?}");
        home.ok(&["rm", "-f", "one"]);
        home.assert_store_is_ours();
    }
    home.ok(&["rmi", "closed"]);
    assert_eq!(trees(&home).len(), 0);
}

#[test]
fn a_copy_out_of_a_container_that_does_not_run_keeps_the_tree_as_it_is() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let options = ["run", "--network", "none", "--storage-driver", "tree"];
    let image = busybox();
    home.ok(&[&options[..], &["--name", "box", &image, "true"]].concat());
    eventually("all is given back", || home.foreign_files() == 0);
    // It stands still until somebody reads.
    let mut copying = home.command(&["cp", "box:/", "-"]);
    let mut copying = copying.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let given = || {
        fs::metadata(trees(&home)[0].join("tree/var/owned/file"))
            .is_ok_and(|file| file.uid() != nix::unistd::getuid().as_raw())
    };
    eventually("the files have their owners", given);
    home.ok(&[&options[..], &["--rm", &image, "true"]].concat());
    home.ok(&["image", "prune", "-f"]);
    assert!(given(), "the copy still has them");
    let mut tar = Command::new("tar")
        .args(["--numeric-owner", "-tvf", "-"])
        .stdin(copying.stdout.take().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut listed = String::new();
    std::io::Read::read_to_string(tar.stdout.as_mut().unwrap(), &mut listed).unwrap();
    assert!(tar.wait().unwrap().success() && copying.wait().unwrap().success());
    assert!(listed.lines().any(|line| line.contains(" 1234/5678 ") && line.ends_with("var/owned/again")), "{listed}");
    eventually("all is given back", || home.foreign_files() == 0);
    let done = finish(Command::new("ls").arg(trees(&home)[0].join("users")), b"", LIMIT);
    assert_eq!(done.stdout, "", "nobody has it");
}
