//! How much of what is to move has moved: the sum over all contents, its rate, and the time that is left.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use oci::Digest;

/// The rate is that of the last so many seconds.
const WINDOW: Duration = Duration::from_secs(10);
/// No rate is told of less: what was in buffers would be taken for speed.
const WINDOW_MIN: Duration = Duration::from_millis(500);
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(100);

/// The contents of one command. Only what moves in it counts: of a content that goes on where an earlier command ended,
/// the rest.
#[derive(Debug, Default)]
pub struct Tally {
    contents: BTreeMap<Option<Digest>, Content>,
    /// Moments and the bytes that had moved by then, oldest first.
    samples: VecDeque<(Instant, u64)>,
}

/// One content.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    size_bytes: Option<u64>,
    /// The byte where it began; `None` before it does.
    begun_at: Option<u64>,
    done_bytes: u64,
}

/// How far all is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// Bytes that have moved.
    pub done_bytes: u64,
    /// Bytes that will have moved at the end; `None` while that of one content is not known.
    pub size_bytes: Option<u64>,
    /// Bytes a second, lately; `None` before it can be told.
    pub rate: Option<u64>,
    /// Until the end at this rate.
    pub left: Option<Duration>,
}

impl Tally {
    /// These are wanted.
    pub fn plan(&mut self, contents: &[(Digest, u64)]) {
        for (digest, size) in contents {
            self.contents.entry(Some(*digest)).or_default().size_bytes = Some(*size);
        }
    }

    /// A content is there without having moved.
    pub fn skip(&mut self, content: Digest) {
        // The second mention of one that has moved is no news.
        if self.contents.get(&Some(content)).is_some_and(|known| known.begun_at.is_none()) {
            self.contents.remove(&Some(content));
        }
    }

    /// A content is so far.
    pub fn advance(&mut self, content: Option<Digest>, done_bytes: u64, size_bytes: Option<u64>, now: Instant) {
        let known = self.contents.entry(content).or_default();
        known.size_bytes = size_bytes.or(known.size_bytes);
        known.begun_at.get_or_insert(done_bytes);
        known.done_bytes = done_bytes;
        if self.samples.back().is_none_or(|(last, _)| now.duration_since(*last) >= SAMPLE) {
            let moved = self.moved_bytes();
            self.samples.push_back((now, moved));
            while self.samples.front().is_some_and(|(first, _)| now.duration_since(*first) > WINDOW) {
                self.samples.pop_front();
            }
        }
    }

    /// A content is whole.
    pub fn finish(&mut self, content: Option<Digest>) {
        match self.contents.get_mut(&content) {
            Some(known) if known.begun_at.is_some() => {
                known.done_bytes = known.size_bytes.unwrap_or(known.done_bytes);
                known.size_bytes = Some(known.done_bytes);
            }
            // Another command brought it.
            _ => drop(self.contents.remove(&content)),
        }
    }

    /// How far all is at this moment.
    pub fn total(&self, now: Instant) -> Total {
        let done_bytes = self.moved_bytes();
        // Sizes are what a manifest says, which may be anything.
        let size_bytes = self.contents.values().try_fold(0, |sum: u64, content| {
            Some(sum.saturating_add(content.size_bytes?.saturating_sub(content.begun_at.unwrap_or(0))))
        });
        let rate = self.samples.front().and_then(|(first, before)| {
            let span = now.duration_since(*first);
            let bytes = u128::from(done_bytes.saturating_sub(*before));
            let rate = bytes * 1000 / span.as_millis().max(1);
            (span >= WINDOW_MIN).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
        });
        let left = size_bytes.zip(rate.filter(|rate| *rate > 0));
        let left = left.map(|(size, rate)| Duration::from_secs(size.saturating_sub(done_bytes).div_ceil(rate)));
        Total { done_bytes, size_bytes, rate, left }
    }

    fn moved_bytes(&self) -> u64 {
        let moved = |content: &Content| content.done_bytes.saturating_sub(content.begun_at.unwrap_or(0));
        self.contents.values().map(moved).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn only_what_moves_counts() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        let at = |ms: u64| now + Duration::from_millis(ms);
        let [here, resumed, fresh] = ["here", "resumed", "fresh"].map(digest);
        tally.plan(&[(here, 500), (resumed, 1000), (fresh, 200)]);
        assert_eq!(tally.total(now).size_bytes, Some(1700));
        tally.skip(here);
        tally.advance(Some(resumed), 900, Some(1000), now);
        let begun = Total { done_bytes: 0, size_bytes: Some(300), rate: None, left: None };
        assert_eq!(tally.total(now), begun);
        tally.advance(Some(resumed), 950, Some(1000), at(1000));
        let left = Some(Duration::from_secs(5));
        assert_eq!(tally.total(at(1000)), Total { done_bytes: 50, size_bytes: Some(300), rate: Some(50), left });
        tally.finish(Some(resumed));
        // Of one that stands in a manifest twice, the second is there once the first is.
        tally.skip(resumed);
        tally.finish(Some(fresh));
        let done = tally.total(at(2000));
        assert_eq!((done.done_bytes, done.size_bytes), (100, Some(100)));
    }

    #[test]
    fn sizes_beyond_all_measure_are_the_largest() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        let [one, other] = ["one", "other"].map(digest);
        tally.plan(&[(one, u64::MAX), (other, u64::MAX)]);
        assert_eq!(tally.total(now).size_bytes, Some(u64::MAX));
        for content in [one, other] {
            tally.advance(Some(content), 0, None, now);
            tally.finish(Some(content));
        }
        let done = tally.total(now + Duration::from_secs(1));
        assert_eq!((done.done_bytes, done.size_bytes, done.left), (u64::MAX, Some(u64::MAX), Some(Duration::ZERO)));
    }

    #[test]
    fn a_length_that_is_not_known_leaves_the_end_open() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        tally.advance(None, 0, None, now);
        tally.advance(None, 3000, None, now + Duration::from_secs(3));
        let total = tally.total(now + Duration::from_secs(3));
        assert_eq!(total, Total { done_bytes: 3000, size_bytes: None, rate: Some(1000), left: None });
        tally.finish(None);
        assert_eq!(tally.total(now).size_bytes, Some(3000));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_a_retry_is_none() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        let size = Some(1 << 20);
        // Ten bytes in ten milliseconds, then one byte a second.
        tally.advance(None, 0, size, now);
        tally.advance(None, 100_000, size, now + Duration::from_millis(600));
        for second in 1..=20 {
            tally.advance(None, 100_000 + second, size, now + Duration::from_secs(second));
        }
        assert_eq!(tally.total(now + Duration::from_secs(20)).rate, Some(1));
        tally.advance(None, 0, size, now + Duration::from_secs(21));
        let back = tally.total(now + Duration::from_secs(21));
        assert_eq!((back.done_bytes, back.rate, back.left), (0, Some(0), None));
    }
}
