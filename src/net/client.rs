//! Starting network processes, joining them, and feeding them: the other half of [`crate::role`].

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Report;
use netstack::NameTable;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, SockFlag, bind, connect, listen};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use sys::process::Child;
use sys::role::Spawn;
use sys::{Call, SysError};

use crate::bridge::Made;
use crate::control::{Message, Outbox, Wish, names_in_parts, receive, send};
use crate::ports::Listener;
use crate::setup::Tap;
use crate::{Addressing, NetError, NetworkSpec, Publish, Published, RoleSpec, ports, resolvers};

/// The role's `argv[0]`.
pub const ARGV0: &str = "sublet-net";

/// A running network process; dropping it ends the process.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    outbox: Outbox,
}

/// Starts the network process of one container. The caller must have one thread. `error` is where the process may complain.
pub fn spawn(
    spec: &RoleSpec,
    label: &str,
    cgroup: Option<BorrowedFd<'_>>,
    error: Option<BorrowedFd<'_>>,
) -> Result<(Child, Control), NetError> {
    let config = serde_json::to_vec(spec).map_err(NetError::Protocol)?;
    let (ours, theirs) = sys::socket::pair()?;
    let spawn = Spawn {
        argv0: ARGV0,
        label,
        config: &config,
        fds: &[("control", theirs.as_fd())],
        stdio: [None, None, error],
        session: false,
        cgroup,
    };
    Ok((spawn.start()?, Control { socket: ours, outbox: Outbox::default() }))
}

impl Control {
    /// Waits until the ports are bound; returns them with the host's ports that were chosen, and the program that the role has
    /// started, if it has. Blocks.
    pub fn wait_ready(&self) -> Result<(Vec<Published>, Option<OwnedFd>), NetError> {
        match receive(&self.socket)? {
            Some((Message::Ready { published }, program)) => Ok((published, program)),
            Some((Message::Failed(failure), _)) => Err(NetError::Role(failure)),
            Some(_) | None => Err(NetError::Ended),
        }
    }

    /// Tells which resolvers are to be asked from now on.
    pub fn set_resolvers(&mut self, resolvers: &[SocketAddr]) {
        self.say([Message::Resolvers(resolvers.to_vec())]);
    }

    /// Tells the names of the container's other networks, which it finds here too.
    pub fn set_names(&mut self, names: &NameTable) {
        self.say(names_in_parts(names));
    }

    /// A process that has ended says so itself.
    fn say(&mut self, messages: impl IntoIterator<Item = Message>) {
        self.outbox.put(messages);
        self.catch_up();
    }

    /// Says what the process did not take before.
    pub fn catch_up(&mut self) {
        self.outbox.send(self.socket.as_fd());
    }

    /// Whether there is such.
    pub fn is_behind(&self) -> bool {
        self.outbox.is_behind()
    }

    /// Lets somebody look at the container's traffic, by its end of the socket of [`crate::observe`].
    pub fn show(&self, observer: BorrowedFd<'_>) -> Result<(), NetError> {
        show(self.socket.as_fd(), observer)
    }

    /// Hands over the container's network namespace, in which a program is to make the device.
    pub fn hand_namespace(&self, namespace: BorrowedFd<'_>) -> Result<(), NetError> {
        send(self.socket.as_fd(), &Message::Namespace, Some(namespace))
    }

    /// Hands over the TAP device; may be called before [`wait_ready`](Self::wait_ready).
    pub fn hand_tap(&self, tap: &Tap) -> Result<(), NetError> {
        send(self.socket.as_fd(), &Message::Tap { ipv6: tap.ipv6 }, Some(tap.device.as_fd()))
    }
}

impl AsFd for Control {
    /// Becomes readable when [`wait_ready`](Self::wait_ready) would not block, and at the role's end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How a container gets its place in a network, the first time and whenever the network's role has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it asks for.
    pub wish: Wish,
    /// The network.
    pub spec: NetworkSpec,
    /// Where its role listens.
    pub directory: PathBuf,
    /// The file whose lock is held while a role is started.
    pub lock: PathBuf,
}

impl Entry {
    /// Joins the network. Where no role serves it, one is started with what `make` gives, once however many ask for that at the
    /// same time. The caller has one thread.
    pub fn join(&self, make: impl FnOnce(&NetworkSpec) -> Result<Made, Report>) -> Result<Membership, Report> {
        let directory = sys::socket::open_directory(&self.directory)?;
        let try_join = || join(directory.as_fd(), &self.wish).map_err(NetError::into_report);
        if let Some(membership) = try_join()? {
            return Ok(membership);
        }
        let file = File::options().create(true).truncate(false).write(true).open(&self.lock);
        let file = file.call(|| format!("open({:?})", self.lock))?;
        sys::lock::exclusive(&file, &self.lock)?;
        if let Some(membership) = try_join()? {
            return Ok(membership);
        }
        let spec = NetworkSpec { resolvers: resolvers::now(), ..self.spec.clone() };
        serve(directory.as_fd(), &spec, &make(&spec)?).map_err(NetError::into_report)?;
        try_join()?.ok_or_else(|| NetError::Ended.into_report())
    }

    /// Asks for what the container has from now on, so that it has the same again.
    pub fn keep(&mut self, addressing: &Addressing) {
        self.wish.v4 = Some(addressing.v4.container);
        self.wish.v6 = Some(addressing.v6.container);
        self.wish.mac = Some(addressing.mac);
        self.wish.avoid.clear();
    }
}

/// The name of the socket at which a network's role listens.
const DOOR: &str = "sock";
/// Whether the role of a network listens in this directory.
pub fn is_served(directory: BorrowedFd<'_>) -> Result<bool, NetError> {
    let socket = sys::socket::seqpacket(SockFlag::empty())?;
    Ok(connect(socket.as_raw_fd(), &sys::socket::address_in(directory, DOOR)?).is_ok())
}

/// How long a role is young: its members, which come back when their monitors have noticed the end of the one before, may not be
/// there yet.
const YOUNG: Duration = Duration::from_mins(1);

/// Whether the role of the network that listens in this directory, or would, may not know all members yet.
pub fn is_young(directory: &Path) -> bool {
    let began = std::fs::symlink_metadata(directory.join(DOOR)).and_then(|door| door.modified());
    // A clock that was set back makes it young.
    !began.is_ok_and(|began| began.elapsed().is_ok_and(|age| age > YOUNG))
}

/// How long a role may take to answer.
const ANSWER_MS: u16 = 20_000;

/// A container's place in a network, which lasts as long as the socket is open anywhere.
#[derive(Debug)]
pub struct Membership {
    /// The connection.
    pub socket: OwnedFd,
    /// What the container has.
    pub addressing: Addressing,
    /// The network's namespace.
    pub namespace: OwnedFd,
    /// The role's process.
    pub pid: i32,
}

/// Joins the network whose role listens in this directory; `None` when none does.
fn join(directory: BorrowedFd<'_>, wish: &Wish) -> Result<Option<Membership>, NetError> {
    let socket = sys::socket::seqpacket(SockFlag::empty())?;
    match connect(socket.as_raw_fd(), &sys::socket::address_in(directory, DOOR)?) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(None),
        result => result.call(|| format!("connect({DOOR:?})"))?,
    }
    let own = sys::namespace::open_own("user")?;
    match send(socket.as_fd(), &Message::Join(wish.clone()), Some(own.as_fd())) {
        // It was on its way out.
        Err(NetError::System(error)) if [Errno::EPIPE, Errno::ECONNRESET].contains(&error.errno()) => return Ok(None),
        sent => sent?,
    }
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(ANSWER_MS)).call(|| "poll(network's answer)".to_owned())? == 0 {
        return Err(SysError::new("answer of the network process", Errno::ETIMEDOUT).into());
    }
    match receive(&socket)? {
        Some((Message::Joined { restricted: false, .. }, _)) if wish.egress.is_some() => {
            Err(NetError::Unrestricted { what: "what containers reach" })
        }
        Some((Message::Joined { limited: false, .. }, _)) if wish.rate.is_some() => {
            Err(NetError::Unrestricted { what: "how much containers carry" })
        }
        Some((Message::Joined { addressing, pid, .. }, Some(namespace))) => {
            Ok(Some(Membership { socket, addressing, namespace, pid }))
        }
        Some((Message::Failed(failure), _)) => Err(NetError::Role(failure)),
        Some(_) => Err(NetError::Ended),
        None => Ok(None),
    }
}

/// Starts the role of a network, which listens in this directory from now on. The caller must have one thread and sees that no
/// other does the same.
fn serve(directory: BorrowedFd<'_>, spec: &NetworkSpec, made: &Made) -> Result<(), NetError> {
    match unlinkat(directory, DOOR, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(SysError::new(format!("unlink({DOOR:?})"), errno).into()),
    }
    let door = sys::socket::seqpacket(SockFlag::empty())?;
    bind(door.as_raw_fd(), &sys::socket::address_in(directory, DOOR)?).call(|| format!("bind({DOOR:?})"))?;
    listen(&door, Backlog::MAXCONN).call(|| format!("listen({DOOR:?})"))?;
    let config = serde_json::to_vec(&RoleSpec::Shared(spec.clone())).map_err(NetError::Protocol)?;
    let stderr = std::io::stderr();
    let spawn = Spawn {
        argv0: ARGV0,
        label: &spec.name,
        config: &config,
        fds: &[("door", door.as_fd()), ("namespace", made.namespace.as_fd()), ("tap", made.tap.as_fd())],
        stdio: [None, None, Some(stderr.as_fd())],
        session: true,
        cgroup: None,
    };
    // It forks away from us at once.
    let child = spawn.start()?;
    sys::process::reap(child.pidfd.as_fd(), true)?;
    Ok(())
}

/// Binds ports for a member, and lets its network's role serve them.
pub fn publish(socket: BorrowedFd<'_>, wishes: &[Publish]) -> Result<Vec<Published>, NetError> {
    let mut published = Vec::new();
    for wish in wishes {
        for (listener, port) in ports::listen_on(wish)? {
            let fd = match &listener {
                Listener::Stream(listener) => listener.as_fd(),
                Listener::Datagram(socket) => socket.as_fd(),
            };
            send(socket, &Message::Publish(port), Some(fd))?;
            published.push(port);
        }
    }
    Ok(published)
}

/// A part of the table of a network's names ([`Message::Follow`]), and whether the table begins with it; `None` at the end of the
/// membership. Blocks.
pub fn next_names(socket: BorrowedFd<'_>) -> Result<Option<(bool, NameTable)>, NetError> {
    match receive(socket)? {
        Some((Message::Names { first, names }, _)) => Ok(Some((first, names))),
        Some(_) => Err(NetError::Ended),
        None => Ok(None),
    }
}

/// Lets somebody look at a member's traffic, by its end of the socket of [`crate::observe`].
pub fn show(socket: BorrowedFd<'_>, observer: BorrowedFd<'_>) -> Result<(), NetError> {
    send(socket, &Message::Observe, Some(observer))
}
