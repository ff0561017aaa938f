//! What commands print about containers, images and the machine.

use std::fs;

use serde_json::Value;

use crate::support::{DRIVERS, Home, busybox};

#[test]
fn ps_has_dockers_columns() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "shown", "--label", "a=b", &busybox(), "sleep", "600"]);
    let table = home.ok(&["ps"]);
    let heads: Vec<&str> = table.lines().next().unwrap_or_default().split("  ").map(str::trim).collect();
    let heads: Vec<&str> = heads.into_iter().filter(|head| !head.is_empty()).collect();
    assert_eq!(heads, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    let row = table.lines().nth(1).unwrap_or_default();
    assert!(row.contains("\"sleep 600\"") && row.contains("Up ") && row.ends_with("shown"), "{row:?}");
    // The image's own labels are a container's too.
    let format = "{{.Names}}|{{.Image}}|{{.State}}|{{.Labels}}|{{.Label \"a\"}}";
    assert_eq!(home.ok(&["ps", "--format", format]), format!("shown|{}|running|a=b,fixture=busybox|b\n", busybox()));
}

#[test]
fn ended_containers_are_shown_when_asked() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.run(&["run", "--name", "ended", &busybox(), "sh", "-c", "exit 4"]);
    assert_eq!(home.ok(&["ps", "-q"]), "");
    let status = home.ok(&["ps", "-a", "--format", "{{.Status}}"]);
    assert!(status.starts_with("Exited (4) "), "{status}");
}

/// As in Docker it is contents of files that are counted, and nothing that an engine adds.
#[test]
fn sizes_are_those_of_contents() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        let options = ["run", "-d", "--network", "none", "--storage-driver", driver];
        let id = home.ok(&[&options[..], &[&busybox(), "sleep", "600"]].concat());
        let id = id.trim_end();
        let size = || home.ok(&["ps", "--format", "{{.Size}}", "--filter", &format!("id={id}")]);
        assert!(size().starts_with("0B (virtual "), "{driver}: {}", size());
        let script = "mkdir /new && printf 12345 >/new/file && ln /new/file /new/again && ln -s file /new/link";
        home.ok(&["exec", id, "sh", "-c", script]);
        assert!(size().starts_with("5B (virtual "), "{driver}: {}", size());
        assert_eq!(home.ok(&["inspect", "--size", "--format", "{{.SizeRw}}", id]), "5\n");
        home.ok(&["rm", "-f", id]);
    }
}

#[test]
fn inspect_is_an_array_of_json() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "known", "-e", "A=b", "--read-only", &busybox(), "sleep", "600"]);
    let value: Value = serde_json::from_str(&home.ok(&["inspect", "known"])).unwrap();
    let one = &value[0];
    assert_eq!(one["Name"], "/known");
    assert_eq!(one["Config"]["Cmd"], serde_json::json!(["sleep", "600"]));
    assert_eq!(one["Config"]["Image"], busybox());
    assert!(one["Config"]["Env"].as_array().unwrap().contains(&"A=b".into()));
    assert_eq!(one["HostConfig"]["ReadonlyRootfs"], true);
    assert_eq!(one["State"]["Running"], true);
    assert_eq!(one["State"]["OOMKilled"], false);
    // Where nothing can be limited the start is refused, and the record is there all the same.
    home.run(&["run", "--name", "limited", "--memory", "64m", &busybox(), "true"]);
    assert_eq!(home.inspect("limited", "{{.HostConfig.Memory}}"), (64 << 20).to_string());
    let done = home.run(&["inspect", "nobody"]);
    assert_eq!((done.code, done.stdout.trim()), (1, "[]"), "{done:#?}");
}

#[test]
fn images_are_listed_and_removed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let table = home.ok(&["images"]);
    let heads = table.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    assert_eq!(heads, ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert!(table.lines().nth(1).unwrap_or_default().starts_with(&busybox()), "{table}");
    home.ok(&["run", "--name", "user", &busybox(), "true"]);
    home.fails(1, &["rmi", &busybox()]);
    home.ok(&["rm", "user"]);
    home.ok(&["rmi", &busybox()]);
    assert_eq!(home.ok(&["images", "-q"]), "");
}

#[test]
fn the_engine_tells_what_it_is_and_what_it_found() {
    let Some(home) = Home::new(&[]) else { return };
    assert!(home.ok(&["version"]).contains(env!("CARGO_PKG_VERSION")));
    home.ok(&["info"]);
    let found = home.ok(&["doctor"]);
    for part in ["ids", "rootfs", "/proc, /sys", "network", "cgroup", "console", "runtime directory"] {
        assert!(found.lines().any(|line| line.starts_with(part)), "no row for {part}:\n{found}");
    }
}

#[test]
fn help_names_every_command() {
    let Some(home) = Home::new(&[]) else { return };
    let help = home.ok(&["--help"]);
    let commands = [
        "pull", "run", "ps", "logs", "stop", "kill", "wait", "rm", "exec", "images", "rmi", "inspect", "version",
        "info", "doctor", "diff",
    ];
    for command in commands {
        let own_line = help.lines().any(|line| line.split_whitespace().next() == Some(command));
        assert!(own_line, "no line for {command}:\n{help}");
    }
}

/// A data directory on a network file system is that of several machines.
#[test]
fn containers_of_another_machine_are_shown_as_such() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--name", "here", &busybox(), "true"]);
    let hosts = home.store().join("hosts");
    let here = fs::read_dir(&hosts).unwrap().next().unwrap().unwrap().path();
    let called = fs::read_to_string(here.join("hostname")).unwrap();
    assert_eq!(called, nix::unistd::gethostname().unwrap().to_str().unwrap());
    let id = "7".repeat(64);
    let machine = hosts.join("0123456789abcdef0123456789abcdef");
    let there = machine.join("containers").join(&id);
    fs::create_dir_all(&there).unwrap();
    fs::create_dir_all(machine.join("names")).unwrap();
    fs::write(machine.join("names/there"), &id).unwrap();
    let config =
        fs::read_to_string(here.join("containers").join(home.inspect("here", "{{.Id}}")).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["id"] = id.as_str().into();
    config["name"] = "there".into();
    fs::write(there.join("config.json"), config.to_string()).unwrap();
    // Of a process that is not here, and is not looked for.
    fs::write(there.join("state.json"), r#"{"format":1,"status":"running","pid":1}"#).unwrap();

    assert_eq!(home.ok(&["ps", "-a", "--format", "{{.Names}}"]), "here\n");
    let all = ["ps", "--all-machines", "--format", "{{.Names}} {{.State}} {{.Status}}"];
    assert_eq!(home.ok(&all), "there running Up on 0123456789abcdef0123456789abcdef\n");
    fs::write(machine.join("hostname"), "login1").unwrap();
    assert_eq!(home.ok(&all), "there running Up on login1\n");
    for name in ["there", &id] {
        let said = home.fails(1, &["stop", name]);
        assert!(said.contains(&format!("{name} is a container of the machine login1")), "{said}");
    }
    home.ok(&["container", "prune", "-f"]);
    assert_eq!(home.ok(&all), "there running Up on login1\n");
    // One that cannot be read hides no other.
    fs::write(there.join("config.json"), "{").unwrap();
    let done = home.run(&["ps", "-a", "--all-machines", "-q"]);
    assert!(done.code == 0 && done.stderr.contains("of login1"), "{done:#?}");
}
