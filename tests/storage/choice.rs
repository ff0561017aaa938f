//! Which driver a container gets, and who is told.

use std::time::Duration;

use crate::support::{DRIVERS, Home, Need, Within, busybox, debian, finish, in_namespaces, skip};

#[test]
fn the_driver_asked_for_is_the_one_that_is_shown() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        home.ok(&["run", "--name", driver, "--network", "none", "--storage-driver", driver, &busybox(), "true"]);
        let shown = home.inspect(driver, "{{.Driver}} {{.GraphDriver.Name}} {{.GraphDriver.Data.UpperDir}}");
        let words: Vec<&str> = shown.split(' ').collect();
        assert_eq!(words[..2], [driver, driver]);
        assert!(std::path::Path::new(words[2]).is_dir(), "{shown}");
        let kind =
            home.sh(&["--network", "none", "--storage-driver", driver], "grep ' / ' /proc/self/mounts | cut -d' ' -f3");
        match driver {
            "fuse" => assert_eq!(kind, "fuse.sublet\n"),
            "copy" => assert!(!kind.contains("fuse") && !kind.contains("overlay"), "{kind}"),
            _ => assert_eq!(kind, "overlay\n", "{driver}"),
        }
    }
}

#[test]
fn the_best_driver_is_taken_and_told_to_those_who_ask() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let done = home.run(&["run", "--name", "best", "--network", "none", &busybox(), "true"]);
    assert!(done.code == 0 && !done.stderr.contains("rootfs"), "{done:#?}");
    assert_eq!(home.inspect("best", "{{.Driver}}"), "overlay");
    assert!(home.ok(&["doctor"]).contains("rootfs              overlay\n"));
    assert_eq!(home.ok(&["info", "--format", "{{.Driver}}"]), "overlay\n");
    assert!(home.ok(&["info"]).contains("Storage Driver: overlay\n"));
}

/// The view of an image reaches a container as a detached mount. Kernels before 5.2 have none, and those before 5.12 none
/// whose attributes can be set; `cargo xtask test` runs this without these calls too.
#[test]
fn what_is_taken_follows_the_mount_api() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let refused = std::env::var("SUBLET_TEST_REFUSED").is_ok_and(|calls| calls.contains("mount-api"));
    if refused && nix::unistd::geteuid().is_root() {
        return skip("where real root runs the engine the mounts of a container need the mount API");
    }
    let driver = if refused { "copy" } else { "overlay" };
    let change = "grep -c ' / ' /proc/self/mounts; test -e /x || { echo x >/x; rm -r /var/www; }; sleep 1000";
    let done = home.run(&["run", "-d", "--name", "box", "--network", "none", &busybox(), "sh", "-c", change]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(done.stderr.contains("warning: rootfs: overlay is not possible: "), refused, "{done:#?}");
    assert_eq!(done.stderr.contains("using copy (use Linux 5.2 or later"), refused, "{done:#?}");
    assert_eq!(home.inspect("box", "{{.Driver}}"), driver);
    assert!(home.ok(&["doctor"]).contains(&format!("rootfs              {driver}\n")));
    let changed = "until test -e /x && ! test -e /var/www; do :; done; cat /x";
    assert_eq!(home.ok(&["exec", "box", "sh", "-c", changed]), "x\n");
    home.ok(&["stop", "-t", "0", "box"]);
    assert_eq!(home.ok(&["logs", "box"]), "1\n", "one root file system, and nothing of the host below it");
    assert_eq!(home.ok(&["diff", "box"]), "C /var\nD /var/www\nA /x\n");
    home.ok(&["start", "box"]);
    assert_eq!(home.ok(&["exec", "box", "cat", "/x"]), "x\n");
}

#[test]
fn a_driver_that_does_not_exist_or_cannot_serve_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let said = home.fails(125, &["run", "--rm", "--storage-driver", "vfs", &busybox(), "true"]);
    assert!(said.contains("unknown storage driver vfs") && said.contains("overlay, fuse, tree, copy"), "{said}");
    for driver in &DRIVERS[1..] {
        let said = home.fails(125, &["run", "--storage-driver", driver, "host:", "true"]);
        assert!(said.contains(&format!("{driver} cannot stand on host:")) && said.contains("hint: "), "{said}");
    }
    assert!(home.containers().is_empty(), "a refused container is left");
}

#[test]
fn where_overlayfs_cannot_write_fuse_is_taken_and_said_once() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (bin, image) = (home.bin().display().to_string(), busybox());
    let run = format!("{bin} run --network none");
    let script = format!(
        "{bin} pull -q {image} >/dev/null && {run} --name made {image} sh -c 'echo x >/x; rm -r /var/www; mkdir /var/www; cat /x' && \
         {bin} inspect --format '{{{{.Driver}}}}' made && {bin} diff made && {bin} doctor | grep -A 1 rootfs && {bin} rm made && \
         {{ {bin} --strict run --rm --network none {image} true || echo strict $?; }} && \
         {{ {run} --rm host: true || echo host $?; }} && {{ {run} --rm --storage-driver overlay {image} true || echo asked $?; }}"
    );
    // A file system without extended attributes: overlayfs takes it as an upper and then cannot mark a directory opaque.
    let memory = format!("mount -t ramfs -o mode=700 ramfs {}", home.directory.join("data").display());
    let Some(done) = in_namespaces(&home, Within::Caller, &memory, &script) else { return };
    assert_eq!(done.code, 0, "{done:#?}");
    let expected = "x\nfuse\nC /var\nC /var/www\nD /var/www/index.html\nA /x\n";
    assert!(done.stdout.starts_with(expected), "{done:#?}");
    assert!(
        done.stdout.contains("rootfs              fuse\n") && done.stdout.contains("     not overlay: "),
        "{done:#?}"
    );
    assert!(done.stdout.ends_with("made\nstrict 125\nhost 125\nasked 125\n"), "{done:#?}");
    let said: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("warning: rootfs: ")).collect();
    assert_eq!(said.len(), 1, "{done:#?}");
    assert!(said[0].contains("overlay is not possible: ") && said[0].contains("using fuse ("), "{done:#?}");
    let asked = done.stderr.lines().filter(|line| line.contains("use --storage-driver fuse")).count();
    assert_eq!(asked, 1, "who asked for overlay is told what to ask for: {done:#?}");
}

/// The best of what is left, without FUSE and without both.
#[test]
fn without_fuse_the_image_is_written_out_and_without_overlayfs_copied() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (bin, image) = (home.bin().display().to_string(), busybox());
    let data = home.directory.join("data").display().to_string();
    // It opens, and is no FUSE.
    let no_fuse = "mount --bind /dev/null /dev/fuse";
    for (driver, prepare) in [
        ("tree", format!("mount -t tmpfs -o mode=700 tmpfs {data} && {no_fuse}")),
        ("copy", format!("mount -t ramfs -o mode=700 ramfs {data} && {no_fuse}")),
    ] {
        let script = format!(
            "{bin} pull -q {image} >/dev/null && {bin} run --name made --network none {image} sh -c 'echo x >/x; rm -rf /var/www' && \
             {bin} inspect --format '{{{{.Driver}}}}' made && {bin} diff made && {bin} info --format '{{{{.Driver}}}}' && \
             {bin} doctor | grep -A 3 rootfs && {bin} start -a made && {bin} rm made && \
             {{ {bin} --strict run --rm --network none {image} true || echo strict $?; }}"
        );
        let Some(done) = in_namespaces(&home, Within::Caller, &prepare, &script) else { return };
        let expected = format!("{driver}\nC /var\nD /var/www\nA /x\n{driver}\nrootfs              {driver}\n");
        assert!(done.code == 0 && done.stdout.starts_with(&expected), "{done:#?}");
        assert!(done.stdout.ends_with("made\nstrict 125\n"), "{done:#?}");
        let said: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("warning: rootfs: ")).collect();
        assert_eq!(said.len(), 1, "{done:#?}");
        assert!(said[0].contains(&format!("using {driver} (use Linux 5.2 or later")), "{done:#?}");
    }
}

#[test]
fn a_copy_goes_without_what_its_file_system_cannot_hold() {
    let Some(home) = Home::with_busybox(&[Need::Debian]) else { return };
    if !cfg!(target_arch = "x86_64") {
        return skip("the numbers of system calls are x86_64's");
    }
    finish(&mut home.command(&["pull", &debian()]), b"", Duration::from_mins(3));
    home.ok(&["create", "--name", "box", &busybox()]);
    home.ok(&["cp", "box:/bin/busybox", home.path("busybox").to_str().unwrap()]);
    let volume = format!("{}:/home", home.directory.join("home").display());
    let script = "mkdir -p /small/bin && cp /home/busybox /small/bin/sh && echo text >/small/capable && chmod 755 /small/bin/sh && \
        perl -e 'my ($p, $n, $c) = (\"/small/capable\", \"security.capability\", pack(\"V5\", 0x02000001, 0x2000, 0, 0, 0)); \
        exit(syscall(188, $p, $n, $c, 20, 0) != 0)' && tar --xattrs '--xattrs-include=*' -cf /home/small.tar -C /small .";
    home.ok(&["run", "--rm", "--network", "none", "-v", &volume, &debian(), "sh", "-c", script]);
    let (bin, archive) = (home.bin().display().to_string(), home.path("small.tar").display().to_string());
    let ramfs = format!("mount -t ramfs -o mode=700 ramfs {}", home.directory.join("data").display());
    let script = format!(
        "{bin} import {archive} small >/dev/null && \
         {bin} run --rm --network none --storage-driver copy small sh -c 'while read line; do echo $line; done </capable'"
    );
    let Some(done) = in_namespaces(&home, Within::Caller, &ramfs, &script) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (0, "text\n"), "{done:#?}");
}
