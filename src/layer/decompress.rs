//! Finding out how a layer is compressed, by its first bytes and never by its media type, and inflating it.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use crate::compress::Compression;

/// The largest window of zstd that is accepted, as a power of two: 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// Counts the bytes that are read through it; others may look at the count at any time.
struct Counted<R> {
    reader: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The uncompressed bytes of a layer, and the count of compressed ones read so far.
///
/// gzip may have several members, zstd several and skippable frames; anything else is taken for a plain archive.
pub fn decompressed<'r>(reader: impl Read + Send + 'r) -> io::Result<(Box<dyn Read + Send + 'r>, Arc<AtomicU64>)> {
    let count = Arc::new(AtomicU64::new(0));
    let mut reader = Counted { reader, count: count.clone() };
    let mut magic = Vec::with_capacity(4);
    (&mut reader).take(4).read_to_end(&mut magic)?;
    let kind = Compression::of_magic(&magic);
    let whole = BufReader::with_capacity(READ_BYTES, Cursor::new(magic).chain(reader));
    let inflated: Box<dyn Read + Send + 'r> = match kind {
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd_decoder(whole)?),
        Compression::None => Box::new(whole),
    };
    Ok((inflated, count))
}

fn zstd_decoder<'r>(reader: impl BufRead + Send + 'r) -> io::Result<impl Read + Send + 'r> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}
