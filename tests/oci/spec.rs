//! What the configuration asks for is what the container sees.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::bundle::{Bundle, Holder};
use crate::support::{identity, read_until, skip};

#[test]
fn mounts_have_their_options() {
    let Some(mut bundle) = Bundle::new() else { return };
    fs::create_dir_all(bundle.path.join("shared/below")).expect("the home is ours");
    let shared = bundle.path.join("shared");
    bundle
        .push("/mounts", json!({ "destination": "/ro", "type": "bind", "source": shared, "options": ["bind", "ro"] }));
    bundle.push(
        "/mounts",
        json!({ "destination": "/rw/deep", "source": shared, "options": ["rbind", "nosuid", "nodev"] }),
    );
    bundle.push(
        "/mounts",
        json!({ "destination": "/scratch", "type": "tmpfs", "source": "mine",
                                   "options": ["noexec", "size=64k", "mode=700", "strictatime"] }),
    );
    bundle.script("touch /rw/deep/x; touch /ro/y 2>/dev/null || echo refused; grep -E ' (/ro|/rw/deep|/scratch) ' /proc/mounts; stat -c %a /scratch");
    let out = bundle.runs(0);
    assert!(shared.join("x").exists() && !shared.join("y").exists(), "{out}");
    assert!(out.starts_with("refused\n"), "{out}");
    let line = |place: &str| out.lines().find(|line| line.contains(place)).unwrap_or_default().to_owned();
    assert!(line(" /ro ").contains(" ro,"), "{out}");
    assert!(line(" /rw/deep ").contains("rw,nosuid,nodev"), "{out}");
    let scratch = line(" /scratch ");
    assert!(scratch.starts_with("mine ") && scratch.contains("noexec") && scratch.contains("size=64k"), "{out}");
    assert!(!scratch.contains("relatime"), "{out}");
    assert!(out.ends_with("700\n"), "{out}");
}

#[test]
fn read_only_of_one_mount_and_of_all_below_it() {
    let Some(mut bundle) = Bundle::new() else { return };
    let script = "mount -t tmpfs t /a/below 2>/dev/null; touch /ro/below/x 2>/dev/null && echo written || echo refused";
    fs::create_dir_all(bundle.path.join("a/below")).expect("the home is ours");
    // The tree is made by an outer mount of the same configuration: a tmpfs below a bind.
    let source = bundle.path.join("a");
    bundle
        .push("/mounts", json!({ "destination": "/ro", "type": "bind", "source": source, "options": ["rbind", "ro"] }));
    bundle.push("/mounts", json!({ "destination": "/ro/below", "type": "tmpfs", "source": "t", "options": [] }));
    assert_eq!(bundle.script(script).runs(0), "written\n");
    bundle.push("/mounts", json!({ "destination": "/ro", "options": ["remount", "bind", "rro"] }));
    assert_eq!(bundle.runs(0), "refused\n");
}

#[test]
fn a_tmpfs_may_begin_with_what_it_covers() {
    let Some(mut bundle) = Bundle::new() else { return };
    let root = bundle.path.join("rootfs/data");
    fs::create_dir_all(root.join("inner")).expect("the home is ours");
    fs::write(root.join("inner/file"), "content").expect("the home is ours");
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).expect("the home is ours");
    bundle.push("/mounts", json!({ "destination": "/data", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"] }));
    bundle.script("cat /data/inner/file; readlink /data/link; echo more >/data/inner/file");
    assert_eq!(bundle.runs(0), "content/etc/passwd\n");
    assert_eq!(fs::read_to_string(root.join("inner/file")).expect("it is there"), "content");
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers() {
    let Some(mut bundle) = Bundle::new() else { return };
    for (name, mode) in [("opt", 0o750), ("set", 0o755)] {
        let directory = bundle.path.join("rootfs").join(name);
        fs::create_dir_all(&directory).expect("the home is ours");
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).expect("the home is ours");
    }
    for (name, options) in [("/opt", json!([])), ("/fresh", json!([])), ("/set", json!(["mode=700"]))] {
        let mount = json!({ "destination": name, "type": "tmpfs", "source": "t", "options": options });
        bundle.push("/mounts", mount);
    }
    bundle.script("stat -c %a /opt /fresh /set");
    assert_eq!(bundle.runs(0), "750\n1777\n700\n");
}

#[test]
fn a_relative_mount_destination_is_relative_to_the_root() {
    let Some(mut bundle) = Bundle::new() else { return };
    for destination in ["tmp/below", "../../tmp/up"] {
        bundle.push("/mounts", json!({ "destination": destination, "type": "tmpfs", "source": "t" }));
    }
    bundle.script("grep -o ' /tmp/[a-z]* ' /proc/self/mountinfo");
    assert_eq!(bundle.runs(0), " /tmp/below \n /tmp/up \n");
}

#[test]
fn process_attributes_are_set() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["process"]["user"]["umask"] = json!(0o027);
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
                                                 { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    bundle.config["process"]["oomScoreAdj"] = json!(700);
    bundle.config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bundle.script("umask; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; cut() { set -- $(cat /proc/self/stat); echo ${19} ${41}; }; cut; grep NoNewPrivs /proc/self/status; uname -m; ionice -p $$");
    let narrow = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    assert_eq!(bundle.runs(0), format!("0027\n100\n200\n0\n700\n5 3\nNoNewPrivs:\t1\n{narrow}\nidle\n"));
}

#[test]
fn mount_events_travel_as_the_root_file_system_says() {
    let Some(mut bundle) = Bundle::new() else { return };
    let host = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    bundle.script("grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo");
    let propagation = |bundle: &Bundle| {
        let line = bundle.runs(0);
        // proc_pid_mountinfo(5): the optional fields begin with the seventh and end before a dash.
        let fields = line.split_whitespace().skip(6).take_while(|field| *field != "-");
        fields.map(|field| field.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let from_host: &[&str] = if host.contains(" shared:") { &["master"] } else { &[] };
    assert_eq!(propagation(&bundle), [""; 0], "what is not asked for is private");
    for (asked, expected) in [
        ("private", &[][..]),
        ("rslave", from_host),
        ("shared", &[&["shared"], from_host].concat()),
        ("rshared", &[&["shared"], from_host].concat()),
        ("unbindable", &["unbindable"]),
    ] {
        bundle.config["linux"]["rootfsPropagation"] = json!(asked);
        assert_eq!(propagation(&bundle), expected, "{asked}");
    }
    bundle.config["linux"]["rootfsPropagation"] = json!("sideways");
    assert!(bundle.refused().contains("rootfsPropagation"));
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !Path::new("/proc/self/numa_maps").exists() {
        skip("the kernel knows no memory nodes");
        return;
    }
    bundle.config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    bundle.script("head -n 1 /proc/self/numa_maps");
    let out = bundle.runs(0);
    assert_eq!(out.split(' ').nth(1), Some("bind:0"), "{out}");
    for nodes in ["x", "1-0", "4096"] {
        bundle.config["linux"]["memoryPolicy"]["nodes"] = json!(nodes);
        let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
        assert!(error.contains("memory policy") || error.contains("list of numbers"), "{error}");
    }
}

#[test]
fn a_bind_mount_shows_its_owners_shifted() {
    let Some(mut bundle) = Bundle::new() else { return };
    let source = bundle.path.join("shifted");
    fs::create_dir(&source).expect("the home is ours");
    fs::write(source.join("file"), "").expect("the home is ours");
    let shift = json!([{ "containerID": 0, "hostID": 33, "size": 1 }]);
    let mount = json!({ "destination": "/shifted", "type": "bind", "source": source, "options": ["bind"],
                        "uidMappings": shift, "gidMappings": shift });
    bundle.push("/mounts", mount).script("stat -c %u:%g /shifted/file");
    if identity() != "root" {
        let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
        assert!(error.contains("preparing id-mapped mounts, which needs CAP_SYS_ADMIN"), "{error}");
        assert_eq!(bundle.ok(&["list", "--quiet"]), "");
        return;
    }
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "user");
    for name in ["uidMappings", "gidMappings"] {
        bundle.config["linux"][name] = json!(null);
    }
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    if done.stderr.contains("file systems that support it") {
        skip("the file system of the tests cannot shift owners");
        return;
    }
    assert_eq!((done.code, done.stdout.as_str()), (0, "33:33\n"), "{done:#?}");
    // Without mappings of its own it has the container's, which there are none of.
    let mount = bundle.config["mounts"].as_array_mut().and_then(|mounts| mounts.last_mut()).expect("just added");
    *mount = json!({ "destination": "/shifted", "type": "bind", "source": source, "options": ["bind", "idmap"] });
    let error = bundle.fails(&["run", "--bundle", &bundle.at(), "box"]);
    assert!(error.contains("needs uidMappings and gidMappings"), "{error}");
}

#[test]
fn names_of_the_uts_namespace() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["hostname"] = json!("the-host");
    bundle.config["domainname"] = json!("the-domain");
    bundle.script("cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname");
    assert_eq!(bundle.runs(0), "the-host\nthe-domain\n");
}

#[test]
fn clocks_are_shifted() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.push("/linux/namespaces", json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000, "nanosecs": 0 } });
    bundle.script("cat /proc/uptime");
    let out = bundle.runs(0);
    let uptime: f64 = out.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    let host = fs::read_to_string("/proc/uptime").expect("/proc is mounted");
    let host: f64 = host.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    assert!((uptime - host - 1_000_000.0).abs() < 60.0, "{uptime} against {host}");
}

#[test]
fn namespaces_are_joined_by_path() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["hostname"] = json!("first");
    bundle.script("sleep 100");
    bundle.create("first");
    let pid = bundle.state("first", "pid").as_i64().expect("a number");
    let joined = ["user", "uts", "ipc", "pid"];
    for name in joined {
        let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        list.retain(|one| one["type"] != name);
        list.push(json!({ "type": name, "path": format!("/proc/{pid}/ns/{name}") }));
    }
    for name in ["hostname", "uidMappings", "gidMappings"] {
        bundle.config[name] = json!(null);
        bundle.config["linux"][name] = json!(null);
    }
    bundle.script(
        "cat /proc/sys/kernel/hostname; for n in user uts ipc pid mnt; do readlink /proc/self/ns/$n; done; echo $$",
    );
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "second"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines[0], "first");
    for (position, name) in joined.iter().enumerate() {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("it lives");
        assert_eq!(lines[position + 1], theirs.to_string_lossy(), "{name}");
    }
    assert_ne!(lines[5], fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("it lives").to_string_lossy());
    assert_ne!(lines[6], "1", "it is not the first in that pid namespace");
}

#[test]
fn many_ids_are_mapped_by_the_helpers() {
    let Some(mut bundle) = Bundle::new() else { return };
    if identity() != "subuids" {
        skip("the caller has no subordinate ids");
        return;
    }
    bundle.map_all();
    bundle.config["process"]["user"] = json!({ "uid": 33, "gid": 33, "additionalGids": [4, 20] });
    bundle.script("id -u; id -g; id -G; echo $HOME; grep -c . /proc/self/uid_map");
    assert_eq!(bundle.runs(0), "33\n33\n33 4 20\n/www\n2\n");
}

#[test]
fn a_plain_users_namespace_is_mapped_when_nothing_is_said() {
    let Some(mut bundle) = Bundle::new() else { return };
    for name in ["uidMappings", "gidMappings"] {
        bundle.config["linux"].as_object_mut().expect("an object").remove(name);
    }
    if identity() == "root" {
        assert!(bundle.refused().contains("needs uidMappings and gidMappings"));
        return;
    }
    let lines = if identity() == "subuids" { 2 } else { 1 };
    bundle.script("id -u; grep -c . /proc/self/uid_map");
    assert_eq!(bundle.runs(0), format!("0\n{lines}\n"));
}

#[test]
fn masked_and_read_only_paths() {
    let Some(mut bundle) = Bundle::new() else { return };
    fs::write(bundle.path.join("rootfs/etc/secret"), "secret").expect("the home is ours");
    fs::create_dir(bundle.path.join("rootfs/etc/hidden")).expect("the home is ours");
    fs::write(bundle.path.join("rootfs/etc/hidden/file"), "secret").expect("the home is ours");
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/secret", "/etc/hidden", "/proc/nothing"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/tmp", "/proc/sys"]);
    bundle.script("cat /etc/secret; ls /etc/hidden; touch /tmp/x 2>/dev/null || echo refused");
    assert_eq!(bundle.runs(0), "refused\n");
}

#[test]
fn devices_of_the_list_are_the_hosts() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/mynull", "type": "c", "major": 1, "minor": 3 },
                                               { "path": "/dev/fifo", "type": "p", "fileMode": 0o600 }]);
    bundle.script("echo gone >/dev/mynull; stat -c '%t:%T' /dev/mynull; test -p /dev/fifo && stat -c %a /dev/fifo");
    assert_eq!(bundle.runs(0), "1:3\n600\n");
    // A privileged container of containerd's lists all that the host has.
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 }]);
    bundle.script("readlink /dev/ptmx; grep -c ' /dev/pts' /proc/mounts");
    assert_eq!(bundle.runs(0), "pts/ptmx\n1\n", "the host's terminals do not cover the container's");
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/odd", "type": "c", "major": 245, "minor": 99 }]);
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    if identity() != "root" {
        assert!(done.stderr.contains("making the device /dev/odd"), "{done:#?}");
    }
}

#[test]
fn the_terminal_is_sent_to_the_console_socket() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    bundle.script("test -t 0 && test -t 1 && echo on a terminal; sleep 100");
    let path = bundle.path.join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("the home is ours");
    bundle.ok(&["create", "--bundle", &bundle.at(), "--console-socket", &path.to_string_lossy(), "box"]);
    let (socket, _) = listener.accept().expect("create has connected");
    let (_, mut fds) = sys::socket::receive(socket.as_fd(), &mut [0; 64]).expect("one message");
    let mut master = fs::File::from(fds.pop().expect("it carries a descriptor"));
    bundle.ok(&["start", "box"]);
    let text = read_until(&mut master, "on a terminal");
    assert!(text.contains("on a terminal"), "{text}");
}

#[test]
fn the_agent_of_a_profile_gets_the_listener_and_is_told_of_the_container() {
    let Some(mut bundle) = Bundle::new() else { return };
    let path = bundle.path.join("agent");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "listenerPath": path, "listenerMetadata": "mine",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    assert!(bundle.refused().contains("reaching the seccomp agent"), "nobody listens");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("the home is ours");
    bundle.config["annotations"] = json!({ "key": "value" });
    bundle.script("mkdir /tmp/x; echo $?; sleep 100");
    bundle.create("box");
    let pid = bundle.state("box", "pid");
    // What nobody answers any more fails as a call that does not exist.
    let hear = || {
        let (socket, _) = listener.accept().expect("init connects before its filter is loaded");
        let mut buffer = [0; 4096];
        let (length, fds) = sys::socket::receive(socket.as_fd(), &mut buffer).expect("one message");
        assert_eq!(fds.len(), 1);
        let message: serde_json::Value = serde_json::from_slice(&buffer[..length]).expect("JSON");
        message
    };
    std::thread::scope(|scope| {
        let heard = scope.spawn(hear);
        bundle.ok(&["start", "box"]);
        let message = heard.join().expect("it heard");
        assert_eq!((&message["pid"], &message["state"]["pid"]), (&pid, &pid), "{message}");
        assert_eq!(message["fds"], json!(["seccompFd"]));
        assert_eq!(message["metadata"], "mine");
        assert_eq!(message["state"]["id"], bundle.id("box"));
        assert_eq!(message["state"]["bundle"], bundle.at());
        assert_eq!(message["state"]["annotations"], json!({ "key": "value" }));
        let heard = scope.spawn(hear);
        bundle.ok(&["exec", "box", "true"]);
        let message = heard.join().expect("it heard");
        assert_eq!(message["state"]["annotations"], json!({ "key": "value" }), "of an exec too: {message}");
        assert_ne!(message["pid"], message["state"]["pid"], "{message}");
    });
    crate::support::eventually("the call has failed", || bundle.log().ends_with("\n1\n"));
    assert!(bundle.log().contains("Function not implemented"), "{}", bundle.log());
}

/// runc and crun make it read-only at the end; podman asks for such a /dev (`--read-only --read-only-tmpfs=false`).
#[test]
fn a_read_only_tmpfs_is_filled_first() {
    let Some(mut bundle) = Bundle::new() else { return };
    let data = bundle.path.join("rootfs/data");
    fs::create_dir_all(&data).expect("the home is ours");
    fs::write(data.join("file"), "content\n").expect("the home is ours");
    for mount in bundle.config["mounts"].as_array_mut().expect("a list") {
        if mount["destination"] == "/dev" {
            mount["options"].as_array_mut().expect("a list").push(json!("ro"));
        }
    }
    let tmpfs =
        |at: &str, options: &[&str]| json!({ "destination": at, "type": "tmpfs", "source": "t", "options": options });
    bundle.push("/mounts", tmpfs("/data", &["tmpcopyup", "ro"]));
    bundle.push("/mounts", tmpfs("/outer", &["rro"]));
    bundle.push("/mounts", tmpfs("/outer/inner", &[]));
    bundle.script(
        "for at in /dev /data /outer; do touch $at/x 2>/dev/null || echo $at refused; done; touch /outer/inner/x && \
         cat /data/file; test -c /dev/null && test -d /dev/pts && readlink /dev/fd",
    );
    assert_eq!(bundle.runs(0), "/dev refused\n/data refused\n/outer refused\ncontent\n/proc/self/fd\n");
}

/// Without a cgroup namespace of its own a user namespace cannot mount it; runc and crun bind the host's.
#[test]
fn without_a_cgroup_namespace_the_hosts_cgroups_are_shown() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        skip("no cgroup v2 at /sys/fs/cgroup");
        return;
    }
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|one| one["type"] != "cgroup");
    bundle.script(
        "test -e /sys/fs/cgroup/cgroup.controllers && echo there; grep -c \"^$$\\$\" \
         /sys/fs/cgroup$(grep ^0:: /proc/self/cgroup | tr -d '\n' | cut -c4-)/cgroup.procs; \
         mkdir /sys/fs/cgroup/mine 2>/dev/null || echo read-only",
    );
    let out = bundle.runs(0);
    assert!(out.starts_with("there\n") && out.ends_with("read-only\n"), "{out}");
}

#[test]
fn words_that_say_nothing_to_a_bind_mount_are_told() {
    let Some(mut bundle) = Bundle::new() else { return };
    let source = bundle.path.join("rootfs/tmp");
    let options = json!(["bind", "bogus", "size=1m"]);
    bundle.push("/mounts", json!({ "destination": "/x", "type": "bind", "source": source, "options": options }));
    bundle.script("echo ran");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "ran\n"), "{done:#?}");
    assert!(done.stderr.contains("\"bogus,size=1m\" says nothing to a bind mount"), "{done:#?}");
}

#[test]
fn settings_are_named_with_slashes_too() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.push("/linux/namespaces", json!({ "type": "network" }));
    bundle.script("cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    for name in ["net/ipv4/ip_unprivileged_port_start", "net.ipv4.ip_unprivileged_port_start"] {
        bundle.config["linux"]["sysctl"] = json!({ name: "99" });
        assert_eq!(bundle.runs(0), "99\n", "{name}");
    }
}

#[test]
fn a_score_below_that_of_the_session_is_told() {
    let Some(mut bundle) = Bundle::new() else { return };
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("/proc is mounted");
    bundle.config["process"]["oomScoreAdj"] = json!(-900);
    bundle.script("cat /proc/self/oom_score_adj");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let told = done.stderr.contains("oomScoreAdj: -900 is below that of this session");
    assert_eq!(told, done.stdout != "-900\n", "{done:#?}");
    assert!(!told || done.stdout == own, "{done:#?}");
}

#[test]
fn groups_that_cannot_be_set_are_told() {
    let Some(mut bundle) = Bundle::new() else { return };
    if identity() == "root" {
        skip("root may set groups");
        return;
    }
    bundle.config["process"]["user"]["additionalGids"] = json!([4, 20]);
    bundle.script("echo ran");
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "ran\n"), "{done:#?}");
    assert!(done.stderr.contains("additionalGids: ") && done.stderr.contains("ignoring 4, 20"), "{done:#?}");
    bundle.config["annotations"] = json!({ "run.oci.keep_original_groups": "1" });
    let done = bundle.call(&["run", "--bundle", &bundle.at(), "box"]);
    assert!(done.code == 0 && !done.stderr.contains("additionalGids"), "{done:#?}");
}

#[test]
fn a_user_namespace_that_is_joined_may_forbid_groups() {
    let Some(mut bundle) = Bundle::new() else { return };
    let holder = Holder::new(&[]);
    bundle.join(holder.pid(), &["user"]).script("cat /proc/self/setgroups; sleep 1000");
    bundle.create("box");
    bundle.ok(&["start", "box"]);
    assert_eq!(bundle.ok(&["exec", "box", "cat", "/proc/self/setgroups"]), "deny\n");
    bundle.ok(&["delete", "--force", "box"]);
}
