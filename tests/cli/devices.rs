//! `--device` and `--gpus`: by path, by spec file, and made in memory.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{AccessFlags, access};

use crate::support::{Done, Home, LIMIT, Need, Within, busybox, finish, identity, in_namespaces, skip};

/// The small image's `stat` shows the numbers of a device in hexadecimal.
const FUSE: &str = "a:e5";
const TUN: &str = "a:c8";

/// Writes a spec file into a directory of the test's own; the options that make it count.
fn spec_file(home: &Home, name: &str, text: &str) -> [String; 2] {
    let directory = home.path("cdi");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(name), text).unwrap();
    ["--cdi-spec-dir".to_owned(), directory.to_str().unwrap().to_owned()]
}

/// A spec file of the kind `vendor.com/device`.
fn document(devices: &str, edits: &str) -> String {
    format!(r#"{{"cdiVersion":"0.7.0","kind":"vendor.com/device","devices":[{devices}],"containerEdits":{{{edits}}}}}"#)
}

/// A program of the host's.
fn script(home: &Home, name: &str, text: &str) -> PathBuf {
    let path = home.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_device_by_path_can_be_opened() {
    let Some(home) = Home::with_busybox(&[Need::Fuse, Need::Tun]) else { return };
    let numbers = "stat -c '%t:%T' /dev/fuse; : <>/dev/fuse && echo opened";
    assert_eq!(home.sh(&["--device", "/dev/fuse"], numbers), format!("{FUSE}\nopened\n"));
    let options = ["--device", "/dev/net/tun:/dev/mine/tun:rwm", "--device", "/dev/full:/dev/null"];
    let seen =
        home.sh(&options, "stat -c '%t:%T' /dev/mine/tun /dev/null; echo x 2>/dev/stdout >/dev/null || echo no room");
    assert!(seen.starts_with(&format!("{TUN}\n1:7\n")) && seen.ends_with("no room\n"), "{seen}");
    assert_eq!(home.sh(&[], "ls /dev/fuse /dev/net 2>/dev/null; echo none"), "none\n");
}

#[test]
fn a_device_outside_of_dev_for_a_container_that_is_read_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.sh(&["--device", "/dev/zero:/opt/zero"], "head -c 2 /opt/zero | od -An -tx1; stat -c %F /opt/zero");
    assert_eq!(seen, " 00 00\ncharacter special file\n");
    let seen = home.sh(&["--read-only", "--device", "/dev/zero:/dev/z"], "head -c 1 /dev/z | od -An -tx1");
    assert_eq!(seen, " 00\n");
}

#[test]
fn a_directory_gives_every_device_below_it() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    assert_eq!(home.sh(&["--device", "/dev/net:/dev/other"], "stat -c '%t:%T' /dev/other/tun"), format!("{TUN}\n"));
    let empty = home.path("empty");
    fs::create_dir(&empty).unwrap();
    let said = home.fails(125, &["run", "--rm", "--device", empty.to_str().unwrap(), &busybox(), "true"]);
    assert!(said.contains("there is no device below") && said.contains("hint: "), "{said}");
}

#[test]
fn a_link_to_a_device_is_followed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let link = home.path("link");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let option = format!("{}:/dev/there", link.display());
    assert_eq!(home.sh(&["--device", &option], "stat -c '%t:%T' /dev/there"), "1:7\n");
}

#[test]
fn every_ids_and_both_drivers_have_devices() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let script = "stat -c '%t:%T' /dev/fuse; : <>/dev/fuse && echo opened";
    let mut rungs = vec![["--storage-driver", "fuse"]];
    // Real root's own id is given to nobody, and with one id nobody may write the image's directories.
    match identity().as_str() {
        "subuids" => rungs.extend([["--userns", "single"], ["--userns", "keep-id"]]),
        "one-id" => rungs.push(["--userns", "single"]),
        _ => {}
    }
    for rung in rungs {
        let options = [rung, ["--device", "/dev/fuse"]].concat();
        assert_eq!(home.sh(&options, script), format!("{FUSE}\nopened\n"), "{rung:?}");
    }
}

#[test]
fn what_is_no_device_or_not_there_is_refused_before_anything_is_made() {
    let Some(home) = Home::new(&[]) else { return };
    let closed = fs::read_dir("/dev").unwrap().flatten().map(|entry| entry.path()).find(|path| {
        let block = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_block_device());
        block && access(path, AccessFlags::R_OK).is_err()
    });
    let mut refused = vec![
        ("/dev/no-such-device", vec!["adding the device /dev/no-such-device", "lstat(", "ENOENT", "hint: "]),
        ("/etc/passwd", vec!["/etc/passwd is not a device", "hint: ", "-v"]),
        ("dev/fuse", vec!["dev/fuse is not an absolute path"]),
        ("/dev/fuse:/dev/x:rx", vec!["bad mode specified: rx"]),
        ("/dev/fuse:/dev/x:r:w", vec!["bad format for path"]),
        ("/dev/fuse:/dev/../x", vec!["is not an absolute path"]),
    ];
    let closed = closed.map(|path| path.to_str().unwrap().to_owned());
    if let Some(closed) = closed.as_deref().filter(|_| identity() != "root") {
        refused.push((closed, vec!["whose mode is 0", "Permission denied (EACCES)", "setfacl"]));
    }
    for (device, words) in refused {
        // The image does not exist, and is not asked for.
        let said = home.fails(125, &["run", "--rm", "--device", device, "127.0.0.1:1/none", "true"]);
        assert_eq!(said.matches("error:").count(), 1, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{device}: {said}");
    }
    let said = home.fails(125, &["run", "--rm", "--device-cgroup-rule", "c 42:* rmw", "127.0.0.1:1/none", "true"]);
    assert!(said.contains("only root of the machine") && said.contains("hint: "), "{said}");
    assert!(home.containers().is_empty());
}

#[test]
fn a_device_is_not_dropped_where_a_link_of_the_container_is() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let said = home.fails(125, &["run", "--rm", "--device", "/dev/full:/dev/stdin", &busybox(), "true"]);
    assert!(said.contains("making the device /dev/stdin"), "{said}");
}

/// What is asked for and cannot be kept is said, and an error with `--strict`.
#[test]
fn permissions_that_cannot_be_enforced_are_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let run = |options: &[&str]| home.run(&[options, &["--rm", "--device", "/dev/full:r", &image, "true"]].concat());
    let done = run(&["run"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let lines = done.stderr.lines().filter(|line| line.contains("permissions \"r\" cannot be enforced")).count();
    assert_eq!(lines, 1, "{done:#?}");
    let done = run(&["--strict", "run"]);
    assert!(done.code == 125 && done.stderr.contains("--strict makes"), "{done:#?}");
}

#[test]
fn inspect_shows_devices_as_docker_does() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let edits = r#"{"name":"one","containerEdits":{"env":["ONE=1"]}}"#;
    let directory =
        spec_file(&home, "nvidia.json", &document(edits, "").replace("vendor.com/device", "nvidia.com/gpu"));
    let options = ["run", "--name", "seen", "--device", "/dev/full:/dev/f:rw", "--device", "nvidia.com/gpu=one"];
    let (image, gpus) = (busybox(), ["--gpus", "\"device=one\",capabilities=utility"]);
    home.ok(&[[directory[0].as_str(), directory[1].as_str()].as_slice(), &options, &gpus, &[image.as_str(), "true"]]
        .concat());
    assert_eq!(
        home.inspect("seen", "{{json .HostConfig.Devices}}"),
        r#"[{"CgroupPermissions":"rw","PathInContainer":"/dev/f","PathOnHost":"/dev/full"}]"#
    );
    assert_eq!(
        home.inspect("seen", "{{json .HostConfig.DeviceRequests}}"),
        concat!(
            r#"[{"Capabilities":[["utility","gpu"]],"Count":0,"DeviceIDs":["one"],"Driver":"","Options":{}},"#,
            r#"{"Capabilities":[],"Count":0,"DeviceIDs":["nvidia.com/gpu=one"],"Driver":"cdi","Options":{}}]"#
        )
    );
}

#[test]
fn a_device_of_a_spec_file_brings_nodes_variables_and_mounts() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    fs::write(home.path("library"), "of the driver\n").unwrap();
    let mount = format!(
        r#""mounts":[{{"hostPath":"{}","containerPath":"/usr/lib/driver.so","options":["ro","nosuid","nodev","bind"]}}]"#,
        home.path("library").display()
    );
    let devices = r#"{"name":"one","containerEdits":{"deviceNodes":[{"path":"/dev/given","hostPath":"/dev/fuse"}],
        "env":["ONE=first","PATH=/bin:/of/the/device"]}},{"name":"two","containerEdits":{"env":["TWO=second"]}}"#;
    let [option, directory] =
        spec_file(&home, "vendor.json", &document(devices, &format!(r#""env":["GENERAL=1"],{mount}"#)));
    let options = [option.as_str(), &directory, "--device", "vendor.com/device=one", "-e", "ONE=mine"];
    let script = "stat -c '%t:%T' /dev/given; : <>/dev/given && echo opened; cat /usr/lib/driver.so
        echo x >/usr/lib/driver.so 2>/dev/null || echo read-only; echo $GENERAL $ONE ${TWO:-none} $PATH";
    let wanted = format!("{FUSE}\nopened\nof the driver\nread-only\n1 first none /bin:/of/the/device\n");
    assert_eq!(home.sh(&options, script), wanted);
    // What is executed later has it too, with what it asks for itself on top.
    let image = busybox();
    let run =
        ["run", "-d", "--name", "later", "--device", "vendor.com/device=two", "--device", "vendor.com/device=one"];
    home.ok(&[&options[..2], &run, &[image.as_str(), "sleep", "600"]].concat());
    let seen = home.ok(&[
        "exec",
        "-e",
        "ONE=mine",
        "later",
        "sh",
        "-c",
        "echo $GENERAL $ONE $TWO; : <>/dev/given && echo opened",
    ]);
    assert_eq!(seen, "1 mine second\nopened\n");
}

/// A node's owner and mode are the container's own only where somebody could make it one.
#[test]
fn real_root_gives_a_container_nodes_of_its_own() {
    if identity() != "root" {
        return skip("the caller is not root");
    }
    let Some(home) = Home::with_busybox(&[]) else { return };
    let node = home.path("node");
    let made = Command::new("mknod").args(["-m", "600"]).arg(&node).args(["c", "1", "5"]).status().unwrap();
    assert!(made.success());
    let node = node.to_str().unwrap();
    let devices = format!(
        r#"{{"name":"one","containerEdits":{{"deviceNodes":[{{"path":"/dev/one","hostPath":"{node}","uid":7,"gid":8,
        "fileMode":416}}]}}}}"#
    );
    let [option, directory] = spec_file(&home, "vendor.json", &document(&devices, ""));
    let script =
        "stat -c '%t:%T %u %g %a' /dev/plain /dev/one; head -c 1 /dev/plain | od -An -tx1; chmod 666 /dev/plain";
    let plain = format!("{node}:/dev/plain");
    let options = [option.as_str(), &directory, "--device", "vendor.com/device=one", "--device", &plain];
    assert_eq!(home.sh(&options, script), "1:5 0 0 600\n1:5 7 8 640\n 00\n");
    let mode = fs::metadata(node).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the host's node is as it was");
}

#[test]
fn hooks_of_a_spec_file_run_at_their_time() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let log = home.path("log");
    let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
    // The caller's own rights hold for those of the runtime; those of the container see its root.
    let note =
        script(&home, "note", &format!("grep -o '\"status\":\"[a-z]*\"' | sed \"s/^/$1 /\" >>{}\n", log.display()));
    let inside = "state=$(cat); bundle=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')
        root=$(sed 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/' \"$bundle/config.json\")
        grep -q SCMP_ACT_ERRNO \"$bundle/config.json\" && ls \"$root/bin/sh\" >/dev/null && echo \"$1\" >\"$root/made-by-hook\"";
    let of = |kind: &str, path: &str| {
        format!(r#"{{"hookName":"{kind}","path":"{path}","args":["hook","{kind}"],"env":["PATH=/usr/bin:/bin"]}}"#)
    };
    let mut hooks: Vec<String> = kinds.iter().map(|kind| of(kind, note.to_str().unwrap())).collect();
    // Not as a script in the home, which is closed to the root of a container of real root.
    let create = serde_json::json!({"hookName": "createContainer", "path": "/bin/sh", "env": ["PATH=/usr/bin:/bin"],
        "args": ["sh", "-c", inside, "hook", "createContainer"]});
    hooks.push(create.to_string());
    hooks.push(
        r#"{"hookName":"startContainer","path":"/bin/sh","args":["sh","-c","echo started >/started"]}"#.to_owned(),
    );
    let devices = format!(r#"{{"name":"one","containerEdits":{{"hooks":[{}]}}}}"#, hooks.join(","));
    let [option, directory] = spec_file(&home, "vendor.json", &document(&devices, ""));
    let options = [option.as_str(), &directory, "--device", "vendor.com/device=one"];
    assert_eq!(home.sh(&options, "cat /made-by-hook /started"), "createContainer\nstarted\n");
    let wanted = ["prestart creat", "createRuntime creating", "poststart running", "poststop stopped"];
    let seen = fs::read_to_string(&log).unwrap().replace("\"status\":", "").replace('"', "");
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines.len() == 4 && lines.iter().zip(wanted).all(|(line, wanted)| line.starts_with(wanted)), "{seen}");
}

#[test]
fn a_hook_that_fails_fails_the_start() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for kind in ["createRuntime", "createContainer", "startContainer", "poststart"] {
        let devices =
            format!(r#"{{"name":"one","containerEdits":{{"hooks":[{{"hookName":"{kind}","path":"/bin/false"}}]}}}}"#);
        let [option, directory] = spec_file(&home, "vendor.json", &document(&devices, ""));
        let device = ["--device", "vendor.com/device=one"];
        let said =
            home.fails(125, &[&option, &directory, "run", "--rm", device[0], device[1], &busybox(), "sleep", "600"]);
        assert!(
            said.contains(&format!("running the {kind} hook /bin/false")) && said.contains("exit status 1"),
            "{said}"
        );
        assert!(home.containers().is_empty(), "{kind}: --rm removes it");
    }
}

/// Supplementary groups of a spec file are the container's, for whatever user.
#[test]
fn groups_of_a_spec_file_are_set_where_groups_can_be() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let devices = r#"{"name":"one","containerEdits":{"additionalGids":[0,4321]}}"#;
    let [option, directory] = spec_file(&home, "vendor.json", &document(devices, ""));
    let image = busybox();
    let run = |user: &str| {
        home.run(&[
            &option,
            &directory,
            "run",
            "--rm",
            "-u",
            user,
            "--device",
            "vendor.com/device=one",
            &image,
            "id",
            "-G",
        ])
    };
    if identity() == "one-id" {
        let done = run("0");
        assert!(done.code == 0 && done.stderr.contains("groups: the devices' groups 4321 are not set"), "{done:#?}");
        return;
    }
    for (user, groups) in [("0", "0 4321"), ("1234:5678", "5678 4321")] {
        let done = run(user);
        assert_eq!((done.code, done.stdout.trim()), (0, groups), "{done:#?}");
    }
}

/// Root stands for an administrator here: it makes a device that a plain user may open as a member of a group only.
#[test]
fn a_device_that_a_group_of_the_caller_opens_is_open_in_the_container() {
    if identity() != "root" {
        return skip("only root can give a user a group");
    }
    let Some(home) = Home::with_busybox(&[]) else { return };
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line: Vec<&str> = match passwd.lines().find(|line| line.starts_with("sublet-a:")) {
        Some(line) => line.split(':').collect(),
        None => return skip("there is no user sublet-a"),
    };
    let (uid, gid) = (line[2], line[3]);
    // Root's own directories are closed to others.
    let place = PathBuf::from(format!("/tmp/sublet-groups-{}", std::process::id()));
    let node = place.join("node");
    let prepare = format!(
        "set -e; mkdir {place}; cd {place}; mkdir data run; chmod 700 run; chown -R {uid}:{gid} .
         mknod -m 660 node c 1 5; chgrp 4321 node",
        place = place.display(),
    );
    let done = finish(Command::new("sh").args(["-c", &prepare]), b"", LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    let run = |groups: &str, more: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={gid}"), groups]).arg(home.bin());
        command.args(["run", "--rm", "--device", &format!("{}:/dev/one", node.display())]).args(more);
        command.args([&busybox(), "sh", "-c", "head -c 1 /dev/one | od -An -tx1; id -G"]);
        home.surround(&mut command);
        command.env("HOME", &place).env("XDG_DATA_HOME", place.join("data")).env("XDG_RUNTIME_DIR", place.join("run"));
        command.env("USER", "sublet-a").env("LOGNAME", "sublet-a").current_dir(&place);
        finish(&mut command, b"", LIMIT)
    };
    let done = run("--clear-groups", &[]);
    assert!(
        done.code == 125 && done.stderr.contains("become a member of group 4321, or as root: setfacl"),
        "{done:#?}"
    );
    let done = run("--groups=4321", &["--quiet"]);
    let lines: Vec<&str> = done.stderr.lines().filter(|line| line.contains("groups: ")).collect();
    assert!(done.code == 0 && lines.len() == 1 && lines[0].contains("the container keeps all of yours"), "{done:#?}");
    assert_eq!(done.stdout, " 00\n0 65534\n", "{done:#?}");
    let done = run("--groups=4321", &["--quiet", "--userns", "single"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, " 00\n0 65534\n"), "{done:#?}");
    assert!(!done.stderr.contains("groups: "), "there they are kept in any case: {done:#?}");
    fs::remove_dir_all(&place).unwrap();
}

#[test]
fn gpus_of_a_spec_file() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let device = |name: &str| {
        format!(
            r#"{{"name":"{name}","containerEdits":{{"env":["GPU_{name}=1"],"deviceNodes":[{{"path":"/dev/gpu{name}",
            "hostPath":"/dev/zero"}}]}}}}"#
        )
    };
    let devices = ["0", "1", "all"].map(device).join(",");
    let text = document(&devices, r#""env":["DRIVER=1"]"#).replace("vendor.com/device", "nvidia.com/gpu");
    let [option, directory] = spec_file(&home, "nvidia.json", &text);
    let seen = |gpus: &str| {
        home.sh(
            &[&option, &directory, "--gpus", gpus],
            "(env | grep -E '^(GPU|DRIVER)'; ls -d /dev/gpu*) | sort | tr '\\n' ' '",
        )
    };
    assert_eq!(seen("all"), "/dev/gpuall DRIVER=1 GPU_all=1 ");
    assert_eq!(seen("1"), "/dev/gpu0 DRIVER=1 GPU_0=1 ");
    assert_eq!(seen("2"), "/dev/gpu0 /dev/gpu1 DRIVER=1 GPU_0=1 GPU_1=1 ");
    assert_eq!(seen("device=1"), "/dev/gpu1 DRIVER=1 GPU_1=1 ");
    assert_eq!(
        seen("\"device=0,1\",driver=nvidia,capabilities=compute"),
        "/dev/gpu0 /dev/gpu1 DRIVER=1 GPU_0=1 GPU_1=1 "
    );
    let image = busybox();
    for (gpus, words) in [
        ("device=7", vec!["there is no device nvidia.com/gpu=7", "the devices are nvidia.com/gpu=0, nvidia.com/gpu=1"]),
        ("9", vec!["9 GPUs were asked for, and there are 2"]),
        ("device=0,count=1", vec!["cannot set both Count and DeviceIDs"]),
        ("driver=other", vec!["could not select device driver \"other\" with capabilities: [[gpu]]"]),
        ("all,capabilities=tpu", vec!["with capabilities: [[tpu gpu]]"]),
        ("some", vec!["invalid count (some)"]),
    ] {
        let said = home.fails(125, &[&option, &directory, "run", "--rm", "--gpus", gpus, &image, "true"]);
        assert!(words.iter().all(|word| said.contains(word)), "{gpus}: {said}");
    }
}

/// Runs a script on a machine that has other devices beside those that it must have: name and a device to stand for it.
/// Where the libraries of the host lie, there is a directory of the test's own.
fn with_devices(home: &Home, devices: &[(&str, &str)], arguments: &str) -> Option<Done> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let back = if uid.is_root() { String::new() } else { format!("unshare --user --map-user={uid} --map-group={gid}") };
    let usual = ["null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"].map(|name| (name, name));
    let all =
        usual.iter().chain(devices).map(|(name, device)| format!("{name}={device}")).collect::<Vec<_>>().join(" ");
    let prepare = format!(
        "set -e; mkdir -p dev lib bin; mount -t tmpfs dev dev; mkdir dev/net dev/dri
         for pair in {all}; do
             name=${{pair%%=*}}; device=${{pair#*=}}
             if [ -e /dev/$device ]; then : >dev/$name; mount --bind /dev/$device dev/$name; fi
         done
         for name in libcuda.so.1 libnvidia-ml.so.1 libother.so; do echo $name >lib/$name; done
         printf '#!/bin/sh\\necho smi\\n' >bin/nvidia-smi; chmod 755 bin/nvidia-smi
         mount --bind lib /usr/local/lib; mount --bind bin /usr/local/bin
         mount --rbind dev /dev",
    );
    in_namespaces(home, Within::Root, &prepare, &format!("exec {back} {} {arguments}", home.bin().display()))
}

#[test]
fn gpus_without_a_spec_file_are_made_in_memory() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let image = busybox();
    let run = |gpus: &str, script: &str| {
        format!("--cdi-spec-dir /nowhere run --rm --network none --gpus {gpus} {image} sh -c \"{script}\"")
    };
    let nvidia = [("nvidiactl", "null"), ("nvidia-uvm", "full"), ("nvidia0", "zero"), ("nvidia1", "random")];
    let script = "stat -c '%n %t:%T' /dev/nvidia*; ls /usr/local/nvidia/lib64; cat /usr/local/nvidia/lib64/libcuda.so.1
        nvidia-smi; echo \\$LD_LIBRARY_PATH; echo x >/usr/local/nvidia/lib64/libcuda.so.1 || echo read-only";
    let Some(done) = with_devices(&home, &nvidia, &run("all", script)) else { return };
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(
        done.stdout,
        "/dev/nvidia-uvm 1:7\n/dev/nvidia0 1:5\n/dev/nvidia1 1:8\n/dev/nvidiactl 1:3\nlibcuda.so.1\nlibnvidia-ml.so.1\n\
         libcuda.so.1\nsmi\n/usr/local/nvidia/lib64\nread-only\n"
    );
    let Some(done) = with_devices(&home, &nvidia, &run("device=1", "ls /dev | grep nvidia")) else { return };
    assert_eq!(done.stdout, "nvidia-uvm\nnvidia1\nnvidiactl\n", "{done:#?}");
    let Some(done) = with_devices(&home, &nvidia, &run("3", "true")) else { return };
    assert!(done.code == 125 && done.stderr.contains("3 GPUs were asked for, and there are 2"), "{done:#?}");

    let amd = [("kfd", "null"), ("dri/renderD128", "zero"), ("dri/card0", "full")];
    let script = "stat -c '%n %t:%T' /dev/kfd /dev/dri/*";
    let Some(done) = with_devices(&home, &amd, &run("all", script)) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (0, "/dev/kfd 1:3\n/dev/dri/renderD128 1:5\n"), "{done:#?}");

    let Some(done) = with_devices(&home, &[], &run("all", "true")) else { return };
    let words =
        ["there is no GPU", "nvidia.com/gpu or amd.com/gpu in /nowhere", "/dev/nvidiactl", "/dev/kfd", "hint: "];
    assert!(done.code == 125 && words.iter().all(|word| done.stderr.contains(word)), "{done:#?}");
}
