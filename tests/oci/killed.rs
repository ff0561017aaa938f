//! `kill -9` between any two steps of a command, in each of the processes that work on it: `list` and `state` tell what is
//! there, one `delete --force` leaves nothing, and the id can be used again at once.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bundle::{Bundle, Holder};
use crate::manager::Systemd;
use crate::support::{eventually, processes};
use crate::systemd::IN_A_SCOPE;

/// Every way in which the container can be found after a kill, but for `paused`.
const STATES: [&str; 4] = ["creating", "created", "running", "stopped"];

/// A bundle with hooks of every kind, whose command tells that it runs.
fn bundle() -> Option<Bundle> {
    let mut bundle = Bundle::new()?;
    let hook = json!([{ "path": "/bin/true" }]);
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        bundle.config["hooks"][kind] = hook.clone();
    }
    bundle.script("echo ran; sleep 1000");
    Some(bundle)
}

/// Runs a command of the runtime in which one process is to be killed; its exit code. What is written goes to the log, as a
/// container may inherit it.
fn call(bundle: &Bundle, at: &str, arguments: &[&str]) -> i32 {
    let mut command = bundle.command(arguments);
    let log = bundle.new_log();
    command.env("SUBLET_KILL_AT", at).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    let status = command.status().expect("it starts");
    status.code().unwrap_or(137)
}

/// Kills `part` at its first step, its second, and so on, until it has no further one; then `act`, which is told where,
/// must answer that it was carried out. It may be so before: then nobody needed that process any more.
#[track_caller]
fn at_each_step(bundle: &Bundle, part: &str, at_least: u32, prepare: impl Fn(), act: impl Fn(&str) -> bool) {
    let mut killed = 0;
    loop {
        let at = format!("{part}:{}", killed + 1);
        prepare();
        let carried_out = act(&at);
        assert_told(bundle, &at);
        let log = bundle.log();
        bundle.ok(&["delete", "--force", "box"]);
        assert_gone(bundle, &at);
        bundle.create("box");
        bundle.ok(&["delete", "box"]);
        assert_gone(bundle, &at);
        if !log.contains(&format!("killed at {at}\n")) {
            assert!(carried_out, "{at}: {log}");
            break;
        }
        killed += 1;
    }
    println!("{part}: killed at {killed} steps");
    assert!(killed >= at_least, "{part} was killed at {killed} steps only");
}

/// `list` and `state` agree about what is there.
#[track_caller]
fn assert_told(bundle: &Bundle, at: &str) {
    let ids = bundle.ok(&["list", "--quiet"]);
    let rows: Vec<Value> = serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).expect("a list");
    let listed: Vec<&str> = rows.iter().map(|row| row["id"].as_str().expect("a text")).collect();
    assert_eq!(ids.lines().collect::<Vec<_>>(), listed, "{at}: {}", bundle.log());
    if ids.is_empty() {
        assert!(bundle.fails(&["state", "box"]).contains("does not exist"), "{at}");
        return;
    }
    let status = bundle.state("box", "status");
    assert!(STATES.iter().any(|state| status == *state), "{at}: {status}");
    assert_eq!(bundle.state("box", "bundle"), bundle.at(), "{at}");
}

/// Nothing is left of any container: no process, mount, cgroup or file.
#[track_caller]
fn assert_gone(bundle: &Bundle, at: &str) {
    let id = bundle.id("box");
    let left = || processes(|words| words.contains(&id));
    assert_eq!(left(), Vec::<i32>::new(), "{at}: processes of the runtime");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    assert!(!mounts.contains(&bundle.at()), "{at}: {mounts}");
    // systemd takes a moment to see that a scope is empty.
    eventually(&format!("{at}: no cgroup is left"), || cgroups(Path::new("/sys/fs/cgroup"), &id).is_empty());
    let states = fs::read_dir(bundle.home.directory.join("run/sublet/oci")).expect("the runtime has made it");
    let states: Vec<_> = states.flatten().map(|entry| entry.file_name()).collect();
    assert!(states.is_empty(), "{at}: {states:?}");
}

/// The cgroups whose name has this text.
fn cgroups(directory: &Path, text: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    below.fold(Vec::new(), |mut found, path| {
        if path.to_string_lossy().contains(text) {
            found.push(path.to_string_lossy().into_owned());
        }
        found.extend(cgroups(&path, text));
        found
    })
}

/// Whether the command of the container came to run; it does, or the container has ended.
fn came_to_run(bundle: &Bundle) -> bool {
    let ran = || bundle.log().contains("ran\n");
    eventually("the command runs or the container has ended", || ran() || bundle.state("box", "status") == "stopped");
    ran()
}

fn create(bundle: &Bundle, at: &str) -> bool {
    call(bundle, at, &["create", "--bundle", &bundle.at(), "--pid-file", &format!("{}/pid", bundle.at()), "box"]) == 0
}

#[test]
fn the_creator() {
    let Some(bundle) = bundle() else { return };
    at_each_step(&bundle, "command", 20, || (), |at| create(&bundle, at));
}

#[test]
fn init_while_it_is_created_and_started() {
    let Some(bundle) = bundle() else { return };
    let act = |at: &str| create(&bundle, at) && bundle.call(&["start", "box"]).code == 0 && came_to_run(&bundle);
    at_each_step(&bundle, "init", 30, || (), act);
}

#[test]
fn creator_and_helper_where_clocks_are_shifted() {
    let Some(mut bundle) = bundle() else { return };
    bundle.push("/linux/namespaces", json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1000 } });
    at_each_step(&bundle, "helper", 5, || (), |at| create(&bundle, at));
    at_each_step(&bundle, "command", 20, || (), |at| create(&bundle, at));
}

#[test]
fn creator_and_helper_where_namespaces_are_joined() {
    let Some(mut bundle) = bundle() else { return };
    let holder = Holder::new(&["--ipc", "--uts"]);
    bundle.join(holder.pid(), &["user", "ipc", "uts"]).config["hostname"] = json!(null);
    at_each_step(&bundle, "helper", 3, || (), |at| create(&bundle, at));
    at_each_step(&bundle, "command", 20, || (), |at| create(&bundle, at));
}

#[test]
fn creator_where_systemd_keeps_the_cgroup() {
    let Some(mut bundle) = bundle() else { return };
    let Some(systemd) = Systemd::start(&bundle.home, Duration::ZERO) else { return };
    bundle.env.push(("DBUS_SESSION_BUS_ADDRESS", systemd.address));
    bundle.config["linux"]["cgroupsPath"] = json!(format!("user.slice:killed:{}", bundle.id("box")));
    let at = bundle.at();
    let words = [&IN_A_SCOPE[..], &["create", "--bundle", &at, "box"]].concat();
    at_each_step(&bundle, "command", 20, || (), |at| call(&bundle, at, &words) == 0);
}

#[test]
fn creator_and_starter_of_a_service() {
    let Some(mut bundle) = bundle() else { return };
    let manager = std::os::unix::net::UnixDatagram::bind(bundle.path.join("manager")).expect("a short path");
    bundle.env.push(("NOTIFY_SOCKET", format!("{}/manager", bundle.at())));
    // It ends, so that who waits for it need not.
    bundle.script("true");
    at_each_step(&bundle, "command", 20, || (), |at| create(&bundle, at));
    at_each_step(&bundle, "command", 5, || bundle.create("box"), |at| call(&bundle, at, &["start", "box"]) == 0);
    drop(manager);
}

#[test]
fn the_creator_that_takes_back_what_it_has_made() {
    let Some(mut bundle) = bundle() else { return };
    let good = bundle.config["hooks"]["createRuntime"].clone();
    for n in 1.. {
        bundle.config["hooks"]["createRuntime"] = json!([{ "path": "/bin/false" }]);
        let at = format!("command:{n}");
        let code = call(&bundle, &at, &["create", "--bundle", &bundle.at(), "box"]);
        assert_told(&bundle, &at);
        let log = bundle.log();
        bundle.ok(&["delete", "--force", "box"]);
        assert_gone(&bundle, &at);
        bundle.config["hooks"]["createRuntime"] = good.clone();
        bundle.create("box");
        bundle.ok(&["delete", "box"]);
        if !log.contains("killed at ") {
            assert!(code == 1 && n > 20, "{at}: {code}: {log}");
            break;
        }
    }
}

#[test]
fn start() {
    let Some(bundle) = bundle() else { return };
    at_each_step(&bundle, "command", 5, || bundle.create("box"), |at| call(&bundle, at, &["start", "box"]) == 0);
}

#[test]
fn run() {
    let Some(mut bundle) = bundle() else { return };
    bundle.script("true");
    at_each_step(&bundle, "command", 30, || (), |at| call(&bundle, at, &["run", "--bundle", &bundle.at(), "box"]) == 0);
}

#[test]
fn delete() {
    let Some(bundle) = bundle() else { return };
    let running = || {
        bundle.create("box");
        bundle.ok(&["start", "box"]);
    };
    at_each_step(&bundle, "command", 10, running, |at| call(&bundle, at, &["delete", "--force", "box"]) == 0);
    at_each_step(&bundle, "command", 10, || bundle.create("box"), |at| call(&bundle, at, &["delete", "box"]) == 0);
}

#[test]
fn exec() {
    let Some(bundle) = bundle() else { return };
    let running = || {
        bundle.create("box");
        bundle.ok(&["start", "box"]);
    };
    for (part, at_least) in [("command", 6), ("helper", 5), ("process", 6)] {
        let act = |at: &str| {
            let code = call(&bundle, at, &["exec", "box", "true"]);
            // Where there are no cgroups nobody but itself ends a helper whose command was killed.
            let id = bundle.id("box");
            let words = |words: &[String]| words.contains(&id) && words.iter().any(|word| word == "exec");
            eventually("what was killed has ended", || processes(words).is_empty());
            assert_eq!(bundle.state("box", "status"), "running", "{at}");
            assert_eq!(bundle.ok(&["exec", "box", "echo", "more"]), "more\n", "{at}");
            code == 0
        };
        at_each_step(&bundle, part, at_least, running, act);
    }
}

#[test]
fn the_payload_does_not_learn_of_it() {
    let Some(mut bundle) = bundle() else { return };
    bundle.script("env");
    let mut command = bundle.command(&["run", "--bundle", &bundle.at(), "box"]);
    command.env("SUBLET_KILL_AT", "nobody:1");
    let done = crate::support::finish(&mut command, b"", crate::support::LIMIT);
    assert!(done.code == 0 && done.stdout.contains("PATH=") && !done.stdout.contains("SUBLET_"), "{done:#?}");
}
