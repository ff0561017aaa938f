//! A blob as a stream that survives its connections.

use std::io::{self, Read};
use std::sync::atomic::Ordering;

use oci::{Descriptor, Digest, Reference};
use ureq::http::Method;

use crate::error::RegistryError;
use crate::pace::PROGRESS_BYTES;
use crate::retry::{ATTEMPTS, back_off, wait};
use crate::transport::{Answer, BodyReader as Body, Request, Transport, chain};

/// Reads a blob from an offset to its end. A broken connection is made again where it broke; after five breaks with little
/// or nothing between them the error stands. Errors are [`RegistryError`]s inside [`io::Error`]s.
pub struct BlobReader<'a> {
    transport: &'a Transport,
    repository: Reference,
    digest: Digest,
    size_bytes: u64,
    /// Further places to get it from, which a manifest names for a layer that its registry may not hand out.
    urls: Vec<String>,
    position: u64,
    /// Bytes of the body before the position, of a server that sends all: they are read past, not fetched into the store again.
    skip_bytes: u64,
    body: Option<Body>,
    /// Breaks since the last progress.
    breaks: u32,
    /// Bytes since the last break.
    since_bytes: u64,
    /// Whether a request began behind the blob's beginning.
    resumed: bool,
}

impl<'a> BlobReader<'a> {
    pub(crate) fn open(
        transport: &'a Transport,
        repository: &Reference,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Self, RegistryError> {
        let mut reader = BlobReader {
            transport,
            repository: repository.clone(),
            digest: descriptor.digest,
            size_bytes: descriptor.size,
            urls: descriptor.urls.clone(),
            position: offset.min(descriptor.size),
            skip_bytes: 0,
            body: None,
            breaks: 0,
            since_bytes: 0,
            resumed: offset > 0,
        };
        if reader.position < reader.size_bytes {
            reader.connect()?;
        }
        Ok(reader)
    }

    /// Whether the blob's bytes are of several requests, counting those before the offset from which it was opened.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    fn url(&self) -> String {
        format!("{}@{}", self.repository.familiar_name(), self.digest)
    }

    fn connect(&mut self) -> Result<(), RegistryError> {
        let at = self.repository.at(self.digest);
        let found = self.transport.at_each(&at, |endpoint| {
            let request = Request::pull(Method::GET, &at, endpoint, &format!("blobs/{}", self.digest));
            self.rest(|offset| self.transport.send(&Request { offset, ..request.clone() }))
        });
        let (answer, skip) = match found {
            Err(error) if error.is_absence() => self.elsewhere(error)?,
            found => found?,
        };
        (self.body, self.skip_bytes) = (Some(answer.into_reader()), skip);
        Ok(())
    }

    /// Asks the further places in their order, of which nobody but the manifest knows and which get no credential. Why none of
    /// them has it is told, and that the registry has not is the error.
    fn elsewhere(&self, absence: RegistryError) -> Result<(Answer, u64), RegistryError> {
        let place = self.transport.place_of(&self.repository)?;
        for url in &self.urls {
            match self.rest(|offset| self.transport.open_beside(&place, url, offset)) {
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => {
                    let line =
                        format!("the layer {} is not to be had elsewhere: {}", self.digest.short(), chain(&error));
                    self.transport.notes.add(format!("elsewhere {url}"), &line);
                }
                Ok(found) => return Ok(found),
            }
        }
        Err(absence)
    }

    /// Asks a server for what is missing, and for all of the blob where it says that there is no such part (416), or gives
    /// another one; the answer, and how far before our position it begins.
    fn rest(&self, ask: impl Fn(u64) -> Result<Answer, RegistryError>) -> Result<(Answer, u64), RegistryError> {
        if self.position > 0 {
            match ask(self.position) {
                Err(RegistryError::Status { status: 416, .. }) => {}
                answered => {
                    let answer = answered?;
                    if let Ok(skip_bytes) = self.bytes_to_skip(&answer, self.position) {
                        return Ok((answer, skip_bytes));
                    }
                }
            }
        }
        let answer = ask(0)?;
        let skip_bytes = self.bytes_to_skip(&answer, 0)?;
        Ok((answer, skip_bytes))
    }

    /// How far before our position the answer to a request for the bytes from `offset` begins. Another part is refused.
    fn bytes_to_skip(&self, answer: &Answer, offset: u64) -> Result<u64, RegistryError> {
        if answer.status() != 206 {
            return Ok(self.position);
        }
        let range = answer.header("content-range").unwrap_or_default();
        let begins =
            range.strip_prefix("bytes ").and_then(|range| range.split_once('-')).map(|(first, _)| first.trim());
        if begins.and_then(|first| first.parse().ok()) == Some(offset) {
            return Ok(self.position - offset);
        }
        let cause = format!("asked for the bytes from {offset}, got the range {range:?}");
        Err(RegistryError::Transport { url: self.url(), cause: cause.into() })
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            if self.transport.settings.cancelled.load(Ordering::Relaxed) {
                return Err(RegistryError::Cancelled);
            }
            let left = self.size_bytes - self.position;
            if left == 0 || buffer.is_empty() {
                return Ok(0);
            }
            let wanted = if self.skip_bytes > 0 { self.skip_bytes } else { left };
            let room = buffer.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
            let Some(body) = &mut self.body else {
                // This has its own retries, so its error stands.
                self.connect()?;
                continue;
            };
            let cause = match body.read(&mut buffer[..room]) {
                Ok(0) => io::Error::from(io::ErrorKind::UnexpectedEof),
                Ok(count) if self.skip_bytes > 0 => {
                    self.skip_bytes -= count as u64;
                    continue;
                }
                Ok(count) => {
                    self.position += count as u64;
                    self.since_bytes += count as u64;
                    return Ok(count);
                }
                Err(cause) => cause,
            };
            self.body = None;
            self.resumed |= self.position > 0;
            self.breaks = if self.since_bytes < PROGRESS_BYTES { self.breaks + 1 } else { 1 };
            self.since_bytes = 0;
            if self.breaks >= ATTEMPTS {
                let url = format!("{} (broke off at byte {} of {})", self.url(), self.position, self.size_bytes);
                return Err(RegistryError::Transport { url, cause: Box::new(cause) });
            }
            wait(back_off(self.breaks), &self.transport.settings.cancelled)?;
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.try_read(buffer)?)
    }
}
