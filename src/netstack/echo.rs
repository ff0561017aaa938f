//! Ping: one ping socket of the host for each (source, identifier, destination).

use std::net::IpAddr;

use crate::slab::Slab;
use crate::stack::{FlowId, Run};
use crate::wire::icmp::{Echo, Unreachable, parse_echo};
use crate::wire::ip::Packet;
use crate::{Host, Received, SocketError};

const LIFE_US: u64 = 60_000_000;
/// Data of one request: what fits a packet of 65535 bytes.
const DATA_MAX: usize = 65535 - 48;
const BURST: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    container: IpAddr,
    remote: IpAddr,
    id: u16,
}

#[derive(Debug)]
pub(crate) struct Echoes {
    flows: Slab<Key, ()>,
    base: u32,
}

impl Echoes {
    pub fn new(base: u32, capacity: u32) -> Self {
        Echoes { flows: Slab::new(capacity), base }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn request<H: Host>(&mut self, packet: &Packet<'_>, echo: &Echo<'_>, to: IpAddr, run: &mut Run<'_, H>) {
        let key = Key { container: packet.source, remote: packet.destination, id: echo.id };
        let Some(slot) = self.flows.find(&key).or_else(|| self.begin(key, packet, to, run)) else { return };
        let id = FlowId(self.base + slot);
        run.shared.timers.set(id, run.now_us + LIFE_US);
        if echo.data.len() > DATA_MAX {
            return;
        }
        let mut scratch = std::mem::take(&mut run.shared.scratch);
        // The kernel puts in identifier and checksum.
        let kind = if to.is_ipv4() { 8 } else { 128 };
        scratch[..6].copy_from_slice(&[kind, 0, 0, 0, 0, 0]);
        scratch[6..8].copy_from_slice(&echo.sequence.to_be_bytes());
        scratch[8..8 + echo.data.len()].copy_from_slice(echo.data);
        if let Err(error) = run.host.datagram_send(id, &scratch[..8 + echo.data.len()]) {
            refuse(packet, error, run);
        }
        run.shared.scratch = scratch;
    }

    fn begin<H: Host>(&mut self, key: Key, packet: &Packet<'_>, to: IpAddr, run: &mut Run<'_, H>) -> Option<u32> {
        let Some(slot) = self.flows.insert(key, ()) else {
            run.shared.counters.refused_flows += 1;
            return None;
        };
        if let Err(error) = run.host.echo_open(FlowId(self.base + slot), to) {
            self.flows.remove(slot);
            // Where the host lets this user not ping, nobody in the container can.
            refuse(packet, error, run);
            return None;
        }
        Some(slot)
    }

    pub fn socket_ready<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        let id = FlowId(self.base + slot);
        let Some((key, ())) = self.flows.get_mut(slot) else { return };
        let key = *key;
        let mut scratch = std::mem::take(&mut run.shared.scratch);
        let reply = if key.remote.is_ipv4() { 0 } else { 129 };
        for _ in 0..BURST {
            match run.host.datagram_receive(id, &mut scratch) {
                Received::Datagram(length) => {
                    if let Some(echo) = parse_echo(&scratch[..length.min(DATA_MAX)], reply) {
                        run.echo_reply(key.remote, key.container, key.id, echo.sequence, echo.data);
                    }
                }
                Received::Failed(_) => {}
                Received::Nothing => break,
            }
        }
        run.shared.scratch = scratch;
    }

    pub fn expire<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        if self.flows.remove(slot).is_some() {
            run.host.close(FlowId(self.base + slot), false);
        }
    }
}

fn refuse<H: Host>(packet: &Packet<'_>, error: SocketError, run: &mut Run<'_, H>) {
    let reason = match error {
        SocketError::NetworkUnreachable => Unreachable::Network,
        SocketError::HostUnreachable => Unreachable::Host,
        SocketError::Prohibited => Unreachable::Prohibited,
        SocketError::TooBig { mtu } => Unreachable::TooBig { mtu },
        SocketError::Refused | SocketError::TimedOut | SocketError::Failed => return,
    };
    run.refuse_packet(packet, reason);
}
