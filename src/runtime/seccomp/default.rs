//! The profile of a container for which none is named.
//!
//! Same answers as the default of Docker (its users' images are built against that): everything refused with `EPERM`
//! but what stands here. Stricter in two points: keyrings, which it lets in since 2025, stay refused, because a
//! container shares its user's quota and session keys in the rung with one id; and `AF_ALG` sockets are refused.
//!
//! Calls that a capability opens are listed in [`BY_CAPABILITY`]: with the capability the kernel's own check decides,
//! without it the call is not reachable at all.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::capabilities::bit;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Address families whose sockets are allowed: all but those between the comparisons, `AF_ALG` (38: kernel crypto, a long
/// row of holes, needed by few) and `AF_VSOCK` (40: the channel to a virtual machine's host, which no namespace
/// separates). 32-bit x86 programs reach both through `socketcall`, whose arguments a filter cannot see, and which old
/// and Go programs need.
const FAMILIES: [(LinuxSeccompOperator, u64); 3] = [
    (LinuxSeccompOperator::ScmpCmpLt, 38),
    (LinuxSeccompOperator::ScmpCmpEq, 39),
    (LinuxSeccompOperator::ScmpCmpGt, 40),
];

/// personality(2): Linux, 32-bit uname, no randomisation, both (debuggers, old 32-bit programs), and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Every `CLONE_NEW*` that clone(2) takes: namespaces are made with `CAP_SYS_ADMIN` only.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Always allowed, by what they act on. Whatever they could reach is limited by ids, namespaces and cgroups.
#[rustfmt::skip] // filled lines
const ALLOWED: &[&[&str]] = &[
    // The process's own identity; what it may not become, the kernel refuses.
    &["capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups",
      "getgroups32", "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32", "setfsgid",
      "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setregid",
      "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid",
      "setuid32"],
    // Making, naming, waiting for and ending processes; threads (clone has a rule of its own).
    &["execve", "execveat", "exit", "exit_group", "fork", "get_robust_list", "get_thread_area", "getpgid", "getpgrp",
      "getpid", "getppid", "getsid", "gettid", "kill", "pidfd_open", "pidfd_send_signal", "prctl", "process_mrelease",
      "rseq", "set_robust_list", "set_thread_area", "set_tid_address", "setpgid", "setsid", "tgkill", "tkill", "vfork",
      "wait4", "waitid", "waitpid"],
    // Looking at and steering processes of one's own (ptrace checks; its hole in seccomp was closed in Linux 4.8).
    &["process_vm_readv", "process_vm_writev", "ptrace"],
    // Signals.
    &["alarm", "getitimer", "pause", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
      "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
      "rt_tgsigqueueinfo", "setitimer", "sigaltstack", "signalfd", "signalfd4", "sigprocmask", "sigreturn"],
    // Scheduling and limits: raising them needs capabilities that the user namespace cannot give.
    &["getpriority", "getrlimit", "getrusage", "ioprio_get", "ioprio_set", "prlimit64", "sched_get_priority_max",
      "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
      "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
      "sched_setscheduler", "sched_yield", "setpriority", "setrlimit", "ugetrlimit"],
    // Memory.
    &["brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2",
      "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
      "pkey_alloc", "pkey_free", "pkey_mprotect", "remap_file_pages"],
    // Waiting on memory.
    &["futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake"],
    // Paths: what they name lies inside the container's mount namespace.
    &["access", "chdir", "chmod", "chown", "chown32", "creat", "faccessat", "faccessat2", "fchdir", "fchmodat",
      "fchmodat2", "fchownat", "fstatat64", "futimesat", "getcwd", "lchown", "lchown32", "link", "linkat", "lstat",
      "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2",
      "readlink", "readlinkat", "rename", "renameat", "renameat2", "rmdir", "stat", "stat64", "statfs", "statfs64",
      "statx", "symlink", "symlinkat", "truncate", "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat",
      "utimensat_time64", "utimes"],
    // Extended attributes.
    &["fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "getxattr", "getxattrat", "lgetxattr", "listxattr",
      "listxattrat", "llistxattr", "lremovexattr", "lsetxattr", "removexattr", "removexattrat", "setxattr",
      "setxattrat"],
    // Open files: data and position.
    &["_llseek", "cachestat", "copy_file_range", "fadvise64", "fadvise64_64", "fallocate", "fdatasync", "fsync",
      "ftruncate", "ftruncate64", "getdents", "getdents64", "lseek", "pread64", "preadv", "preadv2", "pwrite64",
      "pwritev", "pwritev2", "read", "readahead", "readv", "sendfile", "sendfile64", "splice", "sync",
      "sync_file_range", "syncfs", "tee", "vmsplice", "write", "writev"],
    // Open files: everything else. ioctl is as wide as the devices that are bound in.
    &["close", "close_range", "dup", "dup2", "dup3", "fchmod", "fchown", "fchown32", "fcntl", "fcntl64", "flock",
      "fstat", "fstat64", "fstatfs", "fstatfs64", "ioctl", "pipe", "pipe2"],
    // Waiting for events.
    &["_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
      "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "fanotify_mark", "inotify_add_watch", "inotify_init",
      "inotify_init1", "inotify_rm_watch", "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select"],
    // Asynchronous I/O of the old kind; io_uring is absent, its work is done past this filter.
    &["io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit"],
    // Sockets (socket itself has a rule of its own; 32-bit x86 reaches all of them through socketcall).
    &["accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv", "recvfrom",
      "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
      "socketcall", "socketpair"],
    // IPC of System V and POSIX queues, inside the IPC namespace.
    &["ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
      "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop",
      "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget"],
    // Time: reading it, sleeping, timers; adjtimex sets only with CAP_SYS_TIME of the initial namespace.
    &["adjtimex", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
      "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "gettimeofday", "nanosleep", "time",
      "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime",
      "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
      "timerfd_settime64", "times"],
    // The machine and its mounts, read only.
    &["getcpu", "getrandom", "listmount", "statmount", "sysinfo", "uname"],
    // Giving rights away.
    &["landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "seccomp"],
    // uprobes return through this one; refused, a traced program dies of SIGILL.
    &["uretprobe"],
];

/// Allowed where the hardware has them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[&str] = &["arch_prctl", "modify_ldt"];
/// Allowed where the hardware has them.
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[&str] =
    &["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"];

/// The ABIs of a 64-bit machine: images with 32-bit programs run too.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
/// The ABIs of a 64-bit machine: images with 32-bit programs run too.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Arch; 2] = [Arch::ScmpArchAarch64, Arch::ScmpArchArm];

/// Allowed with a capability.
#[rustfmt::skip] // filled lines
const BY_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (Capability::SysAdmin, &["bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick",
      "lookup_dcookie", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr",
      "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns",
      "syslog", "umount", "umount2", "unshare"]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

/// The default profile for a container with this mask of capabilities (see [`crate::capabilities`]).
pub fn default_profile(capabilities: u64) -> LinuxSeccomp {
    let mut allowed: Vec<&str> = ALLOWED.concat();
    allowed.extend(ALLOWED_HERE);
    let opened = BY_CAPABILITY.iter().filter(|(capability, _)| capabilities & bit(*capability) != 0);
    opened.for_each(|(_, names)| allowed.extend(*names));

    let mut rules = Vec::new();
    for (operator, family) in FAMILIES {
        let family = argument(operator, family, 0);
        rules.push(rule(&["socket"], LinuxSeccompAction::ScmpActAllow, None, Some(family)));
    }
    for personality in PERSONALITIES {
        let personality = argument(LinuxSeccompOperator::ScmpCmpEq, personality, 0);
        rules.push(rule(&["personality"], LinuxSeccompAction::ScmpActAllow, None, Some(personality)));
    }
    if capabilities & bit(Capability::SysAdmin) == 0 {
        let no_namespace = argument(LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES, 0);
        rules.push(rule(&["clone"], LinuxSeccompAction::ScmpActAllow, None, Some(no_namespace)));
        // Its flags lie in memory, out of a filter's sight; ENOSYS sends libraries to clone.
        rules.push(rule(&["clone3"], LinuxSeccompAction::ScmpActErrno, Some(ENOSYS), None));
    }
    rules.push(rule(&allowed, LinuxSeccompAction::ScmpActAllow, None, None));
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(ARCHITECTURES)
        .syscalls(rules)
        .build()
        .expect("every field of a profile has a default")
}

fn rule(names: &[&str], action: LinuxSeccompAction, errno: Option<u32>, arg: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if let Some(arg) = arg {
        builder = builder.args([arg]);
    }
    builder.build().expect("every field of a rule has a default")
}

/// A comparison of the first argument.
fn argument(op: LinuxSeccompOperator, value: u64, second: u64) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(0_usize).value(value).value_two(second).op(op);
    builder.build().expect("every field of a comparison has a default")
}
