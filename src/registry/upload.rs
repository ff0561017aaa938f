//! Blobs on their way to a registry (distribution specification, "Pushing Blobs" and "Pushing a blob in chunks").
//!
//! A blob is not sent when the repository has it, or when the registry can mount it from another repository. Else the order
//! is POST (where to?), one PATCH with all of it, PUT (that was all, and this is its digest): what the common clients do,
//! and so what every registry takes. The blob is sent in parts only when the caller wants that or the registry answers 413;
//! some registries drop what comes with a second PATCH.
//!
//! After a break the registry is asked how far it got, and the rest is sent; where it does not know the upload any more, or
//! got all and another digest, the upload begins again. An answer that says how far it got is believed only where it goes
//! forward. A PUT whose answer was lost has its answer in whether the blob is there.
//!
//! `Location` may be relative or absolute, with a query or without, at each step another one; credentials are sent to the
//! registry alone, whoever it names. The body comes from a file by position, so memory does not grow with it.

use std::fs::File;

use oci::{Digest, Reference};
use ureq::http::Method;

use crate::body::Body;
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::pace::PROGRESS_BYTES;
use crate::retry::{self, ATTEMPTS};
use crate::scope::Scopes;
use crate::transport::{Answer, Request, Transport};
use crate::{Registry, Result};

/// The first size of parts after a registry has refused the whole blob as too large.
const PART_BYTES: u64 = 32 << 20;
/// What a refused part is divided by, and the size below which that ends.
const PART_DIVISOR: u64 = 8;
const PART_MIN_BYTES: u64 = 64 << 10;
/// From this size on a body is sent when the registry has said that it wants it (RFC 9110, section 10.1.1).
const EXPECT_BYTES: u64 = 1 << 20;

/// A blob that is here.
#[derive(Clone, Copy, Debug)]
pub struct Blob<'a> {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes: the file's.
    pub size: u64,
    /// Its bytes; read by position, so the file's own position does not matter.
    pub file: &'a File,
}

/// What became of the wish to have a blob from another repository of the same registry.
#[derive(Debug)]
pub enum Mount {
    /// The repository has it now.
    Done,
    /// The registry would rather have the bytes, and says where to.
    Opened(Session),
    /// The registry does not let us.
    Refused,
}

/// A place to which a registry takes the bytes of one blob.
#[derive(Debug)]
pub struct Session {
    location: String,
    /// The smallest part that the registry takes, but for the last one.
    part_min: u64,
}

impl Registry {
    /// Whether a repository has a blob.
    pub fn has_blob(&self, repository: &Reference, digest: &Digest) -> Result<bool> {
        has(&self.transport, repository, &self.transport.place_of(repository)?, digest)
    }

    /// Asks for a blob of the repository `from` of the same registry. Not being allowed to is no error.
    pub fn mount_blob(&self, repository: &Reference, digest: &Digest, from: &Reference) -> Result<Mount> {
        let place = self.transport.place_of(repository)?;
        let source = match self.transport.place_of(from) {
            Ok(source) => source,
            // What may not be asked for has nothing to give.
            Err(RegistryError::Blocked { .. }) => return Ok(Mount::Refused),
            Err(error) => return Err(error),
        };
        if source.host != place.host {
            return Ok(Mount::Refused);
        }
        let rest = format!("blobs/uploads/?mount={digest}&from={}", source.repository);
        let request = opening(repository, &place, &rest);
        let scopes = request.scopes.clone().and(Scopes::pull(&source.repository));
        let answer = match self.transport.send(&Request { scopes, ..request }) {
            Ok(answer) => answer,
            // Registries answer so also when it is only `from` that is not for us, or that they do not have.
            Err(
                RegistryError::PushDenied { .. }
                | RegistryError::NameUnknown { .. }
                | RegistryError::Status { status: 400..=499, .. },
            ) => return Ok(Mount::Refused),
            Err(error) => return Err(error),
        };
        match answer.status() {
            201 => Ok(Mount::Done),
            _ => Ok(Session::of(&answer).map_or(Mount::Refused, Mount::Opened)),
        }
    }

    /// Sends a blob, to a place that is open already if there is one. `told` hears how many bytes of it the registry has.
    pub fn upload(
        &self,
        repository: &Reference,
        blob: &Blob<'_>,
        session: Option<Session>,
        told: &dyn Fn(u64),
    ) -> Result<()> {
        let transport = &self.transport;
        let place = transport.place_of(repository)?;
        let session = session.map_or_else(|| open(transport, repository, &place), Ok)?;
        let part_bytes = transport.settings.part_bytes;
        Upload { transport, repository, place: &place, blob, told, session, offset: 0, part_bytes, pieced: false }.run()
    }
}

fn opening<'a>(repository: &'a Reference, place: &'a Endpoint, rest: &str) -> Request<'a> {
    Request { body: Body::Bytes(&[]), ..Request::push(Method::POST, repository, place, rest) }
}

fn open(transport: &Transport, repository: &Reference, place: &Endpoint) -> Result<Session> {
    Session::of(&transport.send(&opening(repository, place, "blobs/uploads/"))?)
}

fn has(transport: &Transport, repository: &Reference, place: &Endpoint, digest: &Digest) -> Result<bool> {
    let at = repository.at(*digest);
    match transport.send(&Request::push(Method::HEAD, &at, place, &format!("blobs/{digest}"))) {
        Ok(_) => Ok(true),
        Err(RegistryError::BlobUnknown { .. } | RegistryError::NameUnknown { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Session {
    fn of(answer: &Answer) -> Result<Self> {
        let part_min = answer.header("oci-chunk-min-length").and_then(|text| text.trim().parse().ok());
        Ok(Session { location: answer.location()?, part_min: part_min.unwrap_or(0) })
    }
}

/// One blob on its way.
struct Upload<'a> {
    transport: &'a Transport,
    repository: &'a Reference,
    place: &'a Endpoint,
    blob: &'a Blob<'a>,
    told: &'a dyn Fn(u64),
    session: Session,
    /// The bytes that the registry has.
    offset: u64,
    /// The largest part that is sent at once; `None`: all.
    part_bytes: Option<u64>,
    /// Whether this session's bytes came by more than one PATCH.
    pieced: bool,
}

impl Upload<'_> {
    fn run(mut self) -> Result<()> {
        let (mut breaks, mut furthest, mut distrusted) = (0, 0, false);
        loop {
            let Err(error) = self.send() else { return Ok(()) };
            match status_of(&error) {
                Some(413) if self.shrink() => {
                    self.restart()?;
                    continue;
                }
                // What came in pieces was put together wrongly: once more as a whole.
                Some(400) if self.pieced && !distrusted => {
                    distrusted = true;
                    self.restart()?;
                    continue;
                }
                // 416: it is at another byte than we are. 404: it has forgotten this upload.
                Some(404 | 416) => {}
                Some(status) if !retry::is_temporary(status) => return Err(error),
                None if !is_passing(&error) => return Err(error),
                _ => {}
            }
            breaks += 1;
            if breaks >= ATTEMPTS {
                return Err(error);
            }
            retry::wait(retry::back_off(breaks), &self.transport.settings.cancelled)?;
            self.resume()?;
            // A registry that takes a few bytes a time would have us come for ever.
            if self.offset >= furthest + PROGRESS_BYTES || (self.offset == self.blob.size && furthest < self.offset) {
                (furthest, breaks) = (self.offset, 0);
            }
        }
    }

    /// Sends what the registry does not have, and ends the upload.
    fn send(&mut self) -> Result<()> {
        while self.offset < self.blob.size {
            self.part()?;
        }
        self.close()
    }

    /// Sends the next part, which may be all.
    fn part(&mut self) -> Result<()> {
        let left = self.blob.size - self.offset;
        let length = self.part_bytes.map_or(left, |part| left.min(part.max(self.session.part_min)));
        let (first, end) = (self.offset, self.offset + length);
        let whole = length == self.blob.size;
        let mut headers = vec![("Content-Type", "application/octet-stream".to_owned())];
        if !whole {
            self.pieced |= first > 0;
            headers.push(("Content-Range", format!("{first}-{}", end - 1)));
        }
        if length >= EXPECT_BYTES {
            headers.push(("Expect", "100-continue".to_owned()));
        }
        let body = Body::File { file: self.blob.file, offset: first, length, told: self.told };
        let patch = self.request(Method::PATCH, &self.session.location);
        // A second try must know what the first one left.
        let answer = self.transport.send(&Request { headers: &headers, body, attempts: 1, ..patch })?;
        self.moved_to(&answer);
        // What a registry says of a whole blob is not heard: its digest tells.
        self.offset = match range_end(&answer).filter(|_| !whole) {
            Some(reached) if reached > end || reached <= first => {
                let why =
                    format!("it was sent the bytes {first} to {end}, and says that it has those before {reached}");
                return Err(RegistryError::Upload { url: self.session.location.clone(), why });
            }
            Some(reached) => reached,
            None => end,
        };
        (self.told)(self.offset);
        if self.offset < end && self.offset - first < PROGRESS_BYTES {
            let why = format!("it was sent the bytes {first} to {end}, and took those before {}", self.offset);
            return Err(RegistryError::Short { url: self.session.location.clone(), why });
        }
        Ok(())
    }

    /// Says that this was all.
    fn close(&mut self) -> Result<()> {
        let joint = if self.session.location.contains('?') { '&' } else { '?' };
        let location = format!("{}{joint}digest={}", self.session.location, self.blob.digest);
        let headers = [("Content-Type", "application/octet-stream".to_owned())];
        let put = self.request(Method::PUT, &location);
        // Once only: whether the blob is there is known sooner than by another wait.
        let put = Request { headers: &headers, body: Body::Bytes(&[]), attempts: 1, long: true, ..put };
        match self.transport.send(&put) {
            Ok(answer) => check_digest(&answer, &self.blob.digest),
            // It may have been taken at a first try of which the answer was lost.
            Err(_) if has(self.transport, self.repository, self.place, &self.blob.digest).unwrap_or(false) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Finds out how far the registry got; where it does not say, the upload begins again.
    fn resume(&mut self) -> Result<()> {
        let asked = self.transport.send(&self.request(Method::GET, &self.session.location));
        let answer = match asked {
            Ok(answer) => answer,
            Err(error @ (RegistryError::Cancelled | RegistryError::PushDenied { .. })) => return Err(error),
            Err(_) => return self.restart(),
        };
        // One byte and none read the same: less than two are not worth being believed.
        match range_end(&answer).filter(|end| (2..=self.blob.size).contains(end)) {
            Some(end) => {
                self.moved_to(&answer);
                self.offset = end;
                Ok(())
            }
            None => self.restart(),
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.session = open(self.transport, self.repository, self.place)?;
        (self.offset, self.pieced) = (0, false);
        (self.told)(0);
        Ok(())
    }

    /// Makes parts smaller after the registry found one too large; `false` when they cannot be.
    fn shrink(&mut self) -> bool {
        let smaller = match self.part_bytes {
            None => PART_BYTES.min(self.blob.size / 2),
            Some(part) => part / PART_DIVISOR,
        };
        let possible = smaller >= self.session.part_min.max(PART_MIN_BYTES);
        if possible {
            self.part_bytes = Some(smaller);
        }
        possible
    }

    fn moved_to(&mut self, answer: &Answer) {
        // The specification wants one with each answer. Where there is none, the old one stands.
        if let Ok(location) = answer.location() {
            self.session.location = location;
        }
    }

    fn request(&self, method: Method, location: &str) -> Request<'_> {
        let scopes = Scopes::push(&self.place.repository);
        Request { reference: Some(self.repository), ..Request::new(method, self.place, location.to_owned(), scopes) }
    }
}

/// A registry that has stored something else must not go unnoticed.
pub(crate) fn check_digest(answer: &Answer, wanted: &Digest) -> Result<()> {
    match answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
        Some(found) if found != *wanted => Err(oci::DocumentError::Mismatch { wanted: *wanted, found }.into()),
        _ => Ok(()),
    }
}

/// Whether an error without a status may be none the next time.
fn is_passing(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Transport { .. }
            | RegistryError::Short { .. }
            | RegistryError::TooManyRequests { wait: None, .. }
    )
}

fn status_of(error: &RegistryError) -> Option<u16> {
    match error {
        RegistryError::Status { status, .. } => Some(*status),
        _ => None,
    }
}

/// How many bytes `Range: 0-N` means. The specification has no unit there; some write one.
fn range_end(answer: &Answer) -> Option<u64> {
    let range = answer.header("range")?.trim();
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    if first == "0" { last.parse::<u64>().ok()?.checked_add(1) } else { None }
}
