//! The networks that a container shares with others: the monitor holds its membership of each, and has its devices made.
//!
//! A membership is a connection to the network's role ([`net::role`]), and lasts as long as that is open; a container that is
//! started again in place keeps it, and so its addresses. What takes more than a message is done by children, which live for some
//! milliseconds ([`errands`]): devices are put into the container's network namespace while init makes its mounts, and for a
//! container that runs when a command asks for it.
//!
//! One network **leads**: what is elsewhere is reached by it, the container's name server is its role, and the container's ports are
//! bound for it. That is the first from which something leads out; another one takes over when the container leaves it. The role of
//! the one that leads is told the names of the others.
//!
//! A role that ends before its members, killed or of a fault, is started again by whichever monitor is the first to notice, over
//! the same devices; all get the addresses that they had. Connections through it are lost, those between members are not. Where a
//! command was faster the network is another one, and each monitor moves its container's device there.

mod errands;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use base::{Kind, Report};
use net::bridge::Plug;
use net::client::Entry;
use net::control::{Message, Outbox, names_in_parts, take_names};
use net::resolvers::Watch;
use net::setup::DEVICE;
use net::{Addressing, NameTable, NetError, Publish, Published};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtime::stage::in_outer;
use serde::{Deserialize, Serialize};

use crate::networks::errands::Done;
use crate::resources::{AGAIN, watch_resolvers};

/// What a container has in a network that it shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// The network's id.
    pub network: String,
    /// Its name.
    pub name: String,
    /// The name of the device inside.
    pub device: String,
    /// Its addresses.
    pub addressing: Addressing,
    /// Whether what is elsewhere is reached by it.
    pub default: bool,
    /// Whether the container has IPv6 there.
    #[serde(default = "yes")]
    pub ipv6: bool,
}

/// As far as is known of a device that is not there yet.
fn yes() -> bool {
    true
}

impl Joining {
    /// The device of a container whose init has this pid.
    pub fn plug(&self, init: i32) -> Plug {
        let Joining { device, addressing, default, .. } = self.clone();
        Plug { device, peer: peer(init), addressing, default }
    }
}

/// Sees to it that a container has its device in a network, as root of the outer user namespace; [`net::bridge::replug`].
pub fn replug(
    outer: BorrowedFd<'_>,
    network: BorrowedFd<'_>,
    container: BorrowedFd<'_>,
    plug: &Plug,
) -> Result<Option<bool>, Report> {
    let (ipv6, []) = in_outer(outer, &[("network", network), ("container", container)], |inherited| {
        let (network, container) = (inherited.fd("network")?, inherited.fd("container")?);
        let plugged = net::bridge::replug(network.as_fd(), container.as_fd(), plug);
        Ok((plugged.map_err(NetError::into_report)?, []))
    })?;
    Ok(ipv6)
}

/// A container's place in a network, and how it gets that again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// What it has.
    pub joining: Joining,
    /// The way in.
    pub entry: Entry,
}

/// All of a container's shared networks.
#[derive(Debug, Default)]
pub struct Networks {
    joined: Vec<Joined>,
    has_own: bool,
    tasks: Vec<Task>,
    /// Whether the devices that it starts with are there.
    ready: bool,
    /// The ports that are to lead in by the network that leads out: as they were asked for, and with their numbers once they were
    /// bound, which they keep whatever is started again or serves them then.
    ports: Vec<Publish>,
    /// Those that are bound.
    published: Vec<Published>,
    /// The names of others that the role of the network that leads, or of the container's own, knows.
    relayed: NameTable,
    resolvers: Option<Watch>,
}

#[derive(Debug)]
struct Joined {
    admission: Admission,
    /// `None` while the network's role has ended.
    socket: Option<OwnedFd>,
    /// What it has not taken yet.
    outbox: Outbox,
    namespace: OwnedFd,
    /// The pid of the init for which its device was made, or is.
    init: i32,
    /// Whether the role tells us its names.
    follows: bool,
    /// These.
    names: NameTable,
    /// When the role was last started again, or joined again.
    revived: Option<Instant>,
    /// When it is to be tried again.
    again_at: Option<Instant>,
}

/// A child at work.
#[derive(Debug)]
struct Task {
    answer: OwnedFd,
    purpose: Purpose,
}

/// What a child works for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The start of the container.
    Start,
    /// A client's request to be in one more network, whose id this is.
    Connect {
        /// The client's key.
        client: u64,
        /// The network's id.
        network: String,
    },
    /// A client's request to leave one.
    Disconnect {
        /// The client's key.
        client: u64,
    },
    /// The ports of a container that was taken over.
    Publish,
    /// The network with this id, whose role has ended.
    Revive {
        /// Its id.
        network: String,
    },
}

/// What has happened at one of the descriptors.
#[derive(Debug)]
pub enum News {
    /// A child has done its work or failed.
    Done {
        /// Which.
        purpose: Purpose,
        /// What it was for is done; with names as of [`News::Names`].
        result: Result<Option<NameTable>, Report>,
        /// What failed besides.
        aside: Option<Report>,
    },
    /// The container's other networks have other names, and its own network is to know these.
    Names(NameTable),
    /// Nothing that others need to know.
    Nothing,
}

/// The name at the bridge of the device of a container whose init has this pid.
fn peer(init: i32) -> String {
    format!("v{init}")
}

impl Joined {
    fn new(admission: Admission, (socket, namespace): (OwnedFd, OwnedFd)) -> Self {
        let (init, names, socket, outbox) = (0, NameTable::new(), Some(socket), Outbox::default());
        Joined { admission, socket, outbox, namespace, init, follows: false, names, revived: None, again_at: None }
    }

    /// Tells the role of a container without IPv6.
    fn has_ipv6(&mut self, ipv6: bool) {
        self.admission.joining.ipv6 = ipv6;
        if !ipv6 {
            self.say([Message::Ipv6(false)]);
        }
    }

    /// Tells the role something. One that has ended is told of by its socket, and is told all at its start.
    fn say(&mut self, messages: impl IntoIterator<Item = Message>) {
        if let Some(socket) = &self.socket {
            self.outbox.put(messages);
            self.outbox.send(socket.as_fd());
        }
    }

    fn is(&self, network: &str) -> bool {
        self.admission.joining.network == network
    }
}

impl Networks {
    /// Holds the memberships that the container begins with, sockets and namespaces in the same order; `has_own` says whether it
    /// has a network of its own besides.
    pub fn new(admissions: &[Admission], fds: Vec<(OwnedFd, OwnedFd)>, has_own: bool) -> Self {
        let joined = admissions.iter().cloned().zip(fds).map(|(admission, fds)| Joined::new(admission, fds));
        Networks { joined: joined.collect(), has_own, ..Networks::default() }
    }

    /// What a successor needs.
    pub fn admissions(&self) -> Vec<Admission> {
        self.joined.iter().map(|joined| joined.admission.clone()).collect()
    }

    /// What the container has.
    pub fn joinings(&self) -> impl Iterator<Item = &Joining> {
        self.joined.iter().map(|joined| &joined.admission.joining)
    }

    /// The container's ports, as they are bound.
    pub fn published(&self) -> &[Published] {
        &self.published
    }

    /// The network that leads, if it is not the container's own.
    fn leader(&self) -> Option<usize> {
        let first = (!self.joined.is_empty()).then_some(0);
        if self.has_own { None } else { self.way_out().or(first) }
    }

    /// The network by which what is elsewhere is reached, and ports lead in.
    fn way_out(&self) -> Option<usize> {
        self.joined.iter().position(|joined| joined.admission.joining.default)
    }

    /// Binds the container's ports, if one of its networks leads out.
    pub fn publish(&mut self, wishes: &[Publish]) -> Result<(), Report> {
        if self.ports.is_empty() {
            self.ports = wishes.to_vec();
        }
        let socket = self.way_out().and_then(|at| self.joined[at].socket.as_ref());
        if let Some(socket) = socket.filter(|_| self.published.is_empty()) {
            self.published = net::client::publish(socket.as_fd(), &self.ports).map_err(NetError::into_report)?;
            self.ports = self.published.iter().copied().map(Publish::from).collect();
        }
        Ok(())
    }

    /// Has the devices put into the network namespace of init, which has this pid.
    pub fn plug_all(&mut self, outer: BorrowedFd<'_>, container: BorrowedFd<'_>, init: i32) -> Result<(), Report> {
        if self.joined.is_empty() {
            return Ok(());
        }
        for joined in &mut self.joined {
            joined.init = init;
        }
        let answer = errands::plug(outer, container, &self.joined)?;
        self.tasks.push(Task { answer, purpose: Purpose::Start });
        Ok(())
    }

    /// Whether the container has the devices that it starts with.
    pub fn are_ready(&self) -> bool {
        self.joined.is_empty() || self.ready
    }

    /// Adds a membership to a container that runs, for a client.
    pub fn connect(
        &mut self,
        outer: BorrowedFd<'_>,
        container: BorrowedFd<'_>,
        admission: Admission,
        fds: (OwnedFd, OwnedFd),
        (init, client): (i32, u64),
    ) -> Result<(), Report> {
        let mut joined = Joined::new(admission, fds);
        joined.init = init;
        let own = self.has_own.then_some(DEVICE);
        let is_taken = |device: &str| own == Some(device) || self.joinings().any(|joining| joining.device == device);
        let free = (0..=self.joined.len() + 1).map(|number| format!("eth{number}")).find(|device| !is_taken(device));
        let leads = self.has_own || self.joinings().any(|joining| joining.default);
        let joining = &mut joined.admission.joining;
        joining.device = free.unwrap_or_default();
        joining.default = !leads && !joined.admission.entry.spec.internal;
        let network = joining.network.clone();
        let ports: &[Publish] = if joining.default { &self.ports } else { &[] };
        let answer = errands::connect(outer, container, &joined, ports)?;
        self.joined.push(joined);
        self.tasks.push(Task { answer, purpose: Purpose::Connect { client, network } });
        Ok(())
    }

    /// Takes a container that runs out of the network with this id, for a client; `false` where it is out of it already.
    pub fn disconnect(
        &mut self,
        outer: BorrowedFd<'_>,
        container: BorrowedFd<'_>,
        network: &str,
        client: u64,
    ) -> Result<bool, Report> {
        let Some(at) = self.joined.iter().position(|joined| joined.is(network)) else { return Ok(false) };
        // The end of its connection is the end of its membership.
        let led = self.leader() == Some(at);
        let Joined { admission, namespace, init, .. } = self.joined.remove(at);
        if led {
            self.relayed.clear();
        }
        let mut next = None;
        if admission.joining.default {
            self.published.clear();
            next = self.joined.iter_mut().find(|joined| !joined.admission.entry.spec.internal);
            if let Some(next) = &mut next {
                next.admission.joining.default = true;
            }
        }
        let next = next.map(|next| (container, &*next));
        let answer = errands::unplug(outer, (namespace.as_fd(), &peer(init)), next, &self.ports)?;
        self.tasks.push(Task { answer, purpose: Purpose::Disconnect { client } });
        Ok(true)
    }

    /// Lets others find the container by another name; of its names the first is its own. A role that has ended is told at its
    /// start.
    pub fn rename(&mut self, name: &str) {
        for joined in &mut self.joined {
            let names = &mut joined.admission.entry.wish.names;
            names.iter_mut().take(1).for_each(|own| name.clone_into(own));
            let names = names.clone();
            joined.say([Message::Called(names)]);
        }
    }

    /// Lets somebody look at the container's traffic in the network with this id.
    pub fn show(&self, network: &str, observer: BorrowedFd<'_>) -> Result<(), Report> {
        let socket = self.joined.iter().find(|joined| joined.is(network)).and_then(|joined| joined.socket.as_ref());
        let without = || Report::new(Kind::Conflict, "the container is not in that network, or its process has ended");
        net::client::show(socket.ok_or_else(without)?.as_fd(), observer).map_err(NetError::into_report)
    }

    /// The names that the role of the container's own network is to know.
    pub fn of_others(&self) -> &NameTable {
        &self.relayed
    }

    /// Descriptors to be polled for reading, for each of which that is ready there is one call of [`Networks::on_ready`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let tasks = self.tasks.iter().map(|task| task.answer.as_fd());
        tasks.chain(self.joined.iter().filter_map(|joined| joined.socket.as_ref()).map(AsFd::as_fd))
    }

    /// The first descriptor that is ready now: what was done for another one may have taken some away.
    fn first_ready(&self) -> Option<usize> {
        let mut polled: Vec<PollFd<'_>> = self.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut polled, PollTimeout::ZERO).ok()?;
        polled.iter().position(|polled| polled.revents().is_some_and(|events| !events.is_empty()))
    }

    /// Looks at a descriptor that is ready.
    pub fn on_ready(&mut self) -> News {
        let Some(position) = self.first_ready() else { return News::Nothing };
        if position < self.tasks.len() {
            let Task { answer, purpose } = self.tasks.remove(position);
            return match errands::answered(answer.as_fd()) {
                Ok(done) => self.take(purpose, done),
                Err(report) => {
                    match &purpose {
                        Purpose::Connect { network, .. } => self.joined.retain(|joined| !joined.is(network)),
                        Purpose::Revive { network } => {
                            self.try_again(network, AGAIN);
                        }
                        Purpose::Start | Purpose::Disconnect { .. } | Purpose::Publish => {}
                    }
                    News::Done { purpose, result: Err(report), aside: None }
                }
            };
        }
        let mut sockets = self.joined.iter_mut().filter(|joined| joined.socket.is_some());
        let Some(joined) = sockets.nth(position - self.tasks.len()) else { return News::Nothing };
        let told = joined.socket.as_ref().map(|socket| net::client::next_names(socket.as_fd()));
        if let Some(Ok(Some((first, names)))) = told {
            take_names(&mut joined.names, first, names);
            return self.relay();
        }
        (joined.socket, joined.follows, joined.outbox) = (None, false, Outbox::default());
        // One that has ended again at once is given some time.
        let (now, before) = (Instant::now(), joined.revived);
        joined.again_at = Some(before.map_or(now, |before| now.max(before + AGAIN)));
        News::Nothing
    }

    fn try_again(&mut self, network: &str, wait: Duration) {
        if let Some(joined) = self.joined.iter_mut().find(|joined| joined.is(network)) {
            joined.again_at = Some(Instant::now() + wait);
        }
    }

    /// When a role is to be started again.
    pub fn deadline(&self) -> Option<Instant> {
        self.joined.iter().filter_map(|joined| joined.again_at).min()
    }

    /// Has a role started again that is due, or its network joined where another monitor was faster; `running` is the container's
    /// network namespace, if it runs. The failure of one is told with its network.
    pub fn revive(
        &mut self,
        outer: BorrowedFd<'_>,
        running: Option<BorrowedFd<'_>>,
    ) -> Option<Result<(), (String, Report)>> {
        let now = Instant::now();
        let at = self.joined.iter().position(|joined| joined.again_at.is_some_and(|at| at <= now))?;
        (self.joined[at].again_at, self.joined[at].revived) = (None, Some(now));
        let ports: &[Publish] = if self.way_out() == Some(at) { &self.ports } else { &[] };
        let network = self.joined[at].admission.joining.network.clone();
        Some(match errands::revive(outer, running, &self.joined[at], ports) {
            Ok(answer) => {
                self.tasks.push(Task { answer, purpose: Purpose::Revive { network } });
                Ok(())
            }
            Err(report) => {
                self.try_again(&network, AGAIN);
                Err((network, report))
            }
        })
    }

    /// Takes what a child has done.
    fn take(&mut self, purpose: Purpose, done: Done) -> News {
        let Done { membership, ipv6, published, aside } = done;
        match &purpose {
            Purpose::Start => {
                self.ready = true;
                self.joined.iter_mut().zip(ipv6).for_each(|(joined, ipv6)| joined.has_ipv6(ipv6));
            }
            Purpose::Connect { network, .. } | Purpose::Revive { network } => {
                if let Some(joined) = self.joined.iter_mut().find(|joined| joined.is(network)) {
                    if let Some((socket, namespace)) = membership {
                        (joined.socket, joined.namespace) = (Some(socket), namespace);
                    }
                    joined.has_ipv6(ipv6.first().copied().unwrap_or(joined.admission.joining.ipv6));
                }
            }
            Purpose::Disconnect { .. } | Purpose::Publish => {}
        }
        if let Some(published) = published {
            self.published = published;
        }
        if matches!(purpose, Purpose::Revive { .. }) {
            self.relayed.clear();
        }
        self.follow_names();
        // One that has just come to lead, or has been started again, does not know them.
        if let News::Names(names) = self.relay() {
            return News::Done { purpose, result: Ok(Some(names)), aside };
        }
        News::Done { purpose, result: Ok(None), aside }
    }

    /// Has the roles of the networks that do not lead tell their names. One that has ended is told of by its socket.
    fn follow_names(&mut self) {
        let leader = self.leader();
        for (_, joined) in
            self.joined.iter_mut().enumerate().filter(|(at, joined)| Some(*at) != leader && !joined.follows)
        {
            joined.follows = joined.socket.is_some();
            joined.say([Message::Follow]);
        }
    }

    /// Tells the network that leads the names of the others.
    fn relay(&mut self) -> News {
        let leader = self.leader();
        let others = self.joined.iter().enumerate().filter(|(at, _)| Some(*at) != leader);
        let names: NameTable = others.flat_map(|(_, joined)| joined.names.iter().cloned()).collect();
        // Each other's names would go round for ever.
        if names == self.relayed {
            return News::Nothing;
        }
        if let Some(leader) = leader {
            self.joined[leader].say(names_in_parts(&names));
        }
        self.relayed = names;
        if self.has_own { News::Names(self.relayed.clone()) } else { News::Nothing }
    }

    /// Follows the host's resolvers from now on. Roles are told those of now too, as nobody knows which ones they know.
    pub fn follow_resolvers(&mut self) -> Result<(), Report> {
        self.resolvers = Some(watch_resolvers(&[])?);
        self.on_resolvers();
        Ok(())
    }

    /// Tells the roles of resolvers that have changed.
    pub fn on_resolvers(&mut self) {
        let Some(resolvers) = self.resolvers.as_mut().and_then(Watch::changed) else { return };
        for joined in &mut self.joined {
            joined.say([Message::Resolvers(resolvers.to_vec())]);
        }
    }

    /// Tells roles what they did not take before; whether it is to be tried again.
    pub fn catch_up(&mut self) -> bool {
        let mut is_behind = false;
        for joined in &mut self.joined {
            if let Some(socket) = &joined.socket {
                joined.outbox.send(socket.as_fd());
            }
            is_behind |= joined.outbox.is_behind();
        }
        is_behind
    }

    /// The container's namespace is gone; memberships and ports stay.
    pub fn rest(&mut self) {
        self.ready = false;
        for task in std::mem::take(&mut self.tasks) {
            if let Purpose::Revive { network } = task.purpose {
                self.try_again(&network, Duration::ZERO);
            }
        }
        // A network of its own gets a role that knows none.
        self.relayed.clear();
    }

    /// Takes over what the monitor of a container had that runs, whose init has this pid: its devices are there, and its ports, if
    /// they were bound for a network that it shares, are bound again.
    pub fn take_over(&mut self, init: i32, published: &[Published], wishes: &[Publish]) -> Result<(), Report> {
        for joined in &mut self.joined {
            joined.init = init;
            joined.has_ipv6(joined.admission.joining.ipv6);
        }
        self.ready = true;
        self.follow_names();
        if self.has_own {
            return Ok(());
        }
        self.published = published.to_vec();
        self.ports = published.iter().copied().map(Publish::from).collect();
        if self.ports.is_empty() {
            self.ports = wishes.to_vec();
        }
        let socket = self.way_out().and_then(|at| self.joined[at].socket.as_ref());
        if let Some(socket) = socket.filter(|_| !self.ports.is_empty()) {
            let (answer, purpose) = (errands::publish(socket.as_fd(), &self.ports)?, Purpose::Publish);
            self.tasks.push(Task { answer, purpose });
        }
        Ok(())
    }
}
