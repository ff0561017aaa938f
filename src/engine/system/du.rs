//! What directories take on the disk, as du(1) counts it: blocks, directories too, a file with several names once.
//!
//! Containers write what is counted here, also at this moment. So each step is from one open directory to a name in it, no
//! link is followed, and neither a path's length nor the number of descriptors bounds the depth.

use std::collections::HashSet;
use std::ffi::CString;
use std::ops::AddAssign;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use base::Report;
use nix::NixPath;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::file::failed;

/// How many directories stay open on the way down. Deeper ones are closed while something below them is counted, and found
/// again by `..`.
const OPEN_MAX: usize = 64;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What a tree takes and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of blocks.
    pub bytes: u64,
    /// How many inodes.
    pub inodes: u64,
    /// Bytes that regular files hold, gaps in them too.
    pub content_bytes: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
        // Holes count, so that a container can make it as large as it likes.
        self.content_bytes = self.content_bytes.saturating_add(other.content_bytes);
    }
}

/// What a tree takes; nothing where there is none. What vanishes or moves meanwhile is not there, and what the caller may not
/// read (a directory of foreign ids, while its container runs) counts by itself alone.
pub fn of(path: &Path) -> Result<Usage, Report> {
    let mut count = Count::default();
    let counted = count.entry(AT_FDCWD, path).and_then(|root| count.below(root));
    counted.map_err(|errno| failed("measuring", path, errno.into()))?;
    Ok(count.usage)
}

#[derive(Default)]
struct Count {
    usage: Usage,
    /// Files with several names.
    seen: HashSet<(u64, u64)>,
}

/// A directory whose entries are counted.
struct Level {
    /// `None` while it is closed, which the last one never is.
    dir: Option<OwnedFd>,
    identity: (u64, u64),
    /// The entries to come.
    names: Vec<CString>,
}

impl Count {
    /// Counts what is below a directory.
    fn below(&mut self, root: Option<Level>) -> nix::Result<()> {
        let mut levels: Vec<Level> = root.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            match (level.names.pop(), &level.dir) {
                (Some(name), Some(dir)) => {
                    if let Some(below) = self.entry(dir, name.as_c_str())? {
                        if levels.len() > OPEN_MAX {
                            levels.last_mut().map(|level| level.dir.take());
                        }
                        levels.push(below);
                    }
                }
                _ => leave(&mut levels)?,
            }
        }
        Ok(())
    }

    /// Counts one entry; the answer is a directory that can be read.
    fn entry<P: NixPath + ?Sized>(&mut self, parent: impl AsFd, name: &P) -> nix::Result<Option<Level>> {
        let Some(stat) = if_there(fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW))? else { return Ok(None) };
        let kind = stat.st_mode & SFlag::S_IFMT.bits();
        let is_directory = kind == SFlag::S_IFDIR.bits();
        if stat.st_nlink > 1 && !is_directory && !self.seen.insert(identity(&stat)) {
            return Ok(None);
        }
        let content_bytes = if kind == SFlag::S_IFREG.bits() { stat.st_size.unsigned_abs() } else { 0 };
        self.usage += Usage { bytes: stat.st_blocks as u64 * 512, inodes: 1, content_bytes };
        if !is_directory {
            return Ok(None);
        }
        let Some(dir) = if_there(openat(&parent, name, DIRECTORY, Mode::empty()))? else { return Ok(None) };
        Ok(if_there(names_of(&dir))?.map(|names| Level { identity: identity(&stat), names, dir: Some(dir) }))
    }
}

/// Goes back to the directory above the last one. Where that has been closed and is not there any more, what is left to count
/// in it is passed over.
fn leave(levels: &mut Vec<Level>) -> nix::Result<()> {
    let (Some(done), Some(above)) = (levels.pop(), levels.last_mut()) else { return Ok(()) };
    if above.dir.is_none()
        && let Some(dir) = done.dir
        && let Some(parent) = if_there(openat(&dir, "..", DIRECTORY, Mode::empty()))?
        && identity(&fstat(&parent)?) == above.identity
    {
        above.dir = Some(parent);
    }
    while levels.last().is_some_and(|level| level.dir.is_none()) {
        levels.pop();
    }
    Ok(())
}

fn names_of(dir: &OwnedFd) -> nix::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::openat(dir, ".", DIRECTORY, Mode::empty())?.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// `None` for what has vanished or become something else, and for what is closed to the caller.
fn if_there<T>(found: nix::Result<T>) -> nix::Result<Option<T>> {
    match found {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES | Errno::EPERM) => Ok(None),
        found => found.map(Some),
    }
}

fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::stat::mkdirat;

    use super::*;

    fn by_du(root: &Path) -> u64 {
        let done = std::process::Command::new("du").args(["-s", "-B1"]).arg(root).output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn the_sum_is_that_of_du() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        symlink("file", root.join("a/link")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.sync_all().unwrap();
        assert_eq!(of(&root).unwrap(), Usage { bytes: by_du(&root), inodes: 6, content_bytes: 100_000 + (1 << 30) });
        assert_eq!(of(&temp.path().join("none")).unwrap(), Usage::default());
    }

    #[test]
    fn no_depth_is_too_deep() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("tree");
        fs::create_dir(&root).unwrap();
        // Deeper than a path may be long and than there are descriptors; each level has an entry to come back for.
        let mut dir = openat(AT_FDCWD, &root, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1500 {
            mkdirat(&dir, "beside", Mode::S_IRWXU).unwrap();
            mkdirat(&dir, "deep", Mode::S_IRWXU).unwrap();
            dir = openat(&dir, "deep", DIRECTORY, Mode::empty()).unwrap();
        }
        assert_eq!(of(&root).unwrap(), Usage { bytes: by_du(&root), inodes: 3001, content_bytes: 0 });
    }

    #[test]
    fn a_link_in_place_of_a_directory_leads_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        let [root, outside, aside] = ["tree", "outside", "aside"].map(|name| temp.path().join(name));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir(&outside).unwrap();
        for number in 0..20 {
            fs::write(outside.join(number.to_string()), "").unwrap();
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    fs::rename(root.join("a"), &aside).unwrap();
                    symlink(&outside, root.join("a")).unwrap();
                    fs::remove_file(root.join("a")).unwrap();
                    fs::rename(&aside, root.join("a")).unwrap();
                }
            });
            let most = (0..20_000).map(|_| of(&root).unwrap().inodes).max();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(most, Some(2));
        });
    }
}
