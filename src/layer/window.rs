//! zstd in bounded memory.
//!
//! What a frame takes to be inflated is its window, as long as its header says: some MiB as a rule, up to 128 MiB with `--long` and
//! `--ultra`. Layers are applied several at once, so all frames of the process share [`SHARED_BYTES`]: before a frame begins, its
//! window is waited for. One that is larger than all of that is inflated while no other is. A stream keeps the window of its
//! last frame for the next ones that need no more, and gives it away before it waits for a larger one; so whoever waits holds
//! nothing, and no two streams wait for each other. No stream may be read for what is inside another one that is not at its end.
//!
//! Meanwhile a layer that waits is not read, and a registry may lose its patience: then its download goes on where it was.

use std::io::{self, BufRead, Read};
use std::sync::{Condvar, Mutex, PoisonError};

use zstd::stream::raw::{Decoder, Operation};

use crate::error::LayerError;

/// What the windows of all frames that are being inflated may take together, unless there is only one, in bytes.
const SHARED_BYTES: u64 = 32 << 20;
/// The largest window that is accepted, as a power of two: 128 MiB.
const WINDOW_LOG_MAX: u32 = 27;
/// The longest header of a frame, magic number included (RFC 8878, section 3.1.1).
const HEADER_BYTES: usize = 18;
/// What begins a frame, and, but for its last four bits, one that is to be skipped.
const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;

static HELD_BYTES: Mutex<u64> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// The right to take so much for a window.
struct Window {
    bytes: u64,
}

impl Window {
    fn wait_for(bytes: u64) -> Self {
        let held = HELD_BYTES.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |held: &mut u64| *held > 0 && *held + bytes > SHARED_BYTES;
        let mut held = GIVEN_BACK.wait_while(held, full).unwrap_or_else(PoisonError::into_inner);
        *held += bytes;
        Window { bytes }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        *HELD_BYTES.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        GIVEN_BACK.notify_all();
    }
}

/// A decoder with what it may take.
struct Inflating {
    decoder: Decoder<'static>,
    /// Given back after the decoder is gone: fields are dropped in their order.
    window: Window,
}

/// The content of all frames of a stream.
pub(crate) struct Frames<R> {
    reader: R,
    /// What was read to know the next frame's window and is not inflated yet.
    header: Vec<u8>,
    inflating: Option<Inflating>,
    in_frame: bool,
}

impl<R: BufRead> Frames<R> {
    pub fn new(reader: R) -> Self {
        Frames { reader, header: Vec::new(), inflating: None, in_frame: false }
    }

    /// Goes to the next frame and waits for its window; `false` at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        let missing = HEADER_BYTES - self.header.len();
        (&mut self.reader).take(missing as u64).read_to_end(&mut self.header)?;
        if self.header.is_empty() {
            return Ok(false);
        }
        let bytes = window_bytes(&self.header).ok_or_else(|| io::Error::other("what follows is no zstd frame"))?;
        let limit = 1 << WINDOW_LOG_MAX;
        if bytes > limit {
            return Err(io::Error::other(LayerError::Limit { what: "bytes in the window of a zstd frame", limit }));
        }
        if self.inflating.as_ref().is_none_or(|inflating| inflating.window.bytes < bytes) {
            self.inflating = None;
            let window = Window::wait_for(bytes);
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            self.inflating = Some(Inflating { decoder, window });
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if !self.begin()? {
                    self.inflating = None;
                    return Ok(0);
                }
                self.in_frame = true;
            }
            let Some(Inflating { decoder, .. }) = &mut self.inflating else { return Ok(0) };
            let ahead = !self.header.is_empty();
            let input = if ahead { &self.header } else { self.reader.fill_buf()? };
            let ended = input.is_empty();
            let status = decoder.run_on_buffers(input, buffer)?;
            if ahead {
                self.header.drain(..status.bytes_read);
            } else {
                self.reader.consume(status.bytes_read);
            }
            self.in_frame = status.remaining > 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if ended && self.in_frame {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends inside a zstd frame"));
            }
        }
    }
}

/// What a frame with this header takes for its window, in bytes: no more than its content, where that is known. `None` for what is no
/// header.
fn window_bytes(header: &[u8]) -> Option<u64> {
    let magic = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    if magic & !0xf == SKIPPABLE {
        return Some(0);
    }
    let descriptor = header.get(4).filter(|_| magic == MAGIC)?;
    let single_segment = descriptor & 0x20 != 0;
    let window = header.get(5).filter(|_| !single_segment).map(|byte| {
        let base = 1_u64 << (10 + (byte >> 3));
        base + base / 8 * u64::from(byte & 7)
    });
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = match descriptor >> 6 {
        0 => usize::from(single_segment),
        log => 1 << log,
    };
    let at = if single_segment { 5 } else { 6 } + dictionary;
    let mut bytes = [0; 8];
    bytes[..length].copy_from_slice(header.get(at..at + length)?);
    // Two bytes are for what one byte cannot say.
    let content = u64::from_le_bytes(bytes).saturating_add(if length == 2 { 256 } else { 0 });
    match (window, length) {
        (None, _) => Some(content),
        (window, 0) => window,
        (Some(window), _) if window <= 1 << WINDOW_LOG_MAX => Some(window.min(content)),
        // The decoder refuses it, however little is inside.
        (window, _) => window,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed conversion is a failed test")]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn packed(content: &[u8], window_log: u32, known: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        if known {
            encoder.set_pledged_src_size(Some(content.len() as u64)).unwrap();
        }
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        // In small pieces, so that headers and ends are cut everywhere.
        Frames::new(io::BufReader::with_capacity(7, packed)).read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn windows_are_what_headers_say() {
        let content = vec![7; 300_000];
        for (log, bytes) in [(10, 1 << 10), (20, 1 << 20), (27, 128 << 20)] {
            assert_eq!(window_bytes(&packed(&content, log, false)), Some(bytes), "{log}");
        }
        for length in [0, 1, 255, 256, 257, 65_791, 65_792, 300_000] {
            let known = window_bytes(&packed(&content[..length], 27, true)).unwrap();
            assert_eq!(known, length as u64);
        }
        assert_eq!(window_bytes(&[0x53, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0, 0]), Some(0));
        for wrong in [&b""[..], b"(\xb5/", b"(\xb5/\xfd", b"(\xb5/\xfd\0", b"(\xb5/\xfd\xe0\0\0", b"ustar\0\0\0"] {
            assert_eq!(window_bytes(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn several_frames_are_one_content() {
        let skipped = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frames =
            [packed(b"one ", 10, false), skipped.clone(), packed(b"", 20, true), packed(b"two", 21, true), skipped];
        assert_eq!(unpacked(&frames.concat()).unwrap(), b"one two");
        let one = packed(&vec![3; 100_000], 17, false);
        assert_eq!(unpacked(&one).unwrap(), vec![3; 100_000]);
        for cut in 1..one.len() {
            assert!(unpacked(&one[..cut]).is_err(), "{cut}");
        }
        assert!(unpacked(&[&one[..], b"no more"].concat()).is_err());
    }

    #[test]
    fn a_window_beyond_all_bounds_is_refused_by_its_size() {
        // 256 MiB and a content that is not known.
        let error = unpacked(b"(\xb5/\xfd\0\x90\x01\0\0").unwrap_err();
        let error = LayerError::from_io(error);
        assert!(matches!(error, LayerError::Limit { limit, .. } if limit == 128 << 20), "{error:?}");
    }

    #[test]
    fn a_large_window_waits_until_it_is_alone() {
        let (sent, large) = channel();
        let small = Window::wait_for(8 << 20);
        let another = Window::wait_for(24 << 20);
        let waiting = std::thread::spawn(move || {
            let window = Window::wait_for(128 << 20);
            sent.send(()).unwrap();
            drop(window);
        });
        drop(small);
        assert!(large.recv_timeout(Duration::from_millis(200)).is_err(), "24 MiB are held");
        drop(another);
        large.recv_timeout(Duration::from_secs(10)).unwrap();
        waiting.join().unwrap();
    }
}
