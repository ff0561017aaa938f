//! 125, 126, 127, 128+n and the command's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Home, LIMIT, busybox, end, finish, read_until, start};

#[test]
fn the_commands_own_code_is_passed_on() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let done = home.run(&["run", "--rm", &busybox(), "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((done.code, done.stdout.as_str()), (7, "out\n"));
    assert!(done.stderr.ends_with("err\n"), "{done:#?}");
}

#[test]
fn a_command_that_is_not_there_is_127() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let said = home.fails(127, &["run", "--rm", &busybox(), "no-such-command"]);
    assert!(said.contains("no-such-command"), "{said}");
    home.fails(127, &["run", "--rm", &busybox(), "/bin/no-such-command"]);
    // The script is there, what it asks for is not.
    fs::write(home.path("script"), "#!/bin/no-such-shell\n").expect("the home is ours");
    fs::set_permissions(home.path("script"), fs::Permissions::from_mode(0o755)).expect("the home is ours");
    let volume = format!("{}:/script", home.path("script").display());
    let said = home.fails(127, &["run", "--rm", "-v", &volume, &busybox(), "/script"]);
    assert!(said.contains("exec /script: no such file or directory") && said.contains("interpreter"), "{said}");
}

#[test]
fn output_that_nobody_reads_any_more_ends_the_command_and_not_the_container() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "i=0; while [ $i -lt 300 ]; do echo line; sleep 0.1; i=$((i+1)); done";
    let mut command = home.command(&["run", "--name", "unread", &busybox(), "sh", "-c", script]);
    let mut child = start(&mut command);
    read_until(child.stdout.as_mut().expect("a pipe"), "line\n");
    drop(child.stdout.take());
    assert_eq!(end(child, Duration::from_secs(10)).code, 141, "as a program that SIGPIPE ended");
    assert_eq!(home.inspect("unread", "{{.State.Running}}"), "true");
    home.ok(&["rm", "-f", "unread"]);
}

#[test]
fn a_limit_of_file_sizes_costs_the_log_and_not_the_container() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "head -c 3000000 /dev/zero | tr '\\0' 'a' | fold -w 100; echo; exit 3";
    let mut command = Command::new("bash");
    let run = "ulimit -f 1000; exec \"$0\" run --name limited \"$1\" sh -c \"$2\"";
    command.args(["-c", run]).arg(home.bin()).args([&busybox(), script]);
    home.surround(&mut command);
    let done = finish(&mut command, b"", LIMIT);
    assert_eq!(
        (done.code, done.stdout.lines().filter(|line| line.len() == 100).count()),
        (3, 30000),
        "{}",
        done.stderr
    );
    assert_eq!(home.inspect("limited", "{{.State.ExitCode}}"), "3");
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.fails(126, &["run", "--rm", &busybox(), "/etc/passwd"]);
    home.fails(126, &["run", "--rm", &busybox(), "/etc"]);
}

#[test]
fn what_the_engine_cannot_do_is_125() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.fails(125, &["run", "--no-such-option", &busybox()]);
    // Docker's: 1 for what is no bad option.
    home.fails(1, &["run"]);
    home.fails(1, &["nonsense"]);
    home.fails(1, &["logs", "--since", "yesterday-ish", "nobody"]);
    home.fails(125, &["run", "--rm", "-v", "relative:..:bad:bad", &busybox()]);
    home.fails(125, &["run", "--rm", "--memory", "much", &busybox()]);
}

#[test]
fn output_that_cannot_be_written_is_125_at_the_end() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut command = home.command(&["run", "--rm", "--name", "full", &busybox(), "echo", "lost"]);
    let done = command.stdout(full).stdin(Stdio::null()).stderr(Stdio::piped()).output().expect("sublet");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(125), "{said}");
    assert!(said.contains("writing the container's output"), "{said}");
    assert_eq!(home.containers(), [""; 0]);
}

#[test]
fn a_signal_is_128_and_its_number() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let done = home.run(&["run", "--rm", "--init", &busybox(), "sh", "-c", "kill -TERM $$"]);
    assert_eq!(done.code, 143, "{done:#?}");
    // A real-time signal, for which the usual wrapper of waitid(2) has no word.
    let done = home.run(&["run", "--rm", "--init", &busybox(), "sh", "-c", "kill -34 $$"]);
    assert_eq!(done.code, 162, "{done:#?}");
}

#[test]
fn exec_has_the_same_codes() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "asked", &busybox(), "sleep", "600"]);
    assert_eq!(home.run(&["exec", "asked", "sh", "-c", "exit 9"]).code, 9);
    home.fails(127, &["exec", "asked", "no-such-command"]);
    home.fails(126, &["exec", "asked", "/etc/passwd"]);
    let done = home.run(&["exec", "asked", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(done.code, 137, "{done:#?}");
    let done = home.run(&["exec", "asked", "sh", "-c", "kill -34 $$"]);
    assert_eq!(done.code, 162, "{done:#?}");
}

#[test]
fn a_failed_start_leaves_a_created_container_that_tells_why() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.fails(127, &["run", "--name", "failed", &busybox(), "no-such-command"]);
    assert_eq!(home.inspect("failed", "{{.State.Status}} {{.State.ExitCode}}"), "created 127");
    assert!(home.inspect("failed", "{{.State.Error}}").contains("no-such-command"));
    assert_eq!(home.ok(&["wait", "failed"]), "127\n");
    home.ok(&["rm", "failed"]);
    home.fails(127, &["run", "--rm", &busybox(), "no-such-command"]);
    assert!(home.containers().is_empty(), "--rm removes it");
}

#[test]
fn what_cannot_be_done_with_a_container_is_1() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "ended", &busybox(), "true"]);
    let said = home.fails(1, &["exec", "ended", "true"]);
    assert!(said.contains("is not running"), "{said}");
    let said = home.fails(1, &["kill", "ended"]);
    assert!(said.contains("cannot kill container: ended") && said.contains("is not running"), "{said}");
    home.fails(1, &["exec", "nobody", "true"]);
    // As the engine, not the command line, judges it.
    for command in ["stop", "kill"] {
        let said = home.fails(1, &[command, "--signal", "NOPE", "ended"]);
        assert!(said.contains("NOPE"), "{said}");
    }
}
