//! What commands print about containers, images and the machine.

use serde_json::Value;

use crate::support::{Home, busybox};

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
