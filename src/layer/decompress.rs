//! Finding out how a stream is compressed, by its first bytes and never by its media type, and inflating it.
//!
//! Layers are plain, gzip or zstd, as the image specification has it. Archives of images and of root file systems may also be
//! bzip2 or xz: they are unpacked on the way in, and nothing in the store is compressed so. Whatever it is, more bytes than
//! [`Limits::stream_bytes`] end the stream, no decoder takes more memory than a window of 128 MiB, and those of zstd share a bound
//! (`window`).

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

use crate::compress::Compression;
use crate::error::LayerError;
use crate::limits::Limits;
use crate::window::Frames;

/// The most memory for xz, whose own largest preset takes half of it: 128 MiB.
const XZ_MEMORY_MAX_KIB: u32 = 128 << 10;
/// How much is read at once.
const READ_BYTES: usize = 256 << 10;
/// As many first bytes as tell every form.
pub(crate) const MAGIC_BYTES: usize = 10;

/// What archives may be compressed with and layers may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Foreign {
    Bzip2,
    Xz,
}

impl Foreign {
    /// By the first [`MAGIC_BYTES`]. Of bzip2 the magic of the first block, or of the end, belongs to them: its first three
    /// letters may be a file's name in a plain archive.
    fn of_magic(magic: &[u8]) -> Option<Foreign> {
        match magic {
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Foreign::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Foreign::Xz),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Foreign::Bzip2 => "bzip2",
            Foreign::Xz => "xz",
        }
    }
}

/// How a stream with these first bytes is compressed; `None` for a plain archive.
fn name_of(magic: &[u8]) -> Option<&'static str> {
    match Compression::of_magic(magic) {
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
        Compression::None => Foreign::of_magic(magic).map(Foreign::name),
    }
}

/// Whether a stream with these first bytes is a plain archive.
pub fn is_plain(magic: &[u8]) -> bool {
    name_of(magic).is_none()
}

/// Copies a plain archive. One that is compressed below its compression is refused by name: as a layer it would be
/// compressed twice, which nobody inflates.
pub fn copy_plain(mut archive: impl Read, to: &mut dyn Write) -> crate::Result<u64> {
    let mut magic = Vec::with_capacity(MAGIC_BYTES);
    let read = (&mut archive).take(MAGIC_BYTES as u64).read_to_end(&mut magic);
    read.map_err(LayerError::from_io)?;
    if let Some(name) = name_of(&magic) {
        return Err(LayerError::Twice { name });
    }
    io::copy(&mut Cursor::new(magic).chain(archive), to).map_err(LayerError::from_io)
}

/// The uncompressed bytes of a layer. gzip may have several members, zstd several and skippable frames; what is neither is
/// taken for a plain archive, but bzip2 and xz are refused by name.
pub(crate) fn layer<'r>(reader: impl Read + Send + 'r, limits: &Limits) -> io::Result<Box<dyn Read + Send + 'r>> {
    inflated(reader, limits, |foreign, _| Err(io::Error::other(LayerError::Foreign { name: foreign.name() })))
}

/// The uncompressed bytes of an archive, which may also be bzip2 or xz. Its errors are for [`LayerError::from_io`].
pub fn archive<'r>(reader: impl Read + Send + 'r, limits: &Limits) -> io::Result<Box<dyn Read + Send + 'r>> {
    inflated(reader, limits, |foreign, whole| {
        Ok(match foreign {
            Foreign::Bzip2 => Box::new(MultiBzDecoder::new(whole)),
            Foreign::Xz => Box::new(XzReader::new_mem_limit(whole, true, XZ_MEMORY_MAX_KIB)),
        })
    })
}

type Source<'r> = Box<dyn BufRead + Send + 'r>;

fn inflated<'r>(
    reader: impl Read + Send + 'r,
    limits: &Limits,
    foreign: impl FnOnce(Foreign, Source<'r>) -> io::Result<Box<dyn Read + Send + 'r>>,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let compressed_bytes = Arc::new(AtomicU64::new(0));
    let mut reader = Counted { reader, count: compressed_bytes.clone() };
    let mut magic = Vec::with_capacity(MAGIC_BYTES);
    (&mut reader).take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
    let kind = (Compression::of_magic(&magic), Foreign::of_magic(&magic));
    let whole: Source<'r> = Box::new(BufReader::with_capacity(READ_BYTES, Cursor::new(magic).chain(reader)));
    let inner: Box<dyn Read + Send + 'r> = match kind {
        (Compression::Gzip, _) => Box::new(MultiGzDecoder::new(whole)),
        (Compression::Zstd, _) => Box::new(Frames::new(whole)),
        (Compression::None, Some(found)) => foreign(found, whole)?,
        (Compression::None, None) => whole,
    };
    Ok(Box::new(Bounded { inner, bytes: 0, compressed_bytes, limits: *limits }))
}

/// Counts the bytes that are read through it.
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

/// Ends a stream that is larger than its compressed bytes may make it.
struct Bounded<R> {
    inner: R,
    bytes: u64,
    compressed_bytes: Arc<AtomicU64>,
    limits: Limits,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.bytes += length as u64;
        let limit = self.limits.stream_bytes(self.compressed_bytes.load(Ordering::Relaxed));
        if self.bytes > limit {
            return Err(io::Error::other(LayerError::Limit { what: "uncompressed bytes", limit }));
        }
        Ok(length)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed conversion is a failed test")]
mod tests {
    use super::*;

    /// `printf 'archive\n' | bzip2`, `| xz`, and `xz --lzma2=dict=256MiB`.
    const BZIP2: &str =
        "425a68393141592653594a0be0a1000000c18000102a6011002000310c0821a68f48d138278bb9229c28482505f05080";
    const XZ: &str = "fd377a585a000004e6d6b4460200210116000000742fe5a3010007617263686976650a00ccbefa5c8d7254c500012008bb19d9bb1fb6f37d010000000004595a";
    const XZ_LARGE: &str = "fd377a585a000004e6d6b44602002101200000000988a576010007617263686976650a00ccbefa5c8d7254c500012008bb19d9bb1fb6f37d010000000004595a";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn unpacked(packed: &[u8], limits: &Limits) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        archive(packed, limits)?.read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn archives_may_be_bzip2_and_xz_and_layers_may_not() {
        let limits = Limits::default();
        for (name, hex) in [("bzip2", BZIP2), ("xz", XZ)] {
            let one = bytes(hex);
            assert_eq!(unpacked(&one, &limits).unwrap(), b"archive\n", "{name}");
            // Those who compress on several processors write several streams.
            assert_eq!(unpacked(&[&one[..], &one].concat(), &limits).unwrap(), b"archive\narchive\n", "{name}");
            let error = layer(&one[..], &limits).map(drop).unwrap_err();
            assert!(LayerError::from_io(error).to_string().contains(name));
            assert!(!is_plain(&one));
            for cut in 0..one.len() {
                // A file that is cut is an error, or no such file any more.
                let cut = &one[..cut];
                assert!(unpacked(cut, &limits).map_or(true, |content| content == cut), "{name} {}", cut.len());
            }
            for at in MAGIC_BYTES..one.len() {
                let mut broken = one.clone();
                broken[at] ^= 0x10;
                // Not every bit is covered by a checksum; none makes a panic or other content without end.
                assert!(unpacked(&broken, &limits).map_or(true, |content| content.len() < 100), "{name} {at}");
            }
        }
    }

    #[test]
    fn what_is_compressed_below_its_compression_is_refused_by_name() {
        let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0];
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x24, 0, 1, 0, 0];
        for (packed, wanted) in [(&gzip[..], "gzip"), (&zstd, "zstd"), (&bytes(BZIP2), "bzip2"), (&bytes(XZ), "xz")] {
            let error = copy_plain(packed, &mut io::sink()).unwrap_err();
            assert!(matches!(error, LayerError::Twice { name } if name == wanted), "{wanted}: {error:?}");
        }
        let mut copy = Vec::new();
        assert_eq!(copy_plain(&b"archive"[..], &mut copy).unwrap(), 7);
        assert_eq!(copy, b"archive");
    }

    #[test]
    fn a_name_that_begins_like_bzip2_is_a_name() {
        let mut block = b"BZh9.txt".to_vec();
        block.resize(512, 0);
        assert!(is_plain(&block));
        assert_eq!(unpacked(&block, &Limits::default()).unwrap(), block);
    }

    #[test]
    fn more_than_the_limit_ends_the_stream_and_so_does_a_window_that_is_too_large() {
        let limits = Limits { base_bytes: 4, ratio: 0, ..Limits::default() };
        for hex in [BZIP2, XZ] {
            let error = unpacked(&bytes(hex), &limits).unwrap_err();
            assert!(matches!(LayerError::from_io(error), LayerError::Limit { limit: 4, .. }));
        }
        assert!(unpacked(&bytes(XZ_LARGE), &Limits::default()).is_err());
    }
}
