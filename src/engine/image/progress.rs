//! What is told while contents of images move: one stream of events for every command that moves some.
//!
//! What moves is known by its digest, or is the one archive that is read or written and whose digest its end tells
//! (`None`). Events come from several threads, those of one content in their order.

use std::io::{self, Read, Write};

use oci::{Digest, Reference};

/// Between two reports of one content, in bytes.
const REPORT_BYTES: u64 = 256 << 10;

/// What happens.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The registry is asked.
    Resolving {
        /// For this.
        reference: &'a Reference,
    },
    /// These are wanted, each with its size in bytes; told before any of them moves, and again where more turn out to be.
    Planned {
        /// What, each once.
        contents: &'a [(Digest, u64)],
    },
    /// A content need not move: it is there.
    Exists {
        /// Which.
        content: Digest,
    },
    /// The registry took a content from another of its repositories.
    Mounted {
        /// Which.
        content: Digest,
        /// That repository.
        from: &'a str,
    },
    /// A content is on its way.
    Moving {
        /// Which.
        content: Option<Digest>,
        /// Bytes so far. The first report may begin where an earlier command ended, and a retry goes back.
        done_bytes: u64,
        /// Bytes that there will be, where that is known.
        size_bytes: Option<u64>,
    },
    /// A content is where it should be.
    Moved {
        /// Which.
        content: Option<Digest>,
    },
    /// A name is set at the registry.
    Tagged {
        /// The tag.
        tag: &'a str,
        /// The digest of the manifest or index.
        digest: Digest,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// Something to know.
    Note {
        /// One line.
        text: &'a str,
    },
    /// What is done may not be what was meant: shown to those too who want to see little.
    Warning {
        /// One line.
        text: &'a str,
    },
}

/// Who is told.
pub type Listener<'a> = &'a (dyn Fn(&Event<'_>) + Sync);

/// Tells how far one content is: at its begin, at its end, and now and then between.
pub(crate) struct Teller<'a> {
    listener: Listener<'a>,
    content: Option<Digest>,
    size_bytes: Option<u64>,
    done_bytes: u64,
    told_bytes: Option<u64>,
}

impl<'a> Teller<'a> {
    pub fn new(listener: Listener<'a>, content: Option<Digest>, size_bytes: Option<u64>) -> Self {
        Teller { listener, content, size_bytes, done_bytes: 0, told_bytes: None }
    }

    /// Says that so many bytes are done.
    pub fn tell(&mut self, done_bytes: u64) {
        self.done_bytes = done_bytes;
        let due = |told: u64| done_bytes < told || done_bytes >= told + REPORT_BYTES;
        if self.told_bytes.is_none_or(due) || Some(done_bytes) == self.size_bytes {
            self.report();
        }
    }

    fn report(&mut self) {
        let (content, done_bytes, size_bytes) = (self.content, self.done_bytes, self.size_bytes);
        if self.told_bytes != Some(done_bytes) {
            self.told_bytes = Some(done_bytes);
            (self.listener)(&Event::Moving { content, done_bytes, size_bytes });
        }
    }

    /// Says that it is there.
    pub fn moved(&mut self) {
        self.report();
        (self.listener)(&Event::Moved { content: self.content });
    }
}

/// Tells of what passes through it, to be read or to be written.
pub(crate) struct Told<'a, T> {
    inner: T,
    done_bytes: u64,
    teller: Teller<'a>,
}

impl<'a, T> Told<'a, T> {
    pub fn new(inner: T, mut teller: Teller<'a>) -> Self {
        teller.tell(0);
        Told { inner, done_bytes: 0, teller }
    }

    /// Says that it is there.
    pub fn moved(&mut self) {
        self.teller.moved();
    }

    fn passed(&mut self, length: usize) -> usize {
        self.done_bytes += length as u64;
        // An archive is longer than the contents by whose sizes it was announced.
        self.teller.tell(self.done_bytes.min(self.teller.size_bytes.unwrap_or(u64::MAX)));
        length
    }
}

impl<T: Read> Read for Told<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map(|length| self.passed(length))
    }
}

impl<T: Write> Write for Told<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes).map(|length| self.passed(length))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
