//! Resource limits and kernel settings of the container.

use std::io::Write;
use std::os::fd::AsFd;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sys::resource::Resource;
use nix::sys::stat::Mode;
use oci_spec::runtime::{IOPriorityClass, LinuxIOPriority, LinuxNamespaceType, PosixRlimitType, Process, Spec};
use sys::mount::{Attr, FsContext};
use sys::schedule::{self, set_limit};
use sys::{Call, Errno};

/// What opening files and starting processes needs, as the set-up does too.
const LATE: [Resource; 2] = [Resource::RLIMIT_NOFILE, Resource::RLIMIT_NPROC];

/// Sets rlimits, the OOM score and the I/O priority of the process `pid`, a child of the caller's that runs nothing of the container yet.
///
/// From outside its user namespace, as only there the caller's own rights count. A hard limit above the inherited one is
/// clamped with a notice where it may not be raised; an OOM score below the inherited one is left, with a notice too. Limits that
/// would be those of the set-up as well are raised here where they are to be, and lowered by [`lower`].
pub fn apply(process: &Process, pid: i32, notice: &mut dyn FnMut(String)) -> Result<(), Report> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        if LATE.contains(&resource) && limit.hard() <= schedule::limit(pid, resource)?.1 {
            continue;
        }
        match set_limit(pid, resource, limit.soft(), limit.hard()) {
            Err(error) if error.errno() == Errno::EPERM => {
                let (_, ceiling) = schedule::limit(pid, resource)?;
                let hard = limit.hard().min(ceiling);
                notice(format!("{resource:?}: {} is above the limit of this session; using {hard}", limit.hard()));
                set_limit(pid, resource, limit.soft().min(ceiling), hard)?;
            }
            result => result?,
        }
    }
    if let Some(score) = process.oom_score_adj() {
        match sys::process::set_oom_score_adj(pid, score) {
            Err(error) if matches!(error.errno(), Errno::EACCES | Errno::EPERM) => {
                notice(format!("oomScoreAdj: {score} is below that of this session, which stays"));
            }
            result => result?,
        }
    }
    if let Some(priority) = process.io_priority() {
        let (class, level) = io_priority(priority)?;
        schedule::set_io_priority(pid, class, level).step(|| "setting the I/O priority".to_owned())?;
    }
    Ok(())
}

/// The class and the level of an I/O priority, as ioprio_set(2) has them.
pub fn io_priority(priority: &LinuxIOPriority) -> Result<(u32, u32), Report> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(priority.priority()).ok().filter(|level| *level <= 7);
    let wrong = || Report::new(Kind::Usage, format!("I/O priority {} is outside of 0 to 7", priority.priority()));
    Ok((class, level.ok_or_else(wrong)?))
}

/// Sets, for the calling process, the limits that [`apply`] has left: the next step is its last that needs more.
pub fn lower(process: &Process) -> Result<(), Report> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        let (_, ceiling) = schedule::limit(0, resource)?;
        if LATE.contains(&resource) && limit.hard() <= ceiling {
            set_limit(0, resource, limit.soft(), limit.hard())?;
        }
    }
    Ok(())
}

fn resource(typ: PosixRlimitType) -> Resource {
    match typ {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// Writes the settings of the container's own namespaces through a private procfs that nothing can be mounted over.
pub fn sysctls(spec: &Spec) -> Result<(), Report> {
    let sysctls = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let Some(sysctls) = sysctls.filter(|sysctls| !sysctls.is_empty()) else { return Ok(()) };
    let procfs = FsContext::open(c"proc")?.mount(Attr::empty()).step(|| "opening a private procfs".to_owned())?;
    for (name, value) in sysctls {
        sysctl_owner(name)?;
        let path = format!("sys/{}", sysctl_path(name));
        let file = nix::fcntl::openat(procfs.as_fd(), path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open(/proc/{path})"));
        file.and_then(|fd| {
            std::fs::File::from(fd).write_all(value.as_bytes()).call(|| format!("write(/proc/{path}, {value:?})"))
        })
        .step(|| format!("setting {name}"))?;
    }
    Ok(())
}

/// The path of a setting below `/proc/sys`: the parts of a name are separated by what comes first in it, a dot or a slash,
/// and the other one of the two then stands for the first in a part (`net.ipv4.conf.eth0/1.forwarding`); sysctl.d(5).
fn sysctl_path(name: &str) -> String {
    if name.find(['.', '/']).is_some_and(|first| name[first..].starts_with('/')) {
        return name.to_owned();
    }
    let swap = |one| match one {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// The type of namespace that has a setting for itself: sysctl documentation of the kernel, ipc_namespaces(7), namespaces(7).
/// One that no namespace has is an error.
pub fn sysctl_owner(name: &str) -> Result<LinuxNamespaceType, Report> {
    const OWNERS: [(&str, LinuxNamespaceType); 8] = [
        ("net/", LinuxNamespaceType::Network),
        ("user/", LinuxNamespaceType::User),
        ("kernel/domainname", LinuxNamespaceType::Uts),
        ("kernel/hostname", LinuxNamespaceType::Uts),
        ("fs/mqueue/", LinuxNamespaceType::Ipc),
        ("kernel/shm", LinuxNamespaceType::Ipc),
        ("kernel/msg", LinuxNamespaceType::Ipc),
        ("kernel/sem", LinuxNamespaceType::Ipc),
    ];
    let path = sysctl_path(name);
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Report::new(Kind::Usage, format!("sysctl {name:?} is no name of a setting")));
    }
    let owner = OWNERS.iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, owner)| *owner);
    owner.ok_or_else(|| {
        let message = format!("sysctl {name} belongs to the whole host and cannot be set for a container");
        Report::new(Kind::Unsupported, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_with_dots_or_slashes() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(sysctl_path(name), path);
            assert_eq!(sysctl_owner(name).ok(), Some(LinuxNamespaceType::Network), "{name}");
        }
        assert_eq!(sysctl_owner("user.max_user_namespaces").ok(), Some(LinuxNamespaceType::User));
        for bad in [
            "kernel.panic",
            "kernel/panic",
            "net/../kernel/panic",
            "net.//.kernel.panic",
            "net./.x",
            "",
            "net",
            "/net/x",
        ] {
            assert!(sysctl_owner(bad).is_err(), "{bad:?}");
        }
    }
}
