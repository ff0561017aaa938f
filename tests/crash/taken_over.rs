//! The container of a monitor that was killed gets another monitor from the next command that lists or names it.

use std::fs;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{Home, LIMIT, Need, busybox, end, eventually, free_port, skip, start, unique};
use crate::{Victim, code, of_role, payloads};

#[test]
fn it_executes_follows_and_stops_as_before() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let script = format!(
        "trap 'echo asked; exit 7' TERM; sleep {number} & i=0; while :; do i=$((i+1)); echo line $i; sleep .01; done"
    );
    let victim = Victim::start_command(&home, &["--network", "none"], number, &["sh", "-c", &script]);
    for _ in 0..3 {
        assert_eq!(victim.kill(&["monitor"]), 1);
        let done = home.run(&["exec", "victim", "echo", "alive"]);
        assert_eq!((done.code, done.stdout.as_str()), (0, "alive\n"), "{done:#?}");
        assert!(done.stderr.contains("victim: its monitor was killed, and another one takes over"), "{done:#?}");
        let done = home.run(&["exec", "victim", "echo", "alive"]);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    }
    let lines = || home.ok(&["logs", "victim"]).lines().count();
    let before = lines();
    eventually("the log goes on", || lines() > before + 10);
    let follower = start(&mut home.command(&["logs", "-f", "-n", "1", "victim"]));
    let waiter = start(&mut home.command(&["wait", "victim"]));
    home.ok(&["stop", "victim"]);
    assert_eq!(end(waiter, LIMIT).stdout.trim_end(), code(7));
    assert!(end(follower, LIMIT).stdout.ends_with("\nasked\n"));
    let shown = home.inspect("victim", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}");
    assert_eq!(shown, format!("exited {} 0", code(7)));
    let log = home.ok(&["logs", "victim"]);
    let numbers: Vec<u32> = log.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u32), "no line is lost or there twice: {log}");
    home.assert_store_is_ours();
    victim.assert_removed_without_a_trace();
}

/// Nobody but those who wait is there to notice.
#[test]
fn who_waits_finds_it_another_monitor() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let volume = format!("{}:/from", home.directory.join("home").display());
    let script =
        format!("sleep {number} & i=0; until [ -e /from/go ]; do sleep .05; done; seq 1 30000; kill $!; exit 3");
    let options = ["--network", "none", "-v", &volume];
    let victim = Victim::start_command(&home, &options, number, &["sh", "-c", &script]);
    let waiter = start(&mut home.command(&["wait", "victim"]));
    let follower = start(&mut home.command(&["logs", "-f", "victim"]));
    // Both have to be at it; the second one is as soon as the first.
    eventually("the payload runs", || !payloads(&victim.number).is_empty());
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(victim.kill(&["monitor"]), 1);
    eventually("there is another monitor", || of_role("monitor").iter().any(|pid| !victim.before.contains(pid)));
    fs::write(home.path("go"), "").unwrap();
    assert_eq!(end(waiter, LIMIT).stdout.trim_end(), code(3));
    let followed = end(follower, LIMIT).stdout;
    assert!(followed.lines().eq((1..=30_000).map(|line| line.to_string())), "all that was written is followed");
    victim.assert_removed_without_a_trace();
}

#[test]
fn commands_at_once_make_one_monitor() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &["--network", "none"]);
    for _ in 0..5 {
        assert_eq!(victim.kill(&["monitor"]), 1);
        let all: Vec<_> = (0..8).map(|_| start(&mut home.command(&["exec", "victim", "echo", "alive"]))).collect();
        for one in all {
            let done = end(one, LIMIT);
            assert_eq!((done.code, done.stdout.as_str()), (0, "alive\n"), "{done:#?}");
        }
        assert_eq!(of_role("monitor").iter().filter(|pid| !victim.before.contains(pid)).count(), 1);
    }
    victim.assert_removed_without_a_trace();
}

/// The health check and the policy go on.
#[test]
fn its_policy_and_its_health_check_go_on() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let number = unique();
    let options =
        ["--restart", "always", "--health-cmd", "echo probed", "--health-interval", "100ms", "--health-retries", "1"];
    let victim = Victim::start_command(&home, &options, number.clone(), &["sleep", &number]);
    let health = || home.inspect("victim", "{{.State.Health.Status}}");
    eventually("it is healthy", || health() == "healthy");
    assert_eq!(victim.kill(&["monitor"]), 1);
    eventually("the network process has ended too", || of_role("net").iter().all(|pid| victim.before.contains(pid)));
    let done = home.run(&["inspect", "-f", "{{.RestartCount}} {{len .NetworkSettings.Ports}}", "victim"]);
    assert!(done.stdout.starts_with("0 "), "{done:#?}");
    assert!(!done.stderr.contains("network"), "{done:#?}");
    let last = || home.inspect("victim", "{{range .State.Health.Log}}{{.Start}}\n{{end}}");
    let before = last();
    eventually("it is probed again", || last() != before && health() == "healthy");
    let first = home.inspect("victim", "{{.State.Pid}}");
    // It is there again soon after.
    if !payloads(&victim.number).iter().all(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()) {
        home.ok(&["rm", "-f", "victim"]);
        return skip("the payload's ids are not the caller's to kill");
    }
    eventually("it runs again", || home.inspect("victim", "{{.RestartCount}} {{.State.Status}}") == "1 running");
    assert_ne!(home.inspect("victim", "{{.State.Pid}}"), first);
    assert_eq!(of_role("net").iter().filter(|pid| !victim.before.contains(pid)).count(), 1, "it has a network again");
    assert_eq!(home.ok(&["exec", "victim", "echo", "alive"]), "alive\n");
    // What was started again has left what it takes to go on as well.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(victim.kill(&["monitor"]), 1);
    home.ok(&["stop", "-t", "0", "victim"]);
    assert_eq!(home.inspect("victim", "{{.State.Status}} {{.State.ExitCode}}"), format!("exited {}", code(137)));
    victim.assert_removed_without_a_trace();
}

#[test]
fn it_is_removed_at_its_end_where_it_was_to_be() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let volume = format!("{}:/from", home.directory.join("home").display());
    let script = format!("sleep {number} & until [ -e /from/go ]; do sleep .05; done; kill $!; exit 5");
    let options = ["--rm", "--network", "none", "-v", &volume];
    let victim = Victim::start_command(&home, &options, number, &["sh", "-c", &script]);
    assert_eq!(victim.kill(&["monitor"]), 1);
    let waiter = start(&mut home.command(&["wait", "victim"]));
    eventually("there is another monitor", || of_role("monitor").iter().any(|pid| !victim.before.contains(pid)));
    fs::write(home.path("go"), "").unwrap();
    assert_eq!(end(waiter, LIMIT).stdout.trim_end(), code(5));
    // Its monitor takes the runtime directory down before it removes the container.
    eventually("it is gone, by no other command", || !victim.directory.exists());
    assert!(home.containers().is_empty());
    eventually("the runtime directory is gone", || !victim.run_dir.exists());
}

#[test]
fn without_its_terminal_it_goes_on_and_that_is_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let script = format!("trap '' HUP; sleep {number}");
    let victim = Victim::start_command(&home, &["-t", "--network", "none"], number, &["sh", "-c", &script]);
    eventually("the payload runs", || !payloads(&victim.number).is_empty());
    assert_eq!(victim.kill(&["monitor"]), 1);
    let done = home.run(&["exec", "victim", "echo", "alive"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "alive\n"), "{done:#?}");
    assert!(done.stderr.contains("its terminal ended with the monitor"), "{done:#?}");
    assert_eq!(home.ok(&["exec", "-t", "victim", "echo", "alive"]), "alive\r\n");
    victim.assert_removed_without_a_trace();
}

/// One that stands still is taken over too, and what reads nothing lets it go on.
#[test]
fn a_paused_one_goes_on_when_it_is_told_to() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &["--network", "none"]);
    if victim.cgroup.is_none() {
        home.ok(&["rm", "-f", "victim"]);
        return skip("there is no cgroup to freeze");
    }
    home.ok(&["pause", "victim"]);
    assert_eq!(victim.kill(&["monitor"]), 1);
    assert_eq!(home.inspect("victim", "{{.State.Status}}"), "paused");
    home.ok(&["unpause", "victim"]);
    assert_eq!(home.ok(&["exec", "victim", "echo", "alive"]), "alive\n");
    victim.assert_removed_without_a_trace();
}

/// Where there is nothing, or nothing whole, to take it over by, it can be ended all the same.
#[test]
fn what_cannot_be_taken_over_is_told_and_ended() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &["--network", "none"]);
    assert_eq!(victim.kill(&["monitor"]), 1);
    for text in ["", "{\"format\":1}", "[]"] {
        fs::write(victim.directory.join("monitor.json"), text).unwrap();
        let said = home.fails(1, &["exec", "victim", "true"]);
        assert!(said.contains("no other could take over") && said.contains("its monitor was killed"), "{said}");
    }
    // As of a run that was just beginning.
    fs::remove_file(victim.directory.join("monitor.json")).unwrap();
    let said = home.fails(1, &["exec", "victim", "true"]);
    assert!(
        !said.contains("take over") && said.contains("its monitor was killed") && said.contains("hint: "),
        "{said}"
    );
    victim.assert_told_as_running();
    home.ok(&["kill", "victim"]);
    assert_eq!(home.ok(&["wait", "victim"]), "255\n", "the code could not be learnt");
    assert!(home.ok(&["ps", "-a", "--format", "{{.Status}}"]).starts_with("Exited (255)"));
    assert_eq!(home.ok(&["logs", "-f", "victim"]), "");
    victim.assert_removed_without_a_trace();
}

/// Where process 1 reaps nobody, as that of many a CI job, what was executed in a container whose monitor was killed is never
/// reaped, and so the kernel never tells of the container's end.
#[test]
fn what_nobody_reaps_holds_no_command_up() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    set_child_subreaper(true).unwrap();
    for adopted_first in [true, false] {
        let victim = Victim::start(&home, &["--network", "none"]);
        let executed = unique();
        home.ok(&["exec", "-d", "victim", "sleep", &executed]);
        eventually("it is executed", || !payloads(&executed).is_empty());
        assert_eq!(victim.kill(&["monitor"]), 1);
        if adopted_first {
            assert_eq!(home.inspect("victim", "{{.State.Status}}"), "running");
        } else if !victim.kill_payload() {
            skip("the payload's ids are not the caller's to kill");
            break;
        }
        home.ok(&["stop", "-t", "0", "victim"]);
        assert_eq!(home.inspect("victim", "{{.State.Status}}"), "exited");
        victim.assert_removed_without_a_trace();
    }
    set_child_subreaper(false).unwrap();
    reap_all();
}

/// What has ended, and the first processes that have waited for that to be reaped. One file server may go on.
fn reap_all() {
    let next = || waitpid(None, Some(WaitPidFlag::WNOHANG));
    for _ in 0..20 {
        while matches!(next(), Ok(status) if status != WaitStatus::StillAlive) {}
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn its_networks_are_there_again() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "shared"]);
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    for (options, shared) in [(vec![], false), (vec!["--network", "shared"], true)] {
        let victim = Victim::start(&home, &[&options[..], &["-p", &publish]].concat());
        let addresses = || home.ok(&["exec", "victim", "ip", "addr", "show", "dev", "eth0"]);
        let answers = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let leads_out = || home.run(&["exec", "victim", "nslookup", "host.docker.internal"]).code == 0;
        assert!(answers() && leads_out());
        let before = addresses();
        // Alone in the network first, which then ends with the monitor.
        for with_peer in [false, true] {
            if with_peer && shared {
                home.ok(&["run", "-d", "--name", "peer", "--network", "shared", &busybox(), "sleep", "600"]);
            }
            // The roles of networks end by themselves, or stay.
            let monitors: Vec<i32> =
                of_role("monitor").into_iter().filter(|pid| is_of(*pid, &home, "victim")).collect();
            assert_eq!(monitors.len(), 1);
            kill(Pid::from_raw(monitors[0]), Signal::SIGKILL).unwrap();
            eventually("it is dead", || crate::has_ended(monitors[0]));
            let done = home.run(&["inspect", "victim"]);
            assert!(done.stderr.contains("another one takes over") && !done.stderr.contains("network"), "{done:#?}");
            eventually("its port answers", answers);
            eventually("it leads out", leads_out);
            let without_numbers = |text: String| text.split("inet").skip(1).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(without_numbers(addresses()), without_numbers(before.clone()));
            if with_peer && shared {
                eventually("its name is known", || home.run(&["exec", "peer", "nslookup", "victim"]).code == 0);
                assert_eq!(home.run(&["exec", "victim", "ping", "-c", "1", "-W", "5", &peer_address(&home)]).code, 0);
                home.ok(&["rm", "-f", "peer"]);
            }
        }
        victim.assert_removed_without_a_trace();
    }
}

/// With the monitors of all members their network has ended.
#[test]
fn a_network_is_there_again_whose_members_all_lost_their_monitors() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "lost"]);
    for name in ["one", "two"] {
        home.ok(&["run", "-d", "--name", name, "--network", "lost", &busybox(), "sleep", "600"]);
    }
    let monitors: Vec<i32> = of_role("monitor")
        .into_iter()
        .filter(|pid| ["one", "two"].iter().any(|name| is_of(*pid, &home, name)))
        .collect();
    assert_eq!(monitors.len(), 2);
    // They leave what it takes when their containers have run for a moment.
    std::thread::sleep(std::time::Duration::from_millis(300));
    for pid in &monitors {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    eventually("they are dead", || monitors.iter().all(|pid| crate::has_ended(*pid)));
    home.ok(&["ps"]);
    for (from, to) in [("one", "two"), ("two", "one")] {
        let address = home.inspect(to, "{{.NetworkSettings.Networks.lost.IPAddress}}");
        eventually("they reach each other", || {
            home.run(&["exec", from, "ping", "-c", "1", "-W", "2", &address]).code == 0
        });
        assert!(home.ok(&["exec", from, "nslookup", to]).contains(&address));
    }
    home.ok(&["rm", "-f", "one", "two"]);
}

fn is_of(pid: i32, home: &Home, name: &str) -> bool {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split('\0').nth(1).is_some_and(|id| home.inspect(name, "{{.Id}}").starts_with(id) && !id.is_empty())
}

fn peer_address(home: &Home) -> String {
    home.inspect("peer", "{{.NetworkSettings.Networks.shared.IPAddress}}")
}

/// The hooks that the monitor owes are run by who takes over, or by one of the commands that notice the end.
#[test]
fn its_poststop_hooks_run_once() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let (directory, told) = (home.path("cdi"), home.path("told"));
    fs::create_dir_all(&directory).unwrap();
    let hook = json!({"hookName": "poststop", "path": "/bin/sh", "args": ["sh", "-c", "echo hook >>\"$0\"", told]});
    let devices = json!([{"name": "one", "containerEdits": {"hooks": [hook]}}]);
    let spec = json!({"cdiVersion": "0.8.0", "kind": "example.com/hooks", "devices": devices});
    fs::write(directory.join("hooks.json"), spec.to_string()).unwrap();
    let directory = directory.to_string_lossy().into_owned();
    let options = ["--cdi-spec-dir", &directory, "--device", "example.com/hooks=one", "--network", "none"];
    let said = || fs::read_to_string(&told).unwrap_or_default();

    let victim = Victim::start(&home, &options);
    assert_eq!(victim.kill(&["monitor"]), 1);
    home.ok(&["stop", "-t", "0", "victim"]);
    eventually("the successor has run it", || said() == "hook\n");
    victim.assert_removed_without_a_trace();

    let victim = Victim::start(&home, &options);
    assert_eq!(victim.kill(&["monitor"]), 1);
    if !victim.kill_payload() {
        return skip("the payload's ids are not the caller's to kill");
    }
    let all = [&["ps"][..], &["inspect", "victim"], &["wait", "victim"], &["ps", "-a"]].repeat(2);
    let all: Vec<_> = all.into_iter().map(|words| start(&mut home.command(words))).collect();
    for one in all {
        assert_eq!(end(one, LIMIT).code, 0);
    }
    assert_eq!(said(), "hook\nhook\n");
    victim.assert_removed_without_a_trace();
    assert_eq!(said(), "hook\nhook\n");
}
