//! Changing what a container may use, while it runs too.

use std::path::PathBuf;

use base::{ContainerId, Context, Kind, Report};
use monitor::restart::{Policy, Terms};

use crate::Engine;
use crate::container::lock::lock;
use crate::container::record::{DeviceRate, HostSettings, load};
use crate::container::state::Life;
use crate::container::{limits, restart};
use crate::events;

/// Limits that are asked for; the members mean what those of [`HostSettings`] mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the members are those of `HostSettings`")]
pub struct LimitRequest {
    pub memory_bytes: Option<u64>,
    pub memory_swap: Option<i64>,
    pub memory_reservation: Option<u64>,
    pub memory_high: Option<u64>,
    pub nano_cpus: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids_limit: Option<i64>,
    pub blkio_weight: Option<u16>,
    pub blkio_device_weights: Vec<(PathBuf, u16)>,
    pub device_rates: Vec<DeviceRate>,
}

impl LimitRequest {
    /// Sets what is asked for and leaves the rest.
    pub fn apply(self, host: &mut HostSettings) {
        fn set<T>(old: &mut Option<T>, new: Option<T>) {
            if new.is_some() {
                *old = new;
            }
        }
        set(&mut host.memory_bytes, self.memory_bytes);
        set(&mut host.memory_swap, self.memory_swap);
        set(&mut host.memory_reservation, self.memory_reservation);
        set(&mut host.memory_high, self.memory_high);
        set(&mut host.nano_cpus, self.nano_cpus);
        set(&mut host.cpu_quota, self.cpu_quota);
        set(&mut host.cpu_period, self.cpu_period);
        set(&mut host.cpu_shares, self.cpu_shares);
        set(&mut host.cpuset_cpus, self.cpuset_cpus);
        set(&mut host.cpuset_mems, self.cpuset_mems);
        set(&mut host.pids_limit, self.pids_limit);
        set(&mut host.blkio_weight, self.blkio_weight);
        for (path, weight) in self.blkio_device_weights {
            host.blkio_device_weights.retain(|(other, _)| *other != path);
            host.blkio_device_weights.push((path, weight));
        }
        for rate in self.device_rates {
            host.device_rates.retain(|other| (&other.path, other.kind) != (&rate.path, rate.kind));
            host.device_rates.push(rate);
        }
    }
}

/// Changes the limits of a container: now, if it runs, and for its later starts; and when it is started again.
pub fn update(engine: &Engine, id: &ContainerId, request: LimitRequest, restart: Option<Policy>) -> Result<(), Report> {
    if request == LimitRequest::default() && restart.is_none() {
        return Err(Report::new(Kind::Usage, "you must provide one or more flags when using this command"));
    }
    let locked = lock(engine, id)?;
    let mut record = load(engine, id)?;
    let is_limited = request != LimitRequest::default();
    request.apply(&mut record.host);
    limits::check(&record.host)?;
    if record.host.auto_remove && restart.is_some_and(|policy| policy != Policy::No) {
        let text = "Restart policy cannot be updated because AutoRemove is enabled for the container";
        return Err(Report::new(Kind::Usage, text));
    }
    record.host.restart = restart.unwrap_or(record.host.restart);
    // Disks are looked for where that is asked for.
    let wanted = is_limited.then(|| limits::limits(&record.host)).transpose()?;
    if let Some(wanted) = wanted.as_ref().filter(|_| matches!(locked.condition.life, Life::Running { .. })) {
        let path = locked.condition.pids.as_ref().and_then(|pids| pids.cgroup.clone()).ok_or_else(|| {
            Report::new(Kind::Unsupported, format!("container {id} has no cgroup, so it cannot be limited"))
                .with_hint("`sublet doctor` says what would give it one")
        })?;
        let limited = cgroup::Container::open(&path).and_then(|cgroup| cgroup.limit(wanted));
        limited.map_err(Report::from).step(|| format!("Cannot update container {id}"))?;
    }
    record.save(engine, true)?;
    events::of_container(engine, id, "update", &[]);
    let active = locked.condition.life.is_active();
    // Which the monitor may be waiting for.
    drop(locked);
    if active && (restart.is_some() || record.host.restart != Policy::No) {
        restart::set_terms(engine, id, Terms { policy: restart, limits: wanted, stopped: false })?;
    }
    Ok(())
}
