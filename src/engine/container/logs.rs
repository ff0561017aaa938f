//! What a container wrote: the monitor's json-file lines, from any point, and on until the container's run ends.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::time::SystemTime;

use base::time::parse_rfc3339;
use base::{ContainerId, Report};
use serde::Deserialize;

use crate::Engine;
use crate::container::record::load;
use crate::container::wait::Watch;
use crate::file::failed;

/// What of a log is wanted.
#[derive(Clone, Debug, Default)]
pub struct LogsRequest {
    /// Whether to go on until the container ends.
    pub follow: bool,
    /// How many of the last lines; `None` is all.
    pub tail: Option<u64>,
    /// Nothing that was written before.
    pub since: Option<SystemTime>,
    /// Nothing that was written after.
    pub until: Option<SystemTime>,
}

/// One line of a log, or a piece of a long one.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// What was written, with its newline.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// RFC 3339 with nanoseconds.
    pub time: String,
}

/// Hands the lines to `take` in order. A container that never wrote has none; a line that is no record (the tail of a
/// write cut by a power loss) is passed over.
pub fn logs(
    engine: &Engine,
    id: &ContainerId,
    request: &LogsRequest,
    mut take: impl FnMut(Entry) -> io::Result<()>,
) -> Result<(), Report> {
    load(engine, id)?;
    let path = engine.paths().container(id).join("log");
    let mut watch = if request.follow { Some(Watch::new(engine, id)?) } else { None };
    let mut reader = loop {
        match File::open(&path) {
            Ok(file) => break Reader::at_tail(file, request.tail).map_err(|error| failed("reading", &path, error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match &mut watch {
                // One look more: it may have been made between the open and the end of the run.
                Some(watch) => {
                    if watch.active()? {
                        watch.wait()?;
                    } else if !path.exists() {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
            Err(error) => return Err(failed("opening", &path, error)),
        }
    };
    loop {
        // Asked before reading: what is written after the end of the run does not exist.
        let active = match &mut watch {
            Some(watch) => watch.active()?,
            None => false,
        };
        while let Some(entry) = reader.next().map_err(|error| failed("reading", &path, error))? {
            let time = parse_rfc3339(&entry.time)?;
            if request.until.is_some_and(|until| time > until) {
                return Ok(());
            }
            if request.since.is_none_or(|since| time >= since) {
                take(entry).map_err(|error| Report::of(base::Kind::Internal, error))?;
            }
        }
        match &mut watch {
            Some(watch) if active => watch.wait()?,
            _ => return Ok(()),
        }
    }
}

struct Reader {
    file: BufReader<File>,
    /// A line whose end is not written yet.
    partial: Vec<u8>,
}

impl Reader {
    fn at_tail(mut file: File, tail: Option<u64>) -> io::Result<Self> {
        let start = match tail {
            Some(lines) => start_of_tail(&mut file, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(start))?;
        Ok(Reader { file: BufReader::with_capacity(64 << 10, file), partial: Vec::new() })
    }

    /// The next whole line's record; `None` at the end of what is written.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() != Some(&b'\n') {
                return Ok(None);
            }
            let entry = serde_json::from_slice(&self.partial).ok();
            self.partial.clear();
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

/// Where the last `lines` lines begin, searched backwards in blocks. A line of the container that was cut into pieces
/// counts by its pieces.
fn start_of_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    // The newline that ends the last line begins none.
    let mut wanted = lines + 1;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (position, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            wanted -= 1;
            if wanted == 0 {
                return Ok(start + position as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_begins_at_a_line() {
        let mut file = tempfile::tempfile().unwrap();
        for number in 0..20_000 {
            writeln!(file, "line {number:05}").unwrap();
        }
        for (lines, start) in [(0, 220_000), (1, 219_989), (2, 219_978), (19_999, 11), (20_000, 0), (90_000, 0)] {
            assert_eq!(start_of_tail(&mut file, lines).unwrap(), start, "{lines}");
        }
    }
}
