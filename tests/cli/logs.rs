//! Logs: who keeps them, how large they become, and what is read of them.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::{Home, LIMIT, busybox, end, eventually, start};

/// The files of a container's log, with their sizes.
fn files(home: &Home, name: &str) -> Vec<(String, u64)> {
    let path = home.inspect(name, "{{.LogPath}}");
    let directory = Path::new(&path).parent().unwrap();
    let mut found: Vec<(String, u64)> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().len()))
        .filter(|(name, _)| name.starts_with("log"))
        .collect();
    found.sort();
    found
}

#[test]
fn a_log_keeps_its_size_and_its_end() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done";
    for driver in ["json-file", "k8s-file"] {
        let options = ["--log-driver", driver, "--log-opt", "max-size=20k", "--log-opt", "max-file=3"];
        home.ok(&[&["run", "--name", "wordy"], &options[..], &[&busybox(), "sh", "-c", script]].concat());
        let kept = files(&home, "wordy");
        assert_eq!(kept.len(), 3, "{kept:?}");
        // A file ends with the line that fills it.
        assert!(kept.iter().all(|(_, size)| *size < (20 << 10) + 200), "{kept:?}");
        let all = home.ok(&["logs", "wordy"]);
        let lines: Vec<&str> = all.lines().collect();
        assert!((300..3000).contains(&lines.len()), "{}", lines.len());
        let first: usize = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
        let wanted: Vec<String> = (first..3000).map(|number| format!("line {number}")).collect();
        assert_eq!(lines, wanted);
        // Over the border of two files.
        for tail in [0, 1, 250, lines.len() - 1, lines.len(), lines.len() + 10] {
            let shown = home.ok(&["logs", "--tail", &tail.to_string(), "wordy"]);
            assert_eq!(shown.lines().count(), tail.min(lines.len()), "{tail}");
            assert!(all.ends_with(&shown), "{tail}");
        }
        // A further run goes on with the numbers.
        home.ok(&["start", "-a", "wordy"]);
        let again = files(&home, "wordy");
        assert!(again.len() == 3 && again != kept, "{again:?}");
        assert!(home.ok(&["logs", "wordy"]).ends_with("line 2999\n"));
        let shown =
            home.inspect("wordy", "{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-file\"}}");
        assert_eq!(shown, format!("{driver} 3"));
        home.ok(&["rm", "wordy"]);
    }
    home.assert_store_is_ours();
}

#[test]
fn who_follows_a_log_sees_it_through_its_files() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); [ $((i % 40)) = 0 ] && sleep 0.02; done";
    let options = ["--log-opt", "max-size=10k", "--log-opt", "max-file=20"];
    home.ok(&[&["run", "-d", "--name", "wordy"], &options[..], &[&busybox(), "sh", "-c", script]].concat());
    let mut command = home.command(&["logs", "-f", "wordy"]);
    let done = end(start(command.stdout(Stdio::piped())), LIMIT);
    let wanted: Vec<String> = (0..2000).map(|number| format!("line {number}")).collect();
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), wanted);
    assert!(files(&home, "wordy").len() > 5);
}

#[test]
fn a_line_without_an_end_is_told_from_one_with_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "echo out; echo err >&2; printf 'no end'";
    home.ok(&["run", "--name", "both", "--log-driver", "k8s-file", &busybox(), "sh", "-c", script]);
    let done = home.run(&["logs", "both"]);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\nno end", "err\n"));
    let text = fs::read_to_string(home.inspect("both", "{{.LogPath}}")).unwrap();
    let kinds: Vec<String> = text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
    assert!(kinds.contains(&"stdout F out".to_owned()) && kinds.contains(&"stderr F err".to_owned()), "{kinds:?}");
    assert!(kinds.contains(&"stdout P no end".to_owned()), "{kinds:?}");
}

#[test]
fn there_is_no_log_where_none_is_wanted() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.ok(&["run", "--name", "silent", "--log-driver", "none", &busybox(), "echo", "seen"]);
    assert_eq!(seen, "seen\n");
    let said = home.fails(1, &["logs", "silent"]);
    assert!(said.contains("configured logging driver does not support reading"), "{said}");
    assert_eq!(home.inspect("silent", "{{.HostConfig.LogConfig.Type}}|{{.LogPath}}"), "none|");
    for (options, words) in [
        (&["--log-driver", "odd"][..], "no log driver named 'odd' is registered"),
        (&["--log-opt", "odd=1"], "unknown log opt 'odd' for json-file log driver"),
        (&["--log-opt", "max-size"], "must be NAME=VALUE"),
        (&["--log-opt", "max-file=0"], "max-file cannot be less than 1"),
        (&["--log-driver", "none", "--log-opt", "max-size=1m"], "unknown log opt 'max-size' for none log driver"),
    ] {
        let said = home.fails(125, &[&["run", "--rm"], options, &[&busybox(), "true"]].concat());
        assert!(said.contains(words), "{said}");
    }
    let done = home.run(&["run", "--rm", "--log-opt", "mode=blocking", &busybox(), "true"]);
    assert!(done.code == 0 && done.stderr.contains("--log-opt mode has no effect here"), "{done:#?}");
    // With systemd it is tested in a guest.
    if !Path::new("/run/systemd/journal/socket").exists() {
        let said = home.fails(125, &["run", "--rm", "--log-driver", "journald", &busybox(), "true"]);
        assert!(said.contains("journald is not enabled on this host") && said.contains("hint: "), "{said}");
    }
    home.ok(&["rm", "silent"]);
    assert_eq!(home.containers(), [""; 0]);
}

#[test]
fn readers_are_told_what_the_log_was_to_tell_them() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let options = ["--log-opt", "labels=b,none", "--log-opt", "env=A", "--log-opt", "tag=t/{{.Name}}"];
    let container = ["--name", "told", "--label", "b=x y", "-e", "A=1", &busybox(), "echo", "seen"];
    let done = home.run(&[&["run"], &options[..], &container].concat());
    assert!(done.code == 0 && !done.stderr.contains("no effect"), "{done:#?}");
    assert_eq!(home.ok(&["logs", "--details", "told"]), "A=1,b=x+y,tag=t%2Ftold seen\n");
    let with_time = home.ok(&["logs", "--details", "-t", "told"]);
    assert!(with_time.starts_with("20") && with_time.ends_with("Z A=1,b=x+y,tag=t%2Ftold seen\n"), "{with_time}");
    assert_eq!(home.ok(&["logs", "told"]), "seen\n");
}

#[test]
fn a_container_makes_room_for_another_and_tells_its_pid() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let first = home.ok(&["run", "-d", "--name", "one", &image, "sleep", "100"]);
    let pid_file = home.path("pid");
    let options = ["--name", "one", "--replace", "--pidfile", pid_file.to_str().unwrap()];
    let second = home.ok(&[&["run", "-d"], &options[..], &[&image, "sleep", "100"]].concat());
    assert_ne!(first, second);
    assert_eq!(home.ok(&["ps", "-aq", "--no-trunc"]), second);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), home.inspect("one", "{{.State.Pid}}"));
    // A name is not the beginning of an id.
    home.ok(&["create", "--name", &second[..8], "--replace", &image, "true"]);
    assert_eq!(home.containers().len(), 2);
    home.fails(125, &["run", "--rm", "--replace", &image, "true"]);
    home.ok(&["restart", "-t", "0", "one"]);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), home.inspect("one", "{{.State.Pid}}"));
}

#[test]
fn single_streams_are_joined() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // What is told once of the ids is told here.
    home.sh(&[], "true");
    let script = "echo out; echo err >&2";
    for (options, out, err) in [
        (&["-a", "stdout"][..], "out\n", ""),
        (&["-a", "STDERR"], "", "err\n"),
        (&["-a", "stdout", "--attach", "stderr"], "out\n", "err\n"),
    ] {
        let done = home.run(&[&["run", "--rm"], options, &[&busybox(), "sh", "-c", script]].concat());
        assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, out, err), "{options:?}");
    }
    let done = home.run_with_input(&["run", "--name", "fed", "-a", "stdin", &busybox(), "cat"], b"hello");
    assert_eq!(done.code, 0, "{done:#?}");
    eventually("the log has it", || home.ok(&["logs", "fed"]) == "hello");
    assert_eq!(done.stdout.trim().len(), 64, "{done:#?}");
    let said = home.fails(125, &["run", "-d", "-a", "stdout", &busybox(), "true"]);
    assert!(said.contains("cannot specify both --attach and --detach"), "{said}");
}
