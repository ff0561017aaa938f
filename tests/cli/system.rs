//! What concerns all containers of a user: those that are there after a boot, letting go of what they share, and the end of all.

use std::fs;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;

use crate::support::{Home, LIMIT, busybox, eventually, finish, processes, skip};

fn state(home: &Home, name: &str) -> String {
    home.inspect(name, "{{.State.Status}}")
}

/// Whether a process is gone, or waits to be reaped.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

#[test]
fn policies_decide_what_is_started_at_boot() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let run = |name: &str, policy: &str| {
        let arguments = ["run", "-d", "--name", name, "--network", "none", "--restart", policy];
        home.ok(&[&arguments[..], &[&busybox(), "sleep", "1000"]].concat());
    };
    for (name, policy) in [
        ("always", "always"),
        ("ended", "always"),
        ("running", "unless-stopped"),
        ("stopped", "unless-stopped"),
        ("killed", "unless-stopped"),
        ("again", "unless-stopped"),
        ("failing", "on-failure"),
        ("never", "no"),
    ] {
        run(name, policy);
    }
    home.ok(&["create", "--name", "new", "--network", "none", "--restart", "always", &busybox(), "sleep", "1000"]);
    home.ok(&["stop", "-t", "0", "ended", "stopped", "again"]);
    home.ok(&["kill", "killed"]);
    home.ok(&["wait", "killed"]);
    home.ok(&["start", "again"]);
    // What runs is left alone.
    let pid = home.inspect("always", "{{.State.Pid}}");
    let started = home.ok(&["system", "boot"]);
    let ids = |names: &[&str]| -> Vec<String> { names.iter().map(|name| home.inspect(name, "{{.Id}}")).collect() };
    assert_eq!(started.lines().collect::<Vec<_>>(), ids(&["ended", "new"]));
    assert_eq!(home.inspect("always", "{{.State.Pid}}"), pid);
    assert_eq!(["stopped", "killed", "never"].map(|name| state(&home, name)), ["exited", "exited", "running"]);
    // What a boot ends no command has ended.
    for name in ["always", "ended", "running", "again", "failing", "never", "new"] {
        let (id, pid) = (home.inspect(name, "{{.Id}}"), home.inspect(name, "{{.State.Pid}}"));
        let monitors = processes(|words| words[0] == "sublet-monitor" && id.starts_with(&words[1]));
        assert_eq!(monitors.len(), 1, "{name}");
        // The monitor first, which would start the container again.
        for pid in [monitors[0], pid.parse().unwrap()] {
            if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
                home.ok(&["system", "reset", "-f"]);
                return skip("the payload's ids are not the caller's to kill");
            }
            eventually("it has ended", || has_ended(pid));
        }
    }
    let started = home.ok(&["system", "boot"]);
    assert_eq!(started.lines().collect::<Vec<_>>(), ids(&["always", "ended", "running", "again", "new"]));
    for name in ["stopped", "killed", "failing", "never"] {
        assert_eq!(state(&home, name), "exited", "{name}");
    }
    home.ok(&["system", "reset", "-f"]);
}

#[test]
fn a_unit_is_written_and_taken_away() {
    let Some(home) = Home::new(&[]) else { return };
    let directory = home.path(".config/systemd/user");
    let unit = directory.join("sublet-restart.service");
    let said = home.fails(1, &["system", "disable"]);
    assert!(said.contains("there is no sublet-restart.service"), "{said}");
    for _ in 0..2 {
        assert_eq!(home.ok(&["system", "enable"]), format!("{}\n", unit.display()));
    }
    let text = fs::read_to_string(&unit).unwrap();
    let command = format!("ExecStart=\"{}\" --root \"{}\" system boot\n", home.bin().display(), home.store().display());
    assert!(text.contains(&command) && text.contains("WantedBy=default.target"), "{text}");
    let link = directory.join("default.target.wants/sublet-restart.service");
    assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(&unit).unwrap());
    home.ok(&["system", "disable"]);
    assert!(!unit.exists() && fs::symlink_metadata(&link).is_err());
}

#[test]
fn migrating_stops_all_and_makes_what_they_shared_anew() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "one", "--network", "none", &busybox(), "sleep", "1000"]);
    home.ok(&["--store", "other", "pull", &busybox()]);
    home.ok(&["--store", "other", "run", "-d", "--name", "two", "--network", "none", &busybox(), "sleep", "1000"]);
    home.ok(&["create", "--name", "three", "--network", "none", &busybox(), "true"]);
    let ids = [home.inspect("one", "{{.Id}}"), home.ok(&["--store", "other", "inspect", "-f", "{{.Id}}", "two"])];
    let told = home.ok(&["system", "migrate"]);
    let mut told: Vec<&str> = told.lines().collect();
    let mut expected = ids.map(|id| format!("stopped {}", id.trim_end()));
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert_eq!(state(&home, "one"), "exited");
    for view in fs::read_dir(home.directory.join("run/sublet/fs")).into_iter().flatten().flatten() {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        // Its path is too long for an address.
        let directory = fs::File::open(view.path()).unwrap();
        let address = UnixAddr::new(format!("/proc/self/fd/{}/sock", directory.as_raw_fd()).as_str()).unwrap();
        assert_eq!(connect(socket.as_raw_fd(), &address), Err(Errno::ECONNREFUSED), "no server lingers");
    }
    assert_eq!(home.ok(&["system", "migrate"]), "");
    home.ok(&["start", "one"]);
    assert_eq!(home.ok(&["exec", "one", "echo", "alive"]), "alive\n");
}

#[test]
fn a_reset_leaves_nothing() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let run = |arguments: &[&str]| home.ok(&[&["run", "-d", "--network", "none"], arguments].concat());
    run(&[
        "--name",
        "one",
        "-v",
        "named:/data",
        "-v",
        "/anonymous",
        &busybox(),
        "sh",
        "-c",
        "chown 5 /data; sleep 1000",
    ]);
    run(&["--name", "two", &busybox(), "true"]);
    home.ok(&["--store", "other", "pull", &busybox()]);
    home.ok(&["--store", "other", "run", "-d", "--network", "none", &busybox(), "sleep", "1000"]);
    home.ok(&["commit", "two", "made:here"]);
    home.ok(&["network", "create", "net"]);
    home.ok(&["create", "--network", "net", &busybox(), "true"]);
    let done = finish(&mut home.command(&["system", "reset"]), b"n\n", LIMIT);
    assert!(done.code == 0 && done.stdout.contains("all volumes") && done.stdout.contains("[y/N]"), "{done:#?}");
    assert_eq!(state(&home, "one"), "running");
    // A container whose record is broken goes too, and what another reset has not finished.
    let hosts: Vec<_> = fs::read_dir(home.store().join("hosts")).unwrap().flatten().collect();
    fs::write(hosts[0].path().join("containers").join(home.inspect("two", "{{.Id}}")).join("config.json"), "").unwrap();
    fs::create_dir_all(home.store().join(".gone-store-1/objects")).unwrap();
    assert_eq!(finish(&mut home.command(&["system", "reset"]), b"y\n", LIMIT).code, 0);
    let left: Vec<_> = fs::read_dir(home.store()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(
        (home.ok(&["ps", "-aq"]), home.ok(&["images", "-q"]), home.ok(&["volume", "ls", "-q"])),
        Default::default()
    );
    assert_eq!(home.run(&["network", "exists", "net"]).code, 1);
    home.ok(&["pull", &busybox()]);
    assert_eq!(home.ok(&["run", "--rm", "--network", "none", &busybox(), "echo", "alive"]), "alive\n");
    home.ok(&["system", "reset", "--force"]);
    home.ok(&["system", "reset", "--force"]);
}

/// What containers of another machine stand on stays.
#[test]
fn a_reset_is_for_this_machine() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--name", "there", "--network", "none", &busybox(), "true"]);
    let hosts = home.store().join("hosts");
    let here = fs::read_dir(&hosts).unwrap().flatten().next().unwrap().path();
    let there = hosts.join("0123456789abcdef0123456789abcdef");
    fs::rename(&here, &there).unwrap();
    fs::write(there.join("hostname"), "login1").unwrap();
    home.ok(&["run", "-d", "--name", "here", "--network", "none", &busybox(), "sleep", "1000"]);
    let done = home.run(&["system", "reset", "-f"]);
    assert!(done.code == 0 && done.stderr.contains("of machine login1 "), "{done:#?}");
    assert!(there.exists() && !here.exists());
    assert_eq!(home.ok(&["system", "fsck"]).lines().filter(|line| line.contains("clean")).count(), 1);
    fs::rename(&there, &here).unwrap();
    home.ok(&["start", "-a", "there"]);
}

#[test]
fn settings_are_shown_with_what_has_set_them() {
    let Some(home) = Home::new(&[]) else { return };
    let format = ["config", "show", "--format", "{{.Name}}|{{.Value}}|{{.Origin}}"];
    let plain = home.ok(&format);
    let data = home.store();
    for line in [
        format!("root|{}|XDG_DATA_HOME", data.display()).as_str(),
        "cache-max|unlimited|default",
        "strict|false|default",
    ] {
        assert!(plain.lines().any(|found| found == line), "{line}: {plain}");
    }
    let mut command = home.command(&[&["--root", "/elsewhere", "--strict"], &format[..]].concat());
    let done = finish(command.env("SUBLET_STORE", "second").env("https_proxy", "http://p:1"), b"", LIMIT);
    for line in [
        "root|/elsewhere|--root",
        "strict|true|--strict",
        "store|second|SUBLET_STORE",
        "https-proxy|http://p:1|https_proxy",
    ] {
        assert!(done.stdout.lines().any(|found| found == line), "{line}: {done:#?}");
    }
    assert!(
        home.ok(&["config", "show", "--origin"]).starts_with("NAME ")
            && !home.ok(&["config", "show"]).contains("ORIGIN")
    );
}

#[test]
fn what_a_daemon_was_told_of_registries_is_taken_over() {
    let Some(home) = Home::new(&[]) else { return };
    let daemon = home.path("daemon.json");
    let import = || home.run(&["config", "import", daemon.to_str().unwrap()]);
    fs::write(&daemon, r#"{"registry-mirrors":["https://mirror.test"],"dns":["192.0.2.1"]}"#).unwrap();
    let done = import();
    let made = home.path(".config/containers/registries.conf.d/sublet-imported.conf");
    assert_eq!((done.code, done.stdout), (0, format!("{}\n", made.display())), "{}", done.stderr);
    assert!(done.stderr.contains("not taken over: dns: --dns of run"), "{}", done.stderr);
    let shown = home.ok(&["config", "show", "--format", "{{.Name}}|{{.Value}}"]);
    assert!(shown.contains(&format!("registries.conf|{}\n", made.display())), "{shown}");
    fs::write(&daemon, "{}").unwrap();
    assert!(import().stderr.contains("says nothing of registries"));
    fs::write(&daemon, "{").unwrap();
    assert_eq!(import().code, 1);
}
