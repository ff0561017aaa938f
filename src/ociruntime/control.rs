//! What goes through the container's cgroup: its making and removal, `pause`, `resume`, `update`, `events`.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use base::units::parse_bytes;
use base::{Context, Kind, Report};
use cgroup::oci::{Cgroup, Request};
use cgroup::stats::Event;
use cgroup::{Container as Group, Resources};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNamespaceType, LinuxPids, LinuxResources, Spec};

use crate::args::{CgroupManager, Events, Global, Rootless, Update};
use crate::config;
use crate::list::print_or_end;
use crate::log::Log;
use crate::state::{Container, Record, Root, Status};

/// Says where the container's cgroup will be; nothing is made yet.
pub fn plan(global: &Global, id: &str, spec: &Spec, log: &Log) -> Result<Cgroup, Report> {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    if global.cgroup_manager == Some(CgroupManager::Disabled) {
        let resources = resources.map(Resources::of).transpose()?.unwrap_or_default();
        resources.warnings.iter().for_each(|line| log.warn(line));
        if let Some(limit) = resources.needs_cgroup() {
            log.warn(&format!("{limit}: without a cgroup no limit has an effect (--cgroup-manager=disabled)"));
        }
        return Ok(Cgroup::open(&cgroup::oci::Record::default())?);
    }
    let bus = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok();
    let rootless = is_rootless()?;
    let request = Request {
        id,
        path: linux.and_then(|linux| linux.cgroups_path().as_deref()),
        systemd: global.systemd_cgroup || global.cgroup_manager == Some(CgroupManager::Systemd),
        rootless: match global.rootless {
            Rootless::True => true,
            Rootless::False => false,
            Rootless::Auto => rootless,
        },
        bus: bus.as_deref(),
        annotations: spec.annotations().as_ref(),
        resources,
        host_root: !rootless && !has_user_namespace(spec),
    };
    Cgroup::plan(&request).step(|| "planning the cgroup".to_owned())
}

/// Whether root of this user namespace is not root of the host.
fn is_rootless() -> Result<bool, Report> {
    Ok(!nix::unistd::geteuid().is_root() || !sys::namespace::maps_every_id()?)
}

/// Whether the container gets a user namespace of its own, in which no device node can be made. One that it joins may be
/// the host's.
fn has_user_namespace(spec: &Spec) -> bool {
    runtime::launch::is_new(spec, LinuxNamespaceType::User)
}

/// Removes the container's cgroup with all that is left in it.
pub fn remove(record: &Record) -> Result<(), Report> {
    let cgroup = Cgroup::open(&record.cgroup)?;
    cgroup.remove().step(|| "removing the cgroup".to_owned())
}

/// Lets a frozen container go on, so that it can end.
pub fn thaw(container: &Container) {
    if let Ok(cgroup) = container.cgroup()
        && let Some(group) = cgroup.container()
    {
        // Without a freezer it was not frozen.
        let _ = group.thaw();
    }
}

fn group<'a>(cgroup: &'a Cgroup, id: &str) -> Result<&'a Group, Report> {
    cgroup.container().ok_or_else(|| {
        Report::new(Kind::Unsupported, format!("container {id:?} has no cgroup"))
            .with_hint("cgroupsPath must lie in a directory of cgroup v2 that you may write")
    })
}

/// `pause ID`.
pub fn pause(root: &Root, id: &str) -> Result<u8, Report> {
    let container = root.load(id)?;
    match container.status() {
        Status::Running | Status::Created => group(&container.cgroup()?, id)?.freeze()?.keep(),
        status => return Err(state_error(id, "pause", status)),
    }
    Ok(0)
}

/// `resume ID`.
pub fn resume(root: &Root, id: &str) -> Result<u8, Report> {
    let container = root.load(id)?;
    match container.status() {
        Status::Paused => group(&container.cgroup()?, id)?.thaw()?,
        status => return Err(state_error(id, "resume", status)),
    }
    Ok(0)
}

fn state_error(id: &str, verb: &str, status: Status) -> Report {
    Report::new(Kind::Conflict, format!("cannot {verb} container {id:?} in the state {}", status.word()))
}

/// `update ID`.
pub fn update(root: &Root, arguments: &Update, log: &Log) -> Result<u8, Report> {
    let container = root.load(&arguments.id)?;
    match container.status() {
        Status::Stopped | Status::Creating => return Err(state_error(&arguments.id, "update", container.status())),
        _ => {}
    }
    let resources = match &arguments.resources {
        Some(path) if path == Path::new("-") => {
            let mut text = Vec::new();
            std::io::stdin().take(1 << 20).read_to_end(&mut text).map_err(|error| Report::of(Kind::Internal, error))?;
            config::parse(&text, &mut |words| log.warn(words)).step(|| "reading the resources".to_owned())?
        }
        Some(path) => config::read(path, log).step(|| format!("reading {}", path.display()))?,
        None => asked(arguments)?,
    };
    for line in container.cgroup()?.update(&resources)? {
        log.warn(&line);
    }
    Ok(0)
}

/// The resources that the options ask for.
fn asked(arguments: &Update) -> Result<LinuxResources, Report> {
    let mut resources = empty()?;
    let bytes = |text: &Option<String>| {
        text.as_ref()
            .map(|text| match text.as_str() {
                "-1" => Ok(-1),
                text => parse_bytes(text).map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            })
            .transpose()
    };
    let (limit, reservation) = (bytes(&arguments.memory)?, bytes(&arguments.memory_reservation)?);
    let swap = bytes(&arguments.memory_swap)?;
    if limit.is_some() || reservation.is_some() || swap.is_some() {
        let mut memory = LinuxMemory::default();
        memory.set_limit(limit).set_reservation(reservation).set_swap(swap);
        resources.set_memory(Some(memory));
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_period(arguments.cpu_period).set_quota(arguments.cpu_quota).set_burst(arguments.cpu_burst);
    cpu.set_shares(arguments.cpu_share).set_idle(arguments.cpu_idle);
    cpu.set_cpus(arguments.cpuset_cpus.clone()).set_mems(arguments.cpuset_mems.clone());
    resources.set_cpu(Some(cpu));
    if let Some(limit) = arguments.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if arguments.blkio_weight.is_some() {
        let mut block = LinuxBlockIo::default();
        block.set_weight(arguments.blkio_weight);
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}

/// The library's default asks for rules on devices.
fn empty() -> Result<LinuxResources, Report> {
    serde_json::from_str("{}").map_err(|error| Report::of(Kind::Internal, error))
}

/// `events ID`: what is used, at intervals, and each time that a process is killed for want of memory; ends with the
/// container.
pub fn events(root: &Root, arguments: &Events) -> Result<u8, Report> {
    let id = &arguments.id;
    let container = root.load(id)?;
    let cgroup = container.cgroup()?;
    let group = group(&cgroup, id)?;
    if arguments.stats {
        print_event(&Event::stats(id, &group.stats()?))?;
        return Ok(0);
    }
    let interval = duration(&arguments.interval)?;
    let Some(mut watch) = cgroup.watch_oom()? else { return Ok(0) };
    let mut kills = watch.read()?.kills;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let fds = watch.fds();
        let mut fds: Vec<PollFd<'_>> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLPRI)).collect();
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(sys::SysError::new("poll()", errno).into()),
        }
        let now = watch.read()?;
        for _ in kills..now.kills {
            if !print_event(&Event::oom(id))? {
                return Ok(0);
            }
        }
        kills = now.kills;
        if !now.populated {
            return Ok(0);
        }
        if Instant::now() >= next {
            if !print_event(&Event::stats(id, &group.stats()?))? {
                return Ok(0);
            }
            next += interval;
        }
    }
}

/// False once nobody reads it any more.
fn print_event(event: &Event<'_>) -> Result<bool, Report> {
    let text = serde_json::to_string(event).map_err(|error| Report::of(Kind::Internal, error))?;
    print_or_end(&format!("{text}\n"))
}

/// Go's words for a duration: `5s`, `500ms`, `1h30m`.
fn duration(text: &str) -> Result<Duration, Report> {
    let bad = || Report::new(Kind::Usage, format!("--interval {text:?} is no duration such as 5s or 1h30m"));
    let (mut left, mut seconds) = (text, 0.0);
    while !left.is_empty() {
        let unit = left.find(|one: char| !one.is_ascii_digit() && one != '.').ok_or_else(bad)?;
        let number: f64 = left[..unit].parse().map_err(|_| bad())?;
        let rest = &left[unit..];
        let end = rest.find(|one: char| one.is_ascii_digit() || one == '.').unwrap_or(rest.len());
        let factor = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += number * factor;
        left = &rest[end..];
    }
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
    if duration.is_zero() { Err(bad()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        assert_eq!(duration("5s").ok(), Some(Duration::from_secs(5)));
        assert_eq!(duration("500ms").ok(), Some(Duration::from_millis(500)));
        assert_eq!(duration("1.5m").ok(), Some(Duration::from_secs(90)));
        assert_eq!(duration("1h").ok(), Some(Duration::from_hours(1)));
        assert_eq!(duration("1h30m5s").ok(), Some(Duration::from_secs(5405)));
        assert_eq!(duration("1µs").ok(), Some(Duration::from_micros(1)));
        for bad in ["", "5", "s", "0s", "-1s", "1d", "1h5", "1..2s", "NaNs", "infs"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
