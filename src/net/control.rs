//! What monitor and network process say to each other: one SEQPACKET message of JSON each.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::Failure;
use serde::{Deserialize, Serialize};

use crate::{NetError, Published};

/// A message; the end of the socket ends the role.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Message {
    /// From the monitor: the TAP device; carries its descriptor.
    Tap {
        /// Whether the container has IPv6.
        ipv6: bool,
    },
    /// From the monitor: the resolvers to ask from now on, best first.
    Resolvers(Vec<SocketAddr>),
    /// From the role: the ports are bound and the sandbox is on.
    Ready {
        /// The published ports with the host's ports that were chosen.
        published: Vec<Published>,
    },
    /// From the role: it could not start, and ends.
    Failed(Failure),
}

/// Longest message.
const MESSAGE_MAX: usize = 64 << 10;

/// Sends a message.
pub fn send(socket: BorrowedFd<'_>, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<(), NetError> {
    let bytes = serde_json::to_vec(message).map_err(NetError::Protocol)?;
    Ok(sys::socket::send(socket, &bytes, fd.as_slice())?)
}

/// Receives a message with the descriptor it carries; `None` at the end of the socket.
pub fn receive(socket: impl AsFd) -> Result<Option<(Message, Option<OwnedFd>)>, NetError> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (length, fds) = sys::socket::receive(socket.as_fd(), &mut buffer)?;
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..length]).map_err(NetError::Protocol)?;
    Ok(Some((message, fds.into_iter().next())))
}
