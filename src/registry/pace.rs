//! A limit on slowness: a server that keeps a connection alive with a byte now and then is taken for one that is dead.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// So many bytes must come within [`WINDOW`] of waiting for them: 273 bytes a second, a tenth of an old modem's rate.
pub(crate) const PROGRESS_BYTES: u64 = 16 << 10;
const WINDOW: Duration = Duration::from_mins(1);

/// A body that must keep a least pace. Only the time that is spent waiting for it counts, not that of its consumer.
pub(crate) struct Paced<R> {
    inner: R,
    pace: Pace,
}

impl<R: Read> Paced<R> {
    pub(crate) fn new(inner: R) -> Self {
        Paced { inner, pace: Pace::default() }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        let count = self.inner.read(buffer)?;
        if count > 0 && !self.pace.keeps(count as u64, began.elapsed()) {
            let why = format!("fewer than {PROGRESS_BYTES} bytes in {} s", WINDOW.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Ok(count)
    }
}

/// What came in the present window.
#[derive(Default)]
struct Pace {
    bytes: u64,
    waited: Duration,
}

impl Pace {
    /// Counts what came; false when that is too little for the time it took.
    fn keeps(&mut self, bytes: u64, waited: Duration) -> bool {
        self.bytes += bytes;
        self.waited += waited;
        if self.bytes >= PROGRESS_BYTES {
            *self = Pace::default();
            return true;
        }
        self.waited < WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_ends_and_a_slow_line_does_not() {
        let last = |bytes: u64, seconds: u64| {
            let mut pace = Pace::default();
            (0..1000).take_while(|_| pace.keeps(bytes, Duration::from_secs(seconds))).count()
        };
        assert_eq!(last(1, 10), 5);
        assert_eq!(last(300, 1), 1000);
        assert_eq!(last(PROGRESS_BYTES, 3600), 1000);
    }
}
