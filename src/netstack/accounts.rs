//! What each member has of the stack: the traffic that it has had, and its part of the tables.
//!
//! **Shares.** A table is for whoever comes first until half of it is taken. From then on a member gets a further place only
//! while it has less than its share of the other half. So one that opens flows without end leaves at least that much to each of
//! the others, and one that is alone has all of it. The same goes for the tokens of new flows.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::{Limits, Members};
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
    /// Flows that it has now.
    pub flows: u32,
}

#[derive(Debug)]
struct Account {
    v4: Ipv4Addr,
    traffic: Traffic,
    held: [u32; 5],
    bucket: Bucket,
}

/// The accounts of all members, in the order of these.
#[derive(Debug)]
pub(crate) struct Accounts {
    all: Vec<Account>,
    /// For new flows of all.
    bucket: Bucket,
    limits: Limits,
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
        let mut accounts = Accounts { all: Vec::new(), bucket, limits };
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
            }));
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

    /// Whether a container may have one more place of a table of which so many are taken.
    pub fn may_hold(&self, container: IpAddr, kind: Kind, taken: usize) -> bool {
        self.place(container).is_some_and(|place| self.shared.accounts.may_hold(place, kind, taken))
    }

    /// A container has one more place of a table.
    pub fn hold(&mut self, container: IpAddr, kind: Kind) {
        if let Some(account) = self.place(container).and_then(|place| self.shared.accounts.all.get_mut(place)) {
            account.held[kind as usize] += 1;
        }
    }

    /// It has one less. The account of one that has left is gone, or another's that has its address and has held less.
    pub fn let_go(&mut self, container: IpAddr, kind: Kind) {
        if let Some(account) = self.place(container).and_then(|place| self.shared.accounts.all.get_mut(place)) {
            account.held[kind as usize] = account.held[kind as usize].saturating_sub(1);
        }
    }

    /// A flow found no room.
    pub fn refused(&mut self, container: IpAddr) {
        self.shared.counters.refused_flows += 1;
        if let Some(account) = self.place(container).and_then(|place| self.shared.accounts.all.get_mut(place)) {
            account.traffic.refused += 1;
        }
    }
}
