//! What monitor and network process say to each other: one SEQPACKET message of JSON each.
//!
//! A role that serves one container has one such socket. One that serves a network has a socket on which it listens; each
//! connection is a member, from its [`Message::Join`] to its end.

use std::collections::VecDeque;
use std::mem::discriminant;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::Failure;
use netstack::NameTable;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::{Addressing, NetError, Published};

/// What a container asks of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Its full id, by which it is told from others.
    pub id: String,
    /// Names by which others find it: its own, its short id, and aliases, which others may have too.
    pub names: Vec<String>,
    /// The IPv4 address it is to have; any free one without.
    pub v4: Option<Ipv4Addr>,
    /// Those that it must not have: of containers which the network's role, if it has just begun, does not know yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// DNS servers to ask for it, best first, where these are not the host's.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// The MAC it is to have; one made from its IPv4 address without.
    pub mac: Option<[u8; 6]>,
    /// Names of its own for others, which nobody else finds them by: each with a name that these have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<(String, String)>,
    /// What it may reach, as rules of [`crate::egress`]; anything without.
    #[serde(default)]
    pub egress: Option<Vec<String>>,
    /// How many bits a second it may carry in each direction; as many as there are without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// A message; the end of the socket ends the role.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Message {
    /// From the monitor: the TAP device; carries its descriptor.
    Tap {
        /// Whether the container has IPv6.
        ipv6: bool,
    },
    /// From the monitor, where a program is to make the device: carries the container's network namespace.
    Namespace,
    /// From the monitor: the resolvers to ask from now on, best first.
    Resolvers(Vec<SocketAddr>),
    /// From who wants to be a member; carries a descriptor of its user namespace, which must be the role's.
    Join(Wish),
    /// To a new member; carries the network's namespace.
    Joined {
        /// What it has.
        addressing: Addressing,
        /// The role's process.
        pid: i32,
        /// Whether it keeps to the rules for what the member may reach: a role of an earlier version knows none.
        #[serde(default)]
        restricted: bool,
        /// The same for how much it may carry.
        #[serde(default)]
        limited: bool,
    },
    /// From a member: a port of the host's is its; carries the bound socket.
    Publish(Published),
    /// From a member: whether it has IPv6.
    Ipv6(bool),
    /// From a member: the names by which others find it from now on.
    Called(Vec<String>),
    /// From a member that is in other networks too: it wants to know the names of this one from now on.
    Follow,
    /// To such a member: the names of the network. From the monitor: those of its container's other networks, which it finds here
    /// too. A table takes as many messages as it needs.
    Names {
        /// Whether the table begins.
        first: bool,
        /// A part of it.
        names: NameTable,
    },
    /// From a member: somebody wants to look at its traffic; carries the socket of [`crate::observe`].
    Observe,
    /// From the role: the ports are bound and the sandbox is on. Carries a descriptor of the program, if it has started one.
    Ready {
        /// The published ports with the host's ports that were chosen.
        published: Vec<Published>,
    },
    /// From the role: it could not start, and ends.
    Failed(Failure),
}

/// Longest message.
const MESSAGE_MAX: usize = 64 << 10;

/// Bytes of a table in one message.
const PART: usize = MESSAGE_MAX / 2;
/// Addresses of one name that are told of: an answer has no room for more.
const ADDRESSES_MAX: usize = 32;
/// The longest name, written with dots (RFC 1035 §3.1).
pub const NAME_MAX: usize = 253;
/// Names of a table: all that the members of a few full networks can have.
const NAMES_MAX: usize = 1 << 18;

/// Sends a message.
pub fn send(socket: BorrowedFd<'_>, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<(), NetError> {
    let bytes = serde_json::to_vec(message).map_err(NetError::Protocol)?;
    Ok(sys::socket::send(socket, &bytes, fd.as_slice())?)
}

/// A table of names as messages.
pub fn names_in_parts(names: &NameTable) -> Vec<Message> {
    let mut parts: Vec<NameTable> = vec![Vec::new()];
    let mut room = PART;
    for (name, addresses) in names {
        let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
        // As JSON: a byte takes six at the most (`\u0000`), and an address of IPv6 has up to 39 characters.
        let size = name.len() * 6 + 8 + addresses.len() * 42;
        if room < size {
            parts.push(Vec::new());
            room = PART;
        }
        room = room.saturating_sub(size);
        if let Some(part) = parts.last_mut() {
            part.push((name.clone(), addresses.to_vec()));
        }
    }
    parts.into_iter().enumerate().map(|(number, names)| Message::Names { first: number == 0, names }).collect()
}

/// Takes a part of a table that comes as [`names_in_parts`].
pub fn take_names(table: &mut NameTable, first: bool, names: NameTable) {
    if first {
        table.clear();
    }
    // No honest side has more, or others.
    let names = names.into_iter().filter(|(name, _)| name.len() <= NAME_MAX);
    table.extend(names.take(NAMES_MAX.saturating_sub(table.len())));
}

/// What is to be said to a side that may take nothing now, as one that is stopped: of each kind of message the newest. Nobody waits
/// for it, and it does not grow.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Message>,
}

impl Outbox {
    /// Says something in place of what was said of that kind and waits yet: a message, or all parts of a table.
    pub fn put(&mut self, messages: impl IntoIterator<Item = Message>) {
        let mut messages = messages.into_iter().peekable();
        if let Some(first) = messages.peek() {
            let kind = discriminant(first);
            self.waiting.retain(|waiting| discriminant(waiting) != kind);
        }
        self.waiting.extend(messages);
    }

    /// Sends what the other side takes now. One that has ended takes no more, and its socket tells that.
    pub fn send(&mut self, socket: BorrowedFd<'_>) {
        while let Some(message) = self.waiting.front() {
            match send_now(socket, message) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(NetError::System(error)) if error.errno() == Errno::EAGAIN => return,
                Err(_) => self.waiting.clear(),
            }
        }
    }

    /// Whether something is left, which is to be sent again after some time.
    pub fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// Sends a message without descriptors and without waiting: `EAGAIN` when the other side takes none now.
pub fn send_now(socket: BorrowedFd<'_>, message: &Message) -> Result<(), NetError> {
    let bytes = serde_json::to_vec(message).map_err(NetError::Protocol)?;
    Ok(sys::socket::send_now(socket, &bytes)?)
}

/// Reads a message.
pub fn parse(bytes: &[u8]) -> Result<Message, NetError> {
    serde_json::from_slice(bytes).map_err(NetError::Protocol)
}

/// Receives a message with the descriptor it carries; `None` at the end of the socket.
pub fn receive(socket: impl AsFd) -> Result<Option<(Message, Option<OwnedFd>)>, NetError> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (length, fds) = sys::socket::receive(socket.as_fd(), &mut buffer)?;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((parse(&buffer[..length])?, fds.into_iter().next())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn nobody_waits_for_who_takes_nothing_and_the_last_word_holds() {
        let (ours, theirs) = sys::socket::pair().unwrap();
        let mut outbox = Outbox::default();
        for number in 0..10_000 {
            outbox.put([Message::Called(vec![format!("name{number}")])]);
            outbox.put([Message::Ipv6(number % 2 == 0)]);
            outbox.send(ours.as_fd());
        }
        assert!(outbox.is_behind() && outbox.waiting.len() == 2);
        let (mut name, mut ipv6) = (Vec::new(), true);
        while outbox.is_behind() {
            match receive(&theirs).unwrap().unwrap().0 {
                Message::Called(names) => name = names,
                Message::Ipv6(has) => ipv6 = has,
                other => panic!("{other:?}"),
            }
            outbox.send(ours.as_fd());
        }
        drop(ours);
        while let Some((message, _)) = receive(&theirs).unwrap() {
            match message {
                Message::Called(names) => name = names,
                Message::Ipv6(has) => ipv6 = has,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((name, ipv6), (vec!["name9999".to_owned()], false));
    }
}
