//! What the tests that apply archives have in common: a store, and entries written by hand.

use store::Store;

/// An empty store, and what removes it.
pub fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), true).unwrap();
    (directory, store)
}

/// A header block with its checksum.
pub fn header(name: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.as_old_mut().linkflag = [kind];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// Filled up to whole blocks.
pub fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

/// A regular file.
pub fn file(name: &str, data: &[u8]) -> Vec<u8> {
    [header(name, b'0', data.len() as u64, ""), padded(data)].concat()
}

/// Extended headers for the next entry (`x`) or for all (`g`).
pub fn pax(kind: u8, data: &[u8]) -> Vec<u8> {
    [header("pax", kind, data.len() as u64, ""), padded(data)].concat()
}

/// A record of an extended header.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..9).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Entries with the end of an archive behind them.
pub fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = parts.concat();
    archive.resize(archive.len() + 1024, 0);
    archive
}
