//! What is wrong or impossible is said before anything is made.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::bundle::{Bundle, without_steps};
use crate::support::identity;

#[test]
fn a_configuration_that_is_no_json() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config = serde_json::Value::Null;
    for text in ["", "{", "[]", "null", &"[".repeat(100_000), "{\"ociVersion\": 1}"] {
        fs::write(bundle.path.join("config.json"), text).expect("the home is ours");
        let error = bundle.refused();
        assert!(error.contains("config.json"), "{error}");
    }
    fs::remove_file(bundle.path.join("config.json")).expect("it is there");
    assert!(bundle.refused().contains("ENOENT"));
}

#[test]
fn a_root_that_is_missing_or_a_link() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["root"]["path"] = json!("nothing");
    assert!(bundle.refused().contains("ENOENT"));
    symlink("rootfs", bundle.path.join("link")).expect("the home is ours");
    bundle.config["root"]["path"] = json!("link");
    assert!(bundle.refused().contains("symbolic link"));
    bundle.config["root"]["path"] = json!("config.json");
    assert!(bundle.refused().contains("no directory"));
}

#[test]
fn namespaces_that_contradict_each_other() {
    let Some(mut bundle) = Bundle::new() else { return };
    let good = bundle.config["linux"]["namespaces"].clone();
    bundle.push("/linux/namespaces", json!({ "type": "pid" }));
    assert!(bundle.refused().contains("pid is there twice"));
    bundle.config["linux"]["namespaces"] = good.clone();
    bundle.push("/linux/namespaces", json!({ "type": "network", "path": "/etc/passwd" }));
    assert!(bundle.fails(&["run", "--bundle", &bundle.at(), "box"]).contains("is no namespace"));
    bundle.config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "user" }]);
    assert!(bundle.refused().contains("hostname needs a namespace of type uts"));
    bundle.config["linux"]["namespaces"] = json!([{ "type": "user" }]);
    bundle.config["hostname"] = json!(null);
    assert!(bundle.refused().contains("mount namespace"));
    bundle.config["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    assert!(bundle.refused().contains("uidMappings"));
}

#[test]
fn a_path_to_a_namespace_of_another_type() {
    let Some(mut bundle) = Bundle::new() else { return };
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|one| one["type"] != "ipc");
    namespaces.push(json!({ "type": "ipc", "path": "/proc/self/ns/uts" }));
    let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("another type"), "{error}");
    assert_eq!(bundle.ok(&["list", "--quiet"]), "");
}

#[test]
fn limits_that_are_switched_off_are_told() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 100_000_000 } });
    bundle.script("true");
    assert!(bundle.creates(&["--cgroup-manager", "disabled"], "box"), "{}", bundle.log());
    assert!(bundle.log().contains("no limit has an effect"), "{}", bundle.log());
    bundle.ok(&["delete", "--force", "box"]);
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 100, "swap": 10 } });
    assert!(!bundle.creates(&["--cgroup-manager", "disabled"], "box"), "{}", bundle.log());
}

#[test]
fn a_limit_that_is_there_twice() {
    let Some(mut bundle) = Bundle::new() else { return };
    let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 64 });
    bundle.config["process"]["rlimits"] = json!([limit, limit]);
    let error = bundle.refused();
    assert!(error.contains("RLIMIT_NOFILE"), "{error}");
}

#[test]
fn a_map_that_the_caller_may_not_make() {
    let Some(mut bundle) = Bundle::new() else { return };
    if identity() == "root" {
        crate::support::skip("root may map every id");
        return;
    }
    bundle.config["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 0, "size": 10 }]);
    let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("mapping the container's ids"), "{error}");
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn what_needs_root_or_is_not_on_this_host() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["linux"]["intelRdt"] = json!({ "closID": "x" });
    assert!(bundle.refused().contains("intelRdt"));
    bundle.config["linux"]["intelRdt"] = json!(null);
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        bundle.config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        assert!(bundle.refused().contains("selinuxLabel"));
        bundle.config["process"]["selinuxLabel"] = json!(null);
    }
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if apparmor.trim() != "Y" {
        bundle.config["process"]["apparmorProfile"] = json!("some-profile");
        assert!(bundle.refused().contains("apparmorProfile"));
        bundle.config["process"]["apparmorProfile"] = json!(null);
    }
    bundle.config["linux"]["netDevices"] = json!({ "lo": { "name": "of-the-host" } });
    assert!(bundle.refused().contains("netDevices"));
    bundle.config["linux"]["netDevices"] = json!(null);
    bundle.config["linux"]["sysctl"] = json!({ "kernel.panic": "1" });
    let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("belongs to the whole host"), "{error}");
}

#[test]
fn unknown_capabilities_are_left_out_and_told() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.push("/process/capabilities/bounding", json!("CAP_TIME_TRAVEL"));
    bundle.script("echo ran");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "ran\n"), "{done:#?}");
    assert!(done.stderr.contains("CAP_TIME_TRAVEL"), "{done:#?}");
}

#[test]
fn ambient_capabilities_that_are_not_inheritable_are_left_out() {
    // crun's template lists such, and no inheritable ones.
    let Some(mut bundle) = Bundle::new() else { return };
    let some = json!(["CAP_KILL"]);
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": some, "effective": some, "permitted": some, "ambient": some });
    bundle.script("grep -E 'Cap(Eff|Amb)' /proc/self/status | tr -d '\\t\\n'");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, without_steps(&done.stderr)), (0, String::new()), "{done:#?}");
    assert_eq!(done.stdout, "CapEff:0000000000000020CapAmb:0000000000000000");
    if identity() != "subuids" {
        return;
    }
    bundle.map_all().config["process"]["user"] = json!({ "uid": 33, "gid": 33 });
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!(done.stdout, "CapEff:0000000000000000CapAmb:0000000000000000", "{done:#?}");
    assert!(done.stderr.contains("CAP_KILL"), "{done:#?}");
}

#[test]
fn a_terminal_needs_somebody_to_hold_it() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["process"]["terminal"] = json!(true);
    let error = bundle.fails(&["create", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("--console-socket"), "{error}");
    bundle.config["process"]["terminal"] = json!(false);
    let error = bundle.fails(&["create", "--bundle", &bundle.at(), "--console-socket", "/tmp/nothing", "box"]);
    assert!(error.contains("no terminal"), "{error}");
}

#[test]
fn a_user_whose_id_is_not_mapped() {
    let Some(mut bundle) = Bundle::new() else { return };
    let own = bundle.config["process"]["user"].clone();
    for (name, kind) in [("uid", "uid"), ("gid", "gid"), ("additionalGids", "additional gid")] {
        if name == "additionalGids" && identity() != "root" {
            // With one id they are left out, which is told.
            continue;
        }
        bundle.config["process"]["user"][name] = if name == "additionalGids" { json!([1234]) } else { json!(1234) };
        let error = bundle.fails(&["create", "--bundle", &bundle.at(), "box"]);
        assert!(error.contains(&format!("the {kind} 1234 of the process has no place")), "{error}");
        assert_eq!(bundle.ok(&["list", "-q"]), "");
        bundle.config["process"]["user"] = own.clone();
    }
    // In one that is joined, too.
    bundle.script("sleep 100");
    bundle.create("first");
    let pid = bundle.state("first", "pid").as_i64().expect("a number");
    bundle.join(pid, &["user"]).config["process"]["user"]["uid"] = json!(1234);
    let error = bundle.fails(&["create", "--bundle", &bundle.at(), "second"]);
    assert!(error.contains("the uid 1234 of the process has no place"), "{error}");
    assert_eq!(bundle.ok(&["list", "-q"]), format!("{}\n", bundle.id("first")));
}

#[test]
fn capabilities_that_the_kernel_would_refuse() {
    let Some(mut bundle) = Bundle::new() else { return };
    let (some, more) = (json!(["CAP_KILL"]), json!(["CAP_KILL", "CAP_CHOWN"]));
    bundle.config["process"]["capabilities"] = json!({ "bounding": more, "effective": more, "permitted": some });
    assert!(bundle.refused().contains("an effective capability is not permitted"));
    bundle.config["process"]["capabilities"] = json!({ "bounding": some, "inheritable": more });
    assert!(bundle.refused().contains("an inheritable capability is not in the bounding set"));
}

#[test]
fn settings_of_the_host() {
    let Some(mut bundle) = Bundle::new() else { return };
    for name in ["net/../kernel/panic", "net.//.kernel.panic", ""] {
        bundle.config["linux"]["sysctl"] = json!({ name: "1" });
        assert!(bundle.refused().contains("is no name of a setting"), "{name}");
    }
    // Our own is the host's, whatever the path.
    let own = |name: &str| format!("/proc/{}/ns/{name}", std::process::id());
    bundle.push("/linux/namespaces", json!({ "type": "network", "path": own("net") }));
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "99" });
    assert!(bundle.refused().contains("would be set for the host"));
    bundle.config["linux"]["sysctl"] = json!({ "user.max_user_namespaces": "10" });
    bundle.config["linux"]["namespaces"].as_array_mut().expect("a list").retain(|one| one["type"] != "user");
    for name in ["uidMappings", "gidMappings"] {
        bundle.config["linux"][name] = json!(null);
    }
    if identity() == "root" {
        assert!(bundle.refused().contains("needs a namespace of type user"));
    }
    bundle.push("/linux/namespaces", json!({ "type": "user", "path": own("user") }));
    assert!(bundle.refused().contains("would be set for the host"));
}

#[test]
fn lists_of_numbers_without_end() {
    let Some(mut bundle) = Bundle::new() else { return };
    let list = "0-1023,".repeat(1 << 20);
    bundle.config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": list });
    let error = bundle.refused();
    assert!(error.contains("is no list of numbers below 1024") && error.len() < 1000, "{} bytes", error.len());
    bundle.config["linux"]["memoryPolicy"] = json!(null);
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 });
    assert!(bundle.refused().contains("I/O priority 8 is outside of 0 to 7"));
}

#[test]
fn labels_of_mounts_where_there_is_no_selinux() {
    let Some(mut bundle) = Bundle::new() else { return };
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        crate::support::skip("this host has SELinux");
        return;
    }
    bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0:c1,c2");
    bundle.script("echo ran");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "ran\n"), "{done:#?}");
    assert!(done.stderr.contains("ignoring mountLabel"), "{done:#?}");
    bundle.config["linux"]["mountLabel"] = json!("");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, without_steps(&done.stderr).as_str()), (0, ""), "{done:#?}");
}

#[test]
fn devices_of_which_no_node_can_be_made() {
    let Some(mut bundle) = Bundle::new() else { return };
    let null = json!({ "path": "/dev/other", "type": "c", "major": 1, "minor": 3 });
    for (name, value, words) in [
        ("type", json!("a"), "is for cgroup rules"),
        ("path", json!("dev/other"), "its path is not absolute"),
        ("path", json!("/dev/.."), "has no name at its end"),
        ("major", json!(4096), "4096:3 is no number of a device"),
        ("minor", json!(-1), "1:-1 is no number of a device"),
    ] {
        let mut device = null.clone();
        device[name] = value;
        bundle.config["linux"]["devices"] = json!([device]);
        let error = bundle.refused();
        assert!(error.contains("the configuration") && error.contains(words), "{name}: {error}");
    }
}

#[test]
fn checkpoints_are_refused_by_name() {
    let Some(bundle) = Bundle::new() else { return };
    for verb in [&["checkpoint", "--image-path", "/tmp", "box"][..], &["restore", "--bundle", "/tmp", "box"]] {
        let error = bundle.fails(verb);
        assert!(error.contains("checkpoint and restore are not supported"), "{verb:?}: {error}");
    }
}
