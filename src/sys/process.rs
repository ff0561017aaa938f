//! Making processes by `clone3(2)`, naming them for good by pidfd or by start time, reading how they ended.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bitflags::bitflags;
use nix::errno::Errno;

use crate::error::{Call, Result, SysError, check};

// asm-generic/unistd.h: the same number on every architecture.
const SYS_PIDFD_SEND_SIGNAL: libc::c_long = 424;
const SYS_PIDFD_OPEN: libc::c_long = 434;
const SYS_CLONE3: libc::c_long = 435;
const SYS_CLOSE_RANGE: libc::c_long = 436;

bitflags! {
    /// What a new process does not share with its parent, and how it is made: clone(2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u64 {
        /// The new process becomes a child of the caller's parent; its exit signal is then the caller's own.
        const PARENT = 0x8000;
        /// New mount namespace.
        const NEWNS = 0x2_0000;
        /// New cgroup namespace, rooted at the cgroup the process is born in.
        const NEWCGROUP = 0x200_0000;
        /// New UTS namespace.
        const NEWUTS = 0x400_0000;
        /// New IPC namespace.
        const NEWIPC = 0x800_0000;
        /// New user namespace.
        const NEWUSER = 0x1000_0000;
        /// New PID namespace.
        const NEWPID = 0x2000_0000;
        /// New network namespace.
        const NEWNET = 0x4000_0000;
    }
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h, version 2 (88 bytes, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);

/// A process that was just made.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// A descriptor that stays this process whatever happens to the number.
    pub pidfd: OwnedFd,
}

/// Forks by `clone3(2)`: the child runs `child` on a copy of everything and exits with what it returns.
///
/// The caller must have one thread only, as the copy would inherit locks that nobody releases: `EBUSY` otherwise.
/// With a `cgroup` (an open cgroup v2 directory; Linux 5.7) the child is born in it.
pub fn fork(flags: Flags, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> Result<Child> {
    if thread_count()? != 1 {
        return Err(SysError::new("clone3() in a process with several threads", Errno::EBUSY));
    }
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: flags.bits() | CLONE_PIDFD | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes the caller's own exit signal and refuses another.
        exit_signal: if flags.contains(Flags::PARENT) { 0 } else { libc::SIGCHLD as u64 },
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child gets its own copy of the address space and goes on at this very place, with
    // one thread (checked above), so no lock can be held by a thread that is gone. `args` has the size passed; the
    // kernel writes one int to the address in `pidfd`, which lives until the end of this function.
    let result = unsafe { libc::syscall(SYS_CLONE3, std::ptr::from_ref(&args), size_of::<CloneArgs>()) };
    match check(result, || format!("clone3({flags:?}, into cgroup {})", cgroup.is_some()))? {
        0 => {
            let code = child();
            // SAFETY: ends the child at once without running the parent's exit handlers a second time.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: on success the kernel stored a fresh descriptor, owned by nobody else.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// How many threads this process has: field 20 of `/proc/self/stat`, proc_pid_stat(5).
fn thread_count() -> Result<u64> {
    stat_field("/proc/self/stat", 20)
}

/// When a process started, in clock ticks after boot: field 22 of `/proc/PID/stat`. With pid and boot id it names a
/// process for good. `ENOENT` when there is no such process.
pub fn start_time(pid: i32) -> Result<u64> {
    stat_field(&format!("/proc/{pid}/stat"), 22)
}

/// Whether a process has ended and only waits to be reaped, or is gone altogether.
pub fn is_zombie(pid: i32) -> bool {
    let text = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.rfind(')').and_then(|end| text.as_bytes().get(end + 2)).is_none_or(|state| matches!(state, b'Z' | b'X'))
}

/// A numeric field of a stat file, counted from 1; the second one is in parentheses and may contain anything.
fn stat_field(path: &str, number: usize) -> Result<u64> {
    let text = std::fs::read(path).call(|| format!("read({path:?})"))?;
    let text = String::from_utf8_lossy(&text);
    text.rfind(')')
        .and_then(|end| text.get(end + 2..))
        .and_then(|rest| rest.split(' ').nth(number.checked_sub(3)?))
        .and_then(|field| field.trim().parse().ok())
        .ok_or_else(|| SysError::new(format!("field {number} of {path}"), Errno::EINVAL))
}

/// The boot's random id, `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).call(|| format!("read({path:?})"))?.trim().to_owned())
}

/// A descriptor of a process by pid: `pidfd_open(2)`, Linux 5.3. `ESRCH` when it is gone.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(SYS_PIDFD_OPEN, pid, 0) };
    let fd = check(fd, || format!("pidfd_open({pid})"))?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal through a pidfd (`pidfd_send_signal(2)`, Linux 5.1); signal 0 only asks. `ESRCH` when it has ended.
pub fn pidfd_send_signal(process: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means the same as kill(2); the descriptor is borrowed.
    let result = unsafe { libc::syscall(SYS_PIDFD_SEND_SIGNAL, process.as_raw_fd(), signal, none, 0) };
    check(result, || format!("pidfd_send_signal({signal})"))?;
    Ok(())
}

/// Closes every descriptor from `first` up: `close_range(2)`, Linux 5.9.
pub fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: callers use this only right before exec or in a process that owns no descriptor object above `first`.
    let result = unsafe { libc::syscall(SYS_CLOSE_RANGE, first as libc::c_uint, libc::c_uint::MAX, 0) };
    check(result, || format!("close_range({first}, MAX)"))?;
    Ok(())
}

/// Marks every descriptor from `first` up close-on-exec: `close_range(2)` with `CLOSE_RANGE_CLOEXEC`, Linux 5.11.
pub fn cloexec_from(first: RawFd) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: no pointers; changes a flag only, every descriptor stays open for its owner.
    let result =
        unsafe { libc::syscall(SYS_CLOSE_RANGE, first as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    check(result, || format!("close_range({first}, MAX, CLOEXEC)"))?;
    Ok(())
}

/// Makes `fd` also be the descriptor number `number`, not close-on-exec: `dup2(2)`, or clears the flag when they are
/// the same already.
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    if fd.as_raw_fd() == number {
        return nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .map(drop)
            .call(|| format!("fcntl({number}, F_SETFD, 0)"));
    }
    // SAFETY: callers give numbers that no descriptor object of this process owns (stdio, or slots they have freed).
    let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    check(result.into(), || format!("dup2({}, {number})", fd.as_raw_fd()))?;
    Ok(())
}

/// Whether the program was given a descriptor of this number, or has opened one.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: reads a flag; EBADF when there is none.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Makes the descriptor of this number, which the caller of the program has handed on, outlive an exec. `EBADF` when
/// there is none.
pub fn keep_over_exec(number: RawFd) -> Result<()> {
    // SAFETY: changes a flag only; no descriptor object of ours depends on it.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    check(result.into(), || format!("fcntl({number}, F_SETFD, 0)"))?;
    Ok(())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The code as a shell shows it: 128 + n for signal n.
    pub fn shell_code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Reaps a child by its pidfd if it has ended: `waitid(P_PIDFD)`, Linux 5.4. `None` while it runs (with `block` false).
pub fn reap(process: BorrowedFd<'_>, block: bool) -> Result<Option<Exit>> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let flags = WaitPidFlag::WEXITED | if block { WaitPidFlag::empty() } else { WaitPidFlag::WNOHANG };
    loop {
        return match waitid(Id::PIDFd(process), flags) {
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Exit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Exit::Signal(signal as i32))),
            Ok(_) => Ok(None),
            Err(errno) => Err(errno).call(|| "waitid(P_PIDFD)".to_owned()),
        };
    }
}

/// Gives every signal its default action and blocks none: what a new program expects, whatever our ancestors ignore.
pub fn reset_signals() -> Result<()> {
    nix::sys::signal::SigSet::empty()
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)
        .call(|| "sigprocmask(SIG_SETMASK, none)".to_owned())?;
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is no code of ours. SIGKILL, SIGSTOP and the C library's own signals refuse, as they should.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    Ok(())
}

/// Sets the OOM score adjustment of a process; lowering it below the inherited value is refused (`EACCES`).
pub fn set_oom_score_adj(pid: i32, value: i32) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    std::fs::write(&path, value.to_string()).call(|| format!("write({path:?}, {value})"))
}
