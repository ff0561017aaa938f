//! Restart policies: which ends are followed by a start, how often and when, and what ends a policy.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Home, LIMIT, Need, busybox, end, eventually, start};

/// Runs a script in the background, with these options.
fn runs(home: &Home, options: &[&str], script: &str) {
    let image = busybox();
    home.ok(&[&["run", "-d", "--name", "one"], options, &[image.as_str(), "sh", "-c", script]].concat());
}

fn state(home: &Home) -> String {
    home.inspect("one", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}")
}

#[test]
fn a_failure_is_tried_again_so_often_with_longer_waits() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let began = Instant::now();
    runs(&home, &["--restart", "on-failure:3"], "echo run; echo x >> /runs; exit 3");
    // The first end counts, though it is started again.
    assert_eq!(home.ok(&["wait", "one"]), "3\n");
    eventually("it has ended", || state(&home) == "exited 3 3");
    // 100, 200 and 400 ms.
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    // One log, and one writable layer.
    assert_eq!(home.ok(&["logs", "one"]), "run\n".repeat(4));
    home.ok(&["cp", "one:/runs", "."]);
    assert_eq!(std::fs::read_to_string(home.path("runs")).unwrap(), "x\n".repeat(4));
    assert_eq!(
        home.inspect("one", "{{json .HostConfig.RestartPolicy}}"),
        r#"{"MaximumRetryCount":3,"Name":"on-failure"}"#
    );
    // A command's start counts anew.
    home.ok(&["start", "one"]);
    eventually("it has ended again", || state(&home) == "exited 3 3");
    assert_eq!(home.ok(&["logs", "one"]), "run\n".repeat(8));
    home.assert_store_is_ours();
}

#[test]
fn success_ends_a_policy_of_failures_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    runs(&home, &["--restart", "on-failure"], "test -e /second && exit 0; touch /second; exit 1");
    eventually("it has ended", || state(&home) == "exited 0 1");
    home.ok(&["rm", "one"]);
    runs(&home, &["--restart", "always"], "exit 0");
    eventually("it was started again", || !home.inspect("one", "{{.RestartCount}}").starts_with('0'));
    eventually("it waits", || state(&home).starts_with("restarting 0 "));
    assert!(home.ok(&["ps", "--format", "{{.State}} {{.Status}}"]).starts_with("restarting Restarting (0) "));
    assert_eq!(home.ok(&["ps", "-q", "--filter", "status=restarting"]).lines().count(), 1);
    assert_eq!(home.inspect("one", "{{.State.Running}} {{.State.Restarting}} {{.State.Pid}}"), "true true 0");
    for (command, words) in [
        (&["exec", "one", "true"][..], "is restarting, wait until the container is running"),
        (&["attach", "one"], "is restarting, wait until the container is running"),
        (&["pause", "one"], "is restarting, wait until the container is running"),
        (&["cp", "one:/etc", "."], "is restarting, wait until the container is running"),
        (&["rm", "one"], "container is restarting: stop the container before removing or force remove"),
    ] {
        // It runs for a moment now and then.
        eventually(words, || {
            let done = home.run(command);
            done.code != 0 && done.stderr.contains(words)
        });
    }
    home.ok(&["stop", "one"]);
    assert!(state(&home).starts_with("exited 0 "), "{}", state(&home));
    home.ok(&["start", "one"]);
    eventually("it waits", || state(&home).starts_with("restarting 0 "));
    home.ok(&["rm", "-f", "one"]);
    assert_eq!(home.containers(), [""; 0]);
}

/// Has the container's first process end of its own will; the shell that says so may be gone with it before it has ended.
fn end_by_itself(home: &Home) {
    let done = home.run(&["exec", "one", "sh", "-c", "kill -TERM 1"]);
    assert!([0, 137].contains(&done.code), "{done:#?}");
}

#[test]
fn stop_kill_and_update_end_a_policy() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let count = || home.inspect("one", "{{.RestartCount}} {{.State.Status}}");
    runs(&home, &["--restart", "unless-stopped"], "trap 'exit 0' TERM; while :; do sleep 0.02; done");
    home.ok(&["exec", "one", "kill", "-KILL", "1"]);
    end_by_itself(&home);
    eventually("it was started again", || count() == "1 running");
    for end in [&["stop", "one"][..], &["kill", "one"], &["kill", "-s", "TERM", "one"]] {
        home.ok(end);
        eventually("it stays down", || home.inspect("one", "{{.State.Status}}") == "exited");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(home.inspect("one", "{{.State.Status}}"), "exited", "{end:?}");
        home.ok(&["start", "one"]);
        assert_eq!(count(), "0 running");
    }
    let pid = home.inspect("one", "{{.State.Pid}}");
    home.ok(&["restart", "-t", "0", "one"]);
    assert_ne!(home.inspect("one", "{{.State.Pid}}"), pid);
    assert_eq!(home.ok(&["update", "--restart", "no", "one"]), "one\n");
    end_by_itself(&home);
    eventually("it has ended", || count() == "0 exited");
    home.ok(&["update", "--restart", "always", "one"]);
    home.ok(&["start", "one"]);
    end_by_itself(&home);
    eventually("it was started again", || count() == "1 running");
}

#[test]
fn who_is_attached_sees_one_run() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let done = home.run(&["run", "--name", "one", "--restart", "always", &image, "sh", "-c", "echo out; exit 4"]);
    assert_eq!((done.code, done.stdout.as_str()), (4, "out\n"), "{done:#?}");
    eventually("it was started again", || !home.inspect("one", "{{.RestartCount}}").starts_with('0'));
    home.ok(&["rm", "-f", "one"]);
    // With a terminal too, and with the reaper.
    home.ok(&["run", "-dt", "--init", "--name", "one", "--restart", "on-failure:1", &image, "sh", "-c", "tty; exit 5"]);
    eventually("it has ended", || state(&home) == "exited 5 1");
    assert_eq!(home.ok(&["logs", "one"]), "/dev/pts/0\r\n".repeat(2));
}

#[test]
fn a_start_that_fails_later_ends_the_policy() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let (image, program) = (busybox(), "cp /bin/busybox /tmp/sh");
    home.ok(&["run", "--name", "base", &image, "sh", "-c", program]);
    home.ok(&["commit", "base", "own"]);
    home.ok(&["run", "-d", "--name", "one", "--restart", "always", "own", "/tmp/sh", "-c", "rm /tmp/sh; exit 1"]);
    eventually("it has ended", || home.inspect("one", "{{.State.Status}}") == "exited");
    let seen = home.inspect("one", "{{.State.ExitCode}} {{.RestartCount}} {{.State.Error}}");
    assert!(seen.starts_with("127 1 ") && seen.contains("/tmp/sh"), "{seen}");
    // The first start is not repeated either.
    let done = home.run(&["run", "-d", "--name", "two", "--restart", "always", &image, "/none"]);
    assert_eq!((done.code, home.inspect("two", "{{.State.Status}}").as_str()), (127, "created"), "{done:#?}");
}

#[test]
fn network_limits_and_volumes_are_there_after_a_restart() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let limits = home.limits(&busybox());
    let options = [&["--init", "--restart", "always", "-p", "127.0.0.1::80", "-v", "kept:/kept"][..], limits].concat();
    let script = "echo $(hostname) > /www; cat /sys/fs/cgroup/pids.max; ls /kept; touch /kept/$(ls /kept | wc -l); \
                  echo web > /index.html; exec httpd -f -p 80 -h /";
    runs(&home, &options, script);
    let get = || {
        let port = home.ok(&["port", "one", "80"]).trim().rsplit(':').next().unwrap_or_default().to_owned();
        let request = "GET /index.html HTTP/1.0\r\n\r\n";
        let line = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3");
        let answer = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
        String::from_utf8_lossy(&answer.stdout).contains("web")
    };
    eventually("it answers", get);
    if !limits.is_empty() {
        home.ok(&["update", "--pids-limit", "100", "one"]);
    }
    // It may be ended with the container itself.
    home.run(&["exec", "one", "killall", "httpd"]);
    eventually("it was started again", || state(&home) == "running 0 1");
    eventually("it answers again", get);
    let log = home.ok(&["logs", "one"]);
    assert!(log.ends_with("\n0\n") || limits.is_empty() && log.ends_with("0\n"), "{log}");
    assert!(limits.is_empty() || log == "200\n100\n0\n", "{log}");
}

#[test]
fn what_is_no_policy_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (options, words) in [
        (
            &["--restart", "x"][..],
            "invalid restart policy: unknown policy 'x'; use one of 'no', 'always', 'on-failure', or",
        ),
        (&["--restart", ":1"], "invalid restart policy format: no policy provided before colon"),
        (&["--restart", "on-failure:x"], "invalid restart policy format: maximum retry count must be an integer"),
        (&["--restart", "on-failure:-1"], "maximum retry count cannot be negative"),
        (&["--restart", "always:1"], "maximum retry count can only be used with 'on-failure'"),
        (&["--restart", "always", "--rm"], "conflicting options: cannot specify both --restart and --rm"),
    ] {
        let image = busybox();
        let said = home.fails(125, &[&["run"], options, &[image.as_str(), "true"]].concat());
        assert!(said.contains(words), "{options:?}: {said}");
    }
    assert_eq!(home.containers(), [""; 0]);
    home.ok(&["run", "-d", "--rm", "--name", "brief", &busybox(), "sleep", "600"]);
    let said = home.fails(1, &["update", "--restart", "always", "brief"]);
    assert!(
        said.contains("Restart policy cannot be updated because AutoRemove is enabled for the container"),
        "{said}"
    );
}

#[test]
fn a_signal_that_ends_an_attached_container_ends_it_for_good() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'exit 3' TERM USR1; echo ready; while :; do sleep 0.05; done";
    let run = |options: &[&str], signal: Signal| {
        let image = busybox();
        let arguments =
            [&["run", "--name", "one", "--restart", "always"], options, &[&image, "sh", "-c", script]].concat();
        let child = start(&mut home.command(&arguments));
        eventually("it is ready", || home.run(&["logs", "one"]).stdout.contains("ready"));
        crate::support::signal(&child, signal);
        assert_eq!(end(child, LIMIT).code, 3);
    };
    run(&[], Signal::SIGTERM);
    eventually("it stays down", || state(&home) == "exited 3 0");
    home.ok(&["rm", "one"]);
    // One that names its signal is not ended by another.
    run(&["--stop-signal", "USR1"], Signal::SIGTERM);
    eventually("it was started again", || state(&home) == "running 0 1");
    home.ok(&["rm", "-f", "one"]);
    run(&["--stop-signal", "USR1"], Signal::SIGUSR1);
    eventually("it stays down", || state(&home) == "exited 3 0");
    home.ok(&["rm", "one"]);
}

#[test]
fn what_comes_back_after_a_boot_is_told() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let told = |policy: &str| {
        let done = home.run(&["run", "-d", "--restart", policy, &busybox(), "sleep", "600"]);
        assert_eq!(done.code, 0, "{done:#?}");
        done.stderr.contains("once `sublet system enable` has been run")
    };
    assert!(told("always") && told("unless-stopped") && !told("on-failure"));
    home.ok(&["system", "enable"]);
    assert!(!told("always"));
}
