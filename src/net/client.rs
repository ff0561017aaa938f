//! The monitor's half: starting the network process and feeding it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::process::Child;
use sys::role::Spawn;

use crate::control::{Message, receive, send};
use crate::setup::Tap;
use crate::{NetError, NetSpec, Published};

/// The role's `argv[0]`.
pub const ARGV0: &str = "sublet-net";

/// A running network process; dropping it ends the process.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

/// Starts the network process. The caller must have one thread. `error` is where the process may complain.
pub fn spawn(
    spec: &NetSpec,
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
    Ok((spawn.start()?, Control { socket: ours }))
}

impl Control {
    /// Waits until the ports are bound; returns them with the host's ports that were chosen. Blocks.
    pub fn wait_ready(&self) -> Result<Vec<Published>, NetError> {
        match receive(&self.socket)? {
            Some((Message::Ready { published }, _)) => Ok(published),
            Some((Message::Failed(failure), _)) => Err(NetError::Role(failure)),
            Some(_) | None => Err(NetError::Ended),
        }
    }

    /// Tells which resolvers are to be asked from now on.
    pub fn set_resolvers(&self, resolvers: &[SocketAddr]) -> Result<(), NetError> {
        send(self.socket.as_fd(), &Message::Resolvers(resolvers.to_vec()), None)
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
