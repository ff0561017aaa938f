//! `-v`, `--mount`, `--tmpfs`, `--volumes-from`: their options, their refusals, and what they keep apart.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::support::{Home, Need, busybox, identity};

/// The options of the mount on a path inside.
const OPTIONS: &str =
    "while read a b c d dst opts rest; do [ $dst = /in ] && echo $opts; done </proc/self/mountinfo; true";

#[test]
fn options_become_those_of_the_mount() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    let bind = |options: &str| format!("{}:/in:{options}", place.display());
    let mount = |options: &str| format!("type=bind,src={},dst=/in,{options}", place.display());
    for (words, present, absent) in [
        (["-v", &bind("ro")], "ro", "rw"),
        (["-v", &bind("rw,noexec,nosuid,nodev")], "rw,nosuid,nodev,noexec", "ro"),
        (["-v", &bind("z,cached")], "rw", "ro"),
        (["--mount", &mount("readonly")], "ro", "rw"),
        (["--mount", &mount("ro=false,noexec")], "rw,noexec", "ro,nosuid"),
        (["--mount", "type=tmpfs,dst=/in,tmpfs-size=1m,tmpfs-mode=1700"], "rw,nosuid,nodev,noexec", "ro"),
        (["--tmpfs", "/in:exec,suid,size=1m"], "rw,nodev", "noexec,nosuid"),
    ] {
        let seen = home.sh(&words, OPTIONS);
        let has = |word: &str| seen.trim().split(',').any(|option| option == word);
        assert!(present.split(',').all(has) && !absent.split(',').any(has), "{words:?}: {seen}");
    }
    let seen = home
        .sh(&["--mount", "type=tmpfs,dst=/in,tmpfs-size=1m,tmpfs-mode=1700"], "stat -c %a /in; df -k /in | tail -1");
    assert!(seen.starts_with("1700\n") && seen.contains(" 1024 "), "{seen}");
    let files = "-v";
    fs::write(place.join("f"), "").unwrap();
    let script = "cp /bin/busybox /in/b; /in/b true 2>/dev/null || echo refused; rm -f /in/b";
    assert_eq!(home.sh(&[files, &bind("noexec")], script), "refused\n");
}

#[test]
fn how_mounts_below_travel_is_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    assert_eq!(home.inspect_of(&format!("{}:/in:rslave", place.display())), "rslave bind");
    if identity() != "root" {
        return crate::support::skip("only root may mount what is shared with a container");
    }
    let (bin, image) = (home.bin().display().to_string(), busybox());
    let run = |options: &str| {
        let volume = format!("{}:/in{options}", place.display());
        let script = "grep -o \" /in .* - \" /proc/self/mountinfo | grep -o \"shared\\|master\"; echo -";
        format!("{bin} run --rm --network none -v {volume} {image} sh -c '{script}'")
    };
    let runs = ["", ":rprivate", ":rslave", ":rshared"].map(run).join("; ");
    let make = format!("mount -t tmpfs tmpfs {0} && mount --make-shared {0} && {{ {runs}; }}", place.display());
    let mut command = std::process::Command::new("unshare");
    home.surround(&mut command);
    let done = command.args(["-m", "--propagation", "private", "sh", "-c", &make]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(said, "-\n-\nmaster\n-\nshared\n-\n", "{}", String::from_utf8_lossy(&done.stderr));
}

impl Home {
    /// Propagation and type of the only mount of a container with this volume.
    fn inspect_of(&self, volume: &str) -> String {
        self.ok(&["run", "--name", "one", "-v", volume, &busybox(), "true"]);
        let seen = self.inspect("one", "{{(index .Mounts 0).Propagation}} {{(index .Mounts 0).Type}}");
        self.ok(&["rm", "one"]);
        seen
    }
}

#[test]
fn a_source_that_is_not_there_is_made_by_v_and_refused_by_mount() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let (image, missing) = (busybox(), home.path("missing"));
    let mount = format!("type=bind,src={},dst=/in", missing.display());
    let said = home.fails(125, &["run", "--name", "none", "--mount", &mount, &image, "true"]);
    let words =
        format!("invalid mount config for type \"bind\": bind source path does not exist: {}", missing.display());
    assert!(said.contains(&words), "{said}");
    assert!(home.containers().is_empty() && !missing.exists());
    home.sh(&["-v", &format!("{}:/in", missing.display())], "touch /in/file");
    assert!(missing.join("file").exists());
    home.sh(&["--mount", &mount], "test -e /in/file");
    for (arguments, words) in [
        (["-v", "/x:/in:odd"], "invalid mode: odd"),
        (["-v", "/x:/in:ro,rw"], "invalid mode: ro,rw"),
        (["-v", "/x:in"], "mount path must be absolute"),
        (["-v", "../x/y:/in:nocopy"], "invalid mode: nocopy"),
        (["--mount", "type=bind,src=/x,dst=/in,colour=red"], "unexpected key 'colour' in 'colour=red'"),
        (["--mount", "type=cluster,src=x,dst=/in"], "not built"),
        (["--tmpfs", "/in:odd"], "invalid tmpfs option \"odd\""),
        (["--tmpfs", "/in:size=odd"], "size"),
        (["--volumes-from", "nobody"], "No such container: nobody"),
    ] {
        let said = home.fails(125, &["run", "--rm", arguments[0], arguments[1], &image, "true"]);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    let twice = home.fails(125, &["run", "--rm", "-v", "/in", "--mount", "type=tmpfs,dst=/in/", &image, "true"]);
    assert!(twice.contains("Duplicate mount point: /in"), "{twice}");
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn what_is_mounted_below_is_there_or_not() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let outer = home.path("outer");
    fs::create_dir_all(outer.join("below")).unwrap();
    // In a mount namespace of its own the user may mount.
    let (bin, image) = (home.bin().display().to_string(), busybox());
    let run = |option: &str| {
        let mount = format!("type=bind,src={},dst=/in,{option}", outer.display());
        let script = "echo x >/in/below/new 2>/dev/null && echo written; ls /in/below";
        format!("{bin} run --rm --network none --mount {mount} {image} sh -c '{script}'")
    };
    let lines = ["bind-nonrecursive", "readonly", "readonly,bind-recursive=writable"].map(run).join("; echo -; ");
    let make = format!("mount -t tmpfs tmpfs {0}/below && touch {0}/below/mounted && {{ {lines}; }}", outer.display());
    let mut command = std::process::Command::new("unshare");
    home.surround(&mut command);
    if identity() != "root" {
        return crate::support::skip("only root may mount below a directory that is then bound");
    }
    let done = command.args(["-m", "sh", "-c", &make]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(
        said,
        "written\nnew\n-\nmounted\n-\nwritten\nmounted\nnew\n",
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn a_part_of_a_volume_is_found_inside_of_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let script = "mkdir -p /v/a/b && echo deep >/v/a/b/file && ln -s /a/b /v/inside && ln -s ../../../../../.. /v/up && \
                  ln -s /etc /v/etc && ln -s /proc/self/root /v/magic";
    home.sh(&["-v", "data:/v"], script);
    let part = |path: &str| format!("type=volume,src=data,dst=/in,volume-subpath={path}");
    for path in ["a/b", "a/./b", "inside"] {
        assert_eq!(home.sh(&["--mount", &part(path)], "cat /in/file"), "deep\n", "{path}");
    }
    assert_eq!(home.sh(&["--mount", &part("a/b/file")], "cat /in"), "deep\n");
    // Links end inside of the volume, wherever they say they lead.
    assert_eq!(home.sh(&["--mount", &part("up")], "ls /in"), "a\netc\ninside\nmagic\nup\n");
    for path in ["etc", "magic", "nothing"] {
        let said = home.fails(125, &["run", "--rm", "--mount", &part(path), &image, "true"]);
        assert!(said.contains(&format!("cannot access path {path} of the volume")), "{said}");
    }
    for path in ["../data", "/a"] {
        let said = home.fails(125, &["run", "--rm", "--mount", &part(path), &image, "true"]);
        assert!(said.contains("subpath must be a relative path"), "{said}");
    }
    home.ok(&["volume", "rm", "data"]);
}

#[test]
fn a_volume_is_mounted_at_no_place_outside() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let outside = home.path("outside");
    fs::create_dir(&outside).unwrap();
    // A volume that has a link where another one is to be mounted.
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    symlink(&outside, place.join("link")).unwrap();
    let (first, second) = (format!("{}:/a", place.display()), "inner:/a/link/x".to_owned());
    let said = home.fails(125, &["run", "--rm", "-v", &first, "-v", &second, &busybox(), "true"]);
    assert!(said.contains("mounting /a/link/x"), "{said}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // One that leads somewhere inside.
    fs::create_dir(place.join("real")).unwrap();
    symlink("/a/real", place.join("way")).unwrap();
    home.sh(&["-v", &first, "-v", "inner:/a/way/x"], "touch /a/real/x/file");
    assert_eq!(fs::read_dir(crate::machine(&home).join("volumes/inner/_data")).unwrap().count(), 1);
}

#[test]
fn volumes_from_another_container() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    let bind = format!("{}:/b", place.display());
    home.ok(&[
        "run",
        "--name",
        "first",
        "-v",
        "data:/d",
        "-v",
        "/a",
        "-v",
        &bind,
        &image,
        "sh",
        "-c",
        "echo x | tee /d/f /a/f /b/f",
    ]);
    assert_eq!(home.sh(&["--volumes-from", "first"], "cat /d/f /a/f /b/f; echo y >/d/f"), "x\nx\nx\n");
    let script = "cat /d/f; for f in /d/f /a/f /b/f; do echo z >$f 2>/dev/null || echo refused; done";
    assert_eq!(home.sh(&["--volumes-from", "first:ro"], script), "y\nrefused\nrefused\nrefused\n");
    assert_eq!(home.sh(&["--volumes-from", "first", "--tmpfs", "/d"], "ls /d; cat /a/f"), "x\n");
    // Its own --rm takes none of them along.
    assert_eq!(home.ok(&["volume", "ls", "-q"]).lines().count(), 2);
}

#[test]
fn u_gives_a_volume_to_the_containers_user() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let place = home.path("place");
    fs::create_dir_all(place.join("sub")).unwrap();
    fs::write(place.join("sub/file"), "mine\n").unwrap();
    symlink("/etc/passwd", place.join("link")).unwrap();
    let look = "stat -c %u:%g /data /data/sub /data/sub/file /data/link; echo new >/data/sub/new; cat /data/sub/file";
    let wanted = "1000:1001\n1000:1001\n1000:1001\n1000:1001\nmine\n";
    home.sh(
        &["-v", "data:/data"],
        "mkdir /data/sub; echo mine >/data/sub/file; ln -s /etc/passwd /data/link; chmod 700 /data",
    );
    assert_eq!(home.sh(&["-u", "1000:1001", "-v", "data:/data:U"], look), wanted, "a volume");
    home.assert_store_is_ours();
    let bind = format!("{}:/data:U", place.display());
    assert_eq!(home.sh(&["-u", "1000:1001", "-v", &bind], look), wanted, "a bind");
    if identity() != "root" {
        assert_ne!(fs::metadata(place.join("sub")).unwrap().uid(), nix::unistd::getuid().as_raw());
    }
    // It is the user's again.
    home.sh(&["-v", &bind], "true");
    assert_eq!(fs::metadata(place.join("sub/new")).unwrap().uid(), nix::unistd::getuid().as_raw());
}

#[test]
fn u_gives_away_only_its_own_mount() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let (place, other) = (home.path("place"), home.path("other"));
    fs::create_dir_all(place.join("sub")).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "host's\n").unwrap();
    // On the same file system, and as read-only as it was asked for.
    let (volume, below) = (format!("{}:/app:ro,U", place.display()), format!("{}:/app/sub", other.display()));
    let look = "stat -c %u /app; touch /app/new 2>/dev/null || echo refused";
    assert_eq!(home.sh(&["-u", "1000:1001", "-v", &volume, "-v", &below], look), "1000\nrefused\n");
    let ours = nix::unistd::getuid().as_raw();
    for path in [&other, &other.join("file")] {
        assert_eq!(fs::metadata(path).unwrap().uid(), ours, "{path:?}");
    }
    home.sh(&["-v", &format!("{}:/app:U", place.display())], "true");
    assert_eq!(fs::metadata(&place).unwrap().uid(), ours);
}

#[test]
fn a_bind_is_that_users_who_the_container_runs_as() {
    let Some(home) = Home::with_busybox(&[Need::Subids, Need::PlainUser]) else { return };
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("private"), "mine\n").unwrap();
    fs::set_permissions(place.join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let bind = format!("{}:/in", place.display());
    let script =
        "id -u; stat -c %u:%g /in/private; cat /in/private; echo x >/in/new; stat -c %u:%g /in/new /bin/busybox";
    let ours = nix::unistd::getuid().as_raw();
    let wanted = |uid: u32, gid: u32| format!("{uid}\n{uid}:{gid}\nmine\n{uid}:{gid}\n0:0\n");
    assert_eq!(home.sh(&["-u", "1000:1001", "-v", &bind], script), wanted(1000, 1001));
    assert_eq!(home.sh(&["-u", "1000", "-v", &bind, "-v", "/more"], script), wanted(1000, 0));
    assert_eq!(fs::metadata(place.join("new")).unwrap().uid(), ours);
    // By name, as the image says.
    home.ok(&["run", "--name", "maker", &busybox(), "sh", "-c", "echo worker:x:77:88::/:/bin/sh >>/etc/passwd"]);
    home.ok(&["commit", "-c", "USER worker", "maker", "worked"]);
    home.ok(&["rm", "maker"]);
    assert_eq!(home.ok(&["run", "--rm", "-v", &bind, "worked", "sh", "-c", script]), wanted(77, 88));
    // Asked for, with a volume too; and declined.
    let keep = ["--userns", "keep-id:uid=1000,gid=1001", "-v", &bind, "-v", "data:/data"];
    assert_eq!(home.sh(&keep, script), wanted(1000, 1001));
    for options in [vec!["--userns", "host"], vec!["-v", "data:/data"]] {
        let options = [&["-u", "1000", "-v", &bind], &options[..]].concat();
        assert_eq!(
            home.sh(&options, "stat -c %u /in/private; cat /in/private 2>/dev/null || echo closed"),
            "0\nclosed\n"
        );
    }
    // What it writes elsewhere is its own too, over a restart of all that serves it.
    home.assert_store_is_ours();
}

#[test]
fn idmap_is_roots() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let place = home.path("place");
    fs::create_dir(&place).unwrap();
    let bind = format!("{}:/in:idmap", place.display());
    if identity() == "root" {
        assert_eq!(home.sh(&["-v", &bind], "stat -c %u /in"), "0\n");
    } else {
        let said = home.fails(125, &["run", "--rm", "-v", &bind, &busybox(), "true"]);
        assert!(said.contains("only root may shift") && said.contains("hint: with --userns=keep-id"), "{said}");
    }
}

#[test]
fn a_read_only_root_has_writable_mounts() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "touch /x 2>/dev/null || echo refused; touch /data/x /run/x && echo written";
    assert_eq!(home.sh(&["--read-only", "-v", "/data", "--tmpfs", "/run"], script), "refused\nwritten\n");
}

#[test]
fn a_new_volume_can_be_read_by_every_user_inside() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    assert_eq!(home.sh(&["-u", "1000", "-v", "data:/data"], "stat -c '%a %u' /data; ls /data"), "755 0\n");
    let mode = fs::metadata(crate::machine(&home).join("volumes")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "other users of the machine do not get there");
}
