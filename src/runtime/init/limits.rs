//! Resource limits and kernel settings of the container.

use std::io::Write;
use std::os::fd::AsFd;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sys::resource::Resource;
use nix::sys::stat::Mode;
use oci_spec::runtime::{PosixRlimitType, Process, Spec};
use sys::mount::{Attr, FsContext};
use sys::schedule::{self, set_limit};
use sys::{Call, Errno};

/// Sets rlimits and the OOM score of the process `pid`, a child of the caller's that runs nothing of the container yet.
///
/// From outside its user namespace, as only there the caller's own rights count. A hard limit above the inherited one is
/// clamped with a notice where it may not be raised; an OOM score below the inherited one is left.
pub fn apply(process: &Process, pid: i32, notice: &mut dyn FnMut(String)) -> Result<(), Report> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
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
            Err(error) if matches!(error.errno(), Errno::EACCES | Errno::EPERM) => {}
            result => result?,
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
        check_namespaced(name)?;
        let path = format!("sys/{}", name.replace('.', "/"));
        let file = nix::fcntl::openat(procfs.as_fd(), path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open(/proc/{path})"));
        file.and_then(|fd| {
            std::fs::File::from(fd).write_all(value.as_bytes()).call(|| format!("write(/proc/{path}, {value:?})"))
        })
        .step(|| format!("setting {name}"))?;
    }
    Ok(())
}

/// Refuses a setting that no namespace has for itself.
pub fn check_namespaced(name: &str) -> Result<(), Report> {
    if namespaced(name) {
        return Ok(());
    }
    let message = format!("sysctl {name} belongs to the whole host and cannot be set for a container");
    Err(Report::new(Kind::Unsupported, message))
}

/// Settings that a namespace has for itself: sysctl documentation of the kernel, ipc_namespaces(7), namespaces(7).
fn namespaced(name: &str) -> bool {
    const PREFIXES: [&str; 6] = ["net.", "fs.mqueue.", "user.", "kernel.shm", "kernel.msg", "kernel.sem"];
    const NAMES: [&str; 2] = ["kernel.domainname", "kernel.hostname"];
    !name.contains('/')
        && !name.contains("..")
        && (PREFIXES.iter().any(|p| name.starts_with(p)) || NAMES.contains(&name))
}
