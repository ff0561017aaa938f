//! What a container uses now.

use std::fs;
use std::time::Instant;

use base::{ContainerId, Report};

use crate::Engine;
use crate::container::record::{NetworkMode, load};
use crate::container::state::{Life, condition};

/// One reading.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was taken.
    pub at: Instant,
    /// Processor time since the start, in microseconds.
    pub cpu_us: u64,
    /// Memory in bytes, without what the kernel would give up first.
    pub memory_bytes: u64,
    /// The most that it may be: the limit, or the machine's memory.
    pub memory_max_bytes: u64,
    /// Bytes that its network has received and sent.
    pub network: (u64, u64),
    /// Bytes read from and written to disks.
    pub disks: (u64, u64),
    /// Processes and threads.
    pub pids: u64,
}

/// What a container uses; `None` where it does not run, or has no cgroup to say so.
pub fn stats(engine: &Engine, id: &ContainerId) -> Result<Option<Sample>, Report> {
    let condition = condition(engine, id)?;
    let Life::Running { pid } = condition.life else { return Ok(None) };
    let Some(path) = condition.pids.and_then(|pids| pids.cgroup) else { return Ok(None) };
    let read = cgroup::Container::open(&path)?.stats()?;
    let memory = read.memory.unwrap_or_default();
    let machine_bytes = machine_memory();
    let sum = |key: &str| read.io.iter().filter_map(|device| device.counts.get(key)).sum();
    let own_network = load(engine, id)?.host.network != NetworkMode::Host;
    Ok(Some(Sample {
        at: Instant::now(),
        cpu_us: read.cpu.get("usage_usec").copied().unwrap_or(0),
        memory_bytes: memory.working_set(),
        memory_max_bytes: memory.usage.max.map_or(machine_bytes, |max| max.min(machine_bytes)),
        network: if own_network { traffic(pid) } else { (0, 0) },
        disks: (sum("rbytes"), sum("wbytes")),
        pids: read.pids.current,
    }))
}

/// The machine's memory in bytes, proc(5) `MemTotal`.
fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// What a device of a network has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceTraffic {
    /// The device.
    pub name: String,
    /// The columns of `/proc/net/dev`, proc_pid_net(5): eight of what was received, bytes first, eight of what was sent.
    pub counts: Vec<u64>,
}

/// The devices of a process's network but the loopback; none once it has ended.
pub(crate) fn devices(pid: i32) -> Vec<DeviceTraffic> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    let device = |(name, counts): (&str, &str)| DeviceTraffic {
        name: name.trim().to_owned(),
        counts: counts.split_whitespace().filter_map(|count| count.parse().ok()).collect(),
    };
    lines.map(device).collect()
}

/// Bytes that they have received and sent.
fn traffic(pid: i32) -> (u64, u64) {
    devices(pid).iter().fold((0, 0), |(received, sent), device| {
        let count = |place: usize| device.counts.get(place).copied().unwrap_or(0);
        (received + count(0), sent + count(8))
    })
}
