//! Cgroups as an OCI runtime is told to make them, on whatever this host has for the calling user; root also tries what
//! a plain user is left with. Runs without a harness: see `src/cgroup/Cargo.toml`.
//!
//! Arguments `--here=NAME` say what must be here (`directory`, `systemd`, a controller), so that a guest made for it cannot
//! pass by skipping.
#![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use cgroup::oci::{Cgroup, Record, Request};
use cgroup::{CgroupError, OomState, scope, stats};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, geteuid, setgroups, setresgid, setresuid};
use oci_spec::runtime::LinuxResources;
use sys::process::{Flags, fork};

/// A user that owns nothing here.
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(scope::ROLE) {
        return scope::main(sys::role::Inherited::take().unwrap());
    }
    let mut run = Run::default();
    run.test("paths_that_lead_elsewhere_are_refused", paths_that_lead_elsewhere_are_refused);
    if geteuid().is_root() && own_directory().is_some() {
        run.test("a_path_is_made_and_only_its_end_removed", a_path_is_made_and_only_its_end_removed);
        run.test("what_fails_leaves_no_directory", what_fails_leaves_no_directory);
        run.test("a_threaded_tree_has_no_place", a_threaded_tree_has_no_place);
        run.test("nobody_runs_without", nobody_runs_without);
        run.test("what_is_delegated_is_used", what_is_delegated_is_used);
        run.test("what_no_process_can_enter_is_refused", what_no_process_can_enter_is_refused);
        run.test("rules_on_devices_hold_for_the_hosts_root", rules_on_devices_hold_for_the_hosts_root);
    } else {
        run.skip("paths below the root of all cgroups", "needs root and a cgroup v2 tree");
    }
    if has_directory() {
        run.has("directory");
        for controller in controllers() {
            run.has(&controller);
        }
        run.test("a_container_lives_and_ends", a_container_lives_and_ends);
        run.test("no_depth_and_no_name_keeps_a_cgroup", no_depth_and_no_name_keeps_a_cgroup);
        run.test("what_has_no_number_here_is_no_zero", what_has_no_number_here_is_no_zero);
        run.test("every_file_is_written_and_read_back", every_file_is_written_and_read_back);
        run.test("an_update_changes_what_it_names", an_update_changes_what_it_names);
        run.test("want_of_memory_is_seen", want_of_memory_is_seen);
        run.test("exec_follows_a_container_that_divides_itself", exec_follows_a_container_that_divides_itself);
    } else {
        run.skip("directories", "no cgroup can be made here");
    }
    if has_systemd() {
        run.has("systemd");
        run.test("systemd_keeps_a_scope", systemd_keeps_a_scope);
        run.test("a_scope_that_cannot_be_leaves_nothing", a_scope_that_cannot_be_leaves_nothing);
        run.test("the_scope_of_a_dead_container_is_no_error", the_scope_of_a_dead_container_is_no_error);
        run.test("a_scope_of_another_is_not_touched", a_scope_of_another_is_not_touched);
    } else {
        run.skip("systemd", "no systemd answers");
        run.test("no_systemd_is_told", no_systemd_is_told);
    }
    run.finish()
}

/// Counts, since there is no harness. Each test is a process, so that a panic is a failed test.
#[derive(Default)]
struct Run {
    passed: u32,
    failed: u32,
    had: Vec<String>,
}

impl Run {
    fn test(&mut self, name: &str, body: fn()) {
        let status = waited(child(None, || {
            body();
            0
        }));
        let is_passed = status == WaitStatus::Exited(Pid::from_raw(0), 0);
        println!("test {name} ... {}", if is_passed { "ok" } else { "FAILED" });
        *(if is_passed { &mut self.passed } else { &mut self.failed }) += 1;
    }

    fn skip(&self, what: &str, why: &str) {
        println!("test {what} ... ignored, {why}");
        let _ = self;
    }

    fn has(&mut self, what: &str) {
        self.had.push(what.to_owned());
    }

    fn finish(mut self) -> ExitCode {
        for argument in std::env::args() {
            let Some(wanted) = argument.strip_prefix("--here=") else { continue };
            if !self.had.iter().any(|had| had == wanted) {
                println!("test {wanted} is here ... FAILED: {:?}", self.had);
                self.failed += 1;
            }
        }
        println!("test result: {} passed; {} failed", self.passed, self.failed);
        ExitCode::from(u8::from(self.failed != 0))
    }
}

// What is here.

fn own_directory() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().rev().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    Some(Path::new(mount).join(own))
}

fn has_directory() -> bool {
    let mut cgroup = Cgroup::plan(&request("probe")).unwrap();
    let is_made = cgroup.make().is_ok() && cgroup.dir().is_some();
    cgroup.remove().unwrap();
    is_made
}

/// Those that a container's cgroup has.
fn controllers() -> Vec<String> {
    let mut cgroup = Cgroup::plan(&request("controllers")).unwrap();
    cgroup.make().unwrap();
    let names = read(&cgroup, "cgroup.controllers");
    cgroup.remove().unwrap();
    names.split_whitespace().map(str::to_owned).collect()
}

fn bus() -> Option<String> {
    std::env::var("DBUS_SESSION_BUS_ADDRESS").ok()
}

fn has_systemd() -> bool {
    let bus = bus();
    Cgroup::plan(&Request { systemd: true, bus: bus.as_deref(), ..request("probe") }).is_ok()
}

// Requests.

/// As the engine of the calling user would ask without a path.
fn request(id: &str) -> Request<'_> {
    let rootless = !geteuid().is_root();
    Request {
        id,
        path: None,
        systemd: false,
        rootless,
        bus: None,
        annotations: None,
        resources: None,
        host_root: false,
    }
}

fn id(name: &str) -> String {
    format!("oci-test-{name}-{}", std::process::id())
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// A cgroup with these limits, made.
fn made(name: &str, json: &str) -> Cgroup {
    let (id, resources) = (id(name), resources(json));
    let mut cgroup = Cgroup::plan(&Request { resources: Some(&resources), ..request(&id) }).unwrap();
    cgroup.make().unwrap();
    cgroup
}

fn path(cgroup: &Cgroup) -> PathBuf {
    cgroup.record().path.clone().unwrap()
}

fn read(cgroup: &Cgroup, file: &str) -> String {
    let path = path(cgroup).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")).trim().to_owned()
}

// Processes.

fn child(cgroup: Option<&Cgroup>, body: impl FnOnce() -> i32) -> i32 {
    child_in(Flags::empty(), cgroup, body)
}

fn child_in(flags: Flags, cgroup: Option<&Cgroup>, body: impl FnOnce() -> i32) -> i32 {
    let dir = cgroup.and_then(Cgroup::dir);
    // A panic must not run what the parent would do after this.
    let guarded = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
    fork(flags, dir, guarded).unwrap().pid
}

fn sleeper(cgroup: Option<&Cgroup>) -> i32 {
    child(cgroup, asleep)
}

fn asleep() -> i32 {
    std::thread::sleep(Duration::from_mins(1));
    0
}

/// How a child ended, with pid 0 for a comparable exit.
fn waited(pid: i32) -> WaitStatus {
    match waitpid(Pid::from_raw(pid), None).unwrap() {
        WaitStatus::Exited(_, code) => WaitStatus::Exited(Pid::from_raw(0), code),
        other => other,
    }
}

fn killed_by(pid: i32, signal: Signal) {
    assert!(matches!(waited(pid), WaitStatus::Signaled(_, by, _) if by == signal));
}

fn become_nobody() {
    setgroups(&[]).unwrap();
    setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY)).unwrap();
    setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY)).unwrap();
}

// Paths.

fn paths_that_lead_elsewhere_are_refused() {
    for wrong in ["/", "/..", "/a/../b", "../a", ".", "a/..", "a\nb"] {
        let asked = Request { path: Some(Path::new(wrong)), ..request("c1") };
        let refused = Cgroup::plan(&asked);
        assert!(matches!(refused, Err(CgroupError::Invalid { .. })), "{wrong:?}: {refused:?}");
    }
}

fn a_path_is_made_and_only_its_end_removed() {
    let top = id("path");
    let wanted = format!("/{top}/pod/container");
    let asked = Request { path: Some(Path::new(&wanted)), ..request("c1") };
    let mut cgroup = Cgroup::plan(&asked).unwrap();
    let place = path(&cgroup);
    assert!(place.ends_with(&wanted[1..]) && !place.exists(), "planning makes nothing: {place:?}");
    cgroup.make().unwrap();
    let process = sleeper(Some(&cgroup));
    let own = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    assert!(own.lines().any(|line| line == format!("0::{wanted}")), "{own}");
    // Who is refused must not end the other container; nor must who was killed before being refused.
    let mut twin = Cgroup::plan(&asked).unwrap();
    let planned = twin.record().clone();
    let refused = twin.make();
    assert!(matches!(refused, Err(CgroupError::NotEmpty { count: 1, .. })), "{refused:?}");
    twin.remove().unwrap();
    Cgroup::open(&planned).unwrap().remove().unwrap();
    assert_eq!(cgroup.container().unwrap().processes().unwrap(), [process]);
    // A second container of the same pod.
    let sibling = format!("/{top}/pod/second");
    let mut second = Cgroup::plan(&Request { path: Some(Path::new(&sibling)), ..request("c2") }).unwrap();
    second.make().unwrap();
    second.remove().unwrap();
    // By its record, as another call of the runtime has it; what lives is killed.
    let record: Record = serde_json::from_str(&serde_json::to_string(cgroup.record()).unwrap()).unwrap();
    Cgroup::open(&record).unwrap().remove().unwrap();
    killed_by(process, Signal::SIGKILL);
    assert!(!place.exists() && place.parent().unwrap().exists(), "the pod's cgroup is the engine's");
    let gone = Cgroup::open(&record).unwrap();
    assert!(gone.container().is_none());
    gone.remove().unwrap();
    // An empty one may be there already, but not a frozen one.
    fs::create_dir(&place).unwrap();
    fs::write(place.join("cgroup.freeze"), "1").unwrap();
    let refused = Cgroup::plan(&asked).unwrap().make();
    assert!(matches!(refused, Err(CgroupError::Frozen { .. })), "{refused:?}");
    fs::write(place.join("cgroup.freeze"), "0").unwrap();
    let mut cgroup = Cgroup::plan(&asked).unwrap();
    let planned = cgroup.record().clone();
    cgroup.make().unwrap();
    // Killed after this: nobody has kept that it was made.
    Cgroup::open(&planned).unwrap().remove().unwrap();
    assert!(!place.exists());
    cgroup.remove().unwrap();
    fs::remove_dir(place.parent().unwrap()).unwrap();
    fs::remove_dir(place.parent().unwrap().parent().unwrap()).unwrap();
}

fn what_fails_leaves_no_directory() {
    let wanted = format!("/{}/a/b", id("undo"));
    let none = resources(r#"{"unified": {"nosuch.max": "1"}}"#);
    let asked = Request { path: Some(Path::new(&wanted)), resources: Some(&none), ..request("c1") };
    let mut cgroup = Cgroup::plan(&asked).unwrap();
    let top = path(&cgroup).ancestors().nth(2).unwrap().to_owned();
    let refused = cgroup.make();
    assert!(
        matches!(&refused, Err(CgroupError::NotDelegated { option, controller, .. })
            if option == "linux.resources.unified[\"nosuch.max\"]" && controller == "nosuch"),
        "{refused:?}"
    );
    assert!(!top.exists(), "{top:?}");
    assert_eq!(cgroup.record(), &Record::default());
}

fn a_threaded_tree_has_no_place() {
    let top = own_directory().unwrap().join(id("threaded"));
    fs::create_dir_all(top.join("thread")).unwrap();
    fs::write(top.join("thread/cgroup.type"), "threaded").unwrap();
    let name =
        format!("{}/{}", fs::read_to_string("/proc/self/cgroup").unwrap().lines().last().unwrap(), id("threaded"));
    let wanted = PathBuf::from(name.trim_start_matches("0::").replace("//", "/")).join("container");
    let refused = Cgroup::plan(&Request { path: Some(&wanted), ..request("c1") }).unwrap().make();
    assert!(
        matches!(&refused, Err(CgroupError::NoPlace { reason, .. }) if reason.contains("domain invalid")),
        "{refused:?}"
    );
    assert!(!top.join("container").exists());
    fs::remove_dir(top.join("thread")).unwrap();
    fs::remove_dir(top).unwrap();
}

// What a plain user has.

fn nobody_runs_without() {
    become_nobody();
    let mut cgroup = Cgroup::plan(&request("c1")).unwrap();
    cgroup.make().unwrap();
    assert_eq!(cgroup.record(), &Record::default());
    assert!(cgroup.dir().is_none() && cgroup.container().is_none() && cgroup.watch_oom().unwrap().is_none());
    assert_eq!(cgroup.lines().len(), 1, "{:?}", cgroup.lines());
    assert!(cgroup.lines()[0].starts_with("the container runs without a cgroup: "), "{:?}", cgroup.lines());
    assert!(cgroup.lines()[0].contains("EACCES"), "{:?}", cgroup.lines());
    cgroup.enter(1).unwrap();
    assert!(matches!(cgroup.update(&resources(r#"{"pids": {"limit": 5}}"#)), Err(CgroupError::NoCgroup { .. })));
    assert_eq!(cgroup.update(&resources(r#"{"pids": {"limit": -1}}"#)).unwrap(), [""; 0]);
    cgroup.remove().unwrap();
    // No limit that would be missed, and one.
    let none = resources(r#"{"pids": {"limit": -1}, "devices": [{"allow": false, "access": "rwm"}]}"#);
    Cgroup::plan(&Request { resources: Some(&none), ..request("c1") }).unwrap().make().unwrap();
    let limit = resources(r#"{"pids": {"limit": 5}}"#);
    let refused = Cgroup::plan(&Request { resources: Some(&limit), ..request("c1") }).and_then(|mut c| c.make());
    assert!(
        matches!(&refused, Err(CgroupError::NoCgroup { option, .. }) if option == "linux.resources.pids.limit"),
        "{refused:?}"
    );
    // A path is wanted for a reason; and whoever is not rootless must have one.
    let named = Request { path: Some(Path::new("/of-root")), ..request("c1") };
    assert!(matches!(Cgroup::plan(&named).and_then(|mut c| c.make()), Err(CgroupError::File { .. })));
    let rootful = Request { rootless: false, ..request("c1") };
    assert!(matches!(Cgroup::plan(&rootful).and_then(|mut c| c.make()), Err(CgroupError::File { .. })));
}

fn give(path: &Path) {
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        chown(path.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Beside our own cgroup where what is above is ours, else below it.
fn what_is_delegated_is_used() {
    let top = own_directory().unwrap().join(id("given"));
    fs::create_dir_all(top.join("in")).unwrap();
    give(&top);
    give(&top.join("in"));
    // First where no controller is given on yet, which would keep processes out.
    for stands_in in [".", "in"] {
        let status = waited(child(None, || {
            fs::write(top.join(stands_in).join("cgroup.procs"), "0").unwrap();
            become_nobody();
            let mut cgroup = Cgroup::plan(&request("c1")).unwrap();
            cgroup.make().unwrap();
            assert_eq!(path(&cgroup), top.join("c1"));
            assert_eq!(cgroup.lines(), [""; 0]);
            let process = sleeper(Some(&cgroup));
            assert_eq!(cgroup.container().unwrap().processes().unwrap(), [process]);
            cgroup.remove().unwrap();
            killed_by(process, Signal::SIGKILL);
            0
        }));
        assert_eq!(status, WaitStatus::Exited(Pid::from_raw(0), 0), "{stands_in}");
    }
    fs::remove_dir(top.join("in")).unwrap();
    fs::remove_dir(top).unwrap();
}

fn what_no_process_can_enter_is_refused() {
    let top = own_directory().unwrap().join(id("apart"));
    fs::create_dir(&top).unwrap();
    give(&top);
    let status = waited(child(None, || {
        become_nobody();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
        let wanted = Path::new(&own).join(top.file_name().unwrap()).join("container");
        let refused = Cgroup::plan(&Request { path: Some(&wanted), ..request("c1") }).unwrap().make();
        assert!(
            matches!(&refused, Err(CgroupError::NoPlace { reason, .. }) if reason.contains("cgroup.procs")),
            "{refused:?}"
        );
        assert!(!top.join("container").exists());
        0
    }));
    assert_eq!(status, WaitStatus::Exited(Pid::from_raw(0), 0));
    assert_eq!(fs::metadata(&top).unwrap().uid(), NOBODY);
    fs::remove_dir(top).unwrap();
}

fn rules_on_devices_hold_for_the_hosts_root() {
    let opens = |node: &&str| fs::File::open(node).is_ok();
    let other = ["/dev/fuse", "/dev/net/tun", "/dev/kmsg"].into_iter().find(opens).unwrap();
    let name = id("devices");
    let none = resources(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#);
    let all = resources(r#"{"devices": [{"allow": true, "type": "a", "access": "rwm"}]}"#);
    for (resources, may) in [(None, false), (Some(&none), false), (Some(&all), true)] {
        let mut cgroup = Cgroup::plan(&Request { resources, host_root: true, ..request(&name) }).unwrap();
        cgroup.make().unwrap();
        let status = waited(child(Some(&cgroup), || {
            assert!(fs::File::open("/dev/null").is_ok() && fs::File::open("/dev/urandom").is_ok());
            assert_eq!(fs::File::open(other).map_err(|error| error.raw_os_error()).err(), (!may).then_some(Some(1)));
            0
        }));
        assert_eq!(status, WaitStatus::Exited(Pid::from_raw(0), 0), "{resources:?}");
        cgroup.remove().unwrap();
    }
    let rule = resources(r#"{"devices": [{"allow": true, "type": "p", "access": "r"}]}"#);
    let refused = Cgroup::plan(&Request { resources: Some(&rule), host_root: true, ..request(&name) });
    assert!(matches!(refused, Err(CgroupError::Invalid { .. })), "{refused:?}");
}

// One container.

fn a_container_lives_and_ends() {
    let cgroup = made("life", "{}");
    let container = cgroup.container().unwrap();
    let mut watch = cgroup.watch_oom().unwrap().unwrap();
    assert_eq!(watch.read().unwrap(), OomState { kills: 0, populated: false });
    let process = sleeper(Some(&cgroup));
    fs::create_dir(path(&cgroup).join("below")).unwrap();
    let second = sleeper(Some(&cgroup));
    fs::write(path(&cgroup).join("below/cgroup.procs"), second.to_string()).unwrap();
    assert_eq!(container.processes().unwrap(), [process, second]);
    assert_eq!(watch.read().unwrap(), OomState { kills: 0, populated: true });

    let stats = container.stats().unwrap();
    assert!(stats.cpu.contains_key("usage_usec"), "{stats:?}");
    assert!(stats.pids.current >= 1, "{stats:?}");
    assert!(stats.memory.is_none() || stats.memory_pressure.is_some() || !Path::new("/proc/pressure").exists());
    let line = serde_json::to_value(stats::Event::stats("c1", &stats)).unwrap();
    assert_eq!((&line["type"], &line["id"]), (&"stats".into(), &"c1".into()));
    assert_eq!(line["data"]["pids"]["current"], stats.pids.current);

    // A signal reaches all, wherever they stand, and leaves a frozen container frozen. That it is to be so is asked, not
    // that they stand still: a deadly signal ends a frozen process (kernel, Documentation/admin-guide/cgroup-v2.rst).
    container.freeze().unwrap().keep();
    assert!(container.is_frozen().unwrap());
    container.signal(Signal::SIGTERM as i32).unwrap();
    assert_eq!(fs::read_to_string(path(&cgroup).join("cgroup.freeze")).unwrap(), "1\n");
    container.thaw().unwrap();
    killed_by(process, Signal::SIGTERM);
    killed_by(second, Signal::SIGTERM);
    let mut polled: Vec<_> = watch.fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLPRI)).collect();
    assert!(poll(&mut polled, PollTimeout::from(5000_u16)).unwrap() > 0, "the end is told");
    assert_eq!(watch.read().unwrap(), OomState { kills: 0, populated: false });

    let process = sleeper(Some(&cgroup));
    drop(container.freeze().unwrap());
    assert!(!container.is_frozen().unwrap(), "a failure thaws");
    container.signal(Signal::SIGUSR1 as i32).unwrap();
    killed_by(process, Signal::SIGUSR1);
    assert!(!container.is_frozen().unwrap());
    cgroup.remove().unwrap();
    assert!(!path(&cgroup).exists());
    assert_eq!(watch.read().unwrap(), OomState::default(), "what is gone is empty");
}

/// A container with a writable cgroup makes what it wants below its own.
fn no_depth_and_no_name_keeps_a_cgroup() {
    let cgroup = made("deep", "{}");
    let mut deepest = path(&cgroup);
    for level in 0..150 {
        deepest.push(if level % 50 == 7 { OsString::from_vec(vec![b'x', 0xff]) } else { "below".into() });
        fs::create_dir(&deepest).unwrap();
        fs::create_dir(deepest.with_file_name("beside")).unwrap();
    }
    let process = sleeper(None);
    fs::write(deepest.join("cgroup.procs"), process.to_string()).unwrap();
    let container = cgroup.container().unwrap();
    assert_eq!(container.processes().unwrap(), [process]);
    container.signal(Signal::SIGTERM as i32).unwrap();
    killed_by(process, Signal::SIGTERM);
    cgroup.remove().unwrap();
    assert!(!path(&cgroup).exists());
}

/// The kernel lists a process that is outside of the reader's pid namespace as 0, and kill(2) takes that for the caller's
/// own process group.
fn what_has_no_number_here_is_no_zero() {
    let cgroup = made("elsewhere", "{}");
    let process = sleeper(Some(&cgroup));
    let user = if geteuid().is_root() { Flags::empty() } else { Flags::NEWUSER };
    let inside = child_in(user | Flags::NEWPID, None, || {
        nix::unistd::setsid().unwrap();
        let of_our_group = child(None, || {
            std::thread::sleep(Duration::from_millis(200));
            0
        });
        let same = Cgroup::open(cgroup.record()).unwrap();
        let container = same.container().unwrap();
        assert_eq!(container.processes().unwrap(), [0; 0]);
        let refused = container.signal(Signal::SIGTERM as i32);
        assert!(matches!(refused, Err(CgroupError::Elsewhere { count: 1, .. })), "{refused:?}");
        assert!(!container.is_frozen().unwrap());
        assert_eq!(waited(of_our_group), WaitStatus::Exited(Pid::from_raw(0), 0));
        0
    });
    assert_eq!(waited(inside), WaitStatus::Exited(Pid::from_raw(0), 0));
    cgroup.remove().unwrap();
    killed_by(process, Signal::SIGKILL);
}

/// The number of a disk, for limits by device.
fn disk() -> Option<String> {
    let mut disks: Vec<_> = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path()).collect();
    disks.retain(|disk| fs::read_to_string(disk.join("removable")).is_ok_and(|text| text.trim() == "0"));
    disks.retain(|disk| disk.join("device").exists());
    disks.sort();
    Some(fs::read_to_string(disks.first()?.join("dev")).ok()?.trim().to_owned())
}

fn every_file_is_written_and_read_back() {
    let had = controllers();
    let (major, minor) = disk().map_or(("0".to_owned(), "0".to_owned()), |disk| {
        let (major, minor) = disk.split_once(':').unwrap();
        (major.to_owned(), minor.to_owned())
    });
    let device = |key: &str, rate: u64| {
        format!(r#"{{"blockIO": {{"{key}": [{{"major": {major}, "minor": {minor}, "rate": {rate}}}]}}}}"#)
    };
    let io_max = |rest: &str| format!("{major}:{minor} {rest}");
    let cases: Vec<(&str, String, &str, String)> = [
        ("memory", r#"{"memory": {"limit": 67108864}}"#, "memory.max", "67108864"),
        ("memory", r#"{"memory": {"limit": 67108864, "swap": 100663296}}"#, "memory.swap.max", "33554432"),
        ("memory", r#"{"memory": {"limit": 67108864, "swap": 67108864}}"#, "memory.swap.max", "0"),
        ("memory", r#"{"memory": {"limit": -1}}"#, "memory.swap.max", "max"),
        ("memory", r#"{"memory": {"reservation": 1048576}}"#, "memory.low", "1048576"),
        ("memory", r#"{"unified": {"memory.high": "33554432"}}"#, "memory.high", "33554432"),
        ("memory", r#"{"unified": {"memory.min": "4096"}}"#, "memory.min", "4096"),
        ("memory", r#"{"unified": {"memory.oom.group": "1"}}"#, "memory.oom.group", "1"),
        ("cpu", r#"{"cpu": {"shares": 2048}}"#, "cpu.weight", "174"),
        ("cpu", r#"{"cpu": {"quota": 50000}}"#, "cpu.max", "50000 100000"),
        ("cpu", r#"{"cpu": {"quota": 5000, "period": 20000}}"#, "cpu.max", "5000 20000"),
        ("cpu", r#"{"cpu": {"quota": -1, "period": 20000}}"#, "cpu.max", "max 20000"),
        // The kernel takes the burst only after the quota.
        ("cpu", r#"{"cpu": {"quota": 5000, "burst": 3000}}"#, "cpu.max.burst", "3000"),
        ("cpu", r#"{"cpu": {"idle": 1}}"#, "cpu.idle", "1"),
        ("cpuset", r#"{"cpu": {"cpus": "0"}}"#, "cpuset.cpus", "0"),
        ("cpuset", r#"{"cpu": {"mems": "0"}}"#, "cpuset.mems", "0"),
        ("pids", r#"{"pids": {"limit": 20}}"#, "pids.max", "20"),
        ("pids", r#"{"pids": {"limit": 0}}"#, "pids.max", "1"),
        ("pids", r#"{"pids": {"limit": -1}}"#, "pids.max", "max"),
        ("pids", r#"{"pids": {"limit": 20}, "unified": {"pids.max": "30"}}"#, "pids.max", "30"),
        ("hugetlb", r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#, "hugetlb.2MB.max", "4194304"),
        (
            "hugetlb",
            r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
            "hugetlb.2MB.rsvd.max",
            "4194304",
        ),
    ]
    .map(|(controller, json, file, value)| (controller, json.to_owned(), file, value.to_owned()))
    .into_iter()
    .chain([
        (
            "io",
            device("throttleReadBpsDevice", 1_048_576),
            "io.max",
            io_max("rbps=1048576 wbps=max riops=max wiops=max"),
        ),
        ("io", device("throttleWriteBpsDevice", 4096), "io.max", io_max("rbps=max wbps=4096 riops=max wiops=max")),
        ("io", device("throttleReadIOPSDevice", 30), "io.max", io_max("rbps=max wbps=max riops=30 wiops=max")),
        ("io", device("throttleWriteIOPSDevice", 40), "io.max", io_max("rbps=max wbps=max riops=max wiops=40")),
    ])
    .collect();
    for (controller, json, file, value) in cases {
        let resources = resources(&json);
        let id = id("files");
        let mut cgroup = Cgroup::plan(&Request { resources: Some(&resources), ..request(&id) }).unwrap();
        let place = path(&cgroup);
        match cgroup.make() {
            Ok(()) if path(&cgroup).join(file).exists() => {
                assert_eq!(read(&cgroup, file), value, "{json}");
                println!("    {file} = {value}");
                cgroup.remove().unwrap();
            }
            // What is no limit needs no file.
            Ok(()) => {
                assert!(!had.iter().any(|name| name == controller) && value.starts_with("max"), "{json}: no {file}");
                cgroup.remove().unwrap();
            }
            Err(
                CgroupError::NotDelegated { controller: missing, .. }
                | CgroupError::Occupied { controller: missing, .. },
            ) => {
                assert!(!had.iter().any(|name| name == controller), "{json}: {controller} is here");
                assert_eq!(missing, controller);
                assert!(!place.exists());
            }
            Err(CgroupError::NoFile { file, .. }) => println!("    this kernel has no {file}"),
            Err(other) => panic!("{json}: {other:?}"),
        }
    }
    if had.iter().any(|name| name == "io") {
        weights(&major, &minor);
    }
}

/// BFQ takes the number as it is, `io.weight` the converted one; which of them is here is the kernel's. A weight for one
/// disk needs a disk that has that scheduler.
fn weights(major: &str, minor: &str) {
    let node = format!("{major}:{minor}");
    let scheduler = fs::read_to_string(format!("/sys/dev/block/{node}/queue/scheduler")).unwrap_or_default();
    let device = format!(r#""weightDevice": [{{"major": {major}, "minor": {minor}, "weight": 444}}]"#);
    for (json, wanted) in [(r#""weight": 750"#, ["default 750", "default 7475"]), (&device, ["444", "4384"])] {
        let resources = resources(&format!(r#"{{"blockIO": {{{json}}}}}"#));
        let id = id("weights");
        let mut cgroup = Cgroup::plan(&Request { resources: Some(&resources), ..request(&id) }).unwrap();
        match cgroup.make() {
            Ok(()) => {
                let has_bfq = path(&cgroup).join("io.bfq.weight").exists();
                let (file, number) = if has_bfq { ("io.bfq.weight", wanted[0]) } else { ("io.weight", wanted[1]) };
                let line = if number.starts_with("default") { number.to_owned() } else { format!("{node} {number}") };
                let text = read(&cgroup, file);
                assert!(text.lines().any(|given| given == line), "{json}: {text}");
                println!("    {file} = {line}");
                cgroup.remove().unwrap();
            }
            Err(CgroupError::NoFile { file, .. }) => println!("    this kernel has no {file}, nor io.weight"),
            Err(CgroupError::Value { source, .. }) if source.errno() == nix::errno::Errno::EOPNOTSUPP => {
                assert!(!scheduler.contains("[bfq]"), "{json}: {scheduler}");
                println!("    disk {node} has no weight");
            }
            Err(other) => panic!("{json}: {other:?}"),
        }
    }
}

fn an_update_changes_what_it_names() {
    let had = controllers();
    let has = |name: &str| had.iter().any(|controller| controller == name);
    let cgroup = made("update", "{}");
    let update = |json: &str| cgroup.update(&resources(json));
    assert_eq!(update(r#"{"memory": {"swappiness": 60}}"#).unwrap().len(), 1);
    if has("cpu") {
        update(r#"{"cpu": {"quota": 30000, "period": 60000}}"#).unwrap();
        update(r#"{"cpu": {"quota": 20000}}"#).unwrap();
        assert_eq!(read(&cgroup, "cpu.max"), "20000 60000");
        update(r#"{"cpu": {"period": 50000}}"#).unwrap();
        assert_eq!(read(&cgroup, "cpu.max"), "20000 50000");
        // A larger burst than the old quota allows, then a smaller quota than the old burst allows.
        update(r#"{"cpu": {"quota": 50000, "burst": 40000}}"#).unwrap();
        update(r#"{"cpu": {"quota": 10000, "burst": 5000}}"#).unwrap();
        assert_eq!((read(&cgroup, "cpu.max"), read(&cgroup, "cpu.max.burst")), ("10000 50000".into(), "5000".into()));
        update(r#"{"cpu": {"quota": -1, "burst": 0}}"#).unwrap();
        assert_eq!(read(&cgroup, "cpu.max"), "max 50000");
    }
    if has("memory") {
        update(r#"{"memory": {"limit": 67108864}}"#).unwrap();
        update(r#"{"memory": {"swap": 100663296}}"#).unwrap();
        assert_eq!(read(&cgroup, "memory.swap.max"), "33554432", "a total less the memory that is set");
        let process = child(Some(&cgroup), || {
            let memory = vec![1_u8; 16 << 20];
            std::thread::sleep(Duration::from_mins(1));
            i32::from(std::hint::black_box(memory)[4096])
        });
        let used = || read(&cgroup, "memory.current").parse::<u64>().unwrap();
        while used() < 16 << 20 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let refused = update(r#"{"memory": {"limit": 8388608, "checkBeforeUpdate": true}}"#);
        assert!(matches!(refused, Err(CgroupError::BelowUse { limit_bytes: 8_388_608, .. })), "{refused:?}");
        assert_eq!(read(&cgroup, "memory.max"), "67108864");
        let memory = cgroup.container().unwrap().stats().unwrap().memory.unwrap();
        assert!(memory.usage.current >= 16 << 20 && memory.usage.max == Some(67_108_864), "{memory:?}");
        assert!(memory.stat["anon"] >= 8 << 20, "{memory:?}");
        update(r#"{"memory": {"limit": -1}}"#).unwrap();
        assert_eq!(read(&cgroup, "memory.max"), "max");
        cgroup.container().unwrap().kill().unwrap();
        killed_by(process, Signal::SIGKILL);
    }
    if has("pids") {
        update(r#"{"pids": {"limit": 7}}"#).unwrap();
        assert_eq!(cgroup.container().unwrap().stats().unwrap().pids.max, Some(7));
        update(r#"{"pids": {"limit": -1}}"#).unwrap();
        assert_eq!(read(&cgroup, "pids.max"), "max");
    } else {
        assert!(update(r#"{"pids": {"limit": 7}}"#).is_err());
    }
    cgroup.remove().unwrap();
}

fn want_of_memory_is_seen() {
    if !controllers().iter().any(|name| name == "memory") {
        println!("    (no memory controller)");
        return;
    }
    let cgroup = made("oom", r#"{"memory": {"limit": 33554432, "swap": 33554432}}"#);
    let mut watch = cgroup.watch_oom().unwrap().unwrap();
    let other = sleeper(Some(&cgroup));
    assert_eq!(watch.read().unwrap(), OomState { kills: 0, populated: true });
    let greedy = child(Some(&cgroup), || i32::from(std::hint::black_box(vec![1_u8; 256 << 20])[4096]));
    let seen = loop {
        let mut polled: Vec<_> = watch.fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLPRI)).collect();
        assert!(poll(&mut polled, PollTimeout::from(20_000_u16)).unwrap() > 0, "nothing happened");
        let seen = watch.read().unwrap();
        if seen.kills > 0 {
            break seen;
        }
    };
    assert_eq!(seen, OomState { kills: 1, populated: true });
    killed_by(greedy, Signal::SIGKILL);
    let memory = cgroup.container().unwrap().stats().unwrap().memory.unwrap();
    assert_eq!((memory.events["oom_kill"], cgroup.container().unwrap().oom_kills()), (1, 1));
    assert!(memory.events["max"] > 0, "{memory:?}");
    cgroup.remove().unwrap();
    killed_by(other, Signal::SIGKILL);
}

/// A container that gives controllers on has no process in its own cgroup any more, and the kernel lets none in.
fn exec_follows_a_container_that_divides_itself() {
    let cgroup = made("divided", "{}");
    let container = cgroup.container().unwrap();
    let init = sleeper(Some(&cgroup));
    let born = |dir: std::os::fd::OwnedFd| {
        let process = fork(Flags::empty(), Some(dir.as_fd()), asleep).unwrap().pid;
        let own = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
        own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
    };
    let before = born(cgroup.dir_for_exec(init, None).unwrap().unwrap());
    assert!(path(&cgroup).ends_with(Path::new(&before).file_name().unwrap()), "{before}");
    let Some(controller) = controllers().into_iter().find(|name| matches!(name.as_str(), "memory" | "io")) else {
        println!("    (no controller to divide by)");
        cgroup.remove().unwrap();
        return;
    };
    fs::create_dir(path(&cgroup).join("init.scope")).unwrap();
    for process in container.processes().unwrap() {
        fs::write(path(&cgroup).join("init.scope/cgroup.procs"), process.to_string()).unwrap();
    }
    fs::write(path(&cgroup).join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let after = born(cgroup.dir_for_exec(init, None).unwrap().unwrap());
    assert!(after.ends_with("/init.scope"), "{after}");
    cgroup.remove().unwrap();
    killed_by(init, Signal::SIGKILL);
}

// systemd.

/// A plan of a scope with these limits and annotations.
fn scope(name: &str, json: &str, annotations: &[(&str, &str)]) -> Cgroup {
    let (bus, resources) = (bus(), resources(json));
    let path = format!(":oci-test:{name}-{}", std::process::id());
    let annotations: HashMap<String, String> =
        annotations.iter().map(|(key, value)| (format!("org.systemd.property.{key}"), (*value).to_owned())).collect();
    Cgroup::plan(&Request {
        path: Some(Path::new(&path)),
        systemd: true,
        bus: bus.as_deref(),
        annotations: Some(&annotations),
        resources: Some(&resources),
        ..request("c1")
    })
    .unwrap()
}

/// What systemd says of a unit.
fn shown(unit: &str, property: &str) -> String {
    let mut systemctl = Command::new("systemctl");
    if !geteuid().is_root() {
        systemctl.arg("--user");
    }
    let output = systemctl.args(["show", "--value", "-p", property, unit]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn systemd_keeps_a_scope() {
    let limits = r#"{"memory": {"limit": 67108864, "swap": 67108864, "reservation": 1048576},
        "cpu": {"shares": 2048, "quota": 50000, "period": 20000}, "pids": {"limit": 20}}"#;
    let mut cgroup = scope("kept", limits, &[("Documentation", "['man:crun(1)']"), ("TimeoutStopSec", "7")]);
    let unit = format!("oci-test-kept-{}.scope", std::process::id());
    cgroup.make().unwrap();
    assert!(cgroup.dir().is_none(), "the scope begins with a process");
    let process = sleeper(None);
    let begin = std::time::Instant::now();
    cgroup.enter(process).unwrap();
    println!("    the scope took {:?}", begin.elapsed());
    let slice = if geteuid().is_root() { "system.slice" } else { "user.slice" };
    assert!(path(&cgroup).ends_with(format!("{slice}/{unit}")), "{:?}", path(&cgroup));
    assert_eq!(cgroup.container().unwrap().processes().unwrap(), [process]);
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.low", "1048576"),
        ("cpu.weight", "174"),
        ("cpu.max", "50000 20000"),
        ("pids.max", "20"),
    ] {
        assert_eq!(read(&cgroup, file), value, "{file}");
    }
    for (property, value) in [
        ("MemoryMax", "67108864"),
        ("MemorySwapMax", "0"),
        ("MemoryLow", "1048576"),
        ("CPUWeight", "174"),
        ("CPUQuotaPerSecUSec", "2.500000s"),
        ("CPUQuotaPeriodUSec", "20ms"),
        ("TasksMax", "20"),
        ("Delegate", "yes"),
        ("Documentation", "man:crun(1)"),
        ("TimeoutStopUSec", "7s"),
        ("Slice", slice),
    ] {
        assert_eq!(shown(&unit, property).trim_matches('"'), value, "{property}");
    }
    // More processes of the container stand there too, wherever we stand, and its limits follow an update.
    let dir = cgroup.dir_for_exec(process, None).unwrap();
    println!("    born there: {}", dir.is_some());
    let second = fork(Flags::empty(), dir.as_ref().map(AsFd::as_fd), asleep).unwrap().pid;
    cgroup.admit(process, None, second).unwrap();
    assert_eq!(cgroup.container().unwrap().processes().unwrap(), [process, second]);
    let again = Cgroup::open(cgroup.record()).unwrap();
    again.update(&resources(r#"{"pids": {"limit": 30}, "memory": {"limit": -1, "swap": -1}}"#)).unwrap();
    assert_eq!((shown(&unit, "TasksMax"), read(&cgroup, "pids.max")), ("30".to_owned(), "30".to_owned()));
    assert_eq!((shown(&unit, "MemoryMax"), read(&cgroup, "memory.max")), ("infinity".to_owned(), "max".to_owned()));
    again.remove().unwrap();
    killed_by(process, Signal::SIGKILL);
    killed_by(second, Signal::SIGKILL);
    assert!(!path(&cgroup).exists());
    assert_eq!(shown(&unit, "LoadState"), "not-found");
    again.remove().unwrap();
}

fn a_scope_that_cannot_be_leaves_nothing() {
    // Known to systemd, but not to be set; and a limit that the kernel refuses after the scope has begun.
    for (json, annotation) in
        [("{}", ("NoSuchProperty", "true")), (r#"{"unified": {"nosuch.max": "1"}}"#, ("SendSIGHUP", "true"))]
    {
        let mut cgroup = scope("broken", json, &[annotation]);
        let process = sleeper(None);
        let refused = cgroup.enter(process);
        assert!(
            matches!(refused, Err(CgroupError::Unit { .. } | CgroupError::NotDelegated { .. })),
            "{json}: {refused:?}"
        );
        assert_eq!(shown(&format!("oci-test-broken-{}.scope", std::process::id()), "LoadState"), "not-found");
        // In the second case it went with its scope.
        let _ = nix::sys::signal::kill(Pid::from_raw(process), Signal::SIGKILL);
        killed_by(process, Signal::SIGKILL);
    }
}

fn the_scope_of_a_dead_container_is_no_error() {
    let mut cgroup = scope("dead", "{}", &[]);
    let process = sleeper(None);
    cgroup.enter(process).unwrap();
    nix::sys::signal::kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    killed_by(process, Signal::SIGKILL);
    cgroup.remove().unwrap();
    // Its name is free again, whatever systemd has made of its end.
    let process = sleeper(None);
    cgroup.enter(process).unwrap();
    cgroup.remove().unwrap();
    killed_by(process, Signal::SIGKILL);
}

/// A name that is taken: who was refused must not end the other container.
fn a_scope_of_another_is_not_touched() {
    let mut cgroup = scope("taken", "{}", &[]);
    let process = sleeper(None);
    cgroup.enter(process).unwrap();
    let mut twin = scope("taken", "{}", &[]);
    // A runtime that is killed now leaves this record.
    Cgroup::open(twin.record()).unwrap().remove().unwrap();
    let second = sleeper(None);
    let refused = twin.enter(second);
    assert!(matches!(&refused, Err(CgroupError::Unit { reason, .. }) if reason.contains("UnitExists")), "{refused:?}");
    twin.remove().unwrap();
    assert_eq!(cgroup.container().unwrap().processes().unwrap(), [process]);
    cgroup.remove().unwrap();
    killed_by(process, Signal::SIGKILL);
    nix::sys::signal::kill(Pid::from_raw(second), Signal::SIGKILL).unwrap();
    killed_by(second, Signal::SIGKILL);
}

fn no_systemd_is_told() {
    let refused = Cgroup::plan(&Request { systemd: true, ..request("c1") });
    assert!(matches!(&refused, Err(CgroupError::Unit { unit, .. }) if unit == "sublet-c1.scope"), "{refused:?}");
}
