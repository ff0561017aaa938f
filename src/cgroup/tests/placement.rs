//! Places a process as a monitor is placed, on whatever rung this host has for the calling user, and tries everything a
//! container's cgroup does. Runs without a harness: see `src/cgroup/Cargo.toml`.
#![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use base::ContainerId;
use cgroup::{CgroupError, Container, Limits, Placement, Request, probe, quota_of_nano_cpus, scope};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use sys::process::{Flags, fork};

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(scope::ROLE) {
        return scope::main(sys::role::Inherited::take().unwrap());
    }
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let id = ContainerId::from_random(seed);
    let note = std::env::temp_dir().join(format!("cgroup-placement-{}", std::process::id()));
    // The placed process is a child, so that its leaf can be removed when it is gone.
    let passed = waited(run(None, || {
        scenario(&id, &note);
        0
    }));
    if let Ok(base) = std::fs::read_to_string(&note) {
        std::fs::remove_file(&note).unwrap();
        let _ = std::fs::remove_dir(Path::new(&base).join(format!("m-{id}"))); // systemd may have been faster
    }
    let failed = u8::from(passed != WaitStatus::Exited(Pid::from_raw(0), 0));
    println!("test result: {} passed, {failed} failed", 1 - failed);
    ExitCode::from(failed)
}

fn scenario(id: &ContainerId, note: &Path) {
    let bus = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok();
    let foreseen = probe(bus.as_deref());
    let begin = Instant::now();
    let placement =
        Placement::climb(Request { id, bus: bus.as_deref(), servers: &[], parent: None, cancel: None }).unwrap();
    println!("rung {:?} in {:?}", placement.ladder.chosen, begin.elapsed());
    println!("line: {:?}", placement.ladder.step_down());
    assert_eq!(foreseen.chosen, placement.ladder.chosen, "{foreseen:?} {:?}", placement.ladder);
    let Some(base) = placement.base() else { return without_cgroup(&placement) };
    std::fs::write(note, base.to_str().unwrap()).unwrap();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(own.trim_end().ends_with(&format!("m-{id}")), "{own}");

    let controllers = std::fs::read_to_string(base.join("cgroup.subtree_control")).unwrap();
    println!("controllers: {}", controllers.trim());
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);

    let container = placement.container(&Limits::default()).unwrap().unwrap();
    life(&container);
    container.remove().unwrap();
    assert!(!container.path().exists());

    limits(&placement, &has);
    if has("memory") {
        out_of_memory(&placement);
    }
    if has("pids") {
        too_many_processes(&placement);
    }
    let begin = Instant::now();
    Placement::climb(Request { id, bus: bus.as_deref(), servers: &[], parent: None, cancel: None }).unwrap();
    println!("placed again in {:?}", begin.elapsed());
}

fn without_cgroup(placement: &Placement) {
    assert!(placement.container(&Limits::default()).unwrap().is_none());
    let asked = Limits { memory_max: Some(1 << 26), ..Limits::default() };
    assert!(matches!(placement.container(&asked), Err(CgroupError::NoCgroup { option, .. }) if option == "--memory"));
}

/// Populated, frozen, thawed, killed, with a cgroup below that the container made.
fn life(container: &Container) {
    assert!(!container.is_populated().unwrap());
    let child = run(Some(container), sleep);
    assert!(container.is_populated().unwrap());
    assert_eq!(container.processes().unwrap(), [child]);
    assert!(!container.is_frozen().unwrap());
    let frozen = container.freeze().unwrap();
    assert!(container.is_frozen().unwrap());
    drop(frozen);
    assert!(!container.is_frozen().unwrap(), "a failure thaws");
    container.freeze().unwrap().keep();
    assert!(container.is_frozen().unwrap());
    container.thaw().unwrap();
    std::fs::create_dir(container.path().join("below")).unwrap();
    std::fs::write(container.path().join("below/cgroup.procs"), child.to_string()).unwrap();
    assert_eq!(container.processes().unwrap(), [child]);
    let reopened = Container::open(container.path()).unwrap();
    reopened.freeze().unwrap().keep();
    // A frozen container dies all the same. The killed one is a zombie of ours until it is reaped, which no longer counts.
    reopened.kill().unwrap();
    assert!(matches!(waited(child), WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)));
    assert!(!container.is_populated().unwrap());
}

/// Each limit is written and read back, or refused by its option's name.
fn limits(placement: &Placement, has: &dyn Fn(&str) -> bool) {
    let one = Limits::default;
    let cases = [
        ("memory", Limits { memory_max: Some(64 << 20), ..one() }, "memory.max", "67108864"),
        ("memory", Limits { memory_reservation: Some(1 << 20), ..one() }, "memory.low", "1048576"),
        ("memory", Limits { memory_high: Some(2 << 20), ..one() }, "memory.high", "2097152"),
        ("cpu", Limits { cpu_quota_us: Some(quota_of_nano_cpus(500_000_000)), ..one() }, "cpu.max", "50000 100000"),
        ("cpu", Limits { cpu_shares: Some(1024), ..one() }, "cpu.weight", "100"),
        ("pids", Limits { pids_max: Some(20), ..one() }, "pids.max", "20"),
        ("cpuset", Limits { cpuset_cpus: Some("0".to_owned()), ..one() }, "cpuset.cpus", "0"),
    ];
    for (controller, limits, file, value) in cases {
        match placement.container(&limits) {
            Ok(Some(container)) if has(controller) => {
                assert_eq!(std::fs::read_to_string(container.path().join(file)).unwrap().trim(), value, "{file}");
                println!("{file} = {value}");
                container.remove().unwrap();
            }
            Err(CgroupError::NotDelegated { controller: missing, .. }) if !has(controller) => {
                assert_eq!(missing, controller);
            }
            other => panic!("{controller}: {other:?}"),
        }
    }
}

fn out_of_memory(placement: &Placement) {
    let limits = Limits { memory_max: Some(32 << 20), memory_swap: Some(32 << 20), ..Limits::default() };
    let container = placement.container(&limits).unwrap().unwrap();
    assert_eq!(container.oom_kills(), 0);
    let child = run(Some(&container), || {
        let memory = vec![1_u8; 256 << 20];
        i32::from(std::hint::black_box(memory)[4096])
    });
    assert!(matches!(waited(child), WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)));
    println!("oom_kill {}", container.oom_kills());
    assert!(container.oom_kills() >= 1);
    assert!(container.stats().unwrap().memory.unwrap().usage.current > 0);
    container.remove().unwrap();
}

fn too_many_processes(placement: &Placement) {
    let container = placement.container(&Limits { pids_max: Some(4), ..Limits::default() }).unwrap().unwrap();
    // Itself and three children; the fourth is refused.
    let child = run(Some(&container), || {
        let spawned = (0..8).map_while(|_| Command::new("/bin/sleep").arg("60").spawn().ok()).count();
        i32::try_from(spawned).unwrap()
    });
    let status = waited(child);
    println!("processes under pids.max 4: {status:?}");
    assert!(matches!(status, WaitStatus::Exited(_, 1..=3)), "{status:?}");
    container.kill().unwrap();
    container.remove().unwrap();
}

fn run(container: Option<&Container>, body: impl FnOnce() -> i32) -> i32 {
    fork(Flags::empty(), container.map(Container::dir), body).unwrap().pid
}

/// How a child ended, with pid 0 for a comparable exit.
fn waited(pid: i32) -> WaitStatus {
    match waitpid(Pid::from_raw(pid), None).unwrap() {
        WaitStatus::Exited(_, code) => WaitStatus::Exited(Pid::from_raw(0), code),
        other => other,
    }
}

fn sleep() -> i32 {
    std::thread::sleep(Duration::from_mins(1));
    0
}
