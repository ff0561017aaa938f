//! Init: everything between birth in the new namespaces and exec of the payload. One process, one thread.
//!
//! Steps, in order; the text in quotes is what a failure names:
//!
//! 1. open with the caller's own identity what the container's root may not reach: bind sources and the writable layers,
//!    each as a clone that is attached nowhere ([`Opened`]; for real root the stage has done it);
//! 2. wait for the stage: id maps are written, the view has come;
//! 3. become root inside; a session keyring of our own; from here on no mount event leaves ("entering the namespaces");
//! 4. the network device, sent to the monitor so that the net role starts beside the rest, or the loopback device alone
//!    ("setting up the network");
//! 5. the root file system, attached on top of the host's ("mounting the root file system");
//! 6. mounts in the specification's order ("mounting DESTINATION"), device nodes ("making /dev"), `/etc/mtab`;
//! 7. the terminal, sent to the monitor ("opening the terminal");
//! 8. kernel settings and names ("setting NAME"), masked and read-only paths ("masking PATH");
//! 9. pivot, so that nothing of the host is left ("changing the root directory");
//! 10. the payload's user, directory and environment ("choosing the user");
//! 11. READY, wait for GO, capabilities, no_new_privs, seccomp, exec ("executing the command").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Context, Kind, Report};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use sys::seccomp::Instruction;
use sys::{Call, SysError};

use crate::channel::{Channel, Message};
use crate::launch::Launch;
use crate::seccomp;

pub mod console;
pub mod devices;
pub mod limits;
pub mod masks;
pub mod mounts;
pub mod payload;
pub mod reaper;
pub mod rootfs;
pub mod user;

/// What only the caller's own identity may reach, as mounts that are attached nowhere.
///
/// Two things are needed at once: the caller's identity, to search its directories, and `CAP_SYS_ADMIN` over the mount
/// namespace, to clone from it. A plain user has both as init, before it becomes root inside; real root has both as the
/// stage, before it joins the outer namespace, where it has no id.
#[derive(Debug)]
pub struct Opened {
    layers: Option<rootfs::Layers>,
    sources: mounts::Sources,
}

impl Opened {
    /// Opens all of it; `shift` as for [`mounts::open_sources`].
    pub fn new(launch: &Launch, shift: Option<BorrowedFd<'_>>, channel: &Channel) -> Result<Self, Report> {
        let sources = mounts::open_sources(&launch.spec, shift, channel)?;
        let layers = rootfs::open_layers(&launch.rootfs).step(|| "mounting the root file system".to_owned())?;
        Ok(Opened { layers, sources })
    }
}

/// Runs init to its end; returns only when it failed or when it was the reaper. The code is the process's exit code.
pub fn main(
    channel: &Channel,
    launch: &Launch,
    opened: Option<Opened>,
    program: Option<&[Instruction]>,
    from_stage: BorrowedFd<'_>,
) -> i32 {
    match run(channel, launch, opened, program, from_stage) {
        Ok(code) => code,
        Err(report) => {
            channel.fail(&report);
            i32::from(report.kind().exit_code_of_run())
        }
    }
}

/// The seccomp program of a specification, compiled before the fork; `None` when it asks for none.
pub fn compile_seccomp(linux: Option<&Linux>) -> Result<Option<Vec<Instruction>>, Report> {
    let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref()) else {
        return Ok(None);
    };
    let program = seccomp::compile(profile).step(|| "compiling the seccomp profile".to_owned())?;
    Ok(Some(program))
}

fn run(
    channel: &Channel,
    launch: &Launch,
    opened: Option<Opened>,
    program: Option<&[Instruction]>,
    from_stage: BorrowedFd<'_>,
) -> Result<i32, Report> {
    let process = launch.spec.process().as_ref();
    let process = process.ok_or_else(|| Report::new(Kind::Usage, "the specification has no process"))?;

    let Opened { layers, sources } = match opened {
        Some(opened) => opened,
        None => Opened::new(launch, None, channel)?,
    };
    let view = wait_for_stage(from_stage)?;
    enter(launch).step(|| "entering the namespaces".to_owned())?;
    if let Some(addressing) = &launch.network {
        let tap = net::setup::in_namespace(addressing).step(|| "setting up the network".to_owned())?;
        channel.send(&Message::Tap, Some(tap.as_fd()))?;
    } else if has_own_network(&launch.spec) {
        net::setup::loopback().step(|| "setting up the network".to_owned())?;
    }
    let root = rootfs::mount(launch, layers, view).step(|| "mounting the root file system".to_owned())?;
    mounts::mount_all(&launch.spec, root.as_fd(), sources, channel)?;
    devices::make(&launch.spec, root.as_fd()).step(|| "making /dev".to_owned())?;
    rootfs::mtab(root.as_fd()).step(|| "making /etc/mtab".to_owned())?;
    let terminal = process.terminal().unwrap_or(false);
    let console = terminal.then(|| console::open(root.as_fd(), channel)).transpose();
    let console = console.step(|| "opening the terminal".to_owned())?;
    limits::sysctls(&launch.spec)?;
    masks::names(&launch.spec)?;
    masks::apply(&launch.spec, root.as_fd())?;
    rootfs::pivot(&launch.spec, root.as_fd()).step(|| "changing the root directory".to_owned())?;
    drop(root);

    let identity = user::resolve(&launch.user, process)?;
    let ready = payload::Ready { process, identity: &identity, program, console, setgroups: launch.setgroups };
    if launch.reaper {
        return reaper::run(channel, &ready);
    }
    payload::become_it(channel, &ready)
}

/// Whether the specification asks for a network namespace.
fn has_own_network(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|list| list.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network))
}

/// Waits until the stage has written the id maps; returns the view's detached mount where there is one.
fn wait_for_stage(from_stage: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Report> {
    let mut buffer = [0; 16];
    let (length, mut fds) = sys::socket::receive(from_stage, &mut buffer)?;
    if length == 0 {
        // The stage has told the monitor why; this is only the end of the unfinished container.
        return Err(Report::new(Kind::Internal, "the stage ended before the container was mapped"));
    }
    Ok(fds.pop())
}

/// Root of the inner user namespace, invisible to ptrace from inside, with mount events only coming in.
fn enter(launch: &Launch) -> Result<(), SysError> {
    if launch.setgroups {
        nix::unistd::setgroups(&[]).call(|| "setgroups([])".to_owned())?;
    }
    crate::stage::become_root()?;
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // A kernel without keyrings, or a user with too many, costs only the separation of keys.
    let _ = sys::security::new_session_keyring();
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .call(|| "mount(/, MS_REC|MS_SLAVE)".to_owned())
}
