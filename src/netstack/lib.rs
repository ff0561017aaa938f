//! A TCP/IP stack that translates: frames of a network's TAP device on one side, sockets of the host on the other.
//!
//! Pure: it makes no system calls and reads no clock. Frames and the time are passed in; everything it wants done is a
//! call of the [`Host`] trait. Crate `net` implements that with real sockets, tests with scripted ones.
//!
//! Connections are terminated here and re-made by the host's kernel (layer 4 translation), so a container needs no
//! route, no address and no right on the host. The kernel's socket buffers are the only store for retransmission: data
//! for the container is *peeked* from the host socket and consumed when the container acknowledges it; data from the
//! container is acknowledged when the host's kernel has taken it. See [`tcp`] for the machine.
//!
//! The device is that of one container, or one end of a bridge that several share: then frames go to the MAC of whose address
//! it is ([`Members`]), and what is not for our own MAC is none of ours.
//!
//! ```text
//!  frame_in ──> wire ──> arp / ndp / echo                     answered here
//!                  ├──> tcp   segment → flow → Host::tcp_*     timers, ready ring, acks of the batch
//!                  ├──> udp   datagram → flow → Host::datagram_*
//!                  └──> dns   question → table, or a forwarder flow; over TCP a flow without a socket, until one is needed
//! ```
//!
//! **Limits.** All tables have a fixed size ([`Limits`]); a full table refuses new flows and never grows. Flows share
//! one numbering ([`FlowId`]), which also indexes the timers and, in `net`, the descriptors. No allocation happens for
//! a TCP or UDP packet after start; a DNS question may allocate (at most 256 × 4 KiB are held).
//!
//! **Hostile input.** The container's root can write any frame. What is malformed or not allowed is dropped and
//! counted ([`Counters`]); a broken invariant ends one flow.
//!
//! **Left out for now.** UDP segmentation offload.

mod accounts;
mod config;
mod dns;
mod echo;
mod egress;
mod flows;
mod host;
mod rate;
mod reassembly;
mod refusals;
mod slab;
mod stack;
mod stash;
mod streams;
pub mod tcp;
#[cfg(test)]
mod tcp_test;
mod timers;
mod udp;
pub mod wire;

pub use accounts::Traffic;
pub use config::{Config, Limits, Member, Members, NameTable, Names, Side, Target};
pub use egress::{NoRule, Rule};
pub use flows::{Flow, Protocol};
pub use host::{Host, Peek, Received, SocketError, TapFull, Wrote};
pub use stack::{Counters, FlowId, Readiness, Stack};
