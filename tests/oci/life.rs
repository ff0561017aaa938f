//! create, start, state, kill, delete, list, ps, pause, resume.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::socket::{SockFlag, connect};
use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{eventually, skip};

#[test]
fn a_container_goes_through_its_states() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("echo began; sleep 100");
    bundle.create("box");
    assert_eq!(bundle.state("box", "status"), "created");
    assert_eq!(bundle.state("box", "bundle"), bundle.at());
    assert_eq!(bundle.log(), "", "the command does not run before start");
    let pid = bundle.state("box", "pid").as_i64().expect("a number");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());

    bundle.ok(&["start", "box"]);
    assert_eq!(bundle.state("box", "status"), "running");
    assert_eq!(bundle.state("box", "pid"), pid);
    eventually("the command has begun", || bundle.log() == "began\n");
    assert!(bundle.fails(&["start", "box"]).contains("in the state running"));
    assert!(bundle.fails(&["delete", "box"]).contains("not stopped: running"));
    assert!(bundle.ok(&["list"]).lines().any(|line| line.starts_with("box-") && line.contains("running")));
    assert_eq!(bundle.ok(&["list", "-q"]), format!("{}\n", bundle.id("box")));
    assert_eq!(bundle.ok(&["ps", "-f", "json", "box"]), format!("[{pid}]\n"));

    bundle.ok(&["kill", "box", "KILL"]);
    eventually("it is stopped", || bundle.state("box", "status") == "stopped");
    assert_eq!(bundle.state("box", "pid"), 0);
    assert!(bundle.fails(&["kill", "box", "TERM"]).contains("not running"));
    bundle.ok(&["delete", "box"]);
    assert!(bundle.fails(&["state", "box"]).contains("does not exist"));
}

#[test]
fn the_log_tells_the_steps_when_asked() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("sleep 100");
    let log = bundle.path.join("debug").display().to_string();
    assert!(bundle.creates(&["--debug", "--log", &log], "box"), "{}", bundle.log());
    bundle.ok(&["--debug", "--log", &log, "delete", "--force", "box"]);
    let said = fs::read_to_string(&log).expect("it was made");
    let steps = ["creating container", "cgroup", "init of container", "waits for its start", "has ended"];
    for step in steps {
        assert!(said.lines().any(|line| line.contains("level=debug") && line.contains(step)), "{step}: {said}");
    }
}

#[test]
fn an_id_is_taken_once() {
    let Some(bundle) = Bundle::new() else { return };
    bundle.create("box");
    let error = bundle.fails(&["create", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(bundle.state("box", "status"), "created", "the first one is untouched");
}

#[test]
fn delete_ends_what_was_not_started_and_by_force_what_runs() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("sleep 100");
    bundle.create("box");
    bundle.ok(&["delete", "box"]);
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    let pid = bundle.state("box", "pid").as_i64().expect("a number");
    bundle.ok(&["delete", "--force", "box"]);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    assert!(bundle.fails(&["delete", "box"]).contains("does not exist"));
    bundle.ok(&["delete", "--force", "box"]);
}

#[test]
fn run_answers_with_the_code_of_the_command() {
    let Some(mut bundle) = Bundle::new() else { return };
    assert_eq!(bundle.script("echo out; exit 7").runs(7), "out\n");
    assert_eq!(bundle.ok(&["list", "-q"]), "", "run removes its container");
    // A signal that pid 1 has no handler for does not reach it from inside.
    bundle.script("sh -c 'kill -9 $$'; exit $?").runs(137);
    bundle.config["process"]["args"] = json!(["nothing-of-this-name"]);
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!(done.code, 127, "{done:#?}");
    assert!(done.stderr.contains("executable file not found in $PATH"), "{done:#?}");
    bundle.config["process"]["args"] = json!(["/etc/passwd"]);
    assert_eq!(bundle.call(&["run", "--bundle", &bundle.at(), "box"]).code, 126);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn a_command_may_end_by_a_real_time_signal() {
    let Some(mut bundle) = Bundle::new() else { return };
    // As the first of its pid namespace it would not hear it.
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|one| one["type"] != "pid");
    bundle.script("kill -34 $$").runs(162);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn a_missing_command_fails_at_create() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["process"]["args"] = json!(["/nothing/of/this/name"]);
    let error = bundle.fails(&["create", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("no such file or directory"), "{error}");
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn what_nobody_can_execute_fails_at_create() {
    let Some(mut bundle) = Bundle::new() else { return };
    fs::write(bundle.path.join("rootfs/bin/text"), "no program").expect("the home is ours");
    for command in ["/etc", "/bin/text", "text"] {
        bundle.config["process"]["args"] = json!([command]);
        let done = bundle.call(&["create", "--bundle", &bundle.at(), "box"]);
        assert_eq!(done.code, 126, "{command}: {done:#?}");
        assert!(done.stderr.contains("permission denied"), "{command}: {done:#?}");
        assert_eq!(bundle.ok(&["list", "-q"]), "", "{command}");
    }
    // Found further on in the path.
    bundle.config["process"]["env"] = json!(["PATH=/sbin:/bin"]);
    fs::create_dir_all(bundle.path.join("rootfs/sbin/true")).expect("the home is ours");
    bundle.config["process"]["args"] = json!(["true"]);
    bundle.runs(0);
}

#[test]
fn a_command_that_cannot_be_executed_leaves_a_stopped_container() {
    let Some(mut bundle) = Bundle::new() else { return };
    let file = bundle.path.join("rootfs/bin/other");
    bundle.config["process"]["args"] = json!(["/bin/other"]);
    let bad = |bytes: &str| {
        fs::write(&file, bytes).expect("the home is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("the home is ours");
    };
    for (code, removed) in [(126, false), (127, true)] {
        bad("no program");
        bundle.create("box");
        if removed {
            fs::remove_file(&file).expect("the home is ours");
        }
        let done = bundle.call(&["start", "box"]);
        assert_eq!(done.code, code, "{done:#?}");
        assert_eq!(bundle.state("box", "status"), "stopped", "as with runc and crun");
        bundle.ok(&["delete", "box"]);
    }
    bad("no program");
    bundle.runs(126);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn the_pid_file_has_the_number_of_init() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("sleep 100 >/dev/null 2>&1 </dev/null");
    let file = bundle.path.join("pid");
    let mut command =
        bundle.command(&["run", "--detach", "--bundle", &bundle.at(), "--pid-file", &file.to_string_lossy(), "box"]);
    // The container inherits the streams.
    let (stdout, stderr) = (std::process::Stdio::null(), std::process::Stdio::null());
    assert!(command.stdout(stdout).stderr(stderr).status().expect("it starts").success());
    let pid: i64 = fs::read_to_string(&file).expect("it was written").parse().expect("a number and nothing else");
    assert_eq!(bundle.state("box", "pid"), pid);
}

#[test]
fn a_paused_container_stands_still() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("while true; do echo x; sleep 0.05; done");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    let paused = bundle.call(&["pause", "box"]);
    if paused.stderr.contains("has no cgroup") {
        skip("no cgroup v2 that the caller may write");
        return;
    }
    assert_eq!(paused.code, 0, "{paused:#?}");
    assert_eq!(bundle.state("box", "status"), "paused");
    let before = bundle.log().len();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(bundle.log().len(), before, "a frozen process writes nothing");
    let error = bundle.fails(&["exec", "box", "true"]);
    assert!(error.contains("in the state paused") && error.contains("--ignore-paused"), "{error}");
    bundle.ok(&["resume", "box"]);
    assert_eq!(bundle.state("box", "status"), "running");
    eventually("it goes on", || bundle.log().len() > before);
    bundle.ok(&["pause", "box"]);
    bundle.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_killed_creation_is_removed_by_force() {
    let Some(mut bundle) = Bundle::new() else { return };
    // The creator waits for a hook while it is killed.
    let hook = bundle.path.join("hook");
    fs::write(&hook, "#!/bin/sh\necho $$ >\"$(dirname \"$0\")/began\"\nexec sleep 100\n").expect("the home is ours");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("the home is ours");
    bundle.config["hooks"] = json!({ "createRuntime": [{ "path": hook }] });
    let mut child = bundle.command(&["create", "--bundle", &bundle.at(), "box"]).spawn().expect("it starts");
    let began = || fs::read_to_string(bundle.path.join("began")).unwrap_or_default();
    eventually("the hook runs", || began().ends_with('\n'));
    let hook = PathBuf::from("/proc").join(began().trim_end());
    assert!(hook.exists());
    assert_eq!(bundle.state("box", "status"), "creating");
    let init = bundle.state("box", "pid").as_i64().expect("a number");
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    eventually("init ends with its creator", || bundle.state("box", "status") == "stopped");
    eventually("so does the hook", || !hook.exists());
    assert!(init > 0);
    bundle.ok(&["delete", "--force", "box"]);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn errors_are_lines_of_the_log() {
    let Some(bundle) = Bundle::new() else { return };
    let log = bundle.path.join("log.json");
    let arguments = ["--log", &log.to_string_lossy(), "--log-format", "json", "state", "nobody"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    bundle.fails(&arguments);
    let text = fs::read_to_string(&log).expect("it was written");
    let line: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().is_some_and(|msg| msg.contains("\"nobody\" does not exist")), "{line}");
}

#[test]
fn ids_are_no_paths() {
    let Some(bundle) = Bundle::new() else { return };
    for id in ["..", ".", "a/b", "", "/etc", ".hidden", "a b", "ü"] {
        let error = bundle.fails(&["create", "--bundle", &bundle.at(), id]);
        assert!(error.contains("is no container id"), "{id:?}: {error}");
    }
}

#[test]
fn a_container_may_be_paused_before_its_start() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("echo ran; sleep 100");
    bundle.create("box");
    let paused = bundle.call(&["pause", "box"]);
    if paused.stderr.contains("has no cgroup") {
        skip("no cgroup v2 that the caller may write");
        return;
    }
    assert_eq!(bundle.state("box", "status"), "paused");
    assert!(bundle.fails(&["start", "box"]).contains("in the state paused"));
    bundle.ok(&["resume", "box"]);
    assert_eq!(bundle.state("box", "status"), "created");
    bundle.ok(&["start", "box"]);
    eventually("it runs", || bundle.log() == "ran\n");
}

#[test]
fn of_two_starts_at_once_one_starts() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("echo ran; sleep 100");
    for _ in 0..5 {
        bundle.create("box");
        let children: Vec<_> = (0..4).map(|_| crate::support::start(&mut bundle.command(&["start", "box"]))).collect();
        let ended = children.into_iter().map(|child| crate::support::end(child, crate::support::LIMIT));
        let codes: Vec<i32> = ended.map(|done| done.code).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        bundle.ok(&["delete", "--force", "box"]);
    }
}

#[test]
fn a_configuration_counts_as_it_was_at_the_creation() {
    let Some(mut bundle) = Bundle::new() else { return };
    // What no version has a word for is passed over.
    bundle.config["unknown"] = json!({ "of": ["any", "form"] });
    bundle.config["linux"]["unknown"] = json!(7);
    bundle.script("echo first; sleep 100");
    bundle.create("box");
    bundle.script("echo second; sleep 100");
    bundle.ok(&["start", "box"]);
    eventually("it runs", || !bundle.log().is_empty());
    assert_eq!(bundle.log(), "first\n");
}

/// As a batch system does it when a job's time is over: the code is not lost to the other command.
#[test]
fn run_answers_with_the_code_while_another_command_deletes() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("echo ran; sleep 100");
    for round in 0..30 {
        let mut run = crate::support::start(&mut bundle.command(&["run", "--bundle", &bundle.at(), "box"]));
        crate::support::read_until(&mut run.stdout.take().expect("a pipe"), "ran\n");
        bundle.ok(&["delete", "--force", "box"]);
        let done = crate::support::end(run, crate::support::LIMIT);
        assert_eq!(done.code, 137, "round {round}: {done:#?}");
    }
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn signals_of_real_time_are_handed_on() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("trap 'echo heard; exit 3' 37; echo ready; while :; do sleep 0.05; done");
    let mut run = crate::support::start(&mut bundle.command(&["run", "--bundle", &bundle.at(), "box"]));
    let mut out = run.stdout.take().expect("a pipe");
    crate::support::read_until(&mut out, "ready\n");
    sys::process::kill(run.id() as i32, 37).expect("it runs");
    let heard = crate::support::read_until(&mut out, "heard\n");
    assert!(heard.ends_with("heard\n"), "{heard}");
    assert_eq!(crate::support::end(run, crate::support::LIMIT).code, 3);
}

#[test]
fn a_client_that_says_nothing_keeps_no_start_waiting() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("echo ran; sleep 100");
    bundle.create("box");
    // As a start that is stopped between its first two calls.
    let place = bundle.home.directory.join("run/sublet/oci").join(bundle.id("box"));
    let directory = sys::socket::open_directory(&place).expect("the container is there");
    let address = sys::socket::address_in(directory.as_fd(), "gate").expect("a short path");
    let silent: Vec<OwnedFd> = (0..4)
        .map(|_| {
            let client = sys::socket::seqpacket(SockFlag::empty()).expect("a socket");
            connect(client.as_raw_fd(), &address).expect("init waits there");
            client
        })
        .collect();
    bundle.ok(&["start", "box"]);
    eventually("it runs", || bundle.log() == "ran\n");
    assert_eq!(bundle.state("box", "status"), "running");
    drop(silent);
}

#[test]
fn a_container_of_which_nothing_can_be_told_is_not_removed() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("sleep 100");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    for limit in 3..20 {
        let runtime = bundle.command(&["delete", "box"]);
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]).arg(bundle.home.bin());
        bundle.home.surround(command.args(runtime.get_args()));
        let done = crate::support::finish(&mut command, b"", crate::support::LIMIT);
        assert_ne!(done.code, 0, "{limit} descriptors: {done:#?}");
        assert_eq!(bundle.state("box", "status"), "running", "{limit} descriptors");
    }
}

#[test]
fn the_version_is_told_behind_global_options() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config = json!(null);
    let told = bundle.ok(&["--version"]);
    let mut lines = told.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("sublet-runtime version ")), "{told}");
    assert!(lines.next().is_some_and(|line| line.starts_with("spec: 1.")), "{told}");
    // As go-runc asks.
    let log = bundle.path.join("log").to_string_lossy().into_owned();
    let long = ["--root", &bundle.at(), "--log", &log, "--log-format", "json", "--systemd-cgroup", "--version"];
    assert_eq!(bundle.ok(&long), told);
    assert_eq!(bundle.ok(&["--debug", "-v"]), told);
}

#[test]
fn without_a_log_standard_error_has_its_format() {
    let Some(bundle) = Bundle::new() else { return };
    let done = bundle.call(&["--log-format", "json", "state", "nobody"]);
    assert_eq!(done.code, 1, "{done:#?}");
    let line: serde_json::Value = serde_json::from_str(done.stderr.trim_end()).expect("one line of JSON");
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().is_some_and(|msg| msg.contains("does not exist")), "{line}");
}

#[test]
fn with_debug_the_log_tells_each_step() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("exit 3");
    let log = bundle.path.join("debug").to_string_lossy().into_owned();
    let arguments = ["--debug", "--log", &log, "run", "--bundle", &bundle.at(), "box"].map(str::to_owned);
    let done = bundle.call(&arguments.each_ref().map(String::as_str));
    assert_eq!(done.code, 3, "{done:#?}");
    let text = fs::read_to_string(&log).expect("it was written");
    for words in
        ["creating container", "cgroup", "init of container", "waits for its start", "has executed", "has ended with 3"]
    {
        assert!(text.lines().any(|line| line.contains("level=debug") && line.contains(words)), "{words}: {text}");
    }
}
