//! `commit`, `export` and `import`: what a container has changed is in the image, with its true owners.

use serde_json::Value;

use crate::support::tar::{Entry, archive, listing};
use crate::support::{DRIVERS, Done, Home, Need, busybox, eventually, identity};

/// A file capability as an image has it: version 2, effective, CAP_NET_BIND_SERVICE.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// An owner that no map of a container has.
pub const FAR: u64 = 4_000_000_000;

/// Runs a script in a container of the small image with this driver that is kept under the driver's name.
fn kept(home: &Home, driver: &str, image: &str, script: &str) {
    let options = ["run", "--name", driver, "--network", "none", "--storage-driver", driver];
    home.ok(&[&options[..], &[image, "sh", "-c", script]].concat());
}

fn image(home: &Home, name: &str) -> Value {
    let all: Value = serde_json::from_str(&home.ok(&["image", "inspect", name])).unwrap();
    all[0].clone()
}

#[test]
fn a_container_of_the_image_sees_what_was_changed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "mkdir -p /data/deep; echo x >/data/deep/f; ln /data/deep/f /data/l; ln -s deep/f /data/s; rm /etc/group; \
                  chmod 600 /etc/passwd; rm -r /var/www; rm -r /var/opaque; mkdir /var/opaque; echo n >/var/opaque/n; \
                  chmod 1777 /data; chmod 4755 /data/deep/f; rm -r /root; echo file >/root; mkfifo /data/p; touch -d @86400 /old";
    let look = "cat /data/s /var/opaque/n /root; ls /etc/group /var/www /var/opaque/above 2>/dev/null; \
                stat -c '%n %a %h %F' /data /data/l /etc/passwd /data/p; stat -c %Y /old";
    let expected = "x\nn\nfile\n/data 1777 3 directory\n/data/l 4755 2 regular file\n/etc/passwd 600 1 regular file\n\
                    /data/p 644 1 fifo\n86400\n";
    for driver in DRIVERS {
        kept(&home, driver, &busybox(), script);
        let told = home.ok(&["diff", driver]);
        let id = home.ok(&["commit", "-m", "why", "-a", "me", driver, &format!("made/{driver}")]);
        assert!(id.starts_with("sha256:") && id.trim_end().len() == 71, "{id}");
        let name = format!("made/{driver}:latest");
        let seen = home.ok(&["run", "--rm", "--network", "none", &name, "sh", "-c", look]);
        assert_eq!(seen, expected, "{driver}");
        assert_eq!(home.ok(&["image", "diff", &name]), told, "{driver}");
        let known = image(&home, &name);
        assert_eq!((&known["Id"], &known["Author"]), (&id.trim_end().into(), &"me".into()));
        // The archive of the same changes is the same each time.
        let again = home.ok(&["commit", driver]);
        let layers = |name: &str| image(&home, name)["RootFS"]["Layers"].clone();
        assert_eq!(layers(again.trim_end()), layers(&name), "{driver}");
        assert!(home.ok(&["images"]).lines().any(|line| line.starts_with("<none> ")), "{driver}");
        home.ok(&["rmi", again.trim_end()]);
        let steps = home.ok(&["history", "--format", "{{.CreatedBy}}|{{.Comment}}", &name]);
        let first = steps.lines().next().unwrap_or_default();
        assert!(first.starts_with("sh -c mkdir -p /data/deep;") && first.ends_with("…|why"), "{steps}");
    }
    home.assert_store_is_ours();
}

#[test]
fn a_layer_has_what_no_look_at_a_file_tells() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // A content of the same length and time, and the root directory itself.
    let script = "t=$(stat -c %Y /etc/group); tr a-z A-Z </etc/group >/new; cat /new >/etc/group; touch -d @$t /etc/group; \
                  rm /new; stat -c '%s %Y' /etc/group; chown 3:4 / 2>/dev/null; chmod 1777 /; touch -d @86400 /; sleep ${1:-0}";
    let look = "cat /etc/group; stat -c '%a %u %g %Y' /";
    for driver in DRIVERS {
        for wait in ["0", "100"] {
            let name = format!("{driver}-{wait}");
            let options = ["run", "-d", "--name", &name, "--network", "none", "--storage-driver", driver];
            home.ok(&[&options[..], &[&busybox(), "sh", "-c", script, "sh", wait]].concat());
            // One has ended, the other one runs.
            let ready = if wait == "0" { "exited" } else { "86400" };
            eventually("all is changed", || {
                let root = home.run(&["exec", &name, "stat", "-c", "%Y", "/"]).stdout;
                [root.trim_end(), home.inspect(&name, "{{.State.Status}}").trim_end()].contains(&ready)
            });
            let told = home.ok(&["diff", &name]);
            assert!(!told.contains("/etc/group"), "{told}");
            home.ok(&["commit", &name, &format!("made/{name}")]);
            let options = ["run", "--rm", "--network", "none", "--storage-driver", driver];
            let seen = home.ok(&[&options[..], &[&format!("made/{name}"), "sh", "-c", look]].concat());
            // With one id it is in the layer (role notify), and not to be seen inside.
            let owner = if identity() == "one-id" { "0 0" } else { "3 4" };
            assert!(seen.starts_with("ROOT:") && seen.ends_with(&format!("\n1777 {owner} 86400\n")), "{name}: {seen}");
            let path = home.path("root.tar");
            home.ok(&["export", "-o", &path.to_string_lossy(), &name]);
            let exported = listing(&path);
            let root = "drwxrwxrwt 3/4 0 1970-01-02 00:00:00 ./".to_owned();
            assert!(exported.contains(&root), "{name}: {exported:#?}");
            home.ok(&["rm", "-f", &name]);
        }
    }
}

#[test]
fn what_was_changed_with_instructions_is_in_the_configuration() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "idle", "-e", "A=1", "-w", "/tmp", &busybox(), "true"]);
    let options =
        ["-c", "CMD [\"echo\", \"$B\"]", "-c", "ENTRYPOINT env", "--change", "ENV B=\"b c\"", "-c", "LABEL k=v"];
    home.ok(&[&["commit"][..], &options, &["idle", "made"]].concat());
    let config = image(&home, "made")["Config"].clone();
    assert_eq!(config["Cmd"], serde_json::json!(["echo", "$B"]));
    assert_eq!(config["Entrypoint"], serde_json::json!(["/bin/sh", "-c", "env"]));
    assert_eq!((&config["Labels"]["k"], &config["WorkingDir"]), (&"v".into(), &"/tmp".into()));
    let seen = home.ok(&["run", "--rm", "--network", "none", "made"]);
    assert!(seen.contains("A=1\n") && seen.contains("B=b c\n"), "{seen}");
    home.ok(&[
        "commit",
        "-c",
        "ENV PATH=/x:$PATH C=${A:-no}",
        "-c",
        "WORKDIR /$A",
        "-c",
        "ENTRYPOINT env",
        "idle",
        "two",
    ]);
    let config = image(&home, "two")["Config"].clone();
    assert_eq!((&config["WorkingDir"], &config["Cmd"]), (&"/1".into(), &Value::Null));
    let seen = home.ok(&["run", "--rm", "--network", "none", "two"]);
    assert!(seen.contains("C=1\n") && seen.lines().any(|line| line.starts_with("PATH=/x:/")), "{seen}");
    // It changed nothing, so it has no layer of its own, and its history says so.
    let layers = |name: &str| image(&home, name)["RootFS"]["Layers"].clone();
    assert_eq!(layers("made"), layers(&busybox()));
    let said = home.fails(1, &["commit", "-c", "RUN x", "idle"]);
    assert!(said.contains("RUN is not a valid change command"), "{said}");
    let said = home.fails(1, &["commit", "idle", "UPPER"]);
    assert!(said.contains("lowercase"), "{said}");
    home.fails(1, &["commit", "nobody"]);
}

/// Go reads no empty time: a configuration with one could not be read by the engines of others.
#[test]
fn a_time_that_says_nothing_is_left_out() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["tag", &busybox(), "small"]);
    let layout = home.path("layout");
    home.ok(&["save", "--format", "oci-dir", "-o", &layout.to_string_lossy(), "small"]);
    let image = crate::files::changed_config(&layout, |config| {
        config["created"] = "".into();
        config["history"] = serde_json::json!([{ "created": "", "created_by": "x" }]);
    });
    let source = format!("oci:{}", layout.display());
    home.ok(&["run", "--name", "one", "--network", "none", &source, "sh", "-c", "echo x >/x"]);
    home.ok(&["commit", "one", "made"]);
    let saved = home.path("made");
    home.ok(&["save", "--format", "oci-dir", "-o", &saved.to_string_lossy(), "made"]);
    let config = crate::files::changed_config(&saved, |_| {});
    assert!(!config.to_string().contains("\"created\":\"\""), "{config}");
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.len(), image["rootfs"]["diff_ids"].as_array().unwrap().len() + 1);
    assert!(history.last().unwrap()["created"].is_string(), "{config}");
}

#[test]
fn the_time_of_everything_can_be_given() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let ids: Vec<String> = (0..2)
        .map(|number| {
            let name = format!("c{number}");
            home.ok(&["run", "--name", &name, "--network", "none", &busybox(), "sh", "-c", "echo x >/x; mkdir /d"]);
            let mut commit = home.command(&["commit", &name]);
            let done = crate::support::finish(commit.env("SOURCE_DATE_EPOCH", "1000"), b"", crate::support::LIMIT);
            assert_eq!(done.code, 0, "{done:#?}");
            done.stdout
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    let seen = home.ok(&["run", "--rm", ids[0].trim_end(), "stat", "-c", "%Y", "/x", "/d"]);
    assert_eq!(seen, "1000\n1000\n");
    assert_eq!(image(&home, ids[0].trim_end())["Created"], "1970-01-01T00:16:40Z");
}

#[test]
fn a_running_container_is_committed_and_goes_on() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        let script = "mkdir -m 700 /shut; echo secret >/shut/f; chown -R 33:44 /shut 2>/dev/null; \
                      echo tick >>/ticks; echo done; while true; do sleep 0.1; echo tick >>/ticks; done";
        let options = ["run", "-d", "--name", driver, "--network", "none", "--storage-driver", driver];
        home.ok(&[&options[..], &[&busybox(), "sh", "-c", script]].concat());
        eventually("the payload has written", || home.ok(&["logs", driver]) == "done\n");
        let name = format!("made/{driver}");
        home.ok(&["commit", driver, &name]);
        let look = "cat /shut/f; head -n 1 /ticks; stat -c '%u %g' /shut";
        let seen = home.ok(&["run", "--rm", "--network", "none", &name, "sh", "-c", look]);
        let owner = if identity() == "one-id" { "0 0" } else { "33 44" };
        assert_eq!(seen, format!("secret\ntick\n{owner}\n"), "{driver}");
        let count = || home.ok(&["exec", driver, "wc", "-l", "/ticks"]);
        let before = count();
        eventually("it goes on", || count() != before);
        home.ok(&["commit", "--pause=false", driver]);
        home.ok(&["kill", driver]);
    }
}

#[test]
fn the_id_alone_is_printed_whatever_state_the_container_is_in() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    home.ok(&["create", "--name", "created", "--network", "none", &image, "true"]);
    home.ok(&["run", "--name", "stopped", "--network", "none", &image, "touch", "/x"]);
    for name in ["running", "paused"] {
        home.ok(&["run", "-d", "--name", name, "--network", "none", &image, "sleep", "600"]);
    }
    let status = |name: &str| home.inspect(name, "{{.State.Status}}");
    // Without a cgroup of its own nobody can pause one.
    home.run(&["pause", "paused"]);
    for name in ["created", "stopped", "running", "paused"] {
        let before = status(name);
        for options in [&[][..], &["-p=false"], &["-q"]] {
            let done = home.run(&[&["commit"], options, &[name, "made"]].concat());
            assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{name}: {done:#?}");
            let id = home.ok(&["images", "-q", "--no-trunc", "made"]);
            assert_eq!(done.stdout, id, "{name}");
        }
        assert_eq!(status(name), before);
    }
}

/// Sockets have no form in an archive, whatever other names they have.
#[test]
fn sockets_with_several_names_are_left_out() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // The log daemon binds what /dev/log leads to.
    let script = "ln -s /var/socket /dev/log && syslogd && until [ -S /var/socket ]; do sleep 0.1; done; \
                  ln /var/socket /var/again && echo x >/x";
    for driver in DRIVERS {
        kept(&home, driver, &busybox(), script);
        let done = home.run(&["commit", driver, "made"]);
        assert!(done.code == 0 && done.stderr.contains("2 sockets are not in the layer"), "{driver}: {done:#?}");
        let seen = home.ok(&[
            "run",
            "--rm",
            "--network",
            "none",
            "made",
            "sh",
            "-c",
            "cat /x; ls /var/again /var/socket 2>&1; true",
        ]);
        assert!(seen.starts_with("x\n") && seen.matches("No such file").count() == 2, "{driver}: {seen}");
        home.ok(&["export", "-o", &home.path("root.tar").to_string_lossy(), driver]);
    }
}

/// What no tool of a plain user can make.
pub fn rich() -> Vec<u8> {
    let entry = |path, kind, mode, owner| Entry { path, kind, mode, owner, ..Entry::default() };
    let capability: &[(&str, &[u8])] = &[("SCHILY.xattr.security.capability", &CAPABILITY), ("mtime", b"1700000000.5")];
    archive(&[
        entry("./", b'5', 0o755, (0, 0)),
        entry("far/", b'5', 0o1777, (FAR, FAR)),
        Entry { content: b"far\n", ..entry("far/file", b'0', 0o4755, (FAR, FAR - 1)) },
        Entry { content: b"cap\n", records: capability, ..entry("far/cap", b'0', 0o755, (0, 0)) },
        Entry { link: "far/file", ..entry("far/hard", b'1', 0o4755, (FAR, FAR - 1)) },
        Entry { device: (1, 3), ..entry("far/null", b'3', 0o666, (FAR, 0)) },
        entry("far/zero", b'0', 0o644, (0, 0)),
        Entry { link: "/nowhere", ..entry("far/soft", b'2', 0o777, (1, 2)) },
    ])
}

/// Makes an image of one layer: the small image's files, and those of [`rich`] above them.
pub fn import_rich(home: &Home, name: &str) {
    home.ok(&["run", "--name", "base", "--network", "none", &busybox(), "true"]);
    home.ok(&["export", "-o", &home.path("base.tar").to_string_lossy(), "base"]);
    let mut whole = std::fs::read(home.path("base.tar")).unwrap();
    whole.truncate(whole.len() - 1024);
    // Without the entry of the root, which is there: other engines refuse what comes twice.
    whole.extend(&rich()[512..]);
    let done: Done = home.run_with_input(&["import", "-c", "ENV PATH=/bin", "-", name], &whole);
    assert_eq!(done.code, 0, "{done:#?}");
}

#[test]
fn owners_devices_and_capabilities_survive_all_of_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    std::fs::write(home.path("rich.tar"), rich()).unwrap();
    import_rich(&home, "rich");

    for driver in DRIVERS {
        // One file of a far owner is changed and gets another name, one is touched in no way.
        kept(
            &home,
            driver,
            "rich",
            "echo more >>/far/file; ln /far/file /far/zz; ln -f /far/file /far/zero; echo new >/far/new",
        );
        home.ok(&["commit", driver, &format!("made/{driver}")]);
        let saved = home.path("saved.tar");
        home.ok(&["save", "-o", &saved.to_string_lossy(), &format!("made/{driver}")]);
        let second = Home::new(&[]).unwrap();
        home_load(&second, &saved);
        let layers = |home: &Home| image(home, &format!("made/{driver}"))["RootFS"]["Layers"].clone();
        assert_eq!(layers(&home), layers(&second), "{driver}");
        let again = second.path("again.tar");
        second.ok(&["save", "-o", &again.to_string_lossy(), &format!("made/{driver}")]);
        assert!(std::fs::read(&saved).unwrap() == std::fs::read(&again).unwrap(), "{driver}: bit for bit");

        let parts = layers_of(&home, &saved);
        let theirs: Vec<String> = listing(&parts[0]).into_iter().filter(|line| line.contains(" far/")).collect();
        let expected: Vec<String> = expected_of(&home).into_iter().filter(|line| line.contains(" far/")).collect();
        assert_eq!(theirs, expected, "{driver}: entries of the image");
        // Made anew from what the store keeps beside the blob, they are the same.
        drop_layer_blobs(&second);
        second.ok(&["save", "-o", &again.to_string_lossy(), &format!("made/{driver}")]);
        let anew: Vec<String> = listing(&layers_of(&second, &again)[0]);
        let anew: Vec<String> = anew.into_iter().filter(|line| line.contains(" far/")).collect();
        assert_eq!(anew, expected, "{driver}: made anew");
        // Writing took the set-id bit; the owner is the true one although a container cannot show it.
        let changed = listing(&parts[1]);
        let owner = format!("{FAR}/{}", FAR - 1);
        assert!(
            changed.iter().any(|line| line.contains(&owner) && line.ends_with(" far/file")),
            "{driver}: {changed:#?}"
        );
        // The owner that its header names is that of the file, for whoever unpacks it.
        for name in ["zz", "zero"] {
            let end = format!(" far/{name} link to far/file");
            let link = changed.iter().find(|line| line.ends_with(&end));
            assert!(link.is_some_and(|line| line.contains(&owner)), "{driver}: {name} of {changed:#?}");
        }
        let directory = format!("drwxrwxrwt {FAR}/{FAR} ");
        assert!(changed.iter().any(|line| line.starts_with(&directory)), "{driver}: {changed:#?}");
    }
}

/// Removes the blobs of layers; manifests and configurations stay.
pub fn drop_layer_blobs(home: &Home) {
    crate::support::each_file(&home.store().join("store/blobs"), &mut |path, metadata| {
        if metadata.is_file() && !std::fs::read(path).unwrap_or_default().starts_with(b"{") {
            std::fs::remove_file(path).unwrap();
        }
    });
}

fn expected_of(home: &Home) -> Vec<String> {
    listing(&home.path("rich.tar"))
}

fn home_load(home: &Home, archive: &std::path::Path) {
    let said = home.ok(&["load", "-i", &archive.to_string_lossy()]);
    assert!(said.starts_with("Loaded image: made/"), "{said}");
}

/// Unpacks a saved archive; the files of its one image's layers.
pub fn layers_of(home: &Home, archive: &std::path::Path) -> Vec<std::path::PathBuf> {
    let directory = home.path("unpacked");
    std::fs::remove_dir_all(&directory).ok();
    std::fs::create_dir(&directory).unwrap();
    let mut tar = std::process::Command::new("tar");
    let done =
        crate::support::finish(tar.arg("-xf").arg(archive).arg("-C").arg(&directory), b"", crate::support::LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    let manifest: Value = serde_json::from_slice(&std::fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap();
    layers.iter().map(|layer| directory.join(layer.as_str().unwrap())).collect()
}

#[test]
fn an_exported_root_is_imported_again() {
    let Some(home) = Home::with_busybox(&[Need::Registry]) else { return };
    let script = "echo x >/x; rm /etc/group; chown 12:34 /x 2>/dev/null || true";
    for driver in DRIVERS {
        kept(&home, driver, &busybox(), script);
        let path = home.path("root.tar");
        home.ok(&["export", "-o", &path.to_string_lossy(), driver]);
        let exported = listing(&path);
        let has = |name: &str| exported.iter().any(|line| line.ends_with(name));
        assert!(has(" x") && has(" etc/passwd") && !has(" etc/group"), "{exported:#?}");
        assert!(!exported.iter().any(|line| line.contains(".wh.")), "{exported:#?}");
        let name = format!("again/{driver}");
        let id =
            home.ok(&["import", "-m", "from a file", "-c", "CMD [\"cat\", \"/x\"]", &path.to_string_lossy(), &name]);
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(home.ok(&["run", "--rm", "--network", "none", &name]), "x\n");
        home.ok(&["rm", driver]);
        // What is exported again is the same.
        home.ok(&["run", "--name", driver, "--network", "none", &name, "true"]);
        home.ok(&["export", "-o", &home.path("second.tar").to_string_lossy(), driver]);
        assert!(std::fs::read(&path).unwrap() == std::fs::read(home.path("second.tar")).unwrap(), "{driver}");
    }
    home.ok(&["run", "--name", "host", "--network", "none", "host:", "true"]);
    let said = home.fails(1, &["export", "-o", "x.tar", "host"]);
    assert!(said.contains("this machine's own"), "{said}");
    let done = home.run_with_input(&["import", "-"], b"");
    assert!(done.code == 1 && done.stderr.contains("the archive is empty"), "{done:#?}");
}
