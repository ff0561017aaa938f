//! The options that say how far a container is set apart from the machine, each seen from inside the container.

use std::fs;

use crate::support::{Home, LIMIT, Need, busybox, eventually, finish, identity};

/// The number behind a namespace of ours.
fn own_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}

#[test]
fn limits_of_processes_hold_in_the_container_and_for_exec() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let options = ["--ulimit", "nofile=512:600", "--ulimit", "core=0", "--ulimit", "host"];
    let script = "ulimit -Sn; ulimit -Hn; ulimit -c";
    assert_eq!(home.sh(&options, script), "512\n600\n0\n");
    home.ok(&[&["run", "-d", "--name", "limited"], &options[..], &[&busybox(), "sleep", "100"]].concat());
    assert_eq!(home.ok(&["exec", "limited", "sh", "-c", script]), "512\n600\n0\n");
    let shown = home.inspect("limited", "{{range .HostConfig.Ulimits}}{{.Name}}={{.Soft}}:{{.Hard}} {{end}}");
    assert_eq!(shown, "nofile=512:600 core=0:0");
    home.ok(&["rm", "-f", "limited"]);
    // They are the payload's, and not those of what sets it up.
    assert_eq!(home.sh(&["--ulimit", "nofile=16"], "ulimit -n"), "16\n");
    for (wrong, words) in [
        ("nofile", "invalid ulimit argument: nofile"),
        ("nofile=2:1", "soft limit must be less than or equal to hard limit"),
        ("odd=1", "invalid ulimit type: odd"),
    ] {
        let said = home.fails(125, &["run", "--rm", "--ulimit", wrong, &busybox(), "true"]);
        assert!(said.contains(words), "{said}");
    }
    if identity() != "root" {
        // More than the session has cannot be had, and the container runs with what there is.
        let done = home.run(&["run", "--rm", "--ulimit", "nofile=99999999", &busybox(), "true"]);
        assert!(done.code == 0 && done.stderr.contains("above the limit of this session"), "{done:#?}");
    }
    assert!(home.containers().is_empty());
}

#[test]
fn settings_of_the_kernel_are_the_containers_own() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let before = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let options = ["--sysctl", "net.ipv4.ip_default_ttl=33", "--sysctl", "kernel.shmmni=77"];
    let seen = home.sh(&options, "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shmmni");
    assert_eq!(seen, "33\n77\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), before);
    for (options, words) in [
        (&["--sysctl", "kernel.panic=1"][..], "kernel.panic"),
        (&["--sysctl", "net.ipv4.ip_default_ttl=1", "--network", "host"], "not allowed in the host's namespace"),
        (&["--sysctl", "kernel.shmmni=1", "--ipc", "host"], "not allowed in the host's namespace"),
        (&["--sysctl", "kernel.shmmni"], "must be NAME=VALUE"),
    ] {
        let said = home.fails(125, &[&["run", "--rm"], options, &[&busybox(), "true"]].concat());
        assert!(said.contains(words), "{said}");
    }
    assert!(home.containers().is_empty());
}

#[test]
fn shared_memory_has_the_size_that_was_asked_for() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let size = "df -k /dev/shm | tail -n 1 | awk '{print $2}'";
    assert_eq!(home.sh(&[], size), "65536\n");
    assert_eq!(home.sh(&["--shm-size", "0"], size), "65536\n");
    assert_eq!(home.sh(&["--shm-size", "1m"], size), "1024\n");
    assert_eq!(home.sh(&["--ipc", "none"], "grep ' /dev/shm ' /proc/mounts || echo none"), "none\n");
    home.fails(125, &["run", "--rm", "--shm-size", "much", &busybox(), "true"]);
}

#[test]
fn groups_are_looked_up_in_the_image_and_hold_for_exec() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let options = ["-u", "1234", "--group-add", "extra", "--group-add", "4321"];
    let wanted = "777 4321";
    let seen = home.sh(&options, "id -G");
    assert!(seen.trim().ends_with(wanted), "{seen}");
    home.ok(&[&["run", "-d", "--name", "member"], &options[..], &[&busybox(), "sleep", "100"]].concat());
    let seen = home.ok(&["exec", "member", "id", "-G"]);
    assert!(seen.trim().ends_with(wanted), "{seen}");
    home.ok(&["rm", "-f", "member"]);
    let done = home.run(&["run", "--rm", "--group-add", "nobody-knows", &busybox(), "true"]);
    assert!(done.code == 125 && done.stderr.contains("unable to find group nobody-knows"), "{done:#?}");
    let said = home.fails(125, &["run", "--rm", "--group-add", "keep-groups", "--group-add", "1", &busybox(), "true"]);
    assert!(said.contains("cannot be given together with other groups"), "{said}");
}

#[test]
fn a_namespace_of_the_host_is_the_callers() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let link = |kind: &str| format!("readlink /proc/self/ns/{kind}");
    for (option, kind) in [("--ipc", "ipc"), ("--uts", "uts"), ("--cgroupns", "cgroup"), ("--pid", "pid")] {
        let own = own_namespace(kind);
        assert_eq!(home.sh(&[option, "host"], &link(kind)).trim(), own, "{option} host");
        assert_ne!(home.sh(&[option, "private"], &link(kind)).trim(), own, "{option} private");
        home.fails(125, &["run", "--rm", option, "odd", &busybox(), "true"]);
    }
    let host_name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(home.sh(&["--uts", "host"], "hostname; cat /etc/hostname"), format!("{host_name}\n{host_name}\n"));
    let said = home.fails(125, &["run", "--rm", "--uts", "host", "--hostname", "own", &busybox(), "true"]);
    assert!(said.contains("conflicting options: hostname and the UTS mode"), "{said}");
    // What lies in the machine's shared memory is seen.
    let shared = format!("/dev/shm/sublet-test-{}", std::process::id());
    fs::write(&shared, "shared\n").unwrap();
    let seen = home.sh(&["--ipc", "host"], &format!("cat {shared}"));
    fs::remove_file(&shared).unwrap();
    assert_eq!(seen, "shared\n");
    assert!(home.containers().is_empty());
}

#[test]
fn processes_of_the_machine_are_seen_and_the_containers_end_with_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let us = std::process::id();
    let seen = home.sh(&["--pid", "host"], &format!("test -d /proc/{us} && echo seen; echo $$"));
    let (word, pid) = seen.trim().split_once('\n').unwrap();
    assert!(word == "seen" && pid != "1", "{seen}");
    home.ok(&[
        "run",
        "-d",
        "--name",
        "wide",
        "--pid",
        "host",
        &busybox(),
        "sh",
        "-c",
        "sleep 54321 & exec sleep 54321",
    ]);
    assert_eq!(home.inspect("wide", "{{.HostConfig.PidMode}}"), "host");
    let top = || home.ok(&["top", "wide", "-eo", "pid,args"]);
    let both_sleep = || top().lines().filter(|line| line.ends_with(" sleep 54321")).count() == 2;
    // The shell's words have it too.
    eventually("the shell has become the second one", || both_sleep() && !top().contains("sh -c"));
    let top = top();
    home.ok(&["exec", "wide", "true"]);
    let first = home.inspect("wide", "{{.State.Pid}}");
    let pids =
        top.lines().filter(|line| line.contains("sleep 54321")).filter_map(|line| line.split_whitespace().next());
    let second: i32 = pids.filter(|pid| *pid != first).collect::<String>().parse().unwrap();
    let has_cgroup = home.run(&["pause", "wide"]).code == 0;
    home.ok(&["stop", "-t", "0", "wide"]);
    if has_cgroup {
        eventually("it ends with its container", || !fs::exists(format!("/proc/{second}")).unwrap());
    } else {
        // Nobody knows then what is the container's.
        home.ok(&["run", "--rm", "--pid", "host", "--userns", "host", &busybox(), "kill", "-9", &second.to_string()]);
    }
    home.ok(&["rm", "wide"]);
}

#[test]
fn processes_of_another_container_are_seen() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "first", &busybox(), "sleep", "98765"]);
    let script = "tr '\\0' ' ' </proc/1/cmdline; echo; readlink /proc/self/ns/user";
    let seen = home.sh(&["--pid", "container:first"], script);
    let user = home.ok(&["exec", "first", "readlink", "/proc/self/ns/user"]);
    assert_eq!(seen, format!("sleep 98765 \n{user}"));
    // With the network too, and a process that ends with its container.
    let options = ["--network", "container:first", "--pid", "container:first"];
    home.ok(&[&["run", "-d", "--name", "second"], &options[..], &[&busybox(), "sleep", "4242"]].concat());
    assert!(home.ok(&["exec", "first", "ps"]).contains("sleep 4242"));
    home.ok(&["exec", "second", "kill", "-0", "1"]);
    home.ok(&["stop", "-t", "0", "first"]);
    assert_eq!(home.ok(&["wait", "second"]), "137\n");
    let said = home.fails(1, &["start", "second"]);
    assert!(said.contains("non running container"), "{said}");
    for options in [&["--pid", "container:nobody"][..], &["--pid", "container:first", "--userns", "keep-id"]] {
        home.fails(125, &[&["run", "--rm"], options, &[&busybox(), "true"]].concat());
    }
    home.ok(&["rm", "first", "second"]);
}

#[test]
fn two_containers_with_ids_of_their_own_cannot_both_be_joined() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for name in ["one", "two"] {
        home.ok(&["run", "-d", "--name", name, &busybox(), "sleep", "100"]);
    }
    let options = ["--network", "container:one", "--pid", "container:two"];
    let said = home.fails(125, &[&["run", "--rm"], &options[..], &[&busybox(), "true"]].concat());
    assert!(said.contains("has other ids") && said.contains("hint: "), "{said}");
    home.ok(&["rm", "-f", "one", "two"]);
}

#[test]
fn a_privileged_container_has_all_that_its_user_can_give() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "grep -E 'CapEff|Seccomp:' /proc/self/status | awk '{print $2}'; \
                  grep ' /sys ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1; grep -c ' /proc/sys ' /proc/mounts; \
                  mkdir /new; mount -t tmpfs none /new && echo mounted; test -c /dev/fuse && echo fuse";
    let seen = home.sh(&["--privileged"], script);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[1..], ["0", "rw", "0", "mounted", "fuse"], "{seen}");
    let all = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse::<u32>().unwrap();
    assert_eq!(u64::from_str_radix(lines[0], 16).unwrap(), (1 << (all + 1)) - 1, "{seen}");
    let seen = home.sh(&[], script.split(" mkdir").next().unwrap());
    assert_eq!(seen.lines().skip(1).collect::<Vec<_>>(), ["2", "ro", "1"], "{seen}");
    // A profile that is named holds.
    let profile = home.path("profile.json");
    fs::write(&profile, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    let option = format!("seccomp={}", profile.display());
    let seen = home.sh(&["--privileged", "--security-opt", &option], "grep Seccomp: /proc/self/status");
    assert!(seen.trim().ends_with('2'), "{seen}");
    home.ok(&["run", "-d", "--name", "plain", &busybox(), "sleep", "100"]);
    let script = "grep CapEff /proc/self/status | awk '{print $2}'";
    let seen = home.ok(&["exec", "--privileged", "plain", "sh", "-c", script]);
    assert_eq!(u64::from_str_radix(seen.trim(), 16).unwrap(), (1 << (all + 1)) - 1, "{seen}");
    assert_ne!(home.ok(&["exec", "plain", "sh", "-c", script]), seen);
    home.ok(&["rm", "-f", "plain"]);
}

#[test]
fn nothing_is_masked_where_that_is_asked_for() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let masks = "grep -c -E ' /(proc|sys)/[a-z]' /proc/mounts";
    assert_ne!(home.sh(&[], masks), home.sh(&["--security-opt", "systempaths=unconfined"], masks));
    let options = ["--security-opt", "unmask=ALL"];
    assert_eq!(home.sh(&options, "grep -E ' /proc/[a-z]' /proc/mounts || echo none"), "none\n");
    home.fails(125, &["run", "--rm", "--security-opt", "odd=1", &busybox(), "true"]);
}

#[test]
fn scores_annotations_and_names_are_taken() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let options = ["--oom-score-adj", "500", "--domainname", "example.org", "--annotation", "com.example.a=b=c"];
    let script = "cat /proc/self/oom_score_adj /proc/sys/kernel/domainname";
    assert_eq!(home.sh(&options, script), "500\nexample.org\n");
    home.ok(&[&["create", "--name", "kept"], &options[..], &[&busybox(), "true"]].concat());
    let format =
        "{{.HostConfig.OomScoreAdj}} {{.Config.Domainname}} {{index .HostConfig.Annotations \"com.example.a\"}}";
    assert_eq!(home.inspect("kept", format), "500 example.org b=c");
    home.ok(&["rm", "kept"]);
    let said = home.fails(125, &["run", "--rm", "--oom-score-adj", "1001", &busybox(), "true"]);
    assert!(said.contains("range for oom score adj is [-1000, 1000]"), "{said}");
    let file = home.path("labels");
    fs::write(&file, "# not one\n\ncom.example.from=file\nalone\n").unwrap();
    let file = file.to_str().unwrap();
    home.ok(&["create", "--name", "labelled", "--label-file", file, "--label", "alone=now", &busybox(), "true"]);
    let format = "{{index .Config.Labels \"com.example.from\"}} {{index .Config.Labels \"alone\"}}";
    assert_eq!(home.inspect("labelled", format), "file now");
    home.ok(&["rm", "labelled"]);
}

#[test]
fn a_container_is_stopped_by_its_own_signal_and_in_its_own_time() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'exit 7' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let options = ["--stop-signal", "USR1", "--stop-timeout", "100"];
    home.ok(&[&["run", "-d", "--name", "named"], &options[..], &[&busybox(), "sh", "-c", script]].concat());
    eventually("it is ready", || home.ok(&["logs", "named"]).contains("ready"));
    home.ok(&["stop", "named"]);
    assert_eq!(
        home.inspect("named", "{{.State.ExitCode}} {{.Config.StopSignal}} {{.Config.StopTimeout}}"),
        "7 USR1 100"
    );
    home.ok(&["rm", "named"]);
    // Deaf, with no time: killed at once, and not after the ten seconds of others.
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    home.ok(&["run", "-d", "--name", "deaf", "--stop-timeout", "0", &busybox(), "sh", "-c", script]);
    eventually("it is ready", || home.ok(&["logs", "deaf"]).contains("ready"));
    let began = std::time::Instant::now();
    home.ok(&["stop", "deaf"]);
    assert!(began.elapsed().as_secs() < 5);
    assert_eq!(home.inspect("deaf", "{{.State.ExitCode}}"), "137");
    home.ok(&["rm", "deaf"]);
    let said = home.fails(125, &["run", "--rm", "--stop-signal", "ODD", &busybox(), "true"]);
    assert!(said.contains("ODD"), "{said}");
}

#[test]
fn shared_memory_and_queues_of_another_container_can_be_joined() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let run = |options: &[&str], command: &str| {
        let common = ["run", "--network", "none"];
        home.run(&[&common[..], options, &[&busybox(), "sh", "-c", command]].concat())
    };
    let donor = run(&["-d", "--name", "donor", "--ipc", "shareable"], "echo there >/dev/shm/file; sleep 1000");
    assert_eq!(donor.code, 0, "{donor:#?}");
    let namespace = home.ok(&["exec", "donor", "readlink", "/proc/self/ns/ipc"]);
    eventually("it has written", || home.run(&["exec", "donor", "cat", "/dev/shm/file"]).code == 0);
    let command = "readlink /proc/self/ns/ipc; cat /dev/shm/file; echo back >/dev/shm/answer; ls /dev/mqueue; \
                   grep -c ' /dev/shm ' /proc/self/mountinfo";
    let users = if identity() == "one-id" { &["0"][..] } else { &["0", "65534"] };
    for user in users {
        let done = run(&["--rm", "--ipc", "container:donor", "--user", user], command);
        assert_eq!((done.code, done.stdout), (0, format!("{namespace}there\n1\n")), "{user}: {}", done.stderr);
        assert_eq!(home.ok(&["exec", "donor", "cat", "/dev/shm/answer"]), "back\n");
        home.ok(&["exec", "donor", "rm", "/dev/shm/answer"]);
    }
    // What is asked for there goes before.
    let done = run(&["--rm", "--ipc", "container:donor", "--tmpfs", "/dev/shm"], "ls /dev/shm");
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:#?}");
    home.ok(&["create", "--name", "later", "--network", "none", "--ipc", "container:donor", &busybox(), "true"]);
    let id = home.inspect("donor", "{{.Id}}");
    assert_eq!(home.inspect("later", "{{.HostConfig.IpcMode}}"), format!("container:{id}"));
    assert_eq!(home.inspect("donor", "{{.HostConfig.IpcMode}}"), "shareable");
    home.ok(&["stop", "-t", "0", "donor"]);
    let said = home.fails(1, &["start", "later"]);
    assert!(said.contains("cannot join IPC of a non running container"), "{said}");
    // One that is its own alone.
    home.ok(&["run", "-d", "--name", "private", "--network", "none", &busybox(), "sleep", "1000"]);
    let done = run(&["--rm", "--ipc", "container:private"], "true");
    assert!(done.code == 125 && done.stderr.contains("non-shareable IPC"), "{done:#?}");
}

#[test]
fn a_plain_command_is_root_over_the_ids_of_containers() {
    let Some(home) = Home::new(&[]) else { return };
    if identity() == "root" {
        let said = home.fails(125, &["unshare", "true"]);
        assert!(said.contains("you are root of this machine") && said.contains("hint: "), "{said}");
        return;
    }
    assert_eq!(home.ok(&["unshare", "id", "-u"]), "0\n");
    // Its mounts are its own.
    let script = "mount -t tmpfs none /mnt && touch /mnt/of-unshare && ls /mnt";
    assert_eq!(home.ok(&["unshare", "sh", "-c", script]), "of-unshare\n");
    assert!(!std::path::Path::new("/mnt/of-unshare").exists());
    assert_eq!(home.run(&["unshare", "sh", "-c", "exit 7"]).code, 7);
    home.fails(127, &["unshare", "/not/there"]);
    let mut shell = home.command(&["unshare"]);
    let done = finish(shell.env("SHELL", "/bin/pwd").current_dir("/usr"), b"", LIMIT);
    assert_eq!((done.code, done.stdout.as_str()), (0, "/usr\n"), "{done:#?}");
}

#[test]
fn disks_are_shared_by_class() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (class, shown) in
        [("idle", "idle"), ("best-effort", "best-effort: prio 4"), ("best-effort:7", "best-effort: prio 7")]
    {
        assert_eq!(home.sh(&["--io-class", class], "ionice -p $$"), format!("{shown}\n"), "{class}");
    }
    home.ok(&["run", "-d", "--name", "last", "--io-class", "best-effort:7", &busybox(), "sleep", "600"]);
    assert_eq!(home.ok(&["exec", "last", "sh", "-c", "ionice -p $$"]), "best-effort: prio 7\n");
    assert_eq!(home.inspect("last", "{{.HostConfig.IoClass}}"), "best-effort:7");
    let first = ["run", "--rm", "--io-class", "realtime:2", &busybox(), "sh", "-c", "ionice -p $$"];
    let done = home.run(&first);
    if identity() == "root" {
        assert_eq!((done.code, done.stdout.as_str()), (0, "realtime: prio 2\n"), "{done:#?}");
    } else {
        assert!(done.code == 125 && done.stderr.contains("takes CAP_SYS_NICE of the machine"), "{done:#?}");
    }
    for wrong in ["best-effort:8", "idle:1", "best-effort:", "odd", ""] {
        let said = home.fails(125, &["run", "--rm", "--io-class", wrong, &busybox(), "true"]);
        assert!(said.contains("invalid --io-class") && said.contains("the classes are idle"), "{wrong:?}: {said}");
    }
}
