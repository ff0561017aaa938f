//! A container's network, its own or one that it shares: the device inside, the process outside, and what lies between.
//!
//! [`setup`] makes the TAP device and its addresses in a new network namespace. [`role`] is the process that owns the
//! other side: it runs [`netstack`] over the TAP and host sockets in one event loop, without a capability. [`bridge`] makes
//! networks of several containers, which a role of their own serves. [`client`]
//! is how a monitor starts and feeds it. [`helper`] has installed programs do the same. [`files`] words what a container finds in
//! `/etc`.
//!
//! The host as the container sees it is the gateway's address (`host.docker.internal`). It leads to the host's primary
//! address: services that listen on the host's loopback only stay out of reach unless
//! [`NetSpec::host_loopback`] is set.

pub mod bridge;
pub mod client;
pub mod control;
pub mod egress;
mod error;
pub mod files;
pub mod helper;
mod host;
pub mod observe;
mod owner;
pub mod ports;
pub mod probe;
pub mod resolvers;
pub mod role;
mod sandbox;
pub mod setup;
mod spec;

pub use error::NetError;
pub use host::primary_address;
pub use netstack::NameTable;
pub use probe::probe;
pub use spec::{Addressing, Family, NetSpec, NetworkSpec, Publish, Published, RoleSpec, Subnet, Transport};
