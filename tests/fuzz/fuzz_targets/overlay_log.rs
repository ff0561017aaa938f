//! The log of our overlay, which a file server that was taken over could have written: any records give a tree or an error,
//! and every question to that tree an answer.
#![no_main]

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use index::{Content, Entry, Index, Metadata, TreeBuilder};
use oci::{DiffId, Digest};
use overlayfs::{Contents, Overlay, Policy, ROOT, UPPER_BASE};
use sys::Errno;

struct Nothing;

impl Contents for Nothing {
    fn open(&self, _index: &Index, _content: &Content<'_>) -> overlayfs::Result<Arc<File>> {
        Err(Errno::EIO)
    }
}

static CHAIN: LazyLock<Arc<Index>> = LazyLock::new(|| {
    let mut builder = TreeBuilder::new();
    let entries = [
        ("d", Entry::Directory),
        ("d/e", Entry::Directory),
        ("d/e/leaf", Entry::InlineFile(b"leaf".to_vec())),
        ("f", Entry::InlineFile(b"file".to_vec())),
        ("l", Entry::Symlink(b"d/e".to_vec())),
    ];
    for (path, entry) in entries {
        builder.insert(path.as_bytes(), &Metadata::default(), entry).expect("a good path");
    }
    let layer = builder.write(DiffId(Digest::from_bytes([1; 32])), None).expect("a small layer");
    let layer = Index::from_bytes(layer).expect("our own index");
    Arc::new(Index::from_bytes(index::merge(&[&layer]).expect("one layer")).expect("our own index"))
});

/// In memory, where the machine has that.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    base.join(format!("sublet-fuzz-log-{}", std::process::id()))
});

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Frames records as the log has them, so that checksum and sequence stop nothing.
fn log(mut bytes: &[u8]) -> Vec<u8> {
    let begin = [&[1, 1, 0, 0, 0][..], &CHAIN.inode_count().to_le_bytes(), &UPPER_BASE.to_le_bytes()].concat();
    let mut records = vec![begin];
    while let Some((length, rest)) = bytes.split_first() {
        let (record, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        records.push(record.to_vec());
        bytes = rest;
    }
    let mut log = Vec::new();
    for (sequence, record) in (1_u64..).zip(records) {
        let length = (16 + record.len() as u32).to_le_bytes();
        let body = [&sequence.to_le_bytes()[..], &[0; 8], &record].concat();
        log.extend([&length[..], &crc32c(&[&length[..], &body].concat()).to_le_bytes(), &body].concat());
    }
    log
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // What the last run has left; at the first there is nothing.
    let _ = fs::remove_dir_all(&*DIR);
    fs::create_dir(&*DIR).expect("a directory of our own");
    fs::write(DIR.join("log.1"), log(bytes)).expect("our own file");
    let dir = || File::open(&*DIR).expect("our own directory").into();
    let read_only = overlayfs::diff(dir(), Arc::clone(&CHAIN), &|_| false);
    let Ok(overlay) = Overlay::open(dir(), Arc::clone(&CHAIN), Arc::new(Nothing), Policy::Volatile) else { return };
    let _ = (read_only, overlay.diff(&|_| false));
    let (request, mut buffer) = (overlayfs::Request::default(), vec![0; 4096]);
    let mut inodes: Vec<u64> = (ROOT..ROOT + 8).chain(UPPER_BASE..UPPER_BASE + 4).collect();
    let _ = overlay.list(ROOT, 0, true, |entry| {
        inodes.push(entry.attr.ino);
        true
    });
    for ino in inodes {
        let _ = (overlay.attr(ino), overlay.xattr_names(ino, &mut Vec::new()), overlay.list(ino, 0, false, |_| true));
        let _ = overlay.readlink(ino, &mut buffer);
        let _ = overlay.read_data(ino, 0, &mut buffer);
        let _ = overlay.rename(&request, (ROOT, b"d"), (ino, b"new"), overlayfs::RenameHow::default());
        let _ = (overlay.unlink(&request, ino, b"new"), overlay.rmdir(&request, ino, b"new"));
    }
});
