//! What the containers that run use, in the text format of Prometheus (0.0.4) and by the names that cAdvisor gives, so that
//! dashboards made for that serve here too.
//!
//! One reading, whenever it is asked for: nothing has to run in between. A container without a cgroup has its start and its
//! network alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base::Report;
use base::time::parse_rfc3339;
use cgroup::stats::{Device, Stats};

use crate::Engine;
use crate::container::list::{Summary, list};
use crate::container::record::{NetworkMode, try_load};
use crate::container::state::{Life, condition};
use crate::container::stats::{DeviceTraffic, devices};

/// One container at one moment.
struct Reading {
    /// `id="…",name="…",…`
    labels: String,
    started_s: Option<u64>,
    seen_s: u64,
    stats: Option<Stats>,
    network: Vec<DeviceTraffic>,
}

/// A number, with labels beside the container's.
type Sample = (String, String);

/// What is told under one name.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    read: fn(&Reading) -> Vec<Sample>,
}

/// A metric: its name, its kind, cAdvisor's words for it, and how it is read.
const fn metric(
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    read: fn(&Reading) -> Vec<Sample>,
) -> Metric {
    Metric { name, help, kind, read }
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

#[rustfmt::skip]
const METRICS: &[Metric] = &[
    metric("container_last_seen", GAUGE, "Last time a container was seen by the exporter",
        |one| plain(Some(one.seen_s))),
    metric("container_start_time_seconds", GAUGE, "Start time of the container since unix epoch in seconds.",
        |one| plain(one.started_s)),
    metric("container_cpu_usage_seconds_total", COUNTER, "Cumulative cpu time consumed in seconds.",
        |one| cpu(one, "usage_usec").map(|text| ("cpu=\"total\"".to_owned(), text)).into_iter().collect()),
    metric("container_cpu_user_seconds_total", COUNTER, "Cumulative user cpu time consumed in seconds.",
        |one| text(cpu(one, "user_usec"))),
    metric("container_cpu_system_seconds_total", COUNTER, "Cumulative system cpu time consumed in seconds.",
        |one| text(cpu(one, "system_usec"))),
    metric("container_cpu_cfs_periods_total", COUNTER, "Number of elapsed enforcement period intervals.",
        |one| plain(stat(one, |stats| stats.cpu.get("nr_periods").copied()))),
    metric("container_cpu_cfs_throttled_periods_total", COUNTER, "Number of throttled period intervals.",
        |one| plain(stat(one, |stats| stats.cpu.get("nr_throttled").copied()))),
    metric("container_cpu_cfs_throttled_seconds_total", COUNTER, "Total time duration the container has been throttled.",
        |one| text(cpu(one, "throttled_usec"))),
    metric("container_memory_usage_bytes", GAUGE,
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |one| plain(stat(one, |stats| Some(stats.memory.as_ref()?.usage.current)))),
    metric("container_memory_working_set_bytes", GAUGE, "Current working set in bytes.",
        |one| plain(stat(one, |stats| Some(stats.memory.as_ref()?.working_set())))),
    metric("container_memory_max_usage_bytes", GAUGE, "Maximum memory usage recorded in bytes",
        |one| plain(stat(one, |stats| stats.memory.as_ref()?.usage.peak))),
    metric("container_memory_rss", GAUGE, "Size of RSS in bytes.", |one| plain(memory(one, "anon"))),
    metric("container_memory_cache", GAUGE, "Number of bytes of page cache memory.", |one| plain(memory(one, "file"))),
    metric("container_memory_mapped_file", GAUGE, "Size of memory mapped files in bytes.",
        |one| plain(memory(one, "file_mapped"))),
    metric("container_memory_swap", GAUGE, "Container swap usage in bytes.",
        |one| plain(stat(one, |stats| Some(stats.swap?.current)))),
    metric("container_oom_events_total", COUNTER, "Count of out of memory events observed for the container",
        |one| plain(stat(one, |stats| stats.memory.as_ref()?.events.get("oom_kill").copied()))),
    metric("container_spec_memory_limit_bytes", GAUGE, "Memory limit for the container.",
        |one| plain(stat(one, |stats| Some(stats.memory.as_ref()?.usage.max.unwrap_or(0))))),
    metric("container_threads", GAUGE, "Number of threads running inside the container",
        |one| plain(stat(one, |stats| Some(stats.pids.current)))),
    metric("container_threads_max", GAUGE,
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |one| plain(stat(one, |stats| Some(stats.pids.max.unwrap_or(0))))),
    metric("container_fs_reads_bytes_total", COUNTER, "Cumulative count of bytes read", |one| disks(one, "rbytes")),
    metric("container_fs_writes_bytes_total", COUNTER, "Cumulative count of bytes written", |one| disks(one, "wbytes")),
    metric("container_fs_reads_total", COUNTER, "Cumulative count of reads completed", |one| disks(one, "rios")),
    metric("container_fs_writes_total", COUNTER, "Cumulative count of writes completed", |one| disks(one, "wios")),
    metric("container_network_receive_bytes_total", COUNTER, "Cumulative count of bytes received",
        |one| network(one, 0)),
    metric("container_network_receive_packets_total", COUNTER, "Cumulative count of packets received",
        |one| network(one, 1)),
    metric("container_network_receive_errors_total", COUNTER, "Cumulative count of errors encountered while receiving",
        |one| network(one, 2)),
    metric("container_network_receive_packets_dropped_total", COUNTER,
        "Cumulative count of packets dropped while receiving", |one| network(one, 3)),
    metric("container_network_transmit_bytes_total", COUNTER, "Cumulative count of bytes transmitted",
        |one| network(one, 8)),
    metric("container_network_transmit_packets_total", COUNTER, "Cumulative count of packets transmitted",
        |one| network(one, 9)),
    metric("container_network_transmit_errors_total", COUNTER,
        "Cumulative count of errors encountered while transmitting", |one| network(one, 10)),
    metric("container_network_transmit_packets_dropped_total", COUNTER,
        "Cumulative count of packets dropped while transmitting", |one| network(one, 11)),
    metric("container_pressure_cpu_waiting_seconds_total", COUNTER,
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |one| text(stalls(one, |stats| Some(stats.cpu_pressure?.some.total)))),
    metric("container_pressure_cpu_stalled_seconds_total", COUNTER,
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |one| text(stalls(one, |stats| Some(stats.cpu_pressure?.full.total)))),
    metric("container_pressure_memory_waiting_seconds_total", COUNTER,
        "Total time duration tasks in the container have waited due to memory congestion.",
        |one| text(stalls(one, |stats| Some(stats.memory_pressure?.some.total)))),
    metric("container_pressure_memory_stalled_seconds_total", COUNTER,
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |one| text(stalls(one, |stats| Some(stats.memory_pressure?.full.total)))),
    metric("container_pressure_io_waiting_seconds_total", COUNTER,
        "Total time duration tasks in the container have waited due to IO congestion.",
        |one| text(stalls(one, |stats| Some(stats.io_pressure?.some.total)))),
    metric("container_pressure_io_stalled_seconds_total", COUNTER,
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |one| text(stalls(one, |stats| Some(stats.io_pressure?.full.total)))),
];

/// The metrics of all containers that run.
pub fn metrics(engine: &Engine) -> Result<String, Report> {
    let (containers, broken) = list(engine, SystemTime::now())?;
    for report in broken {
        engine.notice(&report.to_string());
    }
    let mut readings = Vec::new();
    for container in containers {
        match read(engine, &container) {
            Ok(reading) => readings.extend(reading),
            Err(report) => engine.notice(&report.to_string()),
        }
    }
    Ok(shown(&readings))
}

/// `None` of one that does not run.
fn read(engine: &Engine, container: &Summary) -> Result<Option<Reading>, Report> {
    let condition = condition(engine, &container.id)?;
    let Life::Running { pid } = condition.life else { return Ok(None) };
    let cgroup = condition.pids.and_then(|pids| pids.cgroup);
    // It may end at this moment.
    let open = |path| cgroup::Container::open(path).and_then(|cgroup| cgroup.stats()).ok();
    let stats = cgroup.as_deref().and_then(open);
    let Some(record) = try_load(engine, &container.id)? else { return Ok(None) };
    let own_network = record.host.network != NetworkMode::Host;
    let seconds = |moment: SystemTime| moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let started = condition.state.started_at.and_then(|text| parse_rfc3339(&text).ok());
    Ok(Some(Reading {
        labels: labels(container, cgroup.as_deref()),
        started_s: started.map(seconds),
        seen_s: seconds(SystemTime::now()),
        stats,
        network: if own_network { devices(pid) } else { Vec::new() },
    }))
}

/// cAdvisor's: the cgroup, or where there is none the container's id; name, image, and the container's own labels.
fn labels(container: &Summary, cgroup: Option<&Path>) -> String {
    let below = cgroup.and_then(|path| path.strip_prefix("/sys/fs/cgroup").ok());
    let id = below.map_or_else(|| format!("/{}", container.id), |below| format!("/{}", below.display()));
    let known = [("id", &id), ("image", &container.image), ("name", &container.name)];
    let mut labels: BTreeMap<String, &str> =
        known.into_iter().map(|(name, value)| (name.to_owned(), value.as_str())).collect();
    for (name, value) in &container.labels {
        let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
        // Of two names that become one the first stays: a label may be there once.
        let name = format!("container_label_{}", name.chars().map(plain).collect::<String>());
        labels.entry(name).or_insert(value);
    }
    let pairs = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    pairs.collect::<Vec<_>>().join(",")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn shown(readings: &[Reading]) -> String {
    let mut shown = String::new();
    for Metric { name, help, kind, read } in METRICS {
        let of = |one| read(one).into_iter().map(move |sample| (one, sample));
        let samples: Vec<(&Reading, Sample)> = readings.iter().flat_map(of).collect();
        if samples.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(shown, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (Reading { labels, .. }, (further, number)) in samples {
            let comma = if further.is_empty() { "" } else { "," };
            let _ = writeln!(shown, "{name}{{{labels}{comma}{further}}} {number}");
        }
    }
    shown
}

fn text(number: Option<String>) -> Vec<Sample> {
    number.map(|number| (String::new(), number)).into_iter().collect()
}

fn plain(number: Option<u64>) -> Vec<Sample> {
    text(number.map(|number| number.to_string()))
}

fn stat(one: &Reading, read: impl Fn(&Stats) -> Option<u64>) -> Option<u64> {
    one.stats.as_ref().and_then(read)
}

fn memory(one: &Reading, key: &str) -> Option<u64> {
    stat(one, |stats| stats.memory.as_ref()?.stat.get(key).copied())
}

/// The kernel counts microseconds.
fn stalls(one: &Reading, read: impl Fn(&Stats) -> Option<u64>) -> Option<String> {
    stat(one, read).map(|us| format!("{}.{:06}", us / 1_000_000, us % 1_000_000))
}

fn cpu(one: &Reading, key: &str) -> Option<String> {
    stalls(one, |stats| stats.cpu.get(key).copied())
}

fn disks(one: &Reading, key: &str) -> Vec<Sample> {
    let devices = one.stats.iter().flat_map(|stats| &stats.io);
    let of_device = |device: &Device| {
        let label = format!("device=\"{}:{}\"", device.major, device.minor);
        Some((label, device.counts.get(key)?.to_string()))
    };
    devices.filter_map(of_device).collect()
}

/// A column of `/proc/net/dev`.
fn network(one: &Reading, column: usize) -> Vec<Sample> {
    let of_device = |device: &DeviceTraffic| {
        Some((format!("interface=\"{}\"", escaped(&device.name)), device.counts.get(column)?.to_string()))
    };
    one.network.iter().filter_map(of_device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_there_where_its_number_is() {
        let stats = Stats { cpu: BTreeMap::from([("usage_usec".to_owned(), 1_500_001)]), ..Stats::default() };
        let eth0 = DeviceTraffic { name: "eth0".to_owned(), counts: (0..16).collect() };
        let one = Reading {
            labels: "id=\"/x\"".to_owned(),
            started_s: Some(7),
            seen_s: 8,
            stats: Some(stats),
            network: vec![eth0],
        };
        let shown = shown(&[one]);
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{id=\"/x\",cpu=\"total\"} 1.500001",
            "container_start_time_seconds{id=\"/x\"} 7",
            "container_network_transmit_bytes_total{id=\"/x\",interface=\"eth0\"} 8",
            "container_threads_max{id=\"/x\"} 0",
        ] {
            assert!(shown.lines().any(|found| found == line), "{line} in {shown}");
        }
        assert!(!shown.contains("memory") && !shown.contains("container_cpu_user"), "{shown}");
    }

    #[test]
    fn values_of_labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
