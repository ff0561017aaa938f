//! What the stack needs done.

use std::net::{IpAddr, SocketAddr};

use crate::FlowId;

/// The TAP device did not take a frame; it will be built again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapFull;

/// Why a host socket refuses, as far as the container is told different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketError {
    /// Nothing listens there: `ECONNREFUSED`.
    Refused,
    /// No route: `ENETUNREACH`.
    NetworkUnreachable,
    /// `EHOSTUNREACH`.
    HostUnreachable,
    /// The host's policy: `EACCES`, `EPERM`.
    Prohibited,
    /// No answer in time: `ETIMEDOUT`.
    TimedOut,
    /// A datagram that must not be cut is too large for its way: `EMSGSIZE`.
    TooBig {
        /// What would fit, in bytes with the IP header.
        mtu: u32,
    },
    /// Out of descriptors, ports or memory, and everything else.
    Failed,
}

/// The result of looking into a socket's receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// So many bytes were copied, at least one.
    Data(usize),
    /// The other side will send nothing more.
    End,
    /// Nothing yet; a readiness event will follow.
    Nothing,
    /// The connection is broken.
    Broken,
}

/// The result of a write to a stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// So many bytes were taken, possibly none; if not all, a readiness event will follow.
    Taken(usize),
    /// The connection is broken.
    Broken,
}

/// The result of reading a datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A datagram of this length.
    Datagram(usize),
    /// None is there.
    Nothing,
    /// An error that the network reported.
    Failed(SocketError),
}

/// The world outside: the TAP device and the host's sockets. Calls never block. A flow has at most one socket, opened
/// by a `*_open` or `tcp_connect` that succeeded (or put there by [`Stack::accept`](crate::Stack::accept) or
/// [`Stack::datagram_in`](crate::Stack::datagram_in)), until [`close`](Host::close).
pub trait Host {
    /// Writes one frame: `head` starts with the vnet header, `body` is payload.
    fn transmit(&mut self, head: &[u8], body: &[u8]) -> Result<(), TapFull>;
    /// The host's own address of the family of `like`, as its route to the world has it now.
    fn primary_address(&mut self, like: IpAddr) -> Option<IpAddr>;

    /// Begins a connection; its end is announced by a readiness event.
    fn tcp_connect(&mut self, id: FlowId, to: SocketAddr) -> Result<(), SocketError>;
    /// How the connection attempt ended; of one that has succeeded, what has broken it since.
    fn tcp_connected(&mut self, id: FlowId) -> Result<(), SocketError>;
    /// Copies received bytes from `offset` on, without consuming them.
    fn tcp_peek(&mut self, id: FlowId, offset: usize, buffer: &mut [u8]) -> Peek;
    /// Drops the first `count` bytes, all of which have been peeked. `false` when that was not possible.
    fn tcp_consume(&mut self, id: FlowId, count: usize) -> bool;
    /// Sends bytes.
    fn tcp_write(&mut self, id: FlowId, bytes: &[u8]) -> Wrote;
    /// About how many bytes a write would take now.
    fn tcp_room(&mut self, id: FlowId) -> u32;
    /// Ends the sending direction.
    fn tcp_shutdown(&mut self, id: FlowId);

    /// A datagram socket from `source_port` if that is free, to `to` only.
    fn udp_open(&mut self, id: FlowId, source_port: Option<u16>, to: SocketAddr) -> Result<(), SocketError>;
    /// A ping socket.
    fn echo_open(&mut self, id: FlowId, to: IpAddr) -> Result<(), SocketError>;
    /// Says whether the flow's datagrams may be cut on their way, which they may at first.
    fn datagram_dont_fragment(&mut self, id: FlowId, dont: bool);
    /// Sends one datagram.
    fn datagram_send(&mut self, id: FlowId, bytes: &[u8]) -> Result<(), SocketError>;
    /// Receives one datagram.
    fn datagram_receive(&mut self, id: FlowId, buffer: &mut [u8]) -> Received;

    /// Closes the flow's socket; with `reset` the peer of a stream sees a reset.
    fn close(&mut self, id: FlowId, reset: bool);
    /// A random number, for identifiers that must not be guessed.
    fn random(&mut self) -> u64;
}
