//! What a container wrote: the monitor's lines, from any point, and on until the container's run ends.

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

use base::time::parse_rfc3339;
use base::{ContainerId, Kind, Report};
use monitor::log::Format;
use serde::Deserialize;

use crate::Engine;
use crate::container::log_driver;
use crate::container::lookup::missing;
use crate::container::record::load;
use crate::container::wait::Watch;
use crate::file::failed;
use crate::rotated::Reader;

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

/// What the options of its log have readers told of a container beside each line, by name (`--log-opt labels`, `env`, `tag`).
pub fn attributes(engine: &Engine, id: &ContainerId) -> Result<BTreeMap<String, String>, Report> {
    Ok(log_driver::attributes(&load(engine, id)?))
}

/// Hands the lines to `take` in order. A container that never wrote has none; a line that is no record (the tail of a
/// write cut by a power loss) is passed over.
pub fn logs(
    engine: &Engine,
    id: &ContainerId,
    request: &LogsRequest,
    mut take: impl FnMut(Entry) -> io::Result<()>,
) -> Result<(), Report> {
    let rules = log_driver::rules(&load(engine, id)?.host.log)?;
    let Some(format) = rules.format else {
        return Err(Report::new(Kind::Unsupported, "configured logging driver does not support reading"));
    };
    let directory = engine.paths().container(id);
    let step = |error: io::Error| match error.kind() {
        // Another command has removed it since it was found.
        io::ErrorKind::NotFound => missing(id.as_str()),
        _ => failed("reading the log in", &directory, error),
    };
    let mut watch = if request.follow { Some(Watch::new(engine, id)?) } else { None };
    let mut reader = Reader::at_tail(&directory, request.tail).map_err(step)?;
    loop {
        // Asked before reading: what is written after the end of the run does not exist.
        let active = match &mut watch {
            Some(watch) => watch.active()?,
            None => false,
        };
        while let Some(line) = reader.next().map_err(step)? {
            let Some(entry) = parse(format, &line) else { continue };
            let Ok(time) = parse_rfc3339(&entry.time) else { continue };
            if request.until.is_some_and(|until| time > until) {
                return Ok(());
            }
            if request.since.is_none_or(|since| time >= since) {
                take(entry).map_err(|error| Report::of(Kind::Internal, error))?;
            }
        }
        match &mut watch {
            Some(watch) if active => watch.wait()?,
            _ => return Ok(()),
        }
    }
}

/// One line with its newline; `None` if it is no entry.
fn parse(format: Format, line: &[u8]) -> Option<Entry> {
    match format {
        Format::Json => serde_json::from_slice(line).ok(),
        Format::K8s => {
            let text = String::from_utf8_lossy(line);
            let mut words = text.splitn(4, ' ');
            let (time, stream, flag, log) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let whole = match flag {
                "F" => true,
                "P" => false,
                _ => return None,
            };
            let log = if whole { log } else { log.trim_end_matches('\n') };
            Some(Entry { log: log.to_owned(), stream: stream.to_owned(), time: time.to_owned() })
        }
    }
}
