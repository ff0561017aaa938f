//! Archives made byte by byte, with what no tool of a plain user can make, and listings by GNU tar.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::{LIMIT, finish};

/// An entry; `link` is the target of links.
pub struct Entry<'a> {
    pub path: &'a str,
    pub kind: u8,
    pub mode: u32,
    pub owner: (u64, u64),
    pub link: &'a str,
    pub device: (u32, u32),
    pub content: &'a [u8],
    /// Records of an extended header.
    pub records: &'a [(&'a str, &'a [u8])],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry { path: "", kind: b'0', mode: 0o644, owner: (0, 0), link: "", device: (0, 0), content: b"", records: &[] }
    }
}

fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

fn block(path: &str, kind: u8, size: usize, fill: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    octal(&mut block[100..108], 0);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size as u64);
    octal(&mut block[136..148], 1_700_000_000);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    fill(&mut block);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block.to_vec()
}

fn padded(mut data: Vec<u8>) -> Vec<u8> {
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..9).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The archive of these entries.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        let mut records: Vec<u8> = entry.records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let (uid, gid) = entry.owner;
        for (key, id) in [("uid", uid), ("gid", gid)] {
            if id > 0o7_777_777 {
                records.extend(record(key, id.to_string().as_bytes()));
            }
        }
        if !records.is_empty() {
            archive.extend(block("pax", b'x', records.len(), |_| {}));
            archive.extend(padded(records));
        }
        archive.extend(block(entry.path, entry.kind, entry.content.len(), |block| {
            octal(&mut block[100..108], entry.mode.into());
            octal(&mut block[108..116], if uid > 0o7_777_777 { 0 } else { uid });
            octal(&mut block[116..124], if gid > 0o7_777_777 { 0 } else { gid });
            block[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
            octal(&mut block[329..337], entry.device.0.into());
            octal(&mut block[337..345], entry.device.1.into());
        }));
        archive.extend(padded(entry.content.to_vec()));
    }
    archive.extend([0; 1024]);
    archive
}

/// Writes an archive of that many empty files.
pub fn many(to: &mut impl Write, count: u32) {
    for number in 0..count {
        to.write_all(&block(&format!("d{}/f{number}", number % 997), b'0', 0, |_| {})).unwrap();
    }
    to.write_all(&[0; 1024]).unwrap();
}

/// What GNU tar says of an archive, compressed or not: a line an entry, with owners, times and attributes, sorted.
pub fn listing(path: &Path) -> Vec<String> {
    let mut tar = Command::new("tar");
    tar.env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
    tar.args(["--numeric-owner", "--full-time", "--xattrs", "-tvvf"]).arg(path);
    let done = finish(&mut tar, b"", LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    let mut lines = Vec::new();
    for line in done.stdout.lines() {
        // The lines of attributes stand below their entry.
        if line.starts_with("  ") {
            let last: &mut String = lines.last_mut().unwrap();
            last.push_str(line);
        } else {
            lines.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    lines.sort();
    lines
}
