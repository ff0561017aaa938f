//! Small files that are always whole: written to a temporary name, renamed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base::{Kind, Report};
use oci::{Digest, Hasher};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sys::file::sync_directory;

/// The largest record that is read; ours are a few kilobytes.
const RECORD_MAX: u64 = 16 << 20;

/// Replaces a file by these bytes; `sync` makes them last through a power loss before the new name is seen.
pub(crate) fn replace(path: &Path, bytes: &[u8], sync: bool) -> Result<(), Report> {
    replace_with_mode(path, bytes, sync, 0o666)
}

/// Replaces a file by these bytes, lasting, readable for its owner alone.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), Report> {
    replace_with_mode(path, bytes, true, 0o600)
}

fn replace_with_mode(path: &Path, bytes: &[u8], sync: bool, mode: u32) -> Result<(), Report> {
    let suffix = u64::from_ne_bytes(sys::random()?);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{suffix:016x}"));
    let temporary = Path::new(&temporary);
    let written = File::options().write(true).create_new(true).mode(mode).open(temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(temporary, path)?;
        if sync { sync_directory(path.parent().unwrap_or(Path::new("/"))) } else { Ok(()) }
    });
    written.map_err(|error| {
        // The error that counts is the first; a file left under its temporary name is never read.
        let _ = fs::remove_file(temporary);
        Report::of(Kind::Internal, error).with_step(format!("writing {}", path.display()))
    })
}

/// Whether a path means this open file.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let inode = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
    inode(file.metadata()) == inode(fs::symlink_metadata(path))
}

/// [`replace`] with a value as JSON.
pub(crate) fn replace_json(path: &Path, value: &impl Serialize, sync: bool) -> Result<(), Report> {
    let bytes = serde_json::to_vec(value).map_err(|error| Report::of(Kind::Internal, error))?;
    replace(path, &bytes, sync)
}

/// A JSON file; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Report> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    parse(path, &bytes).map(Some)
}

/// A record's bytes; `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Report> {
    let mut bytes = Vec::with_capacity(sys::file::SMALL);
    match File::open(path).and_then(|file| file.take(RECORD_MAX).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path, error)),
    }
}

/// The value of a record's bytes.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Report> {
    serde_json::from_slice(bytes)
        .map_err(|error| Report::of(Kind::Internal, error).with_step(format!("reading {}", path.display())))
}

/// The digest of a file's content from its position on.
pub(crate) fn digest_of(mut file: impl Read) -> io::Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// An I/O error with what was tried.
pub(crate) fn failed(what: &str, path: &Path, error: io::Error) -> Report {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        _ => Kind::Internal,
    };
    Report::of(kind, error).with_step(format!("{what} {}", path.display()))
}
