//! The networks that the container shares, as they come and go; [`crate::networks`] has the means.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use base::{Failure, Kind, Report};
use net::helper::HelperSpec;
use net::setup::Tap;
use net::{NetError, NetSpec, Publish, RoleSpec};
use runtime::stage::in_outer;

use crate::networks::{Admission, News, Purpose};
use crate::protocol::Frame;
use crate::record::Status;
use crate::resources::AGAIN;
use crate::role::{MAIN, Monitor};

impl Monitor {
    /// Has the container's devices put into its network namespace, while init goes on.
    pub(super) fn plug(&mut self, container: &OwnedFd) -> Result<(), Report> {
        if self.config.program.is_some() {
            return self.resources.hand_namespace(container.as_fd());
        }
        let init = self.processes.get(&MAIN).and_then(|main| main.pid).unwrap_or(0);
        self.networks.plug_all(self.outer.as_fd(), container.as_fd(), init)
    }

    /// The pid of init and the network namespace of a container that runs.
    fn running(&self) -> Result<(i32, OwnedFd), Report> {
        let main = self.processes.get(&MAIN).filter(|_| self.state.status == Status::Running);
        let init = main.and_then(|main| main.pid.zip(main.pidfd.as_ref()));
        let (pid, init) = init.ok_or_else(|| Report::new(Kind::Conflict, "the container is not running"))?;
        let opened = runtime::exec::open_namespaces(pid, init.as_fd(), &["net"])?.pop();
        Ok((pid, opened.ok_or_else(|| Report::new(Kind::Internal, "it has no network namespace"))?))
    }

    /// Starts the process of the container's own network again, over the same device; a program makes a new one.
    pub(super) fn revive_own_network(&mut self) -> Result<(), Report> {
        let publish: Vec<Publish> = self.published.iter().copied().map(Publish::from).collect();
        if let Some(spec) = self.config.program.clone() {
            let (_, container) = self.running()?;
            net::ports::await_free(&publish);
            let spec = RoleSpec::Program(HelperSpec { publish, ..spec });
            self.resources.revive_network(&self.config.id, &spec)?;
            return self.resources.hand_namespace(container.as_fd());
        }
        let Some(spec) = self.config.network.clone() else { return Ok(()) };
        let (_, container) = self.running()?;
        let fds = [("container", container.as_fd())];
        let (ipv6, [device]) = in_outer(self.outer.as_fd(), &fds, |inherited| {
            let container = inherited.fd("container")?;
            let Tap { device, ipv6 } = net::setup::reopen(container.as_fd()).map_err(NetError::into_report)?;
            Ok((ipv6, [device]))
        })?;
        net::ports::await_free(&publish);
        let resolvers = if spec.resolvers_are_the_hosts { net::resolvers::now() } else { spec.resolvers.clone() };
        let spec = RoleSpec::Own(NetSpec { publish, resolvers, ..spec });
        self.resources.revive_network(&self.config.id, &spec)?;
        self.resources.hand_tap(&Tap { device, ipv6 })?;
        self.resources.set_names(self.networks.of_others());
        Ok(())
    }

    /// Something has happened at one of the networks' descriptors.
    pub(super) fn on_networks(&mut self) {
        match self.networks.on_ready() {
            News::Done { purpose, result, aside } => {
                let result = result.map(|names| names.into_iter().for_each(|names| self.resources.set_names(&names)));
                if self.config.network.is_none() {
                    self.published = self.networks.published().to_vec();
                }
                if let Some(report) = aside {
                    self.tell_aside(&purpose, &report);
                }
                self.networks_done(purpose, result);
            }
            News::Names(names) => self.resources.set_names(&names),
            News::Nothing => {}
        }
    }

    /// Starts roles again that are due.
    pub(super) fn check_networks(&mut self) {
        if self.networks.deadline().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let running = self.running().ok();
        let container = running.as_ref().map(|(_, container)| container.as_fd());
        if let Some(Err((network, report))) = self.networks.revive(self.outer.as_fd(), container) {
            self.networks_done(Purpose::Revive { network }, Err(report));
        }
    }

    /// Tells who has asked, and who is attached, what failed besides.
    fn tell_aside(&mut self, purpose: &Purpose, report: &Report) {
        let text = report.lines().join(": ");
        if let Purpose::Connect { client, .. } | Purpose::Disconnect { client } = purpose
            && let Some(client) = self.clients.get_mut(client)
        {
            client.send(&Frame::Notice(text.clone()));
        }
        self.notice(MAIN, &text);
    }

    fn networks_done(&mut self, purpose: Purpose, result: Result<(), Report>) {
        match (purpose, result) {
            (Purpose::Start, Ok(())) => {
                self.config.networks = self.networks.admissions();
                self.try_go();
            }
            (Purpose::Start, Err(report)) => self.start_failed(&report),
            (Purpose::Publish, Ok(())) => {}
            (Purpose::Publish, Err(report)) => {
                self.notice(MAIN, &format!("its ports are not published any more: {}", report.lines().join(": ")));
            }
            (Purpose::Connect { client, .. } | Purpose::Disconnect { client }, result) => {
                let recorded = self.state.pid.map_or(Ok(()), |pid| self.write_pid(pid));
                self.config.networks = self.networks.admissions();
                // Without it the container is not taken over should we be killed, and nothing else fails.
                let _ = self.keep();
                self.follow_resolvers();
                let frame = match result.and(recorded) {
                    Ok(()) => Frame::Exit(0),
                    Err(report) => Frame::Failed(Failure::from(&report)),
                };
                self.answer(client, &frame);
            }
            (Purpose::Revive { network }, result) => {
                let name = self.networks.joinings().find(|joining| joining.network == network);
                let name = name.map_or(network, |joining| joining.name.clone());
                let what_now = match result {
                    Ok(()) => "it was started again; connections through it are lost".to_owned(),
                    Err(report) => format!(
                        "it could not be started again ({}), which is tried every {} s",
                        report.lines().join(": "),
                        AGAIN.as_secs()
                    ),
                };
                self.notice(MAIN, &format!("the process of network {name} has ended: {what_now}"));
            }
        }
    }

    /// A client wants the container to be in a network.
    pub(super) fn connect(&mut self, client: u64, admission: Admission, fds: Vec<OwnedFd>) {
        let without = |_| Report::new(Kind::Internal, "a request to connect without its descriptors");
        let fds = <[OwnedFd; 2]>::try_from(fds).map_err(without);
        let result = self.running().and_then(|(init, container)| {
            let (outer, [socket, namespace]) = (self.outer.as_fd(), fds?);
            self.networks.connect(outer, container.as_fd(), admission, (socket, namespace), (init, client))
        });
        if let Err(report) = result {
            self.answer(client, &Frame::Failed(Failure::from(&report)));
        }
    }

    /// A client wants it out again.
    pub(super) fn disconnect(&mut self, client: u64, network: &str) {
        let result = self.running().and_then(|(_, container)| {
            self.networks.disconnect(self.outer.as_fd(), container.as_fd(), network, client)
        });
        match result {
            Ok(true) => {}
            // A command that was killed has had it done.
            Ok(false) => self.answer(client, &Frame::Exit(0)),
            Err(report) => self.answer(client, &Frame::Failed(Failure::from(&report))),
        }
    }

    /// A client has given the container another name.
    pub(super) fn rename(&mut self, client: u64, name: &str) {
        self.networks.rename(name);
        self.config.networks = self.networks.admissions();
        // As above.
        let _ = self.keep();
        self.answer(client, &Frame::Exit(0));
    }

    /// A client wants to look at the container's traffic.
    pub(super) fn show(&mut self, client: u64, network: Option<&str>, fds: &[OwnedFd]) {
        let without = || Report::new(Kind::Internal, "a request to look without its descriptor");
        let shown = fds.first().ok_or_else(without).and_then(|observer| match network {
            Some(network) => self.networks.show(network, observer.as_fd()),
            None => self.resources.show(observer.as_fd()),
        });
        let frame = shown.map_or_else(|report| Frame::Failed(Failure::from(&report)), |()| Frame::Exit(0));
        self.answer(client, &frame);
    }

    fn answer(&mut self, client: u64, frame: &Frame) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.send(frame);
            client.closing = true;
        }
    }
}
