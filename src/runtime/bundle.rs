//! The container of an OCI bundle, made by the calling process: no outer user namespace, no monitor.
//!
//! ```text
//! caller ──clone3──▶ init                                   new namespaces only
//! caller ──fork────▶ helper ──clone3(CLONE_PARENT)──▶ init  where namespaces are joined by path, or time is shifted
//! ```
//! Init is the caller's child in both cases, so that it becomes the caller's subreaper's when the caller ends. The helper
//! exists because joining a user namespace cannot be undone, a pid namespace is entered only by children, and clocks can
//! be shifted only before the first process enters. Steps of the helper: join what the caller's rights reach; join the
//! user namespace, become its root, join the rest; or make the user namespace itself when clocks are to be shifted in
//! it; shift the clocks; fork init; end.
//!
//! Init then waits at a *gate*, a listening socket in the state directory, whose first client says GO.

use std::cell::Cell;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::{Context, Kind, Report};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use oci_spec::runtime::{Capability, LinuxNamespaceType, Spec};
use sys::namespace::{identity, maps_every_id, open_own, own_maps};
use sys::process::{Child, Flags, fork, reap};
use sys::{Call, Errno, SysError};

use crate::capabilities::bit;
use crate::channel::{Channel, Message};
use crate::init::payload::{Gate, Groups};
use crate::init::user::check_mapped;
use crate::launch::{Launch, is_new, listed, profile};
use crate::seccomp::Filter;
use crate::stage::{become_mapped_root, name_the_limit, namespaces};
use crate::{init, outer, seccomp};

/// linux/magic.h.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);
/// nix lacks it; linux/sched.h.
pub const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// A container whose init is at work.
#[derive(Debug)]
pub struct Born {
    /// Init, the caller's child.
    pub init: Child,
    /// Brings what init and the helper say; the caller answers `Mounted` with `Go`.
    pub channel: Channel,
}

/// What init keeps of the caller's until its exec.
#[derive(Debug)]
pub struct Handed {
    /// Where it waits.
    pub gate: Gate,
    /// Stays open until the exec, so that its lock tells whether the payload runs.
    pub lock: OwnedFd,
}

/// The caller's part while a container is made or entered.
pub trait Making {
    /// Moves init, or the process that enters, into its cgroup, where it was not born in it.
    fn place(&mut self, process: i32) -> Result<(), Report>;
    /// Takes a line to the user.
    fn notice(&mut self, text: String);
}

/// Makes the container's namespaces and starts init in them, born in the given cgroup. The caller must have one thread.
///
/// Everything that can be refused without making anything has been refused before.
pub fn create(
    launch: &Launch,
    cgroup: Option<BorrowedFd<'_>>,
    handed: Handed,
    caller: &mut dyn Making,
) -> Result<Born, Report> {
    let spec = &launch.spec;
    let program = profile(spec).map(seccomp::compile_with_agent).transpose()?;
    program.iter().flat_map(Filter::ignored).for_each(|ignored| caller.notice(ignored.to_string()));
    program.as_ref().map_or(Ok(()), Filter::check).step(|| "loading the seccomp filter".to_owned())?;
    let joined = Joined::open(spec)?;
    let (ours, theirs) = Channel::pair()?;
    let (to_init, from_parent) = sys::socket::pair()?;
    let new_user = if launch.uid_map.is_empty() { Flags::empty() } else { Flags::NEWUSER };
    // Owners are shifted by who has rights over the file system, and those end at a new user namespace.
    let opened = if init::mounts::any_id_mapped(spec) {
        let opened = init::Opened::before_init(launch, None, &theirs);
        Some(opened.step(|| "preparing id-mapped mounts, which needs CAP_SYS_ADMIN".to_owned())?)
    } else if !new_user.is_empty() && is_root_of_a_user_namespace()? {
        // So do the rights by which it passes directories of other ids. What it cannot open, init may not either, and says.
        init::Opened::before_init(launch, None, &theirs).ok()
    } else {
        None
    };

    let flags = namespaces(spec);
    let ends = Cell::new(Some((ours, to_init)));
    let rest = Cell::new(Some((opened, handed)));
    let become_init = || {
        sys::step::begin("init");
        // The end of each socket is how a death is learnt, so nobody may hold the other end too.
        drop(ends.take());
        let Some((opened, Handed { gate, lock })) = rest.take() else { return 125 };
        let _held = lock;
        let given = init::Given {
            channel: &theirs,
            opened,
            program: program.as_ref(),
            from_stage: from_parent.as_fd(),
            gate: Some(gate),
            // A cgroup namespace begins at the cgroup that its first process is in when it is made.
            late_cgroup: cgroup.is_none() && flags.contains(Flags::NEWCGROUP),
            late_network: false,
        };
        init::main(launch, given)
    };
    let at_birth = if cgroup.is_none() { flags - Flags::NEWCGROUP } else { flags };
    let step = || "making the container's namespaces".to_owned();
    let offsets = time_offsets(spec);
    sys::step();
    if joined.is_empty() && offsets.is_none() {
        let init = fork(at_birth | new_user, cgroup, become_init).map_err(name_the_limit).step(step)?;
        sys::step();
        let (channel, to_init) = taken(&ends)?;
        drop(rest.take());
        let limit = |caller: &mut dyn Making| match spec.process() {
            Some(process) => init::limits::apply(process, init.pid, &mut |text| caller.notice(text)),
            None => Ok(()),
        };
        limit(caller)
            .and_then(|()| caller.place(init.pid))
            .and_then(|()| map(launch, init.pid))
            .and_then(|()| say_mapped(&to_init))
            .map_err(|report| said(&channel).unwrap_or(report))?;
        return Ok(Born { init, channel });
    }

    let (to_helper, from_caller) = Channel::pair()?;
    let to_helper = Cell::new(Some(to_helper));
    let early_user = offsets.is_some() && !new_user.is_empty();
    let helper = fork(Flags::empty(), cgroup, || {
        sys::step::begin("helper");
        drop(to_helper.take());
        // Here, as later the caller's own rights are gone; init inherits them.
        let own_pid = std::process::id() as i32;
        let limited = spec
            .process()
            .as_ref()
            .map_or(Ok(()), |process| init::limits::apply(process, own_pid, &mut |text| theirs.notice(text)));
        let made = limited.and_then(|()| joined.join()).and_then(|()| {
            sys::step();
            if joined.user.is_some() {
                check_user(launch)?;
            }
            if early_user {
                unshare(CloneFlags::CLONE_NEWUSER).call(|| "unshare(CLONE_NEWUSER)".to_owned())?;
                sys::step();
                theirs.send(&Message::Unmapped, None)?;
                init::wait_for_go(&from_caller)?;
                sys::step();
                become_mapped_root()?;
            }
            if let Some(offsets) = &offsets {
                shift_clocks(offsets).step(|| "shifting the container's clocks".to_owned())?;
                sys::step();
            }
            let user = if early_user { Flags::empty() } else { new_user };
            // Init's map is the caller's to write until init has become root by it.
            let dumpable = !user.is_empty();
            nix::sys::prctl::set_dumpable(dumpable).call(|| format!("prctl(PR_SET_DUMPABLE, {dumpable})"))?;
            let init = fork(at_birth | user | Flags::PARENT, None, become_init).map_err(name_the_limit).step(step)?;
            sys::step();
            theirs.send(&Message::Init { pid: init.pid }, Some(init.pidfd.as_fd()))?;
            sys::step();
            Ok(())
        });
        match made {
            Ok(()) => 0,
            Err(report) => {
                theirs.fail(&report);
                125
            }
        }
    })?;
    sys::step();
    drop((theirs, from_caller, from_parent));
    let (channel, to_init) = taken(&ends)?;
    drop(rest.take());
    let to_helper = to_helper.take();
    let init = born(&channel, &helper, caller, &mut || {
        map(launch, helper.pid)?;
        sys::step();
        if let Some(to_helper) = &to_helper {
            to_helper.send(&Message::Go, None)?;
        }
        Ok(())
    })?;
    caller
        .place(init.pid)
        .and_then(|()| if early_user { Ok(()) } else { map(launch, init.pid) })
        .and_then(|()| say_mapped(&to_init))
        .map_err(|report| said(&channel).unwrap_or(report))?;
    Ok(Born { init, channel })
}

/// What the maps of a new user namespace have said before: whether the process's user has an id in one that was joined.
fn check_user(launch: &Launch) -> Result<(), Report> {
    let Some(process) = launch.spec.process() else { return Ok(()) };
    let (uids, gids) = own_maps()?;
    check_mapped(process, Groups::of(launch.setgroups, launch.keep_groups), &uids, &gids)
}

/// Takes apart all of a specification that init takes apart later, with nothing made: any words have a meaning or are
/// refused.
pub fn take_apart(spec: &Spec) -> Result<(), Report> {
    let _ = (namespaces(spec), time_offsets(spec), init::mounts::any_id_mapped(spec));
    init::mounts::take_apart(spec);
    init::devices::check(spec)?;
    spec.process().as_ref().map_or(Ok(()), init::attributes::check_process)?;
    spec.linux().as_ref().map_or(Ok(()), init::attributes::check)
}

/// Lets init go on.
fn say_mapped(to_init: &OwnedFd) -> Result<(), Report> {
    sys::step();
    sys::socket::send(to_init.as_fd(), b"mapped", &[])?;
    sys::step();
    Ok(())
}

/// Whether we have every right over files, but not the whole host's: then the flags of the host's mounts are locked where
/// we are, and stay so in clones that we make, whoever gets them (mount_namespaces(7)). Clones of the host's root would
/// have flags that the container's root could take away.
fn is_root_of_a_user_namespace() -> Result<bool, SysError> {
    let admin = sys::security::capabilities()?.effective & bit(Capability::SysAdmin) != 0;
    Ok(admin && !maps_every_id()?)
}

/// Hears a helper out, until it has said which process it has forked for us, and reaps it; `unmapped` when it waits for
/// its maps.
pub(crate) fn born(
    channel: &Channel,
    helper: &Child,
    caller: &mut dyn Making,
    unmapped: &mut dyn FnMut() -> Result<(), Report>,
) -> Result<Child, Report> {
    let child = loop {
        // Init holds the channel's other end too, so that it does not end with a helper that is killed after the fork.
        if !speaks_before_its_end(channel, helper)? {
            reap(helper.pidfd.as_fd(), true)?;
            return Err(Report::new(Kind::Internal, "the process that enters the namespaces was killed"));
        }
        match channel.receive()? {
            Some((Message::Unmapped, _)) => unmapped()?,
            Some((Message::Init { pid }, Some(pidfd))) => break Ok(Child { pid, pidfd }),
            Some((Message::Notice(text), _)) => caller.notice(text),
            Some((Message::Failed(failure), _)) => break Err(failure.into()),
            Some(_) => {}
            None => break Err(Report::new(Kind::Internal, "the process that enters the namespaces was killed")),
        }
    };
    sys::step();
    reap(helper.pidfd.as_fd(), true)?;
    sys::step();
    child
}

/// Waits for a message, or for the end of a process that may have sent none.
fn speaks_before_its_end(channel: &Channel, process: &Child) -> Result<bool, SysError> {
    loop {
        let both = [channel.as_fd(), process.pidfd.as_fd()];
        let mut fds = both.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return Ok(fds[0].any().unwrap_or(false)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::new("poll()", errno)),
        }
    }
}

/// What init said before it ended, where that is why something could not be done for it.
fn said(channel: &Channel) -> Option<Report> {
    while poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        if let (Message::Failed(failure), _) = channel.receive().ok()?? {
            return Some(failure.into());
        }
    }
    None
}

fn taken<T>(cell: &Cell<Option<T>>) -> Result<T, Report> {
    cell.take().ok_or_else(|| Report::new(Kind::Internal, "a descriptor was taken twice"))
}

fn map(launch: &Launch, pid: i32) -> Result<(), Report> {
    if launch.uid_map.is_empty() {
        return Ok(());
    }
    outer::write_maps(pid, &launch.uid_map, &launch.gid_map).step(|| "mapping the container's ids".to_owned())
}

/// What a clock of the container is ahead, as a line of `/proc/PID/timens_offsets`; `None` without a new time namespace.
fn time_offsets(spec: &Spec) -> Option<String> {
    if !is_new(spec, LinuxNamespaceType::Time) {
        return None;
    }
    let offsets = spec.linux().iter().filter_map(|linux| linux.time_offsets().as_ref()).flatten();
    let line = |clock: &String, offset: &oci_spec::runtime::LinuxTimeOffset| {
        format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
    };
    Some(offsets.map(|(clock, offset)| line(clock, offset)).collect())
}

/// time_namespaces(7): children of the calling process are born with the shifted clocks.
#[expect(clippy::disallowed_methods, reason = "the caller's own /proc: no mount namespace has been entered")]
fn shift_clocks(offsets: &str) -> Result<(), SysError> {
    unshare(CLONE_NEWTIME).call(|| "unshare(CLONE_NEWTIME)".to_owned())?;
    if offsets.is_empty() {
        return Ok(());
    }
    fs::write("/proc/self/timens_offsets", offsets).call(|| format!("write(/proc/self/timens_offsets, {offsets:?})"))
}

/// Opens a namespace by its path.
pub fn open_namespace_at(path: &Path) -> Result<OwnedFd, Report> {
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
        .call(|| format!("open({path:?})"))?;
    let of_kernel = fstatfs(&fd).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
    of_kernel.then_some(fd).ok_or_else(|| Report::new(Kind::Usage, format!("{} is no namespace", path.display())))
}

/// Namespaces that the specification names by path.
#[derive(Debug)]
struct Joined {
    user: Option<OwnedFd>,
    others: Vec<(LinuxNamespaceType, OwnedFd)>,
}

impl Joined {
    /// Opens all of them before anything is made.
    fn open(spec: &Spec) -> Result<Self, Report> {
        let mut joined = Joined { user: None, others: Vec::new() };
        for namespace in listed(spec) {
            let Some(path) = namespace.path() else { continue };
            let fd = open_namespace_at(path).step(|| format!("joining a namespace of type {}", namespace.typ()))?;
            if namespace.typ() != LinuxNamespaceType::User {
                joined.others.push((namespace.typ(), fd));
            } else if identity(&fd)? != identity(open_own("user")?)? {
                // Our own cannot be joined again (EINVAL), and need not be.
                joined.user = Some(fd);
            }
        }
        Ok(joined)
    }

    fn is_empty(&self) -> bool {
        self.user.is_none() && self.others.is_empty()
    }

    /// Joins them all: those first that the caller's own rights reach, as the user namespace may not own them; then the
    /// user namespace; then the others.
    fn join(&self) -> Result<(), Report> {
        if !self.is_empty() {
            // Whoever is in the namespaces already must not look into us (CVE-2016-9962).
            nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
        }
        // The mount namespace last: with its `/proc` nothing can be trusted any more.
        let (mounts, others): (Vec<_>, Vec<_>) =
            self.others.iter().partition(|(typ, _)| *typ == LinuxNamespaceType::Mount);
        let Some(user) = &self.user else {
            return others.into_iter().chain(mounts).try_for_each(|(typ, fd)| join(*typ, fd));
        };
        let mut left = Vec::new();
        for namespace in others {
            match setns(&namespace.1, flag(namespace.0)) {
                Ok(()) => {}
                Err(Errno::EPERM) => left.push(namespace),
                Err(errno) => return Err(refused(namespace.0, errno)),
            }
        }
        join(LinuxNamespaceType::User, user)?;
        become_mapped_root()?;
        left.into_iter().chain(mounts).try_for_each(|(typ, fd)| join(*typ, fd))
    }
}

fn join(typ: LinuxNamespaceType, fd: &OwnedFd) -> Result<(), Report> {
    setns(fd, flag(typ)).map_err(|errno| refused(typ, errno))
}

pub(crate) fn refused(typ: LinuxNamespaceType, errno: Errno) -> Report {
    let report = Report::from(SysError::new(format!("setns({typ})"), errno));
    let report = report.with_step(format!("joining a namespace of type {typ}"));
    match errno {
        Errno::EINVAL => report.with_hint("the path is a namespace of another type"),
        Errno::EPERM => report.with_hint("who joins needs CAP_SYS_ADMIN in the user namespace that owns it"),
        _ => report,
    }
}

/// The flag of clone(2) for a namespace type.
fn flag(typ: LinuxNamespaceType) -> CloneFlags {
    match typ {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    }
}
