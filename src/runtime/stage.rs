//! The role stage: milliseconds as root of the outer user namespace, to make one container's init.
//!
//! It is a copy of the monitor, not executed anew: nothing of a container's choice runs before init's exec, and the monitor
//! holds nothing that the user's own processes may not see. Its descriptors are not copied with it. What is to be made it
//! reads itself: the reader of a specification is a large part of the program, which the monitor would count as its memory.
//!
//! The stage is born in the container's cgroup, so that init is born there too and its cgroup namespace is rooted there;
//! the monitor, as the user, has the right to do that, and the outer root may not have it.
//!
//! Steps: as real root open what only the caller may reach, join the outer namespace, become its root, fork init into its
//! namespaces, write its id maps, give the upper directory to its root, clone (and shift) the image's view, hand that
//! over, make the network namespace and hand that over, end. Init is a child of the monitor (`CLONE_PARENT`), so nothing
//! waits for the stage.
//!
//! A network namespace that is there already the stage enters before it forks init, with the rights of the caller or else
//! of the outer root. Where init is to have the user namespace of another container as well, and perhaps its pid namespace, a
//! process in between enters those, as there is no way back, and forks init.
//!
//! The network namespace takes the kernel as long as all the rest of a start (0.35 ms), so it is made here, in the
//! container's user namespace, while init mounts the root file system.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Context, Failure, Kind, Report};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sys::namespace::{identity, map_text, open_namespace, open_own, proc_dir, write_proc};
use sys::process::{Child, Flags, fork};
use sys::role::Inherited;
use sys::{Call, Errno, SysError};

use crate::bundle::refused;
use crate::channel::{Channel, Message};
use crate::launch::{Launch, Rootfs, WrittenLaunch, is_new, listed, profile};
use crate::seccomp::Filter;
use crate::{init, seccomp};

/// What the role does, in the copy of its starter, with what it was given; see [`Launch`] for the names of its
/// descriptors. The result is its exit code.
pub fn main(launch: &WrittenLaunch, inherited: Result<Inherited, SysError>) -> i32 {
    // Without a channel its end is all that can be told.
    let Ok((mut inherited, channel)) = inherited.and_then(|mut inherited| {
        let channel = inherited.fd("channel")?;
        Ok((inherited, Channel::from(channel)))
    }) else {
        return 125;
    };
    match Launch::read(launch).and_then(|launch| run(&launch, &channel, &mut inherited)) {
        Ok(()) => 0,
        Err(report) => {
            channel.fail(&report);
            125
        }
    }
}

fn run(launch: &Launch, channel: &Channel, inherited: &mut Inherited) -> Result<(), Report> {
    // The monitor has one that keeps others out.
    sys::file::reset_umask();
    // The monitor is not dumpable, and then the limits in our own /proc files would not be ours to write.
    nix::sys::prctl::set_dumpable(true).call(|| "prctl(PR_SET_DUMPABLE, 1)".to_owned())?;
    let outer = inherited.fd("outer")?;
    let view = inherited.optional_fd("view");
    let (user, net) = (inherited.optional_fd("user"), inherited.optional_fd("net"));
    let [pid, ipc, mounts] = ["pid", "ipc", "mnt"].map(|kind| inherited.optional_fd(kind));
    let profile = seccomp::chosen(profile(&launch.spec), launch.default_profile);
    let compile = |profile| seccomp::compile_without_agent(profile, launch.notify);
    let program = profile.as_deref().map(compile).transpose()?;
    program.iter().flat_map(Filter::ignored).for_each(|ignored| channel.notice(ignored.to_string()));
    let own_pid = std::process::id() as i32;
    if let Some(process) = launch.spec.process() {
        init::limits::apply(process, own_pid, &mut |text| channel.notice(text))?;
    }
    let mut opened = launch
        .caller_is_unmapped
        .then(|| init::Opened::before_init(launch, Some(outer.as_fd()), channel))
        .transpose()?;

    let net = net.map(not_ours).transpose()?.flatten();
    // Real root's may belong to the host, over which it has no right any more in the outer namespace.
    let net = net.filter(|net| setns(net, CloneFlags::CLONE_NEWNET).is_err());
    join_outer(outer.as_fd()).step(|| "joining the outer user namespace".to_owned())?;
    net.as_ref().map_or(Ok(()), join_network)?;
    let late_network = is_new(&launch.spec, LinuxNamespaceType::Network);
    let flags = (namespaces(&launch.spec) - Flags::NEWNET) | Flags::PARENT;
    let (to_init, from_stage) = sys::socket::pair()?;
    let to_init = Cell::new(Some(to_init));
    let become_init = || {
        // Init learns of our death by the end of this socket, so it must not keep our end open itself.
        drop(to_init.take());
        let given = init::Given {
            channel,
            opened: opened.take(),
            program: program.as_ref(),
            from_stage: from_stage.as_fd(),
            gate: None,
            late_cgroup: false,
            late_network,
        };
        init::main(launch, given)
    };
    let user_namespace = if let Some(user) = user {
        born_in(&user, (pid.as_ref(), ipc.as_ref()), flags, channel, become_init)?;
        user
    } else {
        let process = proc_dir(born(flags | Flags::NEWUSER, channel, become_init)?)?;
        write_maps(launch, process.as_fd()).step(|| "mapping the container's ids".to_owned())?;
        // Before init makes itself invisible.
        open_namespace(process.as_fd(), "user")?
    };
    let to_init = to_init.take().ok_or_else(|| Report::new(Kind::Internal, "the socket to init is gone"))?;
    // Before the view is our root directory, where there is no /proc.
    let own_process = proc_dir(own_pid)?;
    prepare(launch, user_namespace.as_fd(), view, to_init.as_fd())?;
    if let Some(mounts) = mounts.filter(|_| init::mounts::any_joined(launch)) {
        let memory =
            clone_shared_memory(mounts.as_fd()).step(|| "cloning the other container's /dev/shm".to_owned())?;
        sys::socket::send(to_init.as_fd(), b"memory", &[memory.as_fd()])?;
    }
    if late_network {
        let network = make_network(user_namespace.as_fd(), own_process.as_fd()).map_err(name_the_limit);
        let network = network.step(|| "making the container's network namespace".to_owned())?;
        sys::socket::send(to_init.as_fd(), b"network", &[network.as_fd()])?;
    }
    Ok(())
}

/// A network namespace that is another than the host's, in which we are.
fn not_ours(net: OwnedFd) -> Result<Option<OwnedFd>, SysError> {
    Ok((identity(&net)? != identity(open_own("net")?)?).then_some(net))
}

/// Enters a network namespace that was there before the container.
fn join_network(net: &OwnedFd) -> Result<(), Report> {
    setns(net, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => Report::from(SysError::new("setns(net)", errno)).with_hint(
            "it belongs to a user namespace over which we have no rights: those of your containers can be joined \
             (--network container:NAME), and by root any",
        ),
        _ => refused(LinuxNamespaceType::Network, errno),
    })
}

/// Forks init and tells the monitor; returns its pid.
fn born(flags: Flags, channel: &Channel, become_init: impl FnOnce() -> i32) -> Result<i32, Report> {
    let init = fork(flags, None, become_init).map_err(name_the_limit);
    let init = init.step(|| "making the container's namespaces".to_owned())?;
    channel.send(&Message::Init { pid: init.pid }, Some(init.pidfd.as_fd()))?;
    Ok(init.pid)
}

/// The same in a user namespace that is there already, and in a pid and an ipc namespace that it owns. Only there is it known
/// whether it went well.
fn born_in(
    user: &OwnedFd,
    (pid, ipc): (Option<&OwnedFd>, Option<&OwnedFd>),
    flags: Flags,
    channel: &Channel,
    become_init: impl FnOnce() -> i32,
) -> Result<(), SysError> {
    fork(Flags::PARENT, None, || {
        let joined = nix::sys::prctl::set_dumpable(false)
            // Whoever is in it already must not look into us (CVE-2016-9962).
            .and_then(|()| setns(user, CloneFlags::CLONE_NEWUSER))
            .map_err(|errno| refused(LinuxNamespaceType::User, errno))
            .and_then(|()| {
                let joined = pid.map_or(Ok(()), |pid| setns(pid, CloneFlags::CLONE_NEWPID));
                joined.map_err(|errno| refused(LinuxNamespaceType::Pid, errno))
            })
            .and_then(|()| {
                let joined = ipc.map_or(Ok(()), |ipc| setns(ipc, CloneFlags::CLONE_NEWIPC));
                joined.map_err(|errno| refused(LinuxNamespaceType::Ipc, errno))
            });
        match joined.and_then(|()| born(flags, channel, become_init)) {
            Ok(_) => 0,
            Err(report) => {
                channel.fail(&report);
                125
            }
        }
    })?;
    Ok(())
}

/// A network namespace that belongs to the container's user namespace. Both are the calling process's from now on.
fn make_network(user_namespace: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    // There the container's root could look into us, who still see the host, where it sees our pid.
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    setns(user_namespace, CloneFlags::CLONE_NEWUSER).call(|| "setns(init's, CLONE_NEWUSER)".to_owned())?;
    unshare(CloneFlags::CLONE_NEWNET).call(|| "unshare(CLONE_NEWNET)".to_owned())?;
    open_namespace(own, "net")
}

/// ENOSPC is a limit of namespaces, namespaces(7): one that the kernel counts for the user, or the depth of nesting.
pub(crate) fn name_the_limit(error: SysError) -> Report {
    let limit = error.errno() == Errno::ENOSPC;
    let report = Report::from(error);
    if limit {
        report.with_hint(
            "a limit of namespaces is reached: see `sysctl user.max_user_namespaces` and its neighbours (0 forbids \
             them); as root: `sysctl -w user.max_user_namespaces=15000`",
        )
    } else {
        report
    }
}

/// Joins the outer user namespace and becomes its root where root's id is mapped to the caller; the engine run by real
/// root keeps its own id, which stays unmapped, with every capability over the namespace.
pub fn join_outer(outer: BorrowedFd<'_>) -> Result<(), SysError> {
    setns(outer, CloneFlags::CLONE_NEWUSER).call(|| "setns(outer, CLONE_NEWUSER)".to_owned())?;
    become_root()?;
    // A change of credentials made us non-dumpable, and then init's /proc/PID files would not be ours to write.
    nix::sys::prctl::set_dumpable(true).call(|| "prctl(PR_SET_DUMPABLE, 1)".to_owned())
}

/// Has a child do something as root of the outer user namespace, with the descriptors named, and waits for what it gives: a value
/// and descriptors.
pub fn in_outer<T: Serialize + DeserializeOwned, const N: usize>(
    outer: BorrowedFd<'_>,
    fds: &[(&str, BorrowedFd<'_>)],
    task: impl FnOnce(&mut Inherited) -> Result<(T, [OwnedFd; N]), Report>,
) -> Result<(T, [OwnedFd; N]), Report> {
    let fds: Vec<_> = std::iter::once(("outer", outer)).chain(fds.iter().copied()).collect();
    let (child, answer) = ask(&fds, |inherited| {
        join_outer(inherited.fd("outer")?.as_fd())?;
        task(inherited).map(|(value, made)| (value, made.into()))
    })?;
    let told = answered(answer.as_fd());
    sys::process::reap(child.pidfd.as_fd(), true)?;
    let (value, made) = told?;
    Ok((value, made.try_into().map_err(|_| ended_early())?))
}

/// Has a child do something with the descriptors named, and give a value and descriptors: [`answered`] reads them from the socket.
pub fn ask<T: Serialize>(
    fds: &[(&str, BorrowedFd<'_>)],
    task: impl FnOnce(&mut Inherited) -> Result<(T, Vec<OwnedFd>), Report>,
) -> Result<(Child, OwnedFd), Report> {
    let (ours, theirs) = sys::socket::pair()?;
    let fds: Vec<_> = std::iter::once(("answer", theirs.as_fd())).chain(fds.iter().copied()).collect();
    let child = sys::role::fork(&fds, [None; 3], None, |inherited| {
        let Ok(mut inherited) = inherited else { return 125 };
        let Ok(answer) = inherited.fd("answer") else { return 125 };
        let (told, made) = match task(&mut inherited) {
            Ok((value, made)) => (Ok(value), made),
            Err(report) => (Err(Failure::from(&report)), Vec::new()),
        };
        let made: Vec<_> = made.iter().map(AsFd::as_fd).collect();
        let sent = serde_json::to_vec(&told).map(|told| sys::socket::send(answer.as_fd(), &told, &made));
        i32::from(!matches!(sent, Ok(Ok(()))))
    })?;
    Ok((child, ours))
}

/// What a child has given. Blocks.
pub fn answered<T: DeserializeOwned>(answer: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), Report> {
    let mut buffer = vec![0; 64 << 10];
    let (length, made) = sys::socket::receive(answer, &mut buffer)?;
    match serde_json::from_slice::<Result<T, Failure>>(&buffer[..length]) {
        Ok(Ok(value)) => Ok((value, made)),
        Ok(Err(failure)) => Err(failure.into()),
        Err(_) => Err(ended_early()),
    }
}

fn ended_early() -> Report {
    Report::new(Kind::Internal, "a process that works for the container's networks ended unexpectedly")
}

/// Becomes root of the current user namespace if it has one. Where it has none, the capabilities that came with the
/// namespace are all that is needed.
pub fn become_mapped_root() -> Result<(), SysError> {
    let maps_root = |kind: &str| {
        let path = format!("/proc/self/{kind}_map");
        std::fs::read_to_string(&path).map(|text| sys::namespace::maps(&text, 0)).call(|| format!("read({path:?})"))
    };
    if maps_root("uid")? && maps_root("gid")? { become_root() } else { Ok(()) }
}

/// Becomes user and group 0 of the current user namespace.
pub fn become_root() -> Result<(), SysError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).call(|| "setresgid(0, 0, 0)".to_owned())?;
    nix::unistd::setresuid(uid, uid, uid).call(|| "setresuid(0, 0, 0)".to_owned())
}

/// The namespaces that clone3(2) makes new by the specification, but for user namespaces and those of time.
pub(crate) fn namespaces(spec: &Spec) -> Flags {
    let new = listed(spec).iter().filter(|namespace| namespace.path().is_none());
    new.fold(Flags::empty(), |flags, namespace| {
        flags
            | match namespace.typ() {
                LinuxNamespaceType::Mount => Flags::NEWNS,
                LinuxNamespaceType::Cgroup => Flags::NEWCGROUP,
                LinuxNamespaceType::Uts => Flags::NEWUTS,
                LinuxNamespaceType::Ipc => Flags::NEWIPC,
                LinuxNamespaceType::Pid => Flags::NEWPID,
                LinuxNamespaceType::Network => Flags::NEWNET,
                LinuxNamespaceType::User | LinuxNamespaceType::Time => Flags::empty(),
            }
    })
}

/// Everything that only the outer root can do for init, which has its ids.
fn prepare(
    launch: &Launch,
    user_namespace: BorrowedFd<'_>,
    view: Option<OwnedFd>,
    to_init: BorrowedFd<'_>,
) -> Result<(), Report> {
    let rootfs = match &launch.rootfs {
        Rootfs::Overlay { directory, .. } => Some(directory),
        _ => None,
    };
    for directory in rootfs.into_iter().chain(launch.binds.values().filter_map(|bind| bind.layers.as_ref())) {
        let layers = [directory.join("upper"), directory.join("work")];
        give_to_inner_root(launch, &layers).step(|| "giving the upper directory to the container".to_owned())?;
    }
    let view = view.map(|view| clone_view(view.as_fd(), shifted(launch).then_some(user_namespace))).transpose();
    let view = view.step(|| "cloning the image's view".to_owned())?;
    sys::socket::send(to_init, b"mapped", view.as_ref().map(AsFd::as_fd).as_slice())?;
    Ok(())
}

fn write_maps(launch: &Launch, process: BorrowedFd<'_>) -> Result<(), SysError> {
    if !launch.setgroups {
        write_proc(process, "setgroups", "deny")?;
    }
    write_proc(process, "uid_map", &map_text(&launch.uid_map))?;
    write_proc(process, "gid_map", &map_text(&launch.gid_map))
}

/// Whether the container's ids differ from the outer ones, so that owners in the view must be shifted.
fn shifted(launch: &Launch) -> bool {
    let moved = |map: &[sys::namespace::Extent]| map.iter().any(|extent| extent.inside != extent.outside);
    moved(&launch.uid_map) || moved(&launch.gid_map)
}

/// overlayfs mounts read-only, without an error, over an upper directory that its mounter does not own. Where inner
/// root is outer root nothing is to be done; when real root runs the engine, the engine has given them away before.
#[expect(clippy::disallowed_methods, reason = "directories of our own store, before any container sees them")]
fn give_to_inner_root(launch: &Launch, directories: &[std::path::PathBuf]) -> Result<(), SysError> {
    let outside = |map: &[sys::namespace::Extent]| {
        map.iter().find(|extent| extent.inside == 0).map_or(0, |extent| extent.outside)
    };
    let (uid, gid) = (outside(&launch.uid_map), outside(&launch.gid_map));
    if uid == 0 && gid == 0 {
        return Ok(());
    }
    for directory in directories {
        nix::unistd::chown(directory.as_path(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .call(|| format!("chown({directory:?}, {uid}, {gid})"))?;
    }
    Ok(())
}

/// Enters the mount namespace of another container, whatever that has made of it, and clones its shared memory from there.
fn clone_shared_memory(mounts: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    setns(mounts, CloneFlags::CLONE_NEWNS).call(|| "setns(mnt, CLONE_NEWNS)".to_owned())?;
    sys::mount::clone_mount(sys::mount::cwd(), c"/dev/shm", false)
}

/// Enters the mount namespace of the fs role, whose root is the view, and clones it from there.
fn clone_view(view: BorrowedFd<'_>, shift: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SysError> {
    setns(view, CloneFlags::CLONE_NEWNS).call(|| "setns(view, CLONE_NEWNS)".to_owned())?;
    let clone = sys::mount::clone_mount(sys::mount::cwd(), c"/", false)?;
    if let Some(user_namespace) = shift {
        let change = sys::mount::Change::set(sys::mount::Attr::empty()).idmap(user_namespace);
        change.apply(clone.as_fd(), false).map_err(|error| match error.errno() {
            Errno::EINVAL | Errno::EOPNOTSUPP => {
                SysError::new("shifted ids need FUSE_ALLOW_IDMAP (Linux 6.12)", Errno::EOPNOTSUPP)
            }
            _ => error,
        })?;
    }
    Ok(clone)
}
