//! Records on the disk, as commands read them: fabricated files in a root of their own, no container started.
#![allow(clippy::unwrap_used, missing_docs, reason = "a failed set-up is a failed test")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base::time::rfc3339;
use base::{ContainerId, Kind};
use engine::container::record::{FORMAT, HostSettings, ImageOrigin, Record, Settings};
use engine::container::remove::With;
use engine::container::{CreateRequest, create, find, inspect, list, logs, names, remove, rename, wait};
use engine::{Engine, Options, Paths};
use monitor::record::{PidRecord, State, Status, read_pid, write_pid, write_state};

struct Bed {
    engine: Engine,
    root: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path().join("data"), root.path().join("run"), "machine".to_owned());
        Bed { engine: Engine::open(paths, Options::default()), root }
    }

    /// A container with this first digit, created so many seconds ago.
    fn container(&self, digit: u8, name: &str, age_s: u64) -> ContainerId {
        let id = ContainerId::from_random([digit; 32]);
        let directory = self.engine.paths().container(&id);
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(self.engine.paths().run_container(&id)).unwrap();
        fs::create_dir_all(self.engine.paths().names()).unwrap();
        fs::write(self.engine.paths().names().join(name), id.as_str()).unwrap();
        let record = Record {
            format: FORMAT,
            id: id.clone(),
            name: name.to_owned(),
            created_at: rfc3339(SystemTime::now() - Duration::from_secs(age_s)),
            image: ImageOrigin {
                reference: "debian".to_owned(),
                id: None,
                chain: None,
                platform: None,
                layers: Vec::new(),
            },
            settings: Settings {
                command: vec!["sleep".to_owned(), "600".to_owned()],
                env: vec!["A=b".to_owned()],
                exposed_ports: vec!["80/tcp".to_owned()],
                ..Settings::default()
            },
            host: HostSettings { memory_bytes: Some(64 << 20), ..HostSettings::default() },
        };
        fs::write(directory.join("config.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        id
    }

    fn state(&self, id: &ContainerId, status: Status, exit_code: Option<i32>) {
        let moment = |ago_s| Some(rfc3339(SystemTime::now() - Duration::from_secs(ago_s)));
        let state = State {
            format: 1,
            status,
            pid: (status == Status::Running).then_some(1),
            started_at: moment(300),
            finished_at: (status == Status::Exited).then(|| moment(200)).flatten(),
            exit_code,
            oom_killed: false,
            error: None,
            health: None,
            restart_count: 0,
            stopped: false,
        };
        write_state(&self.engine.paths().container(id), &state, false).unwrap();
    }

    /// Says that this very process is the container's init, or was in another boot.
    fn pid(&self, id: &ContainerId, this_boot: bool) {
        self.pids(id, this_boot, true);
    }

    /// The same; and its monitor, or an earlier process of that number was.
    fn pids(&self, id: &ContainerId, this_boot: bool, monitor: bool) {
        let pid = std::process::id() as i32;
        let start_time = sys::process::start_time(pid).unwrap();
        let boot_id = if this_boot { sys::process::boot_id().unwrap() } else { "another".to_owned() };
        let record = PidRecord {
            format: 1,
            pid,
            start_time,
            boot_id,
            monitor_pid: pid,
            monitor_start_time: if monitor { start_time } else { 0 },
            cgroup: None,
            published: Vec::new(),
            networks: Vec::new(),
        };
        write_pid(&self.engine.paths().container(id), &record).unwrap();
    }

    fn statuses(&self) -> Vec<(String, String)> {
        let (containers, broken) = list::list(&self.engine, SystemTime::now()).unwrap();
        assert!(broken.is_empty(), "{broken:?}");
        containers.into_iter().map(|one| (one.name, one.status)).collect()
    }
}

/// Keys that are newer than a record have a default.
#[test]
fn a_record_of_before_there_were_devices_is_read() {
    let bed = Bed::new();
    let id = bed.container(1, "old", 0);
    let path = bed.engine.paths().container(&id).join("config.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for key in ["devices", "device_requests"] {
        record["host"].as_object_mut().unwrap().remove(key).unwrap();
    }
    fs::write(&path, record.to_string()).unwrap();
    let seen = inspect::inspect(&bed.engine, &id).unwrap();
    assert_eq!((seen.host_config.devices.len(), seen.host_config.device_requests.len()), (0, 0));
}

#[test]
fn ps_tells_the_truth_whatever_the_record_says() {
    let bed = Bed::new();
    bed.container(1, "fresh", 10);
    let ended = bed.container(2, "ended", 20);
    bed.state(&ended, Status::Exited, Some(3));
    let runs = bed.container(3, "runs", 30);
    bed.state(&runs, Status::Running, None);
    bed.pid(&runs, true);
    let lost = bed.container(4, "lost", 40);
    bed.state(&lost, Status::Running, None);
    bed.pid(&lost, false);
    // Its monitor was killed during the start, and the runtime directory is gone.
    let begun = bed.container(5, "begun", 50);
    bed.state(&begun, Status::Starting, None);
    let starts = bed.container(6, "starts", 60);
    bed.state(&starts, Status::Starting, None);
    bed.pid(&starts, true);
    // Its monitor was killed when it had let the payload go, and before it wrote that.
    let let_go = bed.container(7, "let-go", 70);
    bed.state(&let_go, Status::Starting, None);
    bed.pids(&let_go, true, false);
    let expected = [
        ("fresh", "Created"),
        ("ended", "Exited (3) 3 minutes ago"),
        ("runs", "Up 5 minutes"),
        ("lost", "Exited (255)"),
        ("begun", "Exited (255)"),
        ("starts", "Created"),
        ("let-go", "Up 5 minutes"),
    ];
    assert_eq!(bed.statuses(), expected.map(|(name, status)| (name.to_owned(), status.to_owned())));
    // Who takes the lock writes the end that the monitor could not.
    let locked = engine::container::lock::lock(&bed.engine, &lost).unwrap();
    assert_eq!(locked.condition.state.status, Status::Exited);
    assert_eq!(wait::wait(&bed.engine, &lost).unwrap(), 255);
    assert_eq!(wait::wait(&bed.engine, &ended).unwrap(), 3);
    assert_eq!(wait::wait(&bed.engine, &begun).unwrap(), 255);
}

#[test]
fn a_broken_record_hides_no_other() {
    let bed = Bed::new();
    bed.container(1, "good", 10);
    let broken = bed.container(2, "broken", 10);
    // What a power loss leaves of files that were not synced.
    for file in ["config.json", "state.json"] {
        fs::write(bed.engine.paths().container(&broken).join(file), "").unwrap();
    }
    let (good, errors) = list::list(&bed.engine, SystemTime::now()).unwrap();
    assert_eq!((good.len(), errors.len()), (1, 1));
    assert!(errors[0].to_string().contains("config.json"), "{}", errors[0]);
    // It goes with `rm -f` alone, by any of its names, and its own name is free again.
    assert_eq!(find(&bed.engine, "broken").unwrap(), broken);
    assert_eq!(find(&bed.engine, broken.short()).unwrap(), broken);
    assert_eq!(find(&bed.engine, broken.as_str()).unwrap(), broken);
    let error = remove::remove(&bed.engine, &broken, With::default()).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("rm -f")), "{error}");
    let snapshot = bed.engine.paths().snapshots().join(broken.as_str());
    fs::create_dir_all(&snapshot).unwrap();
    remove::remove(&bed.engine, &broken, With { force: true, volumes: false }).unwrap();
    assert!(!bed.engine.paths().container(&broken).exists() && !snapshot.exists());
    assert!(!bed.engine.paths().names().join("broken").exists());
    assert_eq!(list::list(&bed.engine, SystemTime::now()).unwrap().1.len(), 0);
}

#[test]
fn a_name_that_changes_hands_is_in_a_list_once() {
    let bed = Bed::new();
    let (one, two) = (bed.container(1, "one", 1), bed.container(2, "two", 2));
    // Between the two there is time for renames.
    for digit in 3..=250 {
        bed.container(digit, &format!("other{digit}"), 3);
    }
    std::thread::scope(|scope| {
        let renaming = scope.spawn(|| {
            let rename = |id, name| rename::rename(&bed.engine, id, name).unwrap();
            for (one, two) in [(&one, &two), (&two, &one)].into_iter().cycle().take(500) {
                rename(one, "spare");
                rename(two, "one");
                rename(one, "two");
            }
        });
        while !renaming.is_finished() {
            let shown: Vec<String> = bed.statuses().into_iter().map(|(name, _)| name).collect();
            let names: HashSet<&String> = shown.iter().collect();
            assert!(shown.len() == 250 && names.len() == 250, "{shown:?}");
        }
    });
}

#[test]
fn only_a_containers_own_cgroup_is_removed_with_it() {
    let bed = Bed::new();
    let id = bed.container(1, "ended", 10);
    bed.state(&id, Status::Exited, Some(0));
    bed.pid(&id, false);
    let directory = bed.engine.paths().container(&id);
    let mut pids = read_pid(&directory).unwrap().unwrap();
    pids.cgroup = Some(format!("/sys/fs/cgroup/c-{}", ContainerId::from_random([2; 32])).into());
    write_pid(&directory, &pids).unwrap();
    let error = remove::remove(&bed.engine, &id, With::default()).unwrap_err();
    assert!(error.to_string().contains("is no cgroup of container"), "{error}");
    assert!(!directory.exists());
}

#[test]
fn names_ids_and_their_beginnings_find_a_container() {
    let bed = Bed::new();
    let one = bed.container(0x11, "one", 10);
    bed.container(0x12, "two", 10);
    for text in [one.as_str(), "one", "/one", "11", one.short()] {
        assert_eq!(find(&bed.engine, text).unwrap(), one, "{text}");
    }
    let error = find(&bed.engine, "1").unwrap_err();
    assert!(error.to_string().contains("multiple IDs found"), "{error}");
    for text in ["nobody", "", "one/../two", "13"] {
        let error = find(&bed.engine, text).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (Kind::NotFound, format!("No such container: {text}")));
    }
}

#[test]
fn inspect_has_dockers_shape() {
    let bed = Bed::new();
    let id = bed.container(1, "shown", 10);
    bed.state(&id, Status::Exited, Some(137));
    let value = serde_json::to_value(inspect::inspect(&bed.engine, &id).unwrap()).unwrap();
    assert_eq!(value["Name"], "/shown");
    assert_eq!((&value["Path"], &value["Args"]), (&"sleep".into(), &serde_json::json!(["600"])));
    assert_eq!(value["State"]["Status"], "exited");
    assert_eq!(value["State"]["ExitCode"], 137);
    assert_eq!(value["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(value["Config"]["Cmd"], serde_json::json!(["sleep", "600"]));
    assert_eq!(value["Config"]["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
    for empty in ["/Mounts", "/HostConfig/Binds", "/HostConfig/CapAdd", "/Config/Entrypoint"] {
        assert_eq!(value.pointer(empty), Some(&serde_json::json!([])), "{empty}");
    }
    for empty in ["/HostConfig/PortBindings", "/Config/Labels", "/NetworkSettings/Ports"] {
        assert_eq!(value.pointer(empty), Some(&serde_json::json!({})), "{empty}");
    }
    fs::remove_file(bed.engine.paths().container(&id).join("state.json")).unwrap();
    let value = serde_json::to_value(inspect::inspect(&bed.engine, &id).unwrap()).unwrap();
    assert_eq!(value["State"]["StartedAt"], "0001-01-01T00:00:00Z");
}

#[test]
fn one_of_many_gets_a_name_and_the_others_leave_nothing() {
    let bed = Bed::new();
    let request = || CreateRequest { name: Some("wanted".to_owned()), image: "host:".to_owned(), ..Default::default() };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| create(&bed.engine, request()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = results.iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.kind(), Kind::Conflict);
        let words = "The container name \"/wanted\" is already in use by container";
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(fs::read_dir(bed.engine.paths().containers()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(bed.engine.paths().names()).unwrap().count(), 1);
    assert_eq!(find(&bed.engine, "wanted").unwrap(), *winners[0]);
}

#[test]
fn a_name_left_by_a_killed_command_is_taken_over() {
    let bed = Bed::new();
    let names = bed.engine.paths().names();
    fs::create_dir_all(&names).unwrap();
    fs::write(names.join("stale"), ContainerId::from_random([9; 32]).as_str()).unwrap();
    let request = CreateRequest { name: Some("stale".to_owned()), image: "host:".to_owned(), ..Default::default() };
    let id = create(&bed.engine, request).unwrap();
    assert_eq!(find(&bed.engine, "stale").unwrap(), id);
}

#[test]
fn names_are_checked_before_anything_is_made() {
    let bed = Bed::new();
    for name in ["x", "-a", "a/b", "..", "a b", "ä1"] {
        let request = CreateRequest { name: Some(name.to_owned()), image: "host:".to_owned(), ..Default::default() };
        assert_eq!(create(&bed.engine, request).unwrap_err().kind(), Kind::Usage, "{name}");
    }
    names::check("web-1.a_b").unwrap();
    assert_eq!(fs::read_dir(bed.root.path()).unwrap().count(), 0);
}

fn write_log(path: &Path, lines: &[(&str, &str)]) {
    let line = |(stream, text): &(&str, &str)| {
        let time = rfc3339(SystemTime::now());
        serde_json::json!({"log": format!("{text}\n"), "stream": stream, "time": time}).to_string() + "\n"
    };
    fs::write(path, lines.iter().map(line).collect::<String>()).unwrap();
}

#[test]
fn logs_are_read_from_the_end_and_followed_to_the_end_of_the_run() {
    let bed = Bed::new();
    let id = bed.container(1, "talks", 10);
    bed.state(&id, Status::Running, None);
    bed.pid(&id, true);
    let log = bed.engine.paths().container(&id).join("log");
    write_log(&log, &[("stdout", "one"), ("stderr", "two"), ("stdout", "three")]);
    let read = |request: &logs::LogsRequest| {
        let mut seen = Vec::new();
        logs::logs(&bed.engine, &id, request, |entry| {
            seen.push(format!("{}:{}", entry.stream, entry.log.trim_end()));
            Ok(())
        })
        .unwrap();
        seen
    };
    assert_eq!(read(&logs::LogsRequest { tail: Some(2), ..Default::default() }), ["stderr:two", "stdout:three"]);
    assert_eq!(read(&logs::LogsRequest { since: Some(SystemTime::now()), ..Default::default() }), [""; 0]);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let mut seen = 0;
            let request = logs::LogsRequest { follow: true, ..Default::default() };
            logs::logs(&bed.engine, &id, &request, |_| {
                seen += 1;
                Ok(())
            })
            .unwrap();
            seen
        });
        write_log(&log.with_extension("more"), &[("stdout", "four")]);
        let more = fs::read(log.with_extension("more")).unwrap();
        std::io::Write::write_all(&mut fs::File::options().append(true).open(&log).unwrap(), &more).unwrap();
        bed.state(&id, Status::Exited, Some(0));
        assert_eq!(follower.join().unwrap(), 4);
    });
}
