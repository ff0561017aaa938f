//! Containers that are created, started, started again, renamed and paused.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Home, LIMIT, Need, busybox, end, eventually, free_port, signal, start, unique};

#[test]
fn what_is_created_waits_for_its_start() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "echo $(hostname) >>/kept; wc -l </kept; exit 3";
    let id = home.ok(&["create", "--name", "made", "--hostname", "here", &busybox(), "sh", "-c", script]);
    assert!(id.len() == 65 && id.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}");
    assert_eq!(home.ok(&["ps", "-q"]), "");
    assert_eq!(home.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}} {{.State}}"]), "made Created created\n");
    let seen = home.inspect("made", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.State.ExitCode}}");
    assert_eq!(seen, "created 0 0001-01-01T00:00:00Z 0");
    assert_eq!(home.ok(&["wait", "made"]), "0\n");
    home.fails(1, &["exec", "made", "true"]);
    // Each start is over the same writable layer.
    for lines in ["1\n", "2\n", "3\n"] {
        let done = home.run(&["start", "-a", "made"]);
        assert_eq!((done.code, done.stdout.as_str()), (3, lines), "{done:#?}");
        assert_eq!(home.inspect("made", "{{.State.Status}} {{.State.ExitCode}}"), "exited 3");
    }
    assert_eq!(home.ok(&["start", "made"]), "made\n");
    assert_eq!(home.ok(&["wait", "made"]), "3\n");
    assert_eq!(home.ok(&["logs", "made"]), "1\n2\n3\n4\n");
    home.ok(&["create", "--name", "unused", &busybox()]);
    assert_eq!(home.ok(&["rm", "unused", "made"]), "unused\nmade\n");
}

#[test]
fn several_are_started_and_one_that_runs_stays() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for name in ["one", "two"] {
        home.ok(&["create", "--name", name, &busybox(), "sleep", "600"]);
    }
    let done = home.run(&["start", "one", "nobody", "two", "one"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, "one\ntwo\none\n"), "{done:#?}");
    assert!(done.stderr.contains("No such container: nobody"), "{done:#?}");
    let pid = home.inspect("one", "{{.State.Pid}}");
    home.ok(&["container", "start", "one"]);
    assert_eq!(home.inspect("one", "{{.State.Pid}}"), pid);
    let said = home.fails(1, &["start", "-a", "one", "two"]);
    assert!(said.contains("you cannot start and attach multiple containers at once"), "{said}");
}

#[test]
fn a_start_joins_the_input_when_asked() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "-i", "--name", "fed", &busybox(), "cat"]);
    for _ in 0..2 {
        let done = home.run_with_input(&["start", "-ai", "fed"], b"one\ntwo\n");
        assert_eq!((done.code, done.stdout.as_str()), (0, "one\ntwo\n"), "{done:#?}");
    }
    home.ok(&["create", "--name", "closed", &busybox(), "cat"]);
    let done = home.run_with_input(&["start", "-ai", "closed"], b"not for it\n");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "created without -i: {done:#?}");
}

#[test]
fn a_start_that_fails_leaves_what_was_before() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["create", "--name", "wrong", &busybox(), "not-there"]);
    let said = home.fails(1, &["start", "wrong"]);
    assert!(said.contains("executable file not found"), "{said}");
    home.fails(1, &["start", "-a", "wrong"]);
    assert_eq!(home.inspect("wrong", "{{.State.Status}} {{.State.ExitCode}}"), "created 127");
    let port = free_port();
    home.ok(&["run", "--name", "late", "-p", &format!("127.0.0.1:{port}:80"), &busybox(), "true"]);
    let ended = home.inspect("late", "{{.State.StartedAt}} {{.State.FinishedAt}}");
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let said = home.fails(1, &["start", "late"]);
    assert!(said.contains("port is already allocated"), "{said}");
    assert_eq!(home.inspect("late", "{{.State.Status}} {{.State.ExitCode}}"), "exited 125");
    assert_eq!(home.inspect("late", "{{.State.StartedAt}} {{.State.FinishedAt}}"), ended);
    drop(taken);
    home.ok(&["start", "-a", "late"]);
    assert_eq!(home.inspect("late", "{{.State.ExitCode}}|{{.State.Error}}"), "0|");
}

#[test]
fn ports_and_volumes_come_with_each_start() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let (port, other) = (free_port(), free_port());
    let (web, any) = (format!("127.0.0.1:{port}:80"), format!("127.0.0.1:{other}:53/udp"));
    let script = "echo x >>/data/x; cp /data/x /kept; exec httpd -f -p 80";
    let options = ["-p", &web, "-p", &any, "-v", "kept:/data", "-v", "/anonymous"];
    let command = [&busybox(), "sh", "-c", script];
    home.ok(&[&["create", "--name", "web"], &options[..], &command[..]].concat());
    assert_eq!(home.ok(&["port", "web"]), "", "nothing is published yet");
    for written in ["x\n", "x\nx\n"] {
        home.ok(&["start", "web"]);
        eventually("it has written", || home.run(&["exec", "web", "cat", "/data/x"]).stdout == written);
        eventually("its server answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let both = format!("53/udp -> 127.0.0.1:{other}\n80/tcp -> 127.0.0.1:{port}\n");
        assert_eq!(home.ok(&["port", "web"]), both);
        assert_eq!(home.ok(&["port", "web", "80"]), format!("127.0.0.1:{port}\n"));
        assert_eq!(home.ok(&["container", "port", "web", "53/udp"]), format!("127.0.0.1:{other}\n"));
        let said = home.fails(1, &["port", "web", "53"]);
        assert!(said.contains("no public port '53' published for web"), "{said}");
        home.ok(&["stop", "-t", "0", "web"]);
        eventually("its port is free", || TcpStream::connect(("127.0.0.1", port)).is_err());
    }
    assert_eq!(home.sh(&["-v", "kept:/data"], "cat /data/x"), "x\nx\n");
    home.ok(&["rm", "-v", "web"]);
    assert_eq!(home.ok(&["volume", "ls", "-q"]), "kept\n");
}

#[test]
fn what_writes_to_a_volume_are_kept_over_starts() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    fs::create_dir(home.path("source")).unwrap();
    let volume = format!("{}:/s:cow", home.path("source").display());
    home.ok(&["create", "--name", "cow", "-v", &volume, &busybox(), "sh", "-c", "echo x >>/s/x; wc -l </s/x"]);
    assert_eq!(home.ok(&["start", "-a", "cow"]), "1\n");
    assert_eq!(home.ok(&["start", "-a", "cow"]), "2\n");
    assert_eq!(fs::read_dir(home.path("source")).unwrap().count(), 0);
}

#[test]
fn one_that_is_to_remove_itself_stays_until_it_has_run() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--rm", "--name", "brief", &busybox(), "sh", "-c", "exit 4"]);
    home.sh(&[], "true");
    assert_eq!(home.inspect("brief", "{{.State.Status}}"), "created");
    assert_eq!(home.run(&["start", "-a", "brief"]).code, 4);
    assert!(home.containers().is_empty());
    home.ok(&["create", "--rm", "--name", "brief", &busybox(), "sleep", "600"]);
    home.ok(&["start", "brief"]);
    let pid = home.inspect("brief", "{{.State.Pid}}");
    // Not removed in between.
    assert_eq!(home.ok(&["restart", "-t", "0", "brief"]), "brief\n");
    assert_ne!(home.inspect("brief", "{{.State.Pid}}"), pid);
    home.ok(&["stop", "-t", "0", "brief"]);
    eventually("it is gone", || home.containers().is_empty());
}

#[test]
fn the_id_is_written_to_a_file() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let file = home.path("cid");
    let name = file.to_str().unwrap();
    let id = home.ok(&["create", "--cidfile", name, &busybox()]);
    assert_eq!(fs::read_to_string(&file).unwrap(), id.trim_end());
    let said = home.fails(1, &["create", "--cidfile", name, &busybox()]);
    let words = "container ID file found, make sure the other container isn't running or delete";
    assert!(said.contains(&format!("{words} {name}")), "{said}");
    home.fails(125, &["run", "--rm", "--cidfile", name, &busybox(), "true"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), id.trim_end(), "it is not touched");
    fs::remove_file(&file).unwrap();
    home.fails(1, &["create", "--pull", "never", "--cidfile", name, "localhost/not-there"]);
    assert!(!file.exists(), "without a container it goes again");
    home.ok(&["run", "--rm", "--cidfile", name, &busybox(), "true"]);
    assert_eq!(fs::read_to_string(&file).unwrap().len(), 64);
}

#[test]
fn a_restart_is_a_stop_and_a_start() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo bye; exit 0' USR1; echo up; while :; do sleep 0.1; done";
    home.ok(&["run", "-d", "--name", "again", &busybox(), "sh", "-c", script]);
    eventually("the trap is set", || home.ok(&["logs", "again"]) == "up\n");
    let before = home.inspect("again", "{{.State.Pid}} {{.State.StartedAt}}");
    assert_eq!(home.ok(&["restart", "-s", "USR1", "again"]), "again\n");
    assert_ne!(home.inspect("again", "{{.State.Pid}} {{.State.StartedAt}}"), before);
    eventually("it runs again", || home.ok(&["logs", "again"]) == "up\nbye\nup\n");
    home.ok(&["kill", "again"]);
    home.ok(&["wait", "again"]);
    home.ok(&["container", "restart", "again"]);
    assert_eq!(home.inspect("again", "{{.State.Status}}"), "running");
    // Each of them takes down what the next one makes: cgroup, socket, network.
    for _ in 0..20 {
        home.ok(&["restart", "-t", "0", "again"]);
        assert_eq!(home.ok(&["exec", "again", "echo", "here"]), "here\n");
    }
    home.fails(1, &["restart", "nobody"]);
}

#[test]
fn a_name_is_exchanged_and_the_old_one_is_free() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "old", &busybox(), "sleep", "600"]);
    home.ok(&["create", "--name", "other", &busybox()]);
    assert_eq!(home.ok(&["rename", "old", "new"]), "");
    assert_eq!(home.inspect("new", "{{.Name}}"), "/new");
    home.fails(1, &["inspect", "old"]);
    assert_eq!(home.ok(&["exec", "new", "echo", "here"]), "here\n");
    for (name, words) in [
        ("other", "The container name \"/other\" is already in use by container"),
        ("new", "Renaming a container with the same name as its current name"),
        ("a b", "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
        ("", "Neither old nor new names may be empty"),
    ] {
        let said = home.fails(1, &["rename", "new", name]);
        assert!(said.contains(words), "{name}: {said}");
    }
    home.ok(&["container", "rename", "other", "old"]);
    assert_eq!(home.ok(&["ps", "-a", "--format", "{{.Names}}"]), "old\nnew\n");
    home.ok(&["rm", "-f", "new", "old"]);
    home.ok(&["create", "--name", "new", &busybox()]);
}

#[test]
fn a_rename_that_is_killed_leaves_one_name() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--name", "first", &busybox()]);
    for step in 1.. {
        let killed =
            home.command(&["rename", "first", "second"]).env("SUBLET_KILL_AT", format!("command:{step}")).status();
        if killed.unwrap().success() {
            break;
        }
        // The next one that makes a container tidies up.
        home.sh(&[], "true");
        let name = home.inspect(home.containers()[0].as_str(), "{{.Name}}");
        let gone = if name == "/first" { "second" } else { "first" };
        home.ok(&["create", "--name", gone, &busybox()]);
        home.ok(&["rm", gone]);
        if name == "/second" {
            home.ok(&["rename", "second", "first"]);
        }
        assert!(step < 20, "it ends");
    }
}

#[test]
fn what_is_paused_stands_still() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "while :; do echo x; sleep 0.02; done";
    home.ok(&["run", "-d", "--name", "still", &busybox(), "sh", "-c", script]);
    let done = home.run(&["pause", "still"]);
    if done.code != 0 {
        // Where there is no cgroup it is refused, with what would help.
        assert!(done.stderr.contains("has no cgroup") && done.stderr.contains("hint: "), "{done:#?}");
        return;
    }
    assert_eq!(done.stdout, "still\n");
    let seen = home.inspect("still", "{{.State.Status}} {{.State.Running}} {{.State.Paused}}");
    assert_eq!(seen, "paused true true");
    let row = home.ok(&["ps", "--format", "{{.State}} {{.Status}}"]);
    assert!(row.starts_with("paused Up ") && row.ends_with(" (Paused)\n"), "{row:?}");
    assert_eq!(home.ok(&["ps", "-q", "--filter", "status=paused"]).lines().count(), 1);
    assert_eq!(home.ok(&["ps", "-q", "--filter", "status=running"]), "");
    std::thread::sleep(Duration::from_millis(100));
    let log = home.ok(&["logs", "still"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(home.ok(&["logs", "still"]), log);
    for (command, words) in [
        (&["pause", "still"][..], "is already paused"),
        (&["exec", "still", "true"], "is paused, unpause the container before exec"),
        (&["attach", "still"], "you cannot attach to a paused container, unpause it first"),
        (&["start", "still"], "cannot start a paused container, try unpause instead"),
        (&["rm", "still"], "container is paused and must be unpaused first"),
    ] {
        let said = home.fails(1, command);
        assert!(said.contains(words), "{command:?}: {said}");
    }
    assert_eq!(home.ok(&["container", "unpause", "still"]), "still\n");
    eventually("it goes on", || home.ok(&["logs", "still"]) != log);
    let said = home.fails(1, &["unpause", "still"]);
    assert!(said.contains("is not paused"), "{said}");
    // A signal would not be noticed.
    for command in [&["stop", "-t", "1", "still"][..], &["restart", "-t", "1", "still"], &["kill", "still"]] {
        home.ok(&["restart", "-t", "0", "still"]);
        home.ok(&["pause", "still"]);
        let began = Instant::now();
        home.ok(command);
        assert!(began.elapsed() < Duration::from_secs(8), "{command:?}: {:?}", began.elapsed());
    }
    eventually("it has ended", || home.inspect("still", "{{.State.Status}}") == "exited");
    assert!(home.fails(1, &["pause", "still"]).contains("is not running"));
    home.ok(&["start", "still"]);
    home.ok(&["pause", "still"]);
    home.ok(&["rm", "-f", "still"]);
}

#[test]
fn what_is_waited_for_can_be_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--name", "later", &busybox(), "sh", "-c", "exit 7"]);
    let wait = |condition: &str| {
        let mut command = home.command(&["wait", "--condition", condition, "later"]);
        let child = start(&mut command);
        // What is waited for must not be there before it is.
        std::thread::sleep(Duration::from_millis(200));
        child
    };
    let (next, running, removed) = (wait("next-exit"), wait("running"), wait("removed"));
    for _ in 0..3 {
        home.run(&["start", "-a", "later"]);
    }
    assert_eq!(end(next, LIMIT).stdout, "7\n");
    let again = wait("next-exit");
    home.run(&["start", "-a", "later"]);
    assert_eq!(end(again, LIMIT).stdout, "7\n");
    // So short a run may be over before it is seen.
    signal(&running, Signal::SIGKILL);
    end(running, LIMIT);
    home.ok(&["rm", "later"]);
    assert_eq!(end(removed, LIMIT).stdout, "7\n");
    home.ok(&["run", "-d", "--name", "later", &busybox(), "sleep", "600"]);
    assert_eq!(home.ok(&["container", "wait", "--condition", "running", "later"]), "-1\n");
    home.fails(125, &["wait", "--condition", "odd", "later"]);
}

#[test]
fn its_processes_are_shown_by_ps() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let (mark, other) = (unique(), unique());
    home.ok(&["run", "-d", "--init", "--name", "busy", &busybox(), "sleep", &mark]);
    home.ok(&["exec", "-d", "busy", "sleep", &other]);
    let table = home.ok(&["top", "busy"]);
    let mut lines = table.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(titles, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    let rows: Vec<&str> = lines.collect();
    assert_eq!(rows.len(), 3, "{table}");
    for mark in [&mark, &other] {
        assert_eq!(rows.iter().filter(|row| row.ends_with(&format!("sleep {mark}"))).count(), 1, "{table}");
    }
    let table = home.ok(&["container", "top", "busy", "-eo", "pid,args"]);
    assert_eq!(table.lines().next().map(|line| line.split_whitespace().collect()), Some(vec!["PID", "COMMAND"]));
    assert!(home.fails(1, &["top", "busy", "-eo", "args"]).contains("Couldn't find PID field in ps output"));
    assert!(home.fails(1, &["top", "busy", "--no-such-option"]).contains("ps: "));
    home.ok(&["kill", "busy"]);
    home.ok(&["wait", "busy"]);
    assert!(home.fails(1, &["top", "busy"]).contains("is not running"));
}
