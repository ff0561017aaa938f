//! A container's life: detached start, logs, exec, stop, wait, kill, removal.

use std::time::{Duration, Instant};

use crate::support::{Home, busybox, end, eventually, read_until, start};

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
    home.ok(&["run", "-d", "--name", "w", &busybox(), "sh", "-c", "sleep 0.3; exit 5"]);
    assert_eq!(home.ok(&["wait", "w"]), "5\n");
    assert_eq!(home.ok(&["wait", "w"]), "5\n", "also after the end");
}

#[test]
fn kill_sends_the_signal_it_is_told() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo hup' HUP; echo ready; while :; do sleep 0.1; done";
    home.ok(&["run", "-d", "--name", "k", &busybox(), "sh", "-c", script]);
    eventually("the trap is set", || home.ok(&["logs", "k"]) == "ready\n");
    home.ok(&["kill", "-s", "HUP", "k"]);
    eventually("the signal has come", || home.ok(&["logs", "k"]) == "ready\nhup\n");
    home.ok(&["kill", "k"]);
    assert_eq!(home.ok(&["wait", "k"]), "137\n");
}

#[test]
fn logs_are_followed_to_the_end() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&[
        "run",
        "-d",
        "--name",
        "l",
        &busybox(),
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.2; done; echo e >&2",
    ]);
    let done = home.run(&["logs", "-f", "l"]);
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
    home.ok(&["run", "-d", "--name", "r", &busybox(), "sleep", "600"]);
    let said = home.fails(1, &["rm", "r"]);
    assert!(said.contains("running"), "{said}");
    assert_eq!(home.ok(&["rm", "-f", "r"]), "r\n");
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
    home.ok(&["run", "--name", "a", &busybox(), "sh", "-c", "echo x >/etc/new; rm /etc/replaced"]);
    assert_eq!(home.ok(&["diff", "a"]), "C /etc\nA /etc/new\nD /etc/replaced\n");
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
