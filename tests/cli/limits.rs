//! What containers use, and limits that are changed.

use serde_json::Value;

use crate::support::{Home, busybox};

#[test]
fn what_is_used_is_shown() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "busy", &busybox(), "sh", "-c", "while :; do :; done"]);
    home.ok(&["create", "--name", "idle", &busybox()]);
    let table = home.ok(&["stats", "--no-stream"]);
    let heads: Vec<&str> = table.lines().next().unwrap_or_default().split("  ").map(str::trim).collect();
    let heads: Vec<&str> = heads.into_iter().filter(|head| !head.is_empty()).collect();
    let wanted = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    assert_eq!(heads, wanted);
    assert_eq!(table.lines().count(), 2, "{table}");
    let all = home.ok(&["container", "stats", "--no-stream", "-a", "--format", "{{.Name}} {{.CPUPerc}} {{.PIDs}}"]);
    assert!(all.lines().any(|line| line == "idle 0.00% 0"), "{all}");
    let one = home.ok(&["stats", "--no-stream", "--format", "json", "busy"]);
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!((&one["Container"], &one["Name"]), (&"busy".into(), &"busy".into()));
    let percent: f64 = one["CPUPerc"].as_str().unwrap().trim_end_matches('%').parse().unwrap();
    // Where there is no cgroup nobody counts.
    let counted = one["PIDs"] != "0";
    assert!(!counted || (5.0..150.0).contains(&percent), "{one}");
    assert!(home.fails(1, &["stats", "--no-stream", "nobody"]).contains("No such container: nobody"));
}

#[test]
fn limits_are_changed_at_rest_and_while_it_runs() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["create", "--name", "limited", &busybox(), "sleep", "600"]);
    assert_eq!(home.ok(&["update", "--memory", "64m", "--pids-limit", "50", "limited"]), "limited\n");
    assert_eq!(home.inspect("limited", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}"), format!("{} 50", 64 << 20));
    for (options, words) in [
        (&["limited"][..], "you must provide one or more flags when using this command"),
        (&["--restart", "x", "limited"], "unknown policy 'x'"),
        (&["--memory", "1m", "limited"], "Minimum memory limit allowed is 6MB"),
        (&["--memory", "64m", "nobody"], "No such container: nobody"),
        (&["--blkio-weight", "5", "limited"], "Range of blkio weight is from 10 to 1000"),
        (&["--device-read-bps", "/dev/null", "limited"], "it must be /dev/DISK:VALUE"),
        (&["--device-write-iops", "disk:1", "limited"], "it must be /dev/DISK:VALUE"),
        (&["--device-read-bps", "/dev/null:1m", "limited"], "/dev/null is not a block device"),
        (&["--memory-high", "65m", "limited"], "would never be reached"),
        (&["--memory-swappiness", "101", "limited"], "valid memory swappiness range is 0-100"),
    ] {
        let said = home.fails(1, &[&["update"], options].concat());
        assert!(said.contains(words), "{options:?}: {said}");
    }
    assert_eq!(home.inspect("limited", "{{.HostConfig.Memory}}"), (64 << 20).to_string());
    if home.limits(&busybox()).is_empty() {
        return;
    }
    home.ok(&["start", "limited"]);
    let read = |file: &str| home.ok(&["exec", "limited", "cat", &format!("/sys/fs/cgroup/{file}")]);
    assert_eq!((read("memory.max"), read("pids.max")), (format!("{}\n", 64 << 20), "50\n".to_owned()));
    home.ok(&["update", "--memory-high", "32m", "limited"]);
    assert_eq!(read("memory.high"), format!("{}\n", 32 << 20));
    assert_eq!(home.inspect("limited", "{{.HostConfig.MemoryHigh}}"), (32 << 20).to_string());
    home.ok(&["container", "update", "--memory", "128m", "--cpus", "0.5", "limited"]);
    assert_eq!((read("memory.max"), read("cpu.max")), (format!("{}\n", 128 << 20), "50000 100000\n".to_owned()));
    home.ok(&["restart", "-t", "0", "limited"]);
    assert_eq!(read("memory.max"), format!("{}\n", 128 << 20));
}

#[test]
fn a_cgroup_above_the_containers_is_named() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let run = |parent: &str| home.run(&["run", "-d", "--cgroup-parent", parent, &busybox(), "sleep", "600"]);
    let slice = run("user.slice");
    assert!(slice.code == 125 && slice.stderr.contains("made by systemd alone"), "{slice:#?}");
    let done = run("jobs/one");
    if done.code != 0 {
        assert!(done.stderr.contains("--cgroup-parent is not possible without a cgroup"), "{done:#?}");
        return;
    }
    let id = done.stdout.trim_end();
    assert_eq!(home.inspect(id, "{{.HostConfig.CgroupParent}}"), "jobs/one");
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", home.inspect(id, "{{.State.Pid}}"))).unwrap();
    let place = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let (above, own) = place.rsplit_once('/').unwrap();
    assert!(above.ends_with("/jobs/one") && own == format!("c-{id}"), "{cgroup}");
    // All that there is may be real root's.
    let has_all = above == "/jobs/one";
    let refused = [("/elsewhere", "only what is below"), ("../up", "it is no path down")];
    for (parent, words) in refused.into_iter().filter(|(parent, _)| !(has_all && parent.starts_with('/'))) {
        let refused = run(parent);
        assert!(refused.code == 125 && refused.stderr.contains(words), "{parent}: {refused:#?}");
    }
    home.ok(&["rm", "-f", id]);
    let jobs = std::path::Path::new("/sys/fs/cgroup").join(&above[1..]);
    std::fs::remove_dir(&jobs).unwrap();
    std::fs::remove_dir(jobs.parent().unwrap()).unwrap();
}

#[test]
fn what_is_used_is_told_to_prometheus() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "busy", "--label", "a.b=c\"d", &busybox(), "sh", "-c", "while :; do :; done"]);
    home.ok(&["create", "--name", "idle", &busybox()]);
    let text = home.ok(&["metrics"]);
    for line in text.lines() {
        let number = line.rsplit_once("} ").map(|(_, number)| number.parse::<f64>());
        assert!(line.starts_with("# ") || matches!(number, Some(Ok(_))), "{line}");
    }
    let of = |metric: &str| text.lines().find(|line| line.starts_with(&format!("{metric}{{"))).map(str::to_owned);
    let started = of("container_start_time_seconds").unwrap();
    assert!(started.contains("container_label_a_b=\"c\\\"d\"") && started.contains("name=\"busy\""), "{started}");
    assert!(!text.contains("idle"), "{text}");
    // Where there is no cgroup nobody counts.
    if !home.limits(&busybox()).is_empty() {
        for metric in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_threads"] {
            assert!(of(metric).is_some_and(|line| !line.ends_with(" 0")), "{metric}: {text}");
        }
    }
}

#[test]
fn a_plain_command_is_limited() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert!(home.fails(125, &["limit", "true"]).contains("no limit is named"));
    // Which takes no cgroup.
    assert_eq!(home.ok(&["limit", "--io-class", "best-effort:6", "sh", "-c", "ionice -p $$"]), "best-effort: prio 6\n");
    let limit = |script: &str| home.run(&["limit", "--memory", "64m", "sh", "-c", script]);
    if home.limits(&busybox()).is_empty() {
        let refused = limit("true");
        assert!(refused.code == 125 && refused.stderr.contains("--memory"), "{refused:#?}");
        return;
    }
    let done = limit("cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max; exit 7");
    assert_eq!((done.code, done.stdout.as_str()), (7, "67108864\n"), "{done:#?}");
    home.fails(127, &["limit", "--memory", "64m", "/not/there"]);
}
