//! What a container may use: Docker's bounds, and what its cgroup has of it.

use std::path::{Path, PathBuf};

use base::{Kind, Report};
use cgroup::{BlockDevice, IoRate};
use nix::sys::stat::{SFlag, major, minor, stat};
use sys::SysError;

use crate::container::record::{DeviceRate, HostSettings};

/// What a container may use, as its cgroup has it. Devices are looked up now.
pub(crate) fn limits(host: &HostSettings) -> Result<cgroup::Limits, Report> {
    let weight = |(path, weight): &(PathBuf, u16)| Ok((block_device(path)?, *weight));
    let rate =
        |limit: &DeviceRate| Ok(IoRate { device: block_device(&limit.path)?, kind: limit.kind, rate: limit.rate });
    Ok(cgroup::Limits {
        memory_max: host.memory_bytes.map(u64::cast_signed),
        memory_swap: host.memory_swap,
        memory_reservation: host.memory_reservation.map(u64::cast_signed),
        memory_high: host.memory_high.map(u64::cast_signed),
        cpu_quota_us: host.nano_cpus.map(cgroup::quota_of_nano_cpus).or(host.cpu_quota),
        cpu_period_us: host.cpu_period,
        cpu_shares: host.cpu_shares,
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        pids_max: host.pids_limit,
        io_weight: host.blkio_weight,
        io_device_weights: host.blkio_device_weights.iter().map(weight).collect::<Result<_, Report>>()?,
        io_rates: host.device_rates.iter().map(rate).collect::<Result<_, Report>>()?,
    })
}

/// The numbers of a block device.
fn block_device(path: &Path) -> Result<BlockDevice, Report> {
    let found = stat(path).map_err(|errno| Report::from(SysError::new(format!("stat({path:?})"), errno)))?;
    if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFBLK {
        let text = format!("{} is not a block device", path.display());
        return Err(Report::new(Kind::Usage, text).with_hint("limits are for whole disks, such as /dev/sda"));
    }
    Ok((major(found.st_rdev), minor(found.st_rdev)))
}

/// Docker's bounds, in its words.
pub(crate) fn check(host: &HostSettings) -> Result<(), Report> {
    /// Less cannot hold a container's first process.
    const MEMORY_MIN: u64 = 6 << 20;
    const NANO: u64 = 1_000_000_000;
    if host.memory_bytes.is_some_and(|bytes| bytes < MEMORY_MIN) {
        return Err(Report::new(Kind::Usage, "Minimum memory limit allowed is 6MB"));
    }
    let wrong = |words: &str| Err(Report::new(Kind::Usage, words));
    match (host.memory_bytes, host.memory_swap) {
        (None, Some(total)) if total > 0 => {
            return wrong("You should always set the Memory limit when using Memoryswap limit, see usage");
        }
        (Some(memory), Some(total)) if total > 0 && total.cast_unsigned() < memory => {
            return wrong("Minimum memoryswap limit should be larger than memory limit, see usage");
        }
        _ => {}
    }
    if let (Some(memory), Some(reservation)) = (host.memory_bytes, host.memory_reservation)
        && memory < reservation
    {
        return wrong("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    if let (Some(memory), Some(high)) = (host.memory_bytes, host.memory_high)
        && memory < high
    {
        let text = format!("--memory-high {high} would never be reached: the limit of memory is {memory} bytes");
        return wrong(&text);
    }
    if host.nano_cpus.is_some() && (host.cpu_period.is_some() || host.cpu_quota.is_some()) {
        let other = if host.cpu_period.is_some() { "Period" } else { "Quota" };
        return wrong(&format!("Conflicting options: Nano CPUs and CPU {other} cannot both be set"));
    }
    if host.cpu_period.is_some_and(|period| !(1_000..=1_000_000).contains(&period)) {
        return wrong("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if host.cpu_quota.is_some_and(|quota| (0..1_000).contains(&quota)) {
        return wrong("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if let Some(nano) = host.nano_cpus {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if nano < NANO / 100 || nano > cpus as u64 * NANO {
            return wrong(&format!("Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"));
        }
    }
    if host.blkio_weight.is_some_and(|weight| !(10..=1000).contains(&weight)) {
        return wrong("Range of blkio weight is from 10 to 1000");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_bounds() {
        let basic =
            |memory_bytes, nano_cpus| check(&HostSettings { memory_bytes, nano_cpus, ..HostSettings::default() });
        assert!(basic(None, None).is_ok() && basic(Some(6 << 20), Some(10_000_000)).is_ok());
        assert!(basic(Some((6 << 20) - 1), None).is_err());
        assert!(basic(None, Some(9_999_999)).is_err() && basic(None, Some(1_000_000_000_000_000)).is_err());
        let memory = |memory_bytes, memory_swap, memory_reservation| {
            check(&HostSettings { memory_bytes, memory_swap, memory_reservation, ..HostSettings::default() })
        };
        assert!(memory(Some(8 << 20), Some(-1), None).is_ok() && memory(None, Some(-1), Some(1)).is_ok());
        assert!(memory(None, Some(8 << 20), None).is_err() && memory(Some(8 << 20), Some(7 << 20), None).is_err());
        assert!(memory(Some(8 << 20), Some(8 << 20), Some(9 << 20)).is_err());
        let high =
            |memory_bytes, memory_high| check(&HostSettings { memory_bytes, memory_high, ..HostSettings::default() });
        assert!(high(None, Some(1)).is_ok() && high(Some(8 << 20), Some(8 << 20)).is_ok());
        assert!(high(Some(8 << 20), Some(9 << 20)).is_err());
        let time = |nano_cpus, cpu_quota, cpu_period| {
            check(&HostSettings { nano_cpus, cpu_quota, cpu_period, ..HostSettings::default() })
        };
        assert!(time(None, Some(-1), Some(1_000)).is_ok() && time(None, Some(1_000), None).is_ok());
        assert!(time(Some(500_000_000), Some(50_000), None).is_err() && time(None, None, Some(999)).is_err());
        assert!(time(None, Some(999), None).is_err() && time(None, None, Some(1_000_001)).is_err());
    }
}
