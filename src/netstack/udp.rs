//! UDP flows: one for each pair of ends.
//!
//! A flow that the container began has a connected host socket. It is bound to the container's source port when that is
//! free, so the mapping does not depend on the destination (which address discovery and games need), while connecting
//! filters strangers.
//!
//! A flow that a client of a published port began has no socket of its own: what comes to the published socket is given
//! to [`Udp::datagram_in`], and answers leave through that socket. Clients that the container cannot tell apart (two
//! loopback addresses with one port are both the gateway's address) do not share a flow: the second waits for the end of
//! the first's.
//!
//! A flow without an answer lives 30 s, a two-way one 180 s after its last packet. A full table gives up a flow without
//! an answer first; a container that has more than its share (see `accounts`) gives up one of its own.

use std::net::{IpAddr, SocketAddr};

use crate::accounts::Kind;
use crate::flows::{Protocol, Shown, Tally};
use crate::rate::Way;
use crate::slab::Slab;
use crate::stack::{FlowId, Run};
use crate::tcp::Key;
use crate::{Host, Received};

const UNREPLIED_US: u64 = 30_000_000;
const TWO_WAY_US: u64 = 180_000_000;
/// Datagrams taken from one socket before others get their turn; the rest waits for its own event.
const BURST: usize = 64;
/// Flows looked at to find one to give up.
const HAND_STEPS: u32 = 64;

#[derive(Debug)]
pub(crate) struct Udp {
    flows: Slab<Key, Flow>,
    base: u32,
    capacity: u32,
    hand: u32,
}

#[derive(Debug)]
struct Flow {
    two_way: bool,
    /// Whether its socket lets nobody cut its datagrams.
    whole: bool,
    /// Who began it, if that was a client of a published port.
    client: Option<SocketAddr>,
    tally: Tally,
}

impl Udp {
    pub fn new(base: u32, capacity: u32) -> Self {
        Udp { flows: Slab::new(capacity), base, capacity, hand: 0 }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    fn id(&self, slot: u32) -> FlowId {
        FlowId(self.base + slot)
    }

    /// Sends through the flow of this key, `whole` when the datagram must not be cut; `false` when there is no flow.
    pub fn send<H: Host>(&mut self, key: &Key, payload: &[u8], whole: bool, run: &mut Run<'_, H>) -> bool {
        let Some(slot) = self.flows.find(key) else { return false };
        let id = self.id(slot);
        if let Some((_, flow)) = self.flows.get_mut(slot) {
            flow.tally.from_container += payload.len() as u64;
            flow.two_way |= flow.client.is_some();
            // The socket of a published port has many clients, and stays as it is.
            if flow.whole != whole && flow.client.is_none() {
                flow.whole = whole;
                run.host.datagram_dont_fragment(id, whole);
            }
            let life = if flow.two_way { TWO_WAY_US } else { UNREPLIED_US };
            run.shared.timers.set(id, run.now_us + life);
        }
        if let Err(error) = run.host.datagram_send(id, payload) {
            run.datagram_error(key, error);
        }
        true
    }

    /// Opens a flow and sends its first datagram.
    pub fn begin<H: Host>(&mut self, key: Key, to: SocketAddr, payload: &[u8], whole: bool, run: &mut Run<'_, H>) {
        let Some(slot) = self.insert(key, None, run) else {
            run.refused(Protocol::Udp, key.container, key.remote, false);
            return;
        };
        let id = self.id(slot);
        match run.host.udp_open(id, (key.container.1 != 0).then_some(key.container.1), to) {
            Ok(()) => {
                self.send(&key, payload, whole, run);
            }
            Err(error) => {
                self.remove(slot, run);
                run.datagram_error(&key, error);
            }
        }
    }

    /// A new flow; `None` where there is no room.
    fn insert<H: Host>(&mut self, key: Key, client: Option<SocketAddr>, run: &mut Run<'_, H>) -> Option<u32> {
        let full = self.flows.len() >= self.capacity as usize;
        let own = !run.may_hold(key.container.0, Kind::Udp, self.flows.len());
        if full || own {
            self.give_one_up(own.then_some(key.container.0), run)?;
        }
        let tally = Tally::new(run.now_us, client.is_some());
        let slot = self.flows.insert(key, Flow { two_way: false, whole: false, client, tally })?;
        run.hold(key.container.0, Kind::Udp);
        Some(slot)
    }

    fn remove<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) -> bool {
        let removed = self.flows.remove(slot);
        if let Some((key, _)) = &removed {
            run.let_go(key.container.0, Kind::Udp);
        }
        removed.is_some()
    }

    /// The flow in a slot, as it is shown.
    pub fn look(&self, slot: u32) -> Option<Shown> {
        let (key, flow) = self.flows.get(slot)?;
        let state = if flow.two_way { "REPLIED" } else { "UNREPLIED" };
        Some(Shown { protocol: Protocol::Udp, container: key.container, remote: key.remote, state, tally: flow.tally })
    }

    pub fn touched(&self) -> u32 {
        self.flows.touched()
    }

    /// Whether a datagram of `client` belongs to a flow that exists.
    pub fn knows(&mut self, key: &Key, client: SocketAddr) -> bool {
        let slot = self.flows.find(key);
        slot.and_then(|slot| self.flows.get_mut(slot)).is_some_and(|(_, flow)| flow.client == Some(client))
    }

    /// A datagram from a client of a published port. For a new flow `install` tells the host where its answers go.
    pub fn datagram_in<H: Host>(
        &mut self,
        key: Key,
        client: SocketAddr,
        payload: &[u8],
        run: &mut Run<'_, H>,
        install: impl FnOnce(&mut H, FlowId),
    ) {
        if !run.passes(key.container.0, Way::ToContainer, payload.len()) {
            return;
        }
        if !self.knows(&key, client) && !self.adopt(key, client, run, install) {
            run.refused(Protocol::Udp, key.container, key.remote, true);
            return;
        }
        let Some(slot) = self.flows.find(&key) else { return };
        let two_way = self.flows.get_mut(slot).is_some_and(|(_, flow)| {
            flow.tally.to_container += payload.len() as u64;
            flow.two_way
        });
        run.shared.timers.set(self.id(slot), run.now_us + if two_way { TWO_WAY_US } else { UNREPLIED_US });
        run.datagram(key.remote, key.container, payload);
    }

    /// Begins the flow of a client; `false` when another client has it.
    fn adopt<H: Host>(
        &mut self,
        key: Key,
        client: SocketAddr,
        run: &mut Run<'_, H>,
        install: impl FnOnce(&mut H, FlowId),
    ) -> bool {
        if let Some(slot) = self.flows.find(&key) {
            if self.flows.get_mut(slot).is_some_and(|(_, flow)| flow.client.is_some()) {
                return false;
            }
            // The container spoke first, through a socket of another port. The client calls the published one, and that
            // is where it waits for answers.
            self.expire(slot, run);
        }
        let Some(slot) = self.insert(key, Some(client), run) else { return false };
        install(run.host, self.id(slot));
        true
    }

    /// Ends a flow, of this container where one is named: one without an answer, where there is one. `None` where none is found.
    fn give_one_up<H: Host>(&mut self, of: Option<IpAddr>, run: &mut Run<'_, H>) -> Option<()> {
        let touched = self.flows.touched().max(1);
        let owner = of.and_then(|address| run.shared.config.members.place(address));
        let mut victim = None;
        for step in 0..HAND_STEPS {
            let slot = (self.hand + step) % touched;
            let Some((key, flow)) = self.flows.get(slot) else { continue };
            if owner.is_some() && run.shared.config.members.place(key.container.0) != owner {
                continue;
            }
            victim = victim.or(Some(slot));
            if !flow.two_way {
                victim = Some(slot);
                break;
            }
        }
        self.hand = (victim.unwrap_or(self.hand + HAND_STEPS) + 1) % touched;
        let victim = victim?;
        run.id = self.id(victim);
        self.expire(victim, run);
        Some(())
    }

    pub fn socket_ready<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        let id = self.id(slot);
        let Some((key, flow)) = self.flows.get_mut(slot) else { return };
        let mut scratch = std::mem::take(&mut run.shared.scratch);
        for _ in 0..BURST {
            match run.host.datagram_receive(id, &mut scratch) {
                Received::Datagram(length) if !run.passes(key.container.0, Way::ToContainer, length) => {}
                Received::Datagram(length) => {
                    flow.two_way = true;
                    flow.tally.to_container += length as u64;
                    run.datagram(key.remote, key.container, &scratch[..length]);
                    run.shared.timers.set(id, run.now_us + TWO_WAY_US);
                }
                Received::Failed(error) => run.datagram_error(key, error),
                Received::Nothing => break,
            }
        }
        run.shared.scratch = scratch;
    }

    /// Ends the flows of addresses that no container has any more.
    pub fn forget_strangers<H: Host>(&mut self, run: &mut Run<'_, H>) {
        for slot in 0..self.flows.touched() {
            let members = &run.shared.config.members;
            if self.flows.get_mut(slot).is_some_and(|(key, _)| members.find(key.container.0).is_none()) {
                self.expire(slot, run);
            }
        }
    }

    pub fn expire<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        if self.remove(slot, run) {
            run.shared.timers.clear(self.id(slot));
            run.host.close(self.id(slot), false);
        }
    }
}
