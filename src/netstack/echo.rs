//! Ping: one ping socket of the host for each (source, identifier, destination).

use std::net::IpAddr;

use crate::accounts::Kind;
use crate::flows::{Protocol, Shown, Tally};
use crate::rate::Way;
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
    flows: Slab<Key, Tally>,
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
        if echo.data.len() > DATA_MAX || !run.passes(key.container, Way::FromContainer, echo.data.len()) {
            return;
        }
        if let Some((_, tally)) = self.flows.get_mut(slot) {
            tally.from_container += echo.data.len() as u64;
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
        if !run.may_reach((key.container, key.id), Protocol::Icmp, (key.remote, 0)) {
            run.refuse_packet(packet, Unreachable::Prohibited);
            return None;
        }
        let may = run.may_hold(key.container, Kind::Echo, self.flows.len());
        let Some(slot) = may.then(|| self.flows.insert(key, Tally::new(run.now_us, false))).flatten() else {
            run.refused(Protocol::Icmp, (key.container, key.id), (key.remote, 0), false);
            return None;
        };
        run.hold(key.container, Kind::Echo);
        if let Err(error) = run.host.echo_open(FlowId(self.base + slot), to) {
            self.remove(slot, run);
            // Where the host lets this user not ping, nobody in the container can.
            refuse(packet, error, run);
            return None;
        }
        Some(slot)
    }

    fn remove<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) -> bool {
        let removed = self.flows.remove(slot);
        if let Some((key, _)) = &removed {
            run.let_go(key.container, Kind::Echo);
        }
        removed.is_some()
    }

    /// The flow in a slot, as it is shown: the identifier stands for the container's port.
    pub fn look(&self, slot: u32) -> Option<Shown> {
        let (key, tally) = self.flows.get(slot)?;
        let state = if tally.to_container > 0 { "REPLIED" } else { "UNREPLIED" };
        let (container, remote) = ((key.container, key.id), (key.remote, 0));
        Some(Shown { protocol: Protocol::Icmp, container, remote, state, tally: *tally })
    }

    pub fn touched(&self) -> u32 {
        self.flows.touched()
    }

    pub fn socket_ready<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        let id = FlowId(self.base + slot);
        let Some((key, tally)) = self.flows.get_mut(slot) else { return };
        let key = *key;
        let mut scratch = std::mem::take(&mut run.shared.scratch);
        let reply = if key.remote.is_ipv4() { 0 } else { 129 };
        for _ in 0..BURST {
            match run.host.datagram_receive(id, &mut scratch) {
                Received::Datagram(length) if !run.passes(key.container, Way::ToContainer, length) => {}
                Received::Datagram(length) => {
                    if let Some(echo) = parse_echo(&scratch[..length.min(DATA_MAX)], reply) {
                        tally.to_container += echo.data.len() as u64;
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
        if self.remove(slot, run) {
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
