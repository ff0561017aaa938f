//! `linux.resources` of the runtime specification as control files of version 2.
//!
//! The specification speaks of version 1. What has a file in version 2 is converted as runc and crun do it; what has
//! none and would have limited something is a line to print ([`Resources::warnings`]), as runc goes on where crun
//! refuses. Unset is `None` and, for what Go programs write without `omitempty`, 0.
//!
//! Rules on devices need a BPF program (`devices`), which the initial user namespace alone may attach. In a user
//! namespace holds in their place: `mknod` fails and only the nodes that the specification names are bound in. So the
//! usual rules (nothing at first, then each node that is bound in) are true without being enforced, and only a rule that
//! takes something of a node away is told.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxNetwork,
    LinuxPids, LinuxRdma, LinuxResources, LinuxThrottleDevice,
};

use crate::dir::Dir;
use crate::error::CgroupError;
use crate::setting::{Absent, Setting, cpu_max, disk_weight, or_max, weight_of_shares};

/// Limits of a container, converted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The control files in the order in which they are written.
    pub(crate) settings: Vec<Setting>,
    /// What has no effect, a line each.
    pub warnings: Vec<String>,
    /// `checkBeforeUpdate`: what must be above the present use of memory, by its key.
    above_use: Vec<(&'static str, u64)>,
}

impl Resources {
    /// Converts the resources of a new container. A value that contradicts itself or could name a file elsewhere is an
    /// error ([`CgroupError::Invalid`]).
    pub fn of(resources: &LinuxResources) -> Result<Self, CgroupError> {
        let mut out = Resources::default();
        if let Some(pids) = *resources.pids() {
            out.pids(pids);
        }
        if let Some(memory) = resources.memory() {
            out.memory(memory)?;
        }
        if let Some(io) = resources.block_io() {
            out.block_io(io);
        }
        if let Some(cpu) = resources.cpu() {
            out.cpu(cpu);
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            out.hugepage(limit)?;
        }
        for (device, limits) in sorted(resources.rdma().as_ref()) {
            out.rdma(device, limits)?;
        }
        if let Some(network) = resources.network() {
            out.warn_of_network(network);
        }
        // Last, so that they override what the other keys have said.
        for (key, value) in sorted(resources.unified().as_ref()) {
            out.unified(key, value)?;
        }
        Ok(out)
    }

    /// Converts an update: what it leaves open but depends on (the period of a new quota, the memory of a new total) is
    /// what the container's files say.
    pub(crate) fn of_update(resources: &LinuxResources, dir: &Dir) -> Result<Self, CgroupError> {
        let mut resources = resources.clone();
        if let Some(cpu) = resources.cpu_mut() {
            complete_quota(cpu, &dir.read("cpu.max").unwrap_or_default());
        }
        if let Some(memory) = resources.memory_mut()
            && memory.swap().is_some_and(|total| total > 0)
            && memory.limit().unwrap_or(0) == 0
        {
            let limit = dir.read("memory.max").unwrap_or_default();
            memory.set_limit(Some(limit.trim().parse().unwrap_or(-1)));
        }
        Resources::of(&resources)
    }

    /// A limit that would be missed without a cgroup, by its key.
    pub fn needs_cgroup(&self) -> Option<&str> {
        self.settings.iter().find_map(Setting::missed)
    }

    /// Refuses memory limits below the present use where the specification asks for that. What cannot be read is not
    /// used yet.
    pub(crate) fn check_use(&self, dir: &Dir) -> Result<(), CgroupError> {
        let used = dir.read("memory.current").ok().and_then(|text| text.trim().parse::<u64>().ok());
        let Some(used_bytes) = used else { return Ok(()) };
        match self.above_use.iter().find(|(_, limit)| *limit <= used_bytes) {
            Some((option, limit_bytes)) => {
                Err(CgroupError::BelowUse { option: (*option).to_owned(), limit_bytes: *limit_bytes, used_bytes })
            }
            None => Ok(()),
        }
    }

    fn set(&mut self, option: &'static str, file: &'static str, value: String) {
        self.settings.push(Setting::new(option, file, value));
    }

    /// No limit needs no file.
    fn set_limit(&mut self, option: &'static str, file: &'static str, limit: i64) {
        let absent = if limit < 0 { Absent::Same } else { Absent::Refused };
        self.settings.push(Setting::new(option, file, or_max(limit)).or(absent));
    }

    fn warn(&mut self, key: &str, why: &str) {
        self.warnings.push(format!("linux.resources.{key} has no effect: {why}"));
    }

    fn pids(&mut self, pids: LinuxPids) {
        // An explicit 0 is a limit; systemd has no 0, and 1 means the same: no further process.
        let limit = if pids.limit() == 0 { 1 } else { pids.limit() };
        self.set_limit("linux.resources.pids.limit", "pids.max", limit);
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        let [limit_key, swap_key, low_key] =
            ["linux.resources.memory.limit", "linux.resources.memory.swap", "linux.resources.memory.reservation"];
        let limit = bytes(limit_key, memory.limit())?;
        let total = bytes(swap_key, memory.swap())?;
        if let Some(swap) = swap_alone(limit, total).map_err(|reason| invalid(swap_key, reason))? {
            // A kernel without swap accounting has no file, and nothing to limit or to turn off.
            let absent = if swap <= 0 { Absent::Same } else { Absent::Refused };
            self.settings.push(Setting::new(swap_key, "memory.swap.max", or_max(swap)).or(absent));
        }
        if let Some(limit) = limit {
            self.set_limit(limit_key, "memory.max", limit);
        }
        if let Some(low) = bytes(low_key, memory.reservation())? {
            self.set_limit(low_key, "memory.low", low);
        }
        if memory.check_before_update() == Some(true) {
            let asked = [(swap_key, total), (limit_key, limit)];
            self.above_use =
                asked.iter().filter_map(|(key, limit)| Some((*key, u64::try_from((*limit)?).ok()?))).collect();
        }
        let kernel = memory.kernel().or(memory.kernel_tcp());
        if kernel.is_some() {
            self.warn("memory.kernel", "the kernel has no limit of its own memory any more (Linux 5.16)");
        }
        if memory.swappiness().is_some() {
            self.warn("memory.swappiness", "cgroup v2 has no such file");
        }
        if memory.disable_oom_killer() == Some(true) {
            self.warn("memory.disableOOMKiller", "cgroup v2 has no such file");
        }
        if memory.use_hierarchy() == Some(false) {
            self.warn("memory.useHierarchy", "cgroup v2 always counts what is below");
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) {
        let idle = cpu.idle().unwrap_or(0) == 1;
        if let Some(value) = cpu.idle() {
            self.set("linux.resources.cpu.idle", "cpu.idle", value.to_string());
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            if idle {
                self.warn("cpu.shares", "an idle cgroup has the least weight");
            } else {
                self.set("linux.resources.cpu.shares", "cpu.weight", weight_of_shares(shares).to_string());
            }
        }
        if let Some(burst) = cpu.burst() {
            // The kernel compares it with the quota, whose old value may be too small, as the new one may be for the
            // old burst.
            let setting = Setting::new("linux.resources.cpu.burst", "cpu.max.burst", burst.to_string());
            self.settings.push(Setting { again: true, ..setting });
        }
        let (quota, period) = (cpu.quota().filter(|quota| *quota != 0), cpu.period().filter(|period| *period != 0));
        if quota.is_some() || period.is_some() {
            let absent = if quota.is_some_and(|quota| quota > 0) { Absent::Refused } else { Absent::Same };
            let setting = Setting::new("linux.resources.cpu.quota", "cpu.max", cpu_max(quota, period));
            self.settings.push(setting.or(absent));
        }
        for (option, file, value) in [
            ("linux.resources.cpu.cpus", "cpuset.cpus", cpu.cpus()),
            ("linux.resources.cpu.mems", "cpuset.mems", cpu.mems()),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                self.set(option, file, value.to_owned());
            }
        }
        if cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0 {
            self.warn("cpu.realtimeRuntime", "cgroup v2 has no budget for real-time processes");
        }
    }

    fn block_io(&mut self, io: &LinuxBlockIo) {
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            self.settings.push(disk_weight("linux.resources.blockIO.weight", None, weight));
        }
        for device in io.weight_device().iter().flatten() {
            if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
                let node = (device.major().cast_unsigned(), device.minor().cast_unsigned());
                self.settings.push(disk_weight("linux.resources.blockIO.weightDevice", Some(node), weight));
            }
        }
        let devices = io.weight_device().iter().flatten();
        if io.leaf_weight().unwrap_or(0) != 0
            || devices.into_iter().any(|device| device.leaf_weight().unwrap_or(0) != 0)
        {
            self.warn("blockIO.leafWeight", "cgroup v2 has no such file");
        }
        for (option, key, devices) in [
            ("linux.resources.blockIO.throttleReadBpsDevice", "rbps", io.throttle_read_bps_device()),
            ("linux.resources.blockIO.throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device()),
            ("linux.resources.blockIO.throttleReadIOPSDevice", "riops", io.throttle_read_iops_device()),
            ("linux.resources.blockIO.throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                self.set(option, "io.max", throttle(device, key));
            }
        }
    }

    fn hugepage(&mut self, limit: &LinuxHugepageLimit) -> Result<(), CgroupError> {
        let option = "linux.resources.hugepageLimits";
        let size = limit.page_size();
        let digits = size.trim_end_matches(|unit: char| unit.is_ascii_uppercase());
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_number || !matches!(&size[digits.len()..], "KB" | "MB" | "GB") {
            return Err(invalid(option, format!("{size:?} is no page size such as 2MB")));
        }
        let value = or_max(limit.limit());
        self.settings.push(Setting::new(option, format!("hugetlb.{size}.max"), value.clone()));
        // Reservations are counted apart since Linux 5.7.
        self.settings.push(Setting::new(option, format!("hugetlb.{size}.rsvd.max"), value).or(Absent::Same));
        Ok(())
    }

    fn rdma(&mut self, device: &str, limits: &LinuxRdma) -> Result<(), CgroupError> {
        let option = "linux.resources.rdma";
        if device.is_empty() || device.contains(char::is_whitespace) {
            return Err(invalid(option, format!("{device:?} is no device's name")));
        }
        let handles = limits.hca_handles().map(|limit| format!(" hca_handle={limit}")).unwrap_or_default();
        let objects = limits.hca_objects().map(|limit| format!(" hca_object={limit}")).unwrap_or_default();
        self.set(option, "rdma.max", format!("{device}{handles}{objects}"));
        Ok(())
    }

    /// A file by its own name; a value of several lines is written line by line, as cgroupfs wants it.
    fn unified(&mut self, key: &str, value: &str) -> Result<(), CgroupError> {
        let option = format!("linux.resources.unified[{key:?}]");
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_file = key.bytes().all(fits) && !key.contains("..");
        if !is_file || key.split_once('.').is_none_or(|(controller, file)| controller.is_empty() || file.is_empty()) {
            return Err(invalid(&option, "it must be the name of a control file such as memory.high".to_owned()));
        }
        for line in value.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.settings.push(Setting::new(option.clone(), key.to_owned(), line.to_owned()));
        }
        Ok(())
    }

    fn warn_of_network(&mut self, network: &LinuxNetwork) {
        if network.class_id().unwrap_or(0) != 0 {
            self.warn("network.classID", "cgroup v2 has no such file");
        }
        if network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty()) {
            self.warn("network.priorities", "cgroup v2 has no such file");
        }
    }

    /// Tells of rules that would take something of a node away, where they are not enforced.
    pub(crate) fn warn_of_devices(&mut self, rules: Option<&Vec<LinuxDeviceCgroup>>, why: &str) {
        rules.into_iter().flatten().for_each(|rule| self.warn_of_device(rule, why));
    }

    fn warn_of_device(&mut self, rule: &LinuxDeviceCgroup, why: &str) {
        let access = rule.access().as_deref().unwrap_or_default();
        let all = rule.major().is_none_or(|major| major < 0) && rule.minor().is_none_or(|minor| minor < 0);
        let is_usual = if rule.allow() {
            // `m` alone lets nodes be made, which the kernel forbids all the same.
            access == "m" || (access.contains('r') && access.contains('w'))
        } else {
            all && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
        };
        if !is_usual {
            let what = if rule.allow() { "allow" } else { "deny" };
            self.warn(&format!("devices ({what} {rule})"), why);
        }
    }
}

/// Swap alone, which is what version 2 counts: the total less the memory. `None` is not asked for.
fn swap_alone(limit: Option<i64>, total: Option<i64>) -> Result<Option<i64>, String> {
    match (limit, total) {
        // Version 1 had to lift both together.
        (Some(-1), None) | (_, Some(-1)) => Ok(Some(-1)),
        (Some(-1), total) => Ok(total),
        (_, None) => Ok(None),
        (None, Some(_)) => Err("a total of memory and swap needs a limit of memory".to_owned()),
        (Some(limit), Some(total)) if total < limit => {
            Err(format!("the total of memory and swap, {total}, is below the limit of memory, {limit}"))
        }
        (Some(limit), Some(total)) => Ok(Some(total - limit)),
    }
}

/// A number of bytes; 0 is unset and -1 no limit.
fn bytes(key: &str, value: Option<i64>) -> Result<Option<i64>, CgroupError> {
    match value {
        Some(value) if value < -1 => Err(invalid(key, format!("{value} bytes; no limit is -1"))),
        value => Ok(value.filter(|value| *value != 0)),
    }
}

/// Fills in what an update of quota or period alone leaves as it was, by `cpu.max`.
fn complete_quota(cpu: &mut LinuxCpu, cpu_max: &str) {
    let mut fields = cpu_max.split_whitespace();
    let (quota, period) = (fields.next(), fields.next());
    let is_set = (cpu.quota().unwrap_or(0) != 0, cpu.period().unwrap_or(0) != 0);
    match is_set {
        (true, false) => cpu.set_period(period.and_then(|period| period.parse().ok())),
        (false, true) => cpu.set_quota(quota.and_then(|quota| quota.parse().ok())),
        _ => cpu,
    };
}

/// A line of `io.max`; version 1 lifted a limit by 0.
fn throttle(device: &LinuxThrottleDevice, key: &str) -> String {
    let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
    format!("{}:{} {key}={rate}", device.major(), device.minor())
}

fn sorted<T>(map: Option<&HashMap<String, T>>) -> Vec<(&String, &T)> {
    let mut entries: Vec<_> = map.into_iter().flatten().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

fn invalid(option: &str, reason: String) -> CgroupError {
    CgroupError::Invalid { option: option.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]

    use super::*;

    /// The files of a piece of `linux.resources`, in order, a line each.
    fn files(json: &str) -> Vec<String> {
        let resources = of(json).unwrap();
        assert_eq!(resources.warnings, [""; 0], "{json}");
        resources.settings.iter().map(|setting| format!("{} {}", setting.file, setting.value)).collect()
    }

    fn of(json: &str) -> Result<Resources, CgroupError> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let mut out = Resources::of(&resources)?;
        out.warn_of_devices(resources.devices().as_ref(), "they are not enforced");
        Ok(out)
    }

    // What runc writes by its fs2 manager (setCPU, setMemory, setPids, setIo, setHugeTlb, RdmaSet, setUnified).
    #[test]
    fn the_specification_becomes_files() {
        for (json, wanted) in [
            ("{}", &[][..]),
            (r#"{"pids": {"limit": 20}}"#, &["pids.max 20"]),
            (r#"{"pids": {"limit": -1}}"#, &["pids.max max"]),
            (r#"{"pids": {"limit": 0}}"#, &["pids.max 1"]),
            (r#"{"memory": {"limit": 0, "swap": 0, "reservation": 0}}"#, &[]),
            (r#"{"memory": {"limit": 100, "reservation": 50}}"#, &["memory.max 100", "memory.low 50"]),
            (r#"{"memory": {"limit": 100, "swap": 150}}"#, &["memory.swap.max 50", "memory.max 100"]),
            (r#"{"memory": {"limit": 100, "swap": 100}}"#, &["memory.swap.max 0", "memory.max 100"]),
            (r#"{"memory": {"limit": 100, "swap": -1}}"#, &["memory.swap.max max", "memory.max 100"]),
            (r#"{"memory": {"limit": -1}}"#, &["memory.swap.max max", "memory.max max"]),
            (r#"{"memory": {"limit": -1, "swap": 300}}"#, &["memory.swap.max 300", "memory.max max"]),
            (r#"{"memory": {"swap": -1}}"#, &["memory.swap.max max"]),
            (r#"{"cpu": {"shares": 1024}}"#, &["cpu.weight 100"]),
            (r#"{"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""}}"#, &[]),
            (r#"{"cpu": {"quota": 50000}}"#, &["cpu.max 50000 100000"]),
            (r#"{"cpu": {"quota": -1, "period": 50000}}"#, &["cpu.max max 50000"]),
            (r#"{"cpu": {"period": 50000}}"#, &["cpu.max max 50000"]),
            (r#"{"cpu": {"quota": 5000, "burst": 2000}}"#, &["cpu.max.burst 2000", "cpu.max 5000 100000"]),
            (r#"{"cpu": {"idle": 1}}"#, &["cpu.idle 1"]),
            (r#"{"cpu": {"idle": 0, "shares": 2}}"#, &["cpu.idle 0", "cpu.weight 1"]),
            (r#"{"cpu": {"cpus": "0-1", "mems": "0"}}"#, &["cpuset.cpus 0-1", "cpuset.mems 0"]),
            (r#"{"blockIO": {"weight": 750}}"#, &["io.bfq.weight 750"]),
            (r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 444}]}}"#, &["io.bfq.weight 8:0 444"]),
            (
                r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
                    "throttleWriteBpsDevice": [{"major": 8, "minor": 1, "rate": 0}],
                    "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 8}]}}"#,
                &["io.max 8:0 rbps=1024", "io.max 8:1 wbps=max", "io.max 8:0 riops=7", "io.max 8:0 wiops=8"],
            ),
            (
                r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
                &["hugetlb.2MB.max 4194304", "hugetlb.2MB.rsvd.max 4194304"],
            ),
            (
                r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 1}}}"#,
                &["rdma.max mlx4_0 hca_object=1", "rdma.max mlx5_1 hca_handle=3 hca_object=10000"],
            ),
            (
                r#"{"unified": {"memory.high": "1000", "io.max": "8:0 riops=3\n8:1 riops=4\n", "misc.max": ""}}"#,
                &["io.max 8:0 riops=3", "io.max 8:1 riops=4", "memory.high 1000"],
            ),
            (r#"{"unified": {"pids.max": "30"}, "pids": {"limit": 20}}"#, &["pids.max 20", "pids.max 30"]),
        ] {
            assert_eq!(files(json), wanted, "{json}");
        }
    }

    // runc's `TestConvertMemorySwapToCgroupV2Value`.
    #[test]
    fn totals_that_make_no_sense_are_refused() {
        for (memory, key) in [
            (r#""swap": -2"#, "linux.resources.memory.swap"),
            (r#""swap": 300, "limit": 400"#, "linux.resources.memory.swap"),
            (r#""swap": 300"#, "linux.resources.memory.swap"),
            (r#""swap": 300, "limit": -300"#, "linux.resources.memory.limit"),
        ] {
            let error = of(&format!(r#"{{"memory": {{{memory}}}}}"#)).unwrap_err();
            assert!(matches!(&error, CgroupError::Invalid { option, .. } if option == key), "{memory}: {error}");
        }
    }

    #[test]
    fn a_key_is_a_file_of_its_own_cgroup() {
        for key in ["../memory.max", "a/memory.max", "memory", ".max", "memory.", "..", "memory..max", r"m\u0000.x", ""]
        {
            assert!(of(&format!(r#"{{"unified": {{"{key}": "1"}}}}"#)).is_err(), "{key}");
        }
        for size in ["", "MB", "2", "2TB", "../2MB", "2.MB", "2MBMB"] {
            let json = format!(r#"{{"hugepageLimits": [{{"pageSize": "{size}", "limit": 1}}]}}"#);
            assert!(of(&json).is_err(), "{size}");
        }
        assert!(of(r#"{"rdma": {"a b": {}}}"#).is_err());
    }

    #[test]
    fn what_version_2_lacks_is_told() {
        for (json, wanted) in [
            (r#"{"memory": {"kernel": 100}}"#, "memory.kernel"),
            (r#"{"memory": {"kernelTCP": 100}}"#, "memory.kernel"),
            (r#"{"memory": {"swappiness": 0}}"#, "memory.swappiness"),
            (r#"{"memory": {"disableOOMKiller": true}}"#, "memory.disableOOMKiller"),
            (r#"{"memory": {"useHierarchy": false}}"#, "memory.useHierarchy"),
            (r#"{"cpu": {"realtimeRuntime": 950000, "realtimePeriod": 1000000}}"#, "cpu.realtimeRuntime"),
            (r#"{"cpu": {"idle": 1, "shares": 1024}}"#, "cpu.shares"),
            (r#"{"blockIO": {"leafWeight": 100}}"#, "blockIO.leafWeight"),
            (r#"{"network": {"classID": 1048577}}"#, "network.classID"),
            (r#"{"network": {"priorities": [{"name": "eth0", "priority": 500}]}}"#, "network.priorities"),
            (
                r#"{"devices": [{"allow": false, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]}"#,
                "devices (deny c 1:3 rwm)",
            ),
            (
                r#"{"devices": [{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]}"#,
                "devices (allow c 10:229 r)",
            ),
        ] {
            let warnings = of(json).unwrap().warnings;
            assert_eq!(warnings.len(), 1, "{json}: {warnings:?}");
            assert!(warnings[0].starts_with(&format!("linux.resources.{wanted} has no effect: ")), "{warnings:?}");
        }
        // What asks for nothing.
        assert_eq!(files(r#"{"memory": {"disableOOMKiller": false, "useHierarchy": true}}"#), [""; 0]);
        assert_eq!(files(r#"{"cpu": {"realtimeRuntime": 0, "realtimePeriod": 0}, "network": {}}"#), [""; 0]);
    }

    #[test]
    fn the_rules_on_devices_of_every_engine_are_no_news() {
        let json = r#"{"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "access": "m"},
            {"allow": true, "type": "b", "access": "m"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 136, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}
        ]}"#;
        assert_eq!(files(json), [""; 0]);
        assert_eq!(files(r#"{"devices": [{"allow": true, "type": "a", "access": "rwm"}]}"#), [""; 0], "privileged");
    }

    #[test]
    fn limits_need_a_cgroup_and_their_absence_does_not() {
        let needs = |json| of(json).unwrap().needs_cgroup().map(str::to_owned);
        assert_eq!(needs(r#"{"pids": {"limit": 5}}"#).as_deref(), Some("linux.resources.pids.limit"));
        assert_eq!(
            needs(r#"{"unified": {"memory.high": "1"}}"#).as_deref(),
            Some("linux.resources.unified[\"memory.high\"]")
        );
        assert_eq!(needs(r#"{"pids": {"limit": -1}, "memory": {"limit": -1}, "cpu": {"quota": -1}}"#), None);
        assert_eq!(needs(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#), None);
    }

    #[test]
    fn an_update_of_one_half_keeps_the_other() {
        let complete = |quota: Option<i64>, period: Option<u64>, file: &str| {
            let mut cpu = LinuxCpu::default();
            cpu.set_quota(quota).set_period(period);
            complete_quota(&mut cpu, file);
            cpu_max(cpu.quota(), cpu.period())
        };
        assert_eq!(complete(Some(5000), None, "max 50000\n"), "5000 50000");
        assert_eq!(complete(None, Some(20_000), "7000 50000\n"), "7000 20000");
        assert_eq!(complete(None, Some(20_000), "max 50000\n"), "max 20000");
        assert_eq!(complete(Some(1000), Some(2000), "7000 50000\n"), "1000 2000");
        assert_eq!(complete(Some(1000), None, ""), "1000 100000");
    }
}
