//! How much a container may carry in a second, in each direction by itself: a token bucket.
//!
//! **Connections are held back**, and lose nothing. For a container only as much is peeked as there are tokens, so the sender finds
//! its window closed by the host's kernel; to a container only as large a window is promised, and the next one when there are more.
//! A flow that waits stands in [`Waiting`], which wakes all of them together, the first that came first. **Datagrams and pings are
//! dropped** while there is no token, as by a narrow line.
//!
//! Payload is counted, when it is carried. What was promised to several connections of one container at once may leave less than
//! nothing: then nobody carries more until that is made up for. What is answered here (names, the gateway's pings) is not counted.

use std::collections::VecDeque;

use crate::stack::FlowId;

/// What comes at once is what this time brings.
const BURST_MS: u64 = 50;
/// That, at least: several of the largest segments, and a datagram of any size.
const BURST_MIN: u64 = 64 << 10;
const MILLION: i64 = 1_000_000;
/// How long flows wait before they are looked at again.
const WAIT_US: u64 = 5_000;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    FromContainer,
    ToContainer,
}

/// The limit of one container.
#[derive(Debug)]
pub(crate) struct Rate {
    bits_per_s: u64,
    ways: [Bucket; 2],
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Millionths of bytes that may be carried: what a microsecond brings is a whole number of them.
    left: i64,
    filled_us: u64,
}

impl Rate {
    /// Of so many bits a second, with full buckets.
    pub fn new(bits_per_s: u64, now_us: u64) -> Self {
        let mut rate = Rate { bits_per_s, ways: [Bucket { left: 0, filled_us: now_us }; 2] };
        rate.ways = [Bucket { left: rate.burst(), filled_us: now_us }; 2];
        rate
    }

    /// Whether it is that of so many bits.
    pub fn is(&self, bits_per_s: u64) -> bool {
        self.bits_per_s == bits_per_s
    }

    fn bytes_per_s(&self) -> u64 {
        self.bits_per_s / 8
    }

    fn burst(&self) -> i64 {
        (self.bytes_per_s() * BURST_MS / 1000).max(BURST_MIN) as i64 * MILLION
    }

    /// How many bytes may be carried now.
    pub fn left(&mut self, way: Way, now_us: u64) -> u32 {
        let (bytes_per_s, burst) = (self.bytes_per_s(), self.burst());
        let bucket = &mut self.ways[way as usize];
        let earned = now_us.saturating_sub(bucket.filled_us).saturating_mul(bytes_per_s);
        *bucket = Bucket { left: bucket.left.saturating_add_unsigned(earned).min(burst), filled_us: now_us };
        u32::try_from(bucket.left.max(0) / MILLION).unwrap_or(u32::MAX)
    }

    /// So many have been.
    pub fn carried(&mut self, way: Way, bytes: usize) {
        let bucket = &mut self.ways[way as usize];
        bucket.left = bucket.left.saturating_sub_unsigned(bytes as u64 * MILLION as u64);
    }
}

/// TCP flows that wait for tokens.
#[derive(Debug)]
pub(crate) struct Waiting {
    flows: VecDeque<FlowId>,
    /// When they are looked at again.
    until_us: u64,
}

impl Waiting {
    /// Room for so many flows.
    pub fn new(flows: u32) -> Self {
        Waiting { flows: VecDeque::with_capacity(flows as usize), until_us: 0 }
    }

    /// A flow waits from now on.
    pub fn push(&mut self, id: FlowId, now_us: u64) {
        if self.flows.is_empty() {
            self.until_us = now_us + WAIT_US;
        }
        self.flows.push_back(id);
    }

    /// When somebody is to be looked at.
    pub fn due_us(&self) -> Option<u64> {
        (!self.flows.is_empty()).then_some(self.until_us)
    }

    /// How many are to be taken now.
    pub fn due(&self, now_us: u64) -> usize {
        if self.due_us().is_some_and(|due_us| due_us <= now_us) { self.flows.len() } else { 0 }
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<FlowId> {
        self.flows.pop_front()
    }

    /// Those that wait still, or again, are looked at after the next pause.
    pub fn pause(&mut self, now_us: u64) {
        self.until_us = now_us + WAIT_US;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn a_second_brings_what_the_rate_says_and_no_more_than_a_burst_is_kept() {
        // 1,000,000 bytes.
        let mut rate = Rate::new(8_000_000, 7 * S);
        assert_eq!(rate.left(Way::ToContainer, 7 * S), 64 << 10);
        let mut carried = 0;
        for ms in 0..2000 {
            let left = rate.left(Way::ToContainer, 7 * S + ms * 1000);
            rate.carried(Way::ToContainer, left as usize);
            carried += u64::from(left);
        }
        assert_eq!(carried, (64 << 10) + 1999 * 1000);
        // The other direction has its own.
        assert_eq!(rate.left(Way::FromContainer, 9 * S), 64 << 10);
        assert_eq!(rate.left(Way::ToContainer, 3600 * S), 64 << 10);
    }

    #[test]
    fn what_was_carried_too_much_is_made_up_for() {
        let mut rate = Rate::new(8_000_000, 0);
        rate.carried(Way::FromContainer, (64 << 10) + 500_000);
        assert_eq!(rate.left(Way::FromContainer, S / 2 - 1000), 0);
        assert_eq!(rate.left(Way::FromContainer, S / 2 + 1000), 1000);
    }

    #[test]
    fn a_little_time_is_not_lost() {
        // A byte in 125 µs.
        let mut rate = Rate::new(64_000, 0);
        rate.carried(Way::ToContainer, 64 << 10);
        for turn in 0..5000 {
            rate.left(Way::ToContainer, turn * 200);
        }
        assert_eq!(rate.left(Way::ToContainer, S), 8000);
    }
}
