//! The role exec: one more process in a running container.
//!
//! Steps: join the outer namespace, open the container's namespaces through its init (proved alive by pidfd after
//! opening), join the inner user namespace and become its root, join the others, fork into the pid namespace as a
//! child of the monitor (which has already put us into the container's cgroup), then the same end as `run`. From
//! before the first join the process is non-dumpable, so that nothing in the container may look into it
//! (CVE-2016-9962).

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use sys::namespace::{identity, open_namespace, open_own, proc_dir};
use sys::process::{Flags, fork, pidfd_send_signal, reap, wait_end};
use sys::role::Inherited;
use sys::{Call, Errno, SysError};

use crate::bundle::{Born, CLONE_NEWTIME, Making, born};
use crate::channel::{Channel, Message};
use crate::init::{self, attributes, console, payload, user};
use crate::launch::ExecLaunch;
use crate::seccomp::listener::Handover;
use crate::seccomp::{self, Filter};
use crate::stage;

/// How long the end of an init that lets nobody in any more is waited for.
const INIT_ENDS: Duration = Duration::from_millis(500);

/// What the role does with what it inherited; see [`ExecLaunch`] for the names of its descriptors.
pub fn main(mut inherited: Inherited) -> ExitCode {
    let Ok(channel) = inherited.fd("channel") else {
        return ExitCode::from(125);
    };
    let channel = Channel::from(channel);
    match run(&channel, &mut inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            channel.fail(&report);
            ExitCode::from(125)
        }
    }
}

fn run(channel: &Channel, inherited: &mut Inherited) -> Result<(), Report> {
    let launch: ExecLaunch =
        serde_json::from_slice(&inherited.config).map_err(|error| Report::of(Kind::Internal, error))?;
    let outer = inherited.fd("outer")?;
    let init = inherited.fd("init")?;
    let program = compile(&launch)?;
    init::limits::apply(&launch.process, std::process::id() as i32, &mut |text| channel.notice(text))?;
    stage::join_outer(outer.as_fd()).step(|| "joining the outer user namespace".to_owned())?;
    enter(channel, &launch, init.as_fd(), program.as_ref())
}

/// Starts the process in a container of a bundle, born in this cgroup or placed by the caller, as a child of the caller,
/// which must have one thread. The channel brings READY and takes GO.
pub fn in_bundle(
    launch: &ExecLaunch,
    init: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
    caller: &mut dyn Making,
) -> Result<Born, Report> {
    let program = compile(launch)?;
    let (ours, theirs) = Channel::pair()?;
    let ours = Cell::new(Some(ours));
    sys::step();
    let helper = fork(Flags::empty(), cgroup, || {
        sys::step::begin("helper");
        drop(ours.take());
        // Only as the caller's user may it be placed.
        let placed = if cgroup.is_none() { init::wait_for_go(&theirs) } else { Ok(()) };
        let own_pid = std::process::id() as i32;
        let limit = || init::limits::apply(&launch.process, own_pid, &mut |text| theirs.notice(text));
        match placed.and_then(|()| limit()).and_then(|()| enter(&theirs, launch, init, program.as_ref())) {
            Ok(()) => 0,
            Err(report) => {
                theirs.fail(&report);
                125
            }
        }
    })?;
    sys::step();
    drop(theirs);
    let channel = ours.take().ok_or_else(|| Report::new(Kind::Internal, "the channel is gone"))?;
    if cgroup.is_none() {
        if let Err(report) = caller.place(helper.pid) {
            drop(channel);
            reap(helper.pidfd.as_fd(), true)?;
            return Err(report);
        }
        sys::step();
        channel.send(&Message::Go, None)?;
        sys::step();
    }
    let init = born(&channel, &helper, caller, &mut || Ok(()))?;
    Ok(Born { init, channel })
}

fn compile(launch: &ExecLaunch) -> Result<Option<Filter>, Report> {
    let profile = seccomp::chosen(launch.seccomp.as_ref(), launch.default_profile);
    let compile = |profile| match launch.bundle {
        Some(_) => seccomp::compile_with_agent(profile),
        None => seccomp::compile_without_agent(profile, launch.notify),
    };
    profile.as_deref().map(compile).transpose()
}

/// Joins the container and forks the process in it, as a child of the caller's parent.
fn enter(channel: &Channel, launch: &ExecLaunch, init: BorrowedFd<'_>, program: Option<&Filter>) -> Result<(), Report> {
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    sys::step();
    let mounts = join_container(launch.init_pid, init)
        .map_err(|error| unless_ended(init, error, "joining the container's namespaces"))?;
    sys::step();
    let (to_child, told) = sys::socket::pair()?;
    let to_child = Cell::new(Some(to_child));
    let child = fork(Flags::PARENT, None, || {
        sys::step::begin("process");
        drop(to_child.take());
        // What it says must come after the word that it exists: the end of this socket.
        let waited = sys::socket::receive(told.as_fd(), &mut [0]).map(drop).map_err(Report::from);
        match waited.and_then(|()| become_payload(channel, launch, program, &mounts)) {
            Ok(code) => code,
            Err(report) => {
                channel.fail(&report);
                i32::from(report.kind().exit_code_of_run())
            }
        }
    })
    .map_err(|error| unless_ended(init, error, "entering the container"))?;
    sys::step();
    channel.send(&Message::Init { pid: child.pid }, Some(child.pidfd.as_fd()))?;
    sys::step();
    drop(to_child.take());
    sys::step();
    Ok(())
}

/// Why a step on the way in failed: where the container's init is about to end, that, whatever the step says. Its
/// namespaces go before it is seen to have ended, and its pid namespace refuses with `ENOMEM`: fork(2).
fn unless_ended(init: BorrowedFd<'_>, error: SysError, step: &str) -> Report {
    if wait_end(init, Some(INIT_ENDS)) {
        return Report::new(Kind::Conflict, "the container is not running: it ended while a process was entering it");
    }
    Report::from(error).with_step(step)
}

/// Joins every namespace in which the container's init differs from us; the user namespace first, as it gives the
/// right over the others. The mount namespace is returned: with its `/proc`, which shows the container's pids, only a
/// process that was born in them can work.
fn join_container(pid: i32, init: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let (process, mounts) = visible(pid)?;
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("time", CLONE_NEWTIME),
    ];
    let mut others = Vec::new();
    for (kind, flag) in kinds {
        let theirs = match open_namespace(process.as_fd(), kind) {
            // Kernels before 5.6.
            Err(error) if kind == "time" && error.errno() == Errno::ENOENT => continue,
            theirs => theirs?,
        };
        if identity(&theirs)? != identity(open_own(kind)?)? {
            others.push((kind, flag, theirs));
        }
    }
    // Only now is it sure that the number still meant this process when it was used.
    pidfd_send_signal(init, 0)?;
    for (kind, flag, namespace) in others {
        setns(&namespace, flag).call(|| format!("setns({kind})"))?;
        if kind == "user" {
            stage::become_mapped_root()?;
            nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
        }
    }
    Ok(mounts)
}

/// Opens namespaces of a running container by the pid of its init and the descriptor that proves it: `user`, `net`.
/// `ESRCH` when it has ended.
pub fn open_namespaces(pid: i32, init: BorrowedFd<'_>, kinds: &[&str]) -> Result<Vec<OwnedFd>, SysError> {
    let (process, _) = visible(pid)?;
    let opened = kinds.iter().map(|kind| open_namespace(process.as_fd(), kind)).collect();
    pidfd_send_signal(init, 0)?;
    opened
}

/// The directory in `/proc` of a container's init, or of a process that has the same namespaces and shows them; and its mount
/// namespace.
pub(crate) fn visible(pid: i32) -> Result<(OwnedFd, OwnedFd), SysError> {
    let process = proc_dir(pid)?;
    match open_namespace(process.as_fd(), "mnt") {
        // The reaper of `--init` lets nobody look into it.
        Err(error) if error.errno() == Errno::EACCES => {
            let payload = payload_of(pid).map_err(|_| error)?;
            let mounts = open_namespace(payload.as_fd(), "mnt")?;
            Ok((payload, mounts))
        }
        mounts => Ok((process, mounts?)),
    }
}

/// The directory in `/proc` of the payload below a reaper: its first child, without which it ends.
fn payload_of(reaper: i32) -> Result<OwnedFd, SysError> {
    let path = format!("/proc/{reaper}/task/{reaper}/children");
    let children = std::fs::read_to_string(&path).call(|| format!("read({path:?})"))?;
    let first = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    let gone = || SysError::new(format!("{path} names no child"), Errno::ESRCH);
    let payload = proc_dir(first.ok_or_else(gone)?)?;
    // The number may have become another process's before it was opened.
    let parent = sys::process::parent(payload.as_fd())?;
    if parent == reaper { Ok(payload) } else { Err(gone()) }
}

fn become_payload(
    channel: &Channel,
    launch: &ExecLaunch,
    program: Option<&Filter>,
    mounts: &OwnedFd,
) -> Result<i32, Report> {
    let process = &launch.process;
    let agent = agent(launch, program)?;
    let labels = attributes::Labels::open(process)?;
    sys::step();
    setns(mounts, CloneFlags::CLONE_NEWNS).call(|| "setns(mnt)".to_owned())?;
    sys::step();
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(/, O_PATH)".to_owned())?;
    if launch.keyring {
        init::separate_keys(channel);
    }
    attributes::apply_to(Some(process), launch.memory_policy.as_ref(), launch.personality.as_ref())?;
    if let Some(processors) = process.exec_cpu_affinity().as_ref().and_then(|one| one.cpu_affinity_final().as_ref()) {
        attributes::set_affinity(processors).step(|| "setting the processors".to_owned())?;
    }
    let terminal = process.terminal().unwrap_or(false);
    let console = terminal.then(|| console::open_pair(root.as_fd(), channel)).transpose();
    let console = console.step(|| "opening the terminal".to_owned())?;
    let identity = user::resolve(&launch.user, &launch.groups, process)?;
    let ready = payload::Ready {
        process,
        identity: &identity,
        program,
        console,
        // As in runc: only a container's own command has it made.
        make_directory: false,
        groups: payload::Groups::of(launch.setgroups, launch.keep_groups),
        preserve_fds: launch.preserve_fds,
        listen_fds: launch.listen_fds,
        gate: None,
        labels,
        agent,
        before_exec: &|| Ok(()),
    };
    payload::become_it(channel, &ready)
}

/// The agent of the container's profile, introduced to this process as one more of the container's.
fn agent(launch: &ExecLaunch, program: Option<&Filter>) -> Result<Option<Handover>, Report> {
    let Some((context, profile)) = launch.bundle.as_ref().zip(launch.seccomp.as_ref()) else { return Ok(None) };
    if !program.is_some_and(Filter::notifies) {
        return Ok(None);
    }
    let agent = init::connect_agent(profile)?;
    let introduce =
        |agent| init::introduce(agent, Some(profile), context, launch.annotations.as_ref(), Some(launch.init_pid));
    agent.map(introduce).transpose()
}
