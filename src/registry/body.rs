//! The bytes that go with a request.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// The bytes that go with a request; from their beginning each time it is sent.
#[derive(Clone, Copy)]
pub(crate) enum Body<'a> {
    None,
    Bytes(&'a [u8]),
    /// A part of a file; `told` hears the position up to which it was read.
    File {
        file: &'a File,
        offset: u64,
        length: u64,
        told: &'a dyn Fn(u64),
    },
}

/// A part of a file as a stream.
pub(crate) struct Part<'a> {
    pub file: &'a File,
    pub position: u64,
    pub end: u64,
    pub told: &'a dyn Fn(u64),
    pub cancelled: &'a AtomicBool,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        let room = buffer.len().min(usize::try_from(self.end - self.position).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..room], self.position)?;
        if count == 0 {
            // Its length was announced: the connection would wait for the rest without end.
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the blob's file is shorter than it was"));
        }
        self.position += count as u64;
        (self.told)(self.position);
        Ok(count)
    }
}
