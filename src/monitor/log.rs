//! The container's log: Docker's json-file format, one object a line.
//!
//! A line of the container becomes a line of the log when its newline arrives, when it is 16 KiB long, or when its
//! stream ends. The time is that of the read. What cannot be written (a full disk) is counted and said once; the
//! container goes on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use base::time::rfc3339;

use crate::streams::Sink;

/// Docker splits longer lines into pieces of this size.
const LINE_MAX: usize = 16 << 10;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    file: File,
    partial: [Vec<u8>; 2],
    line: Vec<u8>,
    lost: u64,
    /// The last write failed, perhaps in the middle.
    torn: bool,
}

impl Log {
    /// Opens the log for appending, making it when missing.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Log { file, partial: [Vec::new(), Vec::new()], line: Vec::new(), lost: 0, torn: false })
    }

    /// How many bytes of log could not be written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn flush_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        if self.torn {
            // What is left of the entry before must not spoil this one.
            self.line.insert(0, b'\n');
        }
        self.torn = self.file.write_all(&self.line).is_err();
        if self.torn {
            self.lost += self.line.len() as u64;
        }
    }
}

impl Sink for Log {
    /// Takes bytes of a stream; complete lines go to the file in one write.
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let time = rfc3339(SystemTime::now());
        self.line.clear();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let partial = &mut self.partial[stream as usize];
            let mut rest = piece;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(LINE_MAX - partial.len()));
                partial.extend_from_slice(now);
                rest = later;
                if partial.ends_with(b"\n") || partial.len() == LINE_MAX {
                    append_entry(&mut self.line, stream, partial, &time);
                    partial.clear();
                }
            }
        }
        self.flush_line();
    }

    /// The stream has ended: what is left becomes a line.
    fn finish(&mut self, stream: Stream) {
        let partial = std::mem::take(&mut self.partial[stream as usize]);
        if !partial.is_empty() {
            self.line.clear();
            append_entry(&mut self.line, stream, &partial, &rfc3339(SystemTime::now()));
            self.flush_line();
        }
    }
}

/// Appends `{"log":"…","stream":"…","time":"…"}` and a newline. Bytes that are no UTF-8 become U+FFFD, as in Docker.
fn append_entry(line: &mut Vec<u8>, stream: Stream, text: &[u8], time: &str) {
    line.extend_from_slice(b"{\"log\":");
    // Writing a string as JSON into memory cannot fail.
    let _ = serde_json::to_writer(&mut *line, &String::from_utf8_lossy(text));
    line.extend_from_slice(b",\"stream\":\"");
    line.extend_from_slice(stream.name().as_bytes());
    line.extend_from_slice(b"\",\"time\":\"");
    line.extend_from_slice(time.as_bytes());
    line.extend_from_slice(b"\"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_partial_ones_wait() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let mut log = Log::open(&path).expect("a log");
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"bad \xff\n");
        log.write(Stream::Stdout, b"o");
        log.finish(Stream::Stdout);
        log.write(Stream::Stdout, &[vec![b'x'; LINE_MAX + 1], b"\n".to_vec()].concat());
        let text = std::fs::read_to_string(&path).expect("the log");
        let entries: Vec<(String, String)> = text
            .lines()
            .map(|line| {
                let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
                (entry["stream"].as_str().unwrap_or("").into(), entry["log"].as_str().unwrap_or("").into())
            })
            .collect();
        let piece = "x".repeat(LINE_MAX);
        let expected = [
            ("stdout", "one\n"),
            ("stderr", "bad \u{fffd}\n"),
            ("stdout", "two"),
            ("stdout", piece.as_str()),
            ("stdout", "x\n"),
        ];
        assert_eq!(entries, expected.map(|(stream, log)| (stream.to_owned(), log.to_owned())));
    }
}
