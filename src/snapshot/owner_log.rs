//! The file `owners` of a native snapshot: what the role `owner` turned from attributes of files into data.
//!
//! It names every entry of `upper` that did not belong to the calling user, or whose mode kept that user out, with what
//! it had: mode (type bits included), owner, group, POSIX ACLs and file capability. Owners are ids of the outer user
//! namespace. The file appears by rename when it is complete and synced, so its presence is its mark of completeness;
//! the end record guards against a copy that was cut. While it exists its words hold and the files' do not.
//!
//! Format, little endian: magic of 8 bytes; records of `length u32` (of the rest), `mode u32`, `uid u32`, `gid u32`,
//! `path length u32`, path, then for each attribute `number u8`, `length u32`, value; end: `length` 0, `count u64`. The
//! number 255 has a [`Stamp`] for its value: `size u64`, seconds `i64`, nanoseconds `u32`.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode};
use nix::unistd::{UnlinkatFlags, close, fsync, unlinkat};
use sys::SysError;
use sys::error::{Call, Result};

/// Its name beside `upper`.
pub(crate) const NAME: &CStr = c"owners";
const NEW: &CStr = c"owners.new";
const MAGIC: [u8; 8] = *b"sublown2";
/// The same without stamps.
const MAGIC_1: [u8; 8] = *b"sublown1";
const STAMP: u8 = 255;
/// The extended attributes that a change of owner or mode loses or alters.
pub(crate) const ATTRIBUTES: [&CStr; 3] =
    [c"security.capability", c"system.posix_acl_access", c"system.posix_acl_default"];
/// The number of the file capability among them.
pub(crate) const CAPABILITY: u8 = 0;
/// Far above any real path and its attributes (64 KiB each).
const RECORD_MAX: u32 = 64 << 20;

/// What one entry of `upper` had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// `st_mode`, type bits included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Numbers of [`ATTRIBUTES`] and values.
    pub attributes: Vec<(u8, Vec<u8>)>,
    /// Of a file with set-id bits or a capability, which only the same contents may get back.
    pub stamp: Option<Stamp>,
}

/// What tells whether the contents of a regular file are still the same, if nobody deceives on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub size: u64,
    /// Last change, seconds since 1970.
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Stamp {
    pub fn of(stat: &FileStat) -> Stamp {
        let (size, nanoseconds) = (stat.st_size.unsigned_abs(), u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Stamp { size, seconds: stat.st_mtime, nanoseconds }
    }

    /// A file system or a copy may have whole seconds only.
    pub fn fits(self, stat: &FileStat) -> bool {
        let found = Stamp::of(stat);
        found == self || found == Stamp { nanoseconds: 0, ..self }
    }

    fn bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[16..].copy_from_slice(&self.nanoseconds.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Stamp> {
        let (size, rest) = bytes.split_first_chunk::<8>()?;
        let (seconds, rest) = rest.split_first_chunk::<8>()?;
        let nanoseconds = u32::from_le_bytes(rest.try_into().ok()?);
        Some(Stamp { size: u64::from_le_bytes(*size), seconds: i64::from_le_bytes(*seconds), nanoseconds })
    }
}

/// All records by path from `upper` (`.` for itself).
pub(crate) type Owners = HashMap<Vec<u8>, Record>;

/// Reads the log beside `upper`; `None` when there is none.
pub(crate) fn read(snapshot: BorrowedFd<'_>) -> Result<Option<Owners>> {
    let file = match openat(snapshot, NAME, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        file => file.call(|| "open(owners)".to_owned())?,
    };
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).call(|| "read(owners)".to_owned())?;
    parse(&bytes).map(Some).ok_or_else(|| SysError::new("file owners is damaged", Errno::EUCLEAN))
}

fn parse(bytes: &[u8]) -> Option<Owners> {
    let mut rest = bytes.strip_prefix(&MAGIC).or_else(|| bytes.strip_prefix(&MAGIC_1))?;
    let mut owners = Owners::new();
    let mut count: u64 = 0;
    loop {
        let length = u32_of(&mut rest)?;
        if length == 0 {
            return (rest == count.to_le_bytes()).then_some(owners);
        }
        let (mut record, after) = rest.split_at_checked(length as usize)?;
        rest = after;
        count += 1;
        let [mode, uid, gid] = [u32_of(&mut record)?, u32_of(&mut record)?, u32_of(&mut record)?];
        let path = bytes_of(&mut record)?.to_vec();
        let (mut attributes, mut stamp) = (Vec::new(), None);
        while let Some((number, after)) = record.split_first() {
            record = after;
            if *number == STAMP {
                stamp = Some(Stamp::parse(bytes_of(&mut record)?)?);
                continue;
            }
            ATTRIBUTES.get(usize::from(*number))?;
            attributes.push((*number, bytes_of(&mut record)?.to_vec()));
        }
        owners.insert(path, Record { mode, uid, gid, attributes, stamp });
    }
}

fn u32_of(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

fn bytes_of<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32_of(bytes)?;
    let (value, rest) = bytes.split_at_checked(length as usize)?;
    *bytes = rest;
    Some(value)
}

/// A log being written; it takes the place of an older one when it is finished.
pub(crate) struct Writer<'a> {
    snapshot: BorrowedFd<'a>,
    /// Made with the first record, so that a tree with nothing to say costs no file.
    file: Option<BufWriter<File>>,
    count: u64,
}

impl<'a> Writer<'a> {
    pub fn new(snapshot: BorrowedFd<'a>) -> Self {
        Writer { snapshot, file: None, count: 0 }
    }

    pub fn add(&mut self, path: &[u8], record: &Record) -> Result<()> {
        let mut body = Vec::with_capacity(64 + path.len());
        for number in [record.mode, record.uid, record.gid] {
            body.extend(number.to_le_bytes());
        }
        put_bytes(&mut body, path)?;
        for (number, value) in &record.attributes {
            body.push(*number);
            put_bytes(&mut body, value)?;
        }
        if let Some(stamp) = record.stamp {
            body.push(STAMP);
            put_bytes(&mut body, &stamp.bytes())?;
        }
        let length = length_of(&body)?;
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(Self::begin(self.snapshot)?),
        };
        self.count += 1;
        file.write_all(&length.to_le_bytes()).and_then(|()| file.write_all(&body)).call(|| "write(owners)".to_owned())
    }

    fn begin(snapshot: BorrowedFd<'_>) -> Result<BufWriter<File>> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            openat(snapshot, NEW, flags, Mode::from_bits_truncate(0o600)).call(|| "open(owners.new)".to_owned())?;
        let mut file = BufWriter::new(File::from(file));
        file.write_all(&MAGIC).call(|| "write(owners)".to_owned())?;
        Ok(file)
    }

    /// Makes the log durable with `sync` and puts it in place; how many records it has. With none there is no file.
    pub fn finish(self, sync: bool) -> Result<u64> {
        let Some(mut file) = self.file else { return Ok(0) };
        file.write_all(&0_u32.to_le_bytes())
            .and_then(|()| file.write_all(&self.count.to_le_bytes()))
            .call(|| "write(owners)".to_owned())?;
        let file =
            file.into_inner().map_err(std::io::IntoInnerError::into_error).call(|| "write(owners)".to_owned())?;
        if sync {
            fsync(file.as_fd()).call(|| "fsync(owners)".to_owned())?;
        }
        close(file).call(|| "close(owners)".to_owned())?;
        renameat(self.snapshot, NEW, self.snapshot, NAME).call(|| "rename(owners.new, owners)".to_owned())?;
        if sync {
            fsync(self.snapshot).call(|| "fsync(snapshot)".to_owned())?;
        }
        Ok(self.count)
    }
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    body.extend(length_of(bytes)?.to_le_bytes());
    body.extend_from_slice(bytes);
    Ok(())
}

fn length_of(bytes: &[u8]) -> Result<u32> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= RECORD_MAX);
    length.ok_or_else(|| SysError::new("record of the file owners", Errno::ENAMETOOLONG))
}

/// Forgets the log: from now on the files' own words hold.
pub(crate) fn remove(snapshot: BorrowedFd<'_>) -> Result<()> {
    match unlinkat(snapshot, NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).call(|| "unlink(owners)".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn survives_the_file_and_refuses_a_cut_one() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = File::open(scratch.path()).unwrap();
        assert!(read(dir.as_fd()).unwrap().is_none());
        assert_eq!(Writer::new(dir.as_fd()).finish(true).unwrap(), 0);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        let plain = Record { mode: 0o100_755, uid: 33, gid: 1000, attributes: vec![], stamp: None };
        let stamp = Some(Stamp { size: 1 << 40, seconds: -1, nanoseconds: 999_999_999 });
        let rich = Record { attributes: vec![(0, b"cap".to_vec()), (2, vec![])], stamp, ..plain.clone() };
        let mut writer = Writer::new(dir.as_fd());
        writer.add(b"a/\xff", &rich).unwrap();
        writer.add(b".", &plain).unwrap();
        assert_eq!(writer.finish(true).unwrap(), 2);
        let owners = read(dir.as_fd()).unwrap().unwrap();
        assert_eq!((owners.len(), &owners[&b"a/\xff"[..]], &owners[&b"."[..]]), (2, &rich, &plain));
        let bytes = std::fs::read(scratch.path().join("owners")).unwrap();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_none(), "cut at {length}");
        }
    }
}
