//! What a container uses: every number that version 2 has, and the form in which `runc events --stats` prints them.
//!
//! [`Stats`] has the kernel's terms and units. [`Event`] has those of runc, which are version 1's: nanoseconds for
//! microseconds, memory and swap together, the largest number for no limit (0 for tasks), and zeros left out where runc
//! leaves them out, so that its readers find what they know.

use std::collections::BTreeMap;

use nix::errno::Errno;
use serde::Serialize;

use crate::dir::Dir;
use crate::error::CgroupError;

const MICROSECOND_NS: u64 = 1000;

/// One reading. Numbers of a controller that is not here are absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// `cpu.stat`, there without the controller too: `usage_usec`, `nr_throttled` and so on.
    pub cpu: BTreeMap<String, u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap alone.
    pub swap: Option<Use>,
    /// `io.stat` by device.
    pub io: Vec<Device>,
    /// Tasks. Without the controller the processes of the cgroup itself are counted.
    pub pids: Use,
    /// Huge pages, in bytes, by size (`2MB`): reservations where the kernel counts them, else use.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// `rdma.current` by device, and its limits.
    pub rdma: BTreeMap<String, Rdma>,
    /// `misc.current` by resource, and how often its limit was hit.
    pub misc: BTreeMap<String, Misc>,
    /// Waiting for a processor.
    pub cpu_pressure: Option<Pressure>,
    /// Waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waiting for a disk.
    pub io_pressure: Option<Pressure>,
}

/// A number that may be limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Now.
    pub current: u64,
    /// The most there was; absent before Linux 5.19 (swap: 6.5).
    pub peak: Option<u64>,
    /// `None` is no limit.
    pub max: Option<u64>,
}

/// The memory controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes.
    pub usage: Use,
    /// `memory.events`: `max`, `oom`, `oom_kill` and so on.
    pub events: BTreeMap<String, u64>,
    /// `memory.stat`.
    pub stat: BTreeMap<String, u64>,
}

impl Memory {
    /// Bytes without what the kernel would give up first.
    pub fn working_set(&self) -> u64 {
        self.usage.current.saturating_sub(self.stat.get("inactive_file").copied().unwrap_or(0))
    }
}

/// One device of `io.stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub major: u64,
    /// Its number.
    pub minor: u64,
    /// `rbytes`, `wbytes`, `rios`, `wios` and so on.
    pub counts: BTreeMap<String, u64>,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hugetlb {
    /// Bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// One device of RDMA; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rdma {
    /// `hca_handle`, `hca_object`.
    pub current: BTreeMap<String, u64>,
    /// The same.
    pub max: BTreeMap<String, Option<u64>>,
}

/// One scalar resource of the `misc` controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Misc {
    /// Now.
    pub usage: u64,
    /// How often the limit was hit.
    pub events: u64,
}

/// Pressure stall information: how long some processes, and all at once, have waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// At least one process.
    pub some: Stall,
    /// All that are not idle.
    pub full: Stall,
}

/// Parts of the time, in percent, and the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stall {
    /// Of the last ten seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
    /// Microseconds.
    pub total: u64,
}

impl Stats {
    /// Reads every file that is there.
    pub(crate) fn read(dir: &Dir) -> Result<Self, CgroupError> {
        let text = |name: &str| optional(dir, name);
        let number = |name: &str| Ok(text(name)?.and_then(|text| text.trim().parse().ok()));
        let use_of = |prefix: &str| -> Result<Option<Use>, CgroupError> {
            let Some(current) = number(&format!("{prefix}.current"))? else { return Ok(None) };
            let (peak, max) = (number(&format!("{prefix}.peak"))?, number(&format!("{prefix}.max"))?);
            Ok(Some(Use { current, peak, max }))
        };
        let flat_file = |name: &str| Ok(flat(&text(name)?.unwrap_or_default()));
        let pressure = |name: &str| Ok(text(name)?.as_deref().and_then(pressure));
        let memory = match use_of("memory")? {
            Some(usage) => Some(Memory { usage, events: flat_file("memory.events")?, stat: flat_file("memory.stat")? }),
            None => None,
        };
        let pids = match use_of("pids")? {
            Some(pids) => pids,
            None => Use { current: dir.own_processes()?.len() as u64, ..Use::default() },
        };
        Ok(Stats {
            cpu: flat_file("cpu.stat")?,
            memory,
            swap: use_of("memory.swap")?,
            io: devices(&text("io.stat")?.unwrap_or_default()),
            pids,
            hugetlb: hugetlb(dir)?,
            rdma: rdma(&text("rdma.current")?.unwrap_or_default(), &text("rdma.max")?.unwrap_or_default()),
            misc: misc(&text("misc.current")?.unwrap_or_default(), &text("misc.events")?.unwrap_or_default()),
            cpu_pressure: pressure("cpu.pressure")?,
            memory_pressure: pressure("memory.pressure")?,
            io_pressure: pressure("io.pressure")?,
        })
    }
}

/// A file's text; `None` without its controller, or where the kernel has it switched off.
fn optional(dir: &Dir, name: &str) -> Result<Option<String>, CgroupError> {
    match dir.read(name) {
        Ok(text) => Ok(Some(text)),
        Err(CgroupError::File { source, .. })
            if matches!(source.errno(), Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Lines `key number`.
fn flat(text: &str) -> BTreeMap<String, u64> {
    let fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

/// Lines `name key=number …`; `max` is `None`.
fn nested(text: &str) -> impl Iterator<Item = (&str, BTreeMap<String, Option<u64>>)> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(' ')?;
        let fields = rest.split_whitespace().filter_map(|field| field.split_once('='));
        let counts = fields.filter_map(|(key, value)| match value {
            "max" => Some((key.to_owned(), None)),
            value => Some((key.to_owned(), Some(value.parse().ok()?))),
        });
        Some((name, counts.collect()))
    })
}

fn known(counts: BTreeMap<String, Option<u64>>) -> BTreeMap<String, u64> {
    counts.into_iter().filter_map(|(key, count)| Some((key, count?))).collect()
}

fn devices(text: &str) -> Vec<Device> {
    let lines = nested(text).filter_map(|(node, counts)| {
        let (major, minor) = node.split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()?, counts: known(counts) })
    });
    lines.collect()
}

fn rdma(current: &str, max: &str) -> BTreeMap<String, Rdma> {
    let mut devices: BTreeMap<String, Rdma> = BTreeMap::new();
    for (name, counts) in nested(current) {
        devices.entry(name.to_owned()).or_default().current = known(counts);
    }
    for (name, limits) in nested(max) {
        devices.entry(name.to_owned()).or_default().max = limits;
    }
    devices
}

fn misc(current: &str, events: &str) -> BTreeMap<String, Misc> {
    let mut resources: BTreeMap<String, Misc> = BTreeMap::new();
    for (name, usage) in flat(current) {
        resources.entry(name).or_default().usage = usage;
    }
    for (name, events) in flat(events) {
        resources.entry(name.trim_end_matches(".max").to_owned()).or_default().events = events;
    }
    resources
}

/// The sizes are those that have files here.
fn hugetlb(dir: &Dir) -> Result<BTreeMap<String, Hugetlb>, CgroupError> {
    let mut sizes = BTreeMap::new();
    for name in dir.files()? {
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".max"));
        let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
        let current = match optional(dir, &format!("hugetlb.{size}.rsvd.current"))? {
            Some(reserved) => Some(reserved),
            None => optional(dir, &format!("hugetlb.{size}.current"))?,
        };
        let usage = current.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let events = flat(&optional(dir, &format!("hugetlb.{size}.events"))?.unwrap_or_default());
        sizes.insert(size.to_owned(), Hugetlb { usage, failcnt: count(&events, "max") });
    }
    Ok(sizes)
}

fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut found = false;
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let stall = match fields.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        found = true;
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total = value.parse().ok()?,
                _ => {}
            }
        }
    }
    found.then_some(pressure)
}

fn count(counts: &BTreeMap<String, u64>, key: &str) -> u64 {
    counts.get(key).copied().unwrap_or(0)
}

/// A line of `events`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
}

impl<'a> Event<'a> {
    /// The numbers of a container.
    pub fn stats(id: &'a str, stats: &Stats) -> Self {
        Event { kind: "stats", id, data: Some(Data::of(stats)) }
    }

    /// A process of it was killed for want of memory.
    pub fn oom(id: &'a str) -> Self {
        Event { kind: "oom", id, data: None }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Data {
    cpu: CpuData,
    memory: MemoryData,
    pids: PidsData,
    blkio: BlkioData,
    hugetlb: BTreeMap<String, Hugetlb>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rdma: BTreeMap<String, Rdma>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    misc: BTreeMap<String, Misc>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct CpuData {
    usage: CpuUsage,
    #[serde(skip_serializing_if = "is_default")]
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_default")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_default")]
    periods: u64,
    #[serde(skip_serializing_if = "is_default")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_default")]
    throttled_time: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct MemoryData {
    #[serde(skip_serializing_if = "is_default")]
    cache: u64,
    #[serde(skip_serializing_if = "is_default")]
    usage: MemoryEntry,
    #[serde(skip_serializing_if = "is_default")]
    swap: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_default")]
    usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    max: u64,
    failcnt: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct PidsData {
    #[serde(skip_serializing_if = "is_default")]
    current: u64,
    #[serde(skip_serializing_if = "is_default")]
    limit: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlkioData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "is_default")]
    major: u64,
    #[serde(skip_serializing_if = "is_default")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_default")]
    value: u64,
}

impl Data {
    fn of(stats: &Stats) -> Self {
        let nanoseconds = |key| count(&stats.cpu, key) * MICROSECOND_NS;
        let memory = stats.memory.clone().unwrap_or_default();
        Data {
            cpu: CpuData {
                usage: CpuUsage {
                    total: nanoseconds("usage_usec"),
                    kernel: nanoseconds("system_usec"),
                    user: nanoseconds("user_usec"),
                },
                throttling: Throttling {
                    periods: count(&stats.cpu, "nr_periods"),
                    throttled_periods: count(&stats.cpu, "nr_throttled"),
                    throttled_time: nanoseconds("throttled_usec"),
                },
                psi: stats.cpu_pressure,
            },
            memory: MemoryData {
                cache: count(&memory.stat, "file"),
                usage: stats.memory.as_ref().map(usage).unwrap_or_default(),
                swap: stats.memory.as_ref().map(|memory| with_swap(memory, stats.swap)).unwrap_or_default(),
                raw: memory.stat,
                psi: stats.memory_pressure,
            },
            pids: PidsData { current: stats.pids.current, limit: stats.pids.max.unwrap_or(0) },
            blkio: BlkioData {
                io_service_bytes_recursive: entries(&stats.io, "rbytes", "wbytes"),
                io_serviced_recursive: entries(&stats.io, "rios", "wios"),
                psi: stats.io_pressure,
            },
            hugetlb: stats.hugetlb.clone(),
            rdma: stats.rdma.clone(),
            misc: stats.misc.clone(),
        }
    }
}

fn usage(memory: &Memory) -> MemoryEntry {
    MemoryEntry {
        limit: memory.usage.max.unwrap_or(u64::MAX),
        usage: memory.usage.current,
        max: memory.usage.peak.unwrap_or(0),
        failcnt: count(&memory.events, "max"),
    }
}

/// Both together; the peaks of two numbers have no sum.
fn with_swap(memory: &Memory, swap: Option<Use>) -> MemoryEntry {
    let swap = swap.unwrap_or(Use { max: Some(0), ..Use::default() });
    let limit = memory.usage.max.zip(swap.max).and_then(|(memory, swap)| memory.checked_add(swap));
    MemoryEntry {
        limit: limit.unwrap_or(u64::MAX),
        usage: memory.usage.current.saturating_add(swap.current),
        max: 0,
        failcnt: 0,
    }
}

fn entries(devices: &[Device], read: &str, write: &str) -> Vec<BlkioEntry> {
    let pair = |device: &Device| {
        [("Read", read), ("Write", write)].map(|(op, key)| {
            let value = device.counts.get(key)?;
            Some(BlkioEntry { major: device.major, minor: device.minor, op, value: *value })
        })
    };
    devices.iter().flat_map(pair).flatten().collect()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]

    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let io = devices("8:0 rbytes=180224 wbytes=0 rios=3 wios=0 dbytes=0 dios=0\n254:1 \n");
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor, io[0].counts["rbytes"]), (8, 0, 180_224));
        assert!(io[1].counts.is_empty(), "a device without numbers");
        let rdma = rdma("mlx4_0 hca_handle=1 hca_object=20\n", "mlx4_0 hca_handle=2 hca_object=max\n");
        assert_eq!(rdma["mlx4_0"].current["hca_object"], 20);
        assert_eq!(rdma["mlx4_0"].max["hca_handle"], Some(2));
        assert_eq!(rdma["mlx4_0"].max["hca_object"], None);
        let misc = misc("res_a 3\nres_b 0\n", "res_a.max 5\n");
        assert_eq!(misc["res_a"], Misc { usage: 3, events: 5 });
        let stall = pressure(
            "some avg10=1.50 avg60=0.20 avg300=0.03 total=157656722\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        );
        assert_eq!(stall.unwrap().some, Stall { avg10: 1.5, avg60: 0.2, avg300: 0.03, total: 157_656_722 });
        assert_eq!(stall.unwrap().full.total, 7);
        assert_eq!(pressure(""), None);
    }

    // By the types of runc's package `types` and its `convertLibcontainerStats`.
    #[test]
    fn the_line_is_the_one_that_readers_of_runc_know() {
        let stats = Stats {
            cpu: flat("usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 5\n"),
            memory: Some(Memory {
                usage: Use { current: 4096, peak: Some(8192), max: Some(65536) },
                events: flat("low 0\nmax 3\noom 1\noom_kill 1\n"),
                stat: flat("anon 1024\nfile 2048\n"),
            }),
            swap: Some(Use { current: 100, peak: None, max: Some(1000) }),
            io: devices("8:0 rbytes=10 wbytes=20 rios=1 wios=2\n"),
            pids: Use { current: 2, peak: None, max: Some(20) },
            hugetlb: BTreeMap::from([("2MB".to_owned(), Hugetlb { usage: 0, failcnt: 0 })]),
            ..Stats::default()
        };
        let line = serde_json::to_value(Event::stats("c1", &stats)).unwrap();
        let wanted = serde_json::json!({"type": "stats", "id": "c1", "data": {
            "cpu": {
                "usage": {"total": 30000, "kernel": 10000, "user": 20000},
                "throttling": {"periods": 4, "throttledPeriods": 2, "throttledTime": 5000},
            },
            "memory": {
                "cache": 2048,
                "usage": {"limit": 65536, "usage": 4096, "max": 8192, "failcnt": 3},
                "swap": {"limit": 66536, "usage": 4196, "failcnt": 0},
                "raw": {"anon": 1024, "file": 2048},
            },
            "pids": {"current": 2, "limit": 20},
            "blkio": {
                "ioServiceBytesRecursive": [
                    {"major": 8, "op": "Read", "value": 10}, {"major": 8, "op": "Write", "value": 20},
                ],
                "ioServicedRecursive": [
                    {"major": 8, "op": "Read", "value": 1}, {"major": 8, "op": "Write", "value": 2},
                ],
            },
            "hugetlb": {"2MB": {"failcnt": 0}},
        }});
        assert_eq!(line, wanted);
        let unlimited = Stats { memory: Some(Memory::default()), ..Stats::default() };
        let line = serde_json::to_value(Event::stats("c1", &unlimited)).unwrap();
        assert_eq!(line["data"]["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(serde_json::to_string(&Event::oom("c1")).unwrap(), r#"{"type":"oom","id":"c1"}"#);
    }
}
