//! The terminal that `run` and `exec` carry to their own streams: each direction goes on when the other cannot.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{LIMIT, end, eventually, read_until, signal};

/// `run` of the script on a terminal, with its streams in pipes that are ours.
fn on_a_terminal(bundle: &mut Bundle, script: &str) -> Child {
    bundle.config["process"]["terminal"] = json!(true);
    bundle.script(script);
    let mut command = bundle.command(&["run", "--bundle", &bundle.at(), "box"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

/// Processor time of a process so far, in clock ticks: fields 14 and 15 of proc_pid_stat(5).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn output_comes_while_a_program_does_not_read() {
    let Some(mut bundle) = Bundle::new() else { return };
    // More than a terminal holds, in both directions.
    let mut child = on_a_terminal(&mut bundle, "sleep 1; for i in 1 2 3 4 5 6 7 8 9; do cat /long; done; echo the end");
    fs::write(bundle.path.join("rootfs/long"), "0123456789abcde\n".repeat(2000)).expect("the home is ours");
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || stdin.write_all("line\n".repeat(100_000).as_bytes()));
    let done = end(child, LIMIT);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.ends_with("the end\r\n"), "{}", done.stdout.len());
    // It ends, with or without an error, since nobody reads any more.
    let _ = writer.join().expect("it does not panic");
}

/// crun 1.27 kept a processor busy.
#[test]
fn a_blocked_output_costs_nothing_and_signals_arrive() {
    let Some(mut bundle) = Bundle::new() else { return };
    let script = "trap 'exit 7' TERM; echo begun; (while true; do cat /long; done) & wait";
    fs::write(bundle.path.join("rootfs/long"), "0123456789abcde\n".repeat(2000)).expect("the home is ours");
    let mut child = on_a_terminal(&mut bundle, script);
    let mut stdout = child.stdout.take().expect("a pipe");
    read_until(&mut stdout, "begun");
    let mut before = ticks(child.id());
    // Until the pipe and the terminal are full it works.
    eventually("the output is blocked", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = ticks(child.id());
        std::mem::replace(&mut before, now) == now
    });
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(child.id()) - before;
    assert!(used <= 5, "{used} ticks in a second of waiting");
    signal(&child, Signal::SIGTERM);
    let pid = bundle.state("box", "pid").to_string();
    eventually("the signal has ended it", || bundle.state("box", "status") == "stopped");
    assert!(!fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")), "it has ended");
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("a pipe can be read");
    assert_eq!(end(child, LIMIT).code, 7);
}

#[test]
fn what_is_written_last_is_not_lost() {
    let Some(mut bundle) = Bundle::new() else { return };
    for _ in 0..20 {
        let child = on_a_terminal(&mut bundle, "echo first; echo last; exit 3");
        let done = end(child, LIMIT);
        assert_eq!((done.code, done.stdout.as_str()), (3, "first\r\nlast\r\n"), "{}", done.stderr);
    }
}
