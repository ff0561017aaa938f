//! Writing the archive of a layer: equal trees give equal bytes.
//!
//! Theory of operation
//! - *Who decides what*: the caller gives the entries in their order (parents first, a directory's whiteouts before its
//!   names, names sorted by their bytes; [`crate::write_tree`] does so for an index). Everything else is decided here, and only
//!   from what the entry says: no clock, no host, no names of users.
//! - *Format*: POSIX ustar. An extended header stands before an entry only for what ustar cannot say: a path or target that
//!   does not fit, an owner above 2,097,151, a size of 8 GiB, a time with a fraction, before 1970 or after 2242, extended
//!   attributes. Its records are sorted; the ustar field that it replaces is cut or 0. Numbers of devices that do not fit, which Linux
//!   has not, are written in base 256 as GNU tar does, since pax has no record for them.
//! - *Extended attributes* are `SCHILY.xattr.` records, as everybody reads them; one whose name has a `=`, which would end
//!   the key, is a `LIBARCHIVE.xattr.` record. Marks of overlay file systems are left out.
//! - *Sparse files* are written in GNU's format 1.0. What is a hole is decided by the content and not by where the file system
//!   happens to have blocks: a run of zeros of at least 1 MiB that begins and ends at a multiple of 64 KiB. Where the file
//!   system knows of a hole nothing is read: that is zeros.
//! - *Time*: with a limit (`SOURCE_DATE_EPOCH`) later times are set to it.
//! - *What cannot be written* is an error and never left out: a path component that would read as a whiteout, more than
//!   1 MiB of extended header. The reader ([`crate::apply()`]) has the same limits, so what was written can be read.
//! - The end is two blocks of zeros and no padding to a record.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use index::{DeviceNumber, Metadata, Time};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tar::UstarHeader;

use crate::archive::HEADERS_MAX;
use crate::block::BLOCK;
use crate::error::{LayerError, Result};
use crate::whiteout::{self, OPAQUE, PREFIX};

/// The largest owner in seven octal digits.
const OWNER_MAX: u32 = 0o7_777_777;
/// The first number that eleven octal digits do not hold.
const LONG_END: u64 = 1 << 33;
/// Runs of zeros are looked for in steps of this …
const HOLE_STEP: usize = 64 << 10;
/// … and from this length on they are holes.
const HOLE_MIN: u64 = 1 << 20;
/// No map has more segments than this: a larger file needs longer holes.
const SEGMENTS_MAX: u64 = 16 << 10;
/// How much of a file is read at once.
const READ_BYTES: usize = 1 << 20;

/// What an entry without content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarEntry<'a> {
    /// A directory.
    Directory,
    /// A second name of this path.
    HardLink(&'a [u8]),
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// The content of a regular file.
#[derive(Clone, Copy, Debug)]
pub enum TarContent<'a> {
    /// Here.
    Bytes(&'a [u8]),
    /// That many bytes of a file, which must not become shorter meanwhile.
    File {
        /// Open for reading; its position is not used, but changed.
        file: &'a File,
        /// The first byte.
        offset: u64,
        /// How many.
        size: u64,
    },
}

impl TarContent<'_> {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            TarContent::Bytes(bytes) => bytes.len() as u64,
            TarContent::File { size, .. } => *size,
        }
    }

    /// Reads at `at`, as much as there is; 0 only at the end.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size().saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        match self {
            TarContent::Bytes(bytes) => bytes.get(at as usize..).unwrap_or_default().read(&mut buffer[..left]),
            TarContent::File { file, offset, .. } => loop {
                match file.read_at(&mut buffer[..left], offset + at) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return result,
                }
            },
        }
    }

    /// Where the first byte from `at` on is that may be something else than zero, as the file system knows it.
    fn data_from(&self, at: u64) -> u64 {
        let TarContent::File { file, offset, size } = self else { return at };
        let Ok(from) = i64::try_from(offset + at) else { return at };
        let data = match lseek(file, from, Whence::SeekData) {
            Ok(data) => data.unsigned_abs(),
            // There is none up to the end of the file, which may have become shorter.
            Err(Errno::ENXIO) => file.metadata().map_or(0, |metadata| metadata.len()),
            // The file system does not tell.
            Err(_) => return at,
        };
        data.saturating_sub(*offset).clamp(at, *size)
    }
}

/// An archive on its way.
pub struct TarWriter<W> {
    out: W,
    latest_s: Option<i64>,
    holes: bool,
    buffer: Vec<u8>,
}

/// What is told of a file beside its content.
struct Headed<'a> {
    path: &'a [u8],
    metadata: &'a Metadata,
    flag: u8,
    link: &'a [u8],
    device: DeviceNumber,
    size: u64,
    /// Records that the kind of the entry asks for.
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<'a> Headed<'a> {
    fn new(path: &'a [u8], metadata: &'a Metadata, flag: u8) -> Self {
        let device = DeviceNumber::default();
        Headed { path, metadata, flag, link: b"", device, size: 0, records: BTreeMap::new() }
    }
}

impl<W: Write> TarWriter<W> {
    /// An archive without entries. Times after `latest_s`, in seconds since 1970, are set to it.
    pub fn new(out: W, latest_s: Option<i64>) -> Self {
        TarWriter { out, latest_s, holes: true, buffer: Vec::new() }
    }

    /// Writes every file in one piece, for readers that look for contents by their place in the archive.
    #[must_use]
    pub fn without_holes(self) -> Self {
        TarWriter { holes: false, ..self }
    }

    /// Adds an entry that has no content. The root directory has the empty path.
    pub fn entry(&mut self, path: &[u8], metadata: &Metadata, entry: &TarEntry<'_>) -> Result<()> {
        check_names(path)?;
        let mut headed = Headed::new(path, metadata, b'5');
        let directory;
        match *entry {
            TarEntry::Directory => {
                directory = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
                headed.path = &directory;
            }
            TarEntry::HardLink(target) => (headed.flag, headed.link) = (b'1', target),
            TarEntry::Symlink(target) => (headed.flag, headed.link) = (b'2', target),
            TarEntry::CharDevice(number) => (headed.flag, headed.device) = (b'3', number),
            TarEntry::BlockDevice(number) => (headed.flag, headed.device) = (b'4', number),
            TarEntry::Fifo => headed.flag = b'6',
        }
        self.header(headed)
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &[u8], metadata: &Metadata, content: &TarContent<'_>) -> Result<()> {
        check_names(path)?;
        let size = content.size();
        let segments = if size < HOLE_MIN || !self.holes { None } else { self.segments(path, content)? };
        let Some(segments) = segments else {
            self.header(Headed { size, ..Headed::new(path, metadata, b'0') })?;
            self.copy(path, content, 0, size)?;
            return self.pad(size);
        };
        let map = sparse_map(&segments);
        let stored = segments.iter().fold(map.len() as u64, |sum, (_, length)| sum + length);
        let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = [&b"GNUSparseFile.0/"[..], &base[..base.len().min(84)]].concat();
        let mut headed = Headed { size: stored, ..Headed::new(&name, metadata, b'0') };
        for (key, value) in [("major", b"1".to_vec()), ("minor", b"0".to_vec()), ("name", path.to_vec())] {
            headed.records.insert(format!("GNU.sparse.{key}").into_bytes(), value);
        }
        headed.records.insert(b"GNU.sparse.realsize".to_vec(), size.to_string().into_bytes());
        self.header(headed)?;
        self.put(&map)?;
        for (start, length) in segments {
            self.copy(path, content, start, length)?;
        }
        self.pad(stored)
    }

    /// Hides what lower layers have at this path.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        check_names(path)?;
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => path.split_at(slash + 1),
            None => (&b""[..], path),
        };
        self.mark(&[parent, PREFIX, name].concat())
    }

    /// Hides all that lower layers have in this directory.
    pub fn opaque(&mut self, directory: &[u8]) -> Result<()> {
        check_names(directory)?;
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        self.mark(&[directory, slash, OPAQUE].concat())
    }

    /// Writes the end, and gives back what was written to.
    pub fn finish(mut self) -> Result<W> {
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn mark(&mut self, path: &[u8]) -> Result<()> {
        self.header(Headed::new(path, &Metadata::default(), b'0'))
    }

    /// The extended header, if one is needed, and the header.
    fn header(&mut self, headed: Headed<'_>) -> Result<()> {
        let Headed { path, metadata, flag, link, device, size, mut records } = headed;
        let mut header = tar::Header::new_ustar();
        let fields = field_of(&mut header);
        if !fill_name(fields, path) {
            put_text(&mut fields.name, path);
            records.entry(b"path".to_vec()).or_insert_with(|| path.to_vec());
        }
        put_text(&mut fields.linkname, link);
        if link.len() > fields.linkname.len() {
            records.insert(b"linkpath".to_vec(), link.to_vec());
        }
        fields.typeflag = [flag];
        put_octal(&mut fields.mode, u64::from(metadata.permissions & 0o7777));
        let mut number = |field: &mut [u8], key: &str, value: u64, fits: bool| {
            put_octal(field, if fits { value } else { 0 });
            if !fits {
                records.insert(key.as_bytes().to_vec(), value.to_string().into_bytes());
            }
        };
        number(&mut fields.uid, "uid", metadata.uid.into(), metadata.uid <= OWNER_MAX);
        number(&mut fields.gid, "gid", metadata.gid.into(), metadata.gid <= OWNER_MAX);
        number(&mut fields.size, "size", size, size < LONG_END);
        let time = self.limited(metadata.mtime);
        let whole = u64::try_from(time.seconds).ok().filter(|seconds| *seconds < LONG_END && time.nanoseconds == 0);
        put_octal(&mut fields.mtime, whole.unwrap_or(0));
        if whole.is_none() {
            records.insert(b"mtime".to_vec(), pax_time(time));
        }
        put_device(&mut fields.dev_major, device.major);
        put_device(&mut fields.dev_minor, device.minor);
        for (name, value) in metadata.xattrs.iter().filter(|(name, _)| !whiteout::is_overlay_mark(name)) {
            let (key, value) = xattr_record(name, value);
            records.insert(key, value);
        }
        if !records.is_empty() {
            self.extended(path, &records)?;
        }
        header.set_cksum();
        self.put(header.as_bytes())
    }

    fn limited(&self, time: Time) -> Time {
        match self.latest_s {
            Some(seconds) if time >= (Time { seconds, nanoseconds: 0 }) => Time { seconds, nanoseconds: 0 },
            _ => time,
        }
    }

    fn extended(&mut self, path: &[u8], records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
        let mut data = Vec::new();
        for (key, value) in records {
            put_record(&mut data, key, value);
        }
        if data.len() as u64 + BLOCK as u64 > HEADERS_MAX {
            let why = "its extended attributes take more than 1 MiB";
            return Err(LayerError::Unwritable { path: shown(path), why });
        }
        let mut header = tar::Header::new_ustar();
        let fields = field_of(&mut header);
        put_text(&mut fields.name, b"PaxHeaders.0");
        fields.typeflag = *b"x";
        for field in [&mut fields.mode, &mut fields.uid, &mut fields.gid] {
            put_octal(field, 0);
        }
        put_octal(&mut fields.mtime, 0);
        put_octal(&mut fields.size, data.len() as u64);
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.put(&data)?;
        self.pad(data.len() as u64)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|source| LayerError::Write { what: "the archive", source })
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let length = size.next_multiple_of(BLOCK as u64) - size;
        self.put(&[0; BLOCK][..length as usize])
    }

    /// Copies a part of a content.
    fn copy(&mut self, path: &[u8], content: &TarContent<'_>, start: u64, length: u64) -> Result<()> {
        if let TarContent::Bytes(bytes) = content {
            return self.put(bytes.get(start as usize..(start + length) as usize).unwrap_or_default());
        }
        self.buffer.resize(READ_BYTES, 0);
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut at, end) = (start, start + length);
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let read = read(path, content, at, &mut buffer[..want])?;
            self.put(&buffer[..read])?;
            at += read as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// The segments of a file with holes; `None` for one that has none.
    fn segments(&mut self, path: &[u8], content: &TarContent<'_>) -> Result<Option<Vec<(u64, u64)>>> {
        let size = content.size();
        let hole_min = HOLE_MIN.max(size / SEGMENTS_MAX);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        let mut segments = Vec::new();
        // Where the current segment began, and the run of zeros at its end.
        let (mut start, mut zeros, mut at) = (0, 0u64, 0);
        while at < size {
            let data = content.data_from(at);
            let hole = if data == size { size - at } else { (data - at) / HOLE_STEP as u64 * HOLE_STEP as u64 };
            zeros += hole;
            at += hole;
            // Whole steps, so that runs begin and end at their multiples.
            let mut filled = 0;
            let want = usize::try_from(size - at).unwrap_or(usize::MAX).min(buffer.len());
            while filled < want {
                filled += read(path, content, at + filled as u64, &mut buffer[filled..want])?;
            }
            for step in buffer[..filled].chunks(HOLE_STEP) {
                if step.iter().all(|byte| *byte == 0) {
                    zeros += step.len() as u64;
                } else {
                    if zeros >= hole_min {
                        segments.push((start, at - zeros - start));
                        start = at;
                    }
                    zeros = 0;
                }
                at += step.len() as u64;
            }
        }
        self.buffer = buffer;
        if zeros >= hole_min {
            segments.push((start, size - zeros - start));
            start = size;
        }
        if segments.is_empty() {
            return Ok(None);
        }
        segments.push((start, size - start));
        // A hole at the beginning leaves an empty segment; one at the end says how long the file is.
        segments.retain(|(start, length)| *length > 0 || *start == size);
        Ok(Some(segments))
    }
}

/// Reads some of a file that must not have ended.
fn read(path: &[u8], content: &TarContent<'_>, at: u64, buffer: &mut [u8]) -> Result<usize> {
    match content.read_at(at, buffer) {
        Ok(0) => Err(LayerError::Unwritable { path: shown(path), why: "it became shorter while it was read" }),
        Ok(read) => Ok(read),
        Err(source) => Err(LayerError::Content { path: shown(path), source }),
    }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Refuses names that would mean something else when they are read.
fn check_names(path: &[u8]) -> Result<()> {
    if path.split(|byte| *byte == b'/').any(|name| name.starts_with(PREFIX)) {
        return Err(LayerError::Unwritable {
            path: shown(path),
            why: "names that begin with .wh. are whiteouts in a layer",
        });
    }
    Ok(())
}

/// The fields of a header that was made as ustar.
fn field_of(header: &mut tar::Header) -> &mut UstarHeader {
    let Some(fields) = header.as_ustar_mut() else { unreachable!("it was made as ustar") };
    fields
}

/// Puts a path into name and prefix, if it fits.
fn fill_name(fields: &mut UstarHeader, path: &[u8]) -> bool {
    if path.len() <= fields.name.len() {
        put_text(&mut fields.name, path);
        return true;
    }
    // The last slash that leaves a prefix that fits, and a name.
    let slash = path[..path.len() - 1].iter().take(fields.prefix.len() + 1).rposition(|byte| *byte == b'/');
    match slash.map(|slash| (&path[..slash], &path[slash + 1..])) {
        Some((prefix, name)) if !prefix.is_empty() && name.len() <= fields.name.len() => {
            put_text(&mut fields.name, name);
            put_text(&mut fields.prefix, prefix);
            true
        }
        _ => false,
    }
}

/// As much of a text as fits.
fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// A number that fits in octal digits, with a NUL at the end.
fn put_octal(field: &mut [u8], mut value: u64) {
    let Some((last, digits)) = field.split_last_mut() else { return };
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

fn put_device(field: &mut [u8; 8], value: u32) {
    if value <= OWNER_MAX {
        return put_octal(field, value.into());
    }
    *field = u64::from(value).to_be_bytes();
    field[0] = 0x80;
}

/// `[-]seconds[.fraction]` without zeros at its end.
fn pax_time(time: Time) -> Vec<u8> {
    let (sign, seconds, nanoseconds) = match (time.seconds < 0, time.nanoseconds) {
        (false, nanoseconds) => ("", time.seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", time.seconds.unsigned_abs(), 0),
        // Seconds are rounded down: -1.5 is -2 and half a second.
        (true, nanoseconds) => ("-", time.seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    let fraction = format!(".{nanoseconds:09}");
    format!("{sign}{seconds}{}", fraction.trim_end_matches('0').trim_end_matches('.')).into_bytes()
}

/// Key and value of the record of an extended attribute.
fn xattr_record(name: &[u8], value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    use base64::Engine as _;
    if !name.contains(&b'=') {
        return ([b"SCHILY.xattr.", name].concat(), value.to_vec());
    }
    let escape = |byte: &u8| match byte {
        b'=' | b'%' | ..=b' ' | 0x7f.. => format!("%{byte:02X}").into_bytes(),
        plain => vec![*plain],
    };
    let key = [b"LIBARCHIVE.xattr.".to_vec(), name.iter().flat_map(escape).collect()].concat();
    (key, base64::engine::general_purpose::STANDARD_NO_PAD.encode(value).into_bytes())
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn put_record(data: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    data.extend(format!("{length} ").bytes());
    data.extend([key, b"=", value, b"\n"].concat());
}

/// The map of GNU's sparse format 1.0: decimal lines, filled up to a block.
fn sparse_map(segments: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", segments.len()).into_bytes();
    for (start, length) in segments {
        map.extend(format!("{start}\n{length}\n").bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_records_count_themselves() {
        for size in 0..2000 {
            let mut data = Vec::new();
            put_record(&mut data, b"k", &vec![b'v'; size]);
            assert!(data.starts_with(format!("{} ", data.len()).as_bytes()), "{size}");
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        let time = |seconds, nanoseconds| pax_time(Time { seconds, nanoseconds });
        assert_eq!(time(1, 500_000_000), b"1.5");
        assert_eq!(time(-2, 750_000_000), b"-1.25");
        assert_eq!(time(-3, 0), b"-3");
        assert_eq!(time(-1, 1), b"-0.999999999");
        assert_eq!(time(100, 0), b"100");
    }

    #[test]
    fn long_paths_are_split_where_they_can_be() {
        let mut header = tar::Header::new_ustar();
        let fields = field_of(&mut header);
        let split = [&[b'a'; 150][..], b"/", &[b'b'; 100]].concat();
        assert!(fill_name(fields, &split));
        assert_eq!(
            (&fields.name[..], &fields.prefix[..150], fields.prefix[150]),
            (&[b'b'; 100][..], &[b'a'; 150][..], 0)
        );
        assert!(!fill_name(fields, &[&[b'a'; 156][..], b"/b"].concat()));
        assert!(!fill_name(fields, &[&b"a/"[..], &[b'b'; 101]].concat()));
        // The slash at the end of a directory leaves no name behind it.
        assert!(!fill_name(fields, &[&[b'a'; 120][..], b"/"].concat()));
    }
}
