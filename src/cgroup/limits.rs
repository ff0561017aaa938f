//! What a container may use, and the control files that say so.
//!
//! Conversions follow what Docker's users mean by an option and the runtime specification's note on cgroup v2; the
//! formula from shares to weight is the one the OCI runtimes agreed on (2 ↦ 1, 1024 ↦ 100, 262144 ↦ 10000).

use serde::{Deserialize, Serialize};

use crate::setting::{Absent, BlockDevice, DEFAULT_PERIOD_US, Setting, cpu_max, disk_weight, or_max, weight_of_shares};

/// Processes of a container when nothing is said: enough for servers, too few for a fork bomb to hurt the host.
pub const DEFAULT_PIDS: i64 = 2048;

/// Limits as asked for; `None` is not asked for. In every signed field -1 means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// `--memory`, bytes.
    pub memory_max: Option<i64>,
    /// `--memory-swap`: memory and swap together, bytes. Not asked for means twice the memory.
    pub memory_swap: Option<i64>,
    /// `--memory-reservation`, bytes.
    pub memory_reservation: Option<i64>,
    /// `--memory-high`, bytes: above it the kernel takes memory back and slows processes down, and kills none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<i64>,
    /// `--cpu-quota` or `--cpus` ([`quota_of_nano_cpus`]), microseconds of a period.
    pub cpu_quota_us: Option<i64>,
    /// `--cpu-period`, microseconds.
    pub cpu_period_us: Option<u64>,
    /// `--cpu-shares`; 0 means not asked for.
    pub cpu_shares: Option<u64>,
    /// `--cpuset-cpus`.
    pub cpuset_cpus: Option<String>,
    /// `--cpuset-mems`.
    pub cpuset_mems: Option<String>,
    /// `--pids-limit`; not asked for means [`DEFAULT_PIDS`] where that can be set.
    pub pids_max: Option<i64>,
    /// `--blkio-weight`, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u16>,
    /// `--blkio-weight-device`: the same for a block device; 0 is not asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_device_weights: Vec<(BlockDevice, u16)>,
    /// `--device-read-bps` and its kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_rates: Vec<IoRate>,
}

/// The most of a block device in a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoRate {
    /// Which device.
    pub device: BlockDevice,
    /// Of what.
    pub kind: RateKind,
    /// How much; 0 is no limit.
    pub rate: u64,
}

/// What of a block device is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateKind {
    /// Bytes read.
    ReadBps,
    /// Bytes written.
    WriteBps,
    /// Reads.
    ReadIops,
    /// Writes.
    WriteIops,
}

impl RateKind {
    /// The option that asks for it.
    pub fn option(self) -> &'static str {
        match self {
            RateKind::ReadBps => "--device-read-bps",
            RateKind::WriteBps => "--device-write-bps",
            RateKind::ReadIops => "--device-read-iops",
            RateKind::WriteIops => "--device-write-iops",
        }
    }

    /// Its key in `io.max`.
    fn key(self) -> &'static str {
        match self {
            RateKind::ReadBps => "rbps",
            RateKind::WriteBps => "wbps",
            RateKind::ReadIops => "riops",
            RateKind::WriteIops => "wiops",
        }
    }
}

/// The quota in microseconds of the default period for so many billionths of a processor.
pub fn quota_of_nano_cpus(nano_cpus: u64) -> i64 {
    let quota = u128::from(nano_cpus) * u128::from(DEFAULT_PERIOD_US) / 1_000_000_000;
    i64::try_from(quota).unwrap_or(i64::MAX)
}

impl Limits {
    /// The control files, in the order in which they are written.
    pub fn settings(&self) -> Vec<Setting> {
        let mut out = Vec::new();
        let mut add = |option, file, value| out.push(Setting::new(option, file, value));
        if let Some(bytes) = self.memory_max {
            add("--memory", "memory.max", or_max(bytes));
        }
        if let Some(bytes) = self.memory_reservation {
            add("--memory-reservation", "memory.low", or_max(bytes));
        }
        if let Some(bytes) = self.memory_high {
            add("--memory-high", "memory.high", or_max(bytes));
        }
        if self.cpu_quota_us.is_some() || self.cpu_period_us.is_some() {
            add("--cpus", "cpu.max", cpu_max(self.cpu_quota_us, self.cpu_period_us));
        }
        if let Some(shares) = self.cpu_shares.filter(|shares| *shares != 0) {
            add("--cpu-shares", "cpu.weight", weight_of_shares(shares).to_string());
        }
        if let Some(cpus) = &self.cpuset_cpus {
            add("--cpuset-cpus", "cpuset.cpus", cpus.clone());
        }
        if let Some(mems) = &self.cpuset_mems {
            add("--cpuset-mems", "cpuset.mems", mems.clone());
        }
        out.extend(self.swap());
        let pids = or_max(self.pids_max.filter(|max| *max != 0).unwrap_or(if self.pids_max.is_some() {
            -1
        } else {
            DEFAULT_PIDS
        }));
        // No limit needs no controller.
        let option = self.pids_max.filter(|max| *max > 0).map(|_| "--pids-limit".into());
        out.push(Setting { option, ..Setting::new("", "pids.max", pids) });
        out.extend(self.io_weight.map(|weight| disk_weight("--blkio-weight", None, weight)));
        let of_devices = self.io_device_weights.iter().filter(|(_, weight)| *weight != 0);
        out.extend(of_devices.map(|(device, weight)| disk_weight("--blkio-weight-device", Some(*device), *weight)));
        for IoRate { device: (major, minor), kind, rate } in &self.io_rates {
            let rate = if *rate == 0 { "max".to_owned() } else { rate.to_string() };
            out.push(Setting::new(kind.option(), "io.max", format!("{major}:{minor} {}={rate}", kind.key())));
        }
        out
    }

    /// Swap alone, which is what v2 counts: the asked total less the memory.
    fn swap(&self) -> Option<Setting> {
        let (option, swap) = match (self.memory_max, self.memory_swap) {
            (Some(memory), None) if memory > 0 => ("--memory", memory),
            (Some(memory), Some(total)) if memory > 0 && total >= 0 => ("--memory-swap", (total - memory).max(0)),
            (_, Some(total)) if total < 0 => ("--memory-swap", -1),
            _ => return None,
        };
        // A kernel without swap accounting has no file; it has no swap to limit either, or none we could limit.
        let absent = if self.memory_swap.is_none() || swap <= 0 { Absent::Same } else { Absent::Refused };
        Some(Setting::new(option, "memory.swap.max", or_max(swap)).or(absent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limits: &Limits) -> Vec<(String, String)> {
        limits.settings().into_iter().map(|setting| (setting.file.into_owned(), setting.value)).collect()
    }

    #[test]
    fn nothing_asked_for_limits_processes_only() {
        assert_eq!(written(&Limits::default()), [("pids.max".to_owned(), "2048".to_owned())]);
        assert_eq!(Limits::default().settings()[0].option, None);
        let unlimited = Limits { pids_max: Some(-1), ..Limits::default() };
        assert_eq!(written(&unlimited), [("pids.max".to_owned(), "max".to_owned())]);
        assert_eq!(unlimited.settings()[0].option, None, "refused nowhere");
        assert_eq!(
            written(&Limits { pids_max: Some(0), ..Limits::default() }),
            [("pids.max".to_owned(), "max".to_owned())]
        );
    }

    #[test]
    fn disks_have_weights_and_rates() {
        let limits = Limits {
            pids_max: Some(-1),
            io_weight: Some(500),
            io_device_weights: vec![((8, 16), 10), ((8, 32), 0)],
            io_rates: vec![
                IoRate { device: (8, 0), kind: RateKind::ReadBps, rate: 1 << 20 },
                IoRate { device: (8, 0), kind: RateKind::WriteIops, rate: 0 },
            ],
            ..Limits::default()
        };
        let wanted = [
            ("pids.max", "max"),
            ("io.bfq.weight", "500"),
            ("io.bfq.weight", "8:16 10"),
            ("io.max", "8:0 rbps=1048576"),
            ("io.max", "8:0 wiops=max"),
        ];
        assert_eq!(written(&limits), wanted.map(|(file, value)| (file.to_owned(), value.to_owned())));
    }

    #[test]
    fn swap_is_the_total_less_the_memory() {
        let swap = |memory, total| {
            let limits = Limits { memory_max: memory, memory_swap: total, ..Limits::default() };
            limits.swap().map(|setting| setting.value)
        };
        assert_eq!(swap(Some(100), None).as_deref(), Some("100"), "twice the memory in all");
        assert_eq!(swap(Some(100), Some(100)).as_deref(), Some("0"));
        assert_eq!(swap(Some(100), Some(150)).as_deref(), Some("50"));
        assert_eq!(swap(Some(100), Some(-1)).as_deref(), Some("max"));
        assert_eq!(swap(Some(-1), None), None);
        assert_eq!(swap(None, None), None);
    }

    #[test]
    fn processors_convert() {
        assert_eq!(quota_of_nano_cpus(1_500_000_000), 150_000);
        let limits = Limits { cpu_quota_us: Some(quota_of_nano_cpus(250_000_000)), ..Limits::default() };
        assert_eq!(written(&limits)[0], ("cpu.max".to_owned(), "25000 100000".to_owned()));
    }
}
