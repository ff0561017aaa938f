//! New layers in the store: a blob and its index, from an archive that is being written or from one that exists.
//!
//! Either way the archive passes through [`apply`], so the index is the one that a pull of the blob would give, and an
//! archive that could not be pulled again is refused when it is made. [`create`] compresses it on the caller's thread
//! while others read it; [`take`] keeps the bytes as they are. The caller holds a lease.

use std::io::{self, BufWriter, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use oci::{DiffId, Digest, Hasher};
use store::{Durability, NewFile, Store};

use crate::apply::{Applied, apply};
use crate::compress::{Compression, Compressor};
use crate::error::{LayerError, Result};
use crate::limits::Limits;
use crate::pipeline::{spawn, unwrapped};

/// A piece of the archive on its way to the reader, and how many may wait.
const PIECE_BYTES: usize = 64 << 10;
const QUEUE: usize = 32;

/// A layer that is in the store, as blob and as index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// The layer.
    pub applied: Applied,
}

/// Runs `write`, which writes an archive, and publishes what it wrote: compressed as a blob, and applied as an index.
pub fn create(
    store: &Store,
    compression: Compression,
    durability: Durability,
    limits: &Limits,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Created> {
    let blob = Blob::new(store)?;
    let compressor = Compressor::new(compression, blob).map_err(blob_error)?;
    let (to_reader, pieces) = sync_channel(QUEUE);
    let (written, applied) = thread::scope(|scope| {
        let reader = Pieces { queue: pieces, current: Vec::new(), at: 0 };
        // Not the caller's durability: the blob is published beside it.
        let applying = spawn(scope, move || apply(reader, None, store, Durability::Later, limits))?;
        let tee = Tee { compressor, to_reader: Some(to_reader) };
        let written = write_through(tee, write);
        Ok::<_, LayerError>((written, applying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    })?;
    let blob = match (written, applied) {
        (Ok(blob), Ok(applied)) => (blob, applied),
        // A reader that gave up is why the writer could not go on; else the reader only saw that the writer did.
        (Err(Stopped::ReaderGone) | Ok(_), Err(error)) | (Err(Stopped::Failed(error)), _) => {
            return Err(error);
        }
        (Err(Stopped::ReaderGone), Ok(_)) => {
            let source = io::Error::from(io::ErrorKind::BrokenPipe);
            return Err(LayerError::Write { what: "the archive", source });
        }
    };
    publish(store, blob.0, compression, blob.1, durability)
}

/// Takes a layer as it comes, compressed or not: its bytes become a blob, which must have this digest and diff ID where
/// they are known.
pub fn take(
    store: &Store,
    reader: impl Read + Send,
    digest: Option<Digest>,
    diff_id: Option<DiffId>,
    durability: Durability,
    limits: &Limits,
) -> Result<Created> {
    let mut copy = Copying { reader, blob: Blob::new(store)?, magic: Vec::new() };
    let applied = apply(&mut copy, diff_id, store, Durability::Later, limits);
    // What a reader leaves, behind the end of a compressed stream, belongs to the blob. Its digest tells whether the
    // bytes were the right ones, which matters more than what the archive lacks.
    // Without one to compare there is nothing to learn from the rest.
    let applied = match (applied, digest) {
        (Err(error), None) => return Err(error),
        (applied, _) => applied,
    };
    io::copy(&mut copy, &mut io::sink()).map_err(|source| unwrapped(LayerError::Read { source }))?;
    let found = copy.blob.hasher.clone().finish();
    if let Some(wanted) = digest.filter(|wanted| *wanted != found) {
        return Err(LayerError::Digest { wanted, found });
    }
    publish(store, copy.blob, Compression::of_magic(&copy.magic), applied?, durability)
}

fn publish(
    store: &Store,
    blob: Blob,
    compression: Compression,
    applied: Applied,
    durability: Durability,
) -> Result<Created> {
    let size = blob.hasher.size();
    let digest = blob.hasher.finish();
    let file = blob.file.into_inner().map_err(|error| blob_error(error.into_error()))?;
    if durability == Durability::Now {
        store.sync()?;
    }
    store.blobs().publish(file, &digest, durability)?;
    Ok(Created { digest, size, compression, applied })
}

fn blob_error(source: io::Error) -> LayerError {
    LayerError::Write { what: "the blob", source }
}

/// The same on its way through a reader or a writer, whose user would take it for a failure of its own.
fn passing(source: io::Error) -> io::Error {
    io::Error::other(blob_error(source))
}

/// A blob without a name, hashed as it is written.
struct Blob {
    file: BufWriter<NewFile>,
    hasher: Hasher,
}

impl Blob {
    fn new(store: &Store) -> Result<Self> {
        Ok(Blob { file: BufWriter::with_capacity(1 << 20, store.blobs().create()?), hasher: Hasher::new() })
    }
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Why the writing ended early.
enum Stopped {
    /// Nobody reads any more.
    ReaderGone,
    Failed(LayerError),
}

/// Runs `write` and ends blob and reader as it ended.
fn write_through(tee: Tee, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> std::result::Result<Blob, Stopped> {
    let mut buffered = BufWriter::with_capacity(PIECE_BYTES, tee);
    let result = write(&mut buffered).and_then(|()| buffered.flush().map_err(blob_error)).map_err(unwrapped);
    // What is still buffered after a failure must not be written.
    let (mut tee, _) = buffered.into_parts();
    if let Err(error) = result {
        return Err(match tee.to_reader.take() {
            Some(to_reader) => {
                // An archive that just ended would be taken for a whole one.
                let _ = to_reader.send(Err(io::Error::other("the archive was not written to its end")));
                Stopped::Failed(error)
            }
            None => Stopped::ReaderGone,
        });
    }
    drop(tee.to_reader.take());
    tee.compressor.finish().map_err(|error| Stopped::Failed(blob_error(error)))
}

/// Writes to the blob and to the reader.
struct Tee {
    compressor: Compressor<Blob>,
    /// `None` once the reader is gone.
    to_reader: Option<SyncSender<io::Result<Vec<u8>>>>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PIECE_BYTES)];
        let sent = self.to_reader.as_ref().is_some_and(|to_reader| to_reader.send(Ok(bytes.to_vec())).is_ok());
        if !sent {
            self.to_reader = None;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.compressor.write_all(bytes).map_err(passing)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading end.
struct Pieces {
    queue: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            let Ok(next) = self.queue.recv() else { return Ok(0) };
            (self.current, self.at) = (next?, 0);
        }
        let length = (&self.current[self.at..]).read(buffer)?;
        self.at += length;
        Ok(length)
    }
}

/// Copies what passes into the blob.
struct Copying<R> {
    reader: R,
    blob: Blob,
    /// The first four bytes.
    magic: Vec<u8>,
}

impl<R: Read> Read for Copying<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.blob.write_all(&buffer[..length]).map_err(passing)?;
        let missing = 4 - self.magic.len();
        self.magic.extend(&buffer[..length.min(missing)]);
        Ok(length)
    }
}
