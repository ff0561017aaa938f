//! Which directories of the host a view had to show empty, since the user may not read them.
//!
//! Nobody walks the host to find them: the server notes each one when a program looks into it. The list is a file beside the
//! server's socket, paths with a NUL behind each, appended one by one; a server on a new mount begins with an empty one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

use sys::error::{Call, Result};

/// The file's name, beside the socket of the server.
pub const NAME: &str = "closed";
/// How long the list may become: some thousand paths.
const BYTES_MAX: usize = 256 << 10;

/// The list of one server.
#[derive(Debug)]
pub(crate) struct Closed {
    file: File,
    known: HashSet<Vec<u8>>,
    length: usize,
}

impl Closed {
    /// Takes the file, which is open for reading and appending. A successor on the same mount (`resumed`) goes on with the
    /// list that is there.
    pub(crate) fn open(mut file: File, resumed: bool) -> Result<Closed> {
        let mut text = Vec::new();
        if resumed {
            // The keeper's: its predecessor has left it at the end.
            file.rewind().call(|| "lseek(list of closed directories, 0)".to_owned())?;
            file.read_to_end(&mut text).call(|| "read(list of closed directories)".to_owned())?;
        }
        // A record that a killed server has not written to its end would become the beginning of the next one.
        text.truncate(text.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1));
        file.set_len(text.len() as u64).call(|| "ftruncate(list of closed directories)".to_owned())?;
        Ok(Closed { file, length: text.len(), known: paths(&text).map(<[u8]>::to_vec).collect() })
    }

    /// Notes a directory by its path from the root, without leading slash. One that finds no room is not listed: it is
    /// empty inside all the same.
    pub(crate) fn add(&mut self, path: &[u8]) {
        let record = [b"/", path, b"\0"].concat();
        if self.length + record.len() > BYTES_MAX || !self.known.insert(record[..record.len() - 1].to_vec()) {
            return;
        }
        self.length += record.len();
        // On a full disk the list ends here.
        let _unlisted = self.file.write_all(&record);
    }
}

/// The list in a file, in order; empty where there is none.
pub fn read(path: &Path) -> Vec<String> {
    let mut listed: Vec<String> = fs::read(path).iter().flat_map(|text| paths(text)).map(lossy).collect();
    listed.sort_unstable();
    listed
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The paths in a text; one that was not written to its end is none.
fn paths(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == 0).filter_map(|record| record.strip_suffix(b"\0"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn each_is_listed_once_and_a_successor_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(NAME);
        let open = || File::options().read(true).append(true).create(true).open(&path).unwrap();
        let kept = open();
        let mut closed = Closed::open(kept.try_clone().unwrap(), false).unwrap();
        closed.add(b"etc/ssl/private");
        closed.add(b"etc/ssl/private");
        closed.add(b"a\nline");
        assert_eq!(read(&path), ["/a\nline", "/etc/ssl/private"]);
        // What a killed server has not written to its end.
        open().write_all(b"/half").unwrap();
        assert_eq!(read(&path), ["/a\nline", "/etc/ssl/private"]);
        let mut successor = Closed::open(kept, true).unwrap();
        successor.add(b"a\nline");
        assert_eq!(read(&path).len(), 2);
        successor.add(b"next");
        assert_eq!(read(&path), ["/a\nline", "/etc/ssl/private", "/next"]);
        for number in 0..100_000 {
            successor.add(format!("many/{number}").as_bytes());
        }
        assert!(fs::metadata(&path).unwrap().len() <= BYTES_MAX as u64);
        drop(Closed::open(open(), false).unwrap());
        assert!(read(&path).is_empty() && read(&scratch.path().join("none")).is_empty());
    }
}
