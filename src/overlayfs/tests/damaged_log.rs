//! Logs whose records are whole and make no sense, as a file server that was taken over could write them for the commands
//! that read them later: they are refused, or read to an end.
#![allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use index::{Content, Entry, Index, Metadata, TreeBuilder};
use nix::errno::Errno;
use oci::{DiffId, Digest};
use overlayfs::{Contents, OpenError, Overlay, Policy, ROOT, RenameHow, Request, UPPER_BASE};

struct Nothing;

impl Contents for Nothing {
    fn open(&self, _index: &Index, _content: &Content<'_>) -> overlayfs::Result<Arc<File>> {
        Err(Errno::EIO)
    }
}

/// `/d/e` and `/f`.
fn chain() -> Arc<Index> {
    let mut builder = TreeBuilder::new();
    for (path, entry) in
        [("d", Entry::Directory), ("d/e", Entry::Directory), ("f", Entry::InlineFile(b"file".to_vec()))]
    {
        builder.insert(path.as_bytes(), &Metadata::default(), entry).unwrap();
    }
    let layer = Index::from_bytes(builder.write(DiffId(Digest::from_bytes([1; 32])), None).unwrap()).unwrap();
    Arc::new(Index::from_bytes(index::merge(&[&layer]).unwrap()).unwrap())
}

/// The payload of a record: numbers and strings, little endian.
#[derive(Default)]
struct Payload(Vec<u8>);

impl Payload {
    fn op(op: u8) -> Self {
        Payload(vec![op])
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn text(self, text: &str) -> Self {
        let mut with = self.u32(text.len() as u32);
        with.0.extend(text.bytes());
        with
    }
    fn time(self) -> Self {
        self.u64(1).u32(0)
    }
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// A log that begins as it should and goes on with these records.
fn write_log(dir: &Path, chain: &Index, records: Vec<Payload>) {
    let begin = Payload::op(1).u32(1).u32(chain.inode_count()).u64(UPPER_BASE);
    let mut log = Vec::new();
    for (sequence, record) in (1_u64..).zip([begin].into_iter().chain(records)) {
        let length = (16 + record.0.len() as u32).to_le_bytes();
        let body = [&sequence.to_le_bytes()[..], &[0; 8], &record.0].concat();
        log.extend([&length[..], &crc32c(&[&length[..], &body].concat()).to_le_bytes(), &body].concat());
    }
    fs::write(dir.join("log.1"), log).unwrap();
}

#[test]
fn records_that_make_no_tree_are_refused() {
    const DIRECTORY: u32 = 0o040_755;
    const FILE: u32 = 0o100_644;
    let chain = chain();
    let create = |name: &str, ino, mode| {
        Payload::op(2).u64(ROOT).text(name).u64(ino).u32(mode).u32(0).u32(0).u32(0).text("").time()
    };
    let link = |ino| Payload::op(3).u64(ino).u64(ROOT).text("again").time();
    let inode = |ino, mode, nlink, next_serial| {
        let head = Payload::op(10).u64(ino).u32(mode).u32(0).u32(0).u32(nlink).u32(0).time().time().time();
        head.u8(0).u64(ROOT).u64(next_serial).text("").u32(0)
    };
    let cases = [
        ("a second name of a directory", vec![create("dir", UPPER_BASE, DIRECTORY), link(UPPER_BASE)]),
        ("one name too many", vec![inode(UPPER_BASE, FILE, u32::MAX, 0), link(UPPER_BASE)]),
        ("the last of all numbers", vec![create("file", u64::MAX, FILE)]),
        ("the last of all serials", vec![Payload::op(11).u64(ROOT).text("f").u64(0).u64(u64::MAX)]),
        ("a next serial behind the last", vec![inode(ROOT, DIRECTORY, 2, u64::MAX)]),
    ];
    for (what, records) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_log(dir.path(), &chain, records);
        let upper = File::open(dir.path()).unwrap().into();
        let opened = Overlay::open(upper, Arc::clone(&chain), Arc::new(Nothing), Policy::Volatile);
        assert!(matches!(opened.map(drop), Err(OpenError::Inconsistent { number: 1, .. })), "{what}");
    }
}

/// A directory was moved into itself. Whoever walks it comes to an end.
#[test]
fn a_circle_of_directories_has_an_end() {
    let (chain, dir) = (chain(), tempfile::tempdir().unwrap());
    let upper = || File::open(dir.path()).unwrap().into();
    let open = || Overlay::open(upper(), Arc::clone(&chain), Arc::new(Nothing), Policy::Volatile).unwrap();
    let below = open().lookup(ROOT, b"d").unwrap().unwrap().ino;
    let inner = open().lookup(below, b"e").unwrap().unwrap().ino;
    let rename = Payload::op(5).u64(ROOT).text("d").u64(inner).text("d").u8(0).u64(0).time();
    // And the way into the circle from the root.
    let slot = Payload::op(11).u64(ROOT).text("way").u64(below).u64(1);
    write_log(dir.path(), &chain, vec![rename, slot]);
    assert!(overlayfs::diff(upper(), Arc::clone(&chain), &|_| false).is_err());
    let overlay = open();
    assert_eq!(overlay.diff(&|_| false), Err(Errno::ELOOP));
    let moved = overlay.rename(&Request::default(), (ROOT, b"f"), (inner, b"f"), RenameHow::default());
    assert_eq!(moved, Ok(()), "a file may go there");
    let moved = overlay.rename(&Request::default(), (ROOT, b"way"), (inner, b"way"), RenameHow::default());
    assert!(moved.is_err(), "{moved:?}");
}
