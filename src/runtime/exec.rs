//! The role exec: one more process in a running container.
//!
//! Steps: join the outer namespace, open the container's namespaces through its init (proved alive by pidfd after
//! opening), join the inner user namespace and become its root, join the others, fork into the pid namespace as a child
//! of the monitor (which has already put us into the container's cgroup), then the same end as `run`. From before the first join the process is
//! non-dumpable, so that nothing in the container may look into it (CVE-2016-9962).

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use sys::namespace::{identity, open_namespace, open_own, proc_dir};
use sys::process::{Flags, fork, pidfd_send_signal};
use sys::role::Inherited;
use sys::{Call, SysError};

use crate::channel::{Channel, Message};
use crate::init::{console, payload, user};
use crate::launch::ExecLaunch;
use crate::{seccomp, stage};

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
    let program = launch.seccomp.as_ref().map(seccomp::compile).transpose();
    let program = program.step(|| "compiling the seccomp profile".to_owned())?;

    stage::join_outer(outer.as_fd()).step(|| "joining the outer user namespace".to_owned())?;
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    let mounts = join_container(launch.init_pid, &init).step(|| "joining the container's namespaces".to_owned())?;
    let child = fork(Flags::PARENT, None, || match become_payload(channel, &launch, program.as_deref(), &mounts) {
        Ok(code) => code,
        Err(report) => {
            channel.fail(&report);
            i32::from(report.kind().exit_code_of_run())
        }
    })
    .step(|| "entering the container".to_owned())?;
    channel.send(&Message::Init { pid: child.pid }, Some(child.pidfd.as_fd()))?;
    Ok(())
}

/// Joins every namespace in which the container's init differs from us; the user namespace first, as it gives the
/// right over the others. The mount namespace is returned: with its `/proc`, which shows the container's pids, only a
/// process that was born in them can work.
fn join_container(pid: i32, init: &OwnedFd) -> Result<OwnedFd, SysError> {
    let process = proc_dir(pid)?;
    let mounts = open_namespace(process.as_fd(), "mnt")?;
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
    ];
    let mut others = Vec::new();
    for (kind, flag) in kinds {
        let theirs = open_namespace(process.as_fd(), kind)?;
        if identity(&theirs)? != identity(open_own(kind)?)? {
            others.push((kind, flag, theirs));
        }
    }
    // Only now is it sure that the number still meant this process when it was used.
    pidfd_send_signal(init.as_fd(), 0)?;
    for (kind, flag, namespace) in others {
        setns(&namespace, flag).call(|| format!("setns({kind})"))?;
        if kind == "user" {
            stage::become_root()?;
            nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
        }
    }
    Ok(mounts)
}

fn become_payload(
    channel: &Channel,
    launch: &ExecLaunch,
    program: Option<&[sys::seccomp::Instruction]>,
    mounts: &OwnedFd,
) -> Result<i32, Report> {
    setns(mounts, CloneFlags::CLONE_NEWNS).call(|| "setns(mnt)".to_owned())?;
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(/, O_PATH)".to_owned())?;
    let process = &launch.process;
    let terminal = process.terminal().unwrap_or(false);
    let console = terminal.then(|| console::open_pair(root.as_fd(), channel)).transpose();
    let console = console.step(|| "opening the terminal".to_owned())?;
    let identity = user::resolve(&launch.user, process)?;
    let ready = payload::Ready { process, identity: &identity, program, console, setgroups: launch.setgroups };
    payload::become_it(channel, &ready)
}
