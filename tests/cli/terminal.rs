//! Standard input and terminals. `script` gives the command a terminal, as a person has one.

use std::process::{Command, Stdio};

use crate::support::{Home, LIMIT, busybox, end, start};

/// Runs a shell line on a terminal of its own; everything that appeared on it.
fn on_a_terminal(home: &Home, line: &str) -> String {
    let mut script = Command::new("script");
    script.args(["-qec", line, "/dev/null"]);
    home.surround(&mut script);
    // Nobody types, and nobody hangs up: script(1) would type an end of file for it.
    let mut child = start(script.stdin(Stdio::piped()));
    let _open = child.stdin.take();
    let done = end(child, LIMIT);
    assert_eq!(done.code, 0, "{line}: {done:#?}");
    done.stdout.replace('\r', "")
}

#[test]
fn standard_input_reaches_the_command_and_ends() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let done = home.run_with_input(&["run", "--rm", "-i", &busybox(), "cat"], b"one\ntwo\n");
    assert_eq!((done.code, done.stdout.as_str()), (0, "one\ntwo\n"));
    let done = home.run_with_input(&["run", "--rm", &busybox(), "cat"], b"not asked for\n");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "without -i there is no input");
}

#[test]
fn a_terminal_is_a_terminal_inside() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let line = format!("{} run --rm -it {} sh -c 'test -t 0 && test -t 1 && tty'", home.bin().display(), busybox());
    let seen = on_a_terminal(&home, &line);
    assert!(seen.ends_with("/dev/pts/0\n"), "{seen:?}");
}

#[test]
fn exec_has_a_terminal_too() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "term", &busybox(), "sleep", "600"]);
    let line = format!("{} exec -it term sh -c 'test -t 0 && echo yes'", home.bin().display());
    let seen = on_a_terminal(&home, &line);
    assert!(seen.ends_with("yes\n"), "{seen:?}");
}

#[test]
fn a_terminal_asked_for_without_one_is_an_error() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let done = home.run_with_input(&["run", "--rm", "-it", &busybox(), "true"], b"x");
    assert_eq!(done.code, 1, "{done:#?}");
    assert!(done.stderr.contains("the input device is not a TTY"), "{done:#?}");
    assert!(home.containers().is_empty(), "nothing was made");
    // Without -i nobody types, and Docker gives the command its terminal.
    let seen = home.ok(&["run", "--rm", "-t", &busybox(), "tty"]);
    assert_eq!(seen, "/dev/pts/0\r\n");
}
