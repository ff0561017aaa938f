//! What directories take on the disk, as du(1) counts it: blocks, directories too, a file with several names once.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base::Report;

use crate::file::failed;

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of blocks.
    pub bytes: u64,
    /// How many inodes.
    pub inodes: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What a tree takes; nothing where there is none. What vanishes meanwhile is not there, and what the caller may not read
/// (a directory of foreign ids, while its container runs) counts by itself alone.
pub fn of(path: &Path) -> Result<Usage, Report> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if is_fine(&error) => continue,
            metadata => metadata.map_err(|error| failed("looking at", &path, error))?,
        };
        if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        usage += Usage { bytes: metadata.blocks() * 512, inodes: 1 };
        if !metadata.is_dir() {
            continue;
        }
        match fs::read_dir(&path) {
            Err(error) if is_fine(&error) => {}
            entries => {
                let entries = entries.map_err(|error| failed("reading directory", &path, error))?;
                pending.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
    }
    Ok(usage)
}

fn is_fine(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_du() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        std::os::unix::fs::symlink("file", root.join("a/link")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.sync_all().unwrap();
        let done = std::process::Command::new("du").args(["-s", "-B1"]).arg(&root).output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        let bytes: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(of(&root).unwrap(), Usage { bytes, inodes: 6 });
        assert_eq!(of(&temp.path().join("none")).unwrap(), Usage::default());
    }
}
