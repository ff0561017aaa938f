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
    clock: fn() -> Instant,
}

impl<R: Read> Paced<R> {
    pub(crate) fn new(inner: R) -> Self {
        Paced { inner, pace: Pace::default(), clock: Instant::now }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = (self.clock)();
        let count = self.inner.read(buffer)?;
        if count > 0 && !self.pace.keeps(count as u64, (self.clock)().duration_since(began)) {
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
#[allow(clippy::unwrap_used, reason = "a read that goes on for ever is a failed test")]
mod tests {
    use std::cell::Cell;
    use std::sync::LazyLock;

    use super::*;

    thread_local! {
        /// How far the clock of this test has gone.
        static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    fn clock() -> Instant {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        *BEGAN + PASSED.get()
    }

    /// A server that sends so much at once, each time after so long, for ever.
    struct Drip {
        bytes: usize,
        every: Duration,
    }

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            PASSED.set(PASSED.get() + self.every);
            Ok(self.bytes.min(buffer.len()))
        }
    }

    #[test]
    fn a_server_that_drips_is_left_and_the_time_of_the_consumer_does_not_count() {
        let paced = |bytes, seconds| {
            let inner = Drip { bytes, every: Duration::from_secs(seconds) };
            Paced { inner, pace: Pace::default(), clock }
        };
        let mut drip = paced(1, 7);
        let error = io::copy(&mut drip, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "fewer than 16384 bytes in 60 s");
        assert_eq!(PASSED.get(), Duration::from_secs(63), "the ninth byte is one too late");
        let mut slow = paced(300, 1);
        for _ in 0..1000 {
            slow.read_exact(&mut [0; 300]).unwrap();
            // Whoever takes the bytes is busy with them.
            PASSED.set(PASSED.get() + Duration::from_mins(5));
        }
    }

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
