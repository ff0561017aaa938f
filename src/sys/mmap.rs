//! Read-only memory maps of immutable files.
//!
//! Theory: an index is one file that many processes read at once and that nobody changes after it was published by
//! `rename`. Mapped privately and read-only, its pages are shared by all of them and cost no heap. What a map cannot
//! survive is a file that shrinks (SIGBUS) or changes under it, so only files whose writer is ours may be mapped:
//! published under their final name, mode 0444, never opened for writing again. A file on a file system where another
//! host may truncate it (NFS) is copied to a local one first; that choice is the caller's.

use std::fmt;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Call, Errno, Result, SysError};

/// The bytes of a whole regular file, mapped for as long as this value lives; the descriptor may be closed.
pub struct Map(Option<memmap2::Mmap>);

impl Map {
    /// Maps the file behind this descriptor (`mmap(2)`: `PROT_READ`, `MAP_PRIVATE`), which must be open for reading.
    ///
    /// `EINVAL` for anything but a regular file; an empty file gives an empty map. Length is that of this moment.
    pub fn of(file: impl AsFd) -> Result<Map> {
        let fd = file.as_fd();
        let stat = nix::sys::stat::fstat(fd).call(|| format!("fstat({})", fd.as_raw_fd()))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(SysError::new(format!("mmap({}): not a regular file", fd.as_raw_fd()), Errno::EINVAL));
        }
        let trace = || format!("mmap(NULL, {}, PROT_READ, MAP_PRIVATE, {}, 0)", stat.st_size, fd.as_raw_fd());
        let length = usize::try_from(stat.st_size).map_err(|_| SysError::new(trace(), Errno::EFBIG))?;
        if length == 0 {
            return Ok(Map(None));
        }
        let mut options = memmap2::MmapOptions::new();
        options.len(length);
        // SAFETY: the descriptor is borrowed and open for the call; the length is the file's own, so no page lies past
        // its end. The mapping is read-only and private, hence nothing is written through it. That the file does not
        // change or shrink while mapped is the rule of the store (module documentation): its files are complete before
        // they get their name and no one opens them for writing afterwards.
        let map = unsafe { options.map_copy_read_only(fd.as_raw_fd()) }.call(trace)?;
        Ok(Map(Some(map)))
    }
}

impl Map {
    /// Gives the pages of these bytes back to the kernel's cache of the file; they come again when they are looked at
    /// (`madvise(2)`: `MADV_DONTNEED`). A map can be much of a process's memory that it needs no more.
    pub fn let_go(&self, bytes: Range<usize>) {
        let Some(map) = &self.0 else { return };
        let end = bytes.end.min(map.len());
        let start = bytes.start.min(end);
        // Advice that the kernel does not take costs memory alone.
        // SAFETY: the mapping is read-only and private, so none of its pages was changed and each is read from the file again:
        // no byte behind a borrow of the map becomes another one. The range lies in the mapping.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({} bytes)", self.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn file_with(content: &[u8]) -> File {
        let fd = nix::sys::memfd::memfd_create(c"map", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn shows_the_whole_file_after_its_descriptor_is_closed() {
        let content: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        let map = Map::of(file_with(&content)).unwrap();
        assert_eq!(&map[..], &content[..]);
    }

    #[test]
    fn what_was_let_go_comes_again() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let map = Map::of(file_with(&content)).unwrap();
        map.let_go(5000..200_000);
        map.let_go(300_000..usize::MAX);
        assert_eq!(&map[..], &content[..]);
    }

    #[test]
    fn an_empty_file_is_an_empty_map() {
        assert!(Map::of(file_with(b"")).unwrap().is_empty());
    }

    #[test]
    fn refuses_what_is_no_regular_file() {
        let directory = File::open("/").unwrap();
        assert_eq!(Map::of(&directory).unwrap_err().errno(), Errno::EINVAL);
    }

    #[test]
    fn is_shared_between_threads() {
        fn check<T: Send + Sync>() {}
        check::<Map>();
    }
}
