//! What goes to `--log` and to standard error.
//!
//! Callers take the last error line of the log as the reason of a failure, so each error is one line there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::SystemTime;

use base::{Kind, Report, time};
use serde_json::json;

use crate::args::{Global, LogFormat};

/// Where lines go.
#[derive(Debug)]
pub struct Log {
    file: Option<File>,
    format: LogFormat,
    debug: bool,
}

impl Log {
    /// Opens the file that the caller names; it is appended to.
    pub fn open(global: &Global) -> Result<Self, Report> {
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        let file = global.log.as_ref().map(open).transpose();
        let file = file.map_err(|error| {
            let path = global.log.as_deref().unwrap_or(std::path::Path::new(""));
            Report::of(Kind::Internal, error).with_step(format!("opening the log {}", path.display()))
        })?;
        Ok(Log { file, format: global.log_format, debug: global.debug })
    }

    /// The reason why the command failed: to the log, and to whoever looks at standard error.
    pub fn error(&self, report: &Report) {
        let mut words = report.lines().join(": ");
        if let Some(hint) = report.hint() {
            words = format!("{words} ({hint})");
        }
        if self.file.is_some() || self.format == LogFormat::Json {
            self.line("error", &words);
        }
        if self.file.is_none() && self.format == LogFormat::Json {
            return;
        }
        // In one line here too: Podman shows its user the line that it recognises.
        eprintln!("error: {}", words.replace('\n', " "));
    }

    /// Something that the user asked for and gets otherwise.
    pub fn warn(&self, words: &str) {
        if self.file.is_some() || self.format == LogFormat::Json {
            self.line("warning", words);
        } else {
            eprintln!("sublet: {words}");
        }
    }

    /// Something for who looks for the cause of a surprise.
    pub fn debug(&self, words: impl FnOnce() -> String) {
        if self.debug {
            self.line("debug", &words());
        }
    }

    fn line(&self, level: &str, words: &str) {
        let now = time::rfc3339(SystemTime::now());
        let words = words.replace('\n', " ");
        let mut line = match self.format {
            LogFormat::Json => json!({ "level": level, "msg": words, "time": now }).to_string(),
            LogFormat::Text => format!("time=\"{now}\" level={level} msg={words:?}"),
        };
        line.push('\n');
        // One write, so that lines of two commands do not mix. A log that takes nothing more must not fail the command.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}
