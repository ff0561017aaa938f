//! The files of an image that lies outside of the store: in a directory, in an archive, or in a stream.
//!
//! Everything in them is hostile. In a directory paths are resolved inside of it; an archive is looked through once, and a
//! path leads to a part of its file. What is compressed or comes as a stream is first written to a file without a name on
//! the store's file system, which is gone with its descriptor.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use layer::{LayerError, Limits, Located, Place};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use store::Store;
use sys::path::open_in;

use crate::file::failed;
use crate::image::progress::{Listener, Teller, Told};

/// A source of images.
pub(crate) enum Source {
    Directory(OwnedFd),
    Archive(File, Located),
}

/// A file of a source.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    at: u64,
    left: u64,
}

impl Part {
    /// How many bytes are left.
    pub fn size(&self) -> u64 {
        self.left
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Source {
    /// What has been opened at a path: a directory, or an archive, compressed or not.
    pub fn of(store: &Store, file: File, path: &Path, listener: Listener<'_>) -> Result<Source, Report> {
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(Source::Directory(file.into()));
        }
        let mut magic = [0; 16];
        let read = file.read_at(&mut magic, 0).unwrap_or(0);
        let seekable = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if seekable && layer::is_plain(&magic[..read]) {
            return Source::archive(file).step(|| format!("reading {}", path.display()));
        }
        let size = seekable.then(|| file.metadata().map_or(0, |metadata| metadata.len()));
        Source::stream(store, file, size, listener).step(|| format!("reading {}", path.display()))
    }

    /// What a stream brings, which is an archive; `size_bytes` is its length where that is known.
    pub fn stream(
        store: &Store,
        reader: impl Read + Send,
        size_bytes: Option<u64>,
        listener: Listener<'_>,
    ) -> Result<Source, Report> {
        let mut reader = Told::new(reader, Teller::new(listener, None, size_bytes));
        let reading = |error| match LayerError::from_io(error) {
            LayerError::Read { source } => Report::of(Kind::Usage, source).with_step("reading the archive"),
            error => error.into(),
        };
        let mut plain = layer::unpacked(&mut reader, &Limits::default()).map_err(reading)?;
        let mut spool = store.blobs().create()?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let length = plain.read(&mut buffer).map_err(reading)?;
            if length == 0 {
                break;
            }
            spool.write_all(&buffer[..length]).map_err(|error| {
                Report::of(Kind::Internal, error).with_step("writing the archive to a file of the store")
            })?;
        }
        drop(plain);
        reader.moved();
        let file = spool.file().try_clone().map_err(|error| Report::of(Kind::Internal, error))?;
        Source::archive(file)
    }

    fn archive(file: File) -> Result<Source, Report> {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let again = file.try_clone().map_err(|error| Report::of(Kind::Internal, error))?;
        let whole = Part { file: again, at: 0, left: length };
        let located = layer::locate(BufReader::with_capacity(1 << 20, whole)).map_err(|error| {
            Report::from(error)
                .with_hint("an archive of images is a tar archive, plain or compressed with gzip, zstd, bzip2 or xz")
        })?;
        Ok(Source::Archive(file, located))
    }

    /// A file by its path; `None` if it is not there.
    pub fn part(&self, path: &str) -> Result<Option<Part>, Report> {
        match self {
            Source::Directory(root) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                let file = match open_in(root.as_fd(), Path::new(path), flags, Mode::empty()) {
                    Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
                    file => File::from(file?),
                };
                let metadata = file.metadata().map_err(|error| failed("reading", Path::new(path), error))?;
                Ok(metadata.is_file().then_some(Part { file, at: 0, left: metadata.len() }))
            }
            Source::Archive(file, located) => {
                let Some((at, left)) = resolve(located, path) else { return Ok(None) };
                let file = file.try_clone().map_err(|error| Report::of(Kind::Internal, error))?;
                Ok(Some(Part { file, at, left }))
            }
        }
    }

    /// A whole small file; `None` if it is not there.
    pub fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Report> {
        let Some(part) = self.part(path)? else { return Ok(None) };
        if part.size() > max_bytes {
            let size = part.size();
            return Err(Report::new(
                Kind::Usage,
                format!("{path} has {size} bytes, more than the {max_bytes} that are read"),
            ));
        }
        let mut content = Vec::new();
        let mut part = part;
        part.read_to_end(&mut content).map_err(|error| failed("reading", Path::new(path), error))?;
        Ok(Some(content))
    }
}

/// Opens a directory or an archive.
pub(crate) fn open(path: &Path) -> Result<File, Report> {
    File::open(path).map_err(|error| not_there(path, error))
}

/// Where an open file or directory lies now, every link followed; `None` for a pipe and for what has no name any more. Asked
/// of the descriptor, so that it is the place of what is read, whatever else has its name by now.
pub(crate) fn place_of(file: &File) -> Result<Option<PathBuf>, Report> {
    let link = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
    let kind = file.metadata().map_err(|error| failed("looking at", &link, error))?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Ok(None);
    }
    let place = fs::read_link(&link).map_err(|error| failed("reading", &link, error))?;
    // What has been removed has ` (deleted)` behind its path (proc(5)), where nothing is.
    let there = place.try_exists().map_err(|error| failed("looking at", &place, error))?;
    Ok(Some(place).filter(|_| there))
}

/// Follows links to a content.
fn resolve(located: &Located, path: &str) -> Option<(u64, u64)> {
    let mut path = path.trim_start_matches("./").trim_start_matches('/').as_bytes();
    let mut seen = HashSet::new();
    while seen.insert(path) {
        match located.get(path)? {
            Place::Content { offset, size } => return Some((*offset, *size)),
            Place::Link(target) => path = target,
        }
    }
    None
}

fn not_there(path: &Path, error: io::Error) -> Report {
    let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Denied };
    Report::of(kind, error).with_step(format!("opening {}", path.display()))
}
