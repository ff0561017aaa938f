//! A container's life: detached start, logs, exec, stop, wait, kill, removal.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, Need, busybox, end, eventually, read_until, start};

#[test]
fn a_detached_container_outlives_its_command_and_is_removed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let id = home.ok(&["run", "-d", "--name", "web", &busybox(), "sh", "-c", "echo ready; sleep 600"]);
    assert!(id.len() == 65 && id.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}");
    assert_eq!(home.ok(&["ps", "-q", "--no-trunc"]), id);
    assert_eq!(home.inspect("web", "{{.State.Status}} {{.State.Running}}"), "running true");
    eventually("the log has the line", || home.ok(&["logs", "web"]) == "ready\n");
    assert_eq!(home.ok(&["exec", "web", "echo", "inside"]), "inside\n");
    assert_eq!(home.ok(&["stop", "-t", "1", "web"]), "web\n");
    assert_eq!(home.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    assert_eq!(home.ok(&["rm", "web"]), "web\n");
    assert_eq!(home.ok(&["ps", "-aq"]), "");
}

#[test]
fn stop_lets_the_command_end_by_itself() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    home.ok(&["run", "-d", "--name", "polite", &busybox(), "sh", "-c", script]);
    eventually("the trap is set", || home.ok(&["logs", "polite"]) == "ready\n");
    let began = Instant::now();
    home.ok(&["stop", "polite"]);
    assert!(began.elapsed() < Duration::from_secs(8), "the grace was waited for: {:?}", began.elapsed());
    assert_eq!(home.inspect("polite", "{{.State.ExitCode}}"), "3");
    assert_eq!(home.ok(&["logs", "polite"]), "ready\nbye\n");
}

#[test]
fn wait_prints_the_code() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "waited", &busybox(), "sh", "-c", "sleep 0.3; exit 5"]);
    assert_eq!(home.ok(&["wait", "waited"]), "5\n");
    assert_eq!(home.ok(&["wait", "waited"]), "5\n", "also after the end");
    home.run(&["run", "--name", "other", &busybox(), "sh", "-c", "exit 6"]);
    assert_eq!(home.ok(&["wait", "other", "waited"]), "6\n5\n");
    let done = home.run(&["wait", "nobody", "waited"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, "5\n"), "{done:#?}");
}

#[test]
fn kill_sends_the_signal_it_is_told() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo hup' HUP; echo ready; while :; do sleep 0.1; done";
    home.ok(&["run", "-d", "--name", "killed", &busybox(), "sh", "-c", script]);
    eventually("the trap is set", || home.ok(&["logs", "killed"]) == "ready\n");
    home.ok(&["kill", "-s", "HUP", "killed"]);
    eventually("the signal has come", || home.ok(&["logs", "killed"]) == "ready\nhup\n");
    home.ok(&["kill", "killed"]);
    assert_eq!(home.ok(&["wait", "killed"]), "137\n");
}

#[test]
fn logs_are_followed_to_the_end() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&[
        "run",
        "-d",
        "--name",
        "logged",
        &busybox(),
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.2; done; echo e >&2",
    ]);
    let done = home.run(&["logs", "-f", "logged"]);
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "1\n2\n3\n", "e\n"));
}

#[test]
fn output_of_any_size_arrives_whole() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.sh(&[], "seq 1 200000");
    let numbers: Vec<String> = (1..=200_000).map(|number: u32| number.to_string()).collect();
    let expected = numbers.join("\n") + "\n";
    assert!(seen == expected, "{} of {} bytes", seen.len(), expected.len());
}

#[test]
fn a_running_container_is_removed_by_force_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "held", &busybox(), "sleep", "600"]);
    let said = home.fails(1, &["rm", "held"]);
    assert!(
        said.contains(
            "cannot remove container \"/held\": container is running: stop the container before removing or force remove"
        ),
        "{said}"
    );
    assert_eq!(home.ok(&["rm", "-f", "held"]), "held\n");
}

#[test]
fn a_name_is_used_once() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "one", &busybox(), "sleep", "600"]);
    let said = home.fails(125, &["run", "--name", "one", &busybox(), "true"]);
    assert!(said.contains("The container name \"/one\" is already in use by container"), "{said}");
    assert_eq!(home.containers().len(), 1, "the refused one leaves no record");
    home.ok(&["rm", "-f", "one"]);
    home.ok(&["run", "--rm", "--name", "one", &busybox(), "true"]);
}

#[test]
fn what_run_with_rm_ran_is_gone_when_it_ends() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for _ in 0..20 {
        home.ok(&["run", "--rm", "--name", "one", "--network", "none", &busybox(), "true"]);
        assert!(home.containers().is_empty());
        home.fails(1, &["inspect", "one"]);
    }
    let left = || {
        let mut left = Vec::new();
        for host in fs::read_dir(home.store().join("hosts")).into_iter().flatten().flatten() {
            let places = ["containers", "snaps", "names"].map(|place| fs::read_dir(host.path().join(place)));
            left.extend(places.into_iter().flatten().flatten().flatten().map(|entry| entry.path()));
        }
        left
    };
    eventually("its files are deleted", || left().is_empty());
}

#[test]
fn names_are_checked_as_docker_does() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for name in ["x", "-ab", "a b", "a/b"] {
        let said = home.fails(125, &["run", "--name", name, &busybox(), "true"]);
        let words = format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
        assert!(said.contains(&words), "{said}");
    }
    assert!(home.containers().is_empty());
}

#[test]
fn stop_kills_after_its_ten_seconds() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // Process 1 without a handler does not notice SIGTERM.
    home.ok(&["run", "-d", "--name", "deaf", &busybox(), "sleep", "600"]);
    let began = Instant::now();
    home.ok(&["stop", "deaf"]);
    let took = began.elapsed().as_secs_f64();
    assert!((10.0..12.0).contains(&took), "{took}");
    assert_eq!(home.inspect("deaf", "{{.State.ExitCode}}"), "137");
}

#[test]
fn a_port_that_is_taken_is_one_error_and_the_container_stays_created() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:80", taken.local_addr().unwrap());
    let said = home.fails(125, &["run", "-d", "-p", &publish, "--name", "late", &busybox(), "sleep", "600"]);
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    let words = format!("Bind for {} failed: port is already allocated", taken.local_addr().unwrap());
    assert!(said.contains(&words), "{said}");
    assert_eq!(home.inspect("late", "{{.State.Status}} {{.State.Running}}"), "created false");
    home.ok(&["rm", "late"]);
    home.fails(125, &["run", "--rm", "-p", &publish, &busybox(), "true"]);
    assert!(home.containers().is_empty(), "--rm removes it");
}

#[test]
fn commands_on_nothing_fail_by_name() {
    let Some(home) = Home::new(&[]) else { return };
    for command in ["stop", "kill", "rm", "logs", "wait"] {
        let said = home.fails(1, &[command, "nobody"]);
        assert!(said.contains("No such container: nobody"), "{command}: {said}");
    }
}

#[test]
fn changes_of_a_container_stay_its_own() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "changed", &busybox(), "sh", "-c", "echo x >/etc/new; rm /etc/replaced"]);
    assert_eq!(home.ok(&["diff", "changed"]), "C /etc\nA /etc/new\nD /etc/replaced\n");
    assert_eq!(home.sh(&[], "ls /etc/new /etc/replaced 2>/dev/null; true"), "/etc/replaced\n");
}

#[test]
fn the_attached_command_may_die_and_the_container_goes_on() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let mut command =
        home.command(&["run", "--name", "on", &image, "sh", "-c", "echo ready; sleep 1; echo later; sleep 600"]);
    let mut child = start(&mut command);
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    child.kill().unwrap();
    end(child, Duration::from_secs(5));
    eventually("the container writes on", || home.ok(&["logs", "on"]) == "ready\nlater\n");
    assert_eq!(home.inspect("on", "{{.State.Running}}"), "true");
}

#[test]
fn more_output_than_input_goes_through_both_ways() {
    // Each byte in gives eight out: who writes without reading, on whichever side, would wait for the other for ever.
    let Some(home) = Home::with_busybox(&[]) else { return };
    let input = vec![b'x'; 2 << 20];
    let script = "while head -c 65536 >/tmp/piece && [ -s /tmp/piece ]; do for n in 1 2 3 4 5 6 7 8; do cat /tmp/piece; done; done";
    let done = home.run_with_input(&["run", "-i", "--rm", &busybox(), "sh", "-c", script], &input);
    assert_eq!((done.code, done.stdout.len()), (0, 16 << 20), "{}", done.stderr);
    home.ok(&["run", "-d", "--name", "both", &busybox(), "sleep", "600"]);
    let done = home.run_with_input(&["exec", "-i", "both", "sh", "-c", script], &input);
    assert_eq!((done.code, done.stdout.len()), (0, 16 << 20), "{}", done.stderr);
}

#[test]
fn arguments_may_be_many() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let many = vec!["a-hundred-bytes-of-an-argument".repeat(3); 5000];
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let count = ["sh", "-c", "echo $#", "sh"];
    assert_eq!(home.ok(&["run", "-d", "--name", "many", &image, "sleep", "600"]).len(), 65);
    assert_eq!(home.ok(&[&["exec", "many"], &count[..], &many].concat()), "5000\n");
    assert_eq!(home.ok(&[&["run", "--rm", &image], &count[..], &many].concat()), "5000\n");
}

#[test]
fn what_an_exec_leaves_behind_does_not_keep_its_monitor() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "busy", &busybox(), "sleep", "600"]);
    home.run(&["exec", "busy", "sh", "-c", "yes & exit 7"]);
    // The monitor is free to answer.
    assert_eq!(home.run(&["exec", "busy", "sh", "-c", "exit 8"]).code, 8);
    home.ok(&["rm", "-f", "busy"]);
}

#[test]
fn real_time_signals_reach_the_command_below_init() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo got; exit 4' 37; echo ready; while :; do sleep 0.1; done";
    home.ok(&["run", "-d", "--init", "--name", "timed", &busybox(), "sh", "-c", script]);
    eventually("the trap is set", || home.ok(&["logs", "timed"]) == "ready\n");
    home.ok(&["kill", "-s", "37", "timed"]);
    assert_eq!(home.ok(&["wait", "timed"]), "4\n");
    assert_eq!(home.ok(&["logs", "timed"]), "ready\ngot\n");
}

#[test]
fn a_container_that_removes_itself_is_waited_for_and_stopped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for _ in 0..3 {
        // Long enough for a loaded machine to have the next command wait before.
        home.ok(&["run", "-d", "--rm", "--name", "brief", &busybox(), "sh", "-c", "sleep 2; exit 9"]);
        assert_eq!(home.ok(&["wait", "brief"]), "9\n");
        eventually("it is gone", || home.ok(&["ps", "-aq"]).is_empty());
        home.ok(&["run", "-d", "--rm", "--name", "brief", &busybox(), "sleep", "600"]);
        home.ok(&["stop", "-t", "0", "brief"]);
        eventually("it is gone", || home.ok(&["ps", "-aq"]).is_empty());
        home.ok(&["run", "-d", "--rm", "--name", "brief", &busybox(), "sleep", "600"]);
        let done = home.run(&["rm", "-f", "brief"]);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
        eventually("it is gone", || home.ok(&["ps", "-aq"]).is_empty());
    }
}

/// What a command writes at once must not overtake the word that it runs: 2 of 900 lost it on a loaded machine.
#[test]
fn the_first_output_of_many_at_once_is_not_lost() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..40 {
                    assert_eq!(home.ok(&["run", "--rm", "--network", "none", &busybox(), "echo", "first"]), "first\n");
                }
            });
        }
    });
}

/// Once the record is gone nothing but the monitor's word tells the code.
#[test]
fn a_wait_that_is_held_up_has_the_code_of_a_container_that_is_gone() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--rm", "--name", "brief", &busybox(), "sh", "-c", "sleep 2; exit 9"]);
    let waiting = home.command(&["wait", "brief"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(waiting.id() as i32);
    let links = || fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_socket = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    eventually("it asks the monitor", || links().any(|entry| is_socket(entry.path())));
    kill(pid, Signal::SIGSTOP).unwrap();
    eventually("it is gone", || home.containers().is_empty());
    kill(pid, Signal::SIGCONT).unwrap();
    let done = waiting.wait_with_output().unwrap();
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stdout).as_ref()), (Some(0), "9\n"), "{done:?}");
}

#[test]
fn exec_has_the_surroundings_of_its_own_request() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "plain", &busybox(), "sleep", "600"]);
    assert_eq!(home.ok(&["exec", "plain", "sh", "-c", "echo ${TERM-none}"]), "none\n");
    let said = home.fails(127, &["exec", "-w", "/not/there", "plain", "pwd"]);
    assert!(said.contains("no such file or directory"), "{said}");
    assert_eq!(home.ok(&["exec", "plain", "ls", "/"]).lines().filter(|name| *name == "not").count(), 0);
}
