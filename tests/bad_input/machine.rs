//! Machines that lack something: devices, namespaces, a runtime directory.
//!
//! Each lack is made in a mount or user namespace of the test, so the machine itself stays as it is.

use std::process::Command;

use crate::support::{Done, Home, LIMIT, Need, Within, busybox, finish, in_namespaces, skip};

/// Runs the binary on a machine without one of its devices, as the caller (a plain one has one id then; root is root in
/// the first place).
fn without(home: &Home, device: &str, arguments: &str) -> Option<Done> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let back = if uid.is_root() { String::new() } else { format!("unshare --user --map-user={uid} --map-group={gid}") };
    let devices = ["null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"];
    let others: Vec<&str> = devices.into_iter().filter(|name| *name != device).collect();
    let prepare = format!(
        "set -e; mkdir -p dev; mount -t tmpfs dev dev; mkdir dev/net
         for name in {}; do
             if [ -e /dev/$name ]; then : >dev/$name; mount --bind /dev/$name dev/$name; fi
         done
         mount --rbind dev /dev",
        others.join(" "),
    );
    in_namespaces(home, Within::Root, &prepare, &format!("exec {back} {} {arguments}", home.bin().display()))
}

/// Makes a device one that cannot be opened.
fn closed(device: &str) -> String {
    format!("mount --bind {device} {device} && mount -o remount,bind,nodev {device}")
}

#[test]
fn without_fuse_another_driver_is_taken_and_what_needs_it_is_one_error_with_the_fix() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let Some(done) = without(&home, "fuse", &format!("run --rm --network none {} echo alive", busybox())) else {
        return;
    };
    assert_eq!((done.code, done.stdout.as_str()), (0, "alive\n"), "{done:#?}");
    assert!(done.stderr.contains("rootfs: overlay is not possible: open(\"/dev/fuse\")"), "{done:#?}");
    let asked = format!("run --rm --network none --storage-driver overlay {} true", busybox());
    let Some(done) = without(&home, "fuse", &asked) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (125, ""), "{done:#?}");
    assert_eq!(done.stderr.matches("error:").count(), 1, "{done:#?}");
    assert!(done.stderr.contains("open(\"/dev/fuse\")") && done.stderr.contains("ENOENT"), "{done:#?}");
    assert!(done.stderr.contains("hint: ") && done.stderr.contains("modprobe fuse"), "{done:#?}");
    assert!(home.containers().is_empty(), "--rm removes it");
}

#[test]
fn without_tun_there_is_one_error_with_the_fix_and_no_other_network() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(done) = without(&home, "net/tun", &format!("run --rm {} true", busybox())) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (125, ""), "{done:#?}");
    assert_eq!(done.stderr.matches("error:").count(), 1, "{done:#?}");
    assert!(done.stderr.contains("open(\"/dev/net/tun\"") && done.stderr.contains("ENOENT"), "{done:#?}");
    assert!(done.stderr.contains("modprobe tun") && done.stderr.contains("--network host or none"), "{done:#?}");
    assert!(home.containers().is_empty(), "--rm removes it");
}

#[test]
fn without_user_namespaces_the_sysctl_is_named() {
    let Some(home) = Home::with_busybox(&[Need::PlainUser]) else { return };
    // The limit of a user namespace holds for those made inside it.
    let prepare = "echo 0 >/proc/sys/user/max_user_namespaces";
    let bin = home.bin().display();
    let script = format!("exec setpriv --bounding-set -all --inh-caps -all {bin} run --rm {} true", busybox());
    let Some(done) = in_namespaces(&home, Within::Root, prepare, &script) else { return };
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
    let run = |options: &[&str]| {
        let arguments = [options, &["run", "--rm", "--network", "none", &image, "echo", "alive"]].concat();
        let mut command = home.command(&arguments);
        command.env("XDG_RUNTIME_DIR", "/");
        finish(&mut command, b"", LIMIT)
    };
    let done = run(&[]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "alive\n"), "{done:#?}");
    let line = "warning: runtime directory: XDG_RUNTIME_DIR is not possible: \"/\" belongs to uid 0";
    assert!(done.stderr.contains(line), "{done:#?}");
    let done = run(&["--strict"]);
    assert_eq!((done.code, done.stdout.as_str()), (125, ""), "{done:#?}");
}

#[test]
fn without_subordinate_ids_one_id_is_used_and_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    if crate::support::identity() != "one-id" {
        return skip("the caller has subordinate ids");
    }
    let done = home.run(&["run", "--rm", &busybox(), "stat", "-c", "%u %g", "/var/owned/file"]);
    // The map has one id, so every owner shows as it.
    assert_eq!((done.code, done.stdout.as_str()), (0, "0 0\n"), "{done:#?}");
    assert!(done.stderr.contains("subuid"), "the step down is said with its fix: {done:#?}");
}

#[test]
fn doctor_names_what_is_missing_and_the_fix() {
    let Some(home) = Home::new(&[]) else { return };
    let doctor = format!("{} doctor", home.bin().display());
    let wanted = [
        ("/dev/fuse", "rootfs", "/dev/fuse"),
        (
            "/dev/net/tun",
            "network             not possible",
            "chmod 0666 /dev/net/tun; until then --network host or none",
        ),
    ];
    for (device, row, fix) in wanted {
        let Some(done) = in_namespaces(&home, Within::Root, &closed(device), &doctor) else { return };
        assert_eq!(done.code, 0, "{done:#?}");
        let section: Vec<&str> = done.stdout.lines().skip_while(|line| !line.starts_with(row)).take(4).collect();
        assert!(section.len() > 2, "{row}: {done:#?}");
        assert!(section[1].trim_start().starts_with("not ") && section[1].contains(device), "{section:#?}");
        let told = section.iter().find(|line| line.trim_start().starts_with("fix: "));
        assert!(told.is_some_and(|line| line.contains(fix)), "{section:#?}");
    }
}

#[test]
fn root_without_other_ids_is_refused() {
    if crate::support::identity() != "root" {
        return skip("only real root could give its own id away");
    }
    let Some(home) = Home::with_busybox(&[]) else { return };
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    command.arg(format!("{} run --rm {} cat /proc/self/uid_map", home.bin().display(), busybox()));
    home.surround(&mut command);
    let done = finish(&mut command, b"", LIMIT);
    assert!(done.code == 125 && done.stderr.contains("containers of root need ids of their own"), "{done:#?}");
}

#[test]
fn root_inside_is_a_plain_user_outside() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "mapped", &busybox(), "sleep", "600"]);
    let pid = home.inspect("mapped", "{{.State.Pid}}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    let uid: u32 = uid.split_whitespace().nth(1).unwrap().parse().unwrap();
    let caller = nix::unistd::getuid().as_raw();
    assert!(if caller == 0 { uid >= 100_000 } else { uid == caller }, "root inside is {uid} on the host");
}
