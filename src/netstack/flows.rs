//! Flows as they are shown to who asks.

use std::net::{IpAddr, SocketAddr};

use crate::stack::{FlowId, Stack};

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests of either ICMP.
    Icmp,
}

/// What a flow has carried: payload only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub began_us: u64,
    /// Whether a client of a published port began it.
    pub inward: bool,
    pub from_container: u64,
    pub to_container: u64,
}

impl Tally {
    pub fn new(began_us: u64, inward: bool) -> Self {
        Tally { began_us, inward, from_container: 0, to_container: 0 }
    }
}

/// A flow as its table knows it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub protocol: Protocol,
    pub container: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    pub state: &'static str,
    pub tally: Tally,
}

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub protocol: Protocol,
    /// The container's end; of ICMP the identifier stands for the port.
    pub container: SocketAddr,
    /// The other end, as the container sees it.
    pub remote: SocketAddr,
    /// Whether a client of a published port began it, and not the container.
    pub inward: bool,
    /// Of TCP the state of the container's end, RFC 9293 §3.3.2; of others whether both ends have spoken; of one that was not
    /// begun the reason.
    pub state: &'static str,
    /// Bytes of payload that the container has sent, and somebody has taken.
    pub from_container: u64,
    /// Bytes of payload that it was sent; of TCP those that it has acknowledged.
    pub to_container: u64,
    /// How long there has been this flow, in microseconds, or since it was refused.
    pub age_us: u64,
}

impl Stack {
    /// Whether an address is one of the member with this IPv4 address.
    pub fn is_of(&self, address: IpAddr, member: std::net::Ipv4Addr) -> bool {
        self.members().find(address).is_some_and(|found| found.v4 == member)
    }

    /// The first flow from a number on, with its own; behind those that there are the last ones that were refused. Questions to our
    /// DNS server are none: they last for seconds at the most.
    pub fn next_flow(&self, now_us: u64, from: FlowId) -> Option<(FlowId, Flow)> {
        let limits = self.limits();
        let (udp, echo) = (limits.tcp, limits.tcp + limits.udp);
        let refused = echo + limits.echo;
        let refusals = self.refusals();
        let ranges = [
            (0, self.tcp.touched()),
            (udp, self.udp.touched()),
            (echo, self.echo.touched()),
            (refused, refusals.touched()),
        ];
        for (base, touched) in ranges {
            for number in from.0.max(base)..base + touched {
                let slot = number - base;
                let shown = match base {
                    0 => self.tcp.get(slot).map(|(key, flow)| Shown {
                        protocol: Protocol::Tcp,
                        container: key.container,
                        remote: key.remote,
                        state: flow.state(),
                        tally: flow.tally,
                    }),
                    _ if base == udp => self.udp.look(slot),
                    _ if base == echo => self.echo.look(slot),
                    _ => refusals.look(slot, now_us),
                };
                if let Some(shown) = shown {
                    return Some((FlowId(number), shown.at(now_us)));
                }
            }
        }
        None
    }
}

impl Shown {
    fn at(self, now_us: u64) -> Flow {
        let Shown { protocol, container, remote, state, tally } = self;
        Flow {
            protocol,
            container: container.into(),
            remote: remote.into(),
            inward: tally.inward,
            state,
            from_container: tally.from_container,
            to_container: tally.to_container,
            age_us: now_us.saturating_sub(tally.began_us),
        }
    }
}
