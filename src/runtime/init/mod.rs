//! Init: everything between birth in the new namespaces and exec of the payload. One process, one thread.
//!
//! Steps, in order; the text in quotes is what a failure names:
//!
//! 1. open with the caller's own identity what the container's root may not reach: bind sources, devices and the
//!    writable layers ([`Opened`]; for real root the stage has done it, and cloned them, attached nowhere);
//! 2. wait for the stage: id maps are written, the view has come;
//! 3. become root inside; a session keyring of our own; from here on no mount event leaves ("entering the namespaces");
//! 4. scheduling and other attributes that exec keeps ("setting the ATTRIBUTE");
//!    the root file system, attached on top of the host's ("mounting the root file system");
//! 5. the network namespace, where the stage has made it beside that ("entering the network namespace"); the network
//!    device, sent to the monitor so that the net role starts beside the rest, or the loopback device alone ("setting up
//!    the network");
//! 6. mounts in the specification's order ("mounting DESTINATION"), device nodes ("making /dev"), `/etc/mtab`;
//! 7. the terminal, sent to the monitor ("opening the terminal");
//! 8. kernel settings and names ("setting NAME"), masked and read-only paths ("masking PATH");
//! 9. the hooks of a bundle or of devices: the runtime's by who holds the channel, the container's own ("running the
//!    KIND hook PATH");
//! 10. pivot, so that nothing of the host is left ("changing the root directory");
//! 11. the payload's user, directory and environment ("choosing the user"); volumes that are to be given to that user;
//! 12. READY, wait for GO, user and capabilities, no_new_privs, seccomp, the start hooks, exec ("executing the command").

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use oci_spec::runtime::{
    ContainerState, Hook, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Spec, StateBuilder,
};
use sys::{Call, Errno};

use crate::channel::{Channel, Message};
use crate::hooks::{self, VERSION};
use crate::init::hook_bundle::HookBundle;
use crate::launch::{HookContext, Launch, Rootfs, is_new, joins_user, listed, profile};
use crate::seccomp::Filter;
use crate::seccomp::listener::{self, Agent, Handover};

pub mod attributes;
mod chown;
pub mod console;
mod copy;
pub mod devices;
mod hook_bundle;
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
/// namespace, to clone from it. A plain user has both as init, before it becomes root inside; real root has both before
/// the fork: it has no id in the namespaces that follow.
#[derive(Debug)]
pub struct Opened {
    rootfs: rootfs::Opened,
    sources: mounts::Sources,
    devices: devices::Opened,
    /// Who answers the calls that the seccomp profile notifies of.
    agent: Option<Agent>,
}

impl Opened {
    /// Opens all of it in init itself.
    fn in_init(launch: &Launch) -> Result<Self, Report> {
        let rootfs = rootfs::open(&launch.rootfs).step(|| "mounting the root file system".to_owned())?;
        Opened::with(launch, rootfs, mounts::open_sources(launch)?, devices::open(launch)?)
    }

    /// Opens all of it before init is born; `shift` as for [`mounts::clone_sources`].
    pub fn before_init(launch: &Launch, shift: Option<BorrowedFd<'_>>, channel: &Channel) -> Result<Self, Report> {
        let rootfs = rootfs::clone(&launch.rootfs).step(|| "mounting the root file system".to_owned())?;
        let sources = mounts::clone_sources(launch, shift, channel)?;
        Opened::with(launch, rootfs, sources, devices::make_own(launch).step(|| "making devices".to_owned())?)
    }

    fn with(
        launch: &Launch,
        rootfs: rootfs::Opened,
        sources: mounts::Sources,
        devices: devices::Opened,
    ) -> Result<Self, Report> {
        let agent = profile(&launch.spec).map(connect_agent).transpose()?.flatten();
        Ok(Opened { rootfs, sources, devices, agent })
    }
}

/// Connects to the agent of a profile, if it names one and has something to ask it.
pub(crate) fn connect_agent(profile: &LinuxSeccomp) -> Result<Option<Agent>, Report> {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if rules.iter().all(|rule| rule.action() != LinuxSeccompAction::ScmpActNotify) {
        return Ok(None);
    }
    let connect =
        |path: &PathBuf| Agent::connect(path).step(|| format!("reaching the seccomp agent {}", path.display()));
    profile.listener_path().as_ref().map(connect).transpose()
}

/// What an agent is told of the calling process, which still sees the host's `/proc`: there its pid is that of the host.
pub(crate) fn introduce(
    agent: Agent,
    profile: Option<&LinuxSeccomp>,
    context: &HookContext,
    annotations: Option<&HashMap<String, String>>,
    init: Option<i32>,
) -> Result<Handover, Report> {
    let link = std::fs::read_link("/proc/self").call(|| "readlink(/proc/self)".to_owned())?;
    let own = link.to_str().and_then(|name| name.parse().ok());
    let own: i32 = own.ok_or_else(|| Report::new(Kind::Internal, format!("/proc/self is {link:?}")))?;
    let metadata = profile.and_then(|profile| profile.listener_metadata().as_deref());
    let message = StateBuilder::default()
        .version(VERSION)
        .id(context.id.clone())
        .status(if init.is_some() { ContainerState::Running } else { ContainerState::Creating })
        .pid(init.unwrap_or(own))
        .bundle(context.bundle.clone())
        .annotations(annotations.cloned().unwrap_or_default())
        .build()
        .and_then(|state| listener::message(state, own, metadata));
    let message = message.map_err(|error| Report::of(Kind::Internal, error))?;
    Ok(Handover { agent, message })
}

/// What init has from its parent, beside the launch.
#[derive(Debug)]
pub struct Given<'a> {
    /// To the monitor, or to who makes a bundle's container.
    pub channel: &'a Channel,
    /// Where the parent has opened it.
    pub opened: Option<Opened>,
    /// The seccomp filter.
    pub program: Option<&'a Filter>,
    /// Says that the maps are written, and brings the view.
    pub from_stage: BorrowedFd<'a>,
    /// Who is to say GO, where it is not who holds the channel.
    pub gate: Option<payload::Gate>,
    /// Whether init makes its cgroup namespace itself, once it has been moved into its cgroup.
    pub late_cgroup: bool,
    /// Whether the parent makes the network namespace, and sends it when it is there.
    pub late_network: bool,
}

/// Runs init to its end; returns only when it failed or when it was the reaper. The code is the process's exit code.
pub fn main(launch: &Launch, given: Given<'_>) -> i32 {
    let channel = given.channel;
    match run(launch, given) {
        Ok(code) => code,
        Err(report) => {
            channel.fail(&report);
            i32::from(report.kind().exit_code_of_run())
        }
    }
}

fn run(launch: &Launch, given: Given<'_>) -> Result<i32, Report> {
    let Given { channel, opened, program, from_stage, gate, late_cgroup, late_network } = given;
    let spec = &launch.spec;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Report::new(Kind::Usage, "the specification has no process"))?;

    sys::step();
    let Opened { rootfs, mut sources, devices: nodes, agent } = match opened {
        Some(opened) => opened,
        None => Opened::in_init(launch)?,
    };
    let place = rootfs::open_place(&launch.rootfs).step(|| "mounting the root file system".to_owned())?;
    let labels = attributes::Labels::open(process)?;
    sys::step();
    let agent = agent
        .zip(launch.bundle.as_ref())
        .filter(|_| program.is_some_and(Filter::notifies))
        .map(|(agent, context)| introduce(agent, profile(spec), context, spec.annotations().as_ref(), None))
        .transpose()?;
    let view = wait_for_stage(from_stage)?;
    if mounts::any_joined(launch) {
        mounts::add_joined(launch, &mut sources, shared_memory(from_stage)?);
    }
    sys::step();
    let setgroups = may_set_groups(launch);
    enter(launch, setgroups, channel).step(|| "entering the namespaces".to_owned())?;
    sys::step();
    stage_mounts(launch, channel)?;
    sys::step();
    if late_cgroup {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).call(|| "unshare(CLONE_NEWCGROUP)".to_owned())?;
    }
    attributes::apply(spec)?;
    sys::step();
    let root =
        rootfs::mount(launch, rootfs, place.as_fd(), view).step(|| "mounting the root file system".to_owned())?;
    drop(place);
    sys::step();
    if late_network {
        join_network(from_stage).step(|| "entering the network namespace".to_owned())?;
        sys::step();
    }
    if let Some(addressing) = &launch.network {
        let tap = net::setup::in_namespace(addressing).step(|| "setting up the network".to_owned())?;
        channel.send(&Message::Tap { ipv6: tap.ipv6 }, Some(tap.device.as_fd()))?;
    } else if launch.plugged {
        net::setup::for_plugs().step(|| "setting up the network".to_owned())?;
    } else if is_new(spec, LinuxNamespaceType::Network) {
        net::setup::loopback().step(|| "setting up the network".to_owned())?;
    }
    if launch.plugged {
        let namespace = sys::namespace::open_own("net").step(|| "opening the network namespace".to_owned())?;
        channel.send(&Message::Network, Some(namespace.as_fd()))?;
    }
    sys::step();
    let own = |typ| listed(spec).iter().any(|namespace| namespace.typ() == typ);
    let (own_pids, own_cgroups) = (own(LinuxNamespaceType::Pid), own(LinuxNamespaceType::Cgroup));
    let place = mounts::Place { root: root.as_fd(), own_pids, own_cgroups, channel };
    let mounts::Unfinished { late, given } = mounts::mount_all(launch, &place, sources)?;
    devices::make(spec, root.as_fd(), nodes).step(|| "making /dev".to_owned())?;
    sys::step();
    if !matches!(launch.rootfs, Rootfs::Directory { .. }) {
        rootfs::mtab(root.as_fd()).step(|| "making /etc/mtab".to_owned())?;
    }
    let terminal = process.terminal().unwrap_or(false);
    let console = terminal.then(|| console::open(root.as_fd(), channel)).transpose();
    let console = console.step(|| "opening the terminal".to_owned())?;
    sys::step();
    limits::sysctls(spec)?;
    masks::names(spec)?;
    sys::step();
    masks::apply(spec, root.as_fd())?;
    sys::step();
    if let Some((context, hooks)) = launch.bundle.as_ref().zip(spec.hooks().as_ref()) {
        channel.send(&Message::Mounted, None)?;
        sys::step();
        wait_for_go(channel)?;
        sys::step();
        create_container(launch, context, hooks.create_container().as_deref().unwrap_or_default(), root.as_fd())?;
        sys::step();
    }
    mounts::make_read_only(&late).step(|| "making mounts read-only".to_owned())?;
    drop(late);
    rootfs::pivot(launch, root.as_fd(), is_new(spec, LinuxNamespaceType::Mount))
        .step(|| "changing the root directory".to_owned())?;
    sys::step();
    drop(root);

    let identity = user::resolve(&launch.user, &launch.groups, process)?;
    chown::volumes(&given, &identity)?;
    drop(given);
    let ready = payload::Ready {
        process,
        identity: &identity,
        program,
        console,
        make_directory: true,
        groups: payload::Groups::of(setgroups, launch.keep_groups),
        preserve_fds: launch.preserve_fds,
        listen_fds: launch.listen_fds,
        gate,
        labels,
        agent,
        before_exec: &|| match launch.bundle.as_ref().zip(spec.hooks().as_ref()) {
            Some((context, hooks)) => {
                let hooks = hooks.start_container().as_deref().unwrap_or_default();
                hooks::run("startContainer", hooks, &context.state(spec, "created"), Path::new("/"))
            }
            None => Ok(()),
        },
    };
    if launch.reaper {
        match reaper::run(channel, &ready)? {}
    }
    payload::become_it(channel, &ready)
}

/// Runs the hooks of the kind createContainer, which work on the root file system before it is `/`.
fn create_container(
    launch: &Launch,
    context: &HookContext,
    hooks: &[Hook],
    root: BorrowedFd<'_>,
) -> Result<(), Report> {
    let run = |context: &HookContext| {
        hooks::run("createContainer", hooks, &context.state(&launch.spec, "creating"), Path::new("/"))
    };
    if hooks.is_empty() || matches!(launch.rootfs, Rootfs::Directory { .. }) {
        return run(context);
    }
    let bundle = HookBundle::make(&launch.spec, root).step(|| "making a bundle for hooks".to_owned())?;
    run(&HookContext { id: context.id.clone(), bundle: bundle.path() })
}

/// Prepares for a kernel without the mount API of Linux 5.12: only a container of a bundle, or of a copy of an image, can be
/// made there, as the view of an image reaches init as a detached mount.
fn stage_mounts(launch: &Launch, channel: &Channel) -> Result<(), Report> {
    let possible = matches!(launch.rootfs, Rootfs::Directory { .. } | Rootfs::Copy { .. });
    if possible && is_new(&launch.spec, LinuxNamespaceType::Mount) && sys::mount::is_refused() {
        channel.notice("mounts: made by mount(2), as this kernel or a filter refuses the calls of Linux 5.12");
        sys::staging::begin().step(|| "preparing the mounts".to_owned())?;
    }
    Ok(())
}

/// Waits for the one that holds the other end of the channel.
pub(crate) fn wait_for_go(channel: &Channel) -> Result<(), Report> {
    match channel.receive()? {
        Some((Message::Go, _)) => Ok(()),
        _ => Err(Report::new(Kind::Internal, "who starts the container ended before its command was started")),
    }
}

/// Waits until the stage has written the id maps; returns the view's detached mount where there is one.
fn wait_for_stage(from_stage: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Report> {
    from_the_stage(from_stage, "the stage ended before the container was mapped")
}

/// Waits for the shared memory of the container that is joined.
fn shared_memory(from_stage: BorrowedFd<'_>) -> Result<OwnedFd, Report> {
    let ended = "the stage ended before the container had its shared memory";
    from_the_stage(from_stage, ended)?.ok_or_else(|| Report::new(Kind::Internal, ended))
}

/// Waits until the stage has made the network namespace, and joins it.
fn join_network(from_stage: BorrowedFd<'_>) -> Result<(), Report> {
    let ended = "the stage ended before the container had a network";
    let network = from_the_stage(from_stage, ended)?.ok_or_else(|| Report::new(Kind::Internal, ended))?;
    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).call(|| "setns(CLONE_NEWNET)".to_owned())?;
    Ok(())
}

/// The descriptor of the stage's next message, if it brings one. Why a stage has ended it has told the monitor: `ended` is
/// only the end of the unfinished container.
fn from_the_stage(from_stage: BorrowedFd<'_>, ended: &str) -> Result<Option<OwnedFd>, Report> {
    let mut buffer = [0; 16];
    let (length, mut fds) = sys::socket::receive(from_stage, &mut buffer)?;
    if length == 0 {
        return Err(Report::new(Kind::Internal, ended));
    }
    Ok(fds.pop())
}

/// Whether no process of another container can see this one: then the runtime's hooks, and containers that are to join it
/// before it is started, may open its namespaces in `/proc`.
fn is_alone(spec: &Spec) -> bool {
    is_new(spec, LinuxNamespaceType::Pid) && listed(spec).iter().all(|namespace| namespace.path().is_none())
}

/// A session keyring of our own, so that the caller's keys are out of reach. Without it the container runs all the same,
/// and that is told.
pub(crate) fn separate_keys(channel: &Channel) {
    match sys::security::new_session_keyring() {
        // There are no keys here, for the caller neither: not in the kernel, or by the filter of a surrounding container.
        Err(error) if matches!(error.errno(), Errno::ENOSYS | Errno::EPERM) => {}
        Err(error) => channel.notice(format!(
            "keys: the container shares the session keyring of who started it: {error}: {} (see keyctl show, and \
             /proc/sys/kernel/keys/maxkeys)",
            error.cause
        )),
        Ok(()) => {}
    }
}

/// Whether setgroups(2) is allowed where we are: whoever has made a user namespace that is joined may have forbidden it.
fn may_set_groups(launch: &Launch) -> bool {
    launch.setgroups && (!joins_user(&launch.spec) || sys::namespace::allows_setgroups("self").unwrap_or(false))
}

/// Root of the container's user namespace, invisible to ptrace from inside, with mount events only coming in.
fn enter(launch: &Launch, setgroups: bool, channel: &Channel) -> Result<(), Report> {
    if setgroups && !launch.keep_groups {
        nix::unistd::setgroups(&[]).call(|| "setgroups([])".to_owned())?;
    }
    crate::stage::become_mapped_root()?;
    let dumpable = launch.bundle.is_some() && is_alone(&launch.spec);
    nix::sys::prctl::set_dumpable(dumpable).call(|| format!("prctl(PR_SET_DUMPABLE, {dumpable})"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    if launch.keyring {
        separate_keys(channel);
    }
    if !is_new(&launch.spec, LinuxNamespaceType::Mount) {
        return Ok(());
    }
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SLAVE;
    nix::mount::mount(none, "/", none, flags, none).call(|| "mount(/, MS_REC|MS_SLAVE)".to_owned())?;
    Ok(())
}
