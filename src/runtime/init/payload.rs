//! From a process inside the finished container to the payload: session, directory, rights, exec.
//!
//! `run` and `exec` share this end. Order: seccomp goes last where no_new_privs allows it; without no_new_privs the
//! kernel demands `CAP_SYS_ADMIN`, so it is loaded before the capabilities go. Only the hooks of the kind startContainer come
//! between it and the exec: programs of the container's, they have the rights of its command and no more, as with runc.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{Capabilities, Process};
use sys::security::{self, CapabilitySets};
use sys::{Call, Errno, SysError};

use crate::channel::{Channel, Message};
use crate::init::attributes::Labels;
use crate::init::limits;
use crate::init::user::{Identity, UNMAPPED};
use crate::seccomp::Filter;
use crate::seccomp::listener::{self, Handover};

/// Where a command is looked for when its environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How many clients may stand at the gate and say nothing; of more the first has to go.
const SILENT_MAX: usize = 16;

/// All that is needed to become the payload.
pub struct Ready<'a> {
    /// What to run.
    pub process: &'a Process,
    /// As whom.
    pub identity: &'a Identity,
    /// The seccomp filter.
    pub program: Option<&'a Filter>,
    /// The terminal, where one was asked for.
    pub console: Option<OwnedFd>,
    /// Whether its working directory is made where it is missing.
    pub make_directory: bool,
    /// What becomes of the supplementary groups.
    pub groups: Groups,
    /// How many descriptors from 3 up stay open.
    pub preserve_fds: i32,
    /// How many of them are sockets of systemd's socket activation, which the payload is told of.
    pub listen_fds: i32,
    /// Where GO is said, if not by who holds the channel.
    pub gate: Option<Gate>,
    /// Given at the exec.
    pub labels: Option<Labels>,
    /// Who gets the listener of a filter that notifies.
    pub agent: Option<Handover>,
    /// Runs after GO, with the rights of the payload.
    pub before_exec: &'a dyn Fn() -> Result<(), Report>,
}

/// Where init waits for the one who starts the container.
#[derive(Debug)]
pub struct Gate {
    /// A listening socket, whose first client says GO and hears how it went.
    pub socket: OwnedFd,
    /// What that client gets with the answer: the socket at which the payload notifies, where it is to.
    pub notify: Option<OwnedFd>,
}

/// What becomes of the supplementary groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// They are the identity's.
    Set,
    /// They stay the caller's, by request or because the user namespace allows no change.
    Keep,
}

impl Groups {
    /// `may`: setgroups(2) is allowed; `keep`: the caller's are asked for.
    pub fn of(may: bool, keep: bool) -> Self {
        if may && !keep { Groups::Set } else { Groups::Keep }
    }
}

/// Reports READY, waits for GO and executes the payload. Returns only with an error, or with the exit code when the
/// error has been told at the gate.
pub fn become_it(channel: &Channel, ready: &Ready<'_>) -> Result<i32, Report> {
    session(ready)?;
    let moved = change_directory(ready.process.cwd(), ready.make_directory).is_ok();
    if moved {
        check_directory()?;
    }
    if ready.gate.is_some() {
        // Who creates a container learns now what else `start` would say.
        find(ready.process)?;
    }
    if let Some(labels) = &ready.labels {
        // Now too, since the kernel knows which ones there are.
        labels.set()?;
    }
    sys::step();
    channel.send(&Message::Ready, None)?;
    sys::step();
    let Some(gate) = &ready.gate else {
        super::wait_for_go(channel)?;
        return become_payload(channel, ready, moved);
    };
    let client = wait_at(gate)?;
    become_payload(channel, ready, moved).or_else(|report| {
        client.fail(&report);
        Ok(i32::from(report.kind().exit_code_of_run()))
    })
}

/// The first client that says GO. One that leaves without it has started nothing, and one that says nothing keeps nobody
/// waiting.
fn wait_at(Gate { socket, notify }: &Gate) -> Result<Channel, Report> {
    let socket = socket.as_fd();
    let mut clients = Vec::new();
    loop {
        let Some(position) = heard(socket, &clients)? else {
            clients.push(Channel::from(sys::socket::accept(socket)?));
            if clients.len() > SILENT_MAX {
                clients.remove(0);
            }
            sys::step();
            continue;
        };
        let client = clients.swap_remove(position);
        // The answer tells it from one that came too late, whose connection ends without.
        let answer = || client.send(&Message::Ready, notify.as_ref().map(AsFd::as_fd));
        if matches!(client.receive(), Ok(Some((Message::Go, _)))) && answer().is_ok() {
            return Ok(client);
        }
    }
}

/// Waits for a client that has said something, or is gone; `None` when it is time to let one in. The first one is waited for
/// by the call that does.
fn heard(gate: BorrowedFd<'_>, clients: &[Channel]) -> Result<Option<usize>, SysError> {
    if clients.is_empty() {
        return Ok(None);
    }
    let all = clients.iter().map(AsFd::as_fd).chain([gate]);
    let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            polled => break polled.map(drop).call(|| "poll(gate)".to_owned())?,
        }
    }
    let first = fds.iter().position(|fd| fd.any().unwrap_or(false));
    Ok(first.filter(|position| *position < clients.len()))
}

fn become_payload(channel: &Channel, ready: &Ready<'_>, moved: bool) -> Result<i32, Report> {
    let process = ready.process;
    sys::step();
    // Hooks get none of them.
    sys::process::cloexec_from(3)?;
    let umask = process.user().umask().unwrap_or(0o022);
    nix::sys::stat::umask(Mode::from_bits_truncate(umask));
    limits::lower(process)?;
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    if let (Some(program), false) = (ready.program, no_new_privileges) {
        load(program, ready.agent.as_ref(), channel)?;
    }
    become_user(ready).step(|| format!("becoming user {}", ready.identity.uid))?;
    sys::step();
    sys::process::reset_signals()?;
    if !moved {
        // A directory that only its owner may enter.
        change_directory(process.cwd(), false)?;
        check_directory()?;
    }
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS)".to_owned())?;
        if let Some(program) = ready.program {
            load(program, ready.agent.as_ref(), channel)?;
        }
    }
    sys::step();
    // A program of the container could look into an init that the runtime's hooks were to look into.
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    (ready.before_exec)()?;
    sys::step();
    // Only the first descriptors after the standard ones outlive the exec, as many as the caller asked to hand on.
    for number in 3..3 + ready.preserve_fds {
        sys::process::keep_over_exec(number)?;
    }
    execute(ready)
}

fn load(program: &Filter, agent: Option<&Handover>, channel: &Channel) -> Result<(), Report> {
    let loading = || "loading the seccomp filter".to_owned();
    if let Some(agent) = agent {
        return listener::load(program, agent).step(loading);
    }
    if let Some(listener) = program.load().step(loading)? {
        // None of the calls that this takes is among those that wait for an answer now.
        channel.send(&Message::Listener, Some(listener.as_fd()))?;
    }
    Ok(())
}

/// A session of its own, with the terminal as its controlling one; standard streams that belong to the user, so that
/// `/dev/stdout` can be opened again.
fn session(ready: &Ready<'_>) -> Result<(), SysError> {
    nix::unistd::setsid().call(|| "setsid()".to_owned())?;
    if let Some(terminal) = &ready.console {
        sys::terminal::set_controlling(terminal.as_fd())?;
        for number in 0..3 {
            sys::process::place(terminal.as_fd(), number)?;
        }
    }
    let owner = Uid::from_raw(ready.identity.uid);
    for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        // The null device would be everybody's, where the caller may give it away.
        if nix::sys::stat::fstat(stream).is_ok_and(|stat| stat.st_rdev == nix::sys::stat::makedev(1, 3)) {
            continue;
        }
        // Streams that are not ours to give (a socket) stay as they are.
        let _ = nix::unistd::fchown(stream, Some(owner), None);
    }
    Ok(())
}

/// Enters the working directory; as root, makes it when it is missing, as Docker does.
fn change_directory(cwd: &Path, make: bool) -> Result<(), Report> {
    match nix::unistd::chdir(cwd) {
        Err(Errno::ENOENT) if make => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = nix::fcntl::open("/", flags, Mode::empty()).call(|| "open(/, O_PATH)".to_owned())?;
            // Not through links of `/proc`, which may lead to what is still open of the host's.
            sys::path::make_dirs_in(root.as_fd(), cwd)?;
            nix::unistd::chdir(cwd).call(|| format!("chdir({cwd:?})"))?;
            Ok(())
        }
        Err(Errno::ENOENT) => {
            let message = format!("chdir to cwd ({cwd:?}) failed: no such file or directory");
            Err(Report::new(Kind::CommandNotFound, message))
        }
        result => Ok(result.call(|| format!("chdir({cwd:?})"))?),
    }
}

/// A working directory that is not below our root would be one that leaked from the host (CVE-2024-21626).
fn check_directory() -> Result<(), Report> {
    match nix::unistd::getcwd() {
        Ok(directory) if directory.is_absolute() && !directory.starts_with("(unreachable)") => return Ok(()),
        // musl's word for the kernel's "(unreachable)".
        Ok(_) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(SysError::new("getcwd()", errno).into()),
    }
    Err(Report::new(Kind::Denied, "the working directory is outside the container's root"))
}

fn become_user(ready: &Ready<'_>) -> Result<(), Report> {
    let identity = ready.identity;
    let sets = capability_sets(ready.process.capabilities().as_ref(), identity.uid);
    security::limit_bounding(sets.bounding)?;
    nix::sys::prctl::set_keepcaps(true).call(|| "prctl(PR_SET_KEEPCAPS, 1)".to_owned())?;
    if ready.groups == Groups::Set {
        let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        nix::unistd::setgroups(&groups).call(|| format!("setgroups({:?})", identity.groups))?;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let ids = nix::unistd::setresgid(gid, gid, gid)
        .call(|| format!("setresgid({gid})"))
        .and_then(|()| nix::unistd::setresuid(uid, uid, uid).call(|| format!("setresuid({uid})")));
    if let Err(error) = ids {
        let unmapped = error.errno() == Errno::EINVAL;
        let report = Report::from(error);
        return Err(if unmapped { report.with_hint(UNMAPPED) } else { report });
    }
    security::set_capabilities(&sets)?;
    nix::sys::prctl::set_keepcaps(false).call(|| "prctl(PR_SET_KEEPCAPS, 0)".to_owned())?;
    Ok(())
}

/// The masks of a specification's capabilities. A user other than root keeps none in force unless they are ambient,
/// as an exec would clear them anyway; and ambient are only those that are permitted and inheritable (capabilities(7)).
fn capability_sets(listed: Option<&oci_spec::runtime::LinuxCapabilities>, uid: u32) -> CapabilitySets {
    let Some(listed) = listed else { return CapabilitySets::default() };
    let mask = |set: &Option<Capabilities>| {
        set.iter().flatten().fold(0, |mask, capability| mask | crate::capabilities::bit(*capability))
    };
    let ambient = mask(listed.ambient()) & mask(listed.permitted()) & mask(listed.inheritable());
    let in_force = |set: u64| if uid == 0 { set } else { ambient };
    CapabilitySets {
        bounding: mask(listed.bounding()),
        effective: in_force(mask(listed.effective())),
        permitted: in_force(mask(listed.permitted())),
        inheritable: mask(listed.inheritable()),
        ambient,
    }
}

/// Fails when there is nothing that anybody could execute, wherever it is looked for. Whether this user may is for the exec
/// to say.
fn find(process: &Process) -> Result<(), Report> {
    let Some(command) = process.args().iter().flatten().next().filter(|command| !command.is_empty()) else {
        return Err(no_command());
    };
    let look = |path: &Path| match nix::sys::stat::stat(path) {
        Ok(file) if SFlag::from_bits_truncate(file.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG => {
            Err(Errno::EACCES)
        }
        Ok(file) if file.st_mode & 0o111 == 0 => Err(Errno::EACCES),
        Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => Err(errno),
        // What cannot be looked at now the user may reach.
        _ => Ok(()),
    };
    if command.contains('/') {
        return look(Path::new(command)).map_err(|errno| exec_error(command, errno));
    }
    let path = process.env().iter().flatten().find_map(|variable| variable.strip_prefix("PATH="));
    let mut missed = Errno::ENOENT;
    for directory in path.unwrap_or(DEFAULT_PATH).split(':') {
        match look(&Path::new(directory).join(command)) {
            Ok(()) => return Ok(()),
            Err(Errno::EACCES) => missed = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(exec_error(command, missed))
}

fn no_command() -> Report {
    Report::new(Kind::CommandNotFound, "no command specified")
}

/// Executes the payload, searching `PATH` of its own environment; returns only with an error of Docker's words.
fn execute(ready: &Ready<'_>) -> Result<i32, Report> {
    let (process, identity) = (ready.process, ready.identity);
    let args = process.args().as_deref().unwrap_or_default();
    let Some(command) = args.first().filter(|command| !command.is_empty()) else {
        return Err(no_command());
    };
    let mut environment: Vec<String> = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        environment.push(format!("HOME={}", identity.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/")));
    }
    if ready.listen_fds > 0 {
        // sd_listen_fds(3). Whatever was set before was not meant for it.
        environment.retain(|variable| !variable.starts_with("LISTEN_FDS=") && !variable.starts_with("LISTEN_PID="));
        environment.push(format!("LISTEN_FDS={}", ready.listen_fds));
        environment.push(format!("LISTEN_PID={}", std::process::id()));
    }
    let argv = c_strings(args)?;
    let envp = c_strings(&environment)?;
    let errno = if command.contains('/') {
        try_exec(command.as_bytes(), &argv, &envp)
    } else {
        let path = environment.iter().find_map(|variable| variable.strip_prefix("PATH="));
        search(path.unwrap_or(DEFAULT_PATH), command, &argv, &envp)
    };
    Err(exec_error(command, errno))
}

/// Tries each directory; a file that may not be executed is remembered, as execvp(3) does.
fn search(path: &str, command: &str, argv: &[CString], envp: &[CString]) -> Errno {
    let mut result = Errno::ENOENT;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        match try_exec(format!("{directory}/{command}").as_bytes(), argv, envp) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => result = Errno::EACCES,
            other => return other,
        }
    }
    result
}

fn try_exec(path: &[u8], argv: &[CString], envp: &[CString]) -> Errno {
    let Ok(path) = CString::new(path) else { return Errno::EINVAL };
    if Path::new(OsStr::from_bytes(path.as_bytes())).is_dir() {
        return Errno::EACCES;
    }
    match nix::unistd::execve(&path, argv, envp) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// FUSE answers so when nobody serves it any more.
pub(super) fn unserved(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTCONN | Errno::ECONNABORTED)
}

/// Then nothing is wrong with what was asked for.
pub(super) fn server_ended(step: String) -> Report {
    Report::new(Kind::Internal, "the file server of the container's image has ended")
        .with_hint("remove this container and run a new one, whose server is new")
        .with_step(step)
}

fn exec_error(command: &str, errno: Errno) -> Report {
    let cause = sys::error::Cause(errno);
    match errno {
        Errno::ENOENT if !command.contains('/') => {
            Report::new(Kind::CommandNotFound, format!("exec: {command:?}: executable file not found in $PATH"))
        }
        Errno::ENOENT if Path::new(command).exists() => {
            Report::new(Kind::CommandNotFound, format!("exec {command}: no such file or directory"))
                .with_hint("the file is there: what is missing is the interpreter or loader that it names")
        }
        Errno::ENOENT | Errno::ENOTDIR => {
            Report::new(Kind::CommandNotFound, format!("exec: {command:?}: stat {command}: no such file or directory"))
        }
        Errno::EACCES => Report::new(Kind::CommandNotExecutable, format!("exec: {command:?}: permission denied")),
        errno if unserved(errno) => server_ended(format!("exec: {command:?}")),
        Errno::ENOEXEC => Report::new(Kind::CommandNotExecutable, format!("exec: {command:?}: exec format error"))
            .with_hint("the file is for another processor, or a script without an interpreter line"),
        _ => Report::new(Kind::CommandNotExecutable, format!("exec: {command:?}: {cause}")),
    }
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, Report> {
    texts
        .iter()
        .map(|text| {
            CString::new(text.as_str())
                .map_err(|_| Report::new(Kind::Usage, format!("{text:?} contains a NUL character")))
        })
        .collect()
}
