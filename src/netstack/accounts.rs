//! What each member has of the stack: the traffic that it has had, and its part of the tables.
//!
//! **Shares.** A table is for whoever comes first until half of it is taken. From then on a member gets a further place only
//! while it has less than its share of the other half. So one that opens flows without end leaves at least that much to each of
//! the others, and one that is alone has all of it. The same goes for the tokens of new flows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::config::{Limits, Members, Route};
use crate::egress::{Egress, Rule};
use crate::flows::Protocol;
use crate::rate::{Rate, Way};
use crate::refusals::{Reason, Refusal, Refusals};
use crate::stack::Run;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    HalfOpen,
    Udp,
    Echo,
    Dns,
}

impl Kind {
    /// How large its table is.
    fn capacity(self, limits: &Limits) -> u32 {
        match self {
            Kind::Tcp => limits.tcp,
            Kind::HalfOpen => limits.half_open,
            Kind::Udp => limits.udp,
            Kind::Echo => limits.echo,
            Kind::Dns => limits.dns,
        }
    }
}

/// What a member has had since it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames that it has sent to us.
    pub from_frames: u64,
    /// Their bytes, with the Ethernet header.
    pub from_bytes: u64,
    /// Frames that it was sent.
    pub to_frames: u64,
    /// Their bytes.
    pub to_bytes: u64,
    /// Flows that found no room.
    pub refused: u64,
    /// Flows, and questions for names, that its rules do not allow.
    pub prohibited: u64,
    /// Flows that it has now.
    pub flows: u32,
}

#[derive(Debug)]
struct Account {
    v4: Ipv4Addr,
    traffic: Traffic,
    held: [u32; 5],
    bucket: Bucket,
    /// What it may reach; anything where there is none.
    egress: Option<Egress>,
    /// How much it may carry; as much as there is where there is none.
    rate: Option<Rate>,
}

/// The accounts of all members, in the order of these.
#[derive(Debug)]
pub(crate) struct Accounts {
    all: Vec<Account>,
    /// For new flows of all.
    bucket: Bucket,
    limits: Limits,
    /// Whether anybody has a rate: nobody else is to be looked up for it.
    is_limited: bool,
    /// The last flows that were not begun.
    pub refusals: Refusals,
}

/// A token bucket that holds what two seconds bring.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u64,
    filled_us: u64,
}

impl Bucket {
    fn full(rate: u64, now_us: u64) -> Self {
        Bucket { tokens: rate * 2, filled_us: now_us }
    }

    /// What is in it now, where so many come a second.
    fn fill(&mut self, rate: u64, now_us: u64) -> u64 {
        let earned = now_us.saturating_sub(self.filled_us) * rate / 1_000_000;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(rate * 2);
            self.filled_us = now_us;
        }
        self.tokens
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
    }
}

impl Accounts {
    pub fn new(limits: Limits, members: &Members) -> Self {
        let bucket = Bucket::full(limits.new_flows_per_s.into(), 0);
        let refusals = Refusals::new();
        let mut accounts = Accounts { all: Vec::new(), bucket, limits, is_limited: false, refusals };
        accounts.follow(0, members);
        accounts
    }

    /// There are these members from now on; who was there before keeps its account.
    pub fn follow(&mut self, now_us: u64, members: &Members) {
        let mut before = std::mem::take(&mut self.all).into_iter().peekable();
        for member in members.iter() {
            while before.next_if(|account| account.v4 < member.v4).is_some() {}
            self.all.push(before.next_if(|account| account.v4 == member.v4).unwrap_or_else(|| Account {
                v4: member.v4,
                traffic: Traffic::default(),
                held: [0; 5],
                bucket: Bucket::full(self.limits.new_flows_per_s.into(), now_us),
                egress: None,
                rate: None,
            }));
        }
    }

    /// How many bits a second members may carry from now on, by their IPv4 addresses; one that is not named has no limit.
    pub fn limit(&mut self, now_us: u64, rates: &BTreeMap<Ipv4Addr, u64>) {
        self.is_limited = !rates.is_empty();
        for account in &mut self.all {
            let bits_per_s = rates.get(&account.v4).copied();
            let same = bits_per_s.is_some_and(|bits| account.rate.as_ref().is_some_and(|rate| rate.is(bits)));
            if !same {
                account.rate = bits_per_s.map(|bits| Rate::new(bits, now_us));
            }
        }
    }

    /// What members may reach from now on, by their IPv4 addresses; one that is not named may reach anything. Who has the same
    /// rules as before keeps the addresses of its names.
    pub fn restrict(&mut self, egress: &BTreeMap<Ipv4Addr, Arc<[Rule]>>) {
        for account in &mut self.all {
            let rules = egress.get(&account.v4);
            if rules.is_none_or(|rules| !account.egress.as_ref().is_some_and(|egress| egress.has(rules))) {
                account.egress = rules.cloned().map(Egress::new);
            }
        }
    }

    pub fn traffic(&self, place: usize) -> Traffic {
        let shown = |account: &Account| {
            let flows = [Kind::Tcp, Kind::Udp, Kind::Echo].iter().map(|kind| account.held[*kind as usize]).sum();
            Traffic { flows, ..account.traffic }
        };
        self.all.get(place).map_or(Traffic::default(), shown)
    }

    /// A frame of a member's.
    pub fn came(&mut self, place: usize, bytes: usize) {
        if let Some(Account { traffic, .. }) = self.all.get_mut(place) {
            traffic.from_frames += 1;
            traffic.from_bytes += bytes as u64;
        }
    }

    /// A frame for a member.
    pub fn went(&mut self, place: usize, bytes: usize) {
        if let Some(Account { traffic, .. }) = self.all.get_mut(place) {
            traffic.to_frames += 1;
            traffic.to_bytes += bytes as u64;
        }
    }

    fn members(&self) -> u64 {
        self.all.len().max(1) as u64
    }

    /// Whether a member may have one more place of a table of which so many are taken.
    fn may_hold(&self, place: usize, kind: Kind, taken: usize) -> bool {
        let capacity = u64::from(kind.capacity(&self.limits));
        let share = (capacity / (2 * self.members())).max(1);
        let Some(account) = self.all.get(place) else { return false };
        (taken as u64) < capacity
            && ((taken as u64) < capacity.div_ceil(2)
                || self.members() == 1
                || u64::from(account.held[kind as usize]) < share)
    }

    /// Whether one more flow of a member may begin now.
    pub fn admit(&mut self, place: usize, now_us: u64) -> bool {
        let rate = u64::from(self.limits.new_flows_per_s);
        let own_rate = (rate / self.members()).max(1);
        let all = self.bucket.fill(rate, now_us);
        let Some(account) = self.all.get_mut(place) else { return false };
        let own = account.bucket.fill(own_rate, now_us);
        let admitted = all > rate || (all > 0 && own > 0);
        if admitted {
            self.bucket.take();
            account.bucket.take();
        } else {
            account.traffic.refused += 1;
        }
        admitted
    }
}

impl<H> Run<'_, H> {
    fn place(&self, container: IpAddr) -> Option<usize> {
        self.shared.config.members.place(container)
    }

    fn account(&mut self, container: IpAddr) -> Option<&mut Account> {
        let place = self.place(container)?;
        self.shared.accounts.all.get_mut(place)
    }

    /// Whether a container may have one more place of a table of which so many are taken.
    pub fn may_hold(&self, container: IpAddr, kind: Kind, taken: usize) -> bool {
        self.place(container).is_some_and(|place| self.shared.accounts.may_hold(place, kind, taken))
    }

    /// A container has one more place of a table.
    pub fn hold(&mut self, container: IpAddr, kind: Kind) {
        if let Some(account) = self.account(container) {
            account.held[kind as usize] += 1;
        }
    }

    /// It has one less. The account of one that has left is gone, or another's that has its address and has held less.
    pub fn let_go(&mut self, container: IpAddr, kind: Kind) {
        if let Some(account) = self.account(container) {
            account.held[kind as usize] = account.held[kind as usize].saturating_sub(1);
        }
    }

    fn rate(&mut self, container: IpAddr) -> Option<&mut Rate> {
        if !self.shared.accounts.is_limited {
            return None;
        }
        self.account(container)?.rate.as_mut()
    }

    /// How many bytes a container may carry now.
    pub fn may_carry(&mut self, container: IpAddr, way: Way) -> u32 {
        let now_us = self.now_us;
        self.rate(container).map_or(u32::MAX, |rate| rate.left(way, now_us))
    }

    /// It has carried so many.
    pub fn carried(&mut self, container: IpAddr, way: Way, bytes: usize) {
        if let Some(rate) = self.rate(container) {
            rate.carried(way, bytes);
        }
    }

    /// Whether a datagram of so many bytes passes; counts one that does not.
    pub fn passes(&mut self, container: IpAddr, way: Way, bytes: usize) -> bool {
        let passes = self.may_carry(container, way) > 0;
        if passes {
            self.carried(container, way, bytes);
        } else {
            self.shared.counters.beyond_rate += 1;
        }
        passes
    }

    fn egress(&mut self, container: IpAddr) -> Option<&mut Egress> {
        self.account(container)?.egress.as_mut()
    }

    /// Whether there are rules for what a container may reach.
    pub fn is_restricted(&mut self, container: IpAddr) -> bool {
        self.egress(container).is_some()
    }

    /// Whether a container may ask for a name, which is in lower case and has no dot at its end; counts a question that it may not.
    pub fn may_ask(&mut self, container: IpAddr, name: &str) -> bool {
        let allowed = self.egress(container).is_none_or(|egress| egress.allows_name(name));
        if !allowed {
            self.prohibited(container);
        }
        allowed
    }

    /// Whether a flow of a container may begin; counts one that may not.
    pub fn may_reach(&mut self, container: (IpAddr, u16), protocol: Protocol, to: (IpAddr, u16)) -> bool {
        let now_us = self.now_us;
        let place = self.place(container.0);
        let Some(egress) = place.and_then(|place| self.shared.accounts.all.get(place)?.egress.as_ref()) else {
            return true;
        };
        let tables = self.shared.config.tables(container.0);
        let own = tables.into_iter().flatten().filter(|(_, addresses)| addresses.contains(&to.0));
        let allowed = egress.allows(now_us, protocol, to, &own.map(|(name, _)| name.as_str()));
        if !allowed {
            self.prohibited(container.0);
            let (remote, inward, reason, at_us) = (to, false, Reason::Rules, now_us);
            self.shared.accounts.refusals.note(Refusal { protocol, container, remote, inward, reason, at_us });
        }
        allowed
    }

    /// Lets a container reach an address that was answered for a name, for so many seconds.
    pub fn pin(&mut self, container: IpAddr, name: &str, address: IpAddr, ttl_s: u32) {
        let is_elsewhere = matches!(self.shared.config.route(address), Route::Out(_));
        let now_us = self.now_us;
        if let Some(egress) = self.egress(container).filter(|_| is_elsewhere) {
            egress.pin(now_us, name, address, ttl_s);
        }
    }

    fn prohibited(&mut self, container: IpAddr) {
        if let Some(account) = self.account(container) {
            account.traffic.prohibited += 1;
        }
    }

    /// A flow found no room: one that the container began, or with `inward` a client of a published port.
    pub fn refused(&mut self, protocol: Protocol, container: (IpAddr, u16), remote: (IpAddr, u16), inward: bool) {
        self.shared.counters.refused_flows += 1;
        if let Some(account) = self.account(container.0) {
            account.traffic.refused += 1;
        }
        let (reason, at_us) = (Reason::Room, self.now_us);
        self.shared.accounts.refusals.note(Refusal { protocol, container, remote, inward, reason, at_us });
    }
}
