//! Fetching, inflating, hashing and reading an archive at the same time, a thread each.
//!
//! One thread takes what comes (from a registry it hashes and keeps that too). A second inflates and is the slowest with
//! gzip; its pieces go to a third, which computes the diff ID, and to the caller, who reads the archive. The queues are
//! short, so that the memory is bounded and a slow reader slows the rest. Whoever stops early drops its end of a queue, and
//! who fills that stops at its next piece.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};

use oci::{DiffId, Hasher};

use crate::decompress;
use crate::error::{LayerError, Result};
use crate::limits::Limits;

/// One piece: below the size from which allocators ask the kernel each time.
const PIECE_BYTES: usize = 64 << 10;
/// How many pieces may wait.
const QUEUE: usize = 16;

type Piece = Arc<[u8]>;

/// Runs `read` over the uncompressed stream, which it must read to its end, and gives its result with the diff ID and
/// the length of the stream.
pub(crate) fn run<T>(
    reader: impl Read + Send,
    limits: &Limits,
    read: impl FnOnce(Pieces) -> Result<T>,
) -> Result<(T, DiffId, u64)> {
    thread::scope(|scope| {
        let (to_inflater, fetched) = sync_channel(QUEUE);
        let (to_reader, pieces) = sync_channel(QUEUE);
        let (to_hasher, hashed) = sync_channel::<Piece>(QUEUE);
        // A thread that cannot be started drops its ends, and so ends those that were.
        spawn(scope, move || fetch(reader, &to_inflater))?;
        spawn(scope, move || inflate(Pieces::new(fetched), limits, &to_reader, &to_hasher))?;
        let hasher = spawn(scope, move || {
            let mut hasher = Hasher::new();
            for piece in hashed {
                hasher.update(&piece);
            }
            hasher
        })?;
        let result = read(Pieces::new(pieces));
        let hasher = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let result = result.map_err(unwrapped)?;
        let size = hasher.size();
        Ok((result, DiffId(hasher.finish()), size))
    })
}

/// Starts a thread, which the kernel may refuse.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().spawn_scoped(scope, work).map_err(|source| LayerError::Thread { source })
}

/// An error of our own that came through the stream.
pub(crate) fn unwrapped(error: LayerError) -> LayerError {
    match error {
        LayerError::Read { source } => source.downcast().unwrap_or_else(|source| LayerError::Read { source }),
        LayerError::Write { what, source } => {
            source.downcast().unwrap_or_else(|source| LayerError::Write { what, source })
        }
        other => other,
    }
}

/// Sends what comes in pieces, or the error that ended it.
fn fetch(mut reader: impl Read, to_inflater: &SyncSender<io::Result<Piece>>) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let piece = match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => Ok(Arc::from(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let ended = piece.is_err();
        // One that has the end of its stream, or failed, wants no more.
        if to_inflater.send(piece).is_err() || ended {
            return;
        }
    }
}

/// Sends the uncompressed stream in pieces, or the error that ended it.
fn inflate(
    reader: impl Read + Send,
    limits: &Limits,
    to_reader: &SyncSender<io::Result<Piece>>,
    to_hasher: &SyncSender<Piece>,
) {
    let sent = (|| {
        let mut inflated = decompress::layer(reader, limits)?;
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let length = fill(&mut inflated, &mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            let piece: Piece = Arc::from(&buffer[..length]);
            // The hasher ends only after this thread; the reader may have given up, and then nobody wants the rest.
            if to_hasher.send(piece.clone()).is_err() || to_reader.send(Ok(piece)).is_err() {
                return Ok(());
            }
        }
    })();
    if let Err(error) = sent {
        // Nobody to tell: the reader has an error of its own.
        let _ = to_reader.send(Err(error));
    }
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The reading end of the stream.
pub(crate) struct Pieces {
    queue: Receiver<io::Result<Piece>>,
    current: Piece,
    at: usize,
}

impl Pieces {
    fn new(queue: Receiver<io::Result<Piece>>) -> Self {
        Pieces { queue, current: Arc::from([]), at: 0 }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len()
            && let Ok(next) = self.queue.recv()
        {
            self.current = next?;
            self.at = 0;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at = (self.at + length).min(self.current.len());
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}
