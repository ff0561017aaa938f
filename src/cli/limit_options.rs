//! The options that say what a container may use.

use std::path::PathBuf;

use base::units::{UnitError, parse_bytes, parse_cpus};
use base::{Context, Report};
use clap::Args;
use engine::container::record::{DeviceRate, RateKind};
use engine::container::update::LimitRequest;

use crate::output::warning;
use crate::parse::wrong;

/// Limits of a container.
#[derive(Args)]
pub struct LimitOptions {
    /// Limit of memory: 512m, 1.5g
    #[arg(short, long)]
    memory: Option<String>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "MEMORY")]
    memory_swap: Option<String>,
    /// Memory that is left to the container while others have more to spare
    #[arg(long, value_name = "MEMORY")]
    memory_reservation: Option<String>,
    /// Memory above which it is slowed down and its memory taken back, without being killed
    #[arg(long, value_name = "MEMORY")]
    memory_high: Option<String>,
    /// Limit of processors: 1.5
    #[arg(long)]
    cpus: Option<String>,
    /// Limit of processor time, in microseconds of each period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<i64>,
    /// The period, 100000 if not given
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Weight among others that want processors, which have 1024
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Processors to use: 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// NUMA nodes whose memory to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Limit of processes; -1 for none
    #[arg(long)]
    pub pids_limit: Option<i64>,
    /// Weight among others that want disks: 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// DEVICE:WEIGHT, the same for one disk
    #[arg(long, value_name = "DEVICE:WEIGHT")]
    blkio_weight_device: Vec<String>,
    /// DEVICE:BYTES that may be read from a disk in a second
    #[arg(long, value_name = "DEVICE:BYTES")]
    device_read_bps: Vec<String>,
    /// The same that may be written
    #[arg(long, value_name = "DEVICE:BYTES")]
    device_write_bps: Vec<String>,
    /// DEVICE:NUMBER of reads from a disk in a second
    #[arg(long, value_name = "DEVICE:NUMBER")]
    device_read_iops: Vec<String>,
    /// The same of writes
    #[arg(long, value_name = "DEVICE:NUMBER")]
    device_write_iops: Vec<String>,
    /// Has no effect: cgroup v2 has no such setting
    #[arg(long, value_name = "PERCENT", hide = true, allow_negative_numbers = true)]
    memory_swappiness: Option<i64>,
    /// Has no effect: cgroup v2 has no such setting
    #[arg(long, hide = true)]
    oom_kill_disable: bool,
    /// Has no effect: cgroup v2 has no such setting
    #[arg(long, value_name = "MEMORY", hide = true)]
    kernel_memory: Option<String>,
}

impl LimitOptions {
    /// What is asked for. As in Docker, 0 and an empty text ask for nothing.
    pub fn request(self) -> Result<LimitRequest, Report> {
        if let Some(percent) = self.memory_swappiness.filter(|percent| !(-1..=100).contains(percent)) {
            return Err(wrong(format!("Invalid value: {percent}, valid memory swappiness range is 0-100")));
        }
        for (option, asked) in [
            ("--memory-swappiness", self.memory_swappiness.is_some_and(|percent| percent >= 0)),
            ("--oom-kill-disable", self.oom_kill_disable),
            ("--kernel-memory", self.kernel_memory.is_some()),
        ] {
            if asked {
                warning(&format!("{option} is discarded: cgroup v2 has no such setting"));
            }
        }
        let bytes = |text: &str| parse_bytes(text).ok();
        let number = |text: &str| text.parse().ok();
        let mut device_rates = Vec::new();
        for (kind, texts, parse) in [
            (RateKind::ReadBps, &self.device_read_bps, &bytes as &dyn Fn(&str) -> Option<u64>),
            (RateKind::WriteBps, &self.device_write_bps, &bytes),
            (RateKind::ReadIops, &self.device_read_iops, &number),
            (RateKind::WriteIops, &self.device_write_iops, &number),
        ] {
            for text in texts {
                let (path, rate) = of_device(kind.option(), text, parse)?;
                device_rates.push(DeviceRate { path, kind, rate });
            }
        }
        let weight = |text: &String| {
            let in_range = |text: &str| text.parse().ok().filter(|weight| *weight == 0 || (10..=1000).contains(weight));
            of_device("--blkio-weight-device", text, &in_range)
        };
        Ok(LimitRequest {
            memory_bytes: amount("--memory", self.memory.as_deref(), parse_bytes)?,
            memory_swap: match self.memory_swap.as_deref() {
                Some("-1") => Some(-1),
                text => amount("--memory-swap", text, parse_bytes)?.map(u64::cast_signed),
            },
            memory_reservation: amount("--memory-reservation", self.memory_reservation.as_deref(), parse_bytes)?,
            memory_high: amount("--memory-high", self.memory_high.as_deref(), parse_bytes)?,
            nano_cpus: amount("--cpus", self.cpus.as_deref(), parse_cpus)?,
            cpu_quota: self.cpu_quota.filter(|quota| *quota != 0),
            cpu_period: self.cpu_period.filter(|period| *period != 0),
            cpu_shares: self.cpu_shares.filter(|shares| *shares != 0),
            cpuset_cpus: self.cpuset_cpus.filter(|list| !list.is_empty()),
            cpuset_mems: self.cpuset_mems.filter(|list| !list.is_empty()),
            pids_limit: self.pids_limit,
            blkio_weight: self.blkio_weight.filter(|weight| *weight != 0),
            blkio_device_weights: self.blkio_weight_device.iter().map(weight).collect::<Result<_, _>>()?,
            device_rates,
        })
    }
}

/// `DEVICE:VALUE`; devices are below `/dev`.
fn of_device<T>(option: &str, text: &str, parse: &dyn Fn(&str) -> Option<T>) -> Result<(PathBuf, T), Report> {
    let split = text.rsplit_once(':').filter(|(path, _)| path.starts_with("/dev/"));
    let parsed = split.and_then(|(path, value)| Some((PathBuf::from(path), parse(value)?)));
    parsed.ok_or_else(|| wrong(format!("invalid argument {text:?} for {option}: it must be /dev/DISK:VALUE")))
}

/// The value of an option; 0 is none.
fn amount(option: &str, text: Option<&str>, parse: fn(&str) -> Result<u64, UnitError>) -> Result<Option<u64>, Report> {
    let value = text.map(parse).transpose().map_err(Report::from).step(|| option.to_owned())?;
    Ok(value.filter(|value| *value > 0))
}
