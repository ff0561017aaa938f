//! The role notify: in a container with one id, programs that give files to other users or become other users go on.
//!
//! The kernel knows no second id there: chown(2) to any other is `EINVAL`, set*id(2) too, and so packages cannot be
//! installed nor archives unpacked with their owners. So the container's filter hands these calls to this role
//! ([`crate::seccomp::answered()`]), which runs from the first of them until the last process under the filter has ended.
//!
//! - **chown** and its kin: the role finds the file as the caller would (the caller's mount namespace, root and working
//!   directory), does what the kernel does besides (set-id bits, capabilities, time of change), and writes the owner down
//!   as an attribute: [`base::owner::OURS`], which our own overlay takes for a change of owner, else [`base::owner::BESIDE`] of the
//!   upper file. Inside, all files stay root's; what `commit` makes of them has the owners that were given.
//!   On any other file system (a volume, a tmpfs) nothing is written down, nor of links and nodes above overlayfs.
//! - **setuid, setgid** and their kin, **setgroups**: they return 0, and nothing has changed.
//!
//! Callers without `CAP_CHOWN`, `CAP_SETUID` or `CAP_SETGID`, and those in a user namespace of their own, have the kernel's
//! answer, as has every call that cannot be understood: to let it continue is what no filter at all would do. A container
//! without a filter (`seccomp=unconfined`) has no role.
//!
//! **Rights.** At first those of the user who runs the container. With the first chown the role joins the container's user
//! namespace, for good: from then on it can do nothing that the container's root cannot. It is in none of its pid namespaces
//! and not dumpable, so nothing inside can see or trace it, and makes no call but those of its work ([`ALLOWED`]). What a call's arguments say in memory may change at any time;
//! since the role acts inside, and as root of the inside, that changes only which of its own files the container means.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use base::owner::{self, Owner};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Gid, Uid, chroot, fchdir, fchownat};
use sys::namespace::{identity, open_namespace, parent};
use sys::notification::{Answer, Notification, answer, is_waiting, receive};
use sys::role::Inherited;
use sys::seccomp::{self, Pass, Refusal};
use sys::xattr::{Existing, get_from_proc, set_from_proc};
use sys::{Call, Errno, SysError};

use crate::stage;

/// `argv[0]` of the role. Its descriptors: `control`, on which each message brings a listener, and `outer`, the outer user
/// namespace.
pub const ARGV0: &str = "sublet-notify";

/// Listeners that are served at once: a container's command and its further ones.
const LISTENERS_MAX: usize = 1024;
/// The longest path that the kernel takes (limits.h), with its NUL.
const PATH_MAX: usize = 4096;
const PAGE: u64 = 4096;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

// Bits of a set of capabilities (capabilities(7)).
const CAP_CHOWN: u64 = 1 << 0;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;

/// The calls of the role's work beside [`seccomp::RUN_TIME`], each with its reason.
const ALLOWED: &[(libc::c_long, Pass)] = &[
    // The loop: listeners, and what brings them.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Pass::Always),
    (libc::SYS_ppoll, Pass::Always),
    (libc::SYS_recvmsg, Pass::Always),
    (libc::SYS_ioctl, Pass::OneOf(1, &REQUESTS)),
    // Callers in /proc, and their files.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, Pass::Always),
    (libc::SYS_openat, Pass::Always),
    (libc::SYS_fcntl, Pass::OneOf(1, &[libc::F_SETFD as u32, libc::F_GETFD as u32])),
    (libc::SYS_fstat, Pass::Always),
    (libc::SYS_statx, Pass::Always),
    (libc::SYS_lseek, Pass::Always),
    (libc::SYS_read, Pass::Always),
    (libc::SYS_pread64, Pass::Always),
    // Into the container, and to a caller's root and working directory.
    (libc::SYS_setns, Pass::Always),
    (libc::SYS_setresgid, Pass::Always),
    (libc::SYS_setresuid, Pass::Always),
    (libc::SYS_prctl, Pass::OneOf(0, &[libc::PR_SET_DUMPABLE as u32])),
    (libc::SYS_fchdir, Pass::Always),
    (libc::SYS_chroot, Pass::Always),
    // What is asked for.
    (libc::SYS_fchownat, Pass::Always),
    (libc::SYS_getxattr, Pass::Always),
    (libc::SYS_setxattr, Pass::Always),
];
const REQUESTS: [u32; 4] = [
    libc::SECCOMP_IOCTL_NOTIF_RECV as u32,
    libc::SECCOMP_IOCTL_NOTIF_SEND as u32,
    libc::SECCOMP_IOCTL_NOTIF_ID_VALID as u32,
    libc::NS_GET_PARENT as u32,
];

/// Serves until every listener has lost its last process.
pub fn main(mut inherited: Inherited) -> ExitCode {
    let fds = inherited.fd("control").and_then(|control| Ok((control, inherited.fd("outer")?)));
    let Ok((control, outer)) = fds else { return ExitCode::from(125) };
    drop(inherited);
    match Role::new(outer).and_then(|role| role.serve(control)) {
        Ok(()) => ExitCode::SUCCESS,
        // Who has started it sees it end.
        Err(_) => ExitCode::from(125),
    }
}

/// In which user namespace the role is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    Outer,
    /// In the container's, which is this one.
    Inside((u64, u64)),
}

struct Role {
    outer: OwnedFd,
    /// The host's, in which callers are found by their pids.
    proc: OwnedFd,
    place: Place,
}

impl Role {
    fn new(outer: OwnedFd) -> Result<Self, SysError> {
        nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = nix::fcntl::open("/proc", flags, Mode::empty()).call(|| "open(/proc)".to_owned())?;
        let role = Role { outer, proc, place: Place::Host };
        hide()?;
        let refusal = if cfg!(debug_assertions) { Refusal::Kills } else { Refusal::Fails(Errno::EPERM) };
        seccomp::load(&seccomp::allow_list(ALLOWED.iter().chain(seccomp::RUN_TIME), refusal))?;
        Ok(role)
    }

    fn serve(mut self, control: OwnedFd) -> Result<(), SysError> {
        let (mut control, mut listeners) = (Some(control), Vec::<OwnedFd>::new());
        while control.is_some() || !listeners.is_empty() {
            let listened = listeners.iter().map(AsFd::as_fd);
            let mut fds: Vec<PollFd<'_>> = listened
                .chain(control.as_ref().map(AsFd::as_fd))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled.call(|| "poll(listeners)".to_owned())?,
            };
            let found: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
            drop(fds);
            for (listener, _) in listeners.iter().zip(&found).filter(|(_, found)| found.contains(PollFlags::POLLIN)) {
                if let Some(call) = receive(listener)? {
                    let answered = self.answer(listener.as_fd(), &call);
                    answer(listener, call.id, answered)?;
                }
            }
            let told = control
                .as_ref()
                .filter(|_| found.len() > listeners.len() && found[listeners.len()] != PollFlags::empty());
            let news = told.map(|control| sys::socket::receive(control.as_fd(), &mut [0; 16]));
            let mut kept = found.iter().map(|found| found.contains(PollFlags::POLLIN) || found.is_empty());
            listeners.retain(|_| kept.next().unwrap_or(true));
            match news {
                Some(Ok((length, fds))) if length > 0 => listeners.extend(fds),
                Some(_) => control = None,
                None => {}
            }
            listeners.truncate(LISTENERS_MAX);
        }
        Ok(())
    }

    fn answer(&mut self, listener: BorrowedFd<'_>, call: &Notification) -> Answer {
        if call.arch != ARCH {
            return Answer::Continues;
        }
        let id = |number: usize| call.arguments[number] as u32;
        let ids = |count: usize| (0..count).any(|number| !matches!(id(number), 0 | u32::MAX));
        let become_other = |wanted: bool, capability: u64| {
            let has = || self.has(self.caller(listener, call)?.as_fd(), capability);
            if wanted && has().unwrap_or(false) { Answer::Returns(0) } else { Answer::Continues }
        };
        match call.number {
            libc::SYS_setuid => become_other(ids(1), CAP_SETUID),
            libc::SYS_setreuid => become_other(ids(2), CAP_SETUID),
            libc::SYS_setresuid => become_other(ids(3), CAP_SETUID),
            libc::SYS_setgid => become_other(ids(1), CAP_SETGID),
            libc::SYS_setregid => become_other(ids(2), CAP_SETGID),
            libc::SYS_setresgid => become_other(ids(3), CAP_SETGID),
            libc::SYS_setgroups => become_other(true, CAP_SETGID),
            number => match Chown::of(number, &call.arguments) {
                // What cannot be found out here the kernel finds out again, and says why.
                Some(wanted) => self.chown(listener, call, &wanted).unwrap_or(Answer::Continues),
                None => Answer::Continues,
            },
        }
    }

    /// Opens the caller's directory in `/proc`. What is found by it later is the caller's, or fails.
    fn caller(&self, listener: BorrowedFd<'_>, call: &Notification) -> Result<OwnedFd, SysError> {
        let pid = call.pid.to_string();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let words = || format!("open(/proc/{pid})");
        let caller = openat(&self.proc, pid.as_str(), flags, Mode::empty()).call(words)?;
        if is_waiting(listener, call.id) { Ok(caller) } else { Err(SysError::new(words(), Errno::ESRCH)) }
    }

    /// Whether the caller has a capability, and has it in the container's user namespace.
    fn has(&self, caller: BorrowedFd<'_>, capability: u64) -> Result<bool, SysError> {
        if effective(caller)? & capability == 0 {
            return Ok(false);
        }
        let users = open_namespace(caller, "user")?;
        match self.place {
            Place::Inside(place) => Ok(identity(&users)? == place),
            Place::Host | Place::Outer => Ok(identity(parent(&users)?)? == identity(&self.outer)?),
        }
    }

    fn chown(&mut self, listener: BorrowedFd<'_>, call: &Notification, wanted: &Chown) -> Result<Answer, SysError> {
        let caller = self.caller(listener, call)?;
        if !self.has(caller.as_fd(), CAP_CHOWN)? {
            return Ok(Answer::Continues);
        }
        self.join(caller.as_fd())?;
        let file = find(call, wanted, caller.as_fd())?;
        // As the kernel does: a capability reaches only files of ids that the user namespace has.
        let found = fstat(&file).call(|| "fstat()".to_owned())?;
        if (found.st_uid, found.st_gid) != (0, 0) {
            return Ok(Answer::Continues);
        }
        // Of the ids that there are the kernel keeps the truth itself.
        let Owner { uid, gid } = wanted.owner;
        let (uid, gid) = (uid.filter(|uid| *uid == 0), gid.filter(|gid| *gid == 0));
        let kernels = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        if let Err(errno) = fchownat(&file, c"", kernels.0, kernels.1, AtFlags::AT_EMPTY_PATH) {
            return Ok(Answer::Fails(errno));
        }
        fchdir(&self.proc).call(|| "fchdir(/proc)".to_owned())?;
        Ok(match write_down(file.as_fd(), wanted.owner) {
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO | Errno::EROFS)) => Answer::Fails(errno),
            _ => Answer::Returns(0),
        })
    }

    /// Enters the container's user namespace, if it is not there yet, and the caller's mount namespace.
    fn join(&mut self, caller: BorrowedFd<'_>) -> Result<(), SysError> {
        if self.place == Place::Host {
            stage::join_outer(self.outer.as_fd())?;
            hide()?;
            self.place = Place::Outer;
        }
        let mounts = open_namespace(caller, "mnt")?;
        if self.place == Place::Outer {
            let users = open_namespace(caller, "user")?;
            setns(&users, CloneFlags::CLONE_NEWUSER).call(|| "setns(user)".to_owned())?;
            self.place = Place::Inside(identity(&users)?);
            stage::become_root()?;
            hide()?;
        }
        setns(&mounts, CloneFlags::CLONE_NEWNS).call(|| "setns(mnt)".to_owned())
    }
}

/// A change of user namespace or ids may make a process dumpable, or not.
fn hide() -> Result<(), SysError> {
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())
}

/// Opens the file that the caller means, as a place.
fn find(call: &Notification, wanted: &Chown, caller: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let link = |name: &str| openat(caller, name, flags, Mode::empty()).call(|| format!("open(/proc/PID/{name})"));
    let base = match wanted.base {
        libc::AT_FDCWD => link("cwd")?,
        number => link(&format!("fd/{number}"))?,
    };
    let Some(address) = wanted.path else { return Ok(base) };
    let path = read_path(caller, address)?;
    if path.is_empty() {
        return if wanted.flags & libc::AT_EMPTY_PATH == 0 {
            Err(SysError::new(format!("a path of process {}", call.pid), Errno::ENOENT))
        } else {
            Ok(base)
        };
    }
    let root = link("root")?;
    fchdir(&root).and_then(|()| chroot(".")).call(|| "chroot(/proc/PID/root)".to_owned())?;
    let follow = if wanted.flags & libc::AT_SYMLINK_NOFOLLOW == 0 { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    openat(&base, path.as_c_str(), flags | follow, Mode::empty()).call(|| format!("open({path:?})"))
}

/// A call of the family of chown(2).
struct Chown {
    /// A descriptor of the caller's, or `AT_FDCWD`.
    base: i32,
    /// Where the caller's memory has the path; without one the descriptor itself is meant.
    path: Option<u64>,
    owner: Owner,
    /// `AT_*`.
    flags: i32,
}

impl Chown {
    fn of(number: i64, arguments: &[u64; 6]) -> Option<Chown> {
        let [first, second, third, fourth, fifth, _] = *arguments;
        let owner = Owner::of_call;
        let by_path = |flags| Chown { base: libc::AT_FDCWD, path: Some(first), owner: owner(second, third), flags };
        match number {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chown => Some(by_path(0)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_lchown => Some(by_path(libc::AT_SYMLINK_NOFOLLOW)),
            libc::SYS_fchown => Some(Chown { base: first as i32, path: None, ..by_path(0) }),
            libc::SYS_fchownat => {
                Some(Chown { base: first as i32, path: Some(second), owner: owner(third, fourth), flags: fifth as i32 })
            }
            _ => None,
        }
    }
}

/// The effective capabilities of a process.
fn effective(process: BorrowedFd<'_>) -> Result<u64, SysError> {
    let call = || "read(/proc/PID/status)".to_owned();
    let file = openat(process, "status", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).call(call)?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).call(call)?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    set.ok_or_else(|| SysError::new(call(), Errno::EPROTO))
}

/// A path in a process's memory.
fn read_path(process: BorrowedFd<'_>, address: u64) -> Result<CString, SysError> {
    let call = || format!("read(/proc/PID/mem, {address:#x})");
    let memory = openat(process, "mem", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).call(call)?;
    let memory = File::from(memory);
    let mut path = Vec::new();
    let mut at = address;
    while path.len() < PATH_MAX {
        // Not beyond a page: the next one may not be there.
        let mut piece = vec![0; ((PAGE - at % PAGE) as usize).min(PATH_MAX - path.len())];
        let length = memory.read_at(&mut piece, at).call(call)?;
        if length == 0 {
            return Err(SysError::new(call(), Errno::EFAULT));
        }
        let end = piece[..length].iter().position(|byte| *byte == 0);
        path.extend_from_slice(&piece[..end.unwrap_or(length)]);
        if end.is_some() {
            return CString::new(path).map_err(|_| SysError::new(call(), Errno::EINVAL));
        }
        at += length as u64;
    }
    Err(SysError::new(call(), Errno::ENAMETOOLONG))
}

/// Writes down whose a file is; the working directory is a `/proc` that shows us.
fn write_down(file: BorrowedFd<'_>, given: Owner) -> Result<(), Errno> {
    let errno = |error: SysError| error.errno();
    match set_from_proc(file, owner::OURS, &given.to_bytes(), Existing::Any).map_err(errno) {
        Err(Errno::EOPNOTSUPP) => {}
        result => return result,
    }
    let before = get_from_proc(file, owner::BESIDE).map_err(errno)?.as_deref().and_then(Owner::of);
    let mapped = |id: Option<u32>| id.is_none_or(|id| id == 0);
    if before.is_none() && mapped(given.uid) && mapped(given.gid) {
        return Ok(());
    }
    let before = before.unwrap_or_default();
    let now = Owner { uid: given.uid.or(before.uid), gid: given.gid.or(before.gid) };
    set_from_proc(file, owner::BESIDE, &now.to_bytes(), Existing::Any).map_err(errno)
}
