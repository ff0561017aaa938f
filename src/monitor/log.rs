//! The container's log: a file in the format of Docker's driver json-file or of Podman's k8s-file, one entry a line, and
//! those before it once it has reached its size.
//!
//! ```text
//! log ── as large as it may be ──▶ log.1 … log.N (the higher the newer), of which as many are kept as were asked for
//! ```
//! A line of the container becomes a line of the log when its newline arrives, when it is 16 KiB long, or when its
//! stream ends. The time is that of the read. What cannot be written (a full disk) is counted and said once; the
//! container goes on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base::time::rfc3339;
use serde::{Deserialize, Serialize};

use crate::journal::{Journal, SOCKET};
use crate::streams::Sink;

/// The file's name in the container's directory.
pub const NAME: &str = "log";
/// Docker splits longer lines into pieces of this size.
const LINE_MAX: usize = 16 << 10;

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// What its lines are like; `None` is no log at all.
    pub format: Option<Format>,
    /// The size from which on a new file is begun.
    pub max_bytes: Option<u64>,
    /// How many files are kept then, at least 1.
    pub max_files: u64,
    /// The fields of entries that go to the journal as well; without any none do.
    #[serde(default)]
    pub journal: BTreeMap<String, String>,
}

impl Default for Rules {
    /// One file without end.
    fn default() -> Self {
        Rules { format: Some(Format::Json), max_bytes: None, max_files: 1, journal: BTreeMap::new() }
    }
}

/// What the lines of a log are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"log":"text\n","stream":"stdout","time":"…"}`.
    Json,
    /// `TIME stdout F text`, with `P` for a piece of a line (Kubernetes' CRI).
    K8s,
}

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
    directory: PathBuf,
    rules: Rules,
    /// None where nothing is kept.
    file: Option<File>,
    journal: Option<Journal>,
    size_bytes: u64,
    partial: [Vec<u8>; 2],
    line: Vec<u8>,
    lost: u64,
    /// The last write failed, perhaps in the middle.
    torn: bool,
}

impl Log {
    /// Opens the log in this directory for appending, making it when missing.
    pub fn open(directory: &Path, rules: Rules) -> io::Result<Self> {
        let file = rules.format.is_some().then(|| append(&directory.join(NAME))).transpose()?;
        let size_bytes = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        let torn = file.as_ref().map_or(Ok(false), |file| is_torn(file, size_bytes))?;
        Ok(Log {
            directory: directory.to_owned(),
            journal: (!rules.journal.is_empty())
                .then(|| Journal::open(PathBuf::from(SOCKET), &rules.journal))
                .transpose()?,
            rules,
            file,
            size_bytes,
            partial: [Vec::new(), Vec::new()],
            line: Vec::new(),
            lost: 0,
            torn,
        })
    }

    /// How many bytes of log could not be written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes a line, or a piece of one, which is written by [`Log::flush`] or with those that fill a file.
    fn add(&mut self, stream: Stream, text: &[u8], time: &str) {
        if self.journal.as_mut().is_some_and(|journal| !journal.send(stream, text)) {
            self.lost += text.len() as u64;
        }
        match self.rules.format {
            Some(Format::Json) => append_json(&mut self.line, stream, text, time),
            Some(Format::K8s) => append_k8s(&mut self.line, stream, text, time),
            None => {}
        }
        if self.rules.max_bytes.is_some_and(|max| self.size_bytes + self.line.len() as u64 >= max) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.line.is_empty() {
            return;
        }
        if self.rules.max_bytes.is_some_and(|max| self.size_bytes >= max) {
            // Without another file this one goes on, and the next line tries again.
            let _ = self.begin_another();
        }
        let Some(file) = &mut self.file else { return };
        if self.torn {
            // What is left of the entry before must not spoil this one.
            self.line.insert(0, b'\n');
        }
        self.torn = file.write_all(&self.line).is_err();
        // What is lost fills no file, so it pushes none out.
        let counted = if self.torn { &mut self.lost } else { &mut self.size_bytes };
        *counted += self.line.len() as u64;
        self.line.clear();
    }

    /// Puts the file aside under the next number, begins another, and removes those that are too many.
    fn begin_another(&mut self) -> io::Result<()> {
        let path = self.directory.join(NAME);
        let mut numbers = set_aside(&self.directory)?;
        let next = numbers.last().map_or(1, |last| last + 1);
        numbers.push(next);
        match fs::rename(&path, self.directory.join(aside(next))) {
            // Done by a try whose next step failed: what was written since went on into the file that was put aside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(numbers.pop()),
            renamed => renamed?,
        }
        self.file = Some(append(&path)?);
        (self.size_bytes, self.torn) = (0, false);
        let kept = usize::try_from(self.rules.max_files.saturating_sub(1)).unwrap_or(usize::MAX);
        for number in &numbers[..numbers.len().saturating_sub(kept)] {
            fs::remove_file(self.directory.join(aside(*number)))?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}

/// Whether the last line of a file has no end: its writer was killed, or the power went.
pub fn is_torn(file: &File, size_bytes: u64) -> io::Result<bool> {
    let mut last = [0; 1];
    Ok(size_bytes > 0 && file.read_at(&mut last, size_bytes - 1)? == 1 && last != *b"\n")
}

/// The name of a file that was put aside.
pub fn aside(number: u64) -> String {
    format!("{NAME}.{number}")
}

/// The numbers of the files that were put aside in a container's directory, oldest first.
pub fn set_aside(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(NAME)?.strip_prefix('.'));
        numbers.extend(rest.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Sink for Log {
    /// Takes bytes of a stream; complete lines go to the file in one write, unless they fill it.
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let time = rfc3339(SystemTime::now());
        let mut partial = std::mem::take(&mut self.partial[stream as usize]);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = piece;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(LINE_MAX - partial.len()));
                partial.extend_from_slice(now);
                rest = later;
                if partial.ends_with(b"\n") || partial.len() == LINE_MAX {
                    self.add(stream, &partial, &time);
                    partial.clear();
                }
            }
        }
        self.partial[stream as usize] = partial;
        self.flush();
    }

    /// The stream has ended: what is left becomes a line.
    fn finish(&mut self, stream: Stream) {
        let partial = std::mem::take(&mut self.partial[stream as usize]);
        if !partial.is_empty() {
            self.add(stream, &partial, &rfc3339(SystemTime::now()));
            self.flush();
        }
    }
}

/// Appends `{"log":"…","stream":"…","time":"…"}` and a newline. Bytes that are no UTF-8 become U+FFFD, as in Docker.
fn append_json(line: &mut Vec<u8>, stream: Stream, text: &[u8], time: &str) {
    line.extend_from_slice(b"{\"log\":");
    // Writing a string as JSON into memory cannot fail.
    let _ = serde_json::to_writer(&mut *line, &String::from_utf8_lossy(text));
    line.extend_from_slice(b",\"stream\":\"");
    line.extend_from_slice(stream.name().as_bytes());
    line.extend_from_slice(b"\",\"time\":\"");
    line.extend_from_slice(time.as_bytes());
    line.extend_from_slice(b"\"}\n");
}

/// Appends `TIME STREAM F TEXT` and a newline, or `P` where the text ends without one.
fn append_k8s(line: &mut Vec<u8>, stream: Stream, text: &[u8], time: &str) {
    let (flag, text) = text.strip_suffix(b"\n").map_or(('P', text), |text| ('F', text));
    // Writing into memory cannot fail.
    let _ = write!(line, "{time} {} {flag} ", stream.name());
    line.extend_from_slice(text);
    line.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_partial_ones_wait() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(NAME);
        let mut log = Log::open(directory.path(), Rules::default()).expect("a log");
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"bad \xff\n");
        log.write(Stream::Stdout, b"o");
        log.finish(Stream::Stdout);
        log.write(Stream::Stdout, &[vec![b'x'; LINE_MAX + 1], b"\n".to_vec()].concat());
        let text = fs::read_to_string(&path).expect("the log");
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
    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_go() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let rules = Rules { format: Some(Format::K8s), max_bytes: Some(200), max_files: 3, ..Rules::default() };
        let mut log = Log::open(directory.path(), rules.clone()).expect("a log");
        let lines: Vec<String> = (0..40).map(|number| format!("line {number:02}\n")).collect();
        log.write(Stream::Stdout, lines[..20].concat().as_bytes());
        drop(log);
        let mut log = Log::open(directory.path(), rules).expect("a log");
        log.write(Stream::Stderr, lines[20..].concat().as_bytes());
        let aside_now = set_aside(directory.path()).expect("numbers");
        assert_eq!(aside_now.len(), 2);
        let names = aside_now.iter().map(|number| aside(*number)).chain([NAME.to_owned()]);
        let texts: Vec<String> =
            names.map(|name| fs::read_to_string(directory.path().join(name)).expect("a file")).collect();
        // A file ends with the line that fills it.
        assert!(texts[..2].iter().all(|text| (200..250).contains(&text.len())), "{texts:?}");
        let shown = texts.concat();
        let numbers: Vec<&str> = shown.lines().filter_map(|line| line.split(" stderr F line ").nth(1)).collect();
        assert!(numbers.len() > 10 && numbers.last() == Some(&"39"), "{shown}");
        assert!(numbers.is_sorted() && log.lost() == 0);
    }

    #[test]
    fn nothing_is_written_where_nothing_is_kept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut log = Log::open(directory.path(), Rules { format: None, ..Rules::default() }).expect("a log");
        log.write(Stream::Stdout, b"one\ntwo");
        log.finish(Stream::Stdout);
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0);
    }
    #[test]
    fn a_torn_line_and_a_half_done_change_of_files_spoil_nothing_further() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(NAME);
        fs::write(&path, "2026-12-01T10:00").expect("half an entry");
        let rules = Rules { format: Some(Format::K8s), max_bytes: Some(100), max_files: 2, ..Rules::default() };
        let mut log = Log::open(directory.path(), rules).expect("a log");
        log.write(Stream::Stdout, b"after\n");
        let text = fs::read_to_string(&path).expect("the log");
        assert!(text.starts_with("2026-12-01T10:00\n") && text.ends_with(" stdout F after\n"), "{text}");
        // As a rename leaves it whose next step fails.
        log.write(Stream::Stdout, &[b'x'; 200]);
        log.finish(Stream::Stdout);
        fs::rename(&path, directory.path().join(aside(1))).expect("a rename");
        log.write(Stream::Stdout, b"next\n");
        log.write(Stream::Stdout, b"more\n");
        let text = fs::read_to_string(&path).expect("another file");
        assert!(text.contains(" stdout F next\n") && text.ends_with(" stdout F more\n"), "{text}");
        assert_eq!(set_aside(directory.path()).expect("numbers"), [1]);
    }
}
