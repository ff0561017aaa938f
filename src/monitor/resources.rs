//! What a container has of the host besides its processes: its cgroup and its network process.
//!
//! The monitor stands in a leaf beside the container's cgroup, so that its children can be born there and no limit of the
//! container is a limit of the monitor.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::{ContainerId, Kind, Ladder, Report};
use cgroup::{Container, Limits, Placement, Request};
use net::RoleSpec;
use net::client::Control;
use net::resolvers::Watch;
use net::setup::Tap;
use sys::Errno;
use sys::process::Child;

/// A network process that ends again within this time is not started again.
pub const AGAIN: Duration = Duration::from_secs(5);
/// How long a program that it has started may take to end.
const PROGRAM_ENDS: Duration = Duration::from_secs(5);

/// The resources of one container; empty until [`Resources::start_network`].
#[derive(Debug, Default)]
pub struct Resources {
    placement: Option<Placement>,
    cgroup: Option<Container>,
    network: Option<Network>,
    /// When the network process was last started again.
    revived: Option<Instant>,
}

#[derive(Debug)]
struct Network {
    process: Child,
    control: Option<Control>,
    ready: bool,
    resolvers: Option<Watch>,
    /// What the process has started. Its device and its ports are taken until it has ended.
    program: Option<OwnedFd>,
}

/// Watches the host's resolvers, of which these are known.
pub fn watch_resolvers(known: &[SocketAddr]) -> Result<Watch, Report> {
    Watch::new(known).map_err(|error| {
        let is_off = error.errno() == Errno::EINVAL;
        let report = Report::from(error);
        if is_off { report.with_hint("turn fs.dir-notify-enable on with sysctl") } else { report }
    })
}

impl Resources {
    /// Finds the calling monitor its place below the user's delegated cgroup, unless it was born there, and makes the
    /// container's with its limits. Returns the ladder that was climbed.
    pub fn place(&mut self, request: Request<'_>, limits: &Limits) -> Result<&Ladder, Report> {
        let placement = self.placement.insert(Placement::climb(request)?);
        self.cgroup = placement.container(limits)?;
        Ok(&placement.ladder)
    }

    /// Finds the calling monitor its place, and opens the cgroup of a container that runs already.
    pub fn take_over(&mut self, request: Request<'_>, cgroup: &Path) -> Result<(), Report> {
        self.cgroup = Some(Container::open(cgroup)?);
        self.placement = Some(Placement::climb(request)?);
        Ok(())
    }

    /// Makes the container's cgroup anew after [`Resources::tear_down`].
    pub fn place_again(&mut self, limits: &Limits) -> Result<(), Report> {
        self.cgroup = self.placement.as_ref().map(|placement| placement.container(limits)).transpose()?.flatten();
        Ok(())
    }

    /// Starts the network process; it binds published ports while the container is being made.
    pub fn start_network(&mut self, id: &ContainerId, spec: &RoleSpec) -> Result<(), Report> {
        let (process, control) =
            net::client::spawn(spec, id.short(), None, None).map_err(net::NetError::into_report)?;
        self.network = Some(Network { process, control: Some(control), ready: false, resolvers: None, program: None });
        Ok(())
    }

    /// Starts the network process of a container that runs again. One that ends twice within a short time is not.
    pub fn revive_network(&mut self, id: &ContainerId, spec: &RoleSpec) -> Result<(), Report> {
        let now = Instant::now();
        if self.revived.replace(now).is_some_and(|before| now.duration_since(before) < AGAIN) {
            return Err(Report::new(Kind::Internal, format!("it has ended twice within {} s", AGAIN.as_secs())));
        }
        self.end_network().map_or(Ok(()), Err)?;
        self.start_network(id, spec)
    }

    /// Hands the container's TAP device over. A process that has ended has told why, which [`Resources::on_net`] reads.
    pub fn hand_tap(&self, tap: &Tap) -> Result<(), Report> {
        self.hand(|control| control.hand_tap(tap))
    }

    /// Hands the container's network namespace over, where a program makes the device.
    pub fn hand_namespace(&self, namespace: BorrowedFd<'_>) -> Result<(), Report> {
        self.hand(|control| control.hand_namespace(namespace))
    }

    fn hand(&self, hand: impl FnOnce(&Control) -> Result<(), net::NetError>) -> Result<(), Report> {
        let control = self.network.as_ref().and_then(|network| network.control.as_ref());
        match control.map_or(Ok(()), hand) {
            Err(net::NetError::System(error)) if error.errno() == Errno::EPIPE => Ok(()),
            result => result.map_err(net::NetError::into_report),
        }
    }

    /// Tells the network process the names of the container's other networks. One that has ended says so itself.
    pub fn set_names(&mut self, names: &net::NameTable) {
        if let Some(control) = self.network.as_mut().and_then(|network| network.control.as_mut()) {
            control.set_names(names);
        }
    }

    /// Tells the network process what it did not take before; whether it is to be tried again.
    pub fn catch_up(&mut self) -> bool {
        let control = self.network.as_mut().and_then(|network| network.control.as_mut());
        control.is_some_and(|control| {
            control.catch_up();
            control.is_behind()
        })
    }

    /// Lets somebody look at the container's traffic.
    pub fn show(&self, observer: BorrowedFd<'_>) -> Result<(), Report> {
        let control = self.network.as_ref().and_then(|network| network.control.as_ref());
        let without = || Report::new(Kind::Conflict, "the container has no network process");
        control.ok_or_else(without)?.show(observer).map_err(net::NetError::into_report)
    }

    /// The control socket, to be polled.
    pub fn net_socket(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().and_then(|network| network.control.as_ref()).map(AsFd::as_fd)
    }

    /// Follows the host's resolvers from now on, of which the network process knows these.
    pub fn follow_resolvers(&mut self, known: &[SocketAddr]) -> Result<(), Report> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.resolvers = Some(watch_resolvers(known)?);
        // There may have been others since they were read.
        self.on_resolvers();
        Ok(())
    }

    /// Tells the network process of resolvers that have changed.
    pub fn on_resolvers(&mut self) {
        if let Some(Network { control: Some(control), resolvers: Some(watch), .. }) = &mut self.network
            && let Some(resolvers) = watch.changed()
        {
            control.set_resolvers(resolvers);
        }
    }

    /// Whether the network is up, or none was asked for.
    pub fn net_ready(&self) -> bool {
        self.network.as_ref().is_none_or(|network| network.ready)
    }

    /// Takes the network process's word: ready with these ports, or a failure; its end is one too.
    pub fn on_net(&mut self) -> Result<Option<Vec<net::Published>>, Report> {
        let Some(network) = &mut self.network else { return Ok(None) };
        let Some(control) = &network.control else { return Ok(None) };
        match control.wait_ready() {
            Ok((published, program)) => {
                (network.ready, network.program) = (true, program);
                Ok(Some(published))
            }
            Err(error) => {
                (network.control, network.resolvers) = (None, None);
                Err(error.into_report())
            }
        }
    }

    /// The directory of the container's cgroup, to be born in.
    pub fn cgroup_dir(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Container::dir)
    }

    /// The directory of the cgroup that a further process is to be born in, where `init` is the container's first.
    pub fn cgroup_for_exec(&self, init: i32) -> Result<Option<OwnedFd>, Report> {
        Ok(self.cgroup.as_ref().map(|cgroup| cgroup.dir_for_exec(init)).transpose()?)
    }

    /// Its path.
    pub fn cgroup_path(&self) -> Option<PathBuf> {
        self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned())
    }

    /// Whether its processes stand still.
    pub fn is_frozen(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| cgroup::is_frozen(cgroup.path()))
    }

    /// Whether the kernel has killed a process of the container for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| cgroup.oom_kills() > 0)
    }

    /// Ends the network process; what could not be done.
    fn end_network(&mut self) -> Option<Report> {
        let Network { process, control, program, .. } = self.network.take()?;
        // The end of its control socket ends it; the signal is for one that does not look.
        drop(control);
        for ended in std::iter::once(&process.pidfd).chain(&program) {
            let _ = sys::process::pidfd_send_signal(ended.as_fd(), nix::sys::signal::Signal::SIGKILL as i32);
        }
        // It may have ended before, and been reaped with others.
        let reaped = sys::process::reap(process.pidfd.as_fd(), true);
        let failure = reaped.err().filter(|error| error.errno() != Errno::ECHILD).map(Report::from);
        let has_ended = program.is_none_or(|program| sys::process::wait_end(program.as_fd(), Some(PROGRAM_ENDS)));
        failure.or_else(|| (!has_ended).then(|| Report::new(Kind::Internal, "the network's program does not end")))
    }

    /// Ends the network process, kills what is left in the cgroup and removes it. Goes on after a failure; the results
    /// are what could not be done.
    pub fn tear_down(&mut self) -> Vec<Report> {
        let mut failures: Vec<Report> = self.end_network().into_iter().collect();
        if let Some(cgroup) = self.cgroup.take() {
            failures.extend(cgroup.kill().and_then(|()| cgroup.remove()).err().map(Report::from));
        }
        failures
    }
}
