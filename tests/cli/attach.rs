//! Joining a container's streams, leaving it by keys, and whose signals are whose.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Home, LIMIT, busybox, end, eventually, processes, read_until, signal, start};

/// Starts the binary on a terminal; what is written to its standard input is typed there.
fn on_a_terminal(home: &Home, arguments: &str) -> Child {
    let mut script = Command::new("script");
    script.args(["-qec", &format!("{} {arguments}", home.bin().display()), "/dev/null"]);
    home.surround(&mut script);
    start(script.stdin(Stdio::piped()))
}

/// Who joins a container's streams blocks signals shortly before.
fn blocks_signals(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    !status.contains("SigBlk:\t0000000000000000")
}

#[track_caller]
fn type_and_see(child: &mut Child, typed: &str, seen: &str) {
    child.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
    read_until(child.stdout.as_mut().unwrap(), seen);
}

#[test]
fn an_attached_command_gets_input_output_and_code() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "read line; echo got $line; echo err >&2; exit 4";
    home.ok(&["run", "-di", "--name", "joined", &busybox(), "sh", "-c", script]);
    let done = home.run_with_input(&["attach", "joined"], b"hi\n");
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (4, "got hi\n", "err\n"));
    let said = home.fails(1, &["attach", "joined"]);
    assert!(said.contains("you cannot attach to a stopped container, start it first"), "{said}");
    assert!(home.fails(1, &["attach", "nobody"]).contains("No such container: nobody"));
}

#[test]
fn the_input_of_a_detached_container_outlives_who_feeds_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-di", "--name", "fed", &busybox(), "cat"]);
    for (text, all) in [("one\n", "one\n"), ("two\n", "one\ntwo\n")] {
        let mut command = home.command(&["container", "attach", "fed"]);
        let mut child = start(command.stdin(Stdio::piped()));
        type_and_see(&mut child, text, text);
        child.kill().unwrap();
        end(child, LIMIT);
        eventually("the log has it", || home.ok(&["logs", "fed"]) == all);
    }
    let mut command = home.command(&["attach", "--no-stdin", "fed"]);
    let child = start(command.stdin(Stdio::piped()));
    eventually("it has joined", || blocks_signals(&child));
    home.ok(&["kill", "fed"]);
    assert_eq!(end(child, LIMIT).code, 137);
}

#[test]
fn keys_leave_a_container_that_goes_on() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let mut child = on_a_terminal(&home, &format!("run -it --name shell {} sh", busybox()));
    type_and_see(&mut child, "echo $((40 + 2))\r", "\n42");
    type_and_see(&mut child, "\x10\x11", "");
    assert_eq!(end(child, LIMIT).code, 0);
    assert_eq!(home.inspect("shell", "{{.State.Running}}"), "true");
    // It can be come back to, and left by other keys.
    let mut child = on_a_terminal(&home, "attach --detach-keys ctrl-a,x shell");
    type_and_see(&mut child, "echo $((50 + 2))\r", "\n52");
    type_and_see(&mut child, "\x01x", "");
    assert_eq!(end(child, LIMIT).code, 0);
    let mut child = on_a_terminal(&home, "exec -it --detach-keys ctrl-@ shell sh");
    type_and_see(&mut child, "echo $((60 + 2))\r", "\n62");
    type_and_see(&mut child, "\0", "");
    assert_eq!(end(child, LIMIT).code, 0);
    let mut child = on_a_terminal(&home, "attach shell");
    type_and_see(&mut child, "exit 5\r", "");
    assert_eq!(end(child, LIMIT).code, 5);
    let mut child = on_a_terminal(&home, "start -ai shell");
    type_and_see(&mut child, "echo $((70 + 2))\r", "\n72");
    type_and_see(&mut child, "exit 6\r", "");
    assert_eq!(end(child, LIMIT).code, 6);
    let said = home.fails(1, &["attach", "--detach-keys", "ctrl-1", "shell"]);
    assert!(said.contains("invalid detach keys (ctrl-1)"), "{said}");
}

/// Who joins and reads nothing holds the container back for 10 s at most, and what it does not read takes no memory.
#[test]
fn who_reads_nothing_does_not_stop_the_container() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "i=0; while :; do i=$((i+1)); echo a line of some length that fills its pipes soon $i; done";
    let options = ["run", "-d", "--name", "flood", "--network", "none", "--log-opt", "max-size=1m"];
    home.ok(&[&options[..], &[&busybox(), "sh", "-c", script]].concat());
    let last = || home.ok(&["logs", "-n", "1", "flood"]);
    let silent = start(&mut home.command(&["attach", "--no-stdin", "flood"]));
    let stands_still = || {
        let before = last();
        std::thread::sleep(Duration::from_millis(500));
        last() == before
    };
    eventually("it is held back", stands_still);
    let began = Instant::now();
    while stands_still() {
        assert!(began.elapsed() < LIMIT, "it is held back for ever");
    }
    assert!(began.elapsed() > Duration::from_secs(5), "it had its time");
    let monitors = processes(|words| words[0] == "sublet-monitor" && home.containers()[0].starts_with(&words[1]));
    let status = std::fs::read_to_string(format!("/proc/{}/status", monitors[0])).unwrap();
    let rss =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(rss.unwrap() < 16 << 10, "{status}");
    let done = end(silent, LIMIT);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("the container's output was not read for 10 s"), "{}", done.stderr);
    home.ok(&["rm", "-f", "flood"]);
}

#[test]
fn signals_are_the_containers_unless_said_otherwise() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let image = busybox();
    let mut command = home.command(&["run", "--sig-proxy=false", "--name", "deaf", &image, "sh", "-c", script]);
    let mut child = start(&mut command);
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    signal(&child, Signal::SIGTERM);
    assert_eq!(end(child, LIMIT).code, 143);
    assert_eq!(home.inspect("deaf", "{{.State.Running}}"), "true");
    for (option, code, running) in [("--sig-proxy=false", 130, "true"), ("--sig-proxy", 3, "false")] {
        let child = start(&mut home.command(&["attach", option, "deaf"]));
        eventually("it has joined", || blocks_signals(&child));
        signal(&child, if code == 130 { Signal::SIGINT } else { Signal::SIGTERM });
        let done = end(child, LIMIT);
        assert_eq!(done.code, code, "{done:#?}");
        assert_eq!(home.inspect("deaf", "{{.State.Running}}"), running);
    }
}
