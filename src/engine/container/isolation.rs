//! How far a container is set apart from the machine: what can be asked for, refused in Docker's words before anything is made.

use base::{Kind, Report};
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxIOPriorityBuilder, LinuxNamespaceType, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType,
};
use sys::Errno;

use crate::Engine;
use crate::container::create::CreateRequest;
use crate::container::record::{
    HostSettings, IoClass, IpcMode, KEEP_GROUPS, NetworkMode, PidMode, Seccomp, Ulimit, UserNamespace, load,
};
use crate::container::{joined, lookup};

/// Docker's names of limits, with the specification's.
const ULIMITS: [(&str, PosixRlimitType); 15] = [
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

/// Completes and checks a request. The container whose processes are wanted is named by its id from here on.
pub(crate) fn check(engine: &Engine, request: &mut CreateRequest) -> Result<(), Report> {
    let wrong = |text: String| Err(Report::new(Kind::Usage, text));
    let host = &mut request.host;
    if host.privileged && matches!(host.seccomp, Seccomp::Default) {
        host.seccomp = Seccomp::Unconfined;
    }
    if let PidMode::Container(name) = &mut host.pid {
        *name = lookup::find(engine, name)?.to_string();
    }
    if let IpcMode::Container(name) = &mut host.ipc {
        let donor = load(engine, &lookup::find(engine, name)?)?;
        if donor.host.ipc == IpcMode::Private || donor.host.ipc == IpcMode::None {
            let text = format!("can't join IPC of container {name}: non-shareable IPC");
            return Err(Report::new(Kind::Usage, text).with_hint("use --ipc shareable for the donor container"));
        }
        *name = donor.id.to_string();
    }
    if joined::donor(host).is_some() && host.userns != UserNamespace::Default {
        return wrong("conflicting options: user namespace and the namespaces of another container".to_owned());
    }
    if host.host_uts && (request.hostname.is_some() || request.domainname.is_some()) {
        return wrong("conflicting options: hostname and the UTS mode".to_owned());
    }
    if host.groups.len() > 1 && host.groups.iter().any(|group| group == KEEP_GROUPS) {
        return wrong(format!("--group-add {KEEP_GROUPS} cannot be given together with other groups"));
    }
    if let Some(score) = host.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
        return wrong(format!("Invalid value {score}, range for oom score adj is [-1000, 1000]"));
    }
    host.io_class.map_or(Ok(()), check_io_class)?;
    for limit in &host.ulimits {
        rlimit(limit)?;
    }
    host.sysctls.keys().try_for_each(|name| check_sysctl(name, host))
}

/// Refuses a class of I/O that the caller's processes may not have.
fn check_io_class(wanted: IoClass) -> Result<(), Report> {
    // A thread has a class of its own, which ends with it.
    let tried = std::thread::spawn(move || set_io_class(wanted)).join();
    tried.unwrap_or_else(|_| Err(Report::new(Kind::Internal, "the thread that tried a class of I/O panicked")))
}

/// Gives the calling thread this class, and what it starts from then on.
pub(crate) fn set_io_class(wanted: IoClass) -> Result<(), Report> {
    let (class, level) = runtime::init::limits::io_priority(&io_priority(wanted)?)?;
    sys::schedule::set_io_priority(0, class, level).map_err(|error| {
        let is_denied = error.errno() == Errno::EPERM;
        let report = Report::from(error).with_step(format!("--io-class {wanted}"));
        if !is_denied {
            return report;
        }
        report.with_hint(
            "that class takes CAP_SYS_NICE of the machine, as its root has it; idle and best-effort are for everybody",
        )
    })
}

/// The class in the specification's words.
pub(crate) fn io_priority(wanted: IoClass) -> Result<LinuxIOPriority, Report> {
    let (class, level) = match wanted {
        IoClass::Idle => (IOPriorityClass::IoprioClassIdle, 0),
        IoClass::BestEffort(level) => (IOPriorityClass::IoprioClassBe, level),
        IoClass::Realtime(level) => (IOPriorityClass::IoprioClassRt, level),
    };
    let made = LinuxIOPriorityBuilder::default().class(class).priority(level).build();
    made.map_err(|error| Report::of(Kind::Internal, error))
}

/// Refuses a setting of the kernel that the container has not for itself.
fn check_sysctl(name: &str, host: &HostSettings) -> Result<(), Report> {
    let is_the_hosts = match runtime::init::limits::sysctl_owner(name)? {
        LinuxNamespaceType::Network => host.network == NetworkMode::Host,
        LinuxNamespaceType::Ipc => matches!(host.ipc, IpcMode::Host | IpcMode::Container(_)),
        LinuxNamespaceType::Uts => host.host_uts,
        LinuxNamespaceType::Pid => host.pid != PidMode::Private,
        _ => false,
    };
    if is_the_hosts {
        return Err(Report::new(Kind::Usage, format!("sysctl {name:?} is not allowed in the host's namespace")));
    }
    Ok(())
}

/// A limit in the specification's words.
pub(crate) fn rlimit(limit: &Ulimit) -> Result<PosixRlimit, Report> {
    let Some((_, typ)) = ULIMITS.iter().find(|(name, _)| *name == limit.name) else {
        let known: Vec<&str> = ULIMITS.iter().map(|(name, _)| *name).collect();
        return Err(Report::new(Kind::Usage, format!("invalid ulimit type: {}", limit.name))
            .with_hint(format!("the limits are {}", known.join(", "))));
    };
    // Less than 0 is RLIM_INFINITY, whose bits are those of -1.
    let bits = |limit: i64| limit.max(-1).cast_unsigned();
    let made = PosixRlimitBuilder::default().typ(*typ).soft(bits(limit.soft)).hard(bits(limit.hard)).build();
    made.map_err(|error| Report::of(Kind::Internal, error))
}
