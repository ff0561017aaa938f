//! When to try again, and how long to wait before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ureq::http::HeaderMap;

use crate::error::RegistryError;

/// How often one request is sent at most.
pub(crate) const ATTEMPTS: u32 = 5;
/// The longest wait that a server may ask for.
pub(crate) const WAIT_MAX: Duration = Duration::from_mins(2);
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// How soon a cancelled wait ends.
const SLICE: Duration = Duration::from_millis(50);

/// Whether a status says that the same request may succeed later.
pub(crate) fn is_temporary(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether the connection may work when it is made again. A bad certificate will not get better, nor will a refused connection or
/// an unknown host, unless the host has answered before: then it, or the network, comes back.
pub(crate) fn may_recover(error: &ureq::Error, has_answered: bool) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    match error {
        ureq::Error::Io(error) => {
            has_answered || !matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
        }
        ureq::Error::HostNotFound => has_answered,
        ureq::Error::Timeout(_) | ureq::Error::BodyStalled | ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// The wait before attempt number `attempt` (the second is 1): doubled each time, with up to half of it added by
/// chance so that many clients do not come back at once.
pub(crate) fn back_off(attempt: u32) -> Duration {
    let base = FIRST_WAIT * 2_u32.pow(attempt.min(6).saturating_sub(1));
    let nanos = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    base + base.mul_f64(f64::from(nanos % 1000) / 2000.0)
}

/// Waits unless cancelled.
pub(crate) fn wait(duration: Duration, cancelled: &AtomicBool) -> Result<(), RegistryError> {
    let mut left = duration;
    while !left.is_zero() {
        if cancelled.load(Ordering::Relaxed) {
            return Err(RegistryError::Cancelled);
        }
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
    }
    Ok(())
}

/// The wait that an answer asks for.
pub(crate) fn after(headers: &HeaderMap) -> Option<Duration> {
    retry_after(headers.get("retry-after")?.to_str().ok()?, SystemTime::now())
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = header.trim().parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let at = http_date(header.trim())?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`; the two older forms of the RFC are not sent by anyone.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let mut clock = time.split(':').map(|part| part.parse::<u64>().ok().filter(|part| *part < 61));
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    // Days since 1970, counting years from March so that the leap day is the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = (365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1).checked_sub(719_468)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(days * 86_400 + hours * 3600 + minutes * 60 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        for (header, seconds) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(header, now).map(|wait| wait.as_secs()), seconds, "{header}");
        }
    }

    #[test]
    fn waits_grow_and_stay_bounded() {
        for attempt in 1..100 {
            let wait = back_off(attempt);
            assert!(wait >= FIRST_WAIT && wait <= FIRST_WAIT * 48, "{attempt}: {wait:?}");
        }
    }
}
