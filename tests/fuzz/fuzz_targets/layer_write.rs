//! Archives that we write: whatever the entries are, what was written can be read, and has as many entries.
#![no_main]

use std::collections::BTreeMap;

use index::{DeviceNumber, Metadata, Time};
use layer::{LayerError, Limits, TarContent, TarEntry, TarWriter};

/// Takes bytes off the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u64 {
        self.take(8).iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn text(&mut self) -> &'a [u8] {
        let length = self.number() % 400;
        self.take(length as usize)
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let mut to = TarWriter::new(Vec::new(), None);
    let mut written = 0;
    while !bytes.0.is_empty() {
        let kind = bytes.number() % 9;
        let (path, text) = (bytes.text(), bytes.text());
        let metadata = Metadata {
            permissions: bytes.number() as u16,
            uid: bytes.number() as u32,
            gid: bytes.number() as u32,
            mtime: Time { seconds: bytes.number() as i64, nanoseconds: bytes.number() as u32 % 1_000_000_000 },
            xattrs: BTreeMap::from([(bytes.text().to_vec(), bytes.text().to_vec())]),
        };
        let device = DeviceNumber { major: bytes.number() as u32, minor: bytes.number() as u32 };
        // Names come from file systems, where these cannot be.
        if path.is_empty() || [path, text].iter().any(|text| text.contains(&0)) {
            continue;
        }
        let done = match kind {
            0 => to.entry(path, &metadata, &TarEntry::Directory),
            1 => to.entry(path, &metadata, &TarEntry::HardLink(text)),
            2 => to.entry(path, &metadata, &TarEntry::Symlink(text)),
            3 => to.entry(path, &metadata, &TarEntry::CharDevice(device)),
            4 => to.entry(path, &metadata, &TarEntry::BlockDevice(device)),
            5 => to.entry(path, &metadata, &TarEntry::Fifo),
            6 => to.whiteout(path),
            7 => to.opaque(path),
            _ => to.file(path, &metadata, &TarContent::Bytes(text)),
        };
        written += u64::from(done.is_ok());
    }
    let Ok(archive) = to.finish() else { return };
    match layer::check(&archive[..], &Limits::default()) {
        Ok(read) => assert_eq!(read, written),
        // What has no place in a tree; the form of the archive is right. -1 is nobody's id.
        Err(LayerError::Entry(_) | LayerError::Whiteout { .. }) => {}
        Err(LayerError::Malformed { what: "an owner is out of range", .. }) => {}
        Err(error) => panic!("{error}"),
    }
});
