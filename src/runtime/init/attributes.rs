//! What the payload keeps over exec and no namespace holds: scheduling, memory policy, personality, labels
//! of security modules.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::personality::Persona;
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::Pid;
use oci_spec::runtime::{
    Linux, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler, Spec,
};
use sys::schedule::{Scheduling, set_memory_policy, set_scheduling};
use sys::{Call, Errno, SysError};

use crate::init::limits;

/// The most memory nodes of a policy; the kernel's own limit (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: usize = 1024;
/// How much of a list that is wrong an error repeats.
const SHOWN_MAX: usize = 100;

/// Sets all that needs neither a capability of the container nor its user.
pub fn apply(spec: &Spec) -> Result<(), Report> {
    let linux = spec.linux().as_ref();
    let policy = linux.and_then(|linux| linux.memory_policy().as_ref());
    let personality = linux.and_then(|linux| linux.personality().as_ref());
    apply_to(spec.process().as_ref(), policy, personality)
}

/// The same of a process that is executed in a container with these.
pub fn apply_to(
    process: Option<&Process>,
    policy: Option<&LinuxMemoryPolicy>,
    personality: Option<&LinuxPersonality>,
) -> Result<(), Report> {
    if let Some(policy) = policy {
        memory_policy(policy).step(|| "setting the memory policy".to_owned())?;
    }
    if let Some(personality) = personality {
        set_personality(personality).step(|| "setting the personality".to_owned())?;
    }
    let Some(process) = process else { return Ok(()) };
    if let Some(scheduler) = process.scheduler() {
        set_scheduling(&wanted(scheduler)).step(|| "setting the scheduler".to_owned())?;
    }
    Ok(())
}

/// Refuses what [`apply`] would, as far as that can be said without the kernel.
pub fn check(linux: &Linux) -> Result<(), Report> {
    let nodes = linux.memory_policy().as_ref().map(|policy| policy.nodes().as_deref().unwrap_or(""));
    nodes.map(mask).transpose().step(|| "the memory policy".to_owned())?;
    linux.personality().as_ref().map_or(Ok(()), |personality| persona(personality).map(drop))
}

/// The same of a process.
pub fn check_process(process: &Process) -> Result<(), Report> {
    if let Some(affinity) = process.exec_cpu_affinity() {
        for list in [affinity.initial(), affinity.cpu_affinity_final()].into_iter().flatten() {
            cpu_set(list).step(|| "execCPUAffinity".to_owned())?;
        }
    }
    process.io_priority().as_ref().map_or(Ok(()), |priority| limits::io_priority(priority).map(drop))
}

fn wanted(scheduler: &Scheduler) -> Scheduling {
    // linux/sched.h.
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x1,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x2,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x4,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x8,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    Scheduling {
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).max(0) as u32,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

fn set_personality(personality: &LinuxPersonality) -> Result<(), Report> {
    let persona = persona(personality)?;
    nix::sys::personality::set(persona).call(|| format!("personality({persona:?})"))?;
    Ok(())
}

fn persona(personality: &LinuxPersonality) -> Result<Persona, Report> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Report::new(Kind::Unsupported, "flags of a personality are not defined by the specification"));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => Persona::empty(),
        // sys/personality.h: PER_LINUX32.
        LinuxPersonalityDomain::PerLinux32 => Persona::from_bits_retain(0x8),
    })
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(), Report> {
    // linux/mempolicy.h.
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    let nodes = mask(policy.nodes().as_deref().unwrap_or(""))?;
    set_memory_policy(mode | flags, &nodes)?;
    Ok(())
}

/// `0-3,7` as a mask, 64 numbers a word.
fn mask(list: &str) -> Result<Vec<u64>, Report> {
    let mut words = Vec::new();
    for number in numbers(list, NODES_MAX)? {
        if words.len() <= number / 64 {
            words.resize(number / 64 + 1, 0);
        }
        words[number / 64] |= 1 << (number % 64);
    }
    Ok(words)
}

/// The numbers of a list as the kernel writes them (`0-3,7`), each below `limit`. A list of more parts than there are numbers
/// is refused: it may come from anybody.
fn numbers(list: &str, limit: usize) -> Result<BTreeSet<usize>, Report> {
    let bad = || {
        let shown: String = list.chars().take(SHOWN_MAX).collect();
        Report::new(Kind::Usage, format!("{shown:?} is no list of numbers below {limit}, such as 0-3,7"))
    };
    if list.bytes().filter(|byte| *byte == b',').count() >= limit {
        return Err(bad());
    }
    let number = |text: &str| text.trim().parse().ok().filter(|number| *number < limit).ok_or_else(bad);
    let mut found = BTreeSet::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        found.extend(first..=last);
    }
    Ok(found)
}

/// The processors of a list as [`numbers`] takes it.
fn cpu_set(list: &str) -> Result<CpuSet, Report> {
    let mut set = CpuSet::new();
    for processor in numbers(list, CpuSet::count())? {
        set.set(processor).call(|| format!("processor {processor}"))?;
    }
    Ok(set)
}

/// Binds the calling process to the processors of a list such as `0-3,7`, and tells to which it was bound before.
pub fn set_affinity(list: &str) -> Result<CpuSet, Report> {
    let wanted = cpu_set(list)?;
    let before = sched_getaffinity(Pid::from_raw(0)).call(|| "sched_getaffinity()".to_owned())?;
    sched_setaffinity(Pid::from_raw(0), &wanted).call(|| format!("sched_setaffinity({list:?})"))?;
    Ok(before)
}

/// Takes a change of [`set_affinity`] back.
pub fn restore_affinity(before: &CpuSet) -> Result<(), SysError> {
    sched_setaffinity(Pid::from_raw(0), before).call(|| "sched_setaffinity(as before)".to_owned())
}

/// The labels that security modules give the payload at its exec, and where they are written: proc_pid_attr(5).
#[derive(Debug)]
pub struct Labels {
    /// Until they are set: what runs in the container before its command must not find the host's.
    procfs: RefCell<Option<OwnedFd>>,
    apparmor: Option<String>,
    selinux: Option<String>,
}

impl Labels {
    /// Opens the `/proc` of the host, to be called before the container's is all that is left, which its volumes may cover
    /// (CVE-2019-19921). A procfs of one's own would need the mount API. `None` when no label is asked for.
    pub fn open(process: &Process) -> Result<Option<Self>, Report> {
        let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
        let (apparmor, selinux) = (given(process.apparmor_profile()), given(process.selinux_label()));
        if apparmor.is_none() && selinux.is_none() {
            return Ok(None);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let procfs = nix::fcntl::open("/proc", flags, Mode::empty()).call(|| "open(/proc, O_PATH)".to_owned())?;
        let kind = fstatfs(&procfs).call(|| "fstatfs(/proc)".to_owned())?.filesystem_type();
        if kind != PROC_SUPER_MAGIC {
            return Err(Report::new(Kind::Denied, "the host's /proc is no procfs, and labels are set by one"));
        }
        Ok(Some(Labels { procfs: RefCell::new(Some(procfs)), apparmor, selinux }))
    }

    /// Gives them to the next exec of the calling process; once.
    pub fn set(&self) -> Result<(), Report> {
        let Some(procfs) = self.procfs.take() else { return Ok(()) };
        if let Some(profile) = &self.apparmor {
            // Kernels before 5.8 have the file of the first module only.
            write(&procfs, &["self/attr/apparmor/exec", "self/attr/exec"], &format!("exec {profile}"))
                .step(|| format!("setting the AppArmor profile {profile}"))?;
        }
        if let Some(label) = &self.selinux {
            write(&procfs, &["self/attr/exec"], label).step(|| format!("setting the SELinux label {label}"))?;
        }
        Ok(())
    }
}

/// Writes the first of these files of a `/proc` that there is.
fn write(procfs: &OwnedFd, names: &[&str], text: &str) -> Result<(), SysError> {
    let mut last = Errno::ENOENT;
    for name in names {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match nix::fcntl::openat(procfs, *name, flags, Mode::empty()) {
            Ok(fd) => return fs::File::from(fd).write_all(text.as_bytes()).call(|| format!("write(/proc/{name})")),
            Err(errno) => last = errno,
        }
    }
    Err(SysError::new(format!("open(/proc/{})", names.join(" or ")), last))
}

/// Whether the host has AppArmor switched on.
pub fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// Whether the host has SELinux switched on.
pub fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written where; a kernel without such a module has no such files.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own directory")]
    fn labels_are_written_where_each_module_reads_them() {
        let directory = std::env::temp_dir().join(format!("sublet-labels-{}", std::process::id()));
        let attr = directory.join("self/attr");
        fs::create_dir_all(attr.join("apparmor")).expect("a new directory");
        let labels = |apparmor: &str, selinux: &str| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let procfs = nix::fcntl::open(&directory, flags, Mode::empty()).expect("it is there");
            let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            Labels { procfs: RefCell::new(Some(procfs)), apparmor: given(apparmor), selinux: given(selinux) }
        };
        let told = |name: &str| fs::read_to_string(attr.join(name)).unwrap_or_default();
        for name in ["exec", "apparmor/exec"] {
            fs::write(attr.join(name), "").expect("the directory is ours");
        }
        assert!(labels("profile", "user:role:type:s0").set().is_ok());
        assert_eq!((told("apparmor/exec").as_str(), told("exec").as_str()), ("exec profile", "user:role:type:s0"));
        // A kernel with one module only.
        fs::remove_file(attr.join("apparmor/exec")).expect("it is there");
        fs::write(attr.join("exec"), "").expect("the directory is ours");
        assert!(labels("profile", "").set().is_ok());
        assert_eq!(told("exec"), "exec profile");
        fs::remove_file(attr.join("exec")).expect("it is there");
        let error = labels("profile", "").set().map_err(|report| report.lines().join(": "));
        let error = error.expect_err("there is no such file");
        assert!(error.contains("AppArmor profile profile") && error.contains("ENOENT"), "{error}");
        fs::remove_dir_all(&directory).expect("the directory is ours");
    }

    #[test]
    fn lists_of_numbers_are_the_kernels() {
        let read = |list| numbers(list, 64).ok().map(Vec::from_iter);
        assert_eq!(read("0-3,7"), Some(vec![0, 1, 2, 3, 7]));
        assert_eq!(read(" 5 "), Some(vec![5]));
        assert_eq!(read(""), Some(vec![]));
        for bad in ["3-1", "a", "1-", "-1", "64", "0-99999999999999999999"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(mask("0,64-65").ok(), Some(vec![1, 3]));
    }

    #[test]
    fn a_list_takes_no_more_memory_than_there_are_numbers() {
        assert_eq!(numbers(&vec!["0-63"; 64].join(","), 64).map(|found| found.len()).ok(), Some(64));
        let error = numbers(&"0-1023,".repeat(1 << 20), 1024).map_err(|report| report.lines().join(""));
        assert!(error.is_err_and(|words| words.len() < 300));
    }
}
