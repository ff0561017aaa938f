//! `kill -9` of any role: `ps` tells the truth, `rm -f` cleans, nothing runs or is mounted afterwards, and the next
//! command works. One test at a time: roles are recognised by being new.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod power_loss;
mod storm;
mod taken_over;
mod together;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::{Home, Need, busybox, eventually, free_port, parent_of, processes, unique};

/// The processes of a role.
fn of_role(role: &str) -> Vec<i32> {
    let name = format!("sublet-{role}");
    processes(|words| words[0] == name)
}

/// The processes of all roles.
fn of_all_roles() -> Vec<i32> {
    processes(|words| words[0].starts_with("sublet-"))
}

fn payloads(number: &str) -> Vec<i32> {
    processes(|words| words.first().is_some_and(|word| word == "sleep") && words.iter().any(|word| word == number))
}

/// Whether a process is gone, or has let go of everything and waits to be reaped: its command line goes before its locks.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// The code of a container whose monitor is not its parent: 255 where the kernel tells it to nobody else.
fn code(code: i32) -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    let tells = (numbers.next(), numbers.next()) >= (Some(6), Some(15));
    if tells { code.to_string() } else { "255".to_owned() }
}

/// A running container some of whose roles are to be killed.
struct Victim<'a> {
    home: &'a Home,
    /// The payload's argument, by which it is found.
    number: String,
    /// Processes of roles that were there before.
    before: Vec<i32>,
    run_dir: PathBuf,
    /// Its directory in the store.
    directory: PathBuf,
    /// Its cgroup, where there are cgroups.
    cgroup: Option<PathBuf>,
}

impl<'a> Victim<'a> {
    fn start(home: &'a Home, options: &[&str]) -> Self {
        let number = unique();
        let command = ["sleep", &number.clone()];
        Victim::start_command(home, options, number, &command)
    }

    /// The command runs `sleep number`, by which it is found.
    fn start_command(home: &'a Home, options: &[&str], number: String, command: &[&str]) -> Self {
        let (before, image) = (of_all_roles(), busybox());
        let arguments = [&["run", "-d", "--name", "victim"], options, &[&image], command].concat();
        let id = home.ok(&arguments);
        let run_dir = home.directory.join("run/sublet/c").join(id.trim_end());
        let hosts = fs::read_dir(home.store().join("hosts")).unwrap().flatten();
        let mut directories = hosts.map(|host| host.path().join("containers").join(id.trim_end()));
        let directory = directories.find(|directory| directory.exists()).unwrap();
        let record = fs::read_to_string(directory.join("pid.json")).unwrap();
        eventually("its monitor has left what a successor needs", || directory.join("monitor.json").exists());
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let cgroup = record["cgroup"].as_str().map(PathBuf::from);
        Victim { home, number, before, run_dir, directory, cgroup }
    }

    /// Kills -9 every process of these roles that is new; how many there were.
    fn kill(&self, roles: &[&str]) -> usize {
        let found: Vec<i32> = roles.iter().flat_map(|role| of_role(role)).collect();
        let new: Vec<i32> = found.into_iter().filter(|pid| !self.before.contains(pid)).collect();
        // A keeper that outlived its server would start another.
        let (servers, parents): (Vec<i32>, Vec<i32>) =
            new.iter().copied().partition(|pid| new.contains(&parent_of(*pid)));
        for killed in [parents, servers] {
            for pid in &killed {
                match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                    // net ends by itself when its monitor is dead.
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => panic!("kill -9 {pid}: {errno}"),
                }
            }
            eventually("the killed are gone", || killed.iter().all(|pid| has_ended(*pid)));
        }
        new.len()
    }

    /// Kills -9 the payload from outside, and waits for its end; false where that is not allowed.
    fn kill_payload(&self) -> bool {
        let killed = payloads(&self.number).iter().all(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
        if killed {
            eventually("the payload has ended", || payloads(&self.number).is_empty());
        } else {
            self.home.ok(&["rm", "-f", "victim"]);
        }
        killed
    }

    /// What `ps` and `inspect` say is what the process table says.
    fn assert_told_as_running(&self) {
        assert!(!payloads(&self.number).is_empty(), "the payload goes on");
        assert_eq!(self.home.inspect("victim", "{{.State.Status}} {{.State.Running}}"), "running true");
        let shown = self.home.ok(&["ps", "--format", "{{.Names}} {{.Status}}"]);
        assert!(shown.starts_with("victim Up "), "{shown:?}");
    }

    /// Without its file server the payload goes on or dies of the next page it needs; either is told, and by `exec` too.
    fn assert_told_truly(&self, missing: &str) {
        let running = || !payloads(&self.number).is_empty();
        eventually("inspect and the process table agree", || {
            self.home.inspect("victim", "{{.State.Running}}") == running().to_string()
        });
        // It may die while exec joins it; the answer after that is a clear one.
        eventually("exec says what is missing", || {
            let done = self.home.run(&["exec", "victim", "echo", "alive"]);
            done.code == 1 && (done.stderr.contains(missing) || done.stderr.contains("is not running"))
        });
    }

    /// `rm -f` works at the first try, nothing is left of it, and the next container runs. A file server that was not
    /// killed stays for a while, as it may serve others.
    fn assert_removed_without_a_trace(self) {
        let home = self.home;
        home.ok(&["rm", "-f", "victim"]);
        assert!(home.containers().is_empty());
        eventually("the payload is gone", || payloads(&self.number).is_empty());
        let servers = of_role("fs");
        eventually("no other role is left", || {
            of_all_roles().iter().all(|pid| self.before.contains(pid) || servers.contains(pid))
        });
        eventually("the runtime directory is gone", || !self.run_dir.exists());
        if let Some(cgroup) = &self.cgroup {
            eventually("the cgroup is gone", || !cgroup.exists());
        }
        let snapshots = fs::read_dir(home.store().join("hosts")).unwrap().flatten().flat_map(|host| {
            fs::read_dir(host.path().join("snaps")).into_iter().flatten().flatten().map(|entry| entry.path())
        });
        assert_eq!(snapshots.collect::<Vec<_>>(), Vec::<PathBuf>::new());
        assert_eq!(home.sh(&[], "echo next"), "next\n");
        if let Some(cgroup) = &self.cgroup {
            // A monitor cannot remove its own cgroup; the next one does.
            let monitors = cgroup.file_name().unwrap().to_str().unwrap().replacen("c-", "m-", 1);
            assert!(!cgroup.with_file_name(monitors).exists(), "the monitor's cgroup is left");
        }
    }
}

#[test]
fn the_monitor_is_killed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &[]);
    assert_eq!(victim.kill(&["monitor"]), 1);
    victim.assert_told_as_running();
    victim.assert_removed_without_a_trace();
}

/// Its payload waits once its pipe is full, as nobody takes what it writes, until the next command.
#[test]
fn the_monitor_of_a_writer_is_killed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let script =
        format!("sleep {number} & trap 'kill $!; exit 0' TERM; i=0; while :; do i=$((i+1)); echo line $i; done");
    let victim = Victim::start_command(&home, &[], number, &["sh", "-c", &script]);
    eventually("the payload writes", || home.ok(&["logs", "-n", "1", "victim"]).starts_with("line "));
    eventually("its child is there too", || !payloads(&victim.number).is_empty());
    let lines = || home.ok(&["logs", "-n", "1", "victim"]);
    assert_eq!(victim.kill(&["monitor"]), 1);
    victim.assert_told_as_running();
    let before = lines();
    eventually("the payload writes again", || lines() != before);
    home.ok(&["stop", "-t", "5", "victim"]);
    assert_eq!(home.inspect("victim", "{{.State.Status}} {{.State.ExitCode}}"), format!("exited {}", code(0)));
    victim.assert_removed_without_a_trace();
}

/// A logout takes the runtime directory away, a cron job has another one: the container still runs, and says so.
#[test]
fn the_runtime_directory_is_lost() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &[]);
    fs::remove_dir_all(home.directory.join("run/sublet")).unwrap();
    assert_eq!(home.inspect("victim", "{{.State.Status}}"), "running");
    home.fails(1, &["rm", "victim"]);
    assert!(!payloads(&victim.number).is_empty(), "the payload goes on");
    victim.assert_removed_without_a_trace();
}

#[test]
fn the_monitor_is_killed_and_the_container_is_stopped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = unique();
    let script = format!("echo x >/foreign; chown 7:7 /foreign; exec sleep {number}");
    let victim = Victim::start_command(&home, &[], number, &["sh", "-c", &script]);
    eventually("the payload runs", || !payloads(&victim.number).is_empty());
    victim.kill(&["monitor"]);
    home.ok(&["stop", "-t", "1", "victim"]);
    assert!(payloads(&victim.number).is_empty());
    home.assert_store_is_ours();
    assert_eq!(home.inspect("victim", "{{.State.Status}} {{.State.ExitCode}}"), format!("exited {}", code(137)));
    victim.assert_removed_without_a_trace();
}

/// The exit is recorded, and its files are not yet given back: any next command does that.
#[test]
fn the_monitor_is_killed_after_the_exit_record() {
    let Some(home) = Home::with_busybox(&[Need::Fuse, Need::Subids]) else { return };
    let uid = nix::unistd::getuid().as_raw();
    let foreign = || {
        let mut foreign = 0;
        support::each_file(&home.store(), &mut |_, metadata| foreign += u32::from(metadata.uid() != uid));
        foreign
    };
    for command in [&["ps"][..], &["inspect", "victim"], &["rm", "victim"]] {
        let number = unique();
        let script = format!("echo x >/foreign; chown 7:7 /foreign; exec sleep {number}");
        let victim = Victim::start_command(&home, &[], number, &["sh", "-c", &script]);
        eventually("the payload has written", || foreign() > 0 && !payloads(&victim.number).is_empty());
        let snapshots =
            fs::read_dir(home.store().join("hosts")).unwrap().flatten().map(|host| host.path().join("snaps"));
        let directory =
            snapshots.map(|snaps| snaps.join(victim.run_dir.file_name().unwrap())).find(|path| path.exists());
        // The role that gives files back waits for whoever has the snapshot.
        let held = Flock::lock(fs::File::open(directory.unwrap()).unwrap(), FlockArg::LockExclusive).unwrap();
        home.ok(&["stop", "-t", "0", "victim"]);
        assert_eq!(home.inspect("victim", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
        assert_eq!(victim.kill(&["monitor"]), 1);
        drop(held);
        assert!(foreign() > 0, "nobody has given the files back yet");
        home.ok(command);
        assert_eq!(foreign(), 0, "{command:?}");
        home.run(&["rm", "-f", "victim"]);
    }
}

#[test]
fn the_monitor_is_killed_and_then_the_payload_ends() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &[]);
    victim.kill(&["monitor"]);
    if !victim.kill_payload() {
        return support::skip("the payload's ids are not the caller's to kill");
    }
    assert_eq!(home.ok(&["wait", "victim"]), "255\n", "the code could not be learnt");
    assert!(home.ok(&["ps", "-a", "--format", "{{.Status}}"]).starts_with("Exited (255)"));
    assert_eq!(home.ok(&["logs", "-f", "victim"]), "");
    victim.assert_removed_without_a_trace();
}

#[test]
fn the_monitor_is_killed_that_was_to_remove_the_container() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &["--rm"]);
    victim.kill(&["monitor"]);
    victim.assert_told_as_running();
    home.ok(&["kill", "victim"]);
    eventually("the next command removes it", || home.containers().is_empty());
    assert!(!victim.run_dir.exists());
}

#[test]
fn the_file_system_is_killed() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let victim = Victim::start(&home, &[]);
    assert_eq!(victim.kill(&["fs"]), 2, "a view has a server and its keeper");
    victim.assert_told_truly("the file server of the container's image has ended");
    victim.assert_removed_without_a_trace();
}

/// With the driver fuse the container's own files go through the killed process: its reads and writes fail, and neither
/// hang nor show something else.
#[test]
fn the_file_system_of_a_container_of_its_own_is_killed() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let (number, log) = (unique(), home.path("log"));
    let volume = format!("{}:/log", home.directory.join("home").display());
    let script = format!(
        "echo kept >/file; sync; sleep {number} & trap 'echo x >/after 2>>/log/log; read a </file 2>>/log/log; \
         echo told >>/log/log' USR1; : >/log/log; while :; do wait; done"
    );
    let options = ["--storage-driver", "fuse", "-v", &volume];
    let victim = Victim::start_command(&home, &options, number, &["sh", "-c", &script]);
    eventually("the payload is ready", || log.exists());
    assert_eq!(victim.kill(&["fs"]), 2, "the container has a server of its own, and that a keeper");
    home.ok(&["kill", "-s", "USR1", "victim"]);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let state = || home.inspect("victim", "{{.State.Running}} {{.State.ExitCode}}");
    eventually("the payload has tried", || said().contains("told") || state().starts_with("false"));
    if said().contains("told") {
        assert!(said().contains("can't create /after") && said().contains("can't open /file"), "{}", said());
    } else {
        // It had to run a page of its program that it had not run before.
        assert_eq!(state(), format!("false {}", 128 + Signal::SIGBUS as i32));
    }
    home.assert_store_is_ours();
    victim.assert_removed_without_a_trace();
    home.assert_store_is_ours();
}

#[test]
fn the_network_is_killed() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    let victim = Victim::start(&home, &["-p", &publish]);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(victim.kill(&["net"]), 1);
    victim.assert_told_as_running();
    assert_eq!(home.ok(&["exec", "victim", "echo", "alive"]), "alive\n");
    let is_new = |pid: &i32| !victim.before.contains(pid);
    let answers = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    eventually("it is started again", || of_role("net").into_iter().filter(is_new).count() == 1 && answers());
    let ping = ["exec", "victim", "ping", "-c", "1", "-W", "5", "10.213.0.1"];
    eventually("the network leads out again", || home.run(&ping).code == 0);
    victim.assert_told_as_running();
    // What ends each time is left.
    assert_eq!(victim.kill(&["net"]), 1);
    assert_eq!(home.ok(&["exec", "victim", "echo", "alive"]), "alive\n");
    assert!(!answers(), "nobody listens any more");
    victim.assert_removed_without_a_trace();
}

#[test]
fn all_roles_are_killed_at_once() {
    let Some(home) = Home::with_busybox(&[Need::Fuse, Need::Tun]) else { return };
    let victim = Victim::start(&home, &[]);
    assert_eq!(victim.kill(&["monitor", "fs", "net"]), 4);
    victim.assert_told_truly("the file server of the container's image has ended");
    victim.assert_removed_without_a_trace();
}

#[test]
fn the_payload_is_killed_from_outside() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let victim = Victim::start(&home, &[]);
    if !victim.kill_payload() {
        return support::skip("the payload's ids are not the caller's to kill");
    }
    assert_eq!(home.ok(&["wait", "victim"]), "137\n");
    victim.assert_removed_without_a_trace();
}

/// Before a monitor exists, a signal ends the command; what it has made goes with the next one.
#[test]
fn a_run_that_is_killed_before_its_start_leaves_nothing() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    let before = of_role("fs");
    home.sh(&[], "true");
    let servers: Vec<i32> = of_role("fs").into_iter().filter(|pid| !before.contains(pid)).collect();
    assert_eq!(servers.len(), 2, "the image's server and its keeper are still warm");
    let signal_all = |signal| servers.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
    let directories = || {
        let hosts = fs::read_dir(home.store().join("hosts")).unwrap().flatten();
        let entries = hosts.flat_map(|host| {
            ["containers", "unstarted"].map(|name| fs::read_dir(host.path().join(name)).into_iter().flatten().flatten())
        });
        entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    for (by, code) in [(Signal::SIGINT, 130), (Signal::SIGKILL, 137)] {
        // So that the start waits for the keeper's greeting.
        signal_all(Signal::SIGSTOP);
        let child = support::start(&mut home.command(&["run", "--rm", &busybox(), "true"]));
        eventually("there is a container", || home.containers().len() == 1);
        support::signal(&child, by);
        let done = support::end(child, std::time::Duration::from_secs(5));
        signal_all(Signal::SIGCONT);
        assert_eq!(done.code, code, "{done:#?}");
        assert!(home.containers().is_empty(), "it is not shown any more");
        // That of the first run may still be on its way out.
        eventually("there are the container's two", || directories().len() == 2);
        home.fails(1, &["inspect", "nobody"]);
        assert_eq!(directories(), Vec::<PathBuf>::new());
    }
    // What is to be kept is kept, whoever made it.
    signal_all(Signal::SIGSTOP);
    let child = support::start(&mut home.command(&["run", "--name", "kept", &busybox(), "true"]));
    eventually("there is a container", || home.containers().len() == 1);
    support::signal(&child, Signal::SIGINT);
    assert_eq!(support::end(child, std::time::Duration::from_secs(5)).code, 130);
    signal_all(Signal::SIGCONT);
    assert_eq!(home.inspect("kept", "{{.State.Status}}"), "created");
    home.ok(&["rm", "kept"]);
}

/// The rename is the removal: killed before it, the container is whole, killed after it, it is gone.
#[test]
fn a_removal_killed_at_any_moment_leaves_a_whole_container_or_none() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let make = "mkdir /many && cd /many && for i in $(seq 1 400); do mkdir $i; : >$i/file; done";
    // The way to the rename is short, the tidying after it long.
    for delay_us in [0, 250, 500, 750, 1000, 1500, 2000, 3000, 5000, 8000, 12_000, 20_000] {
        home.ok(&["run", "--name", "victim", &busybox(), "sh", "-c", make]);
        let mut child = support::start(&mut home.command(&["rm", "victim"]));
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        child.kill().expect("our own child");
        support::end(child, support::LIMIT);
        if home.containers().is_empty() {
            home.fails(1, &["inspect", "victim"]);
        } else {
            assert_eq!(home.ok(&["diff", "victim"]).lines().count(), 801, "{delay_us} us");
            home.ok(&["rm", "victim"]);
        }
    }
    assert_next_command_tidies(&home);
}

/// Whatever killed commands have left, the next one takes away.
#[track_caller]
fn assert_next_command_tidies(home: &Home) {
    home.sh(&[], "true");
    let left = || {
        let hosts = fs::read_dir(home.store().join("hosts")).unwrap().flatten();
        let mut places: Vec<PathBuf> = hosts
            .flat_map(|host| ["containers", "snaps", "names"].map(|name| host.path().join(name)))
            .chain([home.directory.join("run/sublet/c")])
            .collect();
        places.retain(|place| fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()));
        places
    };
    // What that command ran itself its monitor deletes in the milliseconds after.
    eventually("the next command has tidied up", || left().is_empty());
}

#[test]
fn a_creation_killed_at_any_moment_leaves_no_name() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for number in 0..40_u32 {
        let name = format!("victim{number}");
        let mut child = support::start(&mut home.command(&["run", "-d", "--name", &name, &busybox(), "true"]));
        std::thread::sleep(std::time::Duration::from_micros(u64::from(number) * 200));
        child.kill().expect("our own child");
        support::end(child, support::LIMIT);
    }
    for container in home.containers() {
        home.ok(&["rm", "-f", &container]);
    }
    assert_next_command_tidies(&home);
}

#[test]
fn a_pull_killed_at_any_moment_is_repaired_by_the_next() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    for delay_ms in [1, 5, 10, 20, 40, 80] {
        let mut child = support::start(&mut home.command(&["pull", &busybox()]));
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        child.kill().expect("our own child");
        support::end(child, support::LIMIT);
    }
    home.ok(&["pull", &busybox()]);
    assert_eq!(home.sh(&[], "cat /etc/replaced"), "second\n");
}

/// Whoever waits asks again and again where the kernel gives its user no more instances of inotify (`inotify_init1(2)`).
#[test]
fn what_waits_does_so_without_watches() {
    let Some(home) = Home::new(&[Need::Fuse]) else { return };
    let mut held = Vec::new();
    let reason = loop {
        match Inotify::init(InitFlags::IN_CLOEXEC) {
            Ok(inotify) => held.push(inotify),
            Err(errno) => break errno,
        }
    };
    assert_eq!(reason, Errno::EMFILE);
    // The same error tells of too many open files, and then nothing is proven.
    let Ok(_one_more) = fs::File::open("/dev/null") else {
        return support::skip("the user may have more watches than open files");
    };
    home.ok(&[
        "run",
        "-d",
        "--name",
        "unwatched",
        "host:",
        "sh",
        "-c",
        "trap 'echo done; exit 3' TERM; echo ready; while :; do sleep .1; done",
    ]);
    let follower = support::start(&mut home.command(&["logs", "-f", "unwatched"]));
    let waiter = support::start(&mut home.command(&["wait", "unwatched"]));
    eventually("it is ready", || home.ok(&["logs", "unwatched"]) == "ready\n");
    home.ok(&["stop", "unwatched"]);
    assert_eq!(support::end(waiter, support::LIMIT).stdout, "3\n");
    assert_eq!(support::end(follower, support::LIMIT).stdout, "ready\ndone\n");
    home.ok(&["rm", "unwatched"]);
}

/// `doctor` asks before there is a data directory, and tries things in the nearest one that is there.
#[test]
fn a_question_that_was_killed_leaves_nothing_to_the_next() {
    let Some(home) = Home::new(&[Need::Fuse]) else { return };
    let data = home.directory.join("data");
    fs::create_dir_all(data.join(".sublet-probe-AbCdEf/lower/dir")).unwrap();
    home.run(&["doctor"]);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
}
