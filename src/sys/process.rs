//! Making processes by `clone3(2)`, naming them for good by pidfd or by start time, reading how they ended.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use bitflags::bitflags;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

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
    let result = check(result, || format!("clone3({flags:?}, into cgroup {})", cgroup.is_some()));
    match result {
        // Linux before 5.3, or a filter of the surrounding container: those of Docker and systemd answer so.
        Err(error) if matches!(error.errno(), Errno::ENOSYS | Errno::EPERM) && clone3_is_refused() => {
            return fork_by_clone(flags, cgroup, child);
        }
        _ => {}
    }
    match result? {
        0 => {
            let code = child();
            // SAFETY: ends the child at once without running the parent's exit handlers a second time.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: on success the kernel stored a fresh descriptor, owned by nobody else.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Whether it is the call that is refused, and not what was asked of it: no size of its argument is this small.
fn clone3_is_refused() -> bool {
    // SAFETY: the size is refused (`EINVAL`) before the null pointer is read.
    let result = unsafe { libc::syscall(SYS_CLONE3, std::ptr::null::<CloneArgs>(), 0) };
    !matches!(check(result, String::new), Err(error) if error.errno() == Errno::EINVAL)
}

/// [`fork`] by `clone(2)`, with `CLONE_PIDFD` of Linux 5.2. The child is not born in the cgroup but moved there before it
/// goes on, and makes a new cgroup namespace itself, since that begins where a process stands.
fn fork_by_clone(flags: Flags, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> Result<Child> {
    let late = if cgroup.is_some() { flags & Flags::NEWCGROUP } else { Flags::empty() };
    let (gate, opener) = nix::unistd::pipe2(OFlag::O_CLOEXEC).call(|| "pipe2()".to_owned())?;
    let mut pidfd: RawFd = -1;
    let exit_signal = if flags.contains(Flags::PARENT) { 0 } else { libc::SIGCHLD as u64 };
    let bits = (flags - late).bits() | CLONE_PIDFD | exit_signal;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: as for clone3(2): no CLONE_VM, one thread, a null stack means the same addresses in the copy. The kernel
    // writes one int to the address of `pidfd`, the third argument on every architecture.
    let result = unsafe { libc::syscall(libc::SYS_clone, bits, none, std::ptr::from_mut(&mut pidfd), none, none) };
    let pid = check(result, || format!("clone({flags:?})"))?;
    if pid == 0 {
        drop(opener);
        // Without the byte the parent has failed, or is dead.
        let open = matches!(nix::unistd::read(&gate, &mut [0]), Ok(1));
        let joined = late.is_empty() || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).is_ok();
        drop(gate);
        let code = if open && joined { child() } else { 125 };
        // SAFETY: ends the child at once without running the parent's exit handlers a second time.
        unsafe { libc::_exit(code) }
    }
    let pid = pid as i32;
    if pidfd < 0 {
        return Err(SysError::new("clone(CLONE_PIDFD), which needs Linux 5.2", Errno::ENOSYS));
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let made = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    let moved = cgroup.map_or(Ok(()), |cgroup| {
        let procs = nix::fcntl::openat(cgroup, "cgroup.procs", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
        let procs = procs.call(|| "open(cgroup.procs)".to_owned())?;
        nix::unistd::write(&procs, pid.to_string().as_bytes()).map(drop).call(|| format!("write(cgroup.procs, {pid})"))
    });
    if let Err(error) = moved {
        drop(opener);
        // With `Flags::PARENT` it is another's to reap; why it could not be moved is the answer either way.
        let _ = reap(made.pidfd.as_fd(), true);
        return Err(error);
    }
    // A child that has been killed meanwhile is told of by its pidfd.
    let _ = nix::unistd::write(&opener, &[0]);
    Ok(made)
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

/// The parent of the process whose `/proc/PID/` this is.
pub fn parent(process: BorrowedFd<'_>) -> Result<i32> {
    Ok(stat_field(&format!("/proc/self/fd/{}/stat", process.as_raw_fd()), 4)? as i32)
}

/// Whether a process has ended and only waits to be reaped, or is gone altogether.
pub fn is_zombie(pid: i32) -> bool {
    let text = bytes_of(&format!("/proc/{pid}/stat")).unwrap_or_default();
    state_of(&String::from_utf8_lossy(&text)).is_none_or(|state| matches!(state, b'Z' | b'X'))
}

/// `PF_EXITING` of linux/sched.h, in field 9 of a stat file.
const PF_EXITING: u64 = 0x4;

/// What the stat file of a process says at one moment, proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// As [`start_time`] tells it.
    pub start_time: u64,
    /// As [`is_zombie`] tells it.
    pub is_zombie: bool,
    /// It is at its end, and runs nothing of its own any more.
    pub is_exiting: bool,
}

/// Looks at a process; `None` when there is none.
pub fn look(pid: i32) -> Option<Look> {
    let text = bytes_of(&format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    Some(Look {
        start_time: field_of(&text, 22)?,
        is_zombie: matches!(state_of(&text)?, b'Z' | b'X'),
        is_exiting: field_of(&text, 9)? & PF_EXITING != 0,
    })
}

/// Whether a process has done the last of its own, and may wait in the kernel for others before its end is told: the first one of
/// a pid namespace for all others in it to be reaped (`zap_pid_ns_processes`), which a parent outside may never do. Until then
/// poll(2) says nothing, and neither do its namespaces, which it has let go of. False when there is no such process.
pub fn is_held_up(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut sleeps = false;
    for task in tasks.flatten() {
        // A thread that is gone meanwhile has nothing to say.
        let text = bytes_of(&task.path().join("stat").to_string_lossy()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if field_of(&text, 9).is_some_and(|flags| flags & PF_EXITING == 0) {
            return false;
        }
        sleeps |= state_of(&text) == Some(b'S');
    }
    sleeps
}

/// Whether a process has executed a program since it was forked, also one that has ended and waits to be reaped:
/// `PF_FORKNOEXEC` (linux/sched.h) in field 9 of its stat file. The kernel clears it before it closes what is close-on-exec.
/// `ENOENT` when there is no such process.
pub fn has_executed(pid: i32) -> Result<bool> {
    const PF_FORKNOEXEC: u64 = 0x40;
    Ok(stat_field(&format!("/proc/{pid}/stat"), 9)? & PF_FORKNOEXEC == 0)
}

/// The state in a stat file, proc_pid_stat(5).
fn state_of(text: &str) -> Option<u8> {
    text.rfind(')').and_then(|end| text.as_bytes().get(end + 2)).copied()
}

/// A stat file: the name in it may be any bytes.
fn bytes_of(path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(crate::file::SMALL);
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A numeric field of a stat file, counted from 1; the second one is in parentheses and may contain anything.
fn stat_field(path: &str, number: usize) -> Result<u64> {
    let text = bytes_of(path).call(|| format!("read({path:?})"))?;
    field_of(&String::from_utf8_lossy(&text), number)
        .ok_or_else(|| SysError::new(format!("field {number} of {path}"), Errno::EINVAL))
}

fn field_of(text: &str, number: usize) -> Option<u64> {
    let rest = text.get(text.rfind(')')? + 2..)?;
    rest.split(' ').nth(number.checked_sub(3)?)?.trim().parse().ok()
}

/// The boot's random id, `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(crate::file::read_text(path).call(|| format!("read({path:?})"))?.trim().to_owned())
}

/// A descriptor of a process by pid: `pidfd_open(2)`, Linux 5.3. `ESRCH` when it is gone.
///
/// Where that call is refused, it is the directory `/proc/PID`, which takes signals as a pidfd does (`pidfd_send_signal(2)`)
/// and becomes useless when the process is reaped; but poll(2) says nothing about it: see [`wait_end`] and [`has_ended`].
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(SYS_PIDFD_OPEN, pid, 0) };
    let fd = match check(fd, || format!("pidfd_open({pid})")) {
        Err(error) if matches!(error.errno(), Errno::ENOSYS | Errno::EPERM) => {
            let path = format!("/proc/{pid}");
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let directory = nix::fcntl::open(path.as_str(), flags, Mode::empty());
            // In the words of the call that it stands in for.
            let directory = directory.map_err(|errno| if errno == Errno::ENOENT { Errno::ESRCH } else { errno });
            return directory.call(|| format!("open({path:?})"));
        }
        fd => fd?,
    };
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

/// Whether the process of a descriptor from [`pidfd_open`] has ended. It need not be a child.
pub fn has_ended(process: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    if is_directory(process) {
        let stat = nix::fcntl::openat(process, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let mut text = String::new();
        let read = stat.map(std::fs::File::from).is_ok_and(|mut stat| stat.read_to_string(&mut text).is_ok());
        return !read || state_of(&text).is_none_or(|state| matches!(state, b'Z' | b'X'));
    }
    poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits for the end of a process, which need not be a child; false when it took longer than `limit`, if there is one.
pub fn wait_end(process: BorrowedFd<'_>, limit: Option<Duration>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    /// How often one is looked at that nothing tells of.
    const PAUSE: Duration = Duration::from_millis(10);
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
    if is_directory(process) {
        while !has_ended(process) {
            if left().is_some_and(|left| left.is_zero()) {
                return false;
            }
            std::thread::sleep(left().map_or(PAUSE, |left| left.min(PAUSE)));
        }
        return true;
    }
    loop {
        let left = left();
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return false,
            Ok(0) | Err(_) => {}
            Ok(_) => return true,
        }
    }
}

/// Whether poll(2) tells nothing of this process: see [`pidfd_open`].
pub fn is_directory(process: BorrowedFd<'_>) -> bool {
    use nix::sys::stat::SFlag;
    nix::sys::stat::fstat(process).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
}

/// Closes every descriptor from `first` up: `close_range(2)`, Linux 5.9, or one by one.
pub fn close_from(first: RawFd) -> Result<()> {
    each_from(first, 0, "", &mut |number| {
        // SAFETY: callers use this in a process that owns no descriptor object above `first` any more. EBADF for most.
        unsafe { libc::close(number) };
    })
}

/// Marks every descriptor from `first` up close-on-exec: `close_range(2)` with `CLOSE_RANGE_CLOEXEC`, Linux 5.11, or one
/// by one.
pub fn cloexec_from(first: RawFd) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    each_from(first, CLOSE_RANGE_CLOEXEC, ", CLOEXEC", &mut |number| {
        // SAFETY: changes a flag only, every descriptor stays open for its owner. EBADF for most.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    })
}

fn each_from(first: RawFd, flags: libc::c_uint, word: &str, alone: &mut dyn FnMut(RawFd)) -> Result<()> {
    // SAFETY: no pointers; the callers answer for what becomes of the descriptors.
    let result = unsafe { libc::syscall(SYS_CLOSE_RANGE, first as libc::c_uint, libc::c_uint::MAX, flags) };
    match check(result, || format!("close_range({first}, MAX{word})")) {
        // Older kernels, and those that do not know the flag.
        Err(error) if matches!(error.errno(), Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => {}
        result => return result.map(drop),
    }
    for number in first..descriptors_end()? {
        alone(number);
    }
    Ok(())
}

/// A number above that of every open descriptor: the size of their table, proc_pid_status(5). Where no procfs tells it (a
/// listing could be a container's), the limit of open files, under which all of ours were opened.
fn descriptors_end() -> Result<RawFd> {
    use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
    let status = std::fs::File::open("/proc/self/status").ok();
    let status = status.filter(|file| fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC));
    let mut text = String::new();
    let read = status.is_some_and(|mut status| status.read_to_string(&mut text).is_ok());
    let size = text.lines().filter(|_| read).find_map(|line| line.strip_prefix("FDSize:")?.trim().parse().ok());
    if let Some(size) = size {
        return Ok(size);
    }
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .call(|| "getrlimit(NOFILE)".to_owned())?;
    Ok(RawFd::try_from(soft).unwrap_or(RawFd::MAX).max(1024))
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
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        match wait_child(libc::P_PIDFD, process.as_raw_fd() as libc::id_t, flags) {
            Err(error) if error.errno() == Errno::EINTR => {}
            ended => return Ok(ended?.map(|(_, exit)| exit)),
        }
    }
}

/// How a process has ended that somebody else has reaped: `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, Linux 6.15, of a pidfd that
/// was opened before that. `None` as long as nobody has reaped it, and before Linux 6.15 while it runs; an error where it
/// cannot be learnt (any more).
pub fn exit_of(process: BorrowedFd<'_>) -> Result<Option<Exit>> {
    // SAFETY: a structure of integers, for which zeroes are values.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = libc::PIDFD_INFO_EXIT.into();
    // SAFETY: the request writes at most as many bytes as its number says, which are those of this live structure.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    check(result.into(), || "ioctl(PIDFD_GET_INFO)".to_owned())?;
    if info.mask & u64::from(libc::PIDFD_INFO_EXIT) == 0 {
        return Ok(None);
    }
    // As wait(2) tells it.
    let signal = libc::WTERMSIG(info.exit_code);
    Ok(Some(if signal == 0 { Exit::Code(libc::WEXITSTATUS(info.exit_code)) } else { Exit::Signal(signal) }))
}

/// Reaps any one child that has ended, and tells its pid; `None` while all run. `ECHILD` when there is none.
pub fn reap_any() -> Result<Option<(i32, Exit)>> {
    wait_child(libc::P_ALL, 0, libc::WNOHANG)
}

/// `waitid(2)` for the end of a child. nix's reaps one that a real-time signal has ended, has no word for the signal, and
/// answers with an error that the child cannot be asked about again.
fn wait_child(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> Result<Option<(i32, Exit)>> {
    // SAFETY: a C struct of numbers and pointers, all of which may be zero.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills one live, exclusively borrowed siginfo.
    let result = unsafe { libc::waitid(kind, id, std::ptr::from_mut(&mut info), libc::WEXITED | flags) };
    check(result.into(), || format!("waitid({kind}, {id})"))?;
    // SAFETY: waitid(2) fills the fields of SIGCHLD, or leaves the zeroes when no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
    Ok((pid != 0).then_some((pid, exit)))
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

/// Has the program that `command` starts killed when the calling thread ends, by whatever (`PR_SET_PDEATHSIG`), and gives it
/// a mask without the signals that the caller has blocked.
pub fn kill_with_caller(command: &mut Command) {
    let caller = nix::unistd::getpid();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        // One that ended before the kernel was asked is not told of.
        if nix::unistd::getppid() == caller { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec this makes three system calls and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// Waits for one of these signals, which must be blocked, and takes it: its number, which may be that of a real-time one.
pub fn wait_signal(signals: &nix::sys::signal::SigSet) -> Result<i32> {
    // SAFETY: the set is a live one, and no information is asked for.
    let number = unsafe { libc::sigwaitinfo(signals.as_ref(), std::ptr::null_mut()) };
    Ok(check(number.into(), || "sigwaitinfo()".to_owned())? as i32)
}

/// `kill(2)` with any number.
pub fn kill(pid: i32, number: i32) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, number) }.into(), || format!("kill({pid}, {number})"))?;
    Ok(())
}

/// Sets the OOM score adjustment of a process; lowering it below the inherited value is refused (`EACCES`).
pub fn set_oom_score_adj(pid: i32, value: i32) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    std::fs::write(&path, value.to_string()).call(|| format!("write({path:?}, {value})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::zombie_processes, reason = "it is reaped by what is tested")]
    fn how_a_child_ended_is_told_whatever_the_signal() {
        for (script, exit) in
            [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal(9)), ("kill -40 $$", Exit::Signal(40))]
        {
            let child = Command::new("sh").args(["-c", script]).spawn().expect("sh is installed");
            let process = pidfd_open(child.id() as i32).expect("it is not reaped yet");
            assert_eq!(reap(process.as_fd(), true).expect("our own child"), Some(exit), "{script}");
            let again = reap(process.as_fd(), false).expect_err("it is reaped");
            assert_eq!(again.errno(), Errno::ECHILD, "{script}");
        }
    }

    /// Before Linux 6.15 there is nothing to learn, and that is said.
    #[test]
    #[allow(clippy::zombie_processes, reason = "it is reaped by what is tested")]
    fn how_a_process_ended_is_told_after_it_was_reaped() {
        for (script, exit) in [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal(9))] {
            let child = Command::new("sh").args(["-c", script]).spawn().expect("sh is installed");
            let process = pidfd_open(child.id() as i32).expect("it is not reaped yet");
            assert!(wait_end(process.as_fd(), None));
            let before = exit_of(process.as_fd());
            assert!(!matches!(before, Ok(Some(other)) if other != exit), "{script}: {before:?}");
            reap(process.as_fd(), true).expect("our own child");
            match exit_of(process.as_fd()) {
                Ok(told) => assert_eq!(told, Some(exit), "{script}"),
                Err(error) => assert!(matches!(error.errno(), Errno::ENOTTY | Errno::ESRCH), "{script}: {error:?}"),
            }
        }
    }
}
