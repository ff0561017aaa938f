//! Giving up what the fs role does not need. In this order: [`enter`] when the mount is made: core dumps, being inspected,
//! gaining privileges, every capability; [`files`] when the view is open: every file but those that it serves; [`filter`]
//! before the threads that serve are made: every system call that they do not make. The first is the keeper's as well, who
//! makes servers.
//!
//! The filter keeps sockets, processes and all of the machine's set-up out of reach, and, for the views that only read,
//! opening for writing. Which files are meant it cannot see: those are Landlock's (Linux 5.13). Without Landlock a server
//! that was taken over could read what the user can read, no more.

use std::os::fd::AsFd;

use base::{Ladder, Trial};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, PathBeneath, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use sys::seccomp::{self, Instruction, Pass, Refusal};
use sys::{Call, SysError, security};

use crate::Driver;

/// The best rung of [`confinement`].
const LANDLOCK: &str = "Landlock";

/// What is served decides what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The objects of an image are read.
    Image,
    /// The same, and a container's own directory is written.
    ImageAndUpper,
    /// Everything is read, as the user.
    Host,
}

/// Gives up everything that is not files or calls.
pub(crate) fn enter() -> Result<(), SysError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).call(|| "setrlimit(RLIMIT_CORE, 0)".to_owned())?;
    nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
    security::drop_all_capabilities()?;
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())
}

/// Leaves only these directories: `read` to be read, `written` to be changed as well. Returns why Landlock cannot do that,
/// if so.
pub(crate) fn files(read: &[&dyn AsFd], written: Option<&dyn AsFd>) -> Option<String> {
    match restrict(read, written) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::NotEnforced, landlock, .. }) => Some(absent(landlock)),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn absent(landlock: LandlockStatus) -> String {
    let why = match landlock {
        LandlockStatus::NotEnabled => "it is not enabled (EOPNOTSUPP)",
        LandlockStatus::NotImplemented => "the kernel has none (ENOSYS)",
        LandlockStatus::Available { .. } => "the kernel's is too old",
    };
    why.to_owned()
}

/// What confines a server, where `failure` is what [`files`] returned.
pub(crate) fn ladder(failure: Option<String>) -> Ladder {
    let chosen = if failure.is_some() { "the filter of system calls alone" } else { LANDLOCK };
    let fix = failure.is_some().then(|| "boot a kernel of 5.19 or later with `landlock` in its `lsm=`".to_owned());
    Ladder { part: "file server", trials: vec![Trial { rung: LANDLOCK, failure }], chosen: Some(chosen), fix }
}

/// How the server of a view, or of a container's own overlay, is confined here; found out without confining anybody.
pub fn confinement(driver: Driver) -> Ladder {
    let access = if driver == Driver::Fuse { AccessFs::Refer } else { AccessFs::ReadFile };
    let tried = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(access);
    ladder(tried.and_then(Ruleset::create).err().map(|error| error.to_string()))
}

fn restrict(read: &[&dyn AsFd], written: Option<&dyn AsFd>) -> Result<RestrictionStatus, RulesetError> {
    let all = AccessFs::from_all(ABI::V3);
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    // A grown copy moves from one directory of the upper to another, which the first version of Landlock always forbids.
    let level = if written.is_some() { CompatLevel::HardRequirement } else { CompatLevel::BestEffort };
    let ruleset = Ruleset::default().set_compatibility(level).handle_access(AccessFs::Refer)?;
    let ruleset = ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(all)?;
    let mut created = ruleset.create()?;
    for directory in read {
        created = created.add_rule(PathBeneath::new(directory.as_fd(), reading))?;
    }
    if let Some(directory) = written {
        created = created.add_rule(PathBeneath::new(directory.as_fd(), all & !AccessFs::Execute))?;
    }
    created.restrict_self()
}

/// Bits of open(2) that ask for more than reading.
const MORE_THAN_READING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;

/// What every server calls, each with its reason; what the run-time libraries call is [`seccomp::RUN_TIME`].
const SERVING: &[(libc::c_long, Pass)] = &[
    // Requests of the kernel and their answers.
    (libc::SYS_read, Pass::Always),
    (libc::SYS_writev, Pass::Always),
    // That requests are to be sent again; what was read of an image, into the memory of its keeper.
    (libc::SYS_write, Pass::Always),
    // The one word to the keeper.
    (libc::SYS_sendmsg, Pass::Always),
    // Sizes and times.
    (libc::SYS_fstat, Pass::Always),
    (libc::SYS_newfstatat, Pass::Always),
    (libc::SYS_statx, Pass::Always),
    (libc::SYS_fstatfs, Pass::Always),
    // Opening for reading as musl does it: mountinfo, directories of the host.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, Pass::Without(1, MORE_THAN_READING)),
    // Contents, and where they have holes.
    (libc::SYS_pread64, Pass::Always),
    (libc::SYS_lseek, Pass::Always),
    // The standard library's own check, with debug assertions, of what it is about to close; musl's of what it has opened.
    (libc::SYS_fcntl, Pass::OneOf(1, &[libc::F_GETFD as u32, libc::F_SETFD as u32])),
    // Threads that serve: made, named, ended. What clone3(2) is asked for cannot be seen, and all who use it know clone(2).
    (libc::SYS_clone, Pass::With(0, (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u32)),
    (libc::SYS_clone3, Pass::Fails(Errno::ENOSYS)),
    (libc::SYS_prctl, Pass::OneOf(0, &[libc::PR_SET_NAME as u32])),
    (libc::SYS_set_robust_list, Pass::Always),
    (libc::SYS_rseq, Pass::Always),
    (libc::SYS_gettid, Pass::Always),
    (libc::SYS_sched_getaffinity, Pass::Always),
    (libc::SYS_sched_yield, Pass::Always),
    (libc::SYS_rt_sigaction, Pass::Always),
    (libc::SYS_exit, Pass::Always),
];

/// What a view of an image or of the host calls as well: opening for reading.
const READING: &[(libc::c_long, Pass)] = &[(libc::SYS_openat, Pass::Without(2, MORE_THAN_READING))];

/// What a view of an image calls as well: what is known to be read is asked for ahead.
const AHEAD: &[(libc::c_long, Pass)] = &[(libc::SYS_fadvise64, Pass::OneOf(3, &[libc::POSIX_FADV_WILLNEED as u32]))];

/// What a view of the host calls as well.
const HOST: &[(libc::c_long, Pass)] = &[
    // By a path without links. Its flags are out of the filter's sight; the code asks for reading only.
    (libc::SYS_openat2, Pass::Always),
    (libc::SYS_readlinkat, Pass::Always),
    // Directories, and `mountinfo`.
    (libc::SYS_getdents64, Pass::Always),
    // Whether that has changed.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Pass::Always),
    (libc::SYS_ppoll, Pass::Always),
    // The journal of the nodes. Beside it only the list of closed directories is open for writing.
    (libc::SYS_pwrite64, Pass::Always),
    (libc::SYS_fallocate, Pass::Always),
];

/// What our writable overlay calls instead of [`READING`].
const WRITING: &[(libc::c_long, Pass)] = &[
    // Data files and logs.
    (libc::SYS_openat, Pass::Always),
    (libc::SYS_mkdirat, Pass::Always),
    (libc::SYS_unlinkat, Pass::Always),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_renameat, Pass::Always),
    (libc::SYS_renameat2, Pass::Always),
    (libc::SYS_pwrite64, Pass::Always),
    (libc::SYS_ftruncate, Pass::Always),
    (libc::SYS_fallocate, Pass::Always),
    (libc::SYS_utimensat, Pass::Always),
    // Copy-up, by sharing blocks where the file system can.
    (libc::SYS_copy_file_range, Pass::Always),
    (libc::SYS_ioctl, Pass::OneOf(1, &[libc::FICLONE as u32])),
    // What was promised to be durable.
    (libc::SYS_fsync, Pass::Always),
    (libc::SYS_fdatasync, Pass::Always),
    (libc::SYS_syncfs, Pass::Always),
    (libc::SYS_sync_file_range, Pass::Always),
];

/// Confines all later system calls of this thread, and of those it makes, to what serving needs. What else is tried fails
/// with `EPERM`: a call of the C library that nobody foresaw costs one request, not the containers. With debug assertions it
/// kills, so that tests find such calls.
pub(crate) fn filter(needs: Needs) -> Result<(), SysError> {
    seccomp::load(&program(needs))
}

fn program(needs: Needs) -> Vec<Instruction> {
    let refusal = if cfg!(debug_assertions) { Refusal::Kills } else { Refusal::Fails(Errno::EPERM) };
    let further: &[&[_]] = match needs {
        Needs::Image => &[READING, AHEAD],
        Needs::ImageAndUpper => &[WRITING],
        Needs::Host => &[READING, HOST],
    };
    let calls = SERVING.iter().chain(further.iter().copied().flatten()).chain(seccomp::RUN_TIME);
    seccomp::allow_list(calls, refusal)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// In a thread of its own, since Landlock and no_new_privs hold for the thread that asks.
    #[test]
    fn only_what_is_served_can_be_opened() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        for name in ["read", "written", "written/a", "written/b", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "x").unwrap();
        }
        let confined = std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                nix::sys::prctl::set_no_new_privs().unwrap();
                let (read, written) = (File::open(path("read")).unwrap(), File::open(path("written")).unwrap());
                if files(&[&read], Some(&written)).is_some() {
                    return false;
                }
                let denied = |result: std::io::Result<()>| {
                    result.is_err_and(|error| error.raw_os_error() == Some(Errno::EACCES as i32))
                };
                assert_eq!(fs::read(path("read/file")).unwrap(), b"x");
                assert!(denied(fs::write(path("read/file"), "y")) && denied(fs::remove_file(path("read/file"))));
                fs::write(path("written/a/new"), "y").unwrap();
                fs::rename(path("written/a/new"), path("written/b/new")).unwrap();
                assert!(denied(fs::read(path("other/file")).map(drop)) && denied(fs::read("/etc/passwd").map(drop)));
                assert!(denied(fs::write(path("other/new"), "y")));
                true
            });
            confined.join().unwrap()
        });
        if !confined {
            fixture::skip("this kernel has no Landlock of version 2");
        }
    }

    /// In a thread of its own, whose kernel is made one without Landlock.
    #[test]
    fn a_kernel_without_landlock_is_told() {
        let step = |code, jump_true, jump_false, operand| Instruction { code, jump_true, jump_false, operand };
        // Load the number; landlock_create_ruleset(2) fails with ENOSYS; everything else is allowed.
        let without = [
            step(0x20, 0, 0, 0),
            step(0x15, 0, 1, libc::SYS_landlock_create_ruleset as u32),
            step(0x06, 0, 0, 0x0005_0000 | Errno::ENOSYS as u32),
            step(0x06, 0, 0, 0x7fff_0000),
        ];
        let scratch = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let told = scope.spawn(|| {
                nix::sys::prctl::set_no_new_privs().unwrap();
                seccomp::load(&without).unwrap();
                let directory = File::open(scratch.path()).unwrap();
                let read: [&dyn AsFd; 1] = [&directory];
                [
                    ladder(files(&read, None)),
                    ladder(files(&read, Some(&directory))),
                    confinement(Driver::Overlay),
                    confinement(Driver::Fuse),
                ]
            });
            for found in told.join().unwrap() {
                let line = found.step_down().unwrap();
                assert!(line.starts_with("file server: Landlock is not possible: "), "{line}");
                assert!(line.contains("using the filter of system calls alone (") && line.contains("lsm="), "{line}");
            }
        });
        if confinement(Driver::Fuse).step_down().is_none() {
            assert_eq!(confinement(Driver::Overlay).step_down(), None);
        }
    }

    #[test]
    fn only_serving_passes() {
        let write = libc::O_WRONLY as u32;
        for needs in [Needs::Image, Needs::ImageAndUpper, Needs::Host] {
            let program = program(needs);
            let passes = |number, arguments| seccomp::passes(&program, number, arguments);
            assert!(passes(libc::SYS_read, [0; 6]) && passes(libc::SYS_openat, [0; 6]));
            assert_eq!(passes(libc::SYS_openat, [0, 0, write, 0, 0, 0]), needs == Needs::ImageAndUpper);
            assert_eq!(passes(libc::SYS_unlinkat, [0; 6]), needs == Needs::ImageAndUpper);
            assert_eq!(passes(libc::SYS_openat2, [0; 6]), needs == Needs::Host);
            let thread = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u32;
            assert!(passes(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]) && !passes(libc::SYS_clone, [0; 6]));
            for number in [
                libc::SYS_socket,
                libc::SYS_execve,
                libc::SYS_ptrace,
                libc::SYS_setns,
                libc::SYS_unshare,
                libc::SYS_mount,
                libc::SYS_kill,
                libc::SYS_connect,
                libc::SYS_linkat,
                libc::SYS_fchmodat,
                libc::SYS_fchownat,
            ] {
                assert!(!passes(number, [0; 6]), "{number}");
            }
        }
    }
}
