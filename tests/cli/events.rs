//! Events: which there are, in which order, and how they are chosen and shown.

use std::process::Stdio;

use serde_json::Value;

use crate::support::{Home, LIMIT, busybox, end, eventually, read_until, start};

/// The words of events that were, in order.
fn actions(home: &Home, filters: &[&str]) -> Vec<String> {
    let mut arguments = vec!["events", "--since", "1h", "--until", "0s", "--format", "{{.Type}} {{.Action}}"];
    for filter in filters {
        arguments.extend(["--filter", filter]);
    }
    home.ok(&arguments).lines().map(str::to_owned).collect()
}

#[test]
fn the_life_of_a_container_is_told_in_dockers_order() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let options = ["--rm", "--name", "one", "--label", "tier=front", "-v", "kept:/kept"];
    let done = home.run(&[&["run"], &options[..], &[&image, "sh", "-c", "exit 3; true"]].concat());
    assert_eq!(done.code, 3, "{done:#?}");
    let told = actions(&home, &["type=container"]);
    let wanted = ["create", "attach", "start", "die", "destroy"].map(|action| format!("container {action}"));
    assert_eq!(told, wanted);
    let told = actions(&home, &["type=volume", "volume=kept"]);
    assert_eq!(told, ["volume create", "volume mount", "volume unmount"]);
    let all = actions(&home, &[]);
    let position = |action: &str| all.iter().position(|told| told == action);
    assert!(position("volume mount") < position("container start"), "{all:?}");
    assert!(position("container die") < position("volume unmount"), "{all:?}");
    let format = "{{.Actor.ID}} {{json .Actor.Attributes}}";
    let mount = home.ok(&["events", "--since", "1h", "--until", "0s", "-f", "event=mount", "--format", format]);
    let (name, attributes) = mount.split_once(' ').unwrap();
    let attributes: Value = serde_json::from_str(attributes).unwrap();
    assert_eq!(
        (name, &attributes["destination"], &attributes["read/write"]),
        ("kept", &"/kept".into(), &"true".into())
    );
    assert!(attributes["driver"] == "local" && attributes["container"].as_str().is_some_and(|id| id.len() == 64));
    let die = home.ok(&["events", "--since", "1h", "--until", "0s", "--filter", "event=die", "--format", "json"]);
    let die: Value = serde_json::from_str(&die).unwrap();
    let attributes = &die["Actor"]["Attributes"];
    assert_eq!((attributes["exitCode"].as_str(), attributes["name"].as_str()), (Some("3"), Some("one")));
    assert_eq!((attributes["tier"].as_str(), attributes["image"].as_str()), (Some("front"), Some(image.as_str())));
    assert_eq!(
        (&die["status"], &die["id"], &die["from"]),
        (&"die".into(), &die["Actor"]["ID"], &image.as_str().into())
    );
    assert!(die["timeNano"].as_u64().unwrap() / 1_000_000_000 == die["time"].as_u64().unwrap());
    let line =
        home.ok(&["system", "events", "--since", "1h", "--until", "0s", "-f", "event=start", "-f", "container=one"]);
    assert!(
        line.contains(" container start ") && line.contains("image=") && line.ends_with(", name=one, tier=front)\n"),
        "{line}"
    );

    home.ok(&["run", "-d", "--name", "two", &image, "sleep", "100"]);
    home.ok(&["exec", "two", "true"]);
    home.ok(&["rename", "two", "three"]);
    home.ok(&["stop", "-t", "0", "three"]);
    home.ok(&["start", "three"]);
    home.ok(&["restart", "-t", "0", "three"]);
    home.ok(&["rm", "-f", "three"]);
    let id = home.ok(&["events", "--since", "1h", "--until", "0s", "-f", "container=three", "--format", "{{.ID}}"]);
    let told = actions(&home, &[&format!("container={}", id.lines().next().unwrap())]);
    let wanted = [
        "create",
        "start",
        "exec_create: true",
        "exec_start: true",
        "exec_die",
        "rename",
        "kill",
        "kill",
        "die",
        "stop",
        "start",
        "kill",
        "kill",
        "die",
        "stop",
        "start",
        "restart",
        "kill",
        "die",
        "destroy",
    ];
    assert_eq!(told, wanted.map(|action| format!("container {action}")));
    home.ok(&["tag", &image, "other"]);
    home.ok(&["rmi", "other"]);
    let told = home.ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "-f",
        "type=image",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ]);
    let familiar = told.lines().next().unwrap().strip_prefix("pull ").unwrap();
    assert!(image.starts_with(familiar), "{told}");
    assert_eq!(told.lines().skip(1).collect::<Vec<_>>(), ["tag other:latest", "untag other:latest"]);
    home.ok(&["volume", "rm", "kept"]);
    assert_eq!(
        actions(&home, &["type=volume"]),
        ["create", "mount", "unmount", "destroy"].map(|action| format!("volume {action}"))
    );
}

#[test]
fn who_waits_for_events_sees_them_as_they_come() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    home.ok(&["run", "--rm", &image, "true"]);
    let mut command = home.command(&["events", "--format", "{{.Actor.Attributes.name}} {{.Action}}"]);
    let mut waiting = start(command.stdout(Stdio::piped()));
    // It looks for what is there after it has its watch, so it is ready when it sleeps.
    let (descriptors, stat) = (format!("/proc/{}/fd", waiting.id()), format!("/proc/{}/stat", waiting.id()));
    let watches = || std::fs::read_dir(&descriptors).into_iter().flatten().flatten();
    eventually("it waits", || {
        let has_watch = watches()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.to_string_lossy().contains("inotify")));
        has_watch && std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
    });
    home.ok(&[
        "run",
        "-d",
        "--name",
        "new",
        "--health-cmd",
        "true",
        "--health-interval",
        "100ms",
        &image,
        "sleep",
        "100",
    ]);
    eventually("it is healthy", || home.inspect("new", "{{.State.Health.Status}}") == "healthy");
    home.ok(&["rm", "-f", "new"]);
    let seen = read_until(waiting.stdout.as_mut().unwrap(), "new destroy\n");
    waiting.kill().unwrap();
    end(waiting, LIMIT);
    let told: Vec<&str> = seen.lines().filter(|line| !line.contains("exec_")).collect();
    assert_eq!(told, ["new create", "new start", "new health_status: healthy", "new kill", "new die", "new destroy"]);
    let probe = "new exec_create: /bin/sh -c true\nnew exec_start: /bin/sh -c true\nnew exec_die\n";
    assert!(seen.contains(probe), "{seen}");
}

#[test]
fn old_events_go_when_there_are_too_many() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // Labels make events large: 200 KB each.
    let label = format!("large={}", "x".repeat(100_000));
    let second = format!("second={}", "y".repeat(100_000));
    for _ in 0..30 {
        home.ok(&["create", "--name", "one", "--label", &label, "--label", &second, &busybox(), "true"]);
        home.ok(&["rm", "one"]);
    }
    let directory = home.directory.join("run/sublet/events");
    let sizes: Vec<u64> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .filter(|size| *size > 0)
        .collect();
    assert!((3..=4).contains(&sizes.len()) && sizes.iter().all(|size| *size < 1_400_000), "{sizes:?}");
    let told = actions(&home, &[]);
    assert!((12..30).contains(&told.len()) && told.last().is_some_and(|last| last == "container destroy"), "{told:?}");
}

#[test]
fn one_event_is_one_line_whatever_its_words() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--name", "odd", "--label", "odd=a\u{1b}[31m\nb", &busybox(), "true"]);
    let told = home.ok(&["events", "--until", "0s", "--filter", "type=container"]);
    assert!(told.lines().count() == 1 && told.contains("odd=a\\u{1b}[31m\\nb"), "{told:?}");
    home.ok(&["rm", "odd"]);
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    assert!(home.fails(1, &["events", "--filter", "odd=1"]).contains("invalid filter 'odd'"));
    assert!(home.fails(1, &["events", "--filter", "type"]).contains("bad format of filter"));
    home.fails(1, &["events", "--since", "yesterday"]);
    // Nothing has been.
    for options in [&["--since", "1h", "--until", "0s"][..], &["--until", "0s"]] {
        assert_eq!(home.ok(&[&["events"], options].concat()), "");
    }
}
