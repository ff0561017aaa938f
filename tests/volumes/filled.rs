//! What a volume begins with, whose its files are inside and on the disk, and what an image names.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::support::oracle::same_as_podman;
use crate::support::{Home, Need, busybox, identity};

/// An image with a volume that has files of all kinds.
fn image(home: &Home) -> &'static str {
    let owners = if identity() == "one-id" { ":" } else { "chown 33:44 b secret; chown -h 33:44 link; chown 5:6 ." };
    let script = format!(
        "mkdir -p /srv/data/sub && cd /srv/data && echo a >a && echo b >b && ln a hard && ln -s a link && mkfifo pipe && \
         echo deep >sub/deep && echo secret >secret && chmod 0 secret && chmod 4755 b && chmod 0555 sub && chmod 1770 . \
         && {owners} && chmod 4755 b && touch -d '2001-02-03 04:05:06' a sub && ln -s /srv/data /short"
    );
    home.ok(&["run", "--name", "maker", &busybox(), "sh", "-c", &script]);
    home.ok(&["commit", "-c", "VOLUME /srv/data", "maker", "seeded"]);
    home.ok(&["rm", "maker"]);
    "seeded"
}

/// Names, modes, owners, links, times and contents of all that is there.
const LOOK: &str = "cd /srv/data; find . | sort | while read f; do stat -c '%n %A %u:%g %h' \"$f\"; done; \
                    stat -c %Y a sub; cat a b hard sub/deep; cat secret; readlink link";

#[test]
fn an_empty_volume_gets_what_the_image_has() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = image(&home);
    let run = |options: &[&str], script: &str| {
        let mut words = vec!["run", "--rm"];
        words.extend(options);
        words.extend([image, "sh", "-c", script]);
        home.ok(&words)
    };
    // What it is without any volume.
    let wanted = run(
        &["--tmpfs", "/other"],
        "cp -a /srv/data /other/d; cd /other/d; find . | sort | while read f; do stat -c '%n %A %u:%g %h' \"$f\"; done; stat -c %Y a sub; cat a b hard sub/deep; cat secret; readlink link",
    );
    assert_eq!(run(&[], LOOK), wanted, "the image's own volume");
    assert_eq!(run(&["-v", "named:/srv/data"], LOOK), wanted, "a named one");
    assert_eq!(run(&["-v", "named:/srv/data"], LOOK), wanted, "at its second use");
    assert_eq!(
        run(&["-v", "linked:/short", "-v", "linked:/x"], "ls -A /x | wc -l"),
        "7\n",
        "through a link of the image"
    );
    assert_eq!(run(&["-v", "empty:/srv/data:nocopy"], "ls -A /srv/data"), "");
    // Written once, it stays as it is.
    run(&["-v", "named:/srv/data"], "rm -rf /srv/data/*; touch /srv/data/only");
    assert_eq!(run(&["-v", "named:/srv/data"], "ls -A /srv/data"), "only\n");
    // Nothing there, nothing to copy; a file is no directory.
    assert_eq!(
        run(&["-v", "none:/not/there", "-v", "file:/srv/data/sub"], "ls -A /not/there; cat /srv/data/sub/deep"),
        "deep\n"
    );
    home.assert_store_is_ours();
}

#[test]
fn the_volumes_of_an_image_go_with_rm() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = image(&home);
    home.ok(&["run", "--rm", image, "true"]);
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "");
    home.ok(&["run", "--name", "one", image, "sh", "-c", "echo new >/srv/data/new"]);
    let volume = home.ok(&["volume", "ls", "-q", "--filter", "label=com.docker.volume.anonymous"]);
    assert_eq!(volume.lines().count(), 1);
    // What is in a volume is no change of the container.
    assert_eq!(home.ok(&["diff", "one"]), "");
    home.ok(&["rm", "-v", "one"]);
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "");
    // Another mount in its place.
    home.ok(&["run", "--name", "two", "--tmpfs", "/srv/data", image, "true"]);
    home.ok(&["run", "--name", "three", "-v", "named:/srv/data", image, "true"]);
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "named\n");
}

/// The directory of a volume's files.
fn data(home: &Home, name: &str) -> PathBuf {
    PathBuf::from(home.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", name]).trim_end())
}

#[test]
fn at_rest_its_files_are_the_callers_and_inside_they_are_whose_they_were() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let image = busybox();
    let script = "cd /data && mkdir closed && echo x >closed/in && echo y >zero && chown 1000:1001 zero && chmod 4711 zero \
                  && chown -R 33:33 closed && chmod 0500 closed && chown 7:7 . && chmod 0700 . && chmod 0 closed/in";
    home.sh(&["-v", "data:/data"], script);
    home.assert_store_is_ours();
    let place = data(&home, "data");
    assert_eq!(fs::read_to_string(place.join("closed/in")).unwrap(), "x\n", "the user reads it by plain tools");
    let look = "stat -c '%n %a %u:%g' /data /data/zero /data/closed /data/closed/in; cat /data/closed/in";
    let wanted = "/data 700 7:7\n/data/zero 4711 1000:1001\n/data/closed 500 33:33\n/data/closed/in 0 33:33\nx\n";
    assert_eq!(home.sh(&["-v", "data:/data"], look), wanted);
    home.assert_store_is_ours();
    // While one of two runs, the other one's end gives nothing back.
    home.ok(&["run", "-d", "--name", "long", "-v", "data:/data", &image, "sleep", "600"]);
    assert_eq!(home.sh(&["-v", "data:/data"], look), wanted);
    assert_eq!(home.ok(&["exec", "long", "sh", "-c", look]), wanted);
    if identity() != "root" {
        assert_ne!(fs::symlink_metadata(&place).unwrap().uid(), nix::unistd::getuid().as_raw());
    }
    home.ok(&["rm", "-f", "long"]);
    home.ok(&["volume", "ls"]);
    home.assert_store_is_ours();
    // What the user changes at rest is seen, and gets no rights back that it had before.
    fs::write(place.join("zero"), "changed\n").unwrap();
    fs::write(place.join("mine"), "").unwrap();
    let changed = "cat /data/zero; stat -c '%a %u:%g' /data/zero /data/mine";
    assert_eq!(home.sh(&["-v", "data:/data"], changed), "changed\n711 1000:1001\n644 0:0\n");
    home.ok(&["volume", "rm", "data"]);
}

#[test]
fn files_of_other_ids_are_removed_with_the_volume() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let image = busybox();
    home.ok(&[
        "run",
        "-d",
        "--name",
        "user",
        "-v",
        "data:/data",
        &image,
        "sh",
        "-c",
        "mkdir -p /data/a/b; chown -R 33:33 /data/a; chmod 0 /data/a; touch /data/ready; exec sleep 600",
    ]);
    home.ok(&["exec", "user", "sh", "-c", "while [ ! -e /data/ready ]; do sleep 0.05; done"]);
    // The monitor cannot give them back.
    let pid = fs::read_to_string(
        home.store()
            .join("hosts")
            .join(fs::read_dir(home.store().join("hosts")).unwrap().next().unwrap().unwrap().file_name())
            .join("containers")
            .join(home.inspect("user", "{{.Id}}"))
            .join("pid.json"),
    )
    .unwrap();
    let pids: serde_json::Value = serde_json::from_str(&pid).unwrap();
    let kill = |pid: &serde_json::Value| {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.as_i64().unwrap() as i32),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
    };
    kill(&pids["monitor_pid"]);
    kill(&pids["pid"]);
    // The next command does.
    home.ok(&["wait", "user"]);
    home.ok(&["ps", "-a"]);
    home.assert_store_is_ours();
    home.ok(&["rm", "user"]);
    home.ok(&["volume", "rm", "data"]);
    assert_eq!(fs::read_dir(data_of_all(&home)).unwrap().count(), 0);
}

fn data_of_all(home: &Home) -> PathBuf {
    let hosts = home.store().join("hosts");
    let machine = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().file_name();
    hosts.join(machine).join("volumes")
}

/// The same volumes as Podman's, where it can run.
#[test]
fn podman_fills_them_alike() {
    let look = "cd /var/owned; stat -c '%n %A %u:%g %h' . * | sort; cat file; ls -A | wc -l";
    same_as_podman(&["-v", "/var/owned"], look);
    same_as_podman(&["-v", "named:/var/owned"], look);
    same_as_podman(&["--mount", "type=volume,source=named,target=/var/owned"], look);
    same_as_podman(&["-v", "named:/var/owned:nocopy"], "ls -A /var/owned | wc -l");
    same_as_podman(
        &["-v", "/etc:/x:ro"],
        "touch /x/y 2>/dev/null || echo refused; grep -c . /x/passwd >/dev/null && echo read",
    );
    same_as_podman(
        &["-u", "app", "-v", "named:/not/there:U"],
        "stat -c %u:%g /not/there; touch /not/there/x && echo written",
    );
    same_as_podman(
        &["--mount", "type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=700"],
        "stat -c %a /t; df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2",
    );
}

#[test]
fn a_volume_of_an_image_covers_nothing_of_the_containers_own() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "maker", &busybox(), "true"]);
    for (place, words) in
        [("/proc", "is for the container's own"), ("/dev/x", "own file systems"), ("/a/../b", "absolute")]
    {
        home.ok(&["commit", "-c", &format!("VOLUME {place}"), "maker", "odd"]);
        let said = home.fails(125, &["run", "--rm", "odd", "true"]);
        assert!(said.contains("the image's volume") && said.contains(words), "{said}");
    }
    home.ok(&["commit", "-c", "VOLUME /etc", "maker", "etc"]);
    assert_eq!(home.ok(&["run", "--rm", "--hostname", "me", "etc", "cat", "/etc/hostname"]), "me\n");
    // What is refused leaves no volume.
    home.fails(125, &["run", "--rm", "--entrypoint", "", "-v", "left:/x", "etc"]);
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn what_was_changed_at_rest_gets_no_set_id_bits_back() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let make = "cd /v; for f in same written opened; do echo $f >$f; chown 1000:1001 $f; chmod 4711 $f; done";
    home.sh(&["-v", "data:/v"], make);
    home.assert_store_is_ours();
    let data = crate::machine(&home).join("volumes/data/_data");
    fs::write(data.join("written"), "others\n").unwrap();
    fs::set_permissions(data.join("opened"), fs::Permissions::from_mode(0o644)).unwrap();
    let look = "cd /v; stat -c '%n %a %u:%g' *";
    let seen = "opened 644 1000:1001\nsame 4711 1000:1001\nwritten 711 1000:1001\n";
    // Over a second rest as well.
    for _ in 0..2 {
        assert_eq!(home.sh(&["-v", "data:/v"], look), seen);
    }
}
