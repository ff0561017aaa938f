//! Giving up what the network process does not need. In this order: [`enter`] before its tables are made: core dumps
//! and a low descriptor limit, being inspected, gaining privileges, the file system (an empty, read-only root in user
//! and mount namespaces of its own, where the host allows these), every capability; [`filter`] when everything is in
//! place: every system call that the event loop does not make.
//!
//! A role that has started a program ([`crate::helper`]) needs files until then, and has [`of_watcher`] when the program runs.
//!
//! The host's network namespace stays, as sockets are what this process is for; no capability over it is left. Landlock
//! would add nothing: no call that takes a path passes the filter.

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{chdir, pivot_root};
use sys::seccomp::{self, Instruction, Pass, Refusal};
use sys::{Call, SysError};

/// Descriptors that are wanted: all flows at once.
const DESCRIPTORS: u64 = 20_000;

/// Confines the process; returns how many descriptors it may open.
pub fn enter() -> Result<u64, SysError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).call(|| "setrlimit(RLIMIT_CORE, 0)".to_owned())?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).call(|| "getrlimit(RLIMIT_NOFILE)".to_owned())?;
    let soft = hard.min(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).call(|| format!("setrlimit(RLIMIT_NOFILE, {soft})"))?;
    nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
    // Refused where the host limits user namespaces. The system call filter keeps files out of reach all the same.
    let _ = empty_root();
    sys::security::drop_all_capabilities()?;
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    Ok(soft)
}

/// Makes an empty, read-only file system the root of this process alone.
fn empty_root() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    // Any directory does as the place; it is left behind with the old root.
    mount(Some("none"), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=555"))?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// The system calls of the event loop, each with its reason; those of the run-time libraries are [`seccomp::RUN_TIME`].
/// `socket` has two faces, of which one passes.
const ALLOWED: &[(libc::c_long, Pass)] = &[
    // The loop.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, Pass::Always),
    (libc::SYS_epoll_pwait, Pass::Always),
    (libc::SYS_epoll_ctl, Pass::Always),
    // Frames of the TAP device, one a call.
    (libc::SYS_read, Pass::Always),
    (libc::SYS_writev, Pass::Always),
    // Streams and datagrams of flows.
    (libc::SYS_recvfrom, Pass::Always),
    (libc::SYS_sendto, Pass::Always),
    // The control socket, and peeking past what is in flight.
    (libc::SYS_recvmsg, Pass::Always),
    (libc::SYS_sendmsg, Pass::Always),
    // New flows, to the network only.
    (libc::SYS_socket, Pass::OneOf(0, &[libc::AF_INET as u32, libc::AF_INET6 as u32])),
    (libc::SYS_bind, Pass::Always),
    (libc::SYS_connect, Pass::Always),
    (libc::SYS_getsockname, Pass::Always),
    (libc::SYS_accept4, Pass::Always),
    // Accepted sockets are made non-blocking this way; every other request stays out.
    (libc::SYS_ioctl, Pass::OneOf(1, &[libc::FIONBIO as u32])),
    (libc::SYS_getsockopt, Pass::Always),
    (libc::SYS_setsockopt, Pass::Always),
    (libc::SYS_shutdown, Pass::Always),
];

/// What a role that is joined by members does besides: it looks whose user namespace it was shown. By the descriptor alone,
/// whichever call the C library takes for that.
const OF_MEMBERS: &[(libc::c_long, Pass)] =
    &[(libc::SYS_fstat, Pass::Always), (libc::SYS_newfstatat, Pass::OneOf(3, &[libc::AT_EMPTY_PATH as u32]))];

/// The same of a role that waits for the end of a program.
const OF_WATCHER: &[(libc::c_long, Pass)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Pass::Always),
    (libc::SYS_ppoll, Pass::Always),
    // What the program complains of, and the control socket.
    (libc::SYS_read, Pass::Always),
    (libc::SYS_recvmsg, Pass::Always),
    (libc::SYS_sendmsg, Pass::Always),
    // The program's end.
    (libc::SYS_kill, Pass::OneOf(1, &[libc::SIGKILL as u32])),
    (libc::SYS_wait4, Pass::Always),
];

/// How many containers a role serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// One, which it knows.
    One,
    /// Those that join.
    Many,
}

/// Confines all later system calls to [`ALLOWED`] and [`seccomp::RUN_TIME`]. What else is tried fails with `EPERM`: a
/// call of the C library that nobody foresaw costs one operation, not the container's network. With debug assertions
/// it kills, so that tests find such calls.
pub fn filter(serves: Serves) -> Result<(), SysError> {
    seccomp::load(&program(serves))
}

/// Confines a role that has nothing to do any more but to wait for the end of its program.
pub fn of_watcher() -> Result<(), SysError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).call(|| "setrlimit(RLIMIT_CORE, 0)".to_owned())?;
    sys::security::drop_all_capabilities()?;
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    seccomp::load(&allow(OF_WATCHER, &[]))
}

fn program(serves: Serves) -> Vec<Instruction> {
    allow(ALLOWED, if serves == Serves::Many { OF_MEMBERS } else { &[] })
}

fn allow(calls: &[(libc::c_long, Pass)], further: &[(libc::c_long, Pass)]) -> Vec<Instruction> {
    let refusal = if cfg!(debug_assertions) { Refusal::Kills } else { Refusal::Fails(Errno::EPERM) };
    seccomp::allow_list(calls.iter().chain(further).chain(seccomp::RUN_TIME), refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loops_calls_pass() {
        let program = program(Serves::One);
        assert!(!seccomp::passes(&program, libc::SYS_fstat, [0; 6]));
        assert!(seccomp::passes(&self::program(Serves::Many), libc::SYS_fstat, [0; 6]));
        let passes = |number, arguments| seccomp::passes(&program, number, arguments);
        let inet6 = libc::AF_INET6 as u32;
        assert!(passes(libc::SYS_read, [0; 6]) && passes(libc::SYS_exit_group, [0; 6]));
        assert!(passes(libc::SYS_socket, [inet6, 1, 0, 0, 0, 0]));
        assert!(!passes(libc::SYS_socket, [libc::AF_UNIX as u32, 1, 0, 0, 0, 0]));
        assert!(passes(libc::SYS_mmap, [0, 0, 3, 0, 0, 0]) && !passes(libc::SYS_mmap, [0, 0, 7, 0, 0, 0]));
        let watcher = allow(OF_WATCHER, &[]);
        assert!(seccomp::passes(&watcher, libc::SYS_kill, [1, libc::SIGKILL as u32, 0, 0, 0, 0]));
        assert!(!seccomp::passes(&watcher, libc::SYS_kill, [1, libc::SIGSTOP as u32, 0, 0, 0, 0]));
        assert!(!seccomp::passes(&watcher, libc::SYS_socket, [inet6, 1, 0, 0, 0, 0]));
        for number in [libc::SYS_openat, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_setns, libc::SYS_clone] {
            assert!(!passes(number, [0; 6]) && !seccomp::passes(&watcher, number, [0; 6]), "{number}");
        }
    }
}
