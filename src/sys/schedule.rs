//! Attributes that a process keeps over exec and that nix has no call for: scheduling policy, I/O priority, memory
//! policy, and the resource limits of another process.

use nix::errno::Errno;
use nix::sys::resource::Resource;

use crate::error::{Result, SysError, check};

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// linux/ioprio.h.
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// `struct sched_attr` of linux/sched/types.h, version 0 (48 bytes).
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const _: () = assert!(size_of::<SchedAttr>() == 48);

/// What sched(7) lets a process ask for; times in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// For `SCHED_DEADLINE`.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`.
    pub period: u64,
}

/// `sched_setattr(2)` for the calling process. `EPERM` without the right (`CAP_SYS_NICE` of the host).
pub fn set_scheduling(wanted: &Scheduling) -> Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    };
    // SAFETY: the kernel reads `size` bytes of a live `repr(C)` struct of exactly that size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attr), 0) };
    check(result, || format!("sched_setattr({wanted:?})"))?;
    Ok(())
}

/// `ioprio_set(2)` for the thread `pid` (0 is the caller): `class` is `IOPRIO_CLASS_*`, `level` 0 to 7. `EPERM` without the
/// right (`CAP_SYS_NICE` of the host for the class realtime).
pub fn set_io_priority(pid: i32, class: u32, level: u32) -> Result<()> {
    let value = class << IOPRIO_CLASS_SHIFT | level;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, value) };
    check(result, || format!("ioprio_set({pid}, class {class}, level {level})"))?;
    Ok(())
}

/// `set_mempolicy(2)` for the calling process: `mode` is `MPOL_*` with its flags, `nodes` a mask by node number.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<()> {
    // The kernel reads one bit less than it is told.
    let bits = nodes.len() as u64 * 64 + 1;
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: `mask` is null, with which the kernel reads nothing, or has at least `bits - 1` readable bits.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, if nodes.is_empty() { 0 } else { bits }) };
    check(result, || format!("set_mempolicy({mode:#x}, {nodes:x?})"))?;
    Ok(())
}

/// Reads a limit of the process `pid` (0 is the caller): soft and hard value. `prlimit(2)`.
pub fn limit(pid: i32, resource: Resource) -> Result<(u64, u64)> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit only reads; the kernel fills one live, exclusively borrowed rlimit.
    let result = unsafe { libc::prlimit(pid, resource as _, std::ptr::null(), std::ptr::from_mut(&mut now)) };
    check(result.into(), || format!("prlimit({pid}, {resource:?})"))?;
    Ok((now.rlim_cur, now.rlim_max))
}

/// Sets a limit of the process `pid` (0 is the caller). `EPERM` when the hard limit would rise.
pub fn set_limit(pid: i32, resource: Resource, soft: u64, hard: u64) -> Result<()> {
    if soft > hard {
        return Err(SysError::new(
            format!("{resource:?}: soft limit {soft} above the hard limit {hard}"),
            Errno::EINVAL,
        ));
    }
    let wanted = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one live rlimit and writes nothing to a null old one.
    let result = unsafe { libc::prlimit(pid, resource as _, std::ptr::from_ref(&wanted), std::ptr::null_mut()) };
    check(result.into(), || format!("prlimit({pid}, {resource:?}, {soft}, {hard})"))?;
    Ok(())
}
