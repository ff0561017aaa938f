//! Fragments become packets again (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! A container's kernel makes fragments of a datagram that is larger than its device's MTU, or than a path of which it was
//! told. They meet in a fixed number of places, each with room for the largest packet, which is taken at its first use and
//! kept. A full table gives up its oldest packet, and so nothing has to wait for the end of one: there is no timer.
//!
//! What overlaps, has gaps in its units of 8 bytes or contradicts itself about its length is given up (RFC 5722).

use std::net::IpAddr;

use crate::wire::ip::{self, Fragment, Header, Parsed, Refusal, V6_LEN};

/// Packets that may be incomplete at a time.
const PLACES: usize = 32;
/// After that time the same key is another packet's (RFC 8200 §4.5).
const LIFE_US: u64 = 60_000_000;
/// The largest payload.
const PAYLOAD_MAX: usize = 65535;
/// Offsets count in these.
const UNIT: usize = 8;
const UNITS: usize = PAYLOAD_MAX.div_ceil(UNIT);

/// Packets on their way to being whole.
#[derive(Debug)]
pub(crate) struct Reassembly {
    places: Vec<Place>,
    /// Fragments that never became a packet, and packets given up.
    pub lost: u64,
}

/// What the fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// IPv4 numbers the packets of each protocol (RFC 791 §3.2). In IPv6 only the first fragment's counts.
    protocol: Option<u8>,
    id: u32,
}

#[derive(Debug)]
struct Place {
    key: Option<Key>,
    begun_us: u64,
    /// A bit for each unit that is here.
    units: [u64; UNITS.div_ceil(64)],
    received: usize,
    furthest: usize,
    total: Option<usize>,
    /// Of the first fragment.
    protocol: u8,
    hop_limit: u8,
    /// [`V6_LEN`] bytes for a header, then the payload.
    bytes: Vec<u8>,
}

/// A packet that has become whole; it goes back to its place by [`Reassembly::give_back`].
#[derive(Debug)]
pub(crate) struct Whole {
    place: usize,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Whole {
    /// Reads it, as it would have come without fragments.
    pub fn parse(&self) -> Result<Parsed<'_>, Refusal> {
        let packet = &self.bytes[self.start..self.end];
        if self.start == V6_LEN - ip::V4_LEN { ip::parse_v4(packet) } else { ip::parse_v6(packet) }
    }
}

impl Reassembly {
    pub fn new() -> Self {
        Reassembly { places: (0..PLACES).map(|_| Place::empty()).collect(), lost: 0 }
    }

    /// Takes a fragment; the answer is its packet, if nothing of that is missing any more.
    pub fn add(&mut self, now_us: u64, part: &Fragment<'_>) -> Option<Whole> {
        let v4 = part.source.is_ipv4();
        let key = Key {
            source: part.source,
            destination: part.destination,
            protocol: v4.then_some(part.protocol),
            id: part.id,
        };
        let number = self.place(&key, now_us);
        let place = &mut self.places[number];
        if !place.take(part) {
            place.key = None;
            self.lost += 1;
            return None;
        }
        let total = place.total.filter(|total| *total == place.received)?;
        place.key = None;
        let mut header = Header::new();
        ip::write(&mut header, part.source, part.destination, place.protocol, total, place.hop_limit);
        let header = header.as_slice();
        let start = V6_LEN - header.len();
        place.bytes[start..V6_LEN].copy_from_slice(header);
        Some(Whole { place: number, bytes: std::mem::take(&mut place.bytes), start, end: V6_LEN + total })
    }

    /// Keeps the room for the next packet.
    pub fn give_back(&mut self, whole: Whole) {
        self.places[whole.place].bytes = whole.bytes;
    }

    /// The place of this packet, or one for it: a free one, else that of the oldest.
    fn place(&mut self, key: &Key, now_us: u64) -> usize {
        let known = self.places.iter().position(|place| place.key == Some(*key));
        if let Some(number) = known.filter(|number| now_us.saturating_sub(self.places[*number].begun_us) < LIFE_US) {
            return number;
        }
        let age = |place: &Place| place.key.map(|_| place.begun_us);
        let oldest = (0..PLACES).min_by_key(|number| age(&self.places[*number])).unwrap_or(0);
        let number = known.unwrap_or(oldest);
        let place = &mut self.places[number];
        self.lost += u64::from(place.key.is_some());
        place.begin(*key, now_us);
        number
    }
}

impl Place {
    fn empty() -> Self {
        Place {
            key: None,
            begun_us: 0,
            units: [0; UNITS.div_ceil(64)],
            received: 0,
            furthest: 0,
            total: None,
            protocol: 0,
            hop_limit: 0,
            bytes: Vec::new(),
        }
    }

    fn begin(&mut self, key: Key, now_us: u64) {
        let bytes = std::mem::take(&mut self.bytes);
        *self = Place { key: Some(key), begun_us: now_us, bytes, ..Place::empty() };
        self.bytes.resize(V6_LEN + PAYLOAD_MAX, 0);
    }

    /// Puts a fragment in its place; `false` when it does not fit what is there.
    fn take(&mut self, part: &Fragment<'_>) -> bool {
        let Fragment { offset, more, payload, .. } = *part;
        let header = if part.source.is_ipv4() { ip::V4_LEN } else { 0 };
        let end = offset + payload.len();
        let uneven = more && payload.len() % UNIT != 0;
        if payload.is_empty() || uneven || end + header > PAYLOAD_MAX {
            return false;
        }
        let units = offset / UNIT..end.div_ceil(UNIT);
        if units.clone().any(|unit| self.units[unit / 64] & (1 << (unit % 64)) != 0) {
            return false;
        }
        units.for_each(|unit| self.units[unit / 64] |= 1 << (unit % 64));
        if offset == 0 {
            (self.protocol, self.hop_limit) = (part.protocol, part.hop_limit);
        }
        if !more && self.total.replace(end).is_some() {
            return false;
        }
        self.received += payload.len();
        self.furthest = self.furthest.max(end);
        self.bytes[V6_LEN + offset..V6_LEN + end].copy_from_slice(payload);
        // With nothing twice and nothing behind the end, all is there when so much is.
        self.total.is_none_or(|total| self.furthest <= total)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        let texts = if v6 { ("fd00::2", "2001:db8::1") } else { ("10.0.0.2", "192.0.2.1") };
        (texts.0.parse().unwrap(), texts.1.parse().unwrap())
    }

    fn fragment(v6: bool, id: u32, (offset, more): (usize, bool), payload: &[u8]) -> Fragment<'_> {
        let (source, destination) = addresses(v6);
        Fragment { source, destination, protocol: ip::UDP, hop_limit: 64, id, offset, more, payload }
    }

    /// The payload of a packet that has become whole.
    fn finished(reassembly: &mut Reassembly, part: &Fragment<'_>) -> Option<Vec<u8>> {
        let whole = reassembly.add(0, part)?;
        let Ok(Parsed::Whole(packet)) = whole.parse() else { panic!("{:?}", whole.parse()) };
        assert_eq!((packet.source, packet.destination), (part.source, part.destination));
        assert_eq!((packet.protocol, packet.hop_limit), (ip::UDP, 64));
        let payload = packet.payload.to_vec();
        reassembly.give_back(whole);
        Some(payload)
    }

    proptest! {
        #[test]
        fn a_packet_comes_out_as_it_went_in(
            v6 in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 9..4000),
            cuts in proptest::collection::btree_set(1_usize..500, 1..12),
            order in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let mut edges: Vec<usize> = cuts.into_iter().map(|cut| cut * UNIT).filter(|cut| *cut < payload.len()).collect();
            edges.insert(0, 0);
            edges.push(payload.len());
            let mut parts: Vec<(usize, usize)> = edges.windows(2).map(|pair| (pair[0], pair[1])).collect();
            let by = order.index(parts.len());
            parts.rotate_left(by);
            if seed % 2 == 0 {
                parts.reverse();
            }
            let mut reassembly = Reassembly::new();
            for (number, (from, to)) in parts.iter().enumerate() {
                let part = fragment(v6, seed as u32, (*from, *to < payload.len()), &payload[*from..*to]);
                let whole = finished(&mut reassembly, &part);
                prop_assert_eq!(whole.is_some(), number + 1 == parts.len());
                prop_assert!(whole.is_none_or(|whole| whole == payload));
            }
            prop_assert_eq!(reassembly.lost, 0);
        }

        #[test]
        fn nothing_hostile_is_more_than_lost(
            parts in proptest::collection::vec((0_u32..3, 0_usize..8192, any::<bool>(), 0_usize..2000), 0..60),
            v6 in any::<bool>(),
        ) {
            let bytes = [7; 2000];
            let mut reassembly = Reassembly::new();
            for (id, unit, more, length) in parts {
                let part = fragment(v6, id, (unit * UNIT, more), &bytes[..length]);
                if let Some(whole) = reassembly.add(0, &part) {
                    prop_assert!(whole.parse().is_ok());
                    reassembly.give_back(whole);
                }
            }
        }
    }

    #[test]
    fn overlaps_and_contradictions_are_given_up() {
        let bytes = [1; 64];
        // After 0 to 16 and the last one, 32 to 40: twice the same, overlaps, a second end, something behind the end.
        for third in [(0, true), (8, true), (24, true), (32, false), (40, true), (40, false), (16, false)] {
            let mut reassembly = Reassembly::new();
            assert!(reassembly.add(0, &fragment(true, 1, (0, true), &bytes[..16])).is_none());
            assert!(reassembly.add(0, &fragment(true, 1, (32, false), &bytes[..8])).is_none());
            let length = if third.0 == 24 { 16 } else { 8 };
            assert!(reassembly.add(0, &fragment(true, 1, third, &bytes[..length])).is_none());
            assert_eq!(reassembly.lost, 1, "{third:?}");
        }
        let mut reassembly = Reassembly::new();
        for bad in [fragment(false, 1, (0, true), &bytes[..7]), fragment(false, 1, (65_528, false), &bytes[..8])] {
            assert!(reassembly.add(0, &bad).is_none());
        }
        assert_eq!(reassembly.lost, 2);
    }

    #[test]
    fn a_full_table_gives_up_its_oldest() {
        let bytes = [1; 16];
        let mut reassembly = Reassembly::new();
        for id in 0..=PLACES as u32 {
            assert!(reassembly.add(u64::from(id), &fragment(false, id, (0, true), &bytes[..8])).is_none());
        }
        assert_eq!(reassembly.lost, 1);
        let last = |id| fragment(false, id, (8, false), &bytes[..3]);
        assert!(reassembly.add(99, &last(0)).is_none(), "it was the oldest");
        assert_eq!(finished(&mut reassembly, &last(PLACES as u32)), Some(vec![1; 11]));
    }
}
