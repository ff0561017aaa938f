//! Hooks of all six kinds: when they run, what they read, what their failure means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::support::{LIMIT, end, eventually, identity, skip, start};

/// A hook that appends its name and its state to a file.
fn writer(bundle: &Bundle, name: &str) -> Value {
    let script = bundle.path.join("hook");
    fs::write(&script, format!("#!/bin/sh\nprintf '%s %s\\n' \"$1\" \"$(cat)\" >>{}/hooks\n", bundle.at()))
        .expect("the home is ours");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("the home is ours");
    json!({ "path": script, "args": ["hook", name], "env": ["PATH=/bin:/usr/bin"] })
}

fn seen(bundle: &Bundle) -> Vec<(String, Value)> {
    let text = fs::read_to_string(bundle.path.join("hooks")).unwrap_or_default();
    let lines = text.lines().map(|line| line.split_once(' ').expect("a name and a state"));
    lines.map(|(name, state)| (name.to_owned(), serde_json::from_str(state).expect("the state is JSON"))).collect()
}

#[test]
fn runtime_hooks_run_in_their_order_with_the_state() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["annotations"] = json!({ "key": "value" });
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        bundle.config["hooks"][kind] = json!([writer(&bundle, kind)]);
    }
    bundle.script("sleep 100");
    bundle.create("box");
    let pid = bundle.state("box", "pid");
    bundle.ok(&["start", "box"]);
    bundle.ok(&["delete", "--force", "box"]);
    let seen = seen(&bundle);
    let told: Vec<(&str, &str)> =
        seen.iter().map(|(name, state)| (name.as_str(), state["status"].as_str().expect("a status"))).collect();
    let expected =
        [("prestart", "created"), ("createRuntime", "creating"), ("poststart", "running"), ("poststop", "stopped")];
    assert_eq!(told, expected);
    for (name, state) in &seen {
        assert_eq!((&state["id"], &state["bundle"]), (&json!(bundle.id("box")), &json!(bundle.at())), "{name}");
        assert_eq!(state["annotations"], json!({ "key": "value" }), "{name}");
    }
    assert!(seen[..3].iter().all(|(_, state)| state["pid"] == pid), "{seen:?}");
}

#[test]
fn container_hooks_run_in_the_containers_namespaces() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["hostname"] = json!("within");
    // Before the pivot paths are the host's, after it the container's.
    bundle.config["hooks"] = json!({
        "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", format!("hostname >{}/created", bundle.at())],
                              "env": ["PATH=/bin:/usr/bin"] }],
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "hostname >/tmp/started"] }],
    });
    bundle.script("cat /tmp/started");
    assert_eq!(bundle.runs(0), "within\n");
    assert_eq!(fs::read_to_string(bundle.path.join("created")).expect("the hook ran"), "within\n");
}

/// `run` takes signals by `sigwaitinfo` meanwhile, for which it has them blocked.
#[test]
fn hooks_have_no_signals_blocked() {
    let Some(mut bundle) = Bundle::new() else { return };
    let show = |kind: &str| {
        let script = format!("grep SigBlk /proc/self/status >{}/{kind}", bundle.at());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let hooks: serde_json::Map<String, Value> = kinds.iter().map(|kind| ((*kind).to_owned(), show(kind))).collect();
    bundle.config["hooks"] = hooks.into();
    bundle.script("true");
    bundle.runs(0);
    for kind in kinds {
        let told = fs::read_to_string(bundle.path.join(kind)).unwrap_or_default();
        assert_eq!(told, "SigBlk:\t0000000000000000\n", "{kind}");
    }
}

#[test]
fn a_failing_hook_fails_the_creation() {
    let Some(mut bundle) = Bundle::new() else { return };
    for kind in ["prestart", "createRuntime", "createContainer"] {
        bundle.config["hooks"] = json!({ kind: [{ "path": "/bin/false" }], "poststop": [writer(&bundle, "poststop")] });
        let error = bundle.fails(&["create", "--bundle", &bundle.at(), "box"]);
        assert!(error.contains(&format!("running the {kind} hook")) && error.contains("exit status 1"), "{error}");
        assert_eq!(bundle.ok(&["list", "-q"]), "", "{kind}");
    }
    assert_eq!(seen(&bundle).len(), 3, "what was begun is ended by poststop");
}

#[test]
fn two_deletions_at_once_run_the_hooks_once() {
    let Some(mut bundle) = Bundle::new() else { return };
    let slow = json!({ "path": "/bin/sleep", "args": ["sleep", "0.5"] });
    bundle.config["hooks"]["poststop"] = json!([slow, writer(&bundle, "poststop")]);
    bundle.script("sleep 100");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    let deletions = [(); 3].map(|()| start(&mut bundle.command(&["delete", "--force", "box"])));
    for deletion in deletions {
        let done = end(deletion, LIMIT);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    }
    assert_eq!(seen(&bundle).len(), 1, "{:?}", seen(&bundle));
}

#[test]
fn a_deletion_that_is_tried_again_runs_the_hooks_once() {
    let Some(mut bundle) = Bundle::new() else { return };
    if identity() == "root" {
        skip("nothing keeps root from removing a directory");
        return;
    }
    bundle.config["hooks"]["poststop"] = json!([writer(&bundle, "poststop")]);
    bundle.config["linux"]["cgroupsPath"] = json!(format!("{}/below", bundle.id("first")));
    bundle.script("sleep 100");
    if !bundle.creates(&[], "box") {
        assert!(bundle.log().contains("cgroup"), "{}", bundle.log());
        skip("no cgroup v2 that the caller may write");
        return;
    }
    let pid = bundle.state("box", "pid");
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("init lives");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("it has a cgroup of version 2");
    let above = Path::new("/sys/fs/cgroup").join(own).parent().expect("it is below another").to_owned();
    let set_mode = |mode| fs::set_permissions(&above, fs::Permissions::from_mode(mode)).expect("the cgroup is ours");
    set_mode(0o555);
    let error = bundle.fails(&["delete", "--force", "box"]);
    assert!(error.contains("removing the cgroup"), "{error}");
    assert_eq!((seen(&bundle), bundle.state("box", "status")), (Vec::new(), json!("stopped")));
    set_mode(0o755);
    bundle.ok(&["delete", "box"]);
    assert_eq!(seen(&bundle).len(), 1, "{:?}", seen(&bundle));
    fs::remove_dir(above).expect("it is empty");
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_its_children() {
    let Some(mut bundle) = Bundle::new() else { return };
    let number = crate::support::unique();
    let script = format!("sleep {number} & sleep {number}");
    bundle.config["hooks"] =
        json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 }] });
    let error = bundle.fails(&["create", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("did not end within 1 s"), "{error}");
    eventually("its children are killed", || {
        crate::support::processes(|words| words.len() > 1 && words[0] == "sleep" && words[1] == number).is_empty()
    });
}

#[test]
fn a_hook_need_not_read_its_state() {
    let Some(mut bundle) = Bundle::new() else { return };
    // More than a pipe holds.
    bundle.config["annotations"] = json!({ "long": "x".repeat(200_000) });
    bundle.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
    bundle.script("echo ran");
    assert_eq!(bundle.runs(0), "ran\n");
}

/// runc and crun load the filter before these hooks too.
#[test]
fn start_hooks_have_the_rights_of_the_command() {
    let Some(mut bundle) = Bundle::new() else { return };
    let list = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid)' /proc/self/status";
    bundle.config["hooks"] = json!({
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", format!("{list} >/tmp/hook")] }],
    });
    bundle.script(&format!("cat /tmp/hook; echo; {list}"));
    for privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(privileges);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }],
        });
        let out = bundle.runs(0);
        let (hook, command) = out.split_once("\n\n").expect("an empty line");
        assert_eq!(hook, command.trim_end());
        assert!(
            hook.contains("Seccomp:\t2") && hook.contains(&format!("NoNewPrivs:\t{}", i32::from(privileges))),
            "{hook}"
        );
    }
}

/// The hook is a program of the container, which is pid 1's user.
#[test]
fn start_hooks_cannot_look_into_init() {
    let Some(mut bundle) = Bundle::new() else { return };
    let look = "for at in exe cwd root fd/0 fd/3; do readlink /proc/1/$at; done >/tmp/hook; \
                readlink /proc/$$/exe >>/tmp/hook; true";
    bundle.config["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", look] }] });
    // With fewer capabilities than root of the namespace has, it has none over what is not dumpable.
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set] = json!(["CAP_KILL"]);
    }
    bundle.script("cat /tmp/hook");
    assert_eq!(bundle.runs(0), "/bin/busybox\n", "nothing of init, and itself");
}

#[test]
fn hooks_inherit_none_of_the_descriptors_that_are_handed_on() {
    let Some(mut bundle) = Bundle::new() else { return };
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        let script = format!("ls /proc/self/fd >{}/{kind}", bundle.at());
        bundle.config["hooks"][kind] =
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }]);
    }
    bundle.config["hooks"]["startContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "ls /proc/self/fd >/tmp/start"] }]);
    bundle.script("ls /proc/self/fd; echo; cat /tmp/start");
    let runtime = bundle.command(&["run", "--preserve-fds", "2", "--bundle", &bundle.at(), "box"]);
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "exec 3</etc/passwd 4</etc/passwd; exec \"$@\"", "sh"]);
    command.arg(bundle.home.bin()).args(runtime.get_args());
    bundle.home.surround(&mut command);
    let done = crate::support::finish(&mut command, b"", LIMIT);
    // Of each the last one is the directory that ls reads.
    let none = "0\n1\n2\n3\n";
    assert_eq!((done.code, done.stdout), (0, format!("0\n1\n2\n3\n4\n5\n\n{none}")), "{}", done.stderr);
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        assert_eq!(fs::read_to_string(bundle.path.join(kind)).expect("the hook ran"), none, "{kind}");
    }
}

/// Steps 7, 9 and 12 of the specification's "Lifecycle".
#[test]
fn a_hook_that_fails_at_the_start_ends_the_container() {
    let Some(mut bundle) = Bundle::new() else { return };
    let poststop = writer(&bundle, "poststop");
    let after = json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("echo >{}/after", bundle.at())] });
    bundle.script("sleep 100");
    for kind in ["startContainer", "poststart"] {
        bundle.config["hooks"] = json!({ kind: [{ "path": "/bin/false" }, after], "poststop": [poststop] });
        bundle.create("box");
        let pid = bundle.state("box", "pid").as_i64().expect("a number");
        let error = bundle.fails(&["start", "box"]);
        assert!(error.contains(&format!("running the {kind} hook")) && error.contains("exit status 1"), "{error}");
        assert_eq!(bundle.ok(&["list", "-q"]), "", "{kind}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{kind}: {stat}");
        assert_eq!(seen(&bundle).len(), 1, "{kind}: the poststop hooks run");
        let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
        assert!(error.contains(&format!("running the {kind} hook")), "{error}");
        assert_eq!(bundle.ok(&["list", "-q"]), "", "{kind}");
        assert!(!bundle.path.join("after").exists(), "{kind}: the first that fails ends them");
        fs::remove_file(bundle.path.join("hooks")).expect("it was written");
    }
}

#[test]
fn a_poststop_hook_that_fails_is_told_and_the_others_run() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["hooks"] = json!({ "poststop": [{ "path": "/bin/false" }, writer(&bundle, "poststop")] });
    bundle.create("box");
    let done = bundle.call(&["delete", "box"]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.stderr.contains("running the poststop hook /bin/false"), "{done:#?}");
    assert_eq!(seen(&bundle).len(), 1);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn a_start_whose_init_is_killed_before_its_command_fails() {
    let Some(mut bundle) = Bundle::new() else { return };
    // As the first of its pid namespace init would not hear it.
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|one| one["type"] != "pid");
    bundle.config["hooks"] = json!({
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "kill -KILL $PPID"] }],
        "poststart": [writer(&bundle, "poststart")],
    });
    bundle.script("echo ran");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert!(done.code == 1 && done.stdout.is_empty(), "{done:#?}");
    assert!(done.stderr.contains("was killed before it executed the command"), "{done:#?}");
    assert!(seen(&bundle).is_empty(), "no poststart hook runs");
}
