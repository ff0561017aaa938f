//! Handing a role of the binary everything it needs, and taking it there.
//!
//! A role is a re-execution of our own binary. Its argv tells people what it is; what the program needs travels in
//! descriptor 3, a sealed memory file: a line with the names of the further descriptors (4, 5, …, in order), then the
//! role's configuration as bytes. So no role reads the environment, and nothing of a container's configuration (it may
//! hold secrets) stands in an argument list.
//!
//! Where a start must be fast and the role may see what its starter has in memory, [`fork`] runs it in a copy of the
//! starter: that saves the execution (0.7 ms) and the way of the configuration through JSON.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

use crate::error::{Call, Result, SysError};
use crate::process::{self, Child, Flags};

/// The descriptor of the configuration; the named ones follow.
const CONFIG_FD: RawFd = 3;
/// A configuration is read whole; larger ones are refused.
const CONFIG_MAX: u64 = 64 << 20;

/// A role about to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// `argv[0]`, which selects the role: `sublet-fs`.
    pub argv0: &'a str,
    /// `argv[1]`, for people who read a process list.
    pub label: &'a str,
    /// What the role's `main` gets as its configuration.
    pub config: &'a [u8],
    /// Descriptors by name.
    pub fds: &'a [(&'a str, BorrowedFd<'a>)],
    /// Standard input, output, error; `None` is `/dev/null`.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Whether the role leads a new session, away from the caller's terminal.
    pub session: bool,
    /// The cgroup v2 directory it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Spawn<'_> {
    /// Starts the role by fork and exec of our own binary. The caller must have one thread (see [`process::fork`]).
    pub fn start(&self) -> Result<Child> {
        self.start_from(open_path(c"/proc/self/exe", OFlag::O_PATH)?.as_fd())
    }

    /// As [`Spawn::start`], from this descriptor of the binary. What the role starts is executed from it too.
    pub fn start_from(&self, exe: BorrowedFd<'_>) -> Result<Child> {
        let null = open_path(c"/dev/null", OFlag::O_RDWR)?;
        let config = self.config_file()?;
        let argv = [c_string(self.argv0)?, c_string(self.label)?];
        process::fork(Flags::empty(), self.cgroup, || {
            match self.become_role(exe, null.as_fd(), config.as_fd(), &argv) {
                Ok(never) => match never {},
                Err(error) => {
                    // The parent learns of it by the end of its sockets; the text goes where ours goes.
                    let _ = writeln!(std::io::stderr(), "error: cannot start {}: {error}: {}", self.argv0, error.cause);
                    127
                }
            }
        })
    }

    fn config_file(&self) -> Result<OwnedFd> {
        let names: Vec<&str> = self.fds.iter().map(|(name, _)| *name).collect();
        let fd = memfd_create(c"sublet-role", MFdFlags::MFD_CLOEXEC).call(|| "memfd_create()".to_owned())?;
        let mut file = File::from(fd);
        let write = file
            .write_all(names.join(" ").as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.write_all(self.config))
            .and_then(|()| file.rewind());
        write.call(|| "write(role configuration)".to_owned())?;
        Ok(file.into())
    }

    /// In the child: puts every descriptor in its place and executes the binary.
    fn become_role(
        &self,
        exe: BorrowedFd<'_>,
        null: BorrowedFd<'_>,
        config: BorrowedFd<'_>,
        argv: &[CString],
    ) -> Result<std::convert::Infallible> {
        let wanted: Vec<BorrowedFd<'_>> = std::iter::once(config).chain(self.fds.iter().map(|(_, fd)| *fd)).collect();
        let after = CONFIG_FD + wanted.len() as RawFd;
        let exe = above(after, exe)?;
        arrange(&self.stdio.map(|fd| fd.unwrap_or(null)), &wanted)?;
        process::cloexec_from(after)?;
        if self.session {
            nix::unistd::setsid().call(|| "setsid()".to_owned())?;
        }
        let environment: [CString; 0] = [];
        nix::unistd::execveat(&exe, c"", argv, &environment, nix::fcntl::AtFlags::AT_EMPTY_PATH)
            .call(|| format!("execveat(own binary, {:?})", self.argv0))
    }
}

/// Forks like [`process::fork`], without an execution: the child runs `role` with nothing open but standard input, output
/// and error (`None` is `/dev/null`) and the descriptors named, and exits with what it returns. Its memory is a copy of the
/// caller's, whose descriptor objects it must not touch.
pub fn fork(
    fds: &[(&str, BorrowedFd<'_>)],
    stdio: [Option<BorrowedFd<'_>>; 3],
    cgroup: Option<BorrowedFd<'_>>,
    role: impl FnOnce(Result<Inherited>) -> i32,
) -> Result<Child> {
    let null = open_path(c"/dev/null", OFlag::O_RDWR)?;
    process::fork(Flags::empty(), cgroup, || {
        let wanted: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| *fd).collect();
        let arranged = arrange(&stdio.map(|fd| fd.unwrap_or(null.as_fd())), &wanted)
            .and_then(|()| process::close_from(CONFIG_FD + wanted.len() as RawFd))
            .and_then(|()| process::cloexec_from(CONFIG_FD));
        let names = fds.iter().map(|(name, _)| *name);
        role(arranged.map(|()| Inherited { config: Vec::new(), fds: Inherited::adopt(CONFIG_FD, names) }))
    })
}

/// Gives standard streams and descriptors their numbers, those from [`CONFIG_FD`] up in their order.
fn arrange(stdio: &[BorrowedFd<'_>; 3], wanted: &[BorrowedFd<'_>]) -> Result<()> {
    let after = CONFIG_FD + wanted.len() as RawFd;
    // Sources may sit on numbers that are targets, so all move above the targets first.
    let stdio = stdio.iter().map(|fd| above(after, *fd)).collect::<Result<Vec<_>>>()?;
    let wanted = wanted.iter().map(|fd| above(after, *fd)).collect::<Result<Vec<_>>>()?;
    for (number, fd) in stdio.iter().enumerate() {
        process::place(fd.as_fd(), number as RawFd)?;
    }
    for (position, fd) in wanted.iter().enumerate() {
        process::place(fd.as_fd(), CONFIG_FD + position as RawFd)?;
    }
    Ok(())
}

/// A duplicate whose number is at least `first`.
fn above(first: RawFd, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(first)).call(|| format!("fcntl(F_DUPFD, {first})"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What a role was given.
#[derive(Debug)]
pub struct Inherited {
    /// The role's configuration.
    pub config: Vec<u8>,
    fds: Vec<(String, Option<OwnedFd>)>,
}

impl Inherited {
    /// Takes configuration and descriptors over; to be called once, first thing in a role's `main`. `EBADF` when the
    /// process was not started as a role.
    pub fn take() -> Result<Self> {
        // SAFETY: by the contract of `Spawn` descriptor 3 is ours in a role; fstat below proves that it is open, and
        // nothing else in this process has been opened yet.
        let file = unsafe { OwnedFd::from_raw_fd(CONFIG_FD) };
        let stat = nix::sys::stat::fstat(&file);
        if stat.is_err() {
            std::mem::forget(file);
            return Err(SysError::new("roles are started by sublet itself: no configuration on fd 3", Errno::EBADF));
        }
        let mut bytes = Vec::new();
        File::from(file).take(CONFIG_MAX).read_to_end(&mut bytes).call(|| "read(role configuration)".to_owned())?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| SysError::new("role configuration without a first line", Errno::EINVAL))?;
        let names = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let fds = Inherited::adopt(CONFIG_FD + 1, names.split_whitespace());
        process::cloexec_from(CONFIG_FD)?;
        Ok(Inherited { config: bytes.split_off(end + 1), fds })
    }

    /// The descriptors of these names, which lie on consecutive numbers.
    fn adopt<'a>(first: RawFd, names: impl Iterator<Item = &'a str>) -> Vec<(String, Option<OwnedFd>)> {
        let adopt = |(position, name): (usize, &str)| {
            // SAFETY: `arrange` put exactly these descriptors on consecutive numbers, and its callers come here once.
            let fd = unsafe { OwnedFd::from_raw_fd(first + position as RawFd) };
            (name.to_owned(), Some(fd))
        };
        names.enumerate().map(adopt).collect()
    }

    /// Takes the descriptor of this name; each can be taken once. `EBADF` when it was not given.
    pub fn fd(&mut self, name: &str) -> Result<OwnedFd> {
        self.optional_fd(name).ok_or_else(|| SysError::new(format!("role descriptor {name:?}"), Errno::EBADF))
    }

    /// Takes the descriptor of this name if it was given.
    pub fn optional_fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.fds.iter_mut().find(|(given, fd)| given == name && fd.is_some()).and_then(|(_, fd)| fd.take())
    }
}

fn open_path(path: &std::ffi::CStr, flags: OFlag) -> Result<OwnedFd> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).call(|| format!("open({path:?})"))
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| SysError::new(format!("argument {text:?} contains a NUL byte"), Errno::EINVAL))
}

/// The number behind a descriptor, for messages.
pub fn number(fd: impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
