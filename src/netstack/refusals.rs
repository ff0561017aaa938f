//! The last flows that were not begun, for who looks at flows: what a container's rules do not allow, and what found no room.
//!
//! There is a row for each two addresses, the other end's port and the reason, with the time of the last try. [`ROWS`] are
//! kept, [`ROWS_OF_ONE`] of each container: one more takes the place of its own oldest, or of the oldest of all.

use std::net::IpAddr;

use crate::flows::{Protocol, Shown, Tally};

/// Rows of all containers.
const ROWS: usize = 256;
/// Rows of one.
const ROWS_OF_ONE: usize = 16;
/// How long a row is shown.
const SHOWN_US: u64 = 60_000_000;

/// Why a flow was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No rule of the container's allows it.
    Rules,
    /// A table, or the container's share of it, is full.
    Room,
}

/// A flow that was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub protocol: Protocol,
    pub container: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// Whether a client of a published port wanted it.
    pub inward: bool,
    pub reason: Reason,
    pub at_us: u64,
}

impl Refusal {
    /// Whether it is the same but for the time and the port of who began it.
    fn is_like(&self, other: &Refusal) -> bool {
        let named = |it: &Refusal| {
            let ports = if it.inward { (it.container.1, 0) } else { (0, it.remote.1) };
            (it.protocol, it.container.0, it.remote.0, ports, it.inward, it.reason)
        };
        named(self) == named(other)
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Refusals(Vec<Refusal>);

impl Refusals {
    pub fn new() -> Self {
        Refusals(Vec::with_capacity(ROWS))
    }

    /// Takes one more.
    pub fn note(&mut self, refusal: Refusal) {
        let rows = &mut self.0;
        let is_own = |row: &Refusal| row.container.0 == refusal.container.0;
        let like = rows.iter().position(|row| row.is_like(&refusal));
        let crowded = rows.iter().filter(|row| is_own(row)).count() >= ROWS_OF_ONE;
        let oldest = || {
            let of_whom = rows.iter().enumerate().filter(|(_, row)| !crowded || is_own(row));
            of_whom.min_by_key(|(_, row)| row.at_us).map(|(place, _)| place)
        };
        let place = like.or_else(|| (crowded || rows.len() == ROWS).then(oldest).flatten());
        match place.and_then(|place| rows.get_mut(place)) {
            Some(row) => *row = refusal,
            None => rows.push(refusal),
        }
    }

    /// How many places there are.
    pub fn touched(&self) -> u32 {
        self.0.len() as u32
    }

    /// The row in a place, if it is still to be shown.
    pub fn look(&self, place: u32, now_us: u64) -> Option<Shown> {
        let row = self.0.get(place as usize).filter(|row| now_us.saturating_sub(row.at_us) < SHOWN_US)?;
        let Refusal { protocol, container, remote, inward, reason, at_us } = *row;
        let state = match reason {
            Reason::Rules => "REFUSED (no rule)",
            Reason::Room => "REFUSED (no room)",
        };
        Some(Shown { protocol, container, remote, state, tally: Tally::new(at_us, inward) })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn refusal(container: u8, to: u16, at_us: u64) -> Refusal {
        let (container, remote) = (Ipv4Addr::new(10, 0, 0, container).into(), Ipv4Addr::new(192, 0, 2, 1).into());
        let (container, remote) = ((container, 40_000 + at_us as u16), (remote, to));
        Refusal { protocol: Protocol::Tcp, container, remote, inward: false, reason: Reason::Rules, at_us }
    }

    #[test]
    fn one_who_is_refused_again_and_again_has_one_row() {
        let mut refusals = Refusals::new();
        (0..100).for_each(|at_us| refusals.note(refusal(1, 443, at_us)));
        refusals.note(Refusal { reason: Reason::Room, ..refusal(1, 443, 100) });
        assert_eq!(refusals.touched(), 2);
        assert_eq!(refusals.look(0, 100).map(|row| row.tally.began_us), Some(99));
        assert!(refusals.look(0, 99 + SHOWN_US).is_none() && refusals.look(1, 99 + SHOWN_US).is_some());
    }

    #[test]
    fn one_leaves_room_for_others_and_the_oldest_goes() {
        let mut refusals = Refusals::new();
        (0..1000).for_each(|number| refusals.note(refusal(1, number, number.into())));
        assert_eq!(refusals.touched(), ROWS_OF_ONE as u32);
        let oldest = refusals.0.iter().map(|row| row.at_us).min();
        assert_eq!(oldest, Some(1000 - ROWS_OF_ONE as u64));
        (2..100).for_each(|container| (0..4).for_each(|to| refusals.note(refusal(container, to, 2000))));
        assert_eq!(refusals.0.len(), ROWS);
    }
}
