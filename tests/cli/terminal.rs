//! Standard input and terminals.

use crate::support::{Home, busybox};

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
    let seen = home.on_a_terminal(&line);
    assert!(seen.ends_with("/dev/pts/0\n"), "{seen:?}");
}

#[test]
fn exec_has_a_terminal_too() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "term", &busybox(), "sleep", "600"]);
    let line = format!("{} exec -it term sh -c 'test -t 0 && echo yes'", home.bin().display());
    let seen = home.on_a_terminal(&line);
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
